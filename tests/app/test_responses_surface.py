"""What else can be done with responses: delete, list, count, compact, truncate, refer."""

import httpx2
import openai
import pytest
from openai.types.responses import CompactedResponse, Response

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}


async def test_a_deleted_response_is_gone(router, client):
    """It is neither found nor continued, and cannot be deleted twice."""
    made = await client.responses.create(model="m", input="Hi")
    await client.responses.delete(made.id)
    for call in (
        client.responses.retrieve(made.id),
        client.responses.delete(made.id),
        client.responses.input_items.list(made.id),
        client.responses.create(model="m", input="x", previous_response_id=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call


async def test_the_input_of_a_response_is_listed(router, client):
    """Newest first, in pages, each item with an id that stays."""
    given = [{"role": "user", "content": str(n)} for n in range(5)]
    made = await client.responses.create(model="m", input=given)
    found = [item async for item in client.responses.input_items.list(made.id, limit=2)]
    assert [item.content[0].text for item in found] == ["4", "3", "2", "1", "0"]
    page = await client.responses.input_items.list(
        made.id, order="asc", after=found[-1].id, limit=2
    )
    assert [item.content[0].text for item in page.data] == ["1", "2"] and page.has_more
    with pytest.raises(openai.BadRequestError):
        await client.responses.input_items.list(made.id, after="nothing")


async def test_items_are_referred_to_by_their_id(router, client):
    """Output and input of a stored response stand in a new one by reference."""
    router.engine.says("Hello")
    made = await client.responses.create(model="m", input="Hi")
    (given,) = (await client.responses.input_items.list(made.id)).data
    references = [{"type": "item_reference", "id": id} for id in (given.id, made.output[0].id)]
    await client.responses.create(
        model="m", input=[*references, {"role": "user", "content": "Go on"}]
    )
    assert [m["content"] for m in router.engine.asked[1]["messages"]] == ["Hi", "Hello", "Go on"]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(
            model="m", input=[{"type": "item_reference", "id": "msg_" + "0" * 34}]
        )
    assert caught.value.param == "input[0].id"


async def test_input_tokens_are_counted(router, client):
    """As the engine that would be asked counts them, with all that stands before the input."""
    made = await client.responses.create(model="m", input="Hi")
    counted = await client.responses.input_tokens.count(
        model="m", input="Go on", previous_response_id=made.id, instructions="Rules."
    )
    # The scripted engine counts a token a message.
    assert (counted.input_tokens, counted.object) == (4, "response.input_tokens")


async def test_a_conversation_is_compacted(router, client):
    """The model sums it up behind the same prompt, and the item stands for it in later turns."""
    made = await client.responses.create(model="m", input="I like tea. " * 50)
    router.engine.says("The user likes tea.")
    compacted = await client.responses.compact(
        model="m", input="Order some.", previous_response_id=made.id, instructions="Rules."
    )
    CompactedResponse.model_validate_json(compacted.to_json(), strict=True)
    (item,) = compacted.output
    assert item.type == "compaction" and compacted.usage.output_tokens == 2
    asked = router.engine.asked[1]["messages"]
    assert asked[0]["content"] == "Rules." and asked[3]["content"] == "Order some."
    again = await client.responses.create(
        model="m", input=[item.to_dict(), {"role": "user", "content": "Now."}]
    )
    said = router.engine.asked[2]["messages"]
    assert "likes tea" in said[0]["content"]
    assert [m["content"] for m in said[1:]] == ["Order some.", "Now."]
    assert again.status == "completed"


async def test_a_model_without_a_summary_compacts_nothing(router, client):
    """That is told, and nothing is made up."""
    router.engine.says("")
    with pytest.raises(openai.BadRequestError):
        await client.responses.compact(model="m", input="Hi")


async def test_a_context_over_its_threshold_is_compacted_on_the_way(router, client):
    """The response begins with the compaction, the engine is asked with it, and so is the next."""
    long = "I like tea. " * 50
    made = await client.responses.create(model="m", input=long)
    managed = [{"type": "compaction", "compact_threshold": 2}]
    router.engine.says("3")  # the count of the prompt
    router.engine.says("Likes tea.")
    router.engine.says("Ordered.")
    stream = await client.responses.create(
        model="m", input="Order.", previous_response_id=made.id, stream=True,
        context_management=managed,
    )  # fmt: skip
    events = [event async for event in stream]
    assert "response.compaction.compacting" in [event.type for event in events]
    response = events[-1].response
    Response.model_validate_json(response.to_json(), strict=True)
    assert [item.type for item in response.output] == ["compaction", "message"]
    said = router.engine.asked[3]["messages"]
    assert len(said) == 2 and said[1]["content"] == "Order." and "Likes tea" in said[0]["content"]
    await client.responses.create(model="m", input="More.", previous_response_id=response.id)
    assert [m["content"] for m in router.engine.asked[4]["messages"]][1:] == [
        "Order.", "Ordered.", "More.",
    ]  # fmt: skip


async def test_a_context_under_its_threshold_stays(router, client):
    """Nothing is counted or summed up that is short anyway."""
    managed = [{"type": "compaction", "compact_threshold": 10_000}]
    made = await client.responses.create(model="m", input="Hi", context_management=managed)
    assert len(router.engine.asked) == 1 and made.output[0].type == "message"


async def test_a_compaction_that_fails_leaves_the_context(router, client):
    """The turn runs with all of it."""
    managed = [{"type": "compaction", "compact_threshold": 1}]
    router.engine.says("3")
    router.engine.refuses(500, "no")
    given = [{"role": "user", "content": "Hi " * 50}, {"role": "user", "content": "Hi"}]
    made = await client.responses.create(model="m", input=given, context_management=managed)
    assert [item.type for item in made.output] == ["message"]


async def test_truncation_leaves_out_what_is_oldest(router, client):
    """With auto the prompt is shortened until it fits; without, it is refused."""
    given = [{"role": "user", "content": f"{n} " * 20} for n in range(8)]
    for _ in range(2):
        router.engine.refuses(400, "maximum context length is 10")
    made = await client.responses.create(
        model="m", input=given, truncation="auto", instructions="Rules."
    )
    assert made.status == "completed" and made.truncation == "auto"
    sizes = [len(asked["messages"]) for asked in router.engine.asked]
    assert sizes[0] == 9 and sizes[0] > sizes[1] > sizes[2]
    last = router.engine.asked[-1]["messages"]
    assert last[0]["content"] == "Rules." and last[-1]["content"] == given[-1]["content"]
    for _ in range(5):
        router.engine.refuses(400, "maximum context length is 10")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input=given, truncation="auto")
    assert caught.value.code == "context_length_exceeded"
    assert [len(a["messages"]) for a in router.engine.asked[-1:]] == [1]


async def test_a_custom_tool_round(router, client):
    """Its call comes out as text, and its output goes back."""
    router.engine.calls("sh", '{"input":"ls -l"}')
    tool = {"type": "custom", "name": "sh", "description": "Runs it."}
    made = await client.responses.create(model="m", input="List", tools=[tool])
    Response.model_validate_json(made.to_json(), strict=True)
    (call,) = made.output
    assert (call.type, call.input) == ("custom_tool_call", "ls -l")
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "a b"}
    await client.responses.create(
        model="m", input=[output], tools=[tool], previous_response_id=made.id
    )
    assert router.engine.asked[1]["messages"][-1]["content"] == "a b"


