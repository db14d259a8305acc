"""The commands that serve, and those about what is served: up, serve, settings, models."""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sessile.errors import SettingsError

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings in TOML.", show_default=False)
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.  \\[default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on.  \\[default: 8000]")]
Redis = Annotated[
    str | None, typer.Option("--redis", help="Keep sessions in this Redis or Valkey, by URL.")
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="session, sticky, round_robin, least_loaded, power_of_two or rendezvous.  "
        "\\[default: session]"
    ),
]
LogFormat = Annotated[str | None, typer.Option(help="console or json.  \\[default: console]")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(rich_help_panel="Serve")(up)
    app.command(rich_help_panel="Serve")(serve)
    app.command(rich_help_panel="Serve")(settings)
    models = typer.Typer(help="The models that `sessile up` knows by name.", no_args_is_help=True)
    models.command("list")(list_models)
    models.command("pull")(pull_model)
    models.command("path")(model_path)
    app.add_typer(models, name="models", rich_help_panel="Serve")


def up(
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name in `sessile models list`, or a GGUF file.  \\[smollm2-135m]"),
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Replicas.  \\[default: 2]")] = None,
    context: Annotated[
        int | None, typer.Option(min=256, help="Context of a session, in tokens.  [8192]")
    ] = None,
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    policy: Policy = None,
    log_format: LogFormat = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, and start nothing.")
    ] = False,
) -> None:
    """Start replicas, a session store and the router on this machine, and serve.

    Without any setting: two replicas of a small real model, pulled once, on
    http://localhost:8000/v1. Ctrl-C stops all of it.

        sessile up
        sessile up --model ~/models/qwen2.5-0.5b.gguf --replicas 1
        sessile up -c sessile.toml
        sessile up -c sessile.toml --dry-run
    """
    from sessile.settings_load import load

    pool: dict[str, Any] = {}
    if model is not None or replicas is not None or context is not None:
        base = load(config).pool
        local = next((p for p in base if not p.found), None)
        pool = dict(local) if local else {}
        pool["model"] = model or pool.get("model")
        pool["replicas"] = replicas or pool.get("replicas") or 2
        if context is not None:
            pool["context_tokens"] = context
        kept = [dict(p) for p in base if p is not local]
        overrides: dict[str, Any] = {"pool": (*kept, pool)}
    else:
        overrides = {}
    overrides |= _flags(host, port, redis, policy, log_format)
    tree = load(config, overrides)
    _show(tree) if dry_run else _up(tree)


def serve(
    replica: Annotated[
        list[str] | None,
        typer.Option(help="A replica by URL, or ENGINE=URL (docs/engines.md); repeatable."),
    ] = None,
    discover: Annotated[
        list[str] | None,
        typer.Option(
            help="Where replicas are found, by [ENGINE=]SOURCE: a file, DNS, Kubernetes, Ray Serve."
        ),
    ] = None,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    redis: Redis = None,
    policy: Policy = None,
    log_format: LogFormat = None,
) -> None:
    """Run only the router, before replicas that run already. Start as many as you like.

    sessile serve --replica sglang=http://gpu1:30000 --replica sglang=http://gpu2:30000
    sessile serve --replica vllm=http://gpu1:8000 --redis redis://store:6379
    sessile serve -c sessile.toml --host 0.0.0.0
    sessile serve --discover sglang=file:///etc/sessile/replicas.toml
    sessile serve --discover vllm=dns://engines:8000
    sessile serve --discover 'sglang=kubernetes://default?selector=app=sglang&port=30000'
    sessile serve --discover ray://head:8000/sessile
    """
    from sessile.settings_load import load

    overrides = _flags(host, port, redis, policy, log_format)
    if replica:
        overrides["replica"] = tuple(replica)
    if discover:
        overrides["discover"] = tuple(discover)
    tree = load(config, overrides)
    if not (tree.replica or tree.discover or any(pool.found for pool in tree.pool)):
        raise SettingsError(
            "no replicas: name one with --replica sglang=http://HOST:PORT, find them with "
            "--discover, or start some here with sessile up"
        )
    _serve(tree)


def settings(config: Config = None) -> None:
    """Print the effective settings: file, environment and defaults; secrets masked.

    sessile settings
    SESSILE_SERVER__PORT=9000 sessile settings -c sessile.toml
    """
    from sessile.settings import Settings
    from sessile.settings_load import load, masked

    tree = load(config)
    values = masked(tree)
    table = Table("setting", "value", "what it is", header_style="bold", expand=False)
    for name, field in Settings.model_fields.items():
        part = getattr(tree, name)
        if not hasattr(type(part), "model_fields"):
            table.add_row(name, _value(values[name]), field.description or "")
            continue
        for key, inner in type(part).model_fields.items():
            table.add_row(f"{name}.{key}", _value(values[name][key]), inner.description or "")
    Console().print(table)
    print("environment: SESSILE_ and the name in capitals, with __ for the dot")


