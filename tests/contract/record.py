"""Record what real engines answer, for the tests here: `record.py KIND=URL [--version V]`.

Every call that an adapter makes, and every kind of answer that it reads, is sent to a replica that
runs, and written to `recorded/KIND/CASE.json`: what was sent, and what came, as it came. Long
lists are cut to what an adapter could want to read, and paths of the machine are taken out.

`--only identity_restarted` records the identity of another start of the same replica, which is
what shows that its incarnation differs. Run it first, restart the replica, then record the rest.
`--only count` records a prompt's tokens as the adapter has them counted, and a turn of it.
`--only ranks` records a server with data-parallel ranks: what it says of them and of their feeds, a
turn sent to each while the last one still runs, and the load then.
`--only messages` records what it streams of Anthropic's Messages, asked as the router would ask it,
and of the chat that means the same.
`--only kv_events` records what a replica that has just started publishes over two turns.
`--only adapters --adapters DIR` records how it loads and lets go of the LoRA adapters there: `one`
and `two`, made by `tests/live/make_adapter.py`, and `big`, of a rank that it was not started for.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import zmq

from sessile.api.messages_body import read_request
from sessile.api.messages_own import own_form
from sessile.engines.kinds import engine
from sessile.router.adapters import Adapter
from sessile.router.engine import Call, Engine, Identity, Load, Reply

RECORDED = Path(__file__).with_name("recorded")
_RULES = " ".join(
    f"Rule {n}: say what you found in file {n}, and quote line {n * 7}." for n in range(1, 13)
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "enum": ["a.txt", "b.txt"]}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
_KEPT_INFO = ("random_seed", "startup_time", "version", "context_length", "served_model_name",
              "max_total_tokens", "page_size", "enable_cache_report", "kv_events",
              "max_loaded_loras", "dp_size", "attn_dp_size")  # fmt: skip
_KEPT_METRICS = re.compile(
    r"^(# \w+ )?(process_start_time_seconds|process_open_fds|vllm:num_requests_(running|waiting)"
    r"|vllm:lora_requests_info|vllm:kv_cache_usage_perc|vllm:cache_config_info|vllm:engine_sleep_state"
    r"|llamacpp:requests_\w+|llamacpp:prompt_tokens\w*_total)[ {\n]"
)


class Recorder:
    """One replica, and the folder that its answers go to."""

    def __init__(self, kind: str, url: str, version: str | None, folder: str) -> None:
        self.engine: Engine = engine(kind)
        self.http = httpx2.Client(base_url=url, timeout=120)
        self.version = version
        self.folder = RECORDED / folder
        self.nonce = f"{time.time_ns():x}"  # no earlier recording's cache is hit
        self.turns = 0

    def save(self, case: str, *exchanges: dict[str, Any]) -> None:
        """Write a case; `exchanges` in the order in which they were made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"engine": f"{self.engine.kind} {self.version}", "exchanges": exchanges}
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (self.folder / f"{case}.json").write_text(text + "\n")
        print(f"{self.engine.kind}: {case}: {[e['status'] for e in exchanges]}")

    def ask(self, call: Call) -> dict[str, Any]:
        """Make one of the adapter's own calls."""
        headers = {"content-type": "application/json"} if call.body else {}
        reply = self.http.request(call.method, call.path, content=call.body, headers=headers)
        sent = json.loads(call.body) if call.body else None
        return _exchange(call.method, call.path, sent, reply, reply.text)

    def post(self, path: str, sent: Any) -> dict[str, Any]:
        """Send a request as the router would: with the adapter's fields."""
        with self.posting(path, sent) as (body, reply):
            return _exchange("POST", path, body, reply, reply.read().decode())

    @contextmanager
    def posting(self, path: str, sent: Any) -> Iterator[tuple[Any, httpx2.Response]]:
        """The same, its answer left to be read; leaving the block hangs up."""
        self.turns += 1
        fields = self.engine.fields(turn=self.turn, session="recorded", salt=self.nonce)
        body = {"model": "smollm2", **sent, **fields}
        headers = list(self.engine.headers("recorded"))
        with self.http.stream("POST", path, json=body, headers=headers) as reply:
            yield body, reply

    @property
    def turn(self) -> str:
        """The id of the turn last sent."""
        return f"turn_{self.turns:04d}"

    def load(self) -> tuple[list[dict[str, Any]], Load]:
        """The load, as it was told and as the adapter reads it."""
        told = [self.ask(call) for call in self.engine.load_calls()]
        replies = tuple(Reply(e["status"], reply_body(e)) for e in told)
        return told, self.engine.read_load(replies, time.time())

    def load_when(self, holds: Callable[[Load], bool]) -> list[dict[str, Any]]:
        """The first load for which `holds`; gives up after 20 s."""
        deadline = time.monotonic() + 20
        while True:
            told, load = self.load()
            if holds(load) or load.running is None:
                return told
            assert time.monotonic() < deadline, f"the load stays {load}"
            time.sleep(0.05)


