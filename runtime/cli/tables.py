"""How the command line shows replicas and sessions: rich tables of what the router said. Pure."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sessile.client.calls import AdapterInfo, Ready, ReleaseInfo, ReplicaInfo, SessionInfo, SideInfo

_COLOURS = {
    "ready": "green", "ok": "green", "open": "green", "starting": "yellow", "draining": "yellow",
    "degraded": "yellow", "under way": "yellow", "finished": "green", "down": "red",
    "closed": "dim",
}  # fmt: skip


def status_view(
    url: str, ready: Ready, replicas: list[ReplicaInfo], releases: Sequence[ReleaseInfo] = ()
) -> RenderableType:
    """The router in one line, each swap that is not over yet in another, and its replicas."""
    up, total = ready.replicas.get("ready", 0), ready.replicas.get("total", len(replicas))
    head = Text.assemble(
        ("router ", "bold"), f"{url}  ", coloured(ready.status), "  store ", coloured(ready.store),
        f"  replicas {up}/{total}",
    )  # fmt: skip
    away = [
        Text(f"source {name}: {why}", "yellow")
        for name, why in ready.discovery.items() if why != "ok"
    ]  # fmt: skip
    if not replicas:
        hint = "" if ready.discovery else ": `sessile replicas add URL`"
        return Group(head, Text(f"no replica yet{hint}", "yellow"), *away)
    swaps = [release_line(each) for each in releases if _goes_on(each)]
    return Group(head, *swaps, _load_table(replicas), *away)


def _load_table(replicas: list[ReplicaInfo]) -> RenderableType:
    """One row a replica, as it is now; what an engine does not report is a dash."""
    table = _table(
        ("REPLICA", "MODEL", "STATE"),
        ("RUN/\nWAIT", "KV", "IN\nFLIGHT", "SESSIONS", "TURNS", "HIT\nRATE", "TOKENS/\nSTEP"),
    )
    for replica in replicas:
        table.add_row(
            replica.id, ", ".join(replica.models) or "-", coloured(replica.state), _queue(replica),
            _used(replica), str(replica.in_flight), str(replica.sessions), str(replica.turns),
            share(replica.hit_rate), _yield(replica),
        )  # fmt: skip
    return Group(table, *_remarks(replicas))


def replica_table(replicas: list[ReplicaInfo]) -> RenderableType:
    """One row a replica: what it is and where."""
    table = _table(("REPLICA", "ENGINE", "MODEL", "STATE", "URL"), ("CONTEXT",))
    for replica in replicas:
        context = "-" if replica.context_tokens is None else str(replica.context_tokens)
        table.add_row(
            replica.id, replica.engine, ", ".join(replica.models) or "-",
            coloured(replica.state), replica.url, context,
        )  # fmt: skip
    return Group(table, *_remarks(replicas))


def adapter_table(adapters: list[AdapterInfo]) -> Table:
    """One row an adapter: what it is for, where it is loaded, who would not load it."""
    table = _table(("ADAPTER", "BASE", "LOADED", "REFUSED", "PATH"), ())
    for adapter in adapters:
        table.add_row(
            adapter.name, adapter.base, ", ".join(adapter.loaded) or "-",
            Text(", ".join(adapter.refused) or "-", "red" if adapter.refused else ""),
            adapter.path or "-",
        )  # fmt: skip
    return table


def release_line(release: ReleaseInfo) -> Text:
    """What the name means, in one line."""
    line = Text.assemble(
        ("swap ", "bold"), f"{release.model}  ", coloured(release.state.replace("_", " ")),
        "  " + ", ".join(f"{v.variant} {v.percent:g} %" for v in release.variants),
    )  # fmt: skip
    for side in release.variants:
        if side.moves_in_s is not None and not side.percent:
            later = side.moves_in_s > release.in_force_in_s
            when = f"in {age(side.moves_in_s)}" if later else "at their next turn"
            line.append(f"  sessions of {side.variant} move {when}", "yellow")
    if release.in_force_in_s:
        line.append(f"  in force in {release.in_force_in_s:.1f}s", "dim")
    return line


def _goes_on(release: ReleaseInfo) -> bool:
    return release.state == "under_way" or any(v.moves_in_s for v in release.variants)


def release_view(release: ReleaseInfo) -> RenderableType:
    """A release, its variants side by side."""
    table = _table(
        ("VARIANT",),
        ("OF NEW\nSESSIONS", "SESSIONS\n+ MOVED", "TURNS", "ERRORS", "TTFT\nP50/P90", "TOKENS\n/S",
         "HIT\nRATE"),
    )  # fmt: skip
    for side in release.variants:
        percent = f"{side.percent:g} %"
        rate = "-" if side.tokens_per_s is None else f"{side.tokens_per_s:.1f}"
        table.add_row(
            side.variant, percent if side.ready else Text("none ready", "red"),
            f"{side.sessions} + {side.swapped}" if side.swapped else str(side.sessions),
            str(side.turns), Text(str(side.errors), "red" if side.errors else ""), _first(side),
            rate, share(side.hit_rate),
        )  # fmt: skip
    return Group(release_line(release), table)


def _first(side: SideInfo) -> str:
    if side.ttft_p50_s is None or side.ttft_p90_s is None:
        return "-"
    return f"{side.ttft_p50_s:.2f}/{side.ttft_p90_s:.2f}s"


def session_table(sessions: list[SessionInfo], now: float) -> Table:
    """One row a session, as the router gave them: the last used first."""
    table = _table(("SESSION", "MODEL", "REPLICA"), ("TURNS", "CONTEXT", "HIT\nRATE", "IDLE"))
    for session in sessions:
        closed = session.state == "closed"
        table.add_row(
            session.session, session.model,
            coloured("closed") if closed else Text(session.replica or "-"), str(session.turns),
            str(session.context_tokens), share(session.hit_rate),
            age(now - session.last_turn_at) if session.last_turn_at else "-",
        )  # fmt: skip
    return table


def _table(words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(words):
        table.add_column(name, no_wrap=place == 0, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def coloured(state: str) -> Text:
    """A state in the colour of its urgency."""
    return Text(state, _COLOURS.get(state, ""))


def share(rate: float | None) -> str:
    """A rate as a percentage; a dash where it is unknown."""
    return "-" if rate is None else f"{rate:.0%}"


def age(seconds: float) -> str:
    """A time span in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _remarks(replicas: list[ReplicaInfo]) -> list[Text]:
    """Why replicas are not ready, or serve not as sessions need it: a sentence each, below."""
    found = []
    for replica in replicas:
        down = replica.why if replica.state != "ready" else None
        if told := down or replica.warning:
            found.append(Text(f"{replica.id}: {told}", "" if down else "yellow"))
    return found


def _queue(replica: ReplicaInfo) -> str:
    load = replica.load or {}
    running, waiting = load.get("running"), load.get("waiting")
    return f"{'-' if running is None else running}/{'-' if waiting is None else waiting}"


def _yield(replica: ReplicaInfo) -> str:
    """How many tokens a decoding step makes: more than one only where it speculates."""
    if replica.speculates is False:
        return "1"
    return "-" if replica.acceptance_length is None else f"{replica.acceptance_length:.1f}"


def _used(replica: ReplicaInfo) -> str:
    load = replica.load or {}
    used, capacity = load.get("used_tokens"), load.get("capacity_tokens")
    return "-" if used is None or not capacity else f"{used / capacity:.0%}"
