"""A bounded closed loop of raw HTTP requests, for the cost benchmark: in a process of its own, on
blocking sockets and a selector, so that it is never what is measured.

`python -m sessile.lab.load PORT REQUESTS CONNECTIONS TOKENS` prints the latencies in seconds as
JSON; TOKENS 0 asks for plain answers, more for streams of so many events.
"""

import json
import selectors
import socket
import sys
import time

_SESSIONS = 500
_PROMPT_CHARS = 4000


class _Line:
    """One connection, with the answer it is reading."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked_at = 0.0
        self._seen = b""
        self._left: int | None = None

    def ask(self, request: bytes) -> None:
        self.asked_at = time.perf_counter()
        self._seen, self._left = b"", None
        self.socket.sendall(request)

    def ended(self) -> bool:
        """Read what is there; whether the answer is whole now."""
        data = self.socket.recv(262_144)
        if not data:
            sys.exit("the server closed the connection")
        if self._left is None:
            self._seen += data
            head, separator, body = self._seen.partition(b"\r\n\r\n")
            if not separator:
                return False
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                sys.exit(f"not an answer: {self._seen[:300]!r}")
            length = [x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")]
            self._left = int(length[0].split(b":")[1]) if length else -1
            data = self._seen = body
            if self._left >= 0:
                self._left -= len(body)
                return self._left == 0
        elif self._left > 0:
            self._left -= len(data)
            return self._left == 0
        self._seen = (self._seen + data)[-8:]
        return self._seen.endswith(b"0\r\n\r\n")


def run(port: int, requests: int, connections: int, tokens: int) -> list[float]:
    """Send `requests` requests over `connections` connections; the latency of each, in seconds."""
    body = json.dumps(
        {
            "model": "mock",
            "messages": [{"role": "user", "content": "word " * (_PROMPT_CHARS // 5)}],
            "max_tokens": tokens or 16,
            "stream": bool(tokens),
        }
    ).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-session-id: agent-%d\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    waiting = selectors.DefaultSelector()
    sent = 0
    for _ in range(min(connections, requests)):
        line = _Line(port)
        waiting.register(line.socket, selectors.EVENT_READ, line)
        line.ask(head % (sent % _SESSIONS, len(body)) + body)
        sent += 1
    latencies: list[float] = []
    while len(latencies) < requests:
        for key, _ in waiting.select(30) or sys.exit("no answer for 30 s"):
            line = key.data
            if line.ended():
                latencies.append(time.perf_counter() - line.asked_at)
                if sent < requests:
                    line.ask(head % (sent % _SESSIONS, len(body)) + body)
                    sent += 1
    return latencies


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:5]))))
