"""Conversations, through OpenAI's own client."""

import asyncio

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from scripted_engine import STOP


async def test_a_conversations_life(router, client):
    """It is created, found, given other metadata, and deleted."""
    made = await client.conversations.create(metadata={"topic": "tea"})
    assert made.id.startswith("conv_") and made.object == "conversation"
    assert (await client.conversations.retrieve(made.id)) == made
    changed = await client.conversations.update(made.id, metadata={"topic": "coffee"})
    assert changed.metadata == {"topic": "coffee"}
    gone = await client.conversations.delete(made.id)
    assert gone.deleted and gone.id == made.id
    for call in (
        client.conversations.retrieve(made.id),
        client.conversations.delete(made.id),
        client.conversations.update(made.id, metadata={}),
        client.conversations.items.list(made.id),
        client.conversations.items.create(made.id, items=[{"role": "user", "content": "x"}]),
        client.responses.create(model="m", input="x", conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await call
        assert caught.value.code == "conversation_not_found"


async def test_items_are_listed_added_and_deleted(router, client):
    """In pages of either order, each whole."""
    made = await client.conversations.create(items=[{"role": "user", "content": "one"}])
    added = await client.conversations.items.create(
        made.id,
        items=[
            {"type": "message", "role": "user", "content": str(n), "id": f"mine_{n}"}
            for n in range(3)
        ],
    )
    assert [item.id for item in added.data] == ["mine_0", "mine_1", "mine_2"]
    listed = [item async for item in client.conversations.items.list(made.id, limit=2)]
    assert [item.content[0].text for item in listed] == ["2", "1", "0", "one"]
    page = await client.conversations.items.list(made.id, order="asc", limit=1, after="mine_0")
    assert [item.id for item in page.data] == ["mine_1"] and page.has_more
    item = await client.conversations.items.retrieve("mine_1", conversation_id=made.id)
    assert item.status == "completed"
    await client.conversations.items.delete("mine_1", conversation_id=made.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve("mine_1", conversation_id=made.id)
    assert len((await client.conversations.items.list(made.id)).data) == 3


async def test_turns_extend_their_conversation(router, client):
    """Each turn is given what is there, and adds its input and output."""
    made = await client.conversations.create(items=[{"role": "user", "content": "My name is Ann."}])
    router.engine.says("Hello Ann.")
    first = await client.responses.create(model="m", input="Hi", conversation=made.id)
    assert first.conversation.id == made.id
    router.engine.says("Ann.")
    second = await client.responses.create(
        model="m", input="Who am I?", conversation={"id": made.id}, instructions="Be brief.",
        store=False,
    )  # fmt: skip
    assert [m["content"] for m in router.engine.asked[1]["messages"]] == [
        "Be brief.", "My name is Ann.", "Hi", "Hello Ann.", "Who am I?",
    ]  # fmt: skip
    listed = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert [item.content[0].text for item in listed] == [
        "My name is Ann.", "Hi", "Hello Ann.", "Who am I?", "Ann.",
    ]  # fmt: skip
    assert [listed[2].id, listed[4].id] == [first.output[0].id, second.output[0].id]


async def test_a_response_of_a_conversation_is_followed_by_it(router, client):
    """By its own id alone the rest of the conversation would be lost, so that is refused."""
    made = await client.conversations.create()
    first = await client.responses.create(model="m", input="Hi", conversation=made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="x", previous_response_id=first.id)
    assert made.id in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(
            model="m", input="x", previous_response_id=first.id, conversation=made.id
        )
    assert caught.value.param == "previous_response_id"


async def test_two_turns_of_one_conversation_run_one_after_the_other(router, client):
    """The second is given what the first has added."""
    made = await client.conversations.create()
    go = asyncio.Event()
    router.engine.plays("one", go, STOP)
    asks = [
        asyncio.create_task(client.responses.create(model="m", input=text, conversation=made.id))
        for text in ("a", "b")
    ]
    await router.until(lambda: router.engine.running == 1)
    go.set()
    await asyncio.gather(*asks)
    assert [len(asked["messages"]) for asked in router.engine.asked] == [1, 3]
    assert len((await client.conversations.items.list(made.id)).data) == 4


async def test_a_conversation_that_waits_too_long_is_busy(start):
    """A second turn is told 409 when its time is over."""
    router = await start(sessions={"lock_wait_s": 0.0})
    async with AsyncOpenAI(base_url=router.url + "/v1", api_key="-", max_retries=0) as client:
        made = await client.conversations.create()
        go = asyncio.Event()
        router.engine.plays(go, "one", STOP)
        first = asyncio.create_task(
            client.responses.create(model="m", input="a", conversation=made.id)
        )
        await router.until(lambda: router.engine.running == 1)
        with pytest.raises(openai.ConflictError):
            await client.responses.create(model="m", input="b", conversation=made.id)
        go.set()
        await first


async def test_a_conversation_deleted_while_a_turn_runs(router, client):
    """The turn is answered and stored, and the conversation does not come back."""
    made = await client.conversations.create(items=[{"role": "user", "content": "one"}])
    go = asyncio.Event()
    router.engine.plays("Hel", go, "lo", STOP)
    asking = asyncio.create_task(
        client.responses.create(model="m", input="Hi", conversation=made.id)
    )
    await router.until(lambda: router.engine.running == 1)
    await client.conversations.delete(made.id)
    go.set()
    answer = await asking
    assert answer.output_text == "Hello" and answer.status == "completed"
    assert (await client.responses.retrieve(answer.id)).output_text == "Hello"
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.list(made.id)


async def test_a_failed_turn_adds_nothing(router, client):
    """The conversation is as it was, and goes on."""
    made = await client.conversations.create()
    router.engine.plays("Hel", router.cut)
    with pytest.raises(openai.InternalServerError):
        await client.responses.create(model="m", input="Hi", conversation=made.id)
    assert (await client.conversations.items.list(made.id)).data == []
    await client.responses.create(model="m", input="Hi", conversation=made.id)
    assert len((await client.conversations.items.list(made.id)).data) == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"metadata": {"a": 1}}, "metadata"),
        ("", {"items": {}}, "items"),
        ("", {"items": [3]}, "items[0]"),
        ("", {"items": [{"role": "robot", "content": "x"}]}, "items[0].role"),
        ("", {"items": [{"role": "user", "content": "x"}] * 21}, "items"),
        ("", {"items": [{"role": "user", "content": "x", "id": "a"}] * 2}, "items"),
        ("/{id}/items", {"items": []}, "items"),
        ("/{id}/items", {"items": [{"role": "user", "content": "x", "id": "a"}]}, "items[0].id"),
    ],
)
async def test_bad_requests_name_the_field(router, client, path, body, param):
    """In OpenAI's shape, and nothing is kept of them."""
    made = await client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "x", "id": "a"}]
    )
    async with httpx2.AsyncClient(base_url=router.url) as http:
        answer = await http.post("/v1/conversations" + path.format(id=made.id), json=body)
        for query in ("order=up", "limit=0", "limit=101", "after=none"):
            bad = await http.get(f"/v1/conversations/{made.id}/items?{query}")
            assert bad.status_code == 400
            assert bad.json()["error"]["param"] == query.partition("=")[0]
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert len((await client.conversations.items.list(made.id)).data) == 1


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


