"""What the probe makes of what a replica says, and of what it does not say in time."""

import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from sessile.engines.kinds import engine
from sessile.errors import ReplicaTimeout, ReplicaUnreachable
from sessile.router.engine import Call, Reply
from sessile.router.pool import Pool
from sessile.router.probe import Probe
from sessile.router.replica import Replica, ReplicaSpec

READY, MODELS, INFO, LOADS = "/ready", "/v1/models", "/server_info", "/v1/loads?include=core"


class Upstream:
    """An SGLang whose pages can be changed; a page that is an error is raised. What `meanwhile`
    has for a page happens while that is asked for."""

    streams = 4

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.closed = 0
        self.meanwhile: dict[str, Callable[[], None]] = {}
        self.pages: dict[str, Reply | Exception] = {
            READY: Reply(200, b""),
            MODELS: Reply(200, b'{"data": [{"id": "m", "max_model_len": 4096}]}'),
            INFO: Reply(200, b'{"random_seed": 1, "version": "0.5.23"}'),
            LOADS: Reply(200, b'{"loads": [{"num_running_reqs": 3, "num_waiting_reqs": 1}]}'),
        }

    async def call(self, call: Call, timeout_s: float) -> Reply:
        """The page as it stands."""
        self.asked.append(call.path)
        page = self.pages.get(call.path, Reply(404, b""))
        self.meanwhile.pop(call.path, lambda: None)()
        if isinstance(page, Exception):
            raise page
        return page

    async def aclose(self) -> None:
        """Its replica is gone."""
        self.closed += 1


class Watched:
    """A replica in a pool, its pages, and a probe that looks when told to."""

    def __init__(self, kind: str = "sglang") -> None:
        self.upstream = Upstream()
        self.pool = Pool(
            lambda spec: Replica(spec, engine(spec.engine), cast(Any, self.upstream)), lambda _: 0
        )
        self.replica = self.pool.add(ReplicaSpec(id="r", engine=kind, url="http://r"))
        self._probe = Probe(self.pool, self.pool.servers["r"], 1.0, 5.0, lambda: 7.0)

    async def look(self, times: int = 1) -> None:
        """Look so many times."""
        for _ in range(times):
            await self._probe.look()


@pytest.fixture
def watched() -> Watched:
    """A replica that nobody has looked at yet."""
    return Watched()


async def test_a_replica_comes_up_with_its_identity_and_load(watched: Watched) -> None:
    """The first look at a ready replica learns all there is to know of it."""
    await watched.look()
    replica = watched.replica
    assert (replica.state, replica.models) == ("ready", ("m",))
    assert replica.incarnation is not None and replica.load is not None
    assert (replica.load.at, replica.load.running, replica.load.waiting) == (7.0, 3, 1)


async def test_a_replica_that_warms_up_is_not_up(watched: Watched) -> None:
    """Its other pages answer already; its readiness does not."""
    watched.upstream.pages[READY] = Reply(503, b"")
    await watched.look(5)
    assert (watched.replica.state, watched.replica.why) == ("starting", "its /ready answered 503")
    watched.upstream.pages[READY] = Reply(200, b"")
    await watched.look()
    assert watched.replica.state == "ready"


async def test_a_replica_that_is_told_to_stop_is_down_at_once(watched: Watched) -> None:
    """An SGLang that drains after SIGTERM answers every page but says that it is not ready."""
    await watched.look()
    watched.upstream.pages[READY] = Reply(503, b"")
    await watched.look()
    assert watched.replica.state == "down"


async def test_a_replica_that_answers_its_turns_is_up_however_long_a_look_takes(
    watched: Watched,
) -> None:
    """Turns that came in one moment may hold all that its server answers with (llama.cpp's)."""
    await watched.look()
    watched.upstream.pages[READY] = ReplicaTimeout("http://r/ready took over 5 s")

    def speaks() -> None:
        watched.replica.doubts.well_at = time.monotonic()

    for _ in range(4):
        watched.upstream.meanwhile[READY] = speaks
        await watched.look()
    assert watched.replica.state == "ready"
    await watched.look(2)
    assert watched.replica.state == "down"


