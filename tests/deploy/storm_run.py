"""A consortium of real processes in a storm: killed at random, cut off, out of space, slow, on a wrong clock, of another version.

Every process that is killed is one of the consortium's own, found below the test's own services and killed by its number.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import typer
from running import STUDIES, Consortium, Hospital, Service, WireTap, new_consortium, ready, tapped, until
from typer.testing import CliRunner

from oncofed_client.__main__ import app as site_app
from oncofed_server.__main__ import app as aggregator_app
from oncofed_shared.signed_study import SignedStudy, read_study
from oncofed_shared.storage import write_whole
from oncofed_simulations.__main__ import app as simulate_app
from oncofed_simulations.synthetic import write_cohort

SITES = ("site-1", "site-2", "site-3")
OPEN, PRIVATE, AGAIN = "consortium", "consortium_private", "consortium_again"
ENDED = {"done", "failed", "stuck"}
SITE_DISK, HUB_DISK = "24m", "400m"
START = "from oncofed_client.__main__ import main; main()"
CLOCK = "import time; right = time.time; time.time = lambda: right() + float(open({0!r}).read()); "
"""A daemon on a clock that is wrong by as many seconds as stand in a file. It reads no other clock for its decisions."""
NEWER = "import oncofed_shared.signed_study as m; m.PROTOCOL += 1; "
"""A daemon of a version to come, which speaks the next protocol."""


class CutWire(WireTap):
    """The way between the sites and the proxy, which can be cut."""

    cut = False

    async def _serve(self, reader: Any, writer: Any) -> None:
        if self.cut:
            writer.transport.abort()
            return
        await super()._serve(reader, writer)

    async def _pipe(self, way: str, reader: Any, writer: Any) -> None:
        # Nothing is kept: hours of it would not fit into memory.
        await super()._pipe(way, reader, writer)
        self.kept.clear()

    def close_all(self) -> None:
        """Cut it."""
        self.cut = True
        self._loop.call_soon_threadsafe(lambda: [w.transport.abort() for w in list(self._open)])


def mounted(folder: Path, size: str) -> bool:
    """Put a small file system of its own at a folder; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fill(folder: Path) -> None:
    """Leave no room on the file system of a folder."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@dataclass(kw_only=True)
class Fault:
    """Something that lasts a while.

    Attributes:
        after: kills before it begins.
        seconds: how long it lasts.
    """

    name: str
    after: int
    seconds: float
    begin: Callable[[], None]
    end: Callable[[], None]
    begun: float = 0.0
    over: bool = False


@dataclass(kw_only=True)
class StormRun:
    """What happened.

    Attributes:
        kills: by kind of process.
        faults: those that were made, with what could not be and why.
        pending: when each daemon that was killed is started again.
    """

    consortium: Consortium
    hub: Service
    wire: CutWire
    ids: dict[str, str]
    chance: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    slow: threading.Event = field(default_factory=threading.Event)
    newer: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def hospitals(self) -> dict[str, Hospital]:
        return self.consortium.hospitals

    def out(self, study: str) -> Path:
        return self.consortium.folder / f"out-{study}"

    def status(self, study: str) -> dict[str, Any]:
        path = self.consortium.hub / "studies" / self.ids[study] / "status.json"
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return {}

    def study(self, name: str) -> SignedStudy:
        return read_study((self.consortium.folder / f"{name}.study").read_bytes(), plan_key=None)

    # -- kills ------------------------------------------------------------------------------------------------------------------

    def victims(self) -> dict[str, tuple[float, list[psutil.Process]]]:
        """What may be killed now: how many seconds apart, and the processes."""
        found: dict[str, tuple[float, list[psutil.Process]]] = {
            "SuperLink": (45.0, self.hub.running("flower-superlink")),
            "ServerApp": (15.0, self.hub.running("flwr-serverapp")),
            "proxy": (8.0, self.hub.running("nginx")),
        }
        for name, hospital in self.hospitals.items():
            alive = hospital.daemon.process is not None and hospital.daemon.process.poll() is None
            daemon = [psutil.Process(hospital.daemon.process.pid)] if alive and hospital.daemon.process else []
            found[f"daemon of {name}"] = (6.0, daemon)
            # The SuperLink holds the session of a gate that is gone for about a minute.
            found[f"gate of {name}"] = (100.0, hospital.gate.running("flower-supernode"))
        return found

    def strike(self) -> None:
        """`kill -9` up to three processes that are there and were left in peace for long enough."""
        now = time.monotonic()
        able = []
        for kind, (apart, processes) in self.victims().items():
            # A program in between waits for its parent's death and then becomes the program.
            with contextlib.suppress(psutil.Error):
                real = [p for p in processes if "-c" not in p.cmdline()[:2] or START in " ".join(p.cmdline()[:3])]
                if real and now - self.last.get(kind, 0.0) > apart:
                    able.append((kind, real[0]))
        for kind, process in self.chance.sample(able, min(len(able), self.chance.randint(1, 3))):
            with contextlib.suppress(psutil.Error):
                process.kill()
                self.kills[kind.split(" of ")[0]] += 1
                self.last[kind] = now

    def tend(self) -> None:
        """What a service manager does: a daemon that has ended is started again after a moment."""
        now = time.monotonic()
        for name, hospital in self.hospitals.items():
            process = hospital.daemon.process
            gone = process is not None and process.poll() is not None
            if gone and now >= self.due.setdefault(name, now + 1.0):
                del self.due[name]
                self.start_daemon(hospital)

    def start_daemon(self, hospital: Hospital) -> None:
        words = hospital.daemon.words
        code = CLOCK.format(str(self.clock)) if hospital.name == SITES[1] else ""
        code += NEWER if hospital.name in self.newer else ""
        hospital.daemon.words = [sys.executable, "-c", code + START, *words[words.index("start") :]]
        hospital.daemon.start()

    def kill_daemon(self, name: str) -> None:
        process = self.hospitals[name].daemon.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(20)

    # -- faults -----------------------------------------------------------------------------------------------------------------

    def crawl(self) -> None:
        """Let the first site's daemon work a tenth of the time."""
        while self.slow.is_set():
            process = self.hospitals[SITES[0]].daemon.process
            for number, pause in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
                with contextlib.suppress(OSError):
                    if process is not None and process.poll() is None:
                        os.kill(process.pid, number)
                time.sleep(pause)

    def hour(self, shift: str) -> None:
        """Set the second site's clock off."""
        write_whole(self.clock, shift.encode())

    @property
    def clock(self) -> Path:
        """By how many seconds the second site's clock is wrong."""
        return self.consortium.short / "clock"

    def upgrade(self, name: str, *, newer: bool) -> None:
        (self.newer.add if newer else self.newer.discard)(name)
        self.kill_daemon(name)

    def plan_faults(self, kills: int, *, disks: bool) -> None:
        site, hub = self.hospitals[SITES[2]].state, self.consortium.hub

        def slowly() -> None:
            self.slow.set()
            threading.Thread(target=self.crawl, name="crawl").start()

        made = [
            Fault(name="a site ten times slower", after=2, seconds=40, begin=slowly, end=self.slow.clear),
            Fault(name="one side upgraded first", after=kills // 6, seconds=25,
                  begin=lambda: self.upgrade(SITES[1], newer=True), end=lambda: self.upgrade(SITES[1], newer=False)),
            Fault(name="no network for 90 s", after=kills // 2, seconds=90,
                  begin=self.wire.close_all, end=lambda: setattr(self.wire, "cut", False)),
        ]  # fmt: skip
        if disks:
            made += [
                Fault(name="a site's disk full", after=kills // 4, seconds=20,
                      begin=partial(fill, site), end=(site / "ballast").unlink),
                Fault(name="the aggregator's disk full", after=kills // 3, seconds=15,
                      begin=partial(fill, hub), end=(hub / "ballast").unlink),
            ]  # fmt: skip
        else:
            self.missing["full disks"] = "a file system of its own cannot be mounted here"
        made.append(
            Fault(name="a clock five minutes slow", after=2 * kills // 3, seconds=20,
                  begin=partial(self.hour, "-300"), end=partial(self.hour, "0"))
        )  # fmt: skip
        self.faults = made

    def weather(self) -> bool:
        """Begin and end faults; whether one goes on, or is still to come."""
        now = time.monotonic()
        for fault in self.faults:
            if not fault.begun and self.kills.total() >= fault.after:
                fault.begun = now
                fault.begin()
            elif fault.begun and not fault.over and now - fault.begun > fault.seconds:
                fault.end()
                fault.over = True
        return not all(f.over for f in self.faults)

    def calm(self) -> None:
        """End whatever goes on."""
        for fault in self.faults:
            if fault.begun and not fault.over:
                fault.end()
                fault.over = True

    # -- how it goes --------------------------------------------------------------------------------------------------------------

    def phases(self) -> dict[str, str]:
        return {name: str(self.status(name).get("phase")) for name in self.ids}

    def follow(self, *, kills: int, seconds: float, patience: float) -> None:
        """Strike until so many were killed and so many seconds have passed; then wait for the studies to end."""
        end = time.monotonic() + patience
        start = time.monotonic()
        while True:
            self.tend()
            coming = self.weather()
            phases = self.phases()
            for name, phase in phases.items():
                if phase in ENDED:
                    self.seconds.setdefault(name, round(time.monotonic() - start, 1))
            stormy = self.kills.total() < kills or time.monotonic() - start < seconds
            if set(phases.values()) <= ENDED:
                return
            if stormy or coming:
                if stormy:
                    self.strike()
            else:
                self.seconds.setdefault("storm", round(time.monotonic() - start, 1))
            assert time.monotonic() < end, f"the studies do not end: {phases}\n{self.consortium.logs()}"
            time.sleep(self.chance.uniform(0.5, 2.0))


