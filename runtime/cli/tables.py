"""How the command line shows replicas and sessions: rich tables of what the router said. Pure."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sessile.client.calls import Ready, ReplicaInfo, SessionInfo

_COLOURS = {
    "ready": "green", "ok": "green", "open": "green", "starting": "yellow", "draining": "yellow",
    "degraded": "yellow", "down": "red", "closed": "dim",
}  # fmt: skip


def status_view(url: str, ready: Ready, replicas: list[ReplicaInfo]) -> RenderableType:
    """The router in one line, and its replicas."""
    up, total = ready.replicas.get("ready", 0), ready.replicas.get("total", len(replicas))
    head = Text.assemble(
        ("router ", "bold"), f"{url}  ", coloured(ready.status), "  store ", coloured(ready.store),
        f"  replicas {up}/{total}",
    )  # fmt: skip
    if not replicas:
        return Group(head, Text("no replica yet: `sessile replicas add ENGINE=URL`", "yellow"))
    return Group(head, replica_table(replicas))


def replica_table(replicas: list[ReplicaInfo]) -> Table:
    """One row a replica; what an engine does not report is a dash."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("REPLICA", "ENGINE", "MODEL", "STATE"):
        table.add_column(name, overflow="fold")
    for name in ("RUN/WAIT", "KV", "IN FLIGHT", "SESSIONS", "TURNS", "HIT RATE"):
        table.add_column(name, justify="right", no_wrap=True)
    for replica in replicas:
        state = coloured(replica.state)
        if replica.why and replica.state != "ready":
            state.append(f"\n{replica.why}", "dim")
        table.add_row(
            replica.id, replica.engine, ", ".join(replica.models) or "-", state,
            _queue(replica), _used(replica), str(replica.in_flight), str(replica.sessions),
            str(replica.turns), share(replica.hit_rate),
        )  # fmt: skip
    return table


def session_table(sessions: list[SessionInfo], now: float) -> Table:
    """One row a session, as the router gave them: the last used first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SESSION", "MODEL", "REPLICA", "STATE"):
        table.add_column(name, overflow="fold")
    for name in ("TURNS", "CONTEXT", "HIT RATE", "LAST TURN"):
        table.add_column(name, justify="right", no_wrap=True)
    for session in sessions:
        table.add_row(
            session.session, session.model, session.replica or "-", coloured(session.state),
            str(session.turns), str(session.context_tokens), share(session.hit_rate),
            age(now - session.last_turn_at) if session.last_turn_at else "-",
        )  # fmt: skip
    return table


def coloured(state: str) -> Text:
    """A state in the colour of its urgency."""
    return Text(state, _COLOURS.get(state, ""))


def share(rate: float | None) -> str:
    """A rate as a percentage; a dash where it is unknown."""
    return "-" if rate is None else f"{rate:.0%}"


def age(seconds: float) -> str:
    """How long ago, in the largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit} ago"
    return f"{max(0.0, seconds):.0f}s ago"


def _queue(replica: ReplicaInfo) -> str:
    load = replica.load or {}
    running, waiting = load.get("running"), load.get("waiting")
    return f"{'-' if running is None else running}/{'-' if waiting is None else waiting}"


def _used(replica: ReplicaInfo) -> str:
    load = replica.load or {}
    used, capacity = load.get("used_tokens"), load.get("capacity_tokens")
    return "-" if used is None or not capacity else f"{used / capacity:.0%}"
