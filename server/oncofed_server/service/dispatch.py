"""The dispatcher: registers nodes at the SuperLink, and sees that every study that is wanted has a Flower run that drives it.

A Flower run is not resumed: Flower loses it when the SuperLink or the ServerApp dies. A study is: its journal says where it
stands. So a new run is submitted whenever nobody holds a study's lock, until the study has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import oncofed_server
from oncofed_server.service.bell import Bell, Ringer
from oncofed_server.service.folder import Folder
from oncofed_server.service.programs import CONNECTION, superlink_port
from oncofed_server.service.registry import gate_keys
from oncofed_server.service.running import Seen, keep_nodes, read_nodes
from oncofed_server.service.studies import ENDED, StudyFolder, Wanted, all_studies
from oncofed_shared.errors import OncofedError
from oncofed_shared.keeping import Note
from oncofed_shared.log_lines import LONGEST
from oncofed_shared.storage import dump_json, write_whole
from oncofed_shared.told import Stop

__all__ = ["SEE_NODES", "SEE_SOON", "Dispatcher", "rest_after"]

LOOK = 0.3
SEE_SOON, SEE_NODES = 8.0, 60.0
"""Seconds from a change of who is connected to the next look; twice as long after each look without one, up to the second."""
GRACE = 60.0
"""Seconds that a submitted run has until its ServerApp holds the study's lock."""
MOST_DEATHS = 10
"""Runs in a row that may die without a single new event in the journal; then a person has to look."""
CALL_SECONDS = 60.0
MOST_LOG = 32 << 20
"""Bytes of a program's log: Flower writes a line for every request."""
BUNDLE = Path(oncofed_server.__file__).with_name("bundle")


def rest_after(rest: float, before: Mapping[str, Seen], seen: Mapping[str, Seen]) -> float:
    """Seconds from a look at who is connected to the next: after a start gates come one by one, and then stay for weeks."""
    changed = {s for s, f in before.items() if f.online} != {s for s, f in seen.items() if f.online}
    return SEE_SOON if changed else min(2 * rest, SEE_NODES)


@dataclass(kw_only=True)
class _Runs:
    """What the dispatcher knows of a study's runs."""

    submitted: float = -1e9
    seen: bool = False
    deaths: int = 0
    events: int = -1
    due: float = 0.0


