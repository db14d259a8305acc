"""The client for browsers, in a headless Chromium, as `examples/browser_chat.html` uses it."""

import asyncio
import functools
import http.server
import itertools
import json
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from sessile.lab.fake_replica import FakeReplica, Fault, serve_fake

EXAMPLES = Path(__file__).parents[2] / "examples"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WORDS = " ".join(f"w{n}" for n in range(40))
SLOW = Fault(pause_s=0.05)

# What the page shows: who said what, and how it stands.
SHOWN = """JSON.stringify([
    document.getElementById("state").textContent,
    ...[...document.querySelectorAll(".said")].map((line) => line.textContent)])"""


class Page:
    """One page of a running browser, over its DevTools protocol."""

    def __init__(self, ws: ClientConnection) -> None:
        self._ws = ws
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method; what came before its answer is passed over."""
        number = next(self._numbers)
        await self._ws.send(json.dumps({"id": number, "method": method, "params": params}))
        while (told := json.loads(await self._ws.recv())).get("id") != number:
            pass
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def run(self, script: str) -> Any:
        """What a script gives, once it is settled."""
        told = await self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def shown(self) -> list[str]:
        """How it stands, and what was said."""
        shown: list[str] = json.loads(await self.run(SHOWN))
        return shown

    async def until(self, true: Callable[[list[str]], bool]) -> list[str]:
        """What is shown, once that is true; while the page is being loaded it shows nothing."""
        while True:
            try:
                if true(shown := await self.shown()):
                    return shown
            except AssertionError:
                pass
            await asyncio.sleep(0.05)

    async def say(self, words: str) -> None:
        """Type and send, as a person does."""
        await self.run(
            f"document.getElementById('words').value = {json.dumps(words)};"
            "document.getElementById('ask').requestSubmit()"
        )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a headless Chromium's DevTools; skips where there is no Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    folder = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen(
        [
            found, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--remote-debugging-port=0", "--remote-allow-origins=*",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    told = folder / "DevToolsActivePort"
    try:
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None, f"{found} has ended"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The address of the examples, on a server of their own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(EXAMPLES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with serve_fake() as replica:
        yield replica


@pytest.fixture
async def router(mortal: Any, pages: str, redis_server: Any, replica: FakeReplica) -> Any:
    """A router process that lets the page call."""
    router = mortal(
        "--replica", f"sglang={replica.url}", "--redis", redis_server.url,
        SESSILE_SERVER__CORS_ORIGINS=json.dumps([pages]),
    )  # fmt: skip
    await router.start()
    return router


@pytest.fixture
async def page(browser: str, pages: str, router: Any) -> AsyncIterator[Page]:
    """The chat."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        address = f"{browser}/json/new?{pages}/browser_chat.html?router={router.url}"
        target = (await http.put(address)).json()
    async with connect(target["webSocketDebuggerUrl"], max_size=None) as ws:
        page = Page(ws)
        await page.until(lambda shown: shown[0] == "ready")
        yield page
        await page.ask("Page.close")


async def test_a_page_talks_over_many_turns(page: Page, replica: FakeReplica) -> None:
    """Each turn is streamed, and sends only what is new."""
    for number, words in enumerate(("one two", "three"), 1):
        await page.say(words)
        shown = await page.until(lambda shown, n=number: shown[0] == "ready" and len(shown) > 2 * n)
        assert shown[-2:] == [words, f"echo: {words}"]
    said = [message["content"] for message in replica.seen[-1].body["messages"]]
    assert said[1:] == ["one two", "echo: one two", "three"]
    assert "idempotency_key" not in replica.seen[-1].body


async def test_a_page_survives_a_reload(page: Page, replica: FakeReplica) -> None:
    """Amid an answer, twice: no word is missing or comes twice, the engine is asked once, and the
    next turn goes on."""
    replica.fail(SLOW)
    await page.say(WORDS)
    for word in ("w5 ", "w15 "):
        await page.until(lambda shown, w=word: len(shown) > 2 and w in shown[2])
        await page.ask("Page.reload")
        await asyncio.sleep(0.1)
    shown = await page.until(lambda shown: shown[0] == "ready" and "w39" in shown[-1])
    assert shown[1:] == [WORDS, f"echo: {WORDS}"]
    assert len(replica.seen) == 1
    await page.say("next")
    shown = await page.until(lambda shown: shown[0] == "ready" and len(shown) == 5)
    assert shown[-1] == "echo: next"
    assert [m["content"] for m in replica.seen[-1].body["messages"]][1:] == [
        WORDS, f"echo: {WORDS}", "next",
    ]  # fmt: skip