def variant(name: str, source: str, folder: Path, **numbers: object) -> Path:
    """A study's file with other numbers in it, and another name."""
    text = (STUDIES / f"{source}.toml").read_text().replace(f'name = "{source}"', f'name = "{name}"')
    for key, value in numbers.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in text.splitlines()]
        text = "\n".join(lines) + "\n"
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def here(app: typer.Typer, *words: object) -> None:
    """A command in this process: a new one for each would cost more than the storm."""
    done = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def enrol(consortium: Consortium, studies: list[Path]) -> None:
    """From nothing to three enrolled sites and approved studies."""
    folder, hub, key = consortium.folder, ("--dir", consortium.hub), consortium.plan_key
    address = ("--address", f"127.0.0.1:{consortium.port}", "--listen", f"127.0.0.1:{consortium.listen}")
    here(aggregator_app, "plan-key", "--out", key)
    here(aggregator_app, "init", consortium.hub, "--name", "hub", *address, "--plan-key", key.with_suffix(".pub"))
    for name in SITES:
        data, request, answer = folder / "sites" / name, folder / f"{name}.request", folder / f"{name}.answer"
        here(site_app, "enrol", "request", data, "--out", request)
        here(aggregator_app, "enrol", request, "--out", answer, *hub)
        here(site_app, "enrol", "install", data, answer)
    for path in studies:
        out = path.with_suffix(".study")
        here(aggregator_app, "prepare", path, "--plan-key", key, "--out", out, *hub)
        for name in SITES:
            here(site_app, "approve", out, "--site", folder / "sites" / name)


