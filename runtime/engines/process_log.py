"""The file that holds what a replica writes: of two files of a bounded size the newer."""

from pathlib import Path

_MOST_BYTES = 16 * 2**20


class ProcessLog:
    """Appends lines; made for one start of `sessile up`, whose first line empties the file.

    At `most_bytes` the file becomes `NAME.log.1`, in place of the one before, and a new one is
    begun. A full disk loses lines, and stops nothing.
    """

    def __init__(self, path: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._written: int | None = None

    def write(self, line: str) -> None:
        """Append `line`."""
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            if self._written is None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._path.write_bytes(b"")
                self._written = 0
            elif self._written + len(data) > self._most_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._written = 0
            with self._path.open("ab") as file:
                file.write(data)
            self._written += len(data)
        except OSError:
            return
