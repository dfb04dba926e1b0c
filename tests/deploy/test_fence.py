"""What runs behind the gate's fence reaches the aggregator's address, by either way, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from threading import Thread

import pytest

from oncofed_client.gate.fence import Way, can_be_fenced

needs_fence = pytest.mark.skipif(not can_be_fenced(), reason="this kernel gives no process a network of its own")

INSIDE = """
import json, os, socket, sys
from urllib.parse import urlsplit
from oncofed_client.no_network import interfaces
allowed, other = sys.argv[1], sys.argv[2]
def heard(host, port, ask=None):
    try:
        with socket.create_connection((host, port), timeout=5) as s:
            s.settimeout(5)
            if ask:
                s.sendall(f"CONNECT {ask} HTTP/1.1\\r\\nHost: {ask}\\r\\n\\r\\n".encode())
                answer = s.recv(12).decode()
                if "200" not in answer: return answer
                while not answer.endswith("\\r\\n\\r\\n"): answer += s.recv(1).decode()
            s.sendall(b"hello")
            return s.recv(100).decode()
    except OSError as error:
        return type(error).__name__
apart = lambda a: (a.split(":")[0], int(a.split(":")[1]))
proxy = urlsplit(os.environ["HTTPS_PROXY"])
print(json.dumps({
    "direct": heard(*apart(allowed)), "asked": heard(proxy.hostname, proxy.port, allowed),
    "other": heard(*apart(other)), "other asked": heard(proxy.hostname, proxy.port, other),
    "elsewhere": heard("192.0.2.1", 443), "interfaces": interfaces(),
    "files": sorted(os.listdir("/proc/self/fd"), key=int), "proxies": [k for k in os.environ if k.upper() == "ALL_PROXY"],
}))
"""


class Echo:
    """A server that says who it is and what it heard."""

    def __init__(self, name: str) -> None:
        self.name, self.listener = name, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard = 0
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.heard += 1
                connection.sendall(f"{self.name}: {connection.recv(100).decode()}".encode())


@pytest.fixture
def servers() -> Iterator[tuple[Echo, Echo]]:
    both = Echo("aggregator"), Echo("other")
    yield both
    for each in both:
        each.listener.close()


def behind(address: str, *words: str, said: list[str]) -> dict[str, object]:
    way = Way(address, {}, said.append)
    try:
        number = way.theirs.fileno()
        start = [sys.executable, "-m", "oncofed_client.gate.fence", str(number), address]
        ended = subprocess.run(
            [*start, sys.executable, "-c", INSIDE, address, *words],
            pass_fds=[number],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "ALL_PROXY": "http://192.0.2.1:3128"},
        )
    finally:
        way.close()
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


@needs_fence
def test_what_an_aggregator_ships_reaches_the_aggregator_and_nobody_else(servers: tuple[Echo, Echo]) -> None:
    aggregator, other = servers
    said: list[str] = []
    found = behind(aggregator.address, other.address, said=said)
    assert found["direct"] == found["asked"] == "aggregator: hello"
    assert found["other"] == "ConnectionRefusedError"
    assert str(found["other asked"]).startswith("HTTP/1.1 403")
    assert found["elsewhere"] in {"OSError", "ConnectionRefusedError", "TimeoutError"}
    assert found["interfaces"] == ["lo"]
    # Neither the way itself nor another address is left to it.
    assert found["proxies"] == []
    assert len(found["files"]) <= 4  # type: ignore[arg-type] - three, and the one that lists them
    assert (aggregator.heard, other.heard) == (2, 0)
    assert said == ["gate: something in it asked for another address than the aggregator's, and was refused"]


def test_a_hospitals_proxy_is_asked_for_the_aggregator_alone(servers: tuple[Echo, Echo]) -> None:
    _, other = servers
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            connection.recv(5)
            connection.sendall(b"through the proxy")

    Thread(target=serve, daemon=True).start()
    way = Way(
        "hub.example:443", {"HTTPS_PROXY": f"http://me:pass@127.0.0.1:{listener.getsockname()[1]}"}, lambda text: None
    )
    inner, theirs = socket.socketpair()
    socket.send_fds(way.theirs, [b"A"], [theirs.fileno()])
    theirs.close()
    with inner:
        inner.settimeout(10)
        inner.sendall(b"CONNECT hub.example:443 HTTP/1.1\r\n\r\n")
        assert inner.recv(100).startswith(b"HTTP/1.1 200")
        inner.sendall(b"hello")
        assert inner.recv(100) == b"through the proxy"
    way.close()
    listener.close()
    assert asked[0].startswith(b"CONNECT hub.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6cGFzcw==" in asked[0]
    assert other.heard == 0
