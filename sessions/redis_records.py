"""How bindings and sessions look in Redis, where scripts read them too."""

from typing import Any

import msgspec

from sessile.sessions.record import Binding, SessionRecord

_SEPARATOR = "\x1f"


def write_binding(binding: Binding) -> str:
    """One string: scripts compare it whole, and a claim makes the first."""
    return f"{binding.epoch}{_SEPARATOR}{binding.replica}{_SEPARATOR}{binding.incarnation}"


def read_binding(data: bytes) -> Binding:
    """The binding of such a string."""
    epoch, replica, incarnation = data.decode().split(_SEPARATOR)
    return Binding(replica, incarnation, int(epoch))


def write_record(record: SessionRecord) -> list[str]:
    """The fields and values of a hash, without those that are None."""
    pairs: list[str] = []
    for name, value in msgspec.to_builtins(record).items():
        if name == "metadata":
            value = msgspec.json.encode(value).decode() if value else None
        if value is not None:
            pairs += (name, str(value))
    return pairs


def read_record(found: Any) -> SessionRecord | None:
    """A hash as `HGETALL` gives it, a dict or (RESP2) a flat list, as a record; None if empty."""
    if isinstance(found, list):
        found = dict(zip(found[::2], found[1::2], strict=True))
    if not found or b"session" not in found:
        return None
    fields: dict[str, Any] = {name.decode(): value.decode() for name, value in found.items()}
    if "metadata" in fields:
        fields["metadata"] = msgspec.json.decode(fields["metadata"])
    return msgspec.convert(fields, SessionRecord, strict=False)
