"""A chat over the Responses WebSocket with the official `openai` client.

    sessile up
    python examples/websocket_chat.py [http://localhost:8000]

One connection, many turns: each sends its own text and the id of the response it follows.
"""

import os
import sys
from collections.abc import Iterable

from openai import OpenAI

QUESTIONS = ("Hello! What is your name?", "What did I just ask you?")


def main(
    url: str = os.environ.get("SESSILE_URL", "http://localhost:8000"),
    questions: Iterable[str] = QUESTIONS,
) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("SESSILE_API_KEY", "none")) as client:
        model = client.models.list().data[0].id
        previous: dict[str, str] = {}
        with client.responses.connect() as connection:
            for question in questions:
                print(f"> {question}")
                connection.response.create(
                    model=model, input=question, max_output_tokens=60, **previous
                )
                for event in connection:
                    if event.type == "response.output_text.delta":
                        print(event.delta, end="", flush=True)
                    elif event.type == "response.completed" or event.type == "response.incomplete":
                        previous = {"previous_response_id": event.response.id}
                        break
                    elif event.type == "response.failed" or event.type == "error":
                        raise SystemExit(f"the turn failed: {event}")
                print("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
