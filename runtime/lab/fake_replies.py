"""What a fake replica says to a request, which depends on its prompt alone."""

import re
from typing import Any

from sessile.lab.fake_cache import CHARS_PER_TOKEN

_ECHO = "echo: "
_CALL = re.compile(r"call (\w+) (\{.*\})(?: (\d+) times)?", re.DOTALL)


def texts(body: dict[str, Any]) -> list[str]:
    """A prompt, message by message."""
    if "messages" in body:
        return [text(message) for message in body["messages"]]
    return [str(body.get("prompt") or body.get("input") or "")]


def text(message: dict[str, Any]) -> str:
    """A message as the cache sees it: without the ids that differ from call to call."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    named = "".join(f"{call['name']}{call['arguments']}" for call in calls)
    return f"{message.get('role')}: {content}{named}"


def begun(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The request without the reply that it begins, and that reply: a last message that is to be
    continued, or what a text prompt repeats of itself."""
    messages = body.get("messages")
    if messages and body.get("continue_final_message") is True:
        return {**body, "messages": messages[:-1]}, messages[-1]["content"]
    prompt = body.get("prompt")
    if isinstance(prompt, str) and (at := prompt.rfind(_ECHO)) > 0:
        asked, said = prompt[:at], prompt[at:]
        if (_ECHO + asked).startswith(said):
            return {**body, "prompt": asked}, said
    return body, ""


def echo(body: dict[str, Any]) -> str:
    """All that could be said."""
    last = (body.get("messages") or [{"role": "user", "content": body.get("prompt")}])[-1]
    return _ECHO + text(last).partition(": ")[2]


def count(body: dict[str, Any]) -> int:
    """The tokens of a text, or of a chat's prompt."""
    return count_words(body["prompt"]) if "prompt" in body else count_prompt(texts(body))


def count_words(text: str) -> int:
    """The tokens of what is said: a word each."""
    return len(text.split(" ")) if text else 0


def count_prompt(texts: list[str]) -> int:
    """The tokens of a prompt, by its characters."""
    return max(1, sum(map(len, texts)) // CHARS_PER_TOKEN)


def reply(body: dict[str, Any], said: str) -> tuple[dict[str, Any], str]:
    """What is answered after what was `said` of it, and why it ends: a function call if the user
    asks to `call NAME {json}`, or so `N times`, each after the last one's result, and there are
    tools; else an echo of at most `max_tokens` words."""
    whole = echo(body)
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
    results = 0  # messages since the user spoke
    while results < len(messages) and messages[-1 - results].get("role") in ("tool", "assistant"):
        results += 1
    asked = messages[-1 - results] if results < len(messages) else {}
    called = sum(message.get("role") == "tool" for message in messages[len(messages) - results :])
    call = _CALL.search(text(asked)) if asked.get("role") == "user" else None
    if call and body.get("tools") and called < int(call[3] or 1):
        function = {"name": call[1], "arguments": call[2]}
        name = f"call_{call[1]}_{called}" if called else f"call_{call[1]}"
        made = {"index": 0, "id": name, "type": "function", "function": function}
        return {"tool_calls": [made]}, "tool_calls"
    words = whole[len(said) :].split(" ")
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 64
    if said:
        most += 1  # the first of them is what was before the first space: nothing
    return {"content": " ".join(words[:most])}, "stop" if len(words) <= most else "length"


def pieces(delta: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a streamed reply: a word each, or the call's name and its arguments."""
    if "content" in delta:
        words = delta["content"].split(" ")
        pieces = [word if n == 0 else f" {word}" for n, word in enumerate(words)]
        return [{"content": piece} for piece in pieces if piece]
    call = delta["tool_calls"][0]
    function = call["function"]
    return [
        {"tool_calls": [{**call, "function": {"name": function["name"], "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": function["arguments"]}}]},
    ]