@dataclass(kw_only=True)
class Dispatcher:
    """One aggregator's dispatcher; `run` returns when `stop` is set.

    Attributes:
        environment: of Flower's client.
        say: told what happens, as events with facts.
    """

    folder: Folder
    environment: Mapping[str, str]
    stop: Stop
    say: Note
    _runs: dict[str, _Runs] = field(default_factory=dict)
    _told: tuple[str, str] = ("", "")
    _reloaded: float = 0.0
    _listing: subprocess.Popen[str] | None = None
    _listed: float = -1e9
    _rest: float = SEE_SOON

    def run(self) -> None:
        """Look, act, rest; a mistake in one study or one call ends neither the loop nor the others."""
        try:
            with Bell(self.folder).listening():
                self._look()
        finally:
            if self._listing is not None:
                self._listing.kill()
                self._listing.communicate()

    def _look(self) -> None:
        while not self.stop.wait(LOOK):
            try:
                self._renewed_certificate()
                self._shorten_logs()
                self._look_after_superexec()
                if self._superlink_answers():
                    self._register()
                    self._see_nodes()
                    for study in all_studies(self.folder):
                        self._tend(study)
            except (OncofedError, OSError, subprocess.SubprocessError) as error:
                self._tell_once("dispatcher.failed", text=str(error))

    def _tell_once(self, event: str, *, text: str) -> None:
        if (event, text) != self._told:
            self._told = (event, text)
            self.say(event, text=text)

    def _look_after_superexec(self) -> None:
        """End a SuperLink whose SuperExec is dead: Flower starts none anew, and no run would ever begin. `start` starts another.

        Seen under a load in which SQLite answered "database is locked": SuperExec ends on the first answer that it does not expect.
        """
        with contextlib.suppress(psutil.Error):
            beside = psutil.Process(os.getpid()).parent()
            for program in beside.children() if beside is not None else ():
                if not any(part.endswith("flower-superlink") for part in program.cmdline()[:3]):
                    continue
                found = [c for c in program.children() if c.name().startswith("flower-superexe")]
                if found and all(c.status() == psutil.STATUS_ZOMBIE for c in found):
                    program.terminate()
                    self.say("SuperLink: its SuperExec has died; it is started again")

    def _superlink_answers(self) -> bool:
        port = superlink_port(self.folder)
        if port is None:
            return False
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return True
        except OSError:
            return False

    def _renewed_certificate(self) -> None:
        """Let the proxy read a certificate that is newer than itself; connections go on."""
        pid_file = self.folder.run / "proxy" / "nginx.pid"
        if not pid_file.exists():
            return
        made = (self.folder.keys / "server.crt").stat().st_mtime
        if made <= max(pid_file.stat().st_mtime, self._reloaded):
            return
        with contextlib.suppress(psutil.Error, ValueError):
            proxy = psutil.Process(int(pid_file.read_text()))
            # A process id may have become somebody else's.
            if "nginx" in proxy.name():
                proxy.send_signal(signal.SIGHUP)
                self._reloaded = made
                self.say("certificate.taken", program="proxy")

    def _shorten_logs(self) -> None:
        """Keep the newest part of each program's log and one part before it; they are written at their end, wherever that is."""
        for log in self.folder.run.glob("*.log"):
            if log.stat().st_size > MOST_LOG:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)

    # -- nodes ----------------------------------------------------------------------------------------------------------------

    @property
    def _register_file(self) -> Path:
        return self.folder.run / "registered.json"

    def _register(self) -> None:
        """Register the gates of all that are enrolled; take out those of revoked sites, and keys that were replaced a while ago."""
        known: dict[str, Any] = {}
        if self._register_file.exists() and (self.folder.run / "superlink.db").exists():
            known = json.loads(self._register_file.read_bytes())
        wanted = gate_keys(self.folder, now=time.time())
        for key, site in wanted.items():
            if key not in known:
                known[key] = {"site": site, "node": self._new_node(site, key)}
                write_whole(self._register_file, dump_json(known))
        for key, entry in known.items():
            if key not in wanted and entry["node"] is not None:
                self._flwr("supernode", "unregister", str(entry["node"]), CONNECTION)
                known[key] = {"site": entry["site"], "node": None}
                self.say("gate.shut-out", site=entry["site"])
                # It waits at the bell: let its question go on to the SuperLink, which refuses it, and the gate ends.
                Ringer(self.folder).ring(entry["site"])
                write_whole(self._register_file, dump_json(known))

    def _new_node(self, site: str, node_key: str) -> int | None:
        path = self.folder.run / "nodes" / f"{site}.pub"
        write_whole(path, f"{node_key}\n".encode())
        told = self._flwr("supernode", "register", str(path), CONNECTION, "--name", site, "--format", "json")
        answer = _last_object(told)
        if not answer.get("success"):
            # Another register file was lost, or this one was not written in time.
            if "already in use" not in told:
                raise OncofedError(f"{site}: its gate cannot be registered: {told.strip()[-300:]}")
            return None
        self.say("gate.let-in", site=site)
        return int(answer["node-id"])

    def _see_nodes(self) -> None:
        """Note which gates are connected; Flower's client takes seconds, in which nothing else waits for it."""
        if self._listing is not None and self._listing.poll() is not None:
            told, _ = self._listing.communicate()
            self._listing = None
            before, seen = read_nodes(self.folder), self._seen_nodes(told, now=time.time())
            keep_nodes(self.folder, seen)
            self._rest = rest_after(self._rest, before, seen)
        if self._listing is None and time.monotonic() - self._listed > self._rest:
            self._listed = time.monotonic()
            program = str(Path(sys.executable).with_name("flwr"))
            self._listing = subprocess.Popen(  # noqa: S603 - our own words
                [program, "supernode", "list", CONNECTION, "--format", "json"],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def _seen_nodes(self, told: str, *, now: float) -> dict[str, Seen]:
        """Sites of the nodes that Flower's client has listed, and when they were last there."""
        before = read_nodes(self.folder)
        registered = json.loads(self._register_file.read_bytes()) if self._register_file.exists() else {}
        sites = {str(entry["node"]): entry["site"] for entry in registered.values() if entry["node"] is not None}
        try:
            nodes = json.loads(told[told.index("{") :])["nodes"]
        except (ValueError, KeyError):
            return before
        online = {sites.get(str(n["node-id"])): n["status"] == "online" for n in nodes}
        return {
            site: Seen(online=there, at=now if there else before[site].at if site in before else 0.0)
            for site, there in online.items()
            if site is not None
        }

    # -- studies --------------------------------------------------------------------------------------------------------------

    def _tend(self, study: StudyFolder) -> None:
        status, wanted = study.status, study.wanted
        runs = self._runs.setdefault(study.study.id, _Runs())
        wants_count = wanted is Wanted.COUNT and not study.counts.get("finished")
        wants_run = wanted is Wanted.RUN and status.get("phase") not in ENDED
        # Whoever was asked anything is told that nothing more will come.
        wants_end = wanted is Wanted.CANCEL and status.get("phase") not in ENDED and study.journal.exists()
        if not (wants_count or wants_run or wants_end):
            return
        now = time.monotonic()
        if study.driven:
            runs.seen = True
            return
        if not runs.seen and now - runs.submitted < GRACE:
            return
        if runs.seen or runs.submitted > 0:
            self._mourn(study, runs, now)
        if now >= runs.due and study.status.get("phase") not in ENDED:
            self._submit(study)
            runs.submitted, runs.seen = time.monotonic(), False

    def _mourn(self, study: StudyFolder, runs: _Runs, now: float) -> None:
        """A run is gone and the study has not ended: count, and wait a little longer each time that nothing came of it."""
        if runs.submitted < 0:
            return
        events = int(study.status.get("events", 0))
        runs.deaths = 0 if events > runs.events else runs.deaths + 1
        runs.events = events
        runs.due = now + (0.0 if runs.deaths < 2 else min(30.0, 0.5 * 2**runs.deaths))
        runs.submitted, runs.seen = -1e9, False
        self.say("run.gone", study=study.study.name, study_id=study.study.id)
        if runs.deaths >= MOST_DEATHS:
            why = f"{runs.deaths} runs ended without an event; see {self.folder.run}/superlink.log, then `resume`"
            study.tell(study.status | {"phase": "stuck", "why": why})
            runs.deaths = 0

    def _submit(self, study: StudyFolder) -> None:
        config = f"dir={json.dumps(str(self.folder.path))} study={json.dumps(study.study.id)}"
        told = self._flwr("run", str(BUNDLE), CONNECTION, "-c", config)
        self.say("run.submitted", study=study.study.name, study_id=study.study.id)
        if "Traceback" in told or "rror" in told:
            self._tell_once("run.refused", text=told.strip()[-LONGEST:])

    def _flwr(self, *words: str) -> str:
        """What Flower's client says; its exit code says little."""
        program = str(Path(sys.executable).with_name("flwr"))
        asked = subprocess.run(  # noqa: S603 - our own words
            [program, *words],
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        return asked.stdout + asked.stderr


def _last_object(text: str) -> dict[str, Any]:
    """The last JSON object in what a program printed, or an empty one."""
    start = text.rfind("{")
    try:
        found = json.loads(text[start : text.rfind("}") + 1]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