def reply_body(exchange: dict[str, Any]) -> bytes:
    """The bytes of an answer out of its recording."""
    if "json" in exchange:
        return json.dumps(exchange["json"], ensure_ascii=False).encode()
    return "\n".join(exchange["lines"]).encode()


def _exchange(
    method: str, path: str, sent: Any, reply: httpx2.Response, text: str
) -> dict[str, Any]:
    kind = reply.headers.get("content-type", "")
    made = {"method": method, "path": path, "sent": sent, "status": reply.status_code, "type": kind}
    text = re.sub(r'/[^"\s,]*/site-packages/', "site-packages/", text)
    if kind.startswith("application/json"):
        return {**made, "json": _trimmed(json.loads(text))}
    lines = text.split("\n")
    if path == "/metrics":
        lines = [line for line in lines if _KEPT_METRICS.match(f"{line}\n")] + [""]
    return {**made, "lines": lines}


def _trimmed(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    if "internal_states" in body:
        body = {key: body[key] for key in _KEPT_INFO if key in body}
    body = {key: value for key, value in body.items() if key not in ("chat_template", "model_path")}
    if isinstance(tokens := body.get("tokens"), list):
        body["tokens"] = tokens[:4]
    if isinstance(settings := body.get("default_generation_settings"), dict):
        settings.pop("params", None)
    for model in body.get("data") or () if isinstance(body.get("data"), list) else ():
        if isinstance(model, dict) and "root" in model:
            model["root"] = model["id"]
            model.pop("permission", None)
    return body


def conversation(nonce: str) -> list[dict[str, Any]]:
    """The messages of a first turn, long enough to fill several blocks of any engine."""
    return [
        {"role": "system", "content": f"You are agent {nonce}. {_RULES}"},
        {"role": "user", "content": "Say hello."},
    ]


def record(r: Recorder) -> None:
    """Every case of one replica."""
    chat, streamed = (
        "/v1/chat/completions",
        {"stream": True, "stream_options": {"include_usage": True}},
    )
    short: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    long: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}
    hello = [{"role": "user", "content": "Say hello."}]

    r.save("identity", *[r.ask(call) for call in r.engine.identity_calls()])
    r.save("health", r.ask(r.engine.health_call()))
    r.save("load_idle", *r.load()[0])

    first = conversation(r.nonce)
    answer = r.post(chat, {"messages": first, **short})
    r.save("chat", answer)
    message = answer["json"]["choices"][0]["message"]["content"]
    second = [*first, {"role": "assistant", "content": message}, *hello]
    r.save("stream_second_turn", r.post(chat, {"messages": second, **short, **streamed}))
    r.save("chat_second_turn", r.post(chat, {"messages": second, **short}))
    fresh = conversation(r.nonce[::-1])
    r.save("stream", r.post(chat, {"messages": fresh, **short, **streamed}))

    r.save("completion", r.post("/v1/completions", {"prompt": "Once upon a time", **short}))
    r.save(
        "logprobs", r.post(chat, {"messages": hello, **short, "logprobs": True, "max_tokens": 2})
    )
    two = {"messages": hello, "n": 2, "temperature": 0.7, "max_tokens": 3}
    r.save("two_choices_stream", r.post(chat, {**two, **streamed}))
    tools = {"messages": hello, "tools": [_TOOL], "tool_choice": "required", "temperature": 0,
             "max_tokens": 60, **streamed}  # fmt: skip
    r.save("tool_call_stream", r.post(chat, tools))

    record_count(r)

    flood = [{"role": "user", "content": "word " * 9000}]
    long_prompt = r.post(chat, {"messages": flood, **short})
    long_prompt["sent"]["messages"][0]["content"] = "word word ..."
    r.save("too_long", long_prompt)
    r.save("unknown_model", r.post(chat, {"model": "nobody", "messages": hello, **short}))
    r.save("no_messages", r.post(chat, short))
    r.save("embeddings", r.post("/v1/embeddings", {"input": "hello"}))

    with r.posting(chat, {"messages": first, **long, **streamed}) as (body, reply):
        events = reply.iter_lines()
        head = [next(events) for _ in range(6)]
        r.save("load_busy", *r.load_when(lambda load: load.running == 1))
        rest: list[str] = []
        abort = r.engine.abort_call(r.turn)
        if abort is not None:
            aborted = r.ask(abort)
            rest = list(events)
    if abort is not None:
        lines = [*head, *rest]
        cut = [*lines[:4], *lines[-6:], ""]  # the start, and how it ends
        r.save("abort", aborted, _exchange("POST", chat, body, reply, "\n".join(cut)))
    r.save("load_after_hangup", *r.load_when(lambda load: load.running == 0))


