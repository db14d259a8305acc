"""Sessions with Sessile's own SDK: a turn, a stream, a fork, and what the router did.

    sessile up
    python examples/quickstart.py [http://localhost:8000]

Every turn sends only what is new; the router knows the rest, and brings the turn to the replica
that still has the conversation in its KV cache.
"""

import sys

from sessile import Client, Done, TextDelta


def main(url: str | None = None) -> None:
    with (
        Client(url) as client,
        client.session(system="You are a helpful assistant. Be brief.") as session,
    ):
        reply = session.send("Name three rivers in Europe.", max_output_tokens=60)
        print(f"1> {reply.text}\n")

        print("2> ", end="")
        for event in session.stream("Which of them is the longest?", max_output_tokens=60):
            match event:
                case TextDelta(text):
                    print(text, end="", flush=True)
                case Done(reply):
                    print("\n")

        usage, receipt = reply.usage, reply.receipt
        print(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens came from the cache")
        print(f"it ran on {receipt.replica}, chosen by: {receipt.reason}\n")

        for number, child in enumerate(session.fork(2), 1):
            with child:
                reply = child.send("Tell me one thing about it.", max_output_tokens=40)
                print(f"fork {number}> {reply.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