async def test_a_page_outlives_its_router(page: Page, replica: FakeReplica, router: Any) -> None:
    """Killed amid an answer; the page finds the one in its place, and is told the rest there."""
    replica.fail(SLOW)
    await page.say(WORDS)
    await page.until(lambda shown: len(shown) > 2 and "w5 " in shown[2])
    router.kill()
    await router.start()
    shown = await page.until(lambda shown: shown[0] == "ready" and len(shown) == 3)
    assert shown[1:] == [WORDS, f"echo: {WORDS}"]


async def test_a_page_reloads_before_the_answer(page: Page, replica: FakeReplica) -> None:
    """The request is repeated under its key: the turn runs once."""
    replica.fail(Fault(pause_s=1.0))
    await page.say("hi")
    await replica.until(lambda replica: replica.running == 1)
    await page.ask("Page.reload")
    shown = await page.until(lambda shown: shown[0] == "ready" and len(shown) == 3)
    assert shown[1:] == ["hi", "echo: hi"] and len(replica.seen) == 1


async def test_a_page_steers(page: Page, replica: FakeReplica) -> None:
    """What is typed into an answer stops it, and is answered in its place."""
    replica.fail(SLOW)
    await page.say(WORDS)
    await page.until(lambda shown: len(shown) > 2 and "w5 " in shown[2])
    await page.say("Shorter.")
    shown = await page.until(lambda shown: shown[0] == "ready" and "Shorter." in shown[-2])
    said = [message["content"] for message in replica.seen[-1].body["messages"]][1:]
    assert said[0] == WORDS and said[2:] == ["Shorter."]
    assert f"echo: {WORDS}".startswith(said[1]) and "w39" not in said[1]
    assert shown[2] == said[1] + "echo: Shorter."


async def test_a_page_steers_at_its_end(page: Page, replica: FakeReplica) -> None:
    """Left at once, it finds the answer to that when it is loaded again: said once."""
    replica.fail(Fault(pause_s=0.3))
    await page.say(WORDS)
    await page.until(lambda shown: len(shown) > 2 and "w2 " in shown[2])
    await page.say("Shorter.")
    await page.ask("Page.reload")
    shown = await page.until(lambda shown: shown[0] == "ready" and "Shorter." in shown[-1])
    said = [[m["content"] for m in call.body["messages"]][1:] for call in replica.seen]
    (asked,) = [contents for contents in said if contents[-1] == "Shorter."]
    assert asked[0] == WORDS and f"echo: {WORDS}".startswith(asked[1]) and "w39" not in asked[1]
    assert shown[-1].endswith("echo: Shorter.")


async def test_a_page_that_hears_over_http_steers(
    page: Page, replica: FakeReplica, router: Any
) -> None:
    """Its router was killed; what is typed reaches the one that has taken the turn over."""
    replica.fail(*[Fault(pause_s=0.3)] * 2)
    await page.say(WORDS)
    await page.until(lambda shown: len(shown) > 2 and "w2 " in shown[2])
    router.kill()
    await page.say("Shorter.")
    await asyncio.sleep(0.5)
    await router.start()
    await page.until(lambda shown: shown[0] == "ready" and "Shorter." in shown[-2])
    said = [[m["content"] for m in call.body["messages"]][1:] for call in replica.seen]
    (asked,) = [contents for contents in said if contents[-1] == "Shorter."]
    assert asked[0] == WORDS and f"echo: {WORDS}".startswith(asked[1]) and "w39" not in asked[1]


async def test_a_page_stops_an_answer(page: Page, replica: FakeReplica) -> None:
    """The engine stops, and the next turn goes on from before."""
    replica.fail(SLOW)
    await page.say(WORDS)
    await page.until(lambda shown: len(shown) > 2 and "w5 " in shown[2])
    await page.run("document.getElementById('stop').click()")
    await page.until(lambda shown: shown[0] == "ready")
    await replica.until(lambda replica: replica.aborted == 1)
    await page.say("next")
    await page.until(lambda shown: shown[-1] == "echo: next")
    assert [m["content"] for m in replica.seen[-1].body["messages"]][1:] == ["next"]


SESSION = """
    const router = new URLSearchParams(location.search).get("router");
    const { Session } = await import(`${router}/sessile/client.js`);
    const heard = async (events) => { for await (const event of events); };
"""


