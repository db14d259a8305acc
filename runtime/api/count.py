"""How many tokens a prompt has, exactly: from the engine's tokenizer where it has a call for that,
else from a turn of one token, whose prefill the next turn finds in the cache."""

from sessile.api.wire import engine_error
from sessile.errors import NotSupported, ReplicaError
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.turn_request import TurnRequest

_TIMEOUT_S = 30.0


async def count_tokens(pool: Pool, flow: Flow, request: TurnRequest) -> int:
    """The tokens of a chat request's prompt, as a replica of its model renders it.

    Raises what a turn raises, and `NotSupported` where nothing reports it.
    """
    counted = await _ask_tokenizer(pool, request)
    if counted is not None:
        return counted
    request.document = {**request.document, "max_tokens": 1}
    request.hints = request.hints.out_of_the_way()
    async with flow.serve_turn(request) as turn:
        answer = b"".join([chunk async for chunk in turn])
        if turn.status >= 400:
            raise engine_error(turn.status, answer)
    counted = turn.receipt.prompt_tokens
    if counted is None:
        raise NotSupported(f"the engine that serves {request.model!r} does not count tokens")
    return counted


async def _ask_tokenizer(pool: Pool, request: TurnRequest) -> int | None:
    """The least loaded replica's count; None if it has none to give, for whatever reason."""
    model = pool.model(request.model)
    upstream = model
    if (release := pool.releases.get(model)) is not None:  # whose session it is, nobody has said
        model, upstream = release.settled.name, release.settled.model
    document = {**request.document, "model": upstream}
    if (adapter := pool.adapters.get(model)) is not None:
        # It renders prompts as its base does, and need not be loaded for that.
        document, model = {**document, "model": adapter.base}, adapter.base
    replicas = [pool.get(outlook.id) for outlook in pool.outlooks(model)]
    if not replicas:
        return None
    replica = min(replicas, key=lambda replica: replica.pressure)
    document = {**document, **replica.engine.call_fields(document)}
    call = replica.engine.count_call(document)
    if call is None:
        return None
    try:
        reply = await replica.upstream.call(call, _TIMEOUT_S)
        return replica.engine.read_count(reply) if reply.status < 400 else None
    except ReplicaError:
        return None
