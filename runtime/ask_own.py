"""Asks an engine in the very API that its client speaks."""

import msgspec

from sessile.messages_chunks import begins
from sessile.router.connection import UpstreamResponse
from sessile.router.engine import Headers, Own
from sessile.router.replica import Replica


async def ask_own(
    replica: Replica, own: Own, headers: Headers, broken: tuple[int, ...]
) -> tuple[UpstreamResponse, bytes] | None:
    """The answer and its first bytes; None if it is refused. SGLang refuses in an event, after a
    status that says that all is well, so one is waited for that says which it is.

    Raises a `ReplicaError` as `Upstream.begin` does, for a status that is `broken`.
    """
    body = msgspec.json.encode(own.document)
    given = (*headers, *own.headers)
    response, first = await replica.upstream.begin(own.path, body, broken.__contains__, given)
    try:
        begun = begins(first) if response.status < 400 else False
        while begun is None and (more := await response.read()):
            first += more
            begun = begins(first)
    except BaseException:  # cancelled too: nobody would read it
        response.close()
        raise
    if begun:
        return response, first
    response.close()
    return None