def record_count(r: Recorder) -> None:
    """A count of a prompt's tokens, where the engine has one, and a turn of the same prompt."""
    tools = [_TOOL]
    asked = {"model": "smollm2", "messages": conversation(r.nonce[::2]), "tools": tools}
    call = r.engine.count_call(asked)
    if call is not None:
        turn = r.post("/v1/chat/completions", {**asked, "max_tokens": 1})
        r.save("count", r.ask(call), turn)


def record_messages(r: Recorder, identity: Identity) -> None:
    """A text and a forced call, each in the engine's own events and as chat chunks; what it is not
    asked so is left out."""
    rules, hello = conversation(r.nonce)
    short = {"model": "smollm2", "max_tokens": 60, "temperature": 0, "messages": [hello]}
    tool = {"name": "read_file", "input_schema": _TOOL["function"]["parameters"]}
    forced = {"tools": [tool], "tool_choice": {"type": "any"}}
    for case, more in (("messages_stream", {}), ("messages_call_stream", forced)):
        body = {**short, "system": rules["content"], **more}
        asked = read_request(body)
        # Without a session, for which a replica with KV events is asked as a chat.
        fields = r.engine.fields(turn=f"{case}_{r.nonce}", session=None, salt=None)
        own = r.engine.messages(own_form(body, asked), fields, identity)
        if own is None:
            continue
        sent = {"json": own.document, "headers": list(own.headers)}
        with r.http.stream("POST", own.path, **sent) as reply:
            told = _exchange("POST", own.path, own.document, reply, reply.read().decode())
        chat = {**asked.document, "stream_options": {"include_usage": True}}
        r.save(case, told, r.post("/v1/chat/completions", chat))


def record_kv_events(r: Recorder) -> None:
    """Two turns of one session, and all that the replica has published after each."""
    told = tuple(Reply(e["status"], reply_body(e)) for e in map(r.ask, r.engine.feed_calls()))
    (source,) = r.engine.read_feed(told, r.http.base_url.host)
    said: list[dict[str, Any]] = [{"role": "user", "content": _RULES[:400]}]
    turns = []
    for _ in range(2):
        made = r.post("/v1/chat/completions", {"messages": said, "max_tokens": 40})
        reply = made["json"]
        said += [reply["choices"][0]["message"], {"role": "user", "content": "And what else?"}]
        time.sleep(1)  # it tells the end of a request a little later
        messages = _replayed(source.replay)
        turns.append({"tokens": reply["usage"]["total_tokens"], "messages": len(messages)})
    r.folder.mkdir(parents=True, exist_ok=True)
    document = {"engine": f"{r.engine.kind} {r.version}", "turns": turns, "messages": messages}
    (r.folder / "kv_events.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{r.engine.kind}: kv_events: {turns}")


