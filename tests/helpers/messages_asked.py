"""What is asked of Anthropic's Messages API, where it does not matter what."""

from typing import Any

TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
HI: Any = [{"role": "user", "content": "Hi"}]
BODY: Any = {"model": "m", "max_tokens": 9, "messages": HI}
