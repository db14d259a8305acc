"""An engine that plays a script, step by step."""

import asyncio
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send


class Cut(Exception):
    """The engine's connection breaks."""


class ScriptedEngine:
    """An OpenAI-compatible engine. Each chat request plays the next script, as it was queued; with
    none left, it says how many messages it was given."""

    def __init__(self) -> None:
        self._scripts: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.running = 0
        self.aborted = 0

    def says(self, *pieces: str, finish: str = "stop") -> None:
        """Queue a reply of text."""
        self.plays(*pieces, _chunk(finish))

    def calls(self, name: str, arguments: str, id: str = "call_1") -> None:
        """Queue a reply that calls a function, its arguments in two pieces."""
        cut = len(arguments) // 2
        pieces = [{"id": id, "type": "function", "function": {"name": name, "arguments": ""}}]
        pieces += [{"function": {"arguments": a}} for a in (arguments[:cut], arguments[cut:])]
        self.plays(
            *(_chunk(tool_calls=[{"index": 0, **piece}]) for piece in pieces),
            _chunk("tool_calls"),
        )

    def calls_at_once(self, *names: str) -> None:
        """Queue a reply that calls several functions at once."""
        made = [
            {"index": n, "id": f"call_{name}", "type": "function",
             "function": {"name": name, "arguments": "{}"}} for n, name in enumerate(names)
        ]  # fmt: skip
        self.plays(*(_chunk(tool_calls=[call]) for call in made), _chunk("tool_calls"))

    def plays(self, *steps: str | dict[str, Any] | asyncio.Event | type[Cut]) -> None:
        """Queue a reply step by step: text, a chunk, something to wait for, or the line's end."""
        self._scripts.append(
            [_chunk(content=step) if isinstance(step, str) else step for step in steps]
        )

    def refuses(self, status: int, message: str) -> None:
        """Queue an error."""
        self._scripts.append((status, {"error": {"message": message}}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _answer(send, 200, {"data": [{"id": "m", "object": "model"}]})
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        request = msgspec.json.decode(body)
        self.asked.append(request)
        if not self._scripts:
            self.says(f"{len(request.get('messages', ()))}")
        script = self._scripts.pop(0)
        if isinstance(script, tuple):
            await _answer(send, *script)
            return
        self.running += 1
        play = self._play if request.get("stream") else self._answer
        playing = asyncio.create_task(play(script, len(request.get("messages", ())), send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
            else:
                self.aborted += 1
        finally:
            self.running -= 1
            playing.cancel()
            leaving.cancel()

    async def _answer(self, script: list[Any], prompt: int, send: Send) -> None:
        """The same script as one answer that is not streamed."""
        text = ""
        for step in script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Cut:
                raise Cut
            else:
                text += step["choices"][0]["delta"].get("content", "")
        message = {"role": "assistant", "content": text}
        body = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _usage(prompt),
        }
        await _answer(send, 200, body)

    async def _play(self, script: list[Any], prompt: int, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for step in [*script, {"choices": [], "usage": _usage(prompt)}]:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Cut:
                raise Cut
            else:
                data = b"data: " + msgspec.json.encode(step) + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


def _usage(prompt: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": 2,
        "total_tokens": prompt + 2,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def _chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """One chunk of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


STOP = _chunk("stop")
