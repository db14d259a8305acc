"""What a source says of a replica becomes a `ReplicaSpec`, whose id is the same at every router."""

import re
from urllib.parse import urlsplit

from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest
from sessile.router.replica import ReplicaSpec

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def replica(kind: str, url: str, model: str | None = None, name: str | None = None) -> ReplicaSpec:
    """The replica at `url`; without a `name` its id is made of its engine and address, and of
    nothing that depends on its place in a list. Raises `InvalidRequest` with what is wrong."""
    engine(kind)
    url = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is not a URL, as in http://gpu1:30000")
    if name is None:
        address = f"{parts.hostname}-{port}" if port else parts.hostname
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{kind}-{address}")[:64]
    elif not _ID.fullmatch(name):
        raise InvalidRequest(
            f"the id {name!r} is not 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return ReplicaSpec(id=name, engine=kind, url=url, model=model)


def url_of(host: str, port: int) -> str:
    """The base URL at an address, IPv6 or not."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
