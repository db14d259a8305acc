"""Anthropic's own client, unchanged: a conversation, a stream, and a count of tokens.

pip install anthropic
sessile up
python examples/anthropic_client.py
"""

import sys

from anthropic import Anthropic
from anthropic.types import MessageParam


def main(url: str) -> None:
    """Talk to the router at `url` in two turns; the second comes back to the first's cache."""
    with Anthropic(base_url=url, api_key="-") as client:
        model = next(iter(client.models.list())).id
        messages: list[MessageParam] = [{"role": "user", "content": "Name a colour."}]
        counted = client.messages.count_tokens(model=model, messages=messages)
        print("counted>", counted.input_tokens)
        raw = client.messages.with_raw_response.create(
            model=model, max_tokens=40, messages=messages
        )
        first = raw.parse()
        print("first on", raw.headers["x-sessile-replica"], *texts(first.content))

        # The whole conversation is sent again, without a name: it is known by its messages.
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "Name another one."},
        ]
        with client.messages.stream(model=model, max_tokens=40, messages=messages) as stream:
            print("second on", stream.response.headers["x-sessile-replica"], end=" ")
            for piece in stream.text_stream:
                print(piece, end="", flush=True)
        usage = stream.get_final_message().usage
        print("\nusage>", usage.cache_read_input_tokens, "tokens of the prompt came from the cache")


def texts(content: list) -> list[str]:
    """The texts among the blocks of a message."""
    return [block.text for block in content if block.type == "text"]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000")
