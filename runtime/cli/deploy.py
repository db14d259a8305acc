"""The commands that have others run the replicas: `sessile deploy ray`."""

import shlex
from typing import Annotated, Any

import typer
from rich.console import Console

from sessile.errors import SettingsError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(
        help="Have a cluster run the replicas; routers find them there.", no_args_is_help=True
    )
    commands.command("ray")(ray)
    # With one command alone Typer would do without its name.
    commands.callback()(lambda: None)
    app.add_typer(commands, name="deploy", rich_help_panel="Serve")


def ray(
    name: Annotated[str, typer.Option(help="Of the application, and its path.")] = "sessile",
    model: Annotated[str | None, typer.Option(help="What is served.  \\[smollm2-135m]")] = None,
    engine: Annotated[str | None, typer.Option(help="Which engine.  \\[llamacpp]")] = None,
    command: Annotated[
        str | None,
        typer.Option(
            help="Starts an engine, with {model}, {host}, {port}, {events_port} and {replay_port} "
            "filled in.  \\[the embedded one]"
        ),
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option("--min", min=0, help="Fewest replicas; 0: none when idle.  [1]")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max", min=1, help="Most replicas.  [1, or --min]")
    ] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of a replica.  [0]")] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs of a replica.  [1]")] = None,
    ttft: Annotated[
        float | None,
        typer.Option(help="Time to the first token that is aimed at, in seconds.  [5]"),
    ] = None,
    drain: Annotated[
        float | None, typer.Option(min=0, help="Longest that a replica waits for its turns.  [120]")
    ] = None,
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
    host: Annotated[
        str,
        typer.Option(
            help="Where Ray Serve's proxies listen; 0.0.0.0 for routers on other machines than "
            "the proxy, within a network that is the cluster's own: no key is asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of these proxies.")] = 8000,
) -> None:
    r"""Run engine replicas on a Ray cluster, and scale them by what the routers tell.

        sessile deploy ray --max 4
        sessile serve --port 8080 --discover ray://127.0.0.1:8000/sessile

    Ray and Sessile must be installed here and on the nodes. The same by a Serve config:
    deploy/ray.yaml. An engine of your own is started with what sessions need, its KV events on
    ports of its own:

        sessile deploy ray --engine sglang --model Qwen/Qwen3-8B --gpus 2 --max 4 --command "
          env SGLANG_ENABLE_UNIFIED_RADIX_TREE=1 python -m sglang.launch_server
          --model-path {model} --served-model-name {model} --host {host} --port {port}
          --tp-size 2 --log-level-http warning --enable-metrics --enable-cache-report
          --page-size 16 --kv-events-config '{\"publisher\":\"zmq\",
          \"endpoint\":\"tcp://*:{events_port}\",
          \"replay_endpoint\":\"tcp://*:{replay_port}\"}'
          --radix-eviction-policy lru --enable-session-radix-cache
          --enable-priority-scheduling --disable-priority-preemption
          --enable-hierarchical-cache --hicache-ratio 2"
    """
    given: dict[str, Any] = {
        "model": model, "engine": engine, "min_replicas": min_replicas,
        "max_replicas": max_replicas or min_replicas or None, "gpus": gpus, "cpus": cpus,
        "ttft_s": ttft, "drain_s": drain, "command": shlex.split(command) if command else None,
    }  # fmt: skip
    try:
        from sessile.ray.deploy import deploy
    except ModuleNotFoundError as error:
        raise SettingsError("Ray is not installed here: pip install 'sessile[ray]'") from error
    given = {k: v for k, v in given.items() if v is not None}
    source = deploy(given, name, address, host, port)
    console = Console(stderr=True)
    console.print(f"{name} is up; serve it with:", highlight=False)
    console.print(f"  sessile serve --port 8080 --discover {source}", highlight=False)
