"""Sessions that move while they pause, and children that share what one of them computes."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from sessile.lab.fake_replica import FakeReplica, Fault, Seen

CHAT = "/v1/chat/completions"
LONG = "the task at hand " * 300
"""Over 1,200 tokens."""


class Gated(FakeReplica):
    """A replica that computes nothing while its gate is shut."""

    def __init__(self, **script: Any) -> None:
        super().__init__(model="m", **script)
        self.gate = asyncio.Event()
        self.gate.set()

    async def _answer(self, scope: Scope, send: Send, seen: Seen, fault: Fault) -> None:
        await self.gate.wait()
        await super()._answer(scope, send, seen, fault)


class Holding(FakeReplica):
    """As SGLang with `--enable-session-radix-cache`."""

    def __init__(self) -> None:
        super().__init__(model="m")
        self.closed: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path == "/server_info":
            await _json(send, {"enable_session_radix_cache": True, "random_seed": 1})
        elif path == "/close_session":
            message = await receive()
            self.closed.append(msgspec.json.decode(message["body"])["session_id"])
            await _json(send, {})
        else:
            await super().__call__(scope, receive, send)


class Slotted(FakeReplica):
    """As llama.cpp with one slot, at which `waiting` requests wait."""

    def __init__(self) -> None:
        super().__init__(model="m", tokens_per_s=10_000.0)
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path == "/props":
            await _json(send, {})
        elif path == "/slots":
            await _json(send, [{"is_processing": bool(self.waiting)}])
        elif path == "/metrics":
            text = f"llamacpp:requests_processing 0\nllamacpp:requests_deferred {self.waiting}\n"
            await _start(send)
            await send({"type": "http.response.body", "body": text.encode()})
        else:
            await super().__call__(scope, receive, send)


async def _start(send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _json(send: Send, body: Any) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


@pytest.fixture
async def pair(start):
    """A router before two replicas that cache."""
    return await start([Gated(), Gated()])


class Talk:
    """A session that grows by each turn, as an agent's does."""

    def __init__(self, router: Any, http: httpx2.AsyncClient, name: str, **headers: str) -> None:
        self._router, self._http = router, http
        self._headers = {"x-session-id": name, **headers}
        self._messages = [{"role": "system", "content": f"{name}: {LONG}"}]
        self.name = name

    async def turn(self, text: str = "go on") -> dict[str, Any]:
        """Its receipt."""
        self._messages.append({"role": "user", "content": text})
        reply = await self._http.post(
            self._router.url + CHAT,
            json={"model": "m", "messages": self._messages},
            headers=self._headers,
        )
        assert reply.status_code == 200, reply.text
        self._messages.append(reply.json()["choices"][0]["message"])
        turn = reply.headers["x-sessile-turn"]
        told = await self._http.get(f"{self._router.url}/sessile/v1/turns/{turn}/receipt")
        return told.json()


async def drain(router, http, name):
    """Ask it of the router."""
    reply = await http.post(f"{router.url}/sessile/v1/replicas/{name}/drain")
    assert reply.status_code == 200


def moves(router):
    """How many sessions have been moved, by outcome."""
    found: Counter[str] = Counter()
    for (_, outcome), count in router.app.telemetry.moves.items():
        found[outcome] += count
    return found


async def talks(router, http, count):
    """So many sessions of one turn, and where each is."""
    found = [Talk(router, http, f"s{n}") for n in range(count)]
    return found, [(await talk.turn())["replica"] for talk in found]


async def test_sessions_of_a_draining_replica_find_their_cache_elsewhere(pair, http):
    """Each is bound and prewarmed elsewhere while it pauses; its next turn is a hit there."""
    sessions, homes = await talks(pair, http, 6)
    assert set(homes) == {"one", "two"}
    await drain(pair, http, "one")
    await pair.until(lambda: moves(pair)["prewarmed"] == homes.count("one"))
    served = len(pair.engines["one"].seen)
    for talk, home in zip(sessions, homes, strict=True):
        receipt = await talk.turn()
        assert receipt["replica"] == "two"
        assert receipt["reason"] == ("moved" if home == "one" else "bound")
        assert receipt["cached_tokens"] >= 0.8 * receipt["prompt_tokens"]
        assert receipt["predicted_cached_tokens"] >= 0.8 * receipt["prompt_tokens"]
        assert (await talk.turn())["reason"] == "bound"
    assert len(pair.engines["one"].seen) == served
    told = (await http.get(f"{pair.url}/sessile/v1/policy")).json()
    assert told["moves"] == {"replica_gone prewarmed": homes.count("one")}