def record_adapters(r: Recorder, folder: Path) -> None:
    """Loads that go well, that are refused, and a turn of each; then it lets go of one."""

    def load(name: str, file: str) -> dict[str, Any]:
        adapter = Adapter(name=name, base="smollm2", path=str(folder / file))
        made = json.dumps(r.ask(r.engine.adapter_call(adapter)))
        asked: dict[str, Any] = json.loads(made.replace(str(folder), "/adapters"))
        return asked

    hello = {"messages": conversation(r.nonce), "max_tokens": 8, "temperature": 0}
    r.save("adapter_load", load("one", "one"), load("two", "two"))
    r.save("adapter_load_again", load("one", "one"))
    r.save("adapter_too_big", load("big", "big"))
    r.save("adapter_missing", load("none", "none"))
    turns = [r.post("/v1/chat/completions", hello)]
    for name in ("one", "two"):
        fields = {"model": name, **r.engine.adapter_fields(name)}
        turns.append(r.post("/v1/chat/completions", {**hello, **fields}))
    r.save("adapter_turns", *turns)
    r.save("adapter_identity", *[r.ask(call) for call in r.engine.identity_calls()])
    for case in ("adapter_unload", "adapter_unload_again"):
        r.save(case, r.ask(r.engine.drop_adapter_call("one")))


def record_ranks(r: Recorder) -> None:
    """Each rank computes the prompt that the others have cached; the last one is seen at it."""
    told = [r.ask(call) for call in r.engine.identity_calls()]
    r.save("ranks_identity", *told)
    r.save("ranks_feed", *[r.ask(call) for call in r.engine.feed_calls()])
    whole, last = r.engine, _identity(r.engine, told).ranks - 1
    messages = conversation(r.nonce)
    hello = {"messages": messages, "max_tokens": 4, "temperature": 0}
    turns = []
    for rank in [*range(last + 1)] * 2:
        r.engine = whole.at_rank(rank)
        turns.append(r.post("/v1/chat/completions", hello))
    r.save("ranks_turns", *turns)
    long = {"messages": messages, "max_tokens": 400, "ignore_eos": True, "stream": True}
    with r.posting("/v1/chat/completions", long) as (_, reply):
        next(reply.iter_lines())
        r.save("ranks_load", *r.load_when(lambda load: load.running == 1))


def _identity(adapter: Engine, told: list[dict[str, Any]]) -> Identity:
    return adapter.read_identity(tuple(Reply(e["status"], reply_body(e)) for e in told))


def _replayed(endpoint: str | None) -> list[dict[str, Any]]:
    assert endpoint is not None, "it was started without a replay endpoint"
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(endpoint)
        socket.send_multipart([b"", bytes(8)])
        messages = []
        while socket.poll(5000):
            *_, seq, payload = socket.recv_multipart()
            if not payload:
                return messages
            messages.append({"seq": int.from_bytes(seq, "big"), "payload": payload.hex()})
    raise AssertionError(f"{endpoint} does not answer")


def main() -> None:
    """Record the replicas that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", metavar="KIND=URL")
    parser.add_argument("--version", help="where the engine does not tell its own")
    parser.add_argument("--folder", help="below recorded/; the adapter's kind, if none is named")
    cases = ["identity_restarted", "count", "kv_events", "adapters", "ranks", "messages"]
    parser.add_argument("--only", choices=cases)
    parser.add_argument("--adapters", type=Path, help="the folder of `--only adapters`")
    options = parser.parse_args()
    kind, _, url = options.replica.partition("=")
    r = Recorder(kind, url.rstrip("/"), options.version, options.folder or kind)
    calls = r.engine.identity_calls()
    told = [r.ask(call) for call in calls]
    r.version = options.version or _identity(r.engine, told).version
    if options.only == "kv_events":
        record_kv_events(r)
    elif options.only == "messages":
        record_messages(r, _identity(r.engine, told))
    elif options.only == "ranks":
        record_ranks(r)
    elif options.only == "adapters":
        record_adapters(r, options.adapters)
    elif options.only == "count":
        record_count(r)
    elif options.only:
        r.save("identity_restarted", *told)
    else:
        record(r)


if __name__ == "__main__":
    main()
