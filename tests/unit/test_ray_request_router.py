"""Which session a request of Ray Serve names, and where a session that nobody has seen goes."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve", reason="needs sessile[ray]")

from sessile.ray.request_router import home_of, session_of


def request(*args, told="", **kwargs):
    return SimpleNamespace(args=args, kwargs=kwargs, metadata=SimpleNamespace(session_id=told))


class ChatRequest:
    """As Ray Serve LLM's: a model that keeps the fields it does not know."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def model_dump(self):
        return dict(self.__dict__)


def test_the_session_that_ray_serve_was_told_comes_first():
    """The proxy reads X-Session-ID by itself."""
    assert session_of(request({"session_id": "body"}, told="header")) == "header"


def test_headers_that_agents_send_name_it():
    """Ray Serve LLM hands them on beside the body; case does not matter."""
    raw = SimpleNamespace(headers={"X-Claude-Code-Session-Id": "abc"})
    assert session_of(request(ChatRequest(messages=[]), raw)) == "abc"


def test_the_body_names_it():
    """A plain mapping or a model, by position or keyword; a group stands in for a session."""
    assert session_of(request({"session_id": "one"})) == "one"
    assert session_of(request(ChatRequest(metadata={"session_id": "two"}))) == "two"
    assert session_of(request(body={"prompt_cache_key": "three"})) == "three"


def test_a_request_without_a_session_names_none():
    """Neither does one whose id cannot be one."""
    assert session_of(request({"messages": []}, "text", 3)) is None
    assert session_of(request({"session_id": ""})) is None


def test_a_new_session_has_one_home_for_all_and_few_move_when_a_replica_leaves():
    """Whatever order a proxy knows the replicas in."""
    names = ["a", "b", "c", "d"]
    homes = {f"s{n}": home_of(f"s{n}", names) for n in range(200)}
    assert homes == {session: home_of(session, reversed(names)) for session in homes}
    assert set(homes.values()) == set(names)
    moved = {s for s, home in homes.items() if home_of(s, ["a", "b", "c"]) != home}
    assert moved == {s for s, home in homes.items() if home == "d"}
