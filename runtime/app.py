"""The one place where everything is wired: settings in, an ASGI application out."""

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from time import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sessile.adapter_list import AdapterList
from sessile.api.adapters import adapter_routes
from sessile.api.admin import native_routes
from sessile.api.auth import Authenticator, check_exposure
from sessile.api.browser import browser_routes
from sessile.api.chat import FastLane
from sessile.api.conversations import conversation_routes
from sessile.api.event_stream import event_routes
from sessile.api.health import health_routes
from sessile.api.messages import Messages
from sessile.api.messages_batches import batch_routes
from sessile.api.models import model_routes
from sessile.api.releases import release_routes
from sessile.api.responses import Responses
from sessile.api.responses_http import responses_routes
from sessile.api.responses_resume import resume_response
from sessile.api.runs import run_routes
from sessile.api.wire import anthropic_error, openai_error, retry_headers, wire_of
from sessile.discovery.follow import Discovery
from sessile.discovery.of_pool import OfPool
from sessile.discovery.sources import source
from sessile.engines.detect import named
from sessile.engines.kinds import engine
from sessile.errors import InvalidRequest, SessileError, SettingsError
from sessile.flow import Flow
from sessile.metrics import Metrics
from sessile.ray.report import Reporter
from sessile.ray.source import Reports
from sessile.release_list import ReleaseList
from sessile.router.adapters import Adapter, Adapters
from sessile.router.connection import Timeouts
from sessile.router.discovery import Source
from sessile.router.kv_feed import Feeds
from sessile.router.pool import Pool
from sessile.router.probe import Probes
from sessile.router.replica import Replica, ReplicaSpec
from sessile.router.trial import Trials
from sessile.router.upstream import Upstream
from sessile.sessions.binding import Standings
from sessile.sessions.memory_store import MemoryStore
from sessile.sessions.redis_store import RedisStore
from sessile.sessions.store import Store, StoreLimits
from sessile.sessions.stream_log import LogLimits
from sessile.settings import Settings
from sessile.telemetry import Telemetry

log = logging.getLogger("sessile.app")


