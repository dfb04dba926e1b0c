"""The child processes of Flower's engine: started quietly, watched, and all gone at the end.

this process ── flower-superlink (127.0.0.1, a free port) ── flower-superexec ── flwr-simulation: ServerApp ── Ray ── sites
└─ flwr run (ships the bundle, then ends)
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from oncofed_shared.errors import Interrupted, LocalProtocolError, OncofedError
from oncofed_shared.processes import Descendants, dies_with_us
from oncofed_shared.storage import write_whole
from oncofed_simulations.flower_job import ask_to_stop, read_outcome

__all__ = ["Supervisor"]

SIMULATION = "flwr-simulation"
START_SECONDS = 120.0
PORTS_TRIED = 3
LOOK_SECONDS = 0.2
PROGRESS_SECONDS = 1.0


class Supervisor:
    """The processes of one `flwr run`.

    Args:
        folder: with the job and the bundle; logs go there.
        nodes: simulated nodes.
        short: folder for Ray's sockets.
        progress: called about once a second.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int,
        environment: Mapping[str, str],
        ray_address: str | None,
        short: Path,
        interrupted: Callable[[], bool],
        progress: Callable[[], None],
    ) -> None:
        self._folder, self._nodes, self._ray_address = folder, nodes, ray_address
        self._interrupted, self._progress = interrupted, progress
        self._log = folder / "flower.log"
        self._ours = Descendants()
        self._environment = self._made(environment, short)

    def run(self) -> None:
        """Start everything, wait for the outcome, end everything.

        Raises:
            OncofedError: what the ServerApp says that it ended with, or that it ended without a word.
        """
        try:
            self._start()
            self._submit()
            error = self._outcome()
        finally:
            self._end()
        if error is not None:
            raise error

    # -- start ------------------------------------------------------------------------------------------------------------

    def _made(self, given: Mapping[str, str], short: Path) -> dict[str, str]:
        inherited = {k: v for k, v in given.items() if k != "RAY_ADDRESS"}
        # Flower finds its own programs by PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
        ours = {
            "PATH": path,
            "FLWR_HOME": str(self._folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A hospital's proxy is not for talking to oneself.
            "NO_PROXY": ",".join(filter(None, ["127.0.0.1,localhost", given.get("NO_PROXY", given.get("no_proxy"))])),
            # Sockets live below it, and a socket's path has 107 bytes.
            "RAY_TMPDIR": str(short),
        }
        if self._ray_address is not None:
            ours["RAY_ADDRESS"] = self._ray_address
        else:
            # Ray's own switch for laptops: listen on 127.0.0.1 alone. And whoever else is on this machine needs a token.
            ours |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ours["no_proxy"] = ours["NO_PROXY"]
        return inherited | ours

    def _popen(self, *words: str) -> subprocess.Popen[bytes]:
        """One of Flower's programs, in a session of its own so that Ctrl-C in a terminal reaches only us."""
        program = str(Path(sys.executable).with_name(words[0]))
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                dies_with_us([program, *words[1:]]),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start(self) -> None:
        """A SuperLink that answers. Another process may take a free port first; then another port."""
        for _ in range(PORTS_TRIED):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            config = f'[superlink]\ndefault = "o"\n\n[superlink.o]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
            write_whole(self._folder / "home" / "config.toml", config.encode())
            options = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
            link = self._popen("flower-superlink", *options, "--disable-runtime-dependency-installation")
            for _ in self._waiting("Flower's SuperLink does not answer"):
                if link.poll() is not None:
                    break
                if _listens(link.pid, port):
                    return
        raise LocalProtocolError(f"Flower's SuperLink does not start; see {self._log}")

    def _submit(self) -> None:
        settings = {"num-supernodes": self._nodes, "client-resources-num-cpus": 1, "init-args-log-to-driver": "false"}
        if self._ray_address is None:
            settings["init-args-num-cpus"] = min(self._nodes, os.cpu_count() or 1)
        text = " ".join(f"{k}={v}" for k, v in settings.items())
        client = self._popen("flwr", "run", str(self._folder / "bundle"), "o", "--federation-config", text)
        for _ in self._waiting("'flwr run' does not end"):
            if client.poll() is not None:
                break
        if client.returncode:
            raise LocalProtocolError(f"'flwr run' ended with {client.returncode}; see {self._log}")

    def _waiting(self, what: str) -> Iterator[None]:
        """Moments, until it takes too long or a person stops it."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._interrupted():
                raise Interrupted("stopped before the first round; --resume goes on from there")
            yield
            time.sleep(LOOK_SECONDS / 4)
        raise LocalProtocolError(f"{what}; see {self._log}")

    # -- wait -------------------------------------------------------------------------------------------------------------

    def _outcome(self) -> OncofedError | None:
        """How the ServerApp says that it ended, or what is known when it did not say."""
        started = told = time.monotonic()
        asked = seen = False
        while True:
            alive = bool(self._simulation())
            # In this order: one that is gone has written its outcome before.
            ended, error = read_outcome(self._folder)
            if ended:
                self._progress()
                return error
            seen = seen or alive
            if not alive and (seen or time.monotonic() - started > START_SECONDS):
                raise LocalProtocolError(self._post_mortem())
            if not asked and self._interrupted():
                ask_to_stop(self._folder)
                asked = True
            if time.monotonic() - told > PROGRESS_SECONDS:
                self._progress()
                told = time.monotonic()
            time.sleep(LOOK_SECONDS)

    def _simulation(self) -> list[psutil.Process]:
        return self._ours.named(SIMULATION)

    def _post_mortem(self) -> str:
        """Ask Flower what became of the run; its log goes beside ours."""
        run, status = "", "nobody knows why"
        with contextlib.suppress(OSError, ValueError, LookupError, subprocess.SubprocessError):
            entry = json.loads(self._ask("ls", "o", "--format", "json"))["runs"][0]
            run, status = str(entry["run-id"]), str(entry["status"])
            (self._folder / "run.log").write_text(self._ask("log", run, "o", "--show"), encoding="utf-8")
        return f"Flower's engine ended before the study ({status}); see the logs in {self._folder}"

    def _ask(self, *words: str) -> str:
        program = str(Path(sys.executable).with_name("flwr"))
        asked = subprocess.run(  # noqa: S603
            [program, *words], env=self._environment, capture_output=True, text=True, timeout=30, check=False
        )
        return asked.stdout

    # -- end --------------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Leave no process. What counts is on disk by now, so nobody is asked politely but the user of another's cluster."""
        try:
            if self._ray_address is not None:
                self._ours.end(self._simulation, patience=10.0)
        finally:
            self._ours.kill()


def _listens(pid: int, port: int) -> bool:
    """Whether it is this process that has the port, and not one that was faster."""
    with contextlib.suppress(psutil.Error):
        return any(
            c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections()
        )
    return False
