"""LangChain's `ChatOpenAI`, unchanged: a conversation in two turns, the second one streamed.

sessile up
python examples/langchain_chat.py [http://localhost:8000]
"""

import os
import sys

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI


def main(url: str = os.environ.get("SESSILE_URL", "http://localhost:8000")) -> None:
    key = os.environ.get("SESSILE_API_KEY", "none")
    with OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        model = client.models.list().data[0].id
    chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=60)
    messages: list[BaseMessage] = [
        SystemMessage("You are a helpful assistant. Be brief."),
        HumanMessage("What is the tallest mountain?"),
    ]
    reply = chat.invoke(messages)
    print(f"1> {reply.text}\n   {reply.usage_metadata}")

    messages += [AIMessage(reply.text), HumanMessage("Where is it?")]
    print("2> ", end="")
    for chunk in chat.stream(messages):
        print(chunk.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