async def test_a_look_that_a_failed_trial_ended_does_not_hide_why(watched: Watched) -> None:
    """Whoever asks is told what the trial has found, until the replica does not answer at all."""
    await watched.look()
    upstream, pool = watched.upstream, watched.pool

    def refuse() -> None:
        watched.replica.doubts.refused = "it serves nothing"
        pool.mark_down("r", "it serves nothing")

    upstream.meanwhile[READY] = refuse
    upstream.pages[READY] = ReplicaTimeout("http://r: it serves nothing")
    await watched.look()
    assert (watched.replica.state, watched.replica.why) == ("down", "it serves nothing")
    upstream.pages[READY] = ReplicaUnreachable("http://r is not reachable")
    await watched.look()
    assert watched.replica.why == "http://r is not reachable"


async def test_a_busy_replica_that_tells_its_identity_late_stays_up(watched: Watched) -> None:
    """SGLang answers /server_info between two passes of the model, which may take many seconds."""
    await watched.look()
    watched.upstream.pages[INFO] = ReplicaTimeout("http://r/server_info took over 5 s")
    await watched.look(40)
    assert watched.replica.state == "ready"


async def test_what_was_loaded_since_the_adapters_were_listed_stays_loaded(
    watched: Watched,
) -> None:
    """SGLang lists them at once and tells the rest of itself late. The next look finds what there
    is, whoever loaded it."""
    shelf = watched.replica.outlook.shelf
    await watched.look(10)
    watched.upstream.meanwhile[INFO] = lambda: shelf.put("sql")
    await watched.look()
    assert list(shelf.loaded) == ["sql"]
    listed = b'{"data": [{"id": "m"}, {"id": "sql", "parent": "m"}, {"id": "fr", "parent": "m"}]}'
    watched.upstream.pages[MODELS] = Reply(200, listed)
    watched.upstream.meanwhile[INFO] = lambda: shelf.drop("sql")
    await watched.look(10)
    assert list(shelf.loaded) == []
    await watched.look(10)
    assert list(shelf.loaded) == ["sql", "fr"]


async def test_one_late_load_is_forgiven_and_two_are_not(watched: Watched) -> None:
    """A replica is down when two looks in a row fail."""
    loads = watched.upstream.pages[LOADS]
    await watched.look()
    for _ in range(3):
        watched.upstream.pages[LOADS] = ReplicaTimeout("http://r/v1/loads took over 5 s")
        await watched.look()
        assert watched.replica.state == "ready"
        watched.upstream.pages[LOADS] = loads
        await watched.look()
    watched.upstream.pages[LOADS] = ReplicaTimeout("http://r/v1/loads took over 5 s")
    await watched.look(2)
    assert watched.replica.state == "down"


async def test_a_replica_that_refuses_connections_is_down_and_comes_back(watched: Watched) -> None:
    """Down at the first refusal; back, as another incarnation, once it answers again."""
    await watched.look()
    before = watched.replica.incarnation
    ready = watched.upstream.pages[READY]
    watched.upstream.pages[READY] = ReplicaUnreachable("http://r is not reachable")
    await watched.look()
    assert watched.replica.state == "down"
    watched.upstream.pages |= {READY: ready, INFO: Reply(200, b'{"random_seed": 2}')}
    await watched.look()
    assert watched.replica.state == "ready"
    assert watched.replica.incarnation != before


async def test_what_its_launcher_said_of_a_replica_stays_until_it_serves(
    watched: Watched,
) -> None:
    """While it is started, and while it is started again; an answer that makes no sense is told,
    as it is of a replica that nobody here has started."""
    watched.upstream.pages[READY] = ReplicaUnreachable("http://r is not reachable")
    await watched.look()
    assert watched.replica.why == "http://r is not reachable"
    watched.pool.set_incarnation("r", "1")
    watched.replica.why = None
    watched.pool.set_incarnation("r", "1")
    await watched.look()
    assert (watched.replica.state, watched.replica.why) == ("starting", "it is being started")
    watched.pool.mark_down("r", "it is started again, since its process ended")
    watched.pool.set_incarnation("r", "2")
    await watched.look(2)
    assert watched.replica.why == "it is started again, since its process ended"
    models = watched.upstream.pages[MODELS]
    watched.upstream.pages |= {READY: Reply(200, b""), MODELS: Reply(200, b"?")}
    await watched.look()
    assert watched.replica.state == "starting" and "models" in (watched.replica.why or "")
    watched.upstream.pages[MODELS] = models
    await watched.look()
    assert (watched.replica.state, watched.replica.why) == ("ready", None)


