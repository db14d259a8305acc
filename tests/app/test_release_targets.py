"""What a name may be swapped to, and what is refused."""

import pytest

from sessile.lab.fake_replica import FakeReplica
from swap_site import RELEASES


async def test_another_model_may_take_a_names_place(make_site):
    """The engine is asked for its own model; clients go on asking for the name, an alias of it too,
    and the name outlives what it was the name of."""
    site = await make_site(other="n", aliases={"agent": "m"})
    assert (await site.swap(to="n"))["target"] == "n@green"
    answer = await site.ask("s", model="agent")
    assert answer.headers["x-sessile-variant"] == "n@green"
    assert answer.headers["x-sessile-replica"] == "green-0"
    assert [seen.body["model"] for seen in site.fakes["green"][0].seen] == ["n"]
    await site.command("/m/finish", {"deadline_s": 0})
    await site.routers[0].app.pool.remove("blue-0")
    assert (await site.ask("t")).status_code == 200
    listed = (await site.http.get("/v1/models")).json()["data"]
    assert {"m": "n@green", "n": "n"}.items() <= {m["id"]: m["root"] for m in listed}.items()


async def test_an_alias_may_be_swapped_alone(make_site):
    """Who asks for the model itself goes on with it."""
    site = await make_site(other="n", aliases={"agent": "m"})
    await site.swap(model="agent", to="n")
    assert (await site.ask("s", model="agent")).headers["x-sessile-variant"] == "n@green"
    assert "x-sessile-variant" not in (await site.ask("s", model="m")).headers
    refused = await site.http.post(RELEASES, json={"model": "m", "to": "n"})
    assert (refused.status_code, "is a variant of 'agent'" in refused.text) == (400, True)


async def test_an_engine_version_may_be_the_target(make_site, serve):
    """Those that run it are the new side, whichever pool they belong to."""
    site = await make_site(green=0)
    new = FakeReplica(model="m")
    new.version = "2.0"
    body = {"url": (await serve(new))[1], "engine": "sglang", "id": "green-9"}
    await site.http.post("/sessile/v1/replicas", json=body)
    pool = site.routers[0].app.pool
    await site.routers[0].until(lambda: len(pool.candidates("m")) == 2)
    await site.swap(to="sglang-2.0")
    answer = await site.ask("s")
    assert answer.headers["x-sessile-variant"] == "m@sglang-2.0"
    assert answer.headers["x-sessile-replica"] == "green-9"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("", {"model": "x", "to": "green"}, 404, "'x' is not served here"),
        ("", {"model": "m", "to": "x"}, 400, "no model, pool or engine version here"),
        ("", {"model": "m", "to": "m@x"}, 400, "no replica of 'x' serves 'm'"),
        ("", {"model": "m", "to": "m"}, 400, "served by 'm' already"),
        ("", {"model": "m", "to": "blue"}, 400, "there is nothing to swap"),
        ("", {"model": "m", "to": "green", "percent": 101}, 400, "percent"),
        ("", {"model": "m", "to": "green", "percent": -1}, 400, "percent"),
        ("", {"model": "m", "to": "green", "deadline_s": -1}, 400, "deadline_s"),
        ("", {"model": "m", "to": "green", "weights": 1}, 400, "weights"),
        ("/m/share", {"percent": 50}, 400, "begin one with --to"),
        ("/m/finish", {}, 400, "begin one with --to"),
        ("/m/roll-back", {}, 400, "to roll back"),
    ],
)
async def test_a_command_that_cannot_be_is_refused(make_site, path, body, status, words):
    """In one sentence that names what is wrong; nothing has changed."""
    site = await make_site()
    refused = await site.http.post(RELEASES + path, json=body)
    assert (refused.status_code, words in refused.json()["error"]["message"]) == (status, True)
    assert (await site.http.get(RELEASES)).json() == {"releases": []}


async def test_what_nothing_serves_is_no_target(make_site):
    """Nor is there a second swap while one is under way, nor a way back to what is gone."""
    site = await make_site(green=2)
    pool = site.routers[0].app.pool
    for name in ("green-0", "green-1"):
        pool.drain(name)
    refused = await site.http.post(RELEASES, json={"model": "m", "to": "green"})
    assert (refused.status_code, "so that nothing would serve" in refused.text) == (503, True)
    pool.resume("green-0")
    await site.swap(percent=10)
    second = await site.http.post(RELEASES, json={"model": "m", "to": "green"})
    assert (second.status_code, "finish it or roll it back" in second.text) == (400, True)
    pool.drain("blue-0")
    refused = await site.http.post(RELEASES + "/m/roll-back", json={})
    assert (refused.status_code, "so that nothing would serve" in refused.text) == (503, True)


async def test_adapters_follow_their_base_once_a_swap_is_finished(make_site):
    """Until then they run where they ran."""
    site = await make_site()
    adapter = {"name": "sql", "base": "m", "path": "/adapters/sql"}
    await site.http.post("/sessile/v1/adapters", json=adapter)

    async def replica():
        return (await site.ask("s", model="sql")).headers["x-sessile-replica"]

    assert await replica() == "blue-0"
    await site.swap(percent=100)
    assert await replica() == "blue-0"
    await site.command("/m/finish", {})
    assert await replica() == "green-0"
