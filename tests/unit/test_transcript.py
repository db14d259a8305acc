"""Conversations walked by parent: order, bounds, what is remembered and what is refused."""

import asyncio

import pytest

from sessile.errors import InvalidRequest, ResponseNotFound, StoreUnavailable
from sessile.sessions.record import TurnRecord
from sessile.sessions.transcript import DEEPEST, Link, Transcripts, item_id, new_response_id


class Turns:
    """The one method of a store that a walk uses."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], TurnRecord] = {}
        self.asked: list[str] = []
        self.away = False

    def add(self, turn: str, parent: str | None, status: str | None = "completed") -> None:
        response = None if status is None else {"id": turn, "status": status}
        self.records["t", turn] = TurnRecord(
            turn=turn, tenant="t", session="s", model="m", parent=parent,
            input_items=[{"in": turn}], output_items=[{"out": turn}], response=response,
        )  # fmt: skip

    async def get_turn(self, tenant: str, turn: str) -> TurnRecord | None:
        if self.away:
            raise StoreUnavailable("the store is away")
        self.asked.append(turn)
        return self.records.get((tenant, turn))


@pytest.fixture
def turns() -> Turns:
    return Turns()


def walk(transcripts: Transcripts, head: str, tenant: str = "t") -> list[Link]:
    return asyncio.run(transcripts.walk(tenant, head))


def test_a_conversation_is_walked_from_its_first_turn(turns):
    """Parents come before their children, each with what it brought and what it made."""
    turns.add("a", None)
    turns.add("b", "a", "incomplete")
    links = walk(Transcripts(turns), "b")
    assert [(link.input_items, link.output_items) for link in links] == [
        ([{"in": "a"}], [{"out": "a"}]),
        ([{"in": "b"}], [{"out": "b"}]),
    ]
    assert links[-1].session == "s"


@pytest.mark.parametrize("status", [None, "missing"])
def test_what_was_not_stored_is_not_found(turns, status):
    """An unknown response, and one that was made with store false, do not exist."""
    if status is None:
        turns.add("a", None, None)
    with pytest.raises(ResponseNotFound) as caught:
        walk(Transcripts(turns), "a")
    assert caught.value.param == "previous_response_id"


def test_another_tenants_response_is_not_found(turns):
    """What one tenant has stored or this process remembers does not exist for another."""
    turns.add("a", None)
    transcripts = Transcripts(turns)
    walk(transcripts, "a")
    with pytest.raises(ResponseNotFound):
        walk(transcripts, "a", "other")


def test_a_failed_response_cannot_be_continued(turns):
    """Half a reply is no past to go on from."""
    turns.add("a", None, "failed")
    with pytest.raises(InvalidRequest):
        walk(Transcripts(turns), "a")


def test_a_loop_or_endless_chain_is_refused(turns):
    """Turns that are their own ancestors end at the bound instead of never."""
    turns.add("a", "b")
    turns.add("b", "a")
    with pytest.raises(InvalidRequest, match=str(DEEPEST)):
        walk(Transcripts(turns), "a")


def test_what_was_seen_is_not_asked_again_even_without_the_store(turns):
    """A conversation that this process knows goes on while the store is away."""
    turns.add("a", None)
    transcripts = Transcripts(turns)
    transcripts.remember("t", "b", Link("s", "m", "a", [], []))
    walk(transcripts, "b")
    turns.away = True
    assert len(walk(transcripts, "b")) == 2
    assert turns.asked == ["a"]
    with pytest.raises(StoreUnavailable):
        walk(transcripts, "c")


def test_what_is_remembered_is_bounded(turns):
    """The oldest turns make room, and are then asked of the store again."""
    for name in "abc":
        turns.add(name, None)
    transcripts = Transcripts(turns, max_bytes=60)
    for name in "abca":
        walk(transcripts, name)
    assert turns.asked == ["a", "b", "c", "a"]


def test_ids_are_new_for_responses_and_fixed_for_items():
    """Each response has its own id; its items have the same ids whenever it is told."""
    assert new_response_id() != new_response_id()
    assert item_id("msg", "resp_ab", 1) == item_id("msg", "resp_ab", 1) == "msg_ab01"


def test_a_response_whose_ancestor_is_not_stored_says_so(turns):
    """The client knows the response it named, and not that one: both are told."""
    turns.add("a", None)
    turns.add("c", "b")
    with pytest.raises(ResponseNotFound, match="'c' goes back to 'b', which is not stored"):
        walk(Transcripts(turns), "c")
