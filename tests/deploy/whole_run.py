"""One consortium from enrolment to the end of two studies, killed at on the way; tests then look at what it has left.

Two studies run beside each other: one without noise, one whose noise is the consortium's. While they run, one process of each kind
is killed. Sentinels are planted in the files of the second hospital.
"""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from running import STUDIES, Consortium, Hospital, Service, WireTap, new_consortium, ready, tapped, until

from oncofed_shared.processes import runs
from oncofed_shared.signed_study import read_study
from oncofed_simulations.synthetic import write_cohort

SITES = ("site-1", "site-2", "site-3")
OPEN, PRIVATE = "consortium", "consortium_private"
# Seconds for both studies; measured on two free cores it is a quarter of this.
PATIENCE = 1200.0
PATIENT = "MRN-7719-ZEPHYRINE"
TEXTS = {
    "patient's id": PATIENT,
    "date of birth": "1987-06-05",
    "free text": "pleomorphic xanthoastrocytoma, see letter of Dr Ormerod",
}
NUMBERS = {"age": 91.73812, "follow-up in days": 3_271_946.0}


@dataclass
class WholeRun:
    """What happened.

    Attributes:
        hospitals: by name; the first runs as `oncofed-site start` alone, the others as two units with a tap in between.
        killed: process of each kind that was killed, and the one that came after it.
        seconds: what took how long.
        memory: largest resident memory seen, in MiB, by kind of process.
    """

    consortium: Consortium
    hub: Service
    wire: WireTap
    row: list[float]
    ids: dict[str, str]
    whole: Service | None = None
    killed: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    phases: dict[str, str] = field(default_factory=dict)

    @property
    def hospitals(self) -> dict[str, Hospital]:
        return self.consortium.hospitals

    @property
    def reference(self) -> Path:
        """What `oncofed-simulate run` makes of the same study and the same files."""
        return self.consortium.folder / "simulated"

    def out(self, study: str) -> Path:
        return self.consortium.folder / f"out-{study}"

    def status(self, study: str) -> dict:
        """The file that `oncofed-aggregator status` reads."""
        path = self.consortium.hub / "studies" / self.ids[study] / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}


