"""LoRA adapters of a real small model, loaded by real engines when turns ask for them.

The engines are started to load adapters of rank 16 at most. `SESSILE_LIVE_ADAPTERS` names a folder,
which they see too, of three that `make_adapter.py` made: `one` and `two`, and `big` of rank 64.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

_CHAT, _ADAPTERS = "/v1/chat/completions", "/sessile/v1/adapters"


@pytest.fixture
def declare(site: Any) -> Iterator[Any]:
    """Declares adapters of the site's model, whose files are named so, until the test is over."""
    folder = os.environ.get("SESSILE_LIVE_ADAPTERS")
    if not folder or site.kind == "llamacpp":
        pytest.skip("SESSILE_LIVE_ADAPTERS names no adapters, or this engine loads none")
    names = []

    def declare(file: str) -> str:
        name = f"{file}-{uuid.uuid4().hex[:8]}"
        body = {"name": name, "base": site.model, "path": str(Path(folder, file).resolve())}
        assert site.http.post(_ADAPTERS, json=body).status_code == 201
        names.append(name)
        return name

    yield declare
    for name in names:
        assert site.http.delete(f"{_ADAPTERS}/{name}").status_code == 200


def _ask(site: Any, model: str, messages: list[dict[str, Any]], session: str) -> Any:
    """One turn: its answer and its receipt."""
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    body |= {"logprobs": True}
    answer = site.http.post(_CHAT, json=body, headers={"X-Session-ID": session})
    assert answer.status_code == 200, answer.text
    return answer.json(), site.receipt(answer.headers["x-sessile-turn"])


def test_each_adapter_answers_in_its_own_way_and_keeps_its_own_cache(
    site: Any, declare: Any
) -> None:
    """The same prompt, of one session id, to the base and two adapters: three answers, none of them
    helped by another's cache, and each found again by its next turn. Two may say the same words,
    but not with the same probabilities."""
    rules = f"You are {uuid.uuid4().hex}. " + " ".join(f"Rule {n}: say {n * 7}." for n in range(60))
    session = uuid.uuid4().hex
    said = set()
    for model in (site.model, declare("one"), declare("two")):
        messages = [{"role": "user", "content": rules}]
        answer, first = _ask(site, model, messages, session)
        assert (first["cached_tokens"], first["predicted_cached_tokens"]) == (0, 0)
        message = answer["choices"][0]["message"]
        said.add(tuple(word["logprob"] for word in answer["choices"][0]["logprobs"]["content"]))
        messages += [{"role": "assistant", "content": message["content"]},
                     {"role": "user", "content": "Go on."}]  # fmt: skip
        _, second = _ask(site, model, messages, session)
        assert second["replica"] == first["replica"]
        assert second["cached_tokens"] > 0.7 * first["prompt_tokens"]
        assert second["predicted_cached_tokens"] > 0
    assert len(said) == 3


def test_an_adapter_is_loaded_by_its_first_turn_and_listed(site: Any, declare: Any) -> None:
    """At one replica, which it then says itself."""
    name = declare("one")
    listed = {m["id"]: m.get("parent") for m in site.http.get("/v1/models").json()["data"]}
    assert listed[name] == site.model
    _, receipt = _ask(site, name, [{"role": "user", "content": "Hello."}], uuid.uuid4().hex)
    (shown,) = [a for a in site.http.get(_ADAPTERS).json()["adapters"] if a["name"] == name]
    assert shown["loaded"] == [receipt["replica"]]


def test_more_adapters_than_fit_are_served_in_turn(site: Any, declare: Any) -> None:
    """Those used least recently make way, and come back when they are asked for."""
    names = [declare("one") for _ in range(5)]
    for name in (*names, *names):
        _ask(site, name, [{"role": "user", "content": "Hello."}], uuid.uuid4().hex)


def test_an_adapter_that_does_not_fit_is_told_in_the_engines_words(site: Any, declare: Any) -> None:
    """A rank that the engine was not started for; the base is served as before."""
    name = declare("big")
    hello = [{"role": "user", "content": "Hello."}]
    for _ in range(2):
        refused = site.http.post(_CHAT, json={"model": name, "messages": hello})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "adapter_refused"
        assert "rank" in refused.json()["error"]["message"]
    _ask(site, site.model, hello, uuid.uuid4().hex)
