"""What is expected of a replica: its prices, its memory, and the work under way there."""

from math import inf

from hypothesis import example, given
from hypothesis import strategies as st
from pytest import approx

from sessile.router.holdings import Index
from sessile.router.outlook import Outlook, totals
from sessile.router.policy import Ask
from sessile.router.price import Rates, work

BLOCK = 256


def replica(capacity=None, slots=None, rate=1000.0):
    """A replica that prefills about so many tokens a second."""
    outlook = Outlook("a", "1")
    outlook.resize(capacity)
    outlook.slots = slots
    outlook.rates = Rates.prior(rate)
    return outlook


def ask(session="s", tokens=1000, **fields):
    """A turn of that session, named after it."""
    fields = {"turn": session, "output_tokens": 100, "block_tokens": BLOCK, **fields}
    return Ask(session=session, prompt_tokens=tokens, **fields)


RUNS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 6000), st.integers(0, 12), st.booleans()),
    max_size=8,
)
REPLICAS = st.lists(
    st.fixed_dictionaries(
        {
            "capacity": st.none() | st.integers(0, 20_000),
            "host": st.integers(0, 5000),
            "slots": st.none() | st.integers(1, 4),
            "runs": RUNS,
            "paused": st.integers(0, 3),
            "foreign": st.tuples(st.integers(0, 3), st.integers(0, 9000)),
            "rate": st.floats(100.0, 50_000.0),
        }
    ),
    min_size=1,
    max_size=4,
)


FULL = {
    "capacity": 0, "host": 311, "slots": None, "paused": 0, "foreign": (0, 0), "rate": 100.0,
    "runs": [(session, 1, 0, False) for session in (2, 3, 0, 1)],
}  # fmt: skip


