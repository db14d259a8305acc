"""What `sessile up` is to start: the pools of the settings, with the facts their commands need.

The facts are gathered here (models pulled, engines asked for their flags, GPUs counted); what
becomes of them is decided in `sessile.engines.launch`.
"""

import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from sessile import models
from sessile.engines import speculation
from sessile.engines.launch import Asked, Launch, plan
from sessile.engines.lora import AdapterFacts, read_adapter
from sessile.engines.machine import installed, look
from sessile.engines.model_facts import ModelFacts, draft_file, read_model
from sessile.engines.seat import Machine
from sessile.engines.supervisor import free_ports
from sessile.errors import SettingsError
from sessile.pool_settings import PoolSettings
from sessile.settings import Settings

_DEFAULT_MODEL = "smollm2-135m"
_DEFAULT_REPLICAS = 2
_CONTEXT_TOKENS = 8192
_SLOTS = 2


def plan_up(
    settings: Settings,
    folder: Path,
    progress: models.Progress | None,
    tell: Callable[[str], None],
) -> list[Launch]:
    """The replicas that `up` is to start; the embedded ones save slots in `folder`.

    Without any replica in `settings`: two of the small model. Without `progress` no model is
    pulled. It blocks, for it comes before the event loop, where Ctrl-C ends a pull at once. Raises
    `SettingsError`.
    """
    pools = [pool for pool in settings.pool if not pool.found]
    if not (settings.pool or settings.replica or settings.discover):
        pools = [PoolSettings(model=_DEFAULT_MODEL, replicas=_DEFAULT_REPLICAS)]
    machine = look()
    embedded = [pool for pool in pools if pool.engine == "llamacpp"]
    adapters = _adapters(settings)
    launches = _embedded(embedded, pools, machine, folder, progress, tell)
    _tell_unloadable(adapters, launches, tell)
    asked = [_ask(pool, adapters, tell) for pool in pools if pool.engine != "llamacpp"]
    found, notes = plan(asked, machine, free_ports, first=len(launches))
    for note in notes:
        tell(note)
    for launch in found:
        _refuse_taken_port(launch)
    return launches + found


def _adapters(settings: Settings) -> tuple[AdapterFacts, ...]:
    """Those that the settings declare; a base may be named by an alias."""
    return tuple(
        read_adapter(each.name, settings.aliases.get(each.base, each.base), each.path)
        for each in settings.adapter
    )


def _tell_unloadable(
    adapters: Sequence[AdapterFacts], embedded: Sequence[Launch], tell: Callable[[str], None]
) -> None:
    """Say which adapters no embedded replica of their base will load."""
    for adapter in adapters:
        if any(launch.model == adapter.base for launch in embedded):
            tell(
                f"adapter {adapter.name}: the embedded llama.cpp loads no adapters; serve "
                f"{adapter.base} with sglang or vllm"
            )


def _refuse_taken_port(launch: Launch) -> None:
    """An engine finds out only once it has loaded its model."""
    port = urlsplit(launch.url).port
    assert port is not None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers bind
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"pool.args: port {port} is in use; leave --port out, and a free one is taken"
            ) from error


def _ask(
    pool: PoolSettings, adapters: tuple[AdapterFacts, ...], tell: Callable[[str], None]
) -> Asked:
    env = {name: value.get_secret_value() for name, value in pool.env.items()}
    assert pool.model is not None
    model = read_model(pool.model)
    wanted = pool.speculation
    draft = wanted.draft_model or (model.draft if wanted.method == "auto" else None)
    return Asked(
        pool=pool,
        model=model,
        draft=read_model(draft, "speculation.draft_model") if draft else None,
        installed=installed(pool.engine, pool.python, env, tell),
        adapters=adapters,
    )


def _embedded(
    embedded: Sequence[PoolSettings], pools: Sequence[PoolSettings], machine: Machine,
    folder: Path, progress: models.Progress | None, tell: Callable[[str], None],
) -> list[Launch]:  # fmt: skip
    """The embedded replicas; the cores are shared out among all that run on them."""
    count = sum(pool.replicas or 1 for pool in pools)
    threads = max(1, machine.cores // max(count, 1))
    launches: list[Launch] = []
    for pool in embedded:
        alias, path = models.resolve(pool.model or _DEFAULT_MODEL)
        if path is None and progress is not None:
            path = models.pull(alias, progress)
        file = Path(path or models.cache_dir() / "models" / models.CATALOGUE[alias].file)
        line = [
            "--model", str(file), "--alias", alias, "--threads", str(threads),
            "--context", str(pool.context_tokens or _CONTEXT_TOKENS),
            "--slots", str(pool.slots or _SLOTS), "--slots-dir", str(folder),
        ]  # fmt: skip
        known = models.CATALOGUE.get(alias)
        if known is not None and known.template is not None and pool.model in (None, alias):
            line += ["--chat-template", str(known.template)]
        method, draft = _speculation(pool, file)
        ports = free_ports(pool.replicas or 1)
        tasks, note = speculation.spread(pool.speculation, ports, method)
        if note is not None:
            tell(f"{alias}: {note}")
        for port, task in zip(ports, tasks, strict=True):
            mine = method if task.method != "off" else "off"
            launches.append(
                Launch(
                    id=f"local-{len(launches)}", engine="llamacpp", model=alias,
                    url=f"http://127.0.0.1:{port}", folder=str(folder),
                    speculation=mine if mine != "off" else None,
                    pool=pool.name, standby=pool.standby,
                    command=(
                        sys.executable, "-m", "sessile.engines.embedded", "--port", str(port),
                        *line, *speculation.llamacpp(mine, draft, task.tokens),
                    ),
                )
            )  # fmt: skip
    return launches


def _speculation(pool: PoolSettings, file: Path) -> tuple[str, str | None]:
    """The method that is meant, and the draft that it takes."""
    wanted = pool.speculation
    draft = Path(wanted.draft_model).expanduser() if wanted.draft_model else None
    if wanted.method == "auto" and draft is None:
        draft = draft_file(file)
    if draft is not None and not draft.is_file():
        raise SettingsError(f"speculation.draft_model: {draft} is not a GGUF file")
    facts = ModelFacts(source=str(draft), name=draft.stem) if draft is not None else None
    method = speculation.settle(wanted, ModelFacts(source=str(file), name=file.stem), facts)
    if draft is not None and speculation.takes_model(method) and file.is_file():
        speculation.check_draft_file(file, draft)
    return method, str(draft) if draft else None
