"""A replica that costs almost nothing, so that what is measured in front of it is the router.

`python -m sessile.lab.mock_replica PORT PAUSE_S`: a bare asyncio protocol with prebuilt answers. A
streamed answer is one event of 320 bytes a write, `max_tokens` of them, PAUSE_S apart, so that no
two of them travel together.
"""

import asyncio
import re
import sys

import httptools
import uvloop

_EVENT_BYTES = 320
_MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_STREAM = re.compile(rb'"stream":\s*true')
_USAGE = (
    b'"usage":{"prompt_tokens":1000,"completion_tokens":%d,"total_tokens":1064,'
    b'"prompt_tokens_details":{"cached_tokens":900}}'
)
_HEAD = b'"id":"mock","created":1,"model":"mock"'
_MODELS = b'{"object":"list","data":[{"id":"mock","object":"model"}]}'
_PLAIN = (
    b'{"object":"chat.completion",%b,"choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"A short answer."},"finish_reason":"stop"}],%b}' % (_HEAD, _USAGE % 4)
)


def _event(body: bytes) -> bytes:
    data = b"data: " + body + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _delta() -> bytes:
    start = (
        b'{"object":"chat.completion.chunk",%b,"choices":[{"index":0,"delta":{"content":"token "},'
        b'"finish_reason":null}],"pad":"' % _HEAD
    )
    return _event(start + b"x" * (_EVENT_BYTES - len(start) - 10) + b'"}')


_DELTA = _delta()
_FINISH = _event(
    b'{"object":"chat.completion.chunk",%b,"choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}' % _HEAD
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


class MockReplica(asyncio.Protocol):
    """One connection; requests on it are answered one after another."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._streaming: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._url.endswith(b"/models"):
            self._transport.write(_whole(_MODELS))
        elif _STREAM.search(body):
            asked = _MAX_TOKENS.search(body)
            count = int(asked[1]) if asked else 64
            self._streaming = asyncio.ensure_future(self._stream(count))
        else:
            self._transport.write(_whole(_PLAIN))

    async def _stream(self, count: int) -> None:
        self._transport.write(_STREAM_HEAD)
        for _ in range(count):
            self._transport.write(_DELTA)
            await asyncio.sleep(self._pause_s)
        usage = b'{"object":"chat.completion.chunk",%b,"choices":[],%b}' % (_HEAD, _USAGE % count)
        done = _FINISH + _event(usage) + _event(b"[DONE]") + b"0\r\n\r\n"
        self._transport.write(done)


async def _main(port: int, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: MockReplica(pause_s), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), float(sys.argv[2])))
