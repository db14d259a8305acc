"""How the numbers on a page of Prometheus metrics are read."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sessile.errors import ReplicaRefused
from sessile.router.engine import Reply

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of a Prometheus text page."""

    labels: Mapping[str, str]
    value: float


class Samples:
    """The samples of some metrics on a Prometheus text page; the rest of the page is skipped.

    Raises `ReplicaRefused` for a page that is no such page at all.
    """

    def __init__(self, reply: Reply, path: str, names: tuple[str, ...]) -> None:
        if reply.status != 200:
            raise ReplicaRefused(f"its {path} answered {reply.status}")
        text = reply.body.decode("utf-8", "replace")
        if text and not re.search(r"^(# |[A-Za-z_:])", text) or text.startswith("<"):
            raise ReplicaRefused(f"its {path} is not Prometheus text")
        self._found: dict[str, list[Sample]] = {name: [] for name in names}
        # The text format: NAME, perhaps {LABELS}, a value, perhaps a timestamp.
        wanted = "|".join(re.escape(name) for name in names)
        for match in re.finditer(rf"^({wanted})(\{{.*\}})? +(\S+)", text, re.MULTILINE):
            name, labels, value = match.groups()
            try:
                sample = Sample(dict(_LABEL.findall(labels or "")), float(value))
            except ValueError as error:
                raise ReplicaRefused(f"its {path} has {name} at {value!r}") from error
            self._found[name].append(sample)

    def keep(self, label: str, value: str) -> None:
        """Forget the samples that have another value of that label, or none."""
        for name, found in self._found.items():
            self._found[name] = [sample for sample in found if sample.labels.get(label) == value]

    def all(self, name: str) -> list[Sample]:
        """Every sample of a metric, one for each set of labels."""
        return self._found[name]

    def total(self, name: str) -> float | None:
        """The sum over labels; None where the page has no such metric."""
        found = self._found[name]
        return sum(sample.value for sample in found) if found else None
