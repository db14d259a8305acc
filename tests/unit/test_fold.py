"""Streamed chunks put together: the plain answer that the same engine would have given."""

from sessile.fold import fold


def chunk(*choices, **fields):
    """A chunk of a chat completion."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": list(choices), **fields}


def test_text_of_several_choices_with_usage_and_timings():
    """Pieces are joined by choice; what comes with the last chunk is kept; the ending stands."""
    status, body = fold(
        [
            chunk({"index": 0, "delta": {"role": "assistant", "content": None}}),
            chunk({"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}),
            chunk({"index": 0, "delta": {"content": "!"}, "finish_reason": None}),
            chunk({"index": 0, "delta": {}, "finish_reason": "stop"}),
            chunk({"index": 1, "delta": {}, "finish_reason": "length"}),
            chunk(usage={"prompt_tokens": 1}, timings={"cache_n": 3}),
        ]
    )
    assert status == 200
    assert body == {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": {"prompt_tokens": 1},
        "timings": {"cache_n": 3},
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a!"},
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "b"},
                "finish_reason": "length",
            },
        ],
    }


def test_tool_calls_reasoning_and_logprobs():
    """Arguments are joined by call, lists of logprobs one after another."""
    name = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    _, body = fold(
        [
            chunk({"index": 0, "delta": {"reasoning_content": "h"}, "logprobs": {"content": [1]}}),
            chunk({"index": 0, "delta": {"reasoning_content": "m"}, "logprobs": {"content": [2]}}),
            chunk({"index": 0, "delta": {"tool_calls": [name]}, "logprobs": None}),
            chunk(
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
                }
            ),
            chunk(
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
                }
            ),
        ]
    )
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert choice["logprobs"] == {"content": [1, 2]}


def test_text_completions():
    """The older API: text instead of a message."""
    pieces = [
        {"object": "text_completion", "choices": [{"index": 0, "text": text}]} for text in "ab"
    ]
    assert fold(pieces) == (
        200,
        {"object": "text_completion", "choices": [{"index": 0, "text": "ab"}]},
    )


def test_an_error_in_the_stream_is_the_answer():
    """With the status that it names, or 500."""
    error = {"error": {"code": 400, "message": "no"}}
    assert fold([chunk({"index": 0, "delta": {"content": "a"}}), error]) == (400, error)
    assert fold([{"error": "no"}])[0] == 500
