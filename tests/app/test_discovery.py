"""Replicas that are found: they come, take turns, leave without a failed turn, and stay when the
place where they are found is away."""

import asyncio
import os
import socket
from urllib.parse import urlsplit

import pytest

from sessile.lab.fake_kubernetes import FakeKubernetes

CHAT = "/v1/chat/completions"


@pytest.fixture
async def cluster(start, serve):
    """A router that finds its replicas by a Kubernetes API, and that API."""
    api, url = await serve(FakeKubernetes())
    where = f"openai=kubernetes://default?selector=app=engine&port=http&api={url}"
    return await start(0, discover=(where,)), api


async def failing(router, http):
    """What `/ready` says of the one source, None while it is well."""
    told = (await http.get(f"{router.url}/ready")).json()
    (why,) = told["discovery"].values()
    assert (told["status"] == "degraded") is (why != "ok" and bool(told["replicas"]["ready"]))
    return None if why == "ok" else why


async def until_failing(router, http, said):
    """Wait until `/ready` says so of the source."""
    while said not in str(await failing(router, http)):  # noqa: ASYNC110 - told by HTTP only
        await asyncio.sleep(0.02)


async def turn(router, http, session, **fields):
    """One turn of a session; where it was served."""
    reply = await router.turn(http, session, **fields)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-sessile-replica"]


def port(url):
    """The port of a URL."""
    return urlsplit(url).port


async def test_a_pod_that_terminates_drains_and_no_turn_of_its_sessions_fails(cluster, serve, http):
    """What runs there ends there, its sessions go on elsewhere, and when the pod has ended it is
    gone from the pool."""
    router, api = cluster
    (one, first), (_, second) = await serve(), await serve()
    api.run("one", port(first))
    await router.until_pool(one="ready")
    assert await turn(router, http, "s") == "one"
    api.run("two", port(second))
    await router.until_pool(one="ready", two="ready")
    held = asyncio.Event()
    one.plays("slow", held)
    running = asyncio.create_task(turn(router, http, "s", stream=True))
    await router.until(lambda: one.running == 1)
    api.terminate("one")
    await router.until_pool(one="draining", two="ready")
    assert await turn(router, http, "s") == "two"
    held.set()
    assert await running == "one"
    await router.until(lambda: not router.app.pool.get("one").in_flight)
    assert router.states == {"one": "draining", "two": "ready"}
    api.remove("one")
    await router.until_pool(two="ready")
    assert await failing(router, http) is None


async def test_a_pod_takes_turns_while_it_is_ready(cluster, serve, http):
    """It does not come before it is ready, drains while it is not, and is then taken back; other
    labels are other pods."""
    router, api = cluster
    (_, first), (_, second), (_, third) = await serve(), await serve(), await serve()
    api.run("other", port(third), app="web")
    api.run("one", port(first), ready=False)
    api.run("two", port(second))
    await router.until_pool(two="ready")
    api.run("one", port(first))
    await router.until_pool(one="ready", two="ready")
    api.run("one", port(first), ready=False)
    await router.until_pool(one="draining", two="ready")
    told = (await http.get(f"{router.url}/sessile/v1/replicas")).json()["replicas"]
    assert any("lists it no more, or as leaving" in str(each["why"]) for each in told)
    api.run("one", port(first))
    await router.until_pool(one="ready", two="ready")


async def test_a_watch_that_is_too_old_begins_anew_with_a_list(cluster, serve):
    """What happened unseen is found by comparison, a pod that ended included."""
    router, api = cluster
    (_, first), (_, second) = await serve(), await serve()
    api.run("one", port(first))
    await router.until_pool(one="ready")
    lists = api.calls["list"]
    api.remove("one")
    api.run("two", port(second))
    api.forget()
    await router.until_pool(two="ready")
    assert api.calls["list"] == lists + 1


async def test_an_api_that_goes_away_takes_no_replica_with_it(cluster, serve, http):
    """The last known pods serve on and `/ready` says why; once it is back, so is the truth."""
    router, api = cluster
    (_, first), (_, second) = await serve(), await serve()
    api.run("one", port(first))
    await router.until_pool(one="ready")
    api.away = True
    await until_failing(router, http, "is away")
    assert await turn(router, http, "s") == "one"
    scraped = (await http.get(f"{router.url}/metrics")).text
    assert "sessile_source_available{" in scraped and "} 0.0" in scraped
    api.remove("one")
    api.run("two", port(second))
    assert router.states == {"one": "ready"}
    api.away = False
    await router.until_pool(two="ready")
    assert await failing(router, http) is None


