"""What the router does itself for one response: before the engine's first call (tools are listed,
approved calls run, the context compacted) and between its calls (MCP tools run, what is oldest left
out). `Responses.make` calls the engine; here is only what it is asked next.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sessile.api.compaction import (
    compaction,
    kept_of,
    read_summary,
    summary_request,
    truncated,
)
from sessile.api.count import count_tokens
from sessile.api.mcp_client import McpServers, failed
from sessile.api.mcp_tools import find_list
from sessile.api.responses_body import Asked, chat_body
from sessile.api.responses_calls import mcp_call
from sessile.api.responses_context import Context
from sessile.api.responses_tools import Called
from sessile.api.responses_usage import usage_in
from sessile.api.wire import engine_error
from sessile.errors import InvalidRequest, SessileError
from sessile.flow import Flow
from sessile.router.pool import Pool
from sessile.sessions.transcript import item_id
from sessile.turn_request import TurnRequest

log = logging.getLogger("sessile.api")

Item = dict[str, Any]

_MOST_CALLS = 128  # of MCP tools in one response, where the request sets no bound
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the messages that are left out, one try after the other

_encode = msgspec.json.Encoder().encode


class Steps:
    """The steps of one response. Made by `Responses.make`, gone with the response.

    `request` is the turn as it would be without any of this; `made` are the items that come before
    what the engine says.
    """

    def __init__(
        self, flow: Flow, pool: Pool, servers: McpServers, asked: Asked, context: Context,
        request: TurnRequest,
    ) -> None:  # fmt: skip
        self._flow = flow
        self._pool = pool
        self._servers = servers
        self._asked = asked
        self._context = context
        self._request = request
        self._listed: dict[str, list[Item]] = {}
        self._calls = 0
        self._tries = 0
        self.made: list[Item] = []

    @property
    def called(self) -> Mapping[str, Called]:
        """What the names mean that the engine may call."""
        return self._asked.toolset.called(self._listed)

    async def begin(self) -> None:
        """Do what comes before the engine's first call."""
        if servers := self._asked.toolset.servers:
            await self._list([server["server_label"] for server in servers])
        if servers or any(map(_approves, self._asked.items)):
            await self._run_approved()
        if self._asked.compact_tokens is not None:
            await self._compact(self._asked.compact_tokens)

    def next(self, output: Sequence[Item], session: str | None) -> TurnRequest:
        """The next turn of the engine: after the items of `output`, in the session of the calls
        before it."""
        if not (output or session or self._listed or self._tries):
            return self._request
        request = msgspec.structs.replace(self._request, document=self._document(output))
        if session is not None:
            claims = msgspec.structs.replace(request.claims, explicit=session, lineage=None)
            request.claims = claims
        return request

    def shorten(self) -> bool:
        """The prompt was too long: leave out more of it, if the request allows that and anything is
        left to leave out."""
        if not self._asked.truncate or self._tries == len(_SHARES) - 1:
            return False
        self._tries += 1
        return True

    async def run(self, calls: Sequence[Item]) -> None:
        """Run MCP calls side by side; each item then holds its output or its error."""
        bound = self._most_calls - self._calls
        self._calls += len(calls)
        await asyncio.gather(*(self._run(call) for call in calls[: max(bound, 0)]))
        for call in calls[max(bound, 0) :]:
            call |= failed(f"max_tool_calls={self._most_calls} is used up")
            call["status"] = "failed"

    @property
    def _most_calls(self) -> int:
        return self._asked.most_tool_calls or _MOST_CALLS

    def _document(self, output: Sequence[Item]) -> dict[str, Any]:
        asked, past = self._asked, self._context.past
        if output:
            past = [*past, asked.items]
            asked = msgspec.structs.replace(asked, items=list(output))
        closed = self._calls >= self._most_calls
        document = chat_body(asked, self._context.model, past, self._listed, closed=closed)
        if self._tries:
            rules = 1 if asked.instructions else 0
            document["messages"] = truncated(document["messages"], rules, _SHARES[self._tries])
        return document

    # -- MCP

    async def _list(self, labels: Sequence[str]) -> None:
        """Have the tools of every server; those that an earlier turn has listed are known."""
        before = [*self._context.items, *self._asked.items]
        unknown = []
        for label in labels:
            tools = find_list(before, label)
            if tools is None:
                unknown.append(label)
            else:
                self._listed[label] = tools
        found = await asyncio.gather(*(self._servers.list_tools(label) for label in unknown))
        for label, (tools, error) in zip(unknown, found, strict=True):
            self._listed[label] = tools
            self.made.append(
                {"type": "mcp_list_tools", "id": self._id("mcpl"), "server_label": label,
                 "tools": tools, "error": error}
            )  # fmt: skip

    async def _run_approved(self) -> None:
        """Run the calls that the request's input approves."""
        # Raises what is wrong with the approvals, before anything is run.
        self._document([])
        before = [*self._context.items, *self._asked.items]
        requests = {item.get("id"): item for item in before
                    if item.get("type") == "mcp_approval_request"}  # fmt: skip
        calls: list[Item] = []
        for index, item in enumerate(self._asked.items):
            if not _approves(item):
                continue
            asked = requests.get(item["approval_request_id"])
            if asked is None or asked["server_label"] not in self._listed:
                raise InvalidRequest(
                    f"input[{index}] approves a call of an MCP server that is none of the tools",
                    param=f"input[{index}]",
                )
            call = mcp_call(self._id("mcp", len(calls)), asked["server_label"], asked["name"],
                            asked["arguments"])  # fmt: skip
            calls.append({**call, "approval_request_id": asked["id"], "status": "calling"})
        await self.run(calls)
        self.made += calls

    async def _run(self, call: Item) -> None:
        try:
            arguments = msgspec.json.decode(call["arguments"] or "{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            call |= failed(f"the arguments are not a JSON object: {error}")
        else:
            label, name = call["server_label"], call["name"]
            call |= await self._servers.call(label, name, arguments)
        call["status"] = "completed" if call["error"] is None else "failed"

    def _id(self, kind: str, ahead: int = 0) -> str:
        assert self._request.turn is not None
        return item_id(kind, self._request.turn, len(self.made) + ahead)

    # -- compaction

    async def _compact(self, most_tokens: int) -> None:
        """Sum up the context if its prompt is over `most_tokens`. Where that fails the turn runs
        with all of it."""
        document = self._document(self.made)
        if len(_encode(document["messages"])) <= most_tokens:
            return  # no token is shorter than a byte
        request = msgspec.structs.replace(self._request, document=document)
        try:
            if await count_tokens(self._pool, self._flow, beside(request)) <= most_tokens:
                return
            items = [*self._context.items, *self._asked.items, *self.made]
            item, _ = await compact(self._flow, request, items, self._id("cmp"))
        except SessileError as error:
            log.warning("context was not compacted turn=%s why=%r", request.turn, error.message)
            return
        self.made.append(item)


def _approves(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "mcp_approval_response" and item.get("approve") is True


async def compact(
    flow: Flow, request: TurnRequest, items: Sequence[Item], id: str
) -> tuple[Item, dict[str, Any] | None]:
    """A compaction of `items`, whose prompt is `request`'s, and the usage of the engine's call.

    Raises what a turn raises, and `InvalidRequest` where the model gave no summary.
    """
    kept = kept_of(items)
    asking = beside(request, stream=False)
    asking.document = summary_request(request.document)
    async with flow.serve_turn(asking) as turn:
        answer = b"".join([chunk async for chunk in turn])
        if turn.status >= 400:
            raise engine_error(turn.status, answer)
    summary = read_summary(answer)
    if not summary:
        raise InvalidRequest("the model gave no summary of the conversation", param="input")
    return compaction(id, summary, kept), usage_in(answer)


def beside(request: TurnRequest, *, stream: bool = True) -> TurnRequest:
    """A turn of the router's own, for one that is to come: it takes no lock, and is stored under an
    id of its own."""
    return msgspec.structs.replace(
        request, turn=None, idempotency_key=None, stateful=False, stream=stream,
        relay_usage=stream, hints=request.hints.out_of_the_way(),
    )  # fmt: skip
