"""An agent of `openai-agents` with a function tool, its turns over the Responses WebSocket.

    sessile up --model path/to/a/model/that/calls/tools.gguf
    python examples/agent_loop.py [http://localhost:8000]

The default model is too small to call tools dependably; the loop runs to its end all the same.
"""

import asyncio
import os
import sys
from contextlib import aclosing

from agents import (
    Agent,
    AgentsException,
    ModelSettings,
    OpenAIProvider,
    RunConfig,
    Runner,
    function_tool,
    set_default_openai_responses_transport,
    set_tracing_disabled,
)
from openai import AsyncOpenAI


@function_tool
def temperature(city: str) -> str:
    """The temperature in a city, in degrees Celsius."""
    return f"{10 + len(city)} degrees"


async def main(url: str = os.environ.get("SESSILE_URL", "http://localhost:8000")) -> None:
    set_tracing_disabled(True)
    set_default_openai_responses_transport("websocket")
    key = os.environ.get("SESSILE_API_KEY", "none")
    # A provider of its own takes any model's name, also one with a slash in it.
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client,
        aclosing(OpenAIProvider(openai_client=client)) as provider,
    ):
        agent = Agent(
            name="Weather",
            instructions="You tell the weather. Answer in one short sentence.",
            model=(await client.models.list()).data[0].id,
            model_settings=ModelSettings(max_tokens=200),
            tools=[temperature],
        )
        previous = None
        for question in ("How warm is it in Oslo?", "And in Rome?"):
            print(f"> {question}")
            try:
                result = await Runner.run(
                    agent,
                    question,
                    previous_response_id=previous,
                    max_turns=5,
                    run_config=RunConfig(model_provider=provider),
                )
            except AgentsException as error:  # a small model may not stop by itself
                print(f"({error})\n")
            else:
                previous = result.last_response_id
                print(f"{result.final_output}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
