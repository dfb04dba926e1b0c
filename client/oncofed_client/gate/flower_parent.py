"""The parent of a gate's Flower processes: it imports Flower once; SuperNode, SuperExec and each message's relay are copies of it.

`python -m oncofed_client.gate.flower_parent flower-supernode OPTIONS...`

What runs in the copies are the commands that Flower installs (`flower-supernode`, `flower-superexec`, `flwr-clientapp`), found as
Python finds them for the shell, with the same words. Only the second that each of them takes to import Flower is saved, and its
memory: pages that nobody writes to are there once. SuperExec starts a relay by the name of its command; `bin/flwr-clientapp`
comes first among the programs of the gate and hands the words to this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["RELAYS", "complete", "main"]

RELAYS = "relays"
"""In the gate's home, the pipe on which relays are asked for: how many words, and the words, a line each."""
SUPERNODE, SUPEREXEC, RELAY = "flower-supernode", "flower-superexec", "flwr-clientapp"
_LOOK = 0.2
_SOON = 0.02
_PATIENCE = 20.0
_PAUSE = 1.0
_MOST_WORDS = 32
_PIECE = 1 << 16
_BY_SIGNAL = 128
# From linux/prctl.h.
_DIE_WITH_PARENT, _SET_NAME = 1, 15
_Command = Callable[[], object]


class _Parent:
    """Copies of this process, each of which becomes one of Flower's commands."""

    def __init__(self, commands: dict[str, _Command], pipe: int) -> None:
        self._commands, self._pipe = commands, pipe
        self.stopped = False
        self.running: dict[int, str] = {}
        self.ended: dict[str, int] = {}

    def start(self, words: Sequence[str]) -> int:
        """Start a command; its process id."""
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(self._pipe)
            _become(self._commands[words[0]], words)
        self.running[child] = words[0]
        return child

    def bury(self) -> None:
        """Note who has ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                self.ended[self.running.pop(child, "")] = os.waitstatus_to_exitcode(status)

    def stop(self, *_: object) -> None:
        """Ask SuperNode and SuperExec to end: once, since what is asked a second time ends without a word to the aggregator."""
        self.stopped = True
        for child, name in self.running.items():
            if name != RELAY:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)


def _become(command: _Command, words: Sequence[str]) -> None:
    """Be a command, and end with its code; never returns."""
    code = 1
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        libc.prctl(_SET_NAME, words[0].encode()[:15])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.argv = list(words)
        ended = command()
        code = ended if isinstance(ended, int) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as at the end of any program: its traceback and a code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        # What Flower does at its end it has done before it raised SystemExit.
        os._exit(code)


def complete(kept: bytearray) -> list[list[str]]:
    """Take the whole lists of words out of what was read from the pipe.

    Args:
        kept: what was read and not yet taken; what is left in it waits for more.
    """
    found: list[list[str]] = []
    while True:
        lines = bytes(kept).split(b"\n")
        if len(lines) < 2:
            return found
        if not lines[0].isdigit() or not 0 < (count := int(lines[0])) <= _MOST_WORDS:
            # Nobody of ours wrote this.
            kept.clear()
            return found
        if len(lines) < count + 2:
            return found
        found.append([line.decode(errors="replace") for line in lines[1 : count + 1]])
        del kept[: sum(len(line) + 1 for line in lines[: count + 1])]


def _pipe(home: Path) -> int:
    path = home / RELAYS
    home.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    # Open for writing too, so that it never seems to have ended.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _imported() -> dict[str, _Command]:
    """Flower's commands and our relay, imported."""
    installed = importlib.metadata.distribution("flwr").entry_points.select(group="console_scripts")
    commands = {e.name: e.load() for e in installed if e.name in {SUPERNODE, SUPEREXEC, RELAY}}
    importlib.import_module("oncofed_client.flower_gate")
    return commands


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def main(words: Sequence[str]) -> int:
    """Run a SuperNode, a SuperExec beside it, and relays as they are asked for, until the SuperNode ends.

    Args:
        words: of `flower-supernode`, with the port of its own interface.

    Returns:
        The SuperNode's code; if a signal ended it, 128 and the signal's number.
    """
    given = dict(zip(words[1::2], words[2::2], strict=False))
    port, home = int(given["--port"]), Path.home()
    pipe = _pipe(home)
    parent = _Parent(_imported(), pipe)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, parent.stop)
    # What is there now is never looked at for rubbish again, so the copies' pages stay shared.
    gc.collect()
    gc.freeze()
    node = parent.start([*words, "--isolation", "process"])
    superexec = [SUPEREXEC, "--insecure", "--runtime-api-address", f"127.0.0.1:{port}", "--parent-pid", str(node)]
    kept, due, end = bytearray(), 0.0, float("inf")
    while SUPERNODE not in parent.ended and time.monotonic() < end:
        beside = SUPEREXEC in parent.running.values()
        # One that ended, on an answer of the SuperNode's that it did not expect, is followed by another.
        if not beside and not parent.stopped and time.monotonic() >= due and _answers(port):
            due = time.monotonic() + _PAUSE
            parent.start(superexec)
        if select.select([pipe], [], [], _LOOK if beside else _SOON)[0]:
            kept += os.read(pipe, _PIECE)
            for each in complete(kept):
                parent.start([RELAY, *each])
        parent.bury()
        if parent.stopped:
            end = min(end, time.monotonic() + _PATIENCE)
    parent.stop()
    code = parent.ended.get(SUPERNODE, 1)
    return code if code >= 0 else _BY_SIGNAL - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
