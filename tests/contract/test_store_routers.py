"""How routers hear from each other through any store."""

import asyncio
from typing import Any

from sessile.sessions.store import NEWS_AT_ONCE, Store


async def test_routers_are_told_each_others_reports(store):
    """Each is given those of all the others, the newest, and never its own."""
    assert (await store.exchange("one", b"1", 60.0)).reports == {}
    assert (await store.exchange("two", b"2", 60.0)).reports == {"one": b"1"}
    assert (await store.exchange("one", b"1 again", 60.0)).reports == {"two": b"2"}
    told = await store.exchange("three", b"3", 60.0)
    assert told.reports == {"one": b"1 again", "two": b"2"} and told.news == []


async def test_a_router_that_says_nothing_more_is_forgotten(bench, store):
    """Its report goes with its time to live."""
    await store.exchange("killed", b"its work", 0.05)
    await bench.elapse(0.1)
    await asyncio.sleep(0.1)
    assert (await store.exchange("one", b"1", 0.05)).reports == {}


async def test_news_are_told_once_in_order_and_to_all_others(store: Store) -> None:
    """Whatever came between a router's own calls, and nothing of its own."""
    heard: dict[str, list[tuple[str, bytes]]] = {"one": [], "two": [], "three": []}
    seen = dict.fromkeys(heard, "")
    said = []
    for number, router in enumerate(["one", "two", "two", "one", "three", "one", "two", "three"]):
        news = b"" if number == 5 else b"%d" % number
        told = await store.exchange(router, b"r", 60.0, news=news, seen=seen[router])
        seen[router] = told.seen
        heard[router] += told.news
        if news:
            said.append((router, news))
    for router, news in heard.items():
        told = await store.exchange(router, b"r", 60.0, seen=seen[router])
        assert news + told.news == [each for each in said if each[0] != router]
        assert (await store.exchange(router, b"r", 60.0, seen=told.seen)).news == []


async def test_a_router_that_joins_hears_what_is_still_kept(bench: Any, store: Store) -> None:
    """News live longer than reports, but not for ever."""
    await store.exchange("old", b"r", 2.0, news=b"long ago")
    await bench.elapse(15.0)
    assert (await store.exchange("new", b"r", 2.0)).news == [("old", b"long ago")]
    await bench.elapse(25.0)
    assert (await store.exchange("newer", b"r", 2.0)).news == []


async def test_a_long_backlog_takes_several_calls(store: Store) -> None:
    """Each piece is told once all the same."""
    most = 2 * NEWS_AT_ONCE + 3
    for number in range(most):
        await store.exchange("busy", b"r", 60.0, news=b"%d" % number)
    heard: list[tuple[str, bytes]] = []
    seen, calls = "", 0
    while len(heard) < most:
        told = await store.exchange("late", b"r", 60.0, seen=seen)
        assert 0 < len(told.news) <= NEWS_AT_ONCE
        heard, seen, calls = heard + told.news, told.seen, calls + 1
    assert heard == [("busy", b"%d" % number) for number in range(most)] and calls == 3


async def test_adapters_are_kept_for_all_routers(bench: Any, store: Store) -> None:
    """The last word on each name, whatever is in it, as long as anybody asks."""
    assert await store.adapters() == {}
    await store.put_adapter("sql/модель", b"\x93\x00")
    await store.put_adapter("other", b"1")
    await store.put_adapter("other", b"2")
    assert await store.adapters() == {"sql/модель": b"\x93\x00", "other": b"2"}
