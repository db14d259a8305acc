"""An engine that has started and answers, but not as its kind does: mostly one of another version.

Pure. It may be only that it still loads, so it is told at once, and given up after a while.
"""

from sessile.errors import SettingsError

_PATIENCE_S = 60.0


class Refusals:
    """What is known of the replicas of one `sessile up` that have not served yet."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: dict[str, str] = {}

    def look(self, name: str, engine: str, why: str | None, now: float) -> str | None:
        """What is to be told of the replica, if anything is new; `why` is what its answers lack,
        None while there is none, or nothing to find fault with. Raises `SettingsError` once that
        has lasted."""
        if why is None:
            self._since.pop(name, None)
            return None
        if now - self._since.setdefault(name, now) > _PATIENCE_S:
            raise SettingsError(
                f"replica {name} answers, but not as {engine} does: {why}; is it of a version that "
                "docs/engines.md names, and are pool.args right?"
            )
        if self._told.get(name) == why:
            return None
        self._told[name] = why
        return f"{name}: it answers, but {why}"
