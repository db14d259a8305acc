"""Stored responses over HTTP: how tests begin them, follow their events and find them again."""

import asyncio
import json
from typing import Any

import httpx2

ASK = {"model": "m", "input": "Hi", "stream": True}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


async def pair(start: Any, store: Any, **settings: Any) -> tuple[Any, Any]:
    """Two routers before one engine, on one Redis."""
    one = await start(store=store, **settings)
    return one, await start(beside=one, store=store, **settings)


class Stream:
    """The server-sent events of one answer, read one by one."""

    def __init__(self, answer: httpx2.Response) -> None:
        assert answer.status_code == 200, answer
        self._lines = answer.aiter_lines()
        self.ids: list[int] = []
        self.events: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        fields = {}
        async for line in self._lines:
            if not line:
                break
            name, _, value = line.partition(": ")
            fields[name] = value
        event: dict[str, Any] = json.loads(fields["data"])
        assert fields["event"] == event["type"]
        self.ids.append(int(fields["id"]))
        self.events.append(event)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def rest(self) -> list[dict[str, Any]]:
        while not self.events or self.events[-1]["type"] not in TERMINAL:
            await self.next()
        async for line in self._lines:
            assert not line, "nothing comes behind the terminal event"
        return self.events


def text(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["sequence_number"] for event in events]


async def replayed(http: Any, router: Any, response: str, after: int | None = None) -> Any:
    """All events behind a number, of a turn that ends."""
    params = {"stream": "true"} | ({} if after is None else {"starting_after": after})
    url = f"{router.url}/v1/responses/{response}"
    async with http.stream("GET", url, params=params) as answer:
        return await Stream(answer).rest()


async def begun(http: Any, router: Any, **fields: Any) -> dict[str, Any]:
    """A response in the background."""
    body = {"model": "m", "input": "Hi", "background": True, **fields}
    answer = await http.post(f"{router.url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def object_of(http: Any, router: Any, response: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get(f"{router.url}/v1/responses/{response}")).json()
    return found


async def gone(http: Any, url: str) -> None:
    assert (await http.get(url)).status_code == 404


async def ended(http: Any, router: Any, response: str) -> dict[str, Any]:
    return await comes_to(http, router, response, "completed", "failed", "cancelled")


async def comes_to(http: Any, router: Any, response: str, *states: str) -> dict[str, Any]:
    """The response, once it is in one of the states."""
    while True:
        found = await object_of(http, router, response)
        if found["status"] in states:
            return found
        await asyncio.sleep(0.01)


def finish() -> dict[str, Any]:
    """The engine's last chunk."""
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
