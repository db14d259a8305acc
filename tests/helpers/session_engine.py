"""A fake SGLang with sessions of its own: `/generate` takes as ids what its chat takes as words."""

import re
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from sessile.lab.asgi import EVENTS, answer, event, finish, read_body, start, write
from sessile.lab.fake_replica import FakeReplica

_ROLES = {"system": "<system>", "user": "<user>", "assistant": "<assistant>"}
_END = "<end>"
_WORD = re.compile(r"<\w+>| ?[^ <]+")


class SessionEngine(FakeReplica):
    """It answers a prompt of ids as it does the chat with those words. `sessions` has the ids of
    each turn of each open session, by its rid; a `streaming` server takes sessions that know only
    the last. A stream for a session that it does not know begins with a 200, and a word."""

    def __init__(self, *, streaming: bool = True) -> None:
        super().__init__(model="m")
        self.streaming = streaming
        self.sessions: dict[str, dict[str, list[int]]] = {}
        self.opened: list[dict[str, Any]] = []
        self.generated: list[dict[str, Any]] = []
        self._words: list[str] = []
        self._known: dict[str, list[list[int]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/server_info":
                await answer(send, 200, {"enable_streaming_session": self.streaming})
            case "/tokenize":
                messages = msgspec.json.decode(await read_body(receive))["messages"]
                await answer(send, 200, {"tokens": self.ids(_rendered(messages))})
            case "/open_session":
                body = msgspec.json.decode(await read_body(receive))
                self.opened.append(body)
                self.sessions[body["session_id"]] = {}
                await answer(send, 200, body["session_id"])
            case "/close_session":
                del self.sessions[msgspec.json.decode(await read_body(receive))["session_id"]]
                await start(send)
                await finish(send)
            case "/generate":
                await self._generate(msgspec.json.decode(await read_body(receive)), send)
            case _:
                await super().__call__(scope, receive, send)

    async def _generate(self, body: dict[str, Any], send: Send) -> None:
        self.generated.append(body)
        asked = body.get("session_params")
        ids = list(body["input_ids"])
        await start(send, 200, EVENTS)
        if asked is not None:
            if asked["id"] not in self.sessions:
                why = {"type": "abort", "message": f"session id {asked['id']} does not exist"}
                await write(send, event(_told("-", [0], ids, 0, why)))
                await finish(send, b"data: [DONE]\n\n")
                return
            ids = self.sessions[asked["id"]].get(asked.get("rid"), []) + ids
        known = self._known.setdefault(body["extra_key"], [])
        cached = max((_common(ids, one) for one in known), default=0)
        said = self._said(ids, body["sampling_params"]["max_new_tokens"])
        for size in range(1, len(said) + 1):
            text = "".join(self._words[one] for one in said[:size]).removesuffix(_END)
            why = {"type": "stop"} if size == len(said) else None
            await write(send, event(_told(text, said[:size], ids, cached, why)))
        known.append(ids + said)
        if asked is not None:
            self.sessions[asked["id"]][body["rid"]] = ids + said
        await finish(send, b"data: [DONE]\n\n")

    def _said(self, ids: list[int], most: int) -> list[int]:
        """The echo that its chat would give."""
        prompt = "".join(self._words[one] for one in ids)
        asked = prompt.rpartition("<user>")[2].partition(_END)[0]
        words = self.ids(f"echo: {asked}{_END}")
        return words[:most]

    def ids(self, text: str) -> list[int]:
        """A word each, with the space before it."""
        words = _WORD.findall(text)
        self._words += [word for word in dict.fromkeys(words) if word not in self._words]
        return [self._words.index(word) for word in words]


def _rendered(messages: list[dict[str, Any]]) -> str:
    said = [f"{_ROLES[each['role']]}{each['content']}{_END}" for each in messages]
    return "".join(said) + _ROLES["assistant"]


def _told(
    text: str, said: list[int], ids: list[int], cached: int, why: dict[str, Any] | None
) -> dict[str, Any]:
    about = {"prompt_tokens": len(ids), "cached_tokens": cached, "finish_reason": why}
    return {"text": text, "output_ids": said, "meta_info": about}


def _common(one: list[int], other: list[int]) -> int:
    size = 0
    while size < min(len(one), len(other)) and one[size] == other[size]:
        size += 1
    return size