async def test_an_output_is_added_behind_its_call_only(router, client):
    """One of a call that was never made is refused by its place, as is a second; nothing is kept of
    it, and the conversation goes on."""
    hello = {"role": "user", "content": "x"}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.create(items=[hello, OUTPUT, CALL])
    assert caught.value.param == "items[1].call_id"
    made = await client.conversations.create(items=[hello])
    refused = []
    for given in (OUTPUT, CALL, OUTPUT, OUTPUT):
        try:
            await client.conversations.items.create(made.id, items=[given])
        except openai.BadRequestError as error:
            refused.append(error.param)
        else:
            refused.append(None)
    assert refused == ["items[0].call_id", None, None, "items[0].call_id"]
    listed = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    await client.responses.create(model="m", input="Well?", conversation=made.id)
    assert [m["role"] for m in router.engine.asked[0]["messages"]] == [
        "user", "assistant", "tool", "user",
    ]  # fmt: skip


async def test_an_output_whose_call_was_deleted_is_told_no_engine(router, client):
    """It stays in the conversation, which goes on without it."""
    made = await client.conversations.create(items=[{"role": "user", "content": "x"}, CALL, OUTPUT])
    await client.conversations.items.delete("fc_1", conversation_id=made.id)
    for text in ("Well?", "And?"):
        answer = await client.responses.create(model="m", input=text, conversation=made.id)
        assert answer.status == "completed"
    assert [m["role"] for m in router.engine.asked[1]["messages"]] == [
        "user", "user", "assistant", "user",
    ]  # fmt: skip
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input=[OUTPUT], conversation=made.id)
    assert caught.value.param == "input[0].call_id"


async def test_an_item_is_not_added_twice(router, client):
    """A turn that is given what is there already is told so."""
    made = await client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "x", "id": "a"}]
    )
    item = {"type": "message", "role": "user", "content": "x", "id": "a"}
    reference = {"type": "item_reference", "id": "a"}
    for given in (item, reference):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="m", input=[given], conversation=made.id)
        assert caught.value.param == "input[0].id"


async def test_tenants_do_not_see_each_others_conversations(start):
    """With keys, a conversation exists for its own tenant only."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    async with (
        AsyncOpenAI(base_url=router.url + "/v1", api_key="one", max_retries=0) as mine,
        AsyncOpenAI(base_url=router.url + "/v1", api_key="two", max_retries=0) as other,
    ):
        made = await mine.conversations.create(items=[{"role": "user", "content": "x"}])
        for call in (
            other.conversations.retrieve(made.id),
            other.conversations.delete(made.id),
            other.conversations.items.list(made.id),
            other.responses.create(model="m", input="x", conversation=made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        assert (await mine.conversations.retrieve(made.id)).id == made.id


async def test_a_conversation_is_the_same_at_every_router(start, redis_server):
    """With one store, what one router adds the next is given, and a deletion is everybody's."""
    store = {"url": redis_server.url, "timeout_s": 5.0}
    one = await start(store=store)
    other = await start(beside=one, store=store)
    async with (
        AsyncOpenAI(base_url=one.url + "/v1", api_key="-", max_retries=0) as here,
        AsyncOpenAI(base_url=other.url + "/v1", api_key="-", max_retries=0) as there,
    ):
        made = await here.conversations.create()
        first = await here.responses.create(model="m", input="Hi", conversation=made.id)
        second = await there.responses.create(model="m", input="And?", conversation=made.id)
        assert len(one.engine.asked[1]["messages"]) == 3
        listed = (await there.conversations.items.list(made.id, order="asc")).data
        assert [listed[1].id, listed[3].id] == [first.output[0].id, second.output[0].id]
        assert (await there.responses.retrieve(first.id)) == first
        await there.conversations.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await here.responses.create(model="m", input="x", conversation=made.id)
        await there.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await here.responses.retrieve(first.id)
