"""Text that a client carries for us without reading it: what `encrypted_content` of items holds.

It is packed, not secret: it says what the client itself was told or has asked for, and a client
that opens it learns nothing new. Only what was sealed here is opened, and only up to a bound.
"""

import base64
import binascii
import zlib
from typing import Any

import msgspec

from sessile.errors import InvalidRequest

_MARK = "sessile1."
_MOST_BYTES = 32 * 2**20

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def seal(kind: str, content: Any) -> str:
    """`content`, plain values, as one opaque string."""
    data = zlib.compress(_encode([kind, content]))
    return _MARK + base64.urlsafe_b64encode(data).decode()


def unseal(kind: str, sealed: str, where: str) -> Any:
    """What was sealed as `kind`. Raises `InvalidRequest` naming `where` for anything else."""
    data = sealed.removeprefix(_MARK).encode("ascii", "replace")
    opened: Any = None
    try:
        if sealed.startswith(_MARK):
            packed = zlib.decompressobj()
            plain = packed.decompress(base64.b64decode(data, b"-_", validate=True), _MOST_BYTES)
            opened = _decode(plain) if packed.eof else None
    except (binascii.Error, zlib.error, msgspec.DecodeError, RecursionError):
        opened = None
    if not isinstance(opened, list) or len(opened) != 2 or opened[0] != kind:
        raise InvalidRequest(f"{where} was not made by this server", param=where)
    return opened[1]


def is_sealed(value: object) -> bool:
    """Whether a string claims to be one of ours."""
    return isinstance(value, str) and value.startswith(_MARK)
