"""Which adapters a replica has, what it costs to load one, and which makes way."""

from pytest import approx, raises

from sessile.engines.kinds import engine
from sessile.errors import AdapterRefused, ModelNotFound, NoReplica
from sessile.router.adapters import Adapter, Adapters, Shelf
from sessile.router.connection import Timeouts
from sessile.router.engine import Identity
from sessile.router.holdings import Index
from sessile.router.outlook import Outlook, totals
from sessile.router.policy import Ask
from sessile.router.pool import Pool
from sessile.router.price import Rates
from sessile.router.replica import Replica, ReplicaSpec
from sessile.router.scheduler import Limits, Scheduler
from sessile.router.upstream import Upstream

SQL = Adapter(name="sql", base="m", path="/adapters/sql")


def shelf(*names, limit=None):
    """One that has loaded these, the first the longest ago."""
    made = Shelf()
    made.limit = limit
    for name in names:
        made.put(name)
    return made


def test_the_least_recently_used_without_a_turn_makes_way():
    """What is used goes behind the others, whichever router says so; what runs stays."""
    one = shelf("a", "b", "c", limit=3)
    assert (one.has_room, one.victim()) == (False, "a")
    one.touch("a")
    assert one.victim() == "b"
    one.begin("b")
    one.begin("b")
    assert one.victim() == "c"
    one.begin("c")
    one.begin("a")
    assert one.victim() is None
    one.end("b")
    assert one.victim() is None
    one.end("b")
    assert one.victim() == "b"


def test_what_could_not_be_loaded_again_stays():
    """An adapter that its engine was started with, and nobody has declared, is nobody's to drop."""
    one = shelf("started", "declared", limit=2)
    one.fixed = frozenset({"started"})
    assert one.victim() == "declared"


def test_a_load_under_way_takes_a_place():
    """Two loads at once do not take the same one; a lost load gives it back."""
    one = shelf("a", limit=2)
    one.coming.add("b")
    assert not one.has_room
    one.told(["a", "b"])  # asked before the load was over
    assert list(one.loaded) == ["a"]
    one.coming.discard("b")
    assert one.has_room


def test_what_the_engine_tells_keeps_the_order_of_use():
    """Others may have loaded and dropped some meanwhile."""
    one = shelf("a", "b", "c")
    one.touch("a")
    one.told(["c", "a", "new"])
    assert list(one.loaded) == ["c", "a", "new"]


def test_the_price_of_a_load():
    """None where it is loaded; a load beside the others; two where another makes way, since that
    one comes back; and the wait for a turn to end where all are in use."""
    assert shelf("sql").wait_s("sql", 2.0, 5.0) == 0.0
    assert shelf("a", limit=2).wait_s("sql", 2.0, 5.0) == 2.0
    full = shelf("a", limit=1)
    assert full.wait_s("sql", 2.0, 5.0) == 4.0
    full.begin("a")
    assert full.wait_s("sql", 2.0, 5.0) == 9.0
    full.coming.add("sql")
    assert full.wait_s("sql", 2.0, 5.0) == 2.0


def outlooks():
    """Two replicas, the second with the adapter."""
    found = [Outlook("a", "1"), Outlook("b", "1")]
    for outlook in found:
        outlook.rates = Rates.prior(1000.0)
    found[1].shelf.put("sql")
    return found


def ask(tokens=1000, load_s=3.0, **fields):
    """A turn of the adapter."""
    return Ask(session="s", model="sql", base="m", load_s=load_s, prompt_tokens=tokens,
               **{"turn": "t", **fields})  # fmt: skip


def test_a_turn_goes_where_its_adapter_is_unless_a_load_is_cheaper():
    """An idle replica that would have to load it is taken once the other has more to do than the
    load takes."""
    cold, warm = outlooks()
    scheduler = Scheduler(Limits())
    assert scheduler.decide(ask(), [cold, warm], 0.0).replica == "b"
    for n in range(6):
        warm.start(Ask(session=f"o{n}", model="sql", base="m", prompt_tokens=2000, turn=f"o{n}"),
                   0, 0.0)  # fmt: skip
    assert scheduler.decide(ask(), [cold, warm], 0.0).replica == "a"
    assert scheduler.decide(ask(load_s=600.0), [cold, warm], 0.0).replica == "b"


def test_the_loop_and_the_price_agree_on_a_load():
    """Whether the replica knows the session or not; a model that is no adapter pays nothing."""
    cold, warm = outlooks()
    cold.holdings.use("s", (1,), 256, 300)
    for one in (ask(), ask(blocks=(1, 2), block_tokens=256), Ask(session="s", prompt_tokens=9)):
        told = totals(Index(), [cold, warm], one, 1.0, fill=0.95, later_tokens=0.0)
        assert told == approx([o.price(one, 1.0).total_s for o in (cold, warm)])
    assert cold.price(ask(), 0.0).wait_s == 3.0


