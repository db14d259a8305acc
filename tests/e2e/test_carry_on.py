"""A real replica is killed in the middle of an answer, and the text goes on at the other."""

import os
import signal
import time
from pathlib import Path

import httpx2
from anthropic import Anthropic
from openai import OpenAI

MODEL = "smollm2-135m"
PROMPT = [{"role": "user", "content": "Count from 1 to 40, with commas: 1, 2, 3,"}]


def _kill(url: str, replica: str) -> None:
    """SIGKILL to the process that serves at the replica's port."""
    replicas = httpx2.get(f"{url}/sessile/v1/replicas", timeout=10).json()["replicas"]
    port = next(r["url"] for r in replicas if r["id"] == replica).rpartition(":")[2]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = cmdline.read_bytes()
        except OSError:
            continue
        if b"sessile.engines.embedded" in command and f"\0{port}\0".encode() in command:
            os.kill(int(cmdline.parent.name), signal.SIGKILL)


def _both_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while httpx2.get(f"{url}/ready", timeout=10).json()["replicas"]["ready"] < 2:
        assert time.monotonic() < deadline, "the killed replica did not come back"
        time.sleep(0.2)


def test_the_text_of_a_killed_replica_goes_on_at_the_other(sessile_up):
    """As many tokens as were asked for, one finish, one id; the receipt tells where it went."""
    _both_ready(sessile_up)
    with (
        OpenAI(base_url=f"{sessile_up}/v1", api_key="-", max_retries=0) as client,
        client.chat.completions.create(
            model=MODEL, messages=PROMPT, max_tokens=120, temperature=0, stream=True,
            stream_options={"include_usage": True},
        ) as answer,
    ):  # fmt: skip
        home = answer.response.headers["x-sessile-replica"]
        turn = answer.response.headers["x-sessile-turn"]
        chunks = []
        for chunk in answer:
            chunks.append(chunk)
            if len(chunks) == 10:
                _kill(sessile_up, home)
    assert len({chunk.id for chunk in chunks}) == 1
    finishes = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    assert finishes in (["length"], ["stop"])
    assert finishes == ["stop"] or usage.completion_tokens == 120
    receipt = httpx2.get(f"{sessile_up}/sessile/v1/turns/{turn}/receipt", timeout=10).json()
    assert (receipt["outcome"], receipt["continued"]) == ("ok", 1)
    assert receipt["replicas"][0] == home != receipt["replica"]
    assert receipt["completion_tokens"] == usage.completion_tokens


def test_a_message_of_a_killed_replica_goes_on_at_the_other(sessile_up):
    """One that its engine was asked for in Anthropic's own API: one block, one end, all counted."""
    _both_ready(sessile_up)
    kinds = []
    with (
        Anthropic(base_url=sessile_up, api_key="-", max_retries=0) as client,
        client.messages.stream(
            model=MODEL, messages=PROMPT, max_tokens=120, extra_body={"temperature": 0}
        ) as answer,
    ):
        home = answer.response.headers["x-sessile-replica"]
        for event in answer:
            kinds.append(event.type)
            if kinds.count("content_block_delta") == 10 and event.type == "content_block_delta":
                _kill(sessile_up, home)
        made = answer.get_final_message()
    assert [kinds.count(kind) for kind in ("content_block_start", "message_stop")] == [1, 1]
    assert made.stop_reason == "end_turn" or made.usage.output_tokens == 120
    receipt = httpx2.get(f"{sessile_up}/sessile/v1/turns/{made.id}/receipt", timeout=10).json()
    assert (receipt["outcome"], receipt["continued"]) == ("ok", 1)
    assert receipt["replicas"][0] == home != receipt["replica"]
    assert receipt["completion_tokens"] == made.usage.output_tokens
