"""How the log is written: to standard error, the lines of a moment together."""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TextIO

_MOMENT_S = 0.05


def soon(do: Callable[[], None]) -> None:
    """Do it in a moment, or now where no loop runs."""
    try:
        asyncio.get_running_loop().call_later(_MOMENT_S, do)
    except RuntimeError:
        do()


class _Handler(logging.StreamHandler[TextIO]):
    """Makes and writes the lines of a moment together, which costs far less than one by one, and
    warnings at once."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self.flush()
        elif len(self._records) == 1:
            soon(self.flush)

    def flush(self) -> None:
        with self.lock or nullcontext():
            records, self._records = self._records, []
            lines = []
            for record in records:
                try:
                    lines.append(self.format(record) + "\n")
                except Exception:  # a line that cannot be made never fails what it tells of
                    self.handleError(record)
            try:
                self.stream.write("".join(lines))
                self.stream.flush()
            except Exception:  # nor does one that cannot be written
                if records:
                    self.handleError(records[-1])


class _ConsoleFormatter(logging.Formatter):
    """One line for people; the time of day is put together once a second."""

    _second = -1
    _shown = ""

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info or record.stack_info:
            return super().format(record)
        shown = self.formatTime(record, self.datefmt)
        return f"{shown} {record.levelname:<7} {record.name} {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._shown = second, super().formatTime(record, datefmt)
        return self._shown


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; `key=value` pairs stay in `message`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logs(format_: str, level: str) -> None:
    """Write the log of `sessile` and of the server to standard error, as `format_` says."""
    # A record's thread, process and caller are never shown; finding them costs 5 us a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _Handler(sys.stderr)
    if format_ == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(
            _ConsoleFormatter("%(asctime)s %(levelname)-7s %(name)s %(message)s", "%H:%M:%S")
        )
    for name in ("sessile", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper() if name == "sessile" else logging.WARNING)
