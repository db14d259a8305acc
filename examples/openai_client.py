"""The official `openai` client, unchanged: chat, a stream, and the Responses API.

    sessile up
    python examples/openai_client.py [http://localhost:8000]

No session is named anywhere: a request that extends a known conversation continues its session.
"""

import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main(url: str = os.environ.get("SESSILE_URL", "http://localhost:8000")) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("SESSILE_API_KEY", "none")) as client:
        model = client.models.list().data[0].id

        messages: list[ChatCompletionMessageParam] = [
            {"role": "user", "content": "What is the capital of France?"}
        ]
        for follow_up in ("And of Italy?", None):
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=messages, max_tokens=40
            )
            text = raw.parse().choices[0].message.content
            print(f"chat on {raw.headers['x-sessile-replica']}> {text}")
            if follow_up:
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": follow_up},
                ]

        print("stream> ", end="")
        for chunk in client.chat.completions.create(
            model=model, messages=messages, max_tokens=40, stream=True
        ):
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
        print()

        first = client.responses.create(model=model, input="Count to five.", max_output_tokens=40)
        print(f"responses> {first.output_text}")
        second = client.responses.create(
            model=model, input="Go on.", previous_response_id=first.id, max_output_tokens=40
        )
        print(f"responses> {second.output_text}")
        print(f"usage> {second.usage}")


if __name__ == "__main__":
    main(*sys.argv[1:])
