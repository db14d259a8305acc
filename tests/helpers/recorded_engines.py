"""What engines answered, as `tests/contract/recorded` keeps it."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sessile.relay import UsageRelay
from sessile.router.engine import Engine, Reply, Usage

RECORDED = Path(__file__).parents[1] / "contract" / "recorded"
KINDS = ["sglang", "vllm", "llamacpp", "openai"]
NOW = 1000.0


class Exchange(NamedTuple):
    """One recorded request and its answer."""

    sent: dict[str, Any]
    reply: Reply


def recorded(kind: str, case: str) -> Any:
    """A recorded case as it is kept."""
    return json.loads((RECORDED / kind / f"{case}.json").read_text())


def exchanges(kind: str, case: str) -> list[Exchange]:
    """A recorded case; its JSON answers are encoded anew, its text is as it came."""
    found = []
    for e in recorded(kind, case)["exchanges"]:
        text = json.dumps(e["json"]) if "json" in e else "\n".join(e["lines"])
        found.append(Exchange(e["sent"], Reply(e["status"], text.encode())))
    return found


def replies(kind: str, case: str) -> tuple[Reply, ...]:
    """The answers of a recorded case."""
    return tuple(e.reply for e in exchanges(kind, case))


def usage_of(adapter: Engine, reply: Reply, *, pieces: int = 1) -> Usage:
    """What the router reads out of an answer, streamed or not, that comes in `pieces`."""
    if not reply.body.startswith(b"data:"):
        body = json.loads(reply.body)
    else:
        relay = UsageRelay(relay_usage=False)
        size = math.ceil(len(reply.body) / pieces)
        for start in range(0, len(reply.body), size):
            relay.feed(reply.body[start : start + size])
        assert relay.usage_body is not None
        body = relay.usage_body
    return adapter.read_usage(body["usage"], body)


def started_with(**arguments: object) -> tuple[Reply, ...]:
    """The pages of the recorded SGLang, as if it had been started with these arguments."""
    models, info = replies("sglang", "identity")
    return models, Reply(200, json.dumps({**json.loads(info.body), **arguments}).encode())
