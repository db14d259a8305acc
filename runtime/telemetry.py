"""What turns came to, counted for the metrics, and one log line a turn; nothing is decided here."""

import logging
import time
from collections import Counter, defaultdict, deque
from statistics import median
from typing import ClassVar

from sessile.logs import soon
from sessile.router.figures import ByVariant, Figures
from sessile.sessions.record import Receipt
from sessile.sessions.store import Assignment
from sessile.times import Times

log = logging.getLogger("sessile.turn")

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ERROR = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1, 2, 5)
_ACCEPTED = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Telemetry:
    """What the turns of one router add up to. Made by `app`."""

    def __init__(self) -> None:
        self.ttft_s = Times("sessile_ttft_seconds", "Time to the first byte of the answer", _TTFT_S)
        self.tpot_s = Times(
            "sessile_tpot_seconds", "Time per generated token after the first", _TPOT_S
        )
        self.queue_s = Times(
            "sessile_queue_seconds", "Time in the router's queue, of the turns that waited", _TTFT_S
        )
        self.ttft_error = Times(
            "sessile_ttft_error_ratio", "How far a first token was from when it was foreseen, as a"
            " share of the time it took", _ERROR,
        )  # fmt: skip
        self.acceptance = Times(
            "sessile_acceptance_length", "Tokens a decoding step, of the turns at replicas that"
            " speculate and tell", _ACCEPTED,
        )  # fmt: skip
        self._errors: deque[float] = deque(maxlen=1000)
        self._first: deque[tuple[float, str, float]] = deque(maxlen=1000)
        self.decisions: Counter[tuple[str, str]] = Counter()
        self.turns: Counter[tuple[str, str]] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self.continued: Counter[str] = Counter()
        self.variants: defaultdict[str, ByVariant] = defaultdict(dict)
        """By served name that has a release, as long as that is one and the same."""
        self.variant_ttft_s = Times(
            "sessile_variant_ttft_seconds", "Time to the first byte, of names that have a release",
            _TTFT_S, "variant",
        )  # fmt: skip
        self._ended: list[Receipt] = []

    def decided(self, policy: str, reason: str) -> None:
        """A turn was sent, or sent again, to a replica."""
        self.decisions[policy, reason] += 1

    def assigned(self, served: str, found: Assignment) -> None:
        """A session of a name that has a release was found its variant."""
        if found.new or found.left is not None:
            figures = self.variants[served].setdefault(found.variant, Figures())
            figures.sessions += found.new
            figures.swapped += found.left is not None

    def finished(self, receipt: Receipt) -> None:
        """A turn has ended, one way or another: it is to be counted, and told of in one line. Those
        of a moment are, together: that costs half as much."""
        self._ended.append(receipt)
        if len(self._ended) == 1:
            soon(self.flush)

    def flush(self) -> None:
        """Count and tell of all that have ended."""
        ended, self._ended = self._ended, []
        for receipt in ended:
            self._count(receipt)

    def _count(self, receipt: Receipt) -> None:
        replica = receipt.replica
        self.turns[receipt.model, receipt.outcome] += 1
        if receipt.continued:
            self.continued[receipt.model] += receipt.continued
        if replica is not None and receipt.ttft_s is not None:
            self.ttft_s.observe(replica, receipt.ttft_s)
            self._first.append((time.monotonic(), replica, receipt.ttft_s))
        if receipt.variant is not None:
            self.variants[receipt.model].setdefault(receipt.variant, Figures()).count(receipt)
            if receipt.ttft_s is not None:
                self.variant_ttft_s.observe(receipt.variant, receipt.ttft_s)
        if replica is not None and receipt.tpot_s is not None:
            self.tpot_s.observe(replica, receipt.tpot_s)
        if replica is not None and receipt.acceptance_length is not None:
            self.acceptance.observe(replica, receipt.acceptance_length)
        if replica is not None and receipt.queue_s:
            self.queue_s.observe(replica, receipt.queue_s)
        if receipt.predicted_ttft_s is not None and receipt.replica_ttft_s and replica is not None:
            off_s = abs(receipt.predicted_ttft_s - receipt.replica_ttft_s)
            self.ttft_error.observe(replica, off_s / receipt.replica_ttft_s)
            self._errors.append(off_s / receipt.replica_ttft_s)
        if log.isEnabledFor(logging.INFO):
            log.handle(_Ended(receipt))

    @property
    def ttft_error_p50(self) -> float | None:
        """The median of that error over the last thousand turns that were foreseen."""
        self.flush()
        return median(self._errors) if self._errors else None

    def first_tokens(self, within_s: float) -> list[tuple[str, float]]:
        """Replica and time to the first token of the turns that ended so shortly ago, of the last
        thousand."""
        self.flush()
        since = time.monotonic() - within_s
        return [(replica, seconds) for at, replica, seconds in self._first if at >= since]


def _short(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.4f}"


class _Ended(logging.LogRecord):
    """A turn's line, made from a record that is made once: that costs a third of a new one."""

    _plain: ClassVar = vars(
        logging.makeLogRecord({"name": log.name, "levelno": logging.INFO, "levelname": "INFO"})
    )

    def __init__(self, receipt: Receipt) -> None:
        vars(self).update(self._plain)
        self._receipt = receipt
        self.created = created = time.time()
        self.msecs = created % 1 * 1000.0

    def getMessage(self) -> str:
        receipt = self._receipt
        return (
            f"turn ended session={receipt.session} turn={receipt.turn} replica={receipt.replica} "
            f"reason={receipt.reason} outcome={receipt.outcome} status={receipt.status} "
            f"prompt_tokens={receipt.prompt_tokens} cached_tokens={receipt.cached_tokens} "
            f"completion_tokens={receipt.completion_tokens} queue_s={_short(receipt.queue_s)} "
            f"ttft_s={_short(receipt.ttft_s)} duration_s={_short(receipt.duration_s)}"
        )
