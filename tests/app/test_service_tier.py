"""The service tier of a response, before an engine that orders what it is asked by priority."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect

from lane_lines import Lines
from sessile.lab.asgi import answer
from sessile.lab.fake_replica import FakeReplica

TIERS = [
    ("priority", 0, "priority"),
    ("fast", 0, "priority"),
    ("auto", 1, "default"),
    ("default", 1, "default"),
    ("standard", 1, "default"),
    ("flex", 2, "flex"),
    (None, 1, "default"),
]


class Ordering(FakeReplica):
    """As SGLang started with `--enable-priority-scheduling` and low values first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/server_info":
            orders = {
                "enable_priority_scheduling": True,
                "schedule_low_priority_values_first": True,
            }
            await answer(send, 200, {"version": self.version, **orders})
            return
        await super().__call__(scope, receive, send)


@pytest.mark.parametrize(("tier", "priority", "told"), TIERS)
async def test_the_tier_orders_the_turn_and_is_told(start: Any, tier, priority, told) -> None:
    """The engine is asked with its priority, over HTTP and over the WebSocket, and the answer names
    the tier that the turn was served in."""
    replica = Ordering(model="m")
    router = await start([replica], kind="sglang")
    fields = {} if tier is None else {"service_tier": tier}
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="-", max_retries=0) as client:
        made = await client.responses.create(model="m", input="Hi", **fields)
    async with connect(router.ws_url) as ws:
        last = await Lines(ws).turn(**fields)
    assert made.service_tier == last["response"]["service_tier"] == told
    assert [seen.body["priority"] for seen in replica.seen] == [priority, priority]


async def test_a_tier_that_is_none_is_refused_by_name(start: Any) -> None:
    """Before an engine is asked."""
    replica = Ordering(model="m")
    router = await start([replica], kind="sglang")
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="-", max_retries=0) as client:
        for tier, status in (("turbo", 501), (7, 400)):
            with pytest.raises(openai.APIStatusError, match="service_tier") as caught:
                await client.responses.create(model="m", input="Hi", service_tier=tier)
            assert (caught.value.status_code, caught.value.param) == (status, "service_tier")
    assert not replica.seen
