"""Before a replica that speculates and one that does not: what is measured, told and made of it."""

from contextlib import AsyncExitStack

import httpx2
import pytest

from sessile.lab.fake_replica import Fault, serve_fake
from sessile.router.replica import ReplicaSpec

CHAT = "/v1/chat/completions"
WORDS = " ".join(f"word{n}" for n in range(40))


@pytest.fixture
async def site(start):
    """A router before both; the one that speculates is ten times as fast."""
    async with AsyncExitStack() as stack:
        router = await start(router={"probe_interval_s": 0.05})
        await router.app.pool.remove("one")
        for name, pause_s, accepts in (("off", 0.01, None), ("on", 0.001, 2.5)):
            fake = await stack.enter_async_context(
                serve_fake(model="m", always=Fault(pause_s=pause_s), accepts=accepts)
            )
            router.app.pool.add(ReplicaSpec(id=name, engine="sglang", url=fake.url))
        await router.until(lambda: len(router.app.pool.candidates("m")) == 2)
        yield router


async def turn(http, router, session: str, **fields) -> httpx2.Response:
    """One streamed turn of that session."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": WORDS}]}
    headers = {"x-session-id": session, "x-dynamo-session-final": "true"}  # it will not be back
    return await http.post(router.url + CHAT, json=body | fields, headers=headers)


async def test_new_sessions_go_where_they_decode_faster(site):
    """Once both have been seen; the receipt tells what was accepted, as do the list of replicas,
    the policy and the metrics."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        for number in range(14):
            await turn(http, site, f"s{number}")
        replies = [await turn(http, site, f"later {number}") for number in range(5)]
        assert {reply.headers["x-sessile-replica"] for reply in replies} == {"on"}
        last = replies[-1].headers["x-sessile-turn"]
        receipt = (await http.get(f"{site.url}/sessile/v1/turns/{last}/receipt")).json()
        assert receipt["acceptance_length"] == 2.5
        told = (await http.get(f"{site.url}/sessile/v1/replicas")).json()["replicas"]
        found = {r["id"]: (r["speculates"], r["acceptance_length"]) for r in told}
        assert found == {"off": (False, None), "on": (True, 2.5)}
        paces = (await http.get(f"{site.url}/sessile/v1/policy")).json()["paces"]["m"]
        assert paces["tokens_per_step"] == 2.5
        page = (await http.get(f"{site.url}/metrics")).text
        assert 'sessile_acceptance_length_count{replica="on"}' in page
        assert 'sessile_acceptance_length_count{replica="off"}' not in page


async def test_what_the_engine_tells_of_speculation_is_given_to_who_asked(site):
    """A client that asks for it itself has it, and no other."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        for number in range(8):
            reply = await turn(http, site, f"s{number}")
            assert "spec_tokens_details" not in reply.text and "[DONE]" in reply.text
        asked = [
            await turn(http, site, f"own {number}", return_spec_tokens_details=True)
            for number in range(8)
        ]
        told = {r.headers["x-sessile-replica"] for r in asked if "spec_tokens_details" in r.text}
        assert told == {"on"}
