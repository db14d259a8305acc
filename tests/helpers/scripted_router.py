"""A router's WebSocket that plays a script, for tests of the SDK alone."""

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

Handler = Callable[["Router", ServerConnection, dict[str, Any]], None]


class Router:
    """A router that plays a script: one handler for each `response.create`, in order."""

    def __init__(self, *script: Handler) -> None:
        self.script = list(script)
        self.frames: list[dict[str, Any]] = []
        self.handshakes: list[Request] = []
        self.replays: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.began = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.server: Server = serve(
            self._serve, "127.0.0.1", 0, process_request=self._http, close_timeout=1
        )
        self.url = f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/v1/models":
            return connection.respond(HTTPStatus.OK, '{"data":[{"id":"first"},{"id":"second"}]}')
        if request.path.startswith("/v1/responses/"):
            self.asked.append(request.path)
            status, body = self.replays.pop(0)
            return connection.respond(HTTPStatus(status), body)
        if request.headers.get("Authorization") == "Bearer wrong":
            told = '{"error":{"message":"no such key","code":"invalid_api_key"}}'
            return connection.respond(HTTPStatus.UNAUTHORIZED, told)
        return None

    def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.handshakes.append(connection.request)
        try:
            for frame in connection:
                self.frames.append(msgspec.json.decode(frame))
                self.began.release()
                self.script.pop(0)(self, connection, self.frames[-1])
        except ConnectionClosed:
            pass
        finally:
            self.ended.release()


def tell(connection: ServerConnection, type: str, **fields: Any) -> None:
    connection.send(msgspec.json.encode({"type": type, **fields}).decode())


def complete(connection: ServerConnection, id: str) -> None:
    counts = {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 4}}
    response = {"id": id, "status": "completed", "output": [], "usage": counts}
    tell(connection, "response.completed", response=response)


def says(*words: str) -> Handler:
    """A turn that writes `words`; its response is named by its place in the frames."""

    def handle(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
        for word in words:
            tell(connection, "response.output_text.delta", delta=word)
        complete(connection, f"resp_{len(router.frames)}")

    return handle


def calls(*names: str) -> Handler:
    """A turn that calls tools side by side."""

    def handle(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
        for name in names:
            item = {"type": "function_call", "call_id": f"c_{name}", "name": name}
            tell(connection, "response.output_item.done", item={**item, "arguments": "{}"})
        complete(connection, f"resp_{len(router.frames)}")

    return handle


def drops_at_once(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
    connection.close(1012, "restarting")


def hangs_up(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
    """Amid its answer, after two numbered events."""
    for event in HALF:
        connection.send(json.dumps(event))
    connection.close(1012, "restarting")


def replay(*events: dict[str, Any]) -> tuple[int, str]:
    """Numbered events as the router replays them."""
    lines = [f"id: {e['sequence_number']}\ndata: {json.dumps(e)}\n\n" for e in events]
    return 200, "".join(lines)


HALF = (
    {"type": "response.created", "response": {"id": "resp_x"}, "sequence_number": 0},
    {"type": "response.output_text.delta", "delta": "half", "sequence_number": 1},
)
REST = (
    {"type": "response.output_text.delta", "delta": " and", "sequence_number": 2},
    {"type": "response.output_text.delta", "delta": " half", "sequence_number": 3},
    {
        "type": "response.completed",
        "response": {"id": "resp_x", "status": "completed", "output": []},
        "sequence_number": 4,
    },
)
AWAY = (503, '{"error":{"message":"the store is away","code":"store_unavailable"}}')
GONE = (404, '{"error":{"message":"no such response","code":"previous_response_not_found"}}')


def talks_on(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
    while True:
        tell(connection, "response.output_text.delta", delta="and on ")


def is_silent(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
    connection.recv()


def refuses(router: Router, connection: ServerConnection, frame: dict[str, Any]) -> None:
    tell(connection, "error", code="context_length_exceeded", message="too long", param="input")