async def test_a_prewarm_asks_for_one_token_of_the_same_prompt(pair, http):
    """Whatever the client asked for, and streamed, so that a hang-up stops it."""
    body = {"model": "m", "messages": [{"role": "user", "content": LONG}], "n": 2,
            "max_completion_tokens": 50, "temperature": 0.5}  # fmt: skip
    reply = await http.post(pair.url + CHAT, json=body, headers={"x-session-id": "s"})
    home = reply.headers["x-sessile-replica"]
    await drain(pair, http, home)
    await pair.until(lambda: moves(pair)["prewarmed"] == 1)
    (seen,) = pair.engines["two" if home == "one" else "one"].seen
    assert seen.body == {
        "model": "m", "messages": body["messages"], "temperature": 0.5, "max_tokens": 1,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def test_a_turn_that_comes_while_its_session_is_prewarmed_joins_it(pair, http):
    """It waits for that prefill instead of beginning another."""
    talk = Talk(pair, http, "s")
    home = (await talk.turn())["replica"]
    other = pair.engines["two" if home == "one" else "one"]
    other.gate.clear()
    await drain(pair, http, home)
    await other.until(lambda r: r.running == 1)
    turn = asyncio.create_task(talk.turn())
    await pair.until(lambda: len(pair.app.pool.get(other_name(home)).outlook.runs) == 2)
    other.gate.set()
    receipt = await turn
    assert receipt["cached_tokens"] >= 0.8 * receipt["prompt_tokens"]
    assert [seen.outcome for seen in other.seen] == ["done", "done"]


def other_name(name):
    """The other replica of a pair."""
    return "two" if name == "one" else "one"


async def test_a_turn_that_began_before_the_move_wins(pair, http):
    """Its session is where the turn goes, and nothing is prewarmed for it."""
    talk = Talk(pair, http, "s")
    home = (await talk.turn())["replica"]
    pair.engines[home].gate.clear()
    turn = asyncio.create_task(talk.turn())
    await pair.engines[home].until(lambda r: r.running == 1)
    await drain(pair, http, home)
    pair.engines[home].gate.set()
    assert (await turn)["replica"] == home
    await pair.until(lambda: moves(pair)["prewarmed"] == 1)  # it pauses now, and is moved
    receipt = await talk.turn()
    assert (receipt["replica"], receipt["reason"]) == (other_name(home), "moved")


async def test_a_closed_session_is_not_moved(pair, http):
    """Nor is one whose prewarming has begun worth going on with."""
    left, closed = Talk(pair, http, "left"), Talk(pair, http, "closed")
    while (home := (await left.turn())["replica"]) != (await closed.turn())["replica"]:
        closed = Talk(pair, http, closed.name + "x")
    await http.post(f"{pair.url}/sessile/v1/sessions/{closed.name}/close")
    other = pair.engines[other_name(home)]
    served = len(other.seen)
    other.gate.clear()
    await drain(pair, http, home)
    await other.until(lambda r: r.running == 1)
    await http.post(f"{pair.url}/sessile/v1/sessions/left/close")
    await pair.until(lambda: moves(pair) == {"overtaken": 1})
    await other.until(lambda r: r.running == 0)
    assert len(other.seen) == served + 1


async def test_a_prewarm_that_fails_costs_nothing_but_the_hit(pair, http):
    """The session has moved all the same, and its next turn is served."""
    talk = Talk(pair, http, "s")
    home = (await talk.turn())["replica"]
    pair.engines[other_name(home)].fail(Fault(status=500))
    await drain(pair, http, home)
    await pair.until(lambda: moves(pair)["failed"] == 1)
    receipt = await talk.turn()
    assert (receipt["replica"], receipt["reason"]) == (other_name(home), "moved")
    assert receipt["cached_tokens"] == 0


async def test_the_sessions_of_a_replica_that_died_are_prewarmed(pair, http):
    """As those of one that drains."""
    talk = Talk(pair, http, "s")
    home = (await talk.turn())["replica"]
    pair.app.pool.mark_down(home, "its process ended")
    await pair.until(lambda: moves(pair)["prewarmed"] == 1)
    receipt = await talk.turn()
    assert (receipt["replica"], receipt["reason"]) == (other_name(home), "moved")
    assert receipt["cached_tokens"] >= 0.8 * receipt["prompt_tokens"]


async def test_who_is_about_to_be_back_leaves_an_overloaded_replica(start, http):
    """For one where nothing waits, as soon as its price says so."""
    router = await start([Slotted(), Slotted()], kind="llamacpp")
    talk = Talk(router, http, "s")
    home = (await talk.turn())["replica"]
    engine = router.engines[home]
    await drain(router, http, other_name(home))
    engine.fail(Fault(hang=True))
    hanging = asyncio.create_task(Talk(router, http, "hanging").turn(LONG * 40))
    await engine.until(lambda r: r.running == 1)
    engine.waiting = 1
    await router.until(lambda: router.app.pool.get(home).outlook.queued > 0)
    await talk.turn()
    await http.post(f"{router.url}/sessile/v1/replicas/{other_name(home)}/resume")
    router.app.flow.look()
    await router.until(lambda: moves(router)["prewarmed"] == 1)
    assert set(router.app.telemetry.moves) == {("cheaper", "prewarmed")}
    receipt = await talk.turn()
    assert (receipt["replica"], receipt["reason"]) == (other_name(home), "moved")
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


async def test_a_drain_under_load_fails_no_request(start, http):
    """Turns go on while the replica is drained: those that run there end there."""
    router = await start([Gated(tokens_per_s=50_000.0) for _ in range(3)])

    async def agent(number: int) -> list[dict[str, Any]]:
        talk = Talk(router, http, f"agent {number}")
        return [await talk.turn() for _ in range(6)]

    running = [asyncio.create_task(agent(n)) for n in range(9)]
    await router.until(lambda: len(router.engines["one"].seen) > 5)
    await drain(router, http, "one")
    receipts = [receipt for turns in await asyncio.gather(*running) for receipt in turns]
    assert {receipt["outcome"] for receipt in receipts} == {"ok"}
    await router.until(lambda: router.app.pool.get("one").in_flight == 0)


async def test_children_sent_at_once_spread_and_compute_their_parents_prefix_once_a_replica(
    start, http
):
    """Sixteen: no replica takes most of them, and at each all but the first find the prefix."""
    names = ["one", "two", "three", "four"]
    router = await start([Gated(tokens_per_s=20_000.0) for _ in names])
    system = {"role": "system", "content": LONG * 4}

    async def ask(session: str, text: str, **headers: str) -> str:
        reply = await http.post(
            router.url + CHAT,
            json={"model": "m", "messages": [system, {"role": "user", "content": text}],
                  "stream": True},
            headers={"x-session-id": session, **headers},
        )  # fmt: skip
        assert reply.status_code == 200
        return reply.headers["x-sessile-replica"]

    home = await ask("parent", "split the task")
    parent = {"x-parent-session-id": "parent"}
    homes = Counter(
        await asyncio.gather(*(ask(f"child {n}", f"{n}: {LONG}", **parent) for n in range(16)))
    )
    assert len(homes) == 4 and max(homes.values()) <= 8
    for name in names:
        missed = [seen for seen in router.engines[name].seen if not seen.cached_tokens]
        assert len(missed) == 1, name
    assert home in homes


async def test_a_child_takes_over_when_the_one_that_it_waits_for_fails(start, http):
    """One of those that waited computes the prefix, and the rest wait for it."""
    router = await start([Gated()])
    engine = router.engine
    engine.gate.clear()
    sessions = [Talk(router, http, "same") for _ in range(4)]
    for number, talk in enumerate(sessions):
        talk._headers["x-session-id"] = f"child {number}"
    first = asyncio.create_task(sessions[0].turn())
    await engine.until(lambda r: r.running == 1)
    rest = [asyncio.create_task(talk.turn()) for talk in sessions[1:]]
    await router.until(lambda: len(router.app.pool.get("one").outlook.runs) == 4)
    first.cancel()
    await engine.until(lambda r: len(r.seen) == 2)
    engine.gate.set()
    receipts = await asyncio.gather(*rest)
    assert sum(receipt["cached_tokens"] == 0 for receipt in receipts) == 1


async def test_closing_a_program_releases_all_of_its_tree(start, http):
    """Children, and theirs, wherever they pause; nobody else's."""
    router = await start([Gated(), Gated()])
    for name, parent in (("root", None), ("child", "root"), ("grandchild", "child"), ("x", None)):
        headers = {"x-parent-session-id": parent} if parent else {}
        await Talk(router, http, name, **headers).turn()
    await http.post(f"{router.url}/sessile/v1/sessions/root/close")
    paused = [session for replica in router.app.pool for session in replica.outlook.paused]
    assert [session.rpartition("\x1f")[2] for session in paused] == ["x"]


async def test_an_engine_that_holds_sessions_is_told_whom_to_let_go_of(start, http):
    """On a lease of nothing, on close, and never of one that goes on."""
    engine = Holding()
    router = await start([engine], kind="sglang")
    for name in ("kept", "leased", "closed"):
        await Talk(router, http, name).turn()
    await http.post(f"{router.url}/sessile/v1/sessions/leased/lease", json={"seconds": 0})
    await router.until(lambda: engine.closed == ["leased"])
    await http.post(f"{router.url}/sessile/v1/sessions/closed/close")
    await router.until(lambda: engine.closed == ["leased", "closed"])
