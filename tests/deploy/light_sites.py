"""Many sites on one machine, whose processes are light: all doors live in one process, all gates are copies of one parent.

Real at each of them: data, state folder, identity, ledger, door and socket; SuperNode, SuperExec and a relay for each message, the
gate's key and its TLS session. Left out: a fence, a supervisor and a network namespace for each, a daemon process for each.
SuperExecs look for work every two seconds and not ten times a second, which fifty would use two cores up for.

`python light_sites.py doors ROWS` or `gates ROWS`: a file with a row for each site.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

from oncofed_client.gate import flower_parent
from oncofed_client.gate.node import open_gate

POLL = "2"


def doors(rows: list[dict[str, Any]]) -> None:
    """Serve every site's door on its socket until SIGTERM."""
    from oncofed_client.daemon import Daemon, own_socket  # noqa: PLC0415 - torch
    from oncofed_client.door import open_door  # noqa: PLC0415
    from oncofed_client.whereabouts import site_place  # noqa: PLC0415

    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        for row in rows:
            place, socket = site_place(Path(row["data"])), Path(row["socket"])
            stack.enter_context(own_socket(socket))
            daemon = Daemon(socket, lambda place=place: open_door(place.data, place.state, clock=time.time))
            stack.callback(daemon.stop, 5.0)
        print("doors are open", flush=True)
        stop.wait()


def gates(rows: list[dict[str, Any]]) -> None:
    """Run a SuperNode and a SuperExec for every site, and relays for all of them, until SIGTERM."""
    os.environ["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = POLL
    pipe = flower_parent._pipe(Path.home())
    commands = flower_parent._imported()
    homes: dict[str, str] = {}
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    gc.collect()
    gc.freeze()

    def copy(home: str, *words: str) -> int:
        child = os.fork()
        if child == 0:
            os.close(pipe)
            os.environ["FLWR_HOME"] = home
            flower_parent._become(commands[words[0]], words)
        return child

    for row in rows:
        home = Path(row["home"])
        gate = open_gate(Path(row["state"]), home=home, socket=Path(row["socket"]))
        words = list(gate.command())
        words = words[words.index("flower-supernode") :]
        node = copy(str(home / "flower"), *words, "--port", str(row["port"]), "--isolation", "process")
        while not flower_parent._answers(row["port"]):
            time.sleep(0.02)
        address = f"127.0.0.1:{row['port']}"
        asks = ("flower-superexec", "--insecure", "--runtime-api-address", address, "--parent-pid", str(node))
        homes[str(copy(str(home / "flower"), *asks))] = str(home / "flower")
    print("gates are open", flush=True)
    kept = bytearray()
    while not stop.is_set():
        if select.select([pipe], [], [], 0.2)[0]:
            kept += os.read(pipe, 1 << 16)
            for words in flower_parent.complete(kept):
                # A relay says whose it is by the process that asked for it.
                copy(homes[words[words.index("--parent-pid") + 1]], "flwr-clientapp", *words)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    {"doors": doors, "gates": gates}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
