"""The embedded engine under more work than it can do at once."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Any

import httpx2
import pytest

from embedded_engine import serving

TURNS = 40
LONG = "the word of the day is here " * 200


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an engine with two slots."""
    with serving("--slots", "2", "--context", "4096") as client:
        async with httpx2.AsyncClient(base_url=client.base_url, timeout=100) as http:
            yield http


async def says(http: httpx2.AsyncClient, text: str, tokens: int) -> AsyncGenerator[str]:
    """The words of a streamed turn, as they come."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens, "stream": True, "ignore_eos": True,
    }  # fmt: skip
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    if word := choice["delta"].get("content"):
                        yield word


async def read(http: httpx2.AsyncClient, text: str) -> list[str]:
    """The one word that a prompt is answered with."""
    return [word async for word in says(http, text, 1)]


async def test_looks_are_answered_however_many_turns_wait(http):
    """Also where these come in one moment. Were they to wait for turns to end, the router would
    take the engine for dead, and every turn there would be lost."""
    body = b'{"messages":[{"role":"user","content":"Hi"}],"ignore_eos":true,"max_tokens":200}'
    turn = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%b"
    with ExitStack() as stack:
        lines = [
            stack.enter_context(socket.create_connection((http.base_url.host, http.base_url.port)))
            for _ in range(TURNS)
        ]
        for line in lines:
            line.sendall(turn % (len(body), body))
            line.setblocking(False)
        slots: list[dict[str, Any]] = []
        while sum(slot["is_processing"] for slot in slots) < 2:
            slots = (await http.get("/slots")).json()
        assert (await http.get("/health")).status_code == 200
        for line in lines:
            with pytest.raises(BlockingIOError):  # none has been answered yet
                line.recv(1)


async def test_a_long_prompt_does_not_silence_who_speaks(http):
    """It is read in parts, and between them the other goes on."""
    async with aclosing(says(http, "Tell me a story.", 400)) as speaks:
        await anext(speaks)
        other = asyncio.create_task(read(http, LONG))
        heard = 0
        async for _ in speaks:
            heard += 1
            if other.done():
                break
    assert await other and heard > 5