async def test_an_api_that_is_away_at_the_start_is_why_the_router_is_down(start, http):
    """Nobody answers there: `/ready` says so, and a turn is told that there is no replica."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    where = f"openai=kubernetes://default?selector=app=engine&api=http://127.0.0.1:{nobody}"
    router = await start(0, discover=(where,))
    await until_failing(router, http, f"the Kubernetes API at http://127.0.0.1:{nobody} is away")
    told = await http.get(f"{router.url}/ready")
    assert told.status_code == 503 and told.json()["status"] == "down"
    refused = await router.turn(http, "s")
    assert refused.status_code == 503 and "no replica is in the pool" in refused.text


async def test_an_api_that_comes_back_after_the_start_is_read(start, serve, http):
    """Nobody has to do anything."""
    api, url = await serve(FakeKubernetes())
    _, engine = await serve()
    api.refuses = 503
    api.run("one", port(engine))
    where = f"openai=kubernetes://default?selector=app=engine&port=http&api={url}"
    router = await start(0, discover=(where,))
    await until_failing(router, http, "answered 503")
    api.refuses = None
    await router.until_pool(one="ready")
    assert await turn(router, http, "s") == "one"
    assert await failing(router, http) is None


async def test_an_api_that_refuses_says_what_the_account_needs(start, serve, http):
    """In `/ready`; a client is told that no replica is there yet."""
    api, url = await serve(FakeKubernetes())
    api.refuses = 403
    where = f"openai=kubernetes://default?selector=app=engine&api={url}"
    router = await start(0, discover=(where,))
    await until_failing(router, http, "get, list and watch pods")
    reply = await http.post(router.url + CHAT, json={"model": "m", "messages": [{"role": "user"}]})
    assert reply.status_code == 503 and "no replica is in the pool" in reply.text


def write(path, *entries):
    """A file of replicas, put in place whole."""
    text = "".join(f"[[replica]]\n{entry}\n" for entry in entries)
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


async def test_a_file_is_followed_and_a_broken_one_changes_nothing(start, serve, http, tmp_path):
    """Replicas come and go as it lists them; with a mistake in it, or while it is not there, the
    last good one stands."""
    (_, first), (_, second) = await serve(), await serve()
    one, two = (f'id = "{n}"\nurl = "{u}"' for n, u in (("one", first), ("two", second)))
    path = tmp_path / "replicas.toml"
    router = await start(0, pool=({"engine": "openai", "discover": f"file://{path}"},))
    await until_failing(router, http, "cannot read")
    write(path, one)
    await router.until_pool(one="ready")
    write(path, one, two)
    await router.until_pool(one="ready", two="ready")
    write(path, one, 'url = "gpu7"')
    await until_failing(router, http, "'gpu7' is not a URL")
    path.unlink()
    await until_failing(router, http, "cannot read")
    write(path, one, one)
    await until_failing(router, http, "two replicas have the id 'one'")
    assert router.states == {"one": "ready", "two": "ready"}
    write(path, one + "\nleaving = true", two)
    await router.until_pool(one="draining", two="ready")
    write(path, two)
    await router.until_pool(two="ready")
    assert await failing(router, http) is None


async def test_what_a_person_does_stands_beside_what_a_source_lists(start, serve, http, tmp_path):
    """A drain that was asked for is not undone, and a replica that another has named is left
    alone."""
    (_, first), (_, second) = await serve(), await serve()
    one, two = (f'id = "{n}"\nurl = "{u}"' for n, u in (("one", first), ("two", second)))
    path = tmp_path / "replicas.toml"
    write(path, one, two)
    router = await start(0, replica=(f"openai={first}",), discover=(f"file://{path}",))
    await router.until_pool(**{"openai-0": "ready", "two": "ready"})
    await http.post(f"{router.url}/sessile/v1/replicas/two/drain")
    write(path, two, one)
    await asyncio.sleep(1)
    assert router.states == {"openai-0": "ready", "two": "draining"}


async def test_an_alias_is_served_by_the_model_that_it_names(start, http):
    """The engine is asked for its own model, by whatever protocol; the session is the same by
    either name; and the list has both."""
    router = await start(aliases={"gpt-4o": "m", "idle": "absent"})
    engine, url = router.engine, router.url
    said = [{"role": "user", "content": "hi"}]
    headers = {"x-session-id": "s"}
    for name in ("gpt-4o", "m"):
        body = {"model": name, "messages": said, "seed": 7}
        assert (await http.post(url + CHAT, json=body, headers=headers)).status_code == 200
    body = {"model": "gpt-4o", "messages": said, "max_tokens": 4}
    assert (await http.post(f"{url}/v1/messages", json=body)).status_code == 200
    counted = await http.post(f"{url}/v1/messages/count_tokens", json=body)
    assert counted.status_code == 200
    first = await http.post(f"{url}/v1/responses", json={"model": "gpt-4o", "input": "hi"})
    assert first.json()["model"] == "m"
    more = {"model": "gpt-4o", "input": "more", "previous_response_id": first.json()["id"]}
    assert (await http.post(f"{url}/v1/responses", json=more)).json()["status"] == "completed"
    assert {asked["model"] for asked in engine.asked} == {"m"} and engine.asked[0]["seed"] == 7
    sessions = (await http.get(f"{url}/sessile/v1/sessions")).json()["sessions"]
    assert {session["model"] for session in sessions} == {"m"}
    assert sum(session["session"] == "s" for session in sessions) == 1
    listed = (await http.get(f"{url}/v1/models")).json()["data"]
    assert [(model["id"], model["root"]) for model in listed] == [("m", "m"), ("gpt-4o", "m")]
    one = (await http.get(f"{url}/v1/models/gpt-4o")).json()
    assert (one["id"], one["root"]) == ("gpt-4o", "m")
    absent = await http.post(url + CHAT, json={"model": "idle", "messages": said})
    assert absent.status_code == 404 and "gpt-4o" in absent.text
