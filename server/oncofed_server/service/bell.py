"""The bell: a gate that asks for messages waits here until there is one, instead of asking again every three seconds.

Flower's SuperNode (1.41) asks for messages, and where there is none it sleeps for three seconds. It follows redirections (307), so
its question is kept waiting here and then sent on to `NOW`, where the SuperLink answers it. The bell never asks in a gate's
place: a message is handed out only on a connection that is alive, as without a bell.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import gates
from oncofed_shared.errors import OncofedError

__all__ = ["HOLD", "NOW", "PORT_FILE", "Bell", "Ringer", "Waiting"]

NOW = "/v1/fleet/pull-messages/now"
"""Where a question is sent on to; the proxy passes it to the SuperLink."""
PORT_FILE = "bell.port"
KEY = "flwr-public-key"
"""The header in which a SuperNode shows its public key; the SuperLink checks that the key is its own."""
HOLD = 20.0
"""Seconds that a question waits at most; Flower's client gives up after 30."""
_AGAIN = 1.0
_LONGEST = 256
# No site is called this; the bell says it to itself.
_END = ""


class Waiting:
    """Who waits, and for whom it has rung.

    Guarantees:
        - Of each site at most one question waits: the newest.
        - A ring for a site that does not wait lets its next question through at once.
    """

    def __init__(self, hold: float = HOLD) -> None:
        self._hold, self._lock = hold, threading.Lock()
        self._held: dict[str, threading.Event] = {}
        self._quiet: set[str] = set()

    def wait(self, site: str) -> None:
        """Return when it rings for a site, or after a while, or at once if it has rung since the last time."""
        with self._lock:
            if site not in self._quiet:
                self._quiet.add(site)
                return
            before, mine = self._held.get(site), threading.Event()
            self._held[site] = mine
        if before is not None:
            before.set()
        mine.wait(self._hold)
        with self._lock:
            if self._held.get(site) is mine:
                del self._held[site]

    def ring(self, site: str) -> None:
        """Let a site through: there is something for it."""
        with self._lock:
            held = self._held.pop(site, None)
            if held is None:
                self._quiet.discard(site)
        if held is not None:
            held.set()

    def ring_all(self) -> None:
        """Let everybody through."""
        with self._lock:
            held, self._held = self._held, {}
            self._quiet.clear()
        for each in held.values():
            each.set()


class Bell:
    """The bell of one aggregator, on a port of 127.0.0.1 that `start` has chosen: TCP for who waits, UDP for who rings.

    Guarantees:
        - Whoever is not enrolled does not wait: what he asks is sent on at once, for the SuperLink to refuse.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, self.waiting = folder, Waiting()
        self._known: dict[bytes, str] = {}
        self._read = 0.0
        self._over = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Serve until left. Without a port, or with one that is taken, the proxy does without a bell."""
        port = _port(self._folder)
        with contextlib.ExitStack() as stack:
            try:
                rings = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                rings.bind(("127.0.0.1", port or 0))
                server = stack.enter_context(_Server(rings.getsockname(), _handler(self)))
            except OSError:
                port = None
            if port is not None:
                hears = threading.Thread(target=self._hear, args=(rings,), daemon=True)
                serves = threading.Thread(target=server.serve_forever, daemon=True)
                for thread in (hears, serves):
                    thread.start()
                    stack.callback(thread.join)
                stack.callback(server.shutdown)
                stack.callback(Ringer(self._folder).ring, _END)
                stack.callback(self.waiting.ring_all)
            self._over = False
            yield
            self._over = True

    def site_of(self, shown: str) -> str | None:
        """Whose gate shows a key; None for a stranger."""
        try:
            key = base64.b64decode(shown, validate=True)
        except (binascii.Error, ValueError):
            return None
        if key not in self._known and time.monotonic() - self._read > _AGAIN:
            self._read = time.monotonic()
            with contextlib.suppress(OncofedError, OSError):
                self._known = gates(self._folder, now=time.time())
        return self._known.get(key)

    def _hear(self, rings: socket.socket) -> None:
        while (site := rings.recv(_LONGEST).decode(errors="replace")) != _END or not self._over:
            self.waiting.ring(site)


class Ringer:
    """Rings the bell of an aggregator, from another process. Where there is no bell nothing happens."""

    def __init__(self, folder: Folder) -> None:
        self._port = _port(folder)

    def ring(self, site: str) -> None:
        """Say that there is a message for a site."""
        if self._port is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(site.encode(), ("127.0.0.1", self._port))


def _port(folder: Folder) -> int | None:
    path = folder.run / PORT_FILE
    return int(path.read_text()) if path.exists() else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def _handler(bell: Bell) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_POST(self) -> None:
            site = bell.site_of(self.headers.get(KEY, ""))
            if site is not None:
                bell.waiting.wait(site)
            with contextlib.suppress(OSError):
                self.send_response(HTTPStatus.TEMPORARY_REDIRECT)
                self.send_header("Location", NOW)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Say nothing: the SuperLink has the line."""

    return Handler
