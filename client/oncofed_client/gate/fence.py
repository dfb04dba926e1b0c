"""What has the network reaches the aggregator, and nobody else.

The SuperNode, and whatever an aggregator ships into it, runs in a network namespace with a loopback and nothing behind it. What
connects there to the aggregator, or asks the proxy there for it, is handed as an open socket to `Way`, which has the machine's
network and opens connections to the aggregator's address alone.

`python -m oncofed_client.gate.fence FD HOST:PORT WORDS...` builds the fence and becomes the program of these words; where it
cannot, it says so and starts nothing. Without words it says by its exit code whether it could.
"""

from __future__ import annotations

import array
import base64
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from threading import Thread
from urllib.parse import unquote, urlsplit

from oncofed_client.no_network import leave_network
from oncofed_shared.errors import ExitCode

__all__ = ["Fence", "Way", "apart", "can_be_fenced", "fenced"]

LONGEST_ASK = 8192
PATIENCE = 30.0
PIECE = 1 << 16
# netdevice(7): set the flags of an interface; the first says that it is up.
_SET_FLAGS, _UP = 0x8914, 1
_DIE_WITH_PARENT = 1
_DIRECT, _ASKED = b"D", b"A"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Fence(Enum):
    """What holds a gate to the aggregator's address: a network of its own, or its unit, container or firewall."""

    OWN = "own"
    UNIT = "unit"


def apart(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, or of `[v6]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Way:
    """The way out of a fence: to one address.

    Args:
        address: the aggregator's, host:port.
        environment: with a hospital's proxy, if it has one.
        say: told what is refused.

    Guarantees:
        - No connection is opened but to the address, or to the hospital's proxy with a request for the address.
    """

    def __init__(self, address: str, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.address, self._say = address, say
        host, _ = apart(address)
        open_to = {h.strip() for h in environment.get("NO_PROXY", environment.get("no_proxy", "")).split(",")}
        asked = environment.get("HTTPS_PROXY", environment.get("https_proxy", ""))
        self._proxy = urlsplit(asked) if asked and host not in open_to | {"127.0.0.1", "localhost"} else None
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Open nothing more."""
        for end in (self._ours, self.theirs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self) -> None:
        while True:
            try:
                kind, descriptors, _, _ = socket.recv_fds(self._ours, 1, 1)
            except OSError:
                return
            if not kind and not descriptors:
                return
            for descriptor in descriptors:
                Thread(target=self._open, args=(kind, descriptor), daemon=True).start()

    def _open(self, kind: bytes, descriptor: int) -> None:
        try:
            inner = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            return
        with inner:
            try:
                inner.settimeout(PATIENCE)
                if kind == _ASKED and not self._wants(inner):
                    inner.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                with self._connected() as outer:
                    if kind == _ASKED:
                        inner.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    _pump(inner, outer)
            except OSError as error:
                self._say(f"gate: the way to {self.address}: {type(error).__name__}")

    def _wants(self, inner: socket.socket) -> bool:
        """Whether what asks for a way asks for the aggregator's address."""
        words = _head(inner).split(b"\r\n")[0].split()
        if len(words) == 3 and words[0] == b"CONNECT" and words[1] == self.address.encode():
            return True
        self._say("gate: something in it asked for another address than the aggregator's, and was refused")
        return False

    def _connected(self) -> socket.socket:
        if self._proxy is None:
            outer = socket.create_connection(apart(self.address), timeout=PATIENCE)
        else:
            outer = socket.create_connection((self._proxy.hostname or "", self._proxy.port or 80), timeout=PATIENCE)
            lines = [f"CONNECT {self.address} HTTP/1.1", f"Host: {self.address}"]
            if self._proxy.username is not None:
                pair = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
                lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
            outer.sendall("\r\n".join([*lines, "", ""]).encode())
            if _head(outer).split(b"\r\n")[0].split()[1:2] != [b"200"]:
                outer.close()
                raise ConnectionRefusedError
        return outer


def _head(connection: socket.socket) -> bytes:
    """Bytes up to an empty line, and none behind it.

    Raises:
        ConnectionError: the other side ends before, or says too much.
    """
    found = bytearray()
    while not found.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte or len(found) > LONGEST_ASK:
            raise ConnectionAbortedError
        found += byte
    return bytes(found)


def _pump(first: socket.socket, second: socket.socket) -> None:
    """Carry bytes both ways until both sides have ended."""
    for end in (first, second):
        end.settimeout(None)
    back = Thread(target=_carry, args=(second, first), daemon=True)
    back.start()
    _carry(first, second)
    back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def can_be_fenced(*, user: int | None = None, group: int | None = None) -> bool:
    """Whether this machine lets a program have a network of its own; a child tries it.

    Args:
        user: whom the program will run as; without it, as this process.
        group: likewise.
    """
    words = [sys.executable, "-m", "oncofed_client.gate.fence"]
    ended = subprocess.run(words, check=False, capture_output=True, user=user, group=group)  # noqa: S603 - our own words
    return ended.returncode == 0


def _own_network() -> None:
    """Leave the machine's network for one with a loopback.

    Raises:
        PermissionError: the kernel gives no such network; this process is as it was, or in a network in which nothing works.
    """
    if not leave_network():
        raise PermissionError
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


def fenced(descriptor: int, address: str) -> list[str]:
    """Leave the machine's network for one in which there is the way to the address alone.

    Args:
        descriptor: `Way.theirs` of whoever started us.

    Returns:
        Words to put before those of what runs inside.

    Raises:
        OSError: the kernel gives no network of its own.

    Guarantees:
        - What this process becomes after it has the way and a loopback, and no other network.
        - Where there is no fence nothing is started.
    """
    _own_network()
    proxy = socket.create_server(("127.0.0.1", 0))
    listeners = {proxy: _ASKED}
    host, port = apart(address)
    if host in {"127.0.0.1", "localhost"}:
        # No proxy is asked for what is on this machine; inside, this is where it is.
        listeners[socket.create_server(("127.0.0.1", port))] = _DIRECT
    way = socket.socket(fileno=descriptor)
    if os.fork() == 0:
        _hand_over(listeners, way)
    own = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    for listener in listeners:
        listener.close()
    way.close()
    without = [word for name in (*_PROXIES, *map(str.lower, _PROXIES)) for word in ("-u", name)]
    return ["/usr/bin/env", *without, f"HTTPS_PROXY={own}", f"https_proxy={own}"]


def _hand_over(listeners: Mapping[socket.socket, bytes], way: socket.socket) -> None:
    """Hand each connection to whoever has the network, until the program that we belong to ends."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    def accept(listener: socket.socket, kind: bytes) -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                rights = array.array("i", [connection.fileno()])
                way.sendmsg([kind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    threads = [Thread(target=accept, args=pair, daemon=True) for pair in listeners.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


if __name__ == "__main__":
    try:
        if not sys.argv[1:]:
            _own_network()
            sys.exit()
        words = [*fenced(int(sys.argv[1]), sys.argv[2]), *sys.argv[3:]]
    except OSError:
        sys.stderr.write("gate: the kernel gives it no network of its own, so nothing is started\n")
        sys.exit(ExitCode.INPUT)
    os.execv(words[0], words)  # noqa: S606 - the words of whoever starts us