def test_a_first_token_behind_a_load_teaches_no_rates():
    """It says how long the load took."""
    cold, warm = outlooks()
    for outlook, learned in ((cold, 0), (warm, 1)):
        outlook.start(ask(), 0, 0.0)
        outlook.first_token("t", 9.0)
        run = outlook.end("t", 10.0)
        outlook.learn(run, 1000, 0, 10, None, Rates.prior())
        assert outlook.rates.turns == learned


def pool(*kinds):
    """Ready replicas of the model m, of these kinds of engine."""
    made = Pool(
        lambda spec: Replica(
            spec,
            engine(spec.engine),
            Upstream(spec.url, Timeouts(connect_s=1, first_byte_s=1, idle_s=1)),
        ),
        lambda _: 0,
        adapters=Adapters(2),
    )
    for n, kind in enumerate(kinds):
        made.add(ReplicaSpec(id=f"{kind}-{n}", engine=kind, url=f"http://h{n}:1"))
        made.seen(f"{kind}-{n}", Identity(models=("m",), incarnation="1"))
    return made


def ids(found):
    """By id."""
    return [each.id for each in found]


def test_the_replicas_of_an_adapter():
    """Those that could load it, and those that have it; a rule takes one that has it, if any."""
    made = pool("vllm", "sglang", "llamacpp")
    made.adapters.declare(SQL)
    assert ids(made.outlooks("sql")) == ["vllm-0", "sglang-1"]
    assert ids(made.candidates("sql")) == ["vllm-0", "sglang-1"]
    made.seen("sglang-1", Identity(models=("m",), adapters=(SQL,), incarnation="1"))
    assert ids(made.outlooks("sql")) == ["vllm-0", "sglang-1"]
    assert ids(made.candidates("sql")) == ["sglang-1"]
    assert ids(made.candidates("m")) == ["vllm-0", "sglang-1", "llamacpp-2"]
    assert made.models() == ["m", "sql"]
    made.mark_down("sglang-1", "gone")
    assert ids(made.outlooks("sql")) == ["vllm-0"]


def test_an_adapter_that_only_an_engine_told_of_is_served_where_it_is():
    """Nobody has said that another replica would find it at that path."""
    made = pool("vllm", "vllm")
    made.seen("vllm-1", Identity(models=("m",), adapters=(SQL,), incarnation="1"))
    assert ids(made.outlooks("sql")) == ["vllm-1"]
    assert made.get("vllm-1").outlook.shelf.fixed == {"sql"}
    made.seen("vllm-1", Identity(models=("m",), incarnation="2"))
    with raises(NoReplica, match="no replica serves 'm', which the adapter 'sql' is for"):
        made.model("sql")
    assert made.models() == ["m"]


def test_a_refusal_is_remembered_until_the_replica_or_the_adapter_is_another():
    """No turn asks in vain; the engine's words are the error."""
    made = pool("vllm")
    made.adapters.declare(SQL)
    made.adapters.refuse("sql", "vllm-0", "1", "replica vllm-0 says: rank 64 is too much")
    made.adapters_changed()
    assert made.outlooks("sql") == []
    with raises(AdapterRefused, match="rank 64 is too much"):
        made.model("sql")
    made.adapters.declare(Adapter(name="sql", base="m", path="/adapters/sql2"))
    assert made.model("sql") == "sql"
    made.adapters.refuse("sql", "vllm-0", "1", "no")
    made.seen("vllm-0", Identity(models=("m",), incarnation="2"))
    assert made.model("sql") == "sql"
    made.adapters.forget("sql")
    with raises(ModelNotFound):
        made.model("sql")


def test_how_many_fit_is_the_engines_word_or_the_settings():
    """And a restart leaves none."""
    made = pool("vllm")
    one = made.get("vllm-0").outlook.shelf
    assert one.limit == 2
    told = Identity(models=("m",), adapters=(SQL,), most_adapters=5, incarnation="1")
    made.seen("vllm-0", told)
    assert (one.limit, list(one.loaded)) == (5, ["sql"])
    made.seen("vllm-0", Identity(models=("m",), incarnation="2"))
    assert list(one.loaded) == []


def test_loads_are_learned():
    """A second is believed until one was seen, then what is seen, the newest weighing least of
    all, since one slow disk is no rule."""
    adapters = Adapters()
    assert adapters.load_s("m") == 1.0
    adapters.learn("m", 5.0)
    assert adapters.load_s("m") == 5.0
    adapters.learn("m", 10.0)
    assert adapters.load_s("m") == approx(6.0)
    assert adapters.load_s("other") == 1.0
