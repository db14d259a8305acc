"""Chat chunks, told as Responses events: each checked against OpenAI's own models."""

import msgspec
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sessile.api.responses_body import read_request
from sessile.api.responses_events import ResponseStream
from sessile.api.responses_sequence import Event

_EVENT = TypeAdapter(ResponseStreamEvent)
_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
USAGE = {
    "choices": [],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    },
}


def machine(stream_id: str | None = None, **fields: object) -> ResponseStream:
    asked = read_request({"model": "m", "input": "hi", **fields})
    return ResponseStream({**asked.response, "id": "resp_ab12", "created_at": 7}, stream_id)


def sse(*chunks: object) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks)


def delta(finish: str | None = None, logprobs: object = None, **fields: object) -> dict:
    return {
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish, "logprobs": logprobs}]
    }


def call(index: int | None, **fields: object) -> dict:
    known = {"name": fields.pop("name", None), "arguments": fields.pop("arguments", None)}
    return {**({} if index is None else {"index": index}), "function": known, **fields}


def run(stream: ResponseStream, *chunks: object) -> list[dict]:
    events = stream.start()
    stream.feed(sse(*chunks) + b"data: [DONE]\n\n", events)
    return checked(events + stream.finish(9.5))


def checked(events: list[Event]) -> list[dict]:
    """The events decoded, each valid for OpenAI's models, in sequence, with one last word."""
    told = [msgspec.json.decode(event.body) for event in events]
    for event, body in zip(events, told, strict=True):
        parsed = _EVENT.validate_json(event.body, strict=True)
        assert parsed.type == event.type == body["type"]
        if "response" in body:
            Response.model_validate_json(msgspec.json.encode(body["response"]), strict=True)
    assert [body["sequence_number"] for body in told] == list(range(len(told)))
    assert [body["type"] in _TERMINAL for body in told] == [False] * (len(told) - 1) + [True]
    return told


def types(told: list[dict]) -> list[str]:
    return [body["type"].removeprefix("response.") for body in told]
