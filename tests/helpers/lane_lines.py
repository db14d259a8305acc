"""A Responses WebSocket whose events are read lane by lane."""

import json
from typing import Any

from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
LAST = ("response.completed", "response.incomplete", "response.failed", "error")
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}


class Lines:
    """A connection whose events are sorted by lane, each valid for OpenAI's models."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self._read: list[dict[str, Any]] = []

    async def ask(self, lane: str | None = None, **fields: Any) -> None:
        """Send a `response.create`."""
        body = {"type": "response.create", "model": "m", "input": "Hi", **fields}
        await self.ws.send(json.dumps(body | ({"stream_id": lane} if lane else {})))

    async def steer(self, response: str, words: Any = "Stop.") -> dict[str, Any]:
        """Send a `response.steer`; what is said to it."""
        frame = {"type": "response.steer", "previous_response_id": response, "input": words}
        await self.ws.send(json.dumps(frame))
        return await self.next("response.steer.accepted", "response.steer.failed")

    async def next(self, *kinds: str, lane: str | None = None) -> dict[str, Any]:
        """The next event of those kinds in a lane; what comes before it there is dropped."""
        while True:
            for index, event in enumerate(self._read):
                if event.get("stream_id") == lane or event["type"].startswith("response.steer"):
                    del self._read[index]
                    if event["type"] in kinds:
                        return event
                    break
            else:
                frame = await self.ws.recv()
                _EVENT.validate_json(frame, strict=True)
                self._read.append(json.loads(frame))

    async def turn(self, lane: str | None = None, **fields: Any) -> dict[str, Any]:
        """One turn from its request to its last event, which is given."""
        await self.ask(lane, **fields)
        return await self.next(*LAST, lane=lane)