class App:
    """The router as an ASGI application: fast lanes by path, FastAPI for all the rest.

    Made by `create_app`; its parts are public to whoever wires more to it (`up`, tests).
    """

    def __init__(
        self, settings: Settings, store: Store, specs: Iterable[ReplicaSpec],
        sources: Iterable[Source] = (),
    ) -> None:  # fmt: skip
        router = settings.router
        timeouts = Timeouts(
            connect_s=router.connect_timeout_s,
            first_byte_s=router.first_byte_timeout_s,
            idle_s=router.idle_timeout_s,
        )
        self.settings = settings
        self.store = store
        self.standings = Standings()
        self.pool = Pool(
            lambda spec: Replica(spec, engine(spec.engine), Upstream(spec.url, timeouts)),
            self.standings.bound_to,
            settings.aliases,
            Adapters(router.max_adapters),
        )
        self.telemetry = Telemetry()
        self.auth = Authenticator(settings.auth)
        self.probes = Probes(
            self.pool,
            interval_s=router.probe_interval_s,
            timeout_s=router.probe_timeout_s,
            clock=time,
        )
        self.trials = Trials(self.pool, router.silent_timeout_s)
        self.feeds = Feeds(self.pool, timeout_s=router.probe_timeout_s)
        self.releases = ReleaseList(self.pool, store, self.telemetry, settings.release)
        self.flow = Flow(
            pool=self.pool,
            store=store,
            standings=self.standings,
            router=router,
            sessions=settings.sessions,
            telemetry=self.telemetry,
            salt=self.auth.salt,
            hear=self.releases.once,
        )
        reporter = Reporter(self.pool, self.flow, self.telemetry)
        self.discovery = Discovery(self.pool, (*_sources(settings, reporter), *sources))
        declared = [Adapter(name=a.name, base=a.base, path=a.path) for a in settings.adapter]
        self.adapters = AdapterList(self.pool, store, self.flow.loader, declared)
        self.responses = Responses(self.flow, self.pool, store, settings, resume_response)
        self.metrics = Metrics(
            self.telemetry, self.pool, store, lambda: len(self.flow.scheduler.queue), self.discovery
        )
        longest = settings.server.max_body_bytes
        self._lanes: dict[str, ASGIApp] = {
            path: FastLane(path, self.flow, self.auth, longest)
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
        }
        self._lanes |= {
            path: Messages(self.pool, self.flow, self.auth, longest, counting=counting)
            for path, counting in (("/v1/messages", False), ("/v1/messages/count_tokens", True))
        }
        self.api = self._api()
        self._entry: ASGIApp = self._dispatch
        if settings.server.cors_origins:
            self._entry = CORSMiddleware(
                self._dispatch,
                allow_origins=settings.server.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["*"],
            )
        for spec in (*_specs(settings), *specs):
            try:
                self.pool.add(spec)
            except InvalidRequest as error:
                raise SettingsError(
                    f"replica {spec.id} at {spec.url} cannot be told from another: "
                    f"{error.message}; name its pool otherwise, or list it once"
                ) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._entry(scope, receive, send)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "POST":
            lane = self._lanes.get(scope["path"])
            if lane is not None:
                return lane(scope, receive, send)
        return self.api(scope, receive, send)

    @asynccontextmanager
    async def running(self, _: object = None) -> AsyncIterator[None]:
        """The lifespan: opened in this order, closed in the reverse."""
        async with AsyncExitStack() as stack:
            await self.store.open()
            stack.push_async_callback(self.store.aclose)
            stack.push_async_callback(self._close_upstreams)
            stack.push_async_callback(self.probes.aclose)
            stack.push_async_callback(self.feeds.aclose)
            await self.releases.open()
            stack.push_async_callback(self.releases.aclose)
            stack.push_async_callback(self.trials.aclose)
            self.flow.open()
            stack.push_async_callback(self.flow.aclose)
            self.adapters.open()
            stack.push_async_callback(self.adapters.aclose)
            self.responses.turns.open()
            stack.push_async_callback(self.responses.aclose)
            self.pool.on_change = self._sync
            self._sync()
            self.trials.open()
            self.discovery.open()
            stack.push_async_callback(self.discovery.aclose)
            yield
            self.pool.on_change = lambda: None

    def _sync(self) -> None:
        self.probes.sync()
        self.feeds.sync()
        self.flow.look()

    async def _close_upstreams(self) -> None:
        for replica in self.pool:
            await replica.upstream.aclose()

    def _api(self) -> FastAPI:
        api = FastAPI(
            title="Sessile",
            summary="The serving runtime for AI agents.",
            version=version("sessile"),
            lifespan=self.running,
        )
        api.add_exception_handler(SessileError, _on_error)  # type: ignore[arg-type]
        api.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]
        api.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
        api.include_router(
            health_routes(self.pool, self.store, self.metrics.scrape, self.discovery)
        )
        api.include_router(model_routes(self.pool, self.auth))
        api.include_router(batch_routes(self.auth))
        api.include_router(adapter_routes(self.adapters, self.pool, self.auth))
        api.include_router(release_routes(self.releases, self.auth))
        api.include_router(responses_routes(self.responses, self.auth, self.settings))
        api.include_router(event_routes(self.responses.turns, self.auth))
        api.include_router(run_routes(self.responses, self.auth, self.settings))
        api.include_router(browser_routes())
        api.include_router(conversation_routes(self.store, self.auth, self.settings))
        api.include_router(
            native_routes(
                self.pool, self.store, self.standings, self.flow, self.telemetry, self.auth
            )
        )
        return api


def create_app(
    settings: Settings, *, store: Store | None = None, specs: Iterable[ReplicaSpec] = (),
    sources: Iterable[Source] = (),
) -> App:  # fmt: skip
    """The application for `settings`: their replicas and sources, and `specs` and `sources` beside.

    Raises `SettingsError`; nothing is opened before the lifespan starts.
    """
    check_exposure(settings.server.host, settings.auth)
    return App(settings, store or make_store(settings), specs, sources)