async def test_a_restart_between_two_looks_is_found(watched: Watched) -> None:
    """The identity is asked for now and then, and tells a replica that was never seen down."""
    await watched.look()
    before = watched.replica.incarnation
    watched.upstream.pages[INFO] = Reply(200, b'{"random_seed": 2}')
    await watched.look(20)
    assert watched.replica.incarnation != before


async def test_ranks_are_found_with_a_load_each_and_have_one_look(watched: Watched) -> None:
    """What was named is not a replica any more; all go down and come back by what one look says."""
    upstream, pool = watched.upstream, watched.pool
    upstream.pages |= {
        INFO: Reply(200, b'{"random_seed": 1, "dp_size": 2}'),
        LOADS: Reply(200, b'{"loads": [{"dp_rank": 1, "num_running_reqs": 3},'
                          b' {"dp_rank": 0, "num_running_reqs": 1}]}'),
    }  # fmt: skip
    await watched.look()
    assert watched.replica not in pool and upstream.closed == 1
    assert [(r.id, r.load and r.load.running) for r in pool] == [("r@0", 1), ("r@1", 3)]
    assert len({r.incarnation for r in pool}) == 1
    upstream.pages[READY] = Reply(503, b"")
    await watched.look()
    assert [(r.state, r.why) for r in pool] == [("down", "its /ready answered 503")] * 2
    upstream.pages[READY] = Reply(200, b"")
    asked = len(upstream.asked)
    await watched.look()
    assert [r.state for r in pool] == ["ready", "ready"]
    assert upstream.asked[asked:] == [READY, MODELS, INFO, LOADS]


async def test_the_engine_of_a_url_alone_is_found_when_it_comes_up() -> None:
    """It may be down before; and another engine may answer when it comes back."""
    watched = Watched("auto")
    models = watched.upstream.pages[MODELS]
    away = ReplicaUnreachable("http://r is not reachable")
    watched.upstream.pages[MODELS] = away
    await watched.look(3)
    assert (watched.replica.state, watched.replica.engine.kind) == ("starting", "auto")
    owned = b'{"data": [{"id": "m", "owned_by": "sglang"}]}'
    watched.upstream.pages[MODELS] = Reply(200, owned)
    await watched.look()
    assert (watched.replica.state, watched.replica.engine.kind) == ("ready", "sglang")
    assert watched.replica.load is not None and watched.replica.load.running == 3
    watched.upstream.pages |= {MODELS: away, READY: away}
    await watched.look()
    assert watched.replica.state == "down"
    watched.upstream.pages[MODELS] = models
    await watched.look()
    assert (watched.replica.state, watched.replica.engine.kind) == ("ready", "openai")


async def test_a_url_where_no_engine_answers_never_comes_up_and_says_why() -> None:
    """Whatever else it answers."""
    watched = Watched("auto")
    watched.upstream.pages[MODELS] = Reply(404, b"")
    await watched.look(3)
    assert watched.replica.state == "starting"
    assert watched.replica.why is not None and "no engine" in watched.replica.why


async def test_an_engine_that_is_found_says_itself_what_it_lacks() -> None:
    """An Ollama without a model is known, not up, and says how to get one."""
    watched = Watched("auto")
    watched.upstream.pages |= {
        MODELS: Reply(200, b'{"object": "list", "data": null}'),
        "/api/version": Reply(200, b'{"version": "0.14.2"}'),
        "/api/tags": Reply(200, b'{"models": []}'),
        "/api/ps": Reply(200, b'{"models": []}'),
    }
    await watched.look()
    assert (watched.replica.state, watched.replica.engine.kind) == ("starting", "ollama")
    assert watched.replica.why is not None and "ollama pull" in watched.replica.why
