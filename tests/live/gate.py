"""A door before a real replica, which a test can shut as if the replica had been killed."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit

_TURN = b"POST /v1/chat/completions "


class Gate:
    """Passes TCP on to a replica, byte for byte, from a port of its own. Thread-safe."""

    def __init__(self, replica_url: str) -> None:
        parts = urlsplit(replica_url)
        assert parts.hostname and parts.port, f"{replica_url!r} is not http://HOST:PORT"
        self._target = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._armed = False
        self._listener: socket.socket | None = None
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        """Where the replica seems to be."""
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Let connections through, on the same port as before."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
            self._start(self._accept, self._listener)

    def shut(self) -> None:
        """Break every connection and refuse new ones, as the end of a process does."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _close(each)

    def shut_at_next_turn(self) -> None:
        """Shut as soon as a turn has been passed on to the replica, before any answer."""
        self._armed = True

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            self._start(self._pump, near, far)
            self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if self._armed and _TURN in data:
                    self._armed = False
                    self.shut()
        with self._lock:
            self._sockets -= {source, sink}
        _close(source)
        _close(sink)

    @staticmethod
    def _start(target: object, *arguments: socket.socket) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
