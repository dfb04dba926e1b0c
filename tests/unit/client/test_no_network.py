"""A process without a network: no socket call of it reaches anybody, and Unix sockets go on working."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from oncofed_client.no_network import interfaces

TRY = """
import socket, sys
from oncofed_client.no_network import interfaces
def fails(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(3)
        try:
            one.connect(address)
        except OSError:
            return "refused"
        return "reached"
print(interfaces(), fails(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), fails(socket.AF_UNIX, sys.argv[2]))
"""


@pytest.fixture
def listeners(tmp_path, monkeypatch):
    # A socket's path is short when it is relative.
    monkeypatch.chdir(tmp_path)
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind("local.sock")
        unix.listen()
        yield str(tcp.getsockname()[1]), "local.sock"


def tried(words: list[str], listeners: tuple[str, str]) -> str:
    python = [sys.executable, *words, sys.executable] if words else [sys.executable]
    return subprocess.run([*python, "-c", TRY, *listeners], capture_output=True, text=True, check=True).stdout.strip()


def may_leave() -> bool:
    words = [sys.executable, "-m", "oncofed_client.no_network", sys.executable, "-c"]
    asked = "from oncofed_client.no_network import interfaces; print(len(interfaces()))"
    return subprocess.run([*words, asked], capture_output=True, text=True, check=False).stdout == "0\n"


@pytest.mark.skipif(not may_leave(), reason="this machine lets no process leave its network")
def test_after_leaving_only_unix_sockets_reach_anybody(listeners):
    assert tried([], listeners) == f"{interfaces()} reached reached"
    assert "lo" in interfaces()
    assert tried(["-m", "oncofed_client.no_network"], listeners) == "() refused reached"


@pytest.mark.skipif(not may_leave(), reason="this machine lets no process leave its network")
def test_the_program_that_it_becomes_has_its_words_and_its_code():
    words = [
        sys.executable,
        "-m",
        "oncofed_client.no_network",
        sys.executable,
        "-c",
        "import sys; sys.exit(len(sys.argv))",
    ]
    assert subprocess.run([*words, "a", "b"], check=False).returncode == 3