def plant(sites: Path) -> list[float]:
    """Put the sentinels into the second hospital's files; the expression values of that patient."""
    folder = sites / SITES[1]
    with (folder / "clinical.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "expression.csv").open(newline="") as file:
        known = {r["patient_id"] for r in csv.DictReader(file)}
    chosen = next(r for r in rows if r["patient_id"] in known and r["consent"] == "yes" and r["os_days"])
    old = chosen["patient_id"]
    chosen |= {"age": str(NUMBERS["age"]), "os_days": str(int(NUMBERS["follow-up in days"])), "os_event": "0"}
    for each in rows:
        mine = each is chosen
        each["birth_date"] = TEXTS["date of birth"] if mine else "1960-01-01"
        each["letter"] = TEXTS["free text"] if mine else "none"
    with (folder / "clinical.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for path in folder.glob("*.csv"):
        path.write_text(path.read_text().replace(old, PATIENT))
    with (folder / "expression.csv").open(newline="") as file:
        row = next(r for r in csv.DictReader(file) if r["patient_id"] == PATIENT)
    return [float(v) for k, v in row.items() if k.endswith("_rnaseq") and v]


def enrol(consortium: Consortium) -> None:
    """From nothing to three enrolled sites and two approved studies, as people do it."""
    folder, hub, key = consortium.folder, consortium.hub, consortium.plan_key
    consortium.call("server", "plan-key", "--out", key)
    address = ("--address", f"127.0.0.1:{consortium.port}", "--listen", f"127.0.0.1:{consortium.listen}")
    consortium.call("server", "init", hub, "--name", "hub", *address, "--plan-key", key.with_suffix(".pub"))

    def join(name: str) -> None:
        data, request, answer = folder / "sites" / name, folder / f"{name}.request", folder / f"{name}.answer"
        consortium.site("enrol", "request", data, "--out", request)
        consortium.aggregator("enrol", request, "--out", answer)
        consortium.site("enrol", "install", data, answer)

    def approve(name: str) -> None:
        for study in (OPEN, PRIVATE):
            words = (folder / f"{study}.study", "--site", folder / "sites" / name)
            if name == SITES[0]:
                assert "Fingerprints" in consortium.site("review", *words)
            consortium.site("approve", *words)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(join, SITES))
        for study in (OPEN, PRIVATE):
            out = folder / f"{study}.study"
            consortium.aggregator("prepare", STUDIES / f"{study}.toml", "--plan-key", key, "--out", out)
        list(pool.map(approve, SITES))
    for study in (OPEN, PRIVATE):
        consortium.aggregator("submit", folder / f"{study}.study")


KINDS: dict[str, tuple[int, Callable[[WholeRun], list[psutil.Process]]]] = {
    "gate": (2, lambda run: run.whole.running("flower-supernode")),
    "daemon": (3, lambda run: [p for p in run.whole.running("oncofed_client") if "daemon" in p.cmdline()]),
    "SuperLink": (4, lambda run: run.hub.running("flower-superlink")),
    "ServerApp": (6, lambda run: run.hub.running("flwr-serverapp")),
    "proxy": (7, lambda run: run.hub.running("nginx")),
}
"""What is killed when the study without noise has come to this step."""


WEIGHED = (
    "flower-superlink", "flower-superexec", "flower-supernode", "flwr-clientapp", "flwr-serverapp", "nginx",
    "oncofed_client.gate", "daemon", "dispatch",
)  # fmt: skip


def _named(run: WholeRun, kind: str) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        # A program in between waits for its parent's death and then becomes the program.
        return [p for p in KINDS[kind][1](run) if "-c" not in p.cmdline()[:2]]
    return []


def kill(run: WholeRun, kind: str) -> None:
    """`kill -9` one process of a kind, and see another one take its place."""
    victim = until(lambda: _named(run, kind), 120.0, lambda: f"no {kind} to kill")[0].pid
    psutil.Process(victim).kill()
    until(lambda: not runs(victim), 10.0)
    others = until(lambda: [p for p in _named(run, kind) if p.pid != victim], 180.0, lambda: f"no other {kind} came")
    run.killed[kind] = (victim, others[0].pid)


def weigh(run: WholeRun) -> None:
    """Note the largest memory of each kind of process."""
    services = [run.hub, run.whole, *(s for h in run.hospitals.values() for s in (h.daemon, h.gate))]
    for service in services:
        if service is None or service.process is None:
            continue
        for process in service.tree():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                line = process.cmdline()
                # A copy of the gate's parent has its words, and the name of what it has become.
                named = [w for w in WEIGHED if process.name() == w[:15]]
                named += [w for w in WEIGHED if any(p == w or p.endswith(f"/{w}") for p in line[:7])]
                if named:
                    size = process.memory_info().rss >> 20
                    run.memory[named[0]] = max(size, run.memory.get(named[0], 0))


def follow(run: WholeRun) -> None:
    """Wait for both studies to end, and kill on the way."""
    end = time.monotonic() + PATIENCE
    waiting = list(KINDS)
    while True:
        weigh(run)
        now = {study: run.status(study) for study in (OPEN, PRIVATE)}
        run.phases = {study: str(s.get("phase")) for study, s in now.items()}
        for study, phase in run.phases.items():
            if phase == "done" and study not in run.seconds:
                run.seconds[study] = time.monotonic() - end + PATIENCE
        if waiting and int(now[OPEN].get("step") or 0) >= KINDS[waiting[0]][0]:
            kill(run, waiting.pop(0))
        if set(run.phases.values()) <= {"done", "failed", "stuck"}:
            return
        assert time.monotonic() < end, f"{now}\n{run.consortium.logs()}"
        time.sleep(0.5)


@contextlib.contextmanager
def whole_run(folder: Path) -> Iterator[WholeRun]:
    """Everything, from an empty folder to two finished studies; the services still run."""
    with new_consortium(folder) as consortium, contextlib.ExitStack() as stack:
        started = time.monotonic()
        sites = folder / "sites"
        write_cohort(sites, sites=3, patients=150, seed=7)
        row = plant(sites)
        simulated = consortium.words(
            "simulations",
            "run",
            STUDIES / f"{OPEN}.toml",
            "--sites",
            sites,
            "--out",
            folder / "simulated",
            "--no-baselines",
        )
        reference = subprocess.Popen(
            simulated, env=consortium.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name in SITES:
            (sites / name).chmod(0o700)
            consortium.add(sites / name)
        enrol(consortium)
        said, _ = reference.communicate(timeout=600)
        assert reference.returncode == 0, said
        hub = consortium.service("hub", "server", "start", "--dir", consortium.hub, "--metrics", consortium.figures)
        ids = {
            study: read_study((folder / f"{study}.study").read_bytes(), plan_key=None).id for study in (OPEN, PRIVATE)
        }
        run = WholeRun(consortium, hub, _wire(consortium), row, ids)
        stack.callback(run.wire.stop)
        run.seconds["enrolment"] = time.monotonic() - started
        first, *others = run.hospitals.values()
        run.whole = consortium.service(
            "site-1", "client", "start", first.data, "--socket", first.socket, "--metrics", first.figures
        )
        run.hub.start()
        run.whole.start()
        for hospital in others:
            hospital.daemon.start()
            stack.enter_context(tapped(hospital))
            hospital.gate.start()
        for hospital in others:
            ready(hospital, 300.0)
        try:
            follow(run)
        except BaseException:
            sys.stderr.write(consortium.logs())
            raise
        yield run


def _wire(consortium: Consortium) -> WireTap:
    keys = consortium.hub / "keys"
    return WireTap(consortium.port, consortium.listen, keys / "server.crt", keys / "server.key", keys / "ca.crt")