@example([FULL], 2, 0, 0, 1.3, 0.0, 1.0)  # its own last block is believed to be driven out
@given(
    REPLICAS, st.integers(0, 6), st.integers(0, 6000), st.integers(0, 12),
    st.sampled_from([0.5, 0.95, 1.3, inf]), st.floats(0.0, 5000.0), st.floats(1.0, 9.0),
)  # fmt: skip
def test_totals_are_the_prices(made, n, tokens, blocks, fill, later, now):
    """The one loop says what `price` and `fits` say: the price, and the later turns' share of it;
    infinity exactly where the turn does not fit."""
    pool = []
    for told in made:
        outlook = replica(told["capacity"], told["slots"], told["rate"])
        outlook.resize(told["capacity"], told["host"])
        for number, (session, size, shared, begun) in enumerate(told["runs"]):
            keys = tuple(range(min(shared, size // BLOCK)))
            turn = f"t{number}"
            outlook.start(ask(f"s{session}", size, turn=turn, blocks=keys), 0, 0.1 * number)
            if begun:
                outlook.first_token(turn, 0.1 * number + 0.05)
        outlook.paused = {f"p{number}" for number in range(told["paused"])}
        outlook.foreign_running, work_ahead = told["foreign"]
        outlook.foreign_work = float(work_ahead)
        pool.append(outlook)
    one = ask(f"s{n}", tokens, blocks=tuple(range(min(blocks, tokens // BLOCK))))
    found = totals(Index(), pool, one, now, fill=fill, later_tokens=later)
    for outlook, total in zip(pool, found, strict=True):
        if not outlook.fits(one, fill):
            assert total == inf
        else:
            later_s = later * outlook.rates.slope_s * outlook.others
            assert total == approx(outlook.price(one, now).total_s + later_s)


def test_a_price_is_wait_and_prefill_and_harm():
    """An idle replica has only the prefill, and harms those who may come; behind a turn there is
    its work, it is held up, and more are to be expected."""
    outlook = replica()
    alone = outlook.price(ask(), 0.0)
    assert (alone.wait_s, alone.cached_tokens) == (0.0, 0)
    assert alone.ttft_s == outlook.rates.prefill_s(work(0, 1000))
    outlook.start(ask("other"), 0, 0.0)
    behind = outlook.price(ask(), 0.0)
    slope_s = outlook.rates.slope_s
    assert behind.wait_s == approx(slope_s * work(0, 1000))
    assert behind.harm_s > alone.harm_s + behind.wait_s
    assert outlook.price(ask(), 0.5).wait_s == approx(behind.wait_s - 0.5)


def test_what_is_cached_makes_it_cheaper():
    """Blocks of another session count, and at least one token is always computed."""
    outlook = replica()
    keys = tuple(range(4))
    outlook.start(ask("other", 4 * BLOCK, blocks=keys), 0, 0.0)
    outlook.end("other", 1.0)
    assert outlook.price(ask(tokens=1100, blocks=keys), 1.0).cached_tokens == 4 * BLOCK
    assert outlook.price(ask(tokens=4 * BLOCK, blocks=keys), 1.0).cached_tokens == 4 * BLOCK - 1


def test_full_slots_are_waited_for():
    """Until the next running turn has generated what it is expected to."""
    outlook = replica(slots=1)
    outlook.start(ask("other"), 0, 0.0)
    outlook.first_token("other", 1.0)
    left_s = 100 * outlook.rates.tpot_s
    assert outlook.wait_s(1.0) == approx(left_s)
    assert outlook.wait_s(2.0) == approx(left_s - 1.0)
    assert outlook.wait_s(99.0) == 0.0
    assert outlook.queued == 0
    outlook.start(ask("more"), 0, 2.0)
    assert outlook.queued == 1
    outlook.reported_queue = 5
    assert outlook.queued == 5


@given(st.lists(st.tuples(st.sampled_from(["start", "first", "end"]), st.integers(0, 4))))
def test_pending_work_is_that_of_turns_without_a_token(steps):
    """Whatever order things happen in, told twice or never begun."""
    outlook, now = replica(), 0.0
    for what, n in steps:
        now += 0.1
        turn = f"t{n}"
        if what == "start" and turn not in outlook.runs:
            outlook.start(ask(f"s{n}", 500 * (n + 1), turn=turn), 0, now)
        elif what == "first":
            outlook.first_token(turn, now)
        elif what == "end":
            outlook.end(turn, now)
        ahead = [run.work for run in outlook.runs.values() if run.first_at is None]
        assert outlook.pending_work == approx(sum(ahead))
        assert outlook.wait_s(now) >= 0.0


def test_memory_fits_what_is_live_beside_it_or_a_turn_alone():
    """Live sessions count once, and an empty replica takes all."""
    outlook = replica(10_000)
    assert outlook.fits(ask(tokens=50_000), 0.95)
    outlook.start(ask("other", 5000), 0, 0.0)
    assert outlook.fits(ask(tokens=4000), 0.95)
    assert not outlook.fits(ask(tokens=5000), 0.95)
    assert outlook.fits(ask(tokens=5000), inf)
    assert outlook.fits(ask("other", 9000), 0.95)  # its own tokens are there already
    assert not outlook.fits(ask(tokens=4500), 0.95)
    outlook.resize(10_000, 5000)
    assert outlook.fits(ask(tokens=4500), 0.95)
    outlook.resize(None)
    assert outlook.total_tokens is None and outlook.fits(ask(tokens=10**9), 0.95)


def test_a_restart_empties_memory_and_keeps_rates():
    """What was learned of its speed holds; what it held is gone."""
    outlook = replica(10_000)
    outlook.start(ask(tokens=2000), 0, 0.0)
    outlook.paused.add("p")
    rates = outlook.rates
    outlook.reset("2")
    assert (outlook.incarnation, outlook.rates) == ("2", rates)
    assert not outlook.holdings.tokens and not outlook.holdings.live_tokens and not outlook.paused
    assert outlook.holdings.capacity_tokens == 10_000


class Tree:
    """A feed that says so much of every session."""

    def __init__(self, told, sessions=True):
        self.told, self.sessions = told, sessions

    def held_tokens(self, attribution):
        """On the device."""
        return self.told

    def host_tokens(self, attribution):
        """In the host cache."""
        return 7


def test_the_engines_own_word_counts_for_a_session_that_ran_here():
    """Over the model's, host cache included; a feed that knows nothing says nothing."""
    outlook = replica(10_000)
    keys = tuple(range(3))
    outlook.tree = Tree(100)
    outlook.start(ask("other", 1000, blocks=keys), 0, 0.0)
    one = ask(blocks=keys)
    assert outlook.held(one) == 3 * BLOCK  # it has not run here
    outlook.start(one, 0, 0.0)
    assert outlook.held(one) == 107
    outlook.tree = Tree(None)
    assert outlook.held(one) == 1100
    outlook.tree = Tree(100, sessions=False)
    assert outlook.held(one) == 1100


def test_turns_teach_rates_and_memory():
    """A first token moves the replica's rates and its model's; a lost prefix shrinks its memory."""
    outlook, model = replica(10_000), Rates.prior()
    for n in range(50):
        outlook.start(ask(f"s{n}", 1000), 0, float(n))
        outlook.first_token(f"s{n}", n + 0.2)
        run = outlook.end(f"s{n}", n + 0.9)
        outlook.learn(run, 1000, 0, 100, 0.01, model)
        outlook.holdings.release(f"s{n}")
    assert outlook.rates.turns == model.turns == 50
    assert outlook.rates.prefill_s(work(0, 1000)) == approx(0.2, rel=0.2)
    assert outlook.rates.tpot_s < 0.03
    assert outlook.describe()["turns_learned"] == 50