def list_models() -> None:
    """List the catalogue, and what of it has been pulled."""
    from sessile.models import CATALOGUE, installed

    table = Table("name", "size", "licence", "file", header_style="bold")
    for model in CATALOGUE.values():
        path = installed(model)
        size = f"{model.file_bytes / 1e6:.0f} MB"
        table.add_row(model.name, size, model.licence, str(path) if path else "not pulled")
    Console().print(table)


def pull_model(name: str) -> None:
    """Fetch a model of the catalogue, check it and keep it.

    sessile models pull smollm2-135m
    """
    from sessile.models import pull

    with _bar() as bar:
        print(pull(name, bar))


def model_path(name: str) -> None:
    """Print where a pulled model's file is."""
    from sessile.models import resolve

    path = resolve(name)[1]
    if path is None:
        raise SettingsError(f"{name} has not been pulled; run: sessile models pull {name}")
    print(path)


def _flags(
    host: str | None, port: int | None, redis: str | None, policy: str | None,
    log_format: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The flags that were given, as overrides of the tree."""
    given: dict[str, dict[str, Any]] = {
        "server": {"host": host, "port": port},
        "store": {"url": redis},
        "router": {"policy": policy},
        "log": {"format": log_format},
    }
    kept = {
        part: {name: value for name, value in values.items() if value is not None}
        for part, values in given.items()
    }
    return {part: values for part, values in kept.items() if values}


def _up(tree: Any) -> None:
    from sessile import up as local
    from sessile.api.auth import check_exposure
    from sessile.app import App
    from sessile.engines.scratch import private_folder
    from sessile.logs import set_up_logs
    from sessile.server import bind
    from sessile.up_plan import plan_up

    set_up_logs(tree.log.format, tree.log.level)
    check_exposure(tree.server.host, tree.auth)  # what is wrong is said before a model is pulled
    listener = bind(tree.server.host, tree.server.port)
    console = Console(stderr=True)

    async def ready(app: App, url: str) -> None:
        models = ", ".join(app.pool.models())
        served = f"[bold]{models}[/bold] on [bold]{url}/v1[/bold], {local.counted(len(app.pool))}"
        console.print(f"{served}, ready in {_running_s():.1f} s")
        console.print(f"  from openai import OpenAI; OpenAI(base_url='{url}/v1', api_key='-')")
        console.print("  watch it with: sessile status; stop it with Ctrl-C", highlight=False)

    def tell(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    with private_folder() as folder:
        with _bar() as bar:
            launches = plan_up(tree, folder, bar, tell)
        _run(local.up(tree, launches, listener, tell, ready))


def _show(tree: Any) -> None:
    """The commands that `up` would run, on standard output; what is told of them, as ever."""
    from sessile.up_plan import plan_up

    console = Console(stderr=True)
    slots = Path(tempfile.gettempdir()) / "sessile-slots"
    for launch in plan_up(tree, slots, None, lambda line: console.print(line, markup=False)):
        how = f", speculates ({launch.speculation})" if launch.speculation else ""
        print(f"# {launch.id}: {launch.model} ({launch.engine}) on {launch.url}{how}")
        print(launch.shown())


def _serve(tree: Any) -> None:
    from sessile.app import create_app
    from sessile.logs import set_up_logs
    from sessile.server import bind, serve
    from sessile.up import counted

    set_up_logs(tree.log.format, tree.log.level)
    app = create_app(tree)
    listener = bind(tree.server.host, tree.server.port)

    async def ready(url: str) -> None:
        console = Console(stderr=True)
        console.print(f"serving on {url}/v1, {counted(len(app.pool))}")
        for each in app.discovery.followed:
            console.print(f"  finding replicas by {each.name}", highlight=False)

    _run(serve(app, tree, listener=listener, on_ready=ready))


def _run(main: Any) -> None:
    """Run on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # Windows has none
        asyncio.run(main)
    else:
        uvloop.run(main)


class _bar:
    """A progress bar that appears with the first bytes, on standard error; in a pipe, a line for
    each thing that is done."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
            TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._task: Any = None
        self._said = ""

    def __enter__(self) -> "_bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            if what != self._said:
                self._console.print(what, highlight=False)
                self._said = what
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)
        if done >= total:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


def _running_s() -> float:
    """How long this process has run, its interpreter's start included where that can be told."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        began = ticks / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # no Linux
        return time.process_time()


def _value(value: object) -> str:
    return "-" if value in (None, [], "") else str(value)