def make_store(settings: Settings) -> Store:
    """The store that the settings name."""
    sessions, events = settings.sessions, settings.events
    # An idempotency key stands for events: they are kept as long.
    ttl_s = max(events.ttl_s, sessions.idempotency_ttl_s)
    limits = StoreLimits(
        ttl_s=sessions.ttl_s,
        binding_ttl_s=sessions.binding_ttl_s,
        turn_ttl_s=sessions.turn_ttl_s,
        idempotency_ttl_s=sessions.idempotency_ttl_s,
        events=LogLimits(**{**dict(events), "ttl_s": ttl_s}),
    )
    url = settings.store.url
    if url is None:
        return MemoryStore(limits)
    return RedisStore(
        url,
        limits,
        timeout_s=settings.store.timeout_s,
        retry_after_s=settings.store.retry_after_s,
    )


def _specs(settings: Settings) -> list[ReplicaSpec]:
    """The replicas that run already, named by engine and number."""
    found: list[ReplicaSpec] = []
    for text in settings.replica:
        kind, url = named(text)
        if not url:
            raise SettingsError(
                f"replica: {text!r} is neither a URL nor ENGINE=URL, as in sglang=http://gpu1:30000"
            )
        found.append(ReplicaSpec(id=f"{kind}-{len(found)}", engine=kind, url=url))
    for pool in settings.pool:
        for place, url in enumerate(pool.urls):
            name = f"{pool.name}-{place}" if pool.name else f"{pool.engine}-{len(found)}"
            found.append(
                ReplicaSpec(
                    id=name, engine=pool.engine, url=url, model=pool.model, pool=pool.name,
                    standby=pool.standby,
                )
            )  # fmt: skip
    specs = []
    for spec in found:
        if urlsplit(spec.url).scheme not in ("http", "https"):
            raise SettingsError(f"replica: {spec.url!r} is not a URL, as in http://gpu1:30000")
        try:
            engine(spec.engine)
        except InvalidRequest as error:
            raise SettingsError(f"replica: {error.message}") from error
        url = spec.url.rstrip("/").removesuffix("/v1")
        specs.append(msgspec.structs.replace(spec, url=url))
    return specs


def _sources(settings: Settings, reports: Reports) -> list[Source]:
    """Where the replicas of the settings are found that they do not list."""
    found: list[Source] = []
    for text in settings.discover:
        kind, where = named(text)
        if not where:
            raise SettingsError(
                f"discover: {text!r} is neither SOURCE nor ENGINE=SOURCE, as in "
                "sglang=dns://engines:30000"
            )
        found.append(source(where, kind, None, reports))
    for pool in settings.pool:
        if pool.discover:
            listed = source(pool.discover, pool.engine, pool.model, reports)
            found.append(OfPool(listed, pool.name, pool.standby))
    return found


async def _on_error(request: Request, error: SessileError) -> JSONResponse:
    headers = {name.decode(): value.decode() for name, value in retry_headers(error)}
    body = openai_error(error)
    if request.url.path.startswith("/v1/messages"):
        headers["request-id"] = f"req_{secrets.token_hex(12)}"
        body = anthropic_error(error, headers["request-id"])
    return JSONResponse(body, wire_of(error).status, headers)


async def _on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    told = InvalidRequest(f"{name or 'the body'}: {first['msg']}", param=name or None)
    return JSONResponse(openai_error(told), 400)


async def _on_http(request: Request, error: HTTPException) -> JSONResponse:
    absent = error.status_code == 404
    kind = "invalid_request_error"
    told = {"message": f"{request.method} {request.url.path}: {error.detail}"}
    if request.url.path.startswith("/v1/messages"):
        kind = "not_found_error" if absent else kind
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, **told}}
    else:
        code = "not_found" if absent else "bad_request"
        body = {"error": {**told, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, error.status_code, error.headers)
