"""What schedulers tell each other, and that they agree by it."""

from scheduling import ask, end, replica
from sessile.router.scheduler import Limits, Scheduler


def test_schedulers_that_exchange_news_agree():
    """What one runs, holds, leases and closes, the other counts as live, and no longer."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica("a", 100_000), replica("a", 100_000)

    def tell(now):
        there.hear(list(here.live.news), [yours], now)
        here.live.news.clear()
        assert yours.holdings.live_tokens == mine.holdings.live_tokens
        assert yours.paused == mine.paused

    here.submit(ask(tokens=5000, blocks=tuple(range(19))), [mine], 0.0)
    tell(0.1)
    assert yours.holdings.live_tokens
    here.end("turn of s", 1.0, prompt_tokens=6000, cached_tokens=0, output_tokens=50, pause="ls")
    tell(1.1)
    assert yours.holdings.match(tuple(range(19))) == mine.holdings.match(tuple(range(19))) > 5000
    here.live.lease("s", 1.2, 100.0)
    tell(1.2)
    for brain in (here, there):
        brain.live.expire(90.0)
    tell(90.0)
    assert yours.holdings.is_live("s")
    here.close("s")
    tell(91.0)
    assert not yours.holdings.live_tokens


def test_what_one_router_was_refused_the_others_do_not_believe_in():
    """Its blocks draw nobody there, at whichever router; those that were there before stay."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica("a", 100_000), replica("a", 100_000)
    blocks = tuple(range(19))
    here.submit(ask("one", 1000, blocks=blocks[:3]), [mine], 0.0)
    end(here, "one", 1.0, pause="ls")
    here.submit(ask("two", 5000, blocks=blocks), [mine], 2.0)
    here.end("turn of two", 2.1, refused=True)
    there.hear(list(here.live.news), [yours], 3.0)
    for outlook in (mine, yours):
        assert outlook.holdings.match(blocks) == outlook.holdings.match(blocks[:3]) > 0
        assert not outlook.holdings.is_live("two") and outlook.holdings.is_live("one")


def test_what_one_router_learns_of_a_replica_all_learn():
    """First tokens are told: routers that see a part of the turns each know as much as one."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica(), replica()
    for number in range(20):
        now = 10.0 * number
        here.submit(ask(), [mine], now)
        here.first_token("turn of s", now + 0.1)
        end(here, "s", now + 1.0, pause="ls")
        there.hear(list(here.live.news), [yours], now + 1.0)
        here.live.news.clear()
    assert yours.rates.turns == mine.rates.turns == 20
    assert (yours.rates.base_s, yours.rates.slope_s) == (mine.rates.base_s, mine.rates.slope_s)


def test_closing_a_program_lets_go_of_what_it_has_at_other_routers():
    """A sub-agent whose last turn was elsewhere is let go of with it, at every router."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    mine, yours = replica("a", 100_000), replica("a", 100_000)
    there.submit(ask("child", program="root"), [yours], 0.0)
    end(there, "child", 1.0, pause="ls")
    here.hear(list(there.live.news), [mine], 1.0)
    assert mine.holdings.is_live("child")
    here.close("root")
    assert not mine.holdings.is_live("child")
    there.hear(list(here.live.news), [yours], 1.1)
    assert not yours.holdings.live_tokens


def test_the_turns_of_a_lost_router_are_over():
    """Its memory is free at once; what runs here, or at a router that lives, is not touched."""
    here, there = (Scheduler(Limits(), peers=True) for _ in range(2))
    pool = [replica("a", 100_000)]
    for session in ("lost", "both", "other"):
        there.submit(ask(session, turn=f"theirs of {session}"), [replica("a", 100_000)], 0.0)
    lost, both, other = there.live.news
    here.hear([lost, both], pool, 0.1, "killed")
    here.hear([other], pool, 0.1, "alive")
    here.submit(ask("both"), pool, 0.2)
    here.hear([both], pool, 0.3, "killed")
    here.live.lose("killed")
    live = [name for name in ("lost", "both", "other") if pool[0].holdings.is_live(name)]
    assert live == ["both", "other"]
    here.live.lose("killed")
    here.live.lose("alive")
    assert not pool[0].holdings.is_live("other")


def test_news_that_nobody_takes_are_bounded():
    """With the store away the oldest are lost."""
    brain = Scheduler(Limits(), peers=True)
    for number in range(6_000):
        brain.close(f"s{number}")
    assert len(brain.live.news) == 5_000 and brain.live.news[-1].session == "s5999"