async def test_a_page_forks(page: Page, replica: FakeReplica) -> None:
    """Each child goes on from where its parent stood, the parent too, and each is found again."""
    told = await page.run(
        """(async () => {"""
        + SESSION
        + """
            const session = new Session({ url: router, name: "tree" });
            const [early] = await session.fork();
            await heard(session.send("one"));
            const children = await session.fork(2);
            for (const one of [...children, session, early]) await heard(one.send(one.name));
            const again = new Session({ url: router, name: children[0].name });
            await heard(again.send("last"));
            const all = [session, early, ...children];
            return { names: all.map(({ name }) => name), ids: all.map(({ id }) => id),
                     same: again.id === children[0].id };
        })()"""
    )
    parent, early, first, second = told["names"]
    assert len(set(told["ids"])) == 4 and told["same"]
    said = [[m["content"] for m in seen.body["messages"]] for seen in replica.seen]
    before = ["one", "echo: one"]
    assert said[1:] == [
        [*before, first], [*before, second], [*before, parent], [early],
        [*before, first, f"echo: {first}", "last"],
    ]  # fmt: skip


async def test_a_page_prewarms(page: Page, replica: FakeReplica) -> None:
    """The replica reads it for one token, and the next turn has it before it."""
    usage = await page.run(
        """(async () => {"""
        + SESSION
        + """
            const session = new Session({ url: router, name: "warm" });
            const usage = await session.prewarm("A long document.");
            await heard(session.send("Sum it up."));
            return usage;
        })()"""
    )
    assert usage["input_tokens"] > 0
    warmed, asked = replica.seen
    assert warmed.body["max_tokens"] == 1
    assert [m["content"] for m in asked.body["messages"]] == ["A long document.", "Sum it up."]


async def test_a_page_leaves_a_turn_to_itself(page: Page, replica: FakeReplica) -> None:
    """It runs on while the page is elsewhere, and is listened to afterwards, once and whole."""
    replica.fail(SLOW)
    begin = """(async () => {""" + SESSION + """
        const session = new Session({ url: router, name: "alone" });
        await session.background(%s);
        return session.interrupted;
    })()"""  # fmt: skip
    assert await page.run(begin % json.dumps(WORDS)) is True
    await replica.until(lambda replica: replica.running == 1)
    await page.ask("Page.reload")
    await page.until(lambda shown: shown[0] == "ready")
    told = await page.run(
        """(async () => {"""
        + SESSION
        + """
            const session = new Session({ url: router, name: "alone" });
            const there = session.interrupted;
            let text = "";
            for await (const event of session.resume()) {
                if (event.type === "text") text += event.text;
            }
            await heard(session.send("next"));
            return [there, text, session.text];
        })()"""
    )
    assert told == [True, f"echo: {WORDS}", "echo: next"]
    said = [[m["content"] for m in seen.body["messages"]] for seen in replica.seen]
    assert said == [[WORDS], [WORDS, f"echo: {WORDS}", "next"]]


async def test_a_page_is_told_why_a_turn_cannot_be_left(page: Page, replica: FakeReplica) -> None:
    """At once, or when it is listened to; the session takes the next turn."""
    told = await page.run(
        """(async () => {"""
        + SESSION
        + """
            const session = new Session({ url: router, model: "nope", name: "wrong" });
            const codes = [];
            const note = (error) => codes.push(error.code);
            await session.background("hi", { input: 1, temperature: "hot" }).catch(note);
            codes.push(session.interrupted);
            await session.background("hi");
            await heard(session.resume()).catch(note);
            return [...codes, session.interrupted];
        })()"""
    )
    assert told == ["invalid_request", False, "model_not_found", False] and not replica.seen


async def test_a_page_runs_tools(page: Page, replica: FakeReplica) -> None:
    """Functions of the page, side by side with what the model says of them."""
    told = await page.run(
        """(async () => {
            const router = new URLSearchParams(location.search).get("router");
            const { Session } = await import(`${router}/sessile/client.js`);
            const add = { description: "Add.", parameters: { type: "object" },
                          run: ({ a, b }) => a + b };
            const session = new Session({ url: router, tools: { add }, name: "tools" });
            const kinds = [];
            for await (const event of session.send('call add {"a": 1, "b": 2} 2 times')) {
                if (event.type !== "text") kinds.push(event.type);
            }
            return [...kinds, session.text];
        })()"""
    )
    assert told == ["call", "result", "call", "result", "done", "echo: 3"]
    outputs = [m["content"] for m in replica.seen[-1].body["messages"] if m["role"] == "tool"]
    assert outputs == ["3", "3"]
