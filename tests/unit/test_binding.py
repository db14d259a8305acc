"""What a router remembers of bindings: bounded, and counted by replica."""

from sessile.sessions.binding import Standing, Standings
from sessile.sessions.record import Binding, SessionKey


def key(name):
    """A session of one tenant and model."""
    return SessionKey("t", "m", name)


def at(replica):
    """A standing at that replica."""
    return Standing(Binding(replica, "1", 1), 0.0, None)


def test_sessions_are_counted_where_they_stand_now():
    """Moving or forgetting one changes both counts."""
    standings = Standings()
    standings.put(key("s"), at("a"))
    standings.put(key("s"), at("b"))
    assert (standings.bound_to("a"), standings.bound_to("b")) == (0, 1)
    standings.drop(key("s"))
    standings.drop(key("s"))
    assert standings.bound_to("b") == 0 and standings.get(key("s")) is None


def test_the_least_recently_used_is_forgotten_first():
    """Looking at one keeps it."""
    standings = Standings(limit=2)
    for name in ("one", "two"):
        standings.put(key(name), at("a"))
    standings.get(key("one"))
    standings.put(key("three"), at("a"))
    assert standings.get(key("two")) is None
    assert standings.get(key("one")) and standings.bound_to("a") == len(standings) == 2


def test_what_another_router_tells_of_a_session_is_believed_until_it_is_confirmed():
    """A turn where the session is known to be changes nothing."""
    standings = Standings()
    standings.put(key("s"), at("a"))
    standings.hear(key("s"), "a", "1", lasts=True)
    assert standings.get(key("s")).confirmed_at == 0.0
    for told in ("s", "stranger"):
        standings.hear(key(told), "b", "2", lasts=True)
        standing = standings.get(key(told))
        assert (standing.binding.replica, standing.binding.incarnation) == ("b", "2")
        assert standing.confirmed_at is None
    assert (standings.bound_to("a"), standings.bound_to("b")) == (0, 2)
    standings.hear(key("single call"), "b", "2", lasts=False)
    standings.hear(key("s"), "a", "2", lasts=False)
    assert (standings.bound_to("a"), standings.bound_to("b")) == (1, 1)


def test_a_closed_session_is_forgotten_under_every_model():
    """Another tenant's session of the same id stays."""
    standings = Standings()
    for each in (SessionKey("t", "m", "s"), SessionKey("t", "n", "s"), SessionKey("u", "m", "s")):
        standings.put(each, at("a"))
    standings.drop_session("t", "s")
    assert len(standings) == 1 and standings.get(SessionKey("u", "m", "s"))
