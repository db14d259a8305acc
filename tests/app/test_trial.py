"""A replica that answers health and serves nothing: taken out, told, and taken in again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from sessile.lab.fake_replica import Fault, serve_fake

CHAT = "/v1/chat/completions"
QUICK = {"silent_timeout_s": 0.5, "probe_interval_s": 0.05}


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def fakes() -> AsyncIterator[list[Any]]:
    """Two replicas, at work as SGLang is."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve_fake(model="m")) for _ in range(2)]


@pytest.fixture
async def router(start, fakes):
    """A router that is quick to doubt, and the fakes by their ids."""
    router = await start(engines=fakes, kind="sglang", router=QUICK)
    return router


def ask(session: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return {"json": body, "headers": {"x-session-id": session}}


def state(router: Any, name: str) -> str:
    found: str = router.app.pool.get(name).state
    return found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(status=503), Fault(drop_after=0), Fault(hang=True),
              Fault(error_after=0)],
)  # fmt: skip
async def test_it_costs_no_session_its_turn(router, http, fault, stream):
    """Whatever becomes of its turns, another answers them; it is taken out, with a reason for who
    looks; and once it serves again, it is taken in."""
    bad = router.engines["one"]
    bad.always = fault
    asked = [
        http.post(router.url + CHAT, **ask(f"s{n}", stream=stream, max_tokens=4)) for n in range(8)
    ]
    replies = await asyncio.gather(*asked)
    assert [reply.status_code for reply in replies] == [200] * 8
    assert all("echo" in reply.text and "[" not in reply.headers["x-sessile-turn"] for reply in replies)
    await router.until(lambda: state(router, "one") == "down")
    listed = (await http.get(f"{router.url}/sessile/v1/replicas")).json()["replicas"]
    why = next(each["why"] for each in listed if each["id"] == "one")
    assert why.startswith("it says that it is healthy, but serves nothing")
    seen = len(bad.seen)
    for n in range(8):
        again = await http.post(router.url + CHAT, **ask(f"t{n}"))
        assert again.headers["x-sessile-replica"] == "two"
    assert all(each.body["max_tokens"] == 1 for each in bad.seen[seen:])
    bad.always = Fault()
    await router.until(lambda: state(router, "one") == "ready")
