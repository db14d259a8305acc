"""A router before engines that are found at a URL alone, and what only some of them are told."""

import msgspec
from starlette.types import Receive, Scope, Send

MODEL = "m"


class Played:
    """An engine that answers its own pages by path, and hands the rest to a scripted one."""

    def __init__(self, scripted, pages):
        self.scripted = scripted
        self.pages = pages
        self.posted = []
        self.headers = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self.pages.get(scope["path"])
        if page is None:
            if scope["type"] == "http" and scope["method"] == "POST":
                self.headers.append(dict(scope["headers"]))
            await self.scripted(scope, receive, send)
            return
        if scope["method"] == "POST":
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message["body"]
                if not message["more_body"]:
                    break
            self.posted.append((scope["path"], msgspec.json.decode(body)))
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": msgspec.json.encode(page)})


def ollama(scripted, context=4096):
    """An Ollama with one model loaded."""
    model = {"name": MODEL, "model": MODEL, "context_length": context}
    return Played(
        scripted,
        {
            "/v1/models": {"object": "list", "data": [{"id": MODEL, "owned_by": "library"}]},
            "/api/version": {"version": "0.14.2"},
            "/api/tags": {"models": [model]},
            "/api/ps": {"models": [model]},
            "/api/generate": {"done": True, "done_reason": "load"},
        },
    )


async def turn(router, http, session):
    """One turn of a session."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    answer = await http.post(
        f"{router.url}/v1/chat/completions", json=body, headers={"x-session-id": session}
    )
    assert answer.status_code == 200, answer.text


async def test_an_ollama_is_found_and_its_short_context_is_told(start, http, scripted):
    """It serves; its replica's line says what is wrong with it."""
    router = await start([ollama(scripted)], kind="auto")
    await turn(router, http, "s")
    (told,) = (await http.get(f"{router.url}/sessile/v1/replicas")).json()["replicas"]
    assert (told["engine"], told["state"], told["why"]) == ("ollama", "ready", None)
    assert "OLLAMA_CONTEXT_LENGTH" in told["warning"]


async def test_a_model_that_an_ollama_lacks_is_refused_with_the_command_that_pulls_it(
    start, http, scripted
):
    """Once it was pulled it is served, without a restart of anything; an engine that serves what it
    was started with has no such command."""
    engine = ollama(scripted)
    router = await start([engine], kind="auto", router={"probe_interval_s": 0.05})
    body = {"model": "qwen3", "messages": [{"role": "user", "content": "hi"}]}
    url = f"{router.url}/v1/chat/completions"
    refused = await http.post(url, json=body)
    assert refused.status_code == 404
    assert "there are: m (`ollama pull qwen3` at one would" in refused.json()["error"]["message"]
    engine.pages["/api/tags"]["models"].append({"name": "qwen3"})
    await router.until(lambda: "qwen3" in router.app.pool.models())
    assert (await http.post(url, json=body)).status_code == 200
    other = await start()
    refused = await http.post(f"{other.url}/v1/chat/completions", json=body)
    assert refused.json()["error"]["message"].endswith("there are: m")


async def test_a_lease_keeps_an_ollamas_model_loaded(start, http, scripted):
    """For as long as the lease, where that is longer than Ollama would keep it by itself."""
    engine = ollama(scripted)
    router = await start([engine], kind="auto")
    await turn(router, http, "s")
    for seconds in (60, 1800):
        lease = f"{router.url}/sessile/v1/sessions/s/lease"
        assert (await http.post(lease, json={"seconds": seconds})).status_code == 200
    await router.until(lambda: len(engine.posted) > 0)
    assert engine.posted == [("/api/generate", {"model": MODEL, "keep_alive": "1800s"})]


async def test_a_tensorrt_llm_is_told_the_conversation_in_a_header(start, http, scripted):
    """And in no field: it refuses those that its version does not know."""
    models = {"object": "list", "data": [{"id": MODEL, "owned_by": "tensorrt_llm"}]}
    engine = Played(
        scripted,
        {"/v1/models": models, "/version": {"version": "1.4.0"}, "/health": {}, "/metrics": []},
    )
    router = await start([engine], kind="auto")
    await turn(router, http, "s")
    assert router.app.pool.get("one").engine.kind == "tensorrt-llm"
    (headers,) = engine.headers
    assert headers[b"x-session-id"].endswith(b"s")
    (sent,) = engine.scripted.asked
    assert sent.keys() <= {"model", "messages", "stream", "stream_options"}