async def test_results_that_answer_nothing_are_refused(router, client):
    """Of calls that were never made, and a second one of the same call."""
    router.engine.calls("add", "{}")
    made = await client.responses.create(model="m", input="Go", tools=[TOOL])
    mine = {"type": "function_call_output", "call_id": made.output[0].call_id, "output": "3"}
    other = {**mine, "call_id": "call_never"}
    for given, param in (([other], "input[0].call_id"), ([mine, mine], "input[1].call_id")):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(
                model="m", input=given, tools=[TOOL], previous_response_id=made.id
            )
        assert caught.value.param == param
    done = await client.responses.create(
        model="m", input=[mine], tools=[TOOL], previous_response_id=made.id
    )
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="m", input=[mine], previous_response_id=done.id)


async def test_ten_thousand_items_are_served_and_listed(router, client):
    """A request of so many items is one turn, and can be paged through."""
    given = [{"role": "user", "content": str(n)} for n in range(10_000)]
    made = await client.responses.create(model="m", input=given)
    assert len(router.engine.asked[0]["messages"]) == 10_000
    page = await client.responses.input_items.list(made.id, limit=100)
    assert page.data[0].content[0].text == "9999" and page.has_more
    conversation = await client.conversations.create()
    await client.responses.create(model="m", input=given[:-1], conversation=conversation.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="x", conversation=conversation.id)
    assert caught.value.param == "conversation"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_none/input_items"),
        ("DELETE", "/v1/responses/resp_none"),
        ("POST", "/v1/responses/compact"),
        ("POST", "/v1/responses/input_tokens"),
    ],
)
async def test_other_tenants_see_nothing(start, method, path):
    """With keys each call is for its own tenant, and needs one."""
    router = await start(auth={"api_keys": "a=one,b=two"})
    async with httpx2.AsyncClient(base_url=router.url) as http:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"model": "m", "input": "x"}
        made = (await http.post("/v1/responses", json=body, headers=mine)).json()["id"]
        path = path.replace("resp_none", made)
        follow = {**body, "previous_response_id": made} if method == "POST" else None
        assert (await http.request(method, path, json=follow)).status_code == 401
        answer = await http.request(method, path, json=follow, headers=other)
        assert answer.status_code == 404
        assert (await http.request(method, path, json=follow, headers=mine)).status_code == 200


async def test_what_a_stored_response_cannot_be_told_with_is_refused(router, client):
    """By name, as where it is made; what it holds anyway may be asked for."""
    made = (await client.responses.create(model="m", input="Hi")).id
    known = await client.responses.retrieve(made, include=["message.output_text.logprobs"])
    assert known.id == made
    for refused, name in (
        ({"include": ["web_search_call.results"]}, "web_search_call.results"),
        ({"include_obfuscation": True}, "include_obfuscation"),
    ):
        with pytest.raises(openai.InternalServerError, match=name) as caught:
            await client.responses.retrieve(made, **refused)
        assert caught.value.status_code == 501
    with pytest.raises(openai.BadRequestError, match="nonsense"):
        await client.responses.retrieve(made, include=["nonsense"])