@contextlib.contextmanager
def storm_run(folder: Path, *, kills: int, seconds: float, seed: int) -> Iterator[StormRun]:
    """Everything, from an empty folder to two studies that ended in the storm; the services still run."""
    with new_consortium(folder) as consortium, contextlib.ExitStack() as stack:
        sites = folder / "sites"
        write_cohort(sites, sites=3, patients=150, seed=7)
        for name in SITES:
            (sites / name).chmod(0o700)
            consortium.add(sites / name)
        disks = True
        for place, size in ((consortium.hub, HUB_DISK), (consortium.hospitals[SITES[2]].state, SITE_DISK)):
            if disks := disks and mounted(place, size):
                stack.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
        rounds = max(16, kills // 2)
        patient = {"deadline_minutes": 2, "attempts": 50}
        studies = [
            variant(OPEN, OPEN, folder, rounds=rounds, validate_every=rounds, **patient),
            variant(PRIVATE, PRIVATE, folder, rounds=4, validate_every=4, **patient),
            variant(AGAIN, PRIVATE, folder, rounds=12, validate_every=12, **patient),
        ]
        out = folder / "simulated"
        here(simulate_app, "run", studies[0], "--sites", sites, "--out", out, "--no-baselines")
        enrol(consortium, studies)
        hub = consortium.service("hub", "server", "start", "--dir", consortium.hub)
        keys = consortium.hub / "keys"
        wire = CutWire(consortium.port, consortium.listen, keys / "server.crt", keys / "server.key", keys / "ca.crt")
        stack.callback(wire.stop)
        ids = {n: read_study((folder / f"{n}.study").read_bytes(), plan_key=None).id for n in (OPEN, PRIVATE)}
        run = StormRun(consortium=consortium, hub=hub, wire=wire, ids=ids, chance=random.Random(seed))
        stack.callback(run.slow.clear)
        run.hour("0")
        for name in (OPEN, PRIVATE):
            here(aggregator_app, "submit", folder / f"{name}.study", "--dir", consortium.hub)
        hub.start()
        for hospital in run.hospitals.values():
            run.start_daemon(hospital)
            stack.enter_context(tapped(hospital))
            hospital.gate.start()
        for hospital in run.hospitals.values():
            ready(hospital, 300.0)
        until(lambda: int(run.status(OPEN).get("step") or 0) >= 2, 600.0, consortium.logs)
        run.plan_faults(kills, disks=disks)
        try:
            run.follow(kills=kills, seconds=seconds, patience=seconds + 60.0 * kills + 900.0)
        except BaseException:
            sys.stderr.write(consortium.logs())
            raise
        finally:
            run.calm()
        yield run


def restored(run: StormRun, name: str) -> dict[str, Any]:
    """One study more: in its middle the state of a site is brought back from a copy of before. How the study ended."""
    consortium, hospital = run.consortium, run.hospitals[name]
    run.ids[AGAIN] = run.study(AGAIN).id
    copy = consortium.folder / "yesterday"
    here(aggregator_app, "submit", consortium.folder / f"{AGAIN}.study", "--dir", consortium.hub)

    def come(rounds: int) -> Callable[[], bool]:
        def look() -> bool:
            run.tend()
            status = run.status(AGAIN)
            return int(status.get("round") or 0) >= rounds or status.get("phase") in ENDED

        return look

    until(come(1), 600.0, consortium.logs)
    run.kill_daemon(name)
    shutil.copytree(hospital.state, copy, ignore=shutil.ignore_patterns("run", "gate"))
    until(come(3), 600.0, consortium.logs)
    assert run.status(AGAIN).get("phase") not in ENDED
    run.kill_daemon(name)
    for path in copy.rglob("*"):
        if path.is_file():
            shutil.copy2(path, hospital.state / path.relative_to(copy))
    for path in hospital.state.rglob("*"):
        # A copy of a folder has no log of what was written since.
        if path.name.endswith(("-wal", "-shm")) and not (copy / path.relative_to(hospital.state)).exists():
            path.unlink()
    until(lambda: (run.tend(), run.status(AGAIN).get("phase") in ENDED)[1], 900.0, consortium.logs)
    return run.status(AGAIN)
