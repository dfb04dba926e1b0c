"""The units of deploy/systemd, started by systemd: a study from enrolment to the report, and what the processes in them can do."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from running import ROOT, STUDIES, until  # noqa: E402 - lies beside this file
from second_systemd import Machine, second_systemd, why_not  # noqa: E402

from oncofed_server.service.proxy import find_nginx  # noqa: E402
from oncofed_shared.errors import ConfigError  # noqa: E402


def _reason() -> str:
    try:
        find_nginx("")
    except ConfigError as error:
        return str(error)
    return why_not()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_reason()), reason=_reason()),
    pytest.mark.xdist_group("units"),
]
SITES = ("oncofed", "oncofed2")
HUB, DESK, AGGREGATOR = "/var/lib/oncofed-aggregator", "/srv/oncofed-desk", "oncofed-aggregator"
# Seconds for anything; on two free cores it takes a tenth of this.
PATIENCE = 1200.0
UNITS = [f"{site}-{part}" for site in SITES for part in ("daemon", "gate")]
COHORT = f"""
from pathlib import Path
from oncofed_simulations.synthetic import write_cohort
write_cohort(Path("{DESK}/sites"), sites=2, patients=150, seed=7)
"""
# What runs in a unit's place, with all that the unit says but its program, and tries what it should not be able to do.
TRY = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
done = {}
def tried(name, what):
    try:
        done[name] = what()
    except OSError as error:
        done[name] = type(error).__name__
def made(path):
    Path(path).write_text("x")
    Path(path).unlink()
    return "made"
def ran(folder):
    program = Path(folder) / "program"
    program.write_text("#!/bin/sh\\nexit 0\\n")
    program.chmod(0o700)
    try:
        return subprocess.run([program]).returncode
    finally:
        program.unlink()
def reached(*address):
    socket.create_connection(address, 4).close()
    return "reached"
libc = ctypes.CDLL(None)
tried("data", lambda: sorted(p.name for p in Path("/srv/oncofed/data").iterdir())[:1])
tried("data changed", lambda: made("/srv/oncofed/data/new"))
tried("key", lambda: len(Path("/var/lib/oncofed/identity.key").read_bytes()))
tried("ledger", lambda: len(os.listdir("/var/lib/oncofed")))
tried("homes", lambda: os.listdir("/root"))
tried("system changed", lambda: made("/etc/new"))
tried("program of its own", lambda: ran(sys.argv[1]))
tried("memory as program", lambda: libc.mmap(0, 4096, 7, 0x22, -1, 0) != -1)
tried("others", lambda: [p for p in os.listdir("/proc") if p.isdigit() and os.stat(f"/proc/{p}").st_uid != os.getuid()])
tried("namespace", lambda: libc.unshare(0x10000000))
tried("another network", lambda: libc.unshare(0x40000000))
tried("given away", lambda: os.chown(sys.argv[1], os.getuid(), os.getgid()) or "given")
tried("group's bit", lambda: os.chmod(sys.argv[1], 0o2700) or "set")
tried("aggregator", lambda: reached("192.0.2.1", 8443))
tried("elsewhere", lambda: reached("192.0.2.2", 8443))
tried("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).close() or "made")
tried("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close() or "made")
from oncofed_client.daemon_client import healthy
tried("daemon", lambda: healthy(Path("/run/oncofed/daemon.sock")))
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("units")
    try:
        with second_systemd(folder) as made:
            yield made
    except OSError as error:
        pytest.skip(str(error))


def second(text: str) -> str:
    """The same for another hospital on this machine."""
    return re.sub(r"(?<!/opt/)\boncofed(?=-gate|-daemon|[/: \n])", SITES[1], text)


def install(machine: Machine) -> None:
    """By the lines of deploy/README.md; then the same for a second hospital."""
    for line in (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").split("```")[3].strip().splitlines():
        machine.call(*shlex.split(line))
    kept = ("/etc/sysusers.d/oncofed-site.conf", "/etc/tmpfiles.d/oncofed-site.conf")
    for path in (*kept, *(f"/etc/systemd/system/oncofed-{part}.service" for part in ("daemon", "gate"))):
        machine.write(path.replace("oncofed", SITES[1]), second(machine.call("cat", path)))
    machine.call("systemd-sysusers")
    machine.call("systemd-tmpfiles", "--create", f"{SITES[1]}-site.conf")
    machine.call("systemctl", "daemon-reload")


def enrol(machine: Machine) -> None:
    """As people do it, each as the user that the unit will have."""
    machine.call("install", "-d", "-m", "777", DESK)
    machine.call("python", "-c", COHORT)
    text = (STUDIES / "consortium.toml").read_text(encoding="utf-8")
    machine.write(f"{DESK}/study.toml", re.sub(r"(?m)^(minimum_sites|sites) = 3$", r"\1 = 2", text))
    hub = ("--dir", HUB)
    machine.call("oncofed-aggregator", "plan-key", "--out", f"{DESK}/plan.key", user=AGGREGATOR)
    named = ("--name", "hub", "--address", "192.0.2.1:8443", "--plan-key", f"{DESK}/plan.pub")
    machine.call("oncofed-aggregator", "init", HUB, *named, user=AGGREGATOR)
    for number, site in enumerate(SITES, 1):
        data, state = f"/srv/{site}/data", ("--state", f"/var/lib/{site}")
        machine.call("install", "-d", f"/srv/{site}")
        machine.call("cp", "-r", f"{DESK}/sites/site-{number}", data)
        machine.call("chown", "-R", f"{site}:{site}", data)
        machine.call("chmod", "700", data)
        request, answer = f"{DESK}/{site}.request", f"{DESK}/{site}.answer"
        machine.call("oncofed-site", "enrol", "request", data, *state, "--out", request, user=site)
        machine.call("oncofed-aggregator", "enrol", request, "--out", answer, *hub, user=AGGREGATOR)
        machine.call("oncofed-site", "enrol", "install", data, answer, *state, user=site)
    words = (f"{DESK}/study.toml", "--plan-key", f"{DESK}/plan.key", "--out", f"{DESK}/it.study")
    machine.call("oncofed-aggregator", "prepare", *words, *hub, user=AGGREGATOR)
    for site in SITES:
        where = ("--site", f"/srv/{site}/data", "--state", f"/var/lib/{site}")
        machine.call("oncofed-site", "approve", f"{DESK}/it.study", *where, user=site)
    machine.call("oncofed-aggregator", "submit", f"{DESK}/it.study", *hub, user=AGGREGATOR)


def logs(machine: Machine) -> str:
    return "\n".join(f"== {unit}\n{machine.log(unit)[-3000:]}" for unit in (*UNITS, AGGREGATOR))


def times(machine: Machine, unit: str, word: str) -> int:
    return machine.log(unit).count(word)


def start(machine: Machine) -> None:
    """Start all five units, and see them come up."""
    words = {unit: "daemon.ready" if unit.endswith("daemon") else "SuperNode ID" for unit in UNITS}
    before = {unit: times(machine, unit, word) for unit, word in words.items()}
    machine.call("systemctl", "start", AGGREGATOR, *UNITS)
    until(
        lambda: all(times(machine, unit, word) > before[unit] for unit, word in words.items()),
        PATIENCE,
        lambda: logs(machine),
    )


@pytest.fixture(scope="module")
def ready(machine: Machine) -> Machine:
    """All five units run, and a study is submitted."""
    install(machine)
    enrol(machine)
    start(machine)
    return machine


def phase(machine: Machine) -> str:
    shown = json.loads(machine.call("oncofed-aggregator", "status", "--json", "--dir", HUB, user=AGGREGATOR))
    return str(shown["studies"][0]["phase"])


@pytest.fixture(scope="module")
def run(ready: Machine) -> Machine:
    """The study has ended."""
    until(lambda: phase(ready) in {"done", "failed", "stuck"}, PATIENCE, lambda: logs(ready))
    return ready


def test_a_study_runs_in_the_units_from_enrolment_to_the_report(run: Machine) -> None:
    assert phase(run) == "done", logs(run)
    run.call("oncofed-aggregator", "report", "consortium", "--out", f"{DESK}/out", "--dir", HUB, user=AGGREGATOR)
    words = (f"{DESK}/study.toml", "--sites", f"{DESK}/sites", "--out", f"{DESK}/simulated", "--no-baselines")
    run.call("oncofed-simulate", "run", *words)
    # Under all that the units forbid, it computes what it computes without them, to the last byte.
    run.call("cmp", f"{DESK}/out/model.safetensors", f"{DESK}/simulated/model.safetensors")
    for site in SITES:
        run.call("oncofed-site", "verify", f"/srv/{site}/data", "--state", f"/var/lib/{site}", user=site)


def test_nothing_in_a_units_log_is_an_error_or_a_refusal(run: Machine) -> None:
    for unit in (*UNITS, AGGREGATOR):
        text = run.log(unit)
        # Flower tells of its own troubles on a slow machine in the gate's log.
        assert unit.endswith("gate") or "Traceback" not in text, unit
        assert "cpuinfo" not in text, unit
        assert '"request.failed"' not in text, unit
    assert '"network": "none"' in run.log("oncofed-daemon")


def tries(machine: Machine, unit: str) -> dict[str, object]:
    text = machine.call("cat", f"/etc/systemd/system/{unit}.service")
    own = re.search(r"(?m)^StateDirectory=(.*)$", text)
    assert own is not None
    # Below /opt, since the gate's unit shows it nothing of /srv.
    program, out = "/opt/oncofed/try.py", f"{DESK}/{unit}.json"
    machine.write(program, TRY)
    start = f"ExecStart=/opt/oncofed/bin/python {program} /var/lib/{own[1]}\nStandardOutput=truncate:{out}"
    text = re.sub(r"(?m)^ExecStart=.*$", start, text).replace("Type=exec", "Type=oneshot")
    machine.write(f"/etc/systemd/system/{unit}-try.service", re.sub(r"(?m)^Restart.*\n", "", text))
    machine.call("systemctl", "daemon-reload")
    ended = machine.call("systemctl", "start", f"{unit}-try", code=None)
    text = machine.call("cat", out)
    assert text, f"{ended}{machine.log(f'{unit}-try')}"
    found: dict[str, object] = json.loads(text)
    return found


REFUSED = {"PermissionError", "OSError", "FileNotFoundError", "TimeoutError"}


def test_what_runs_in_the_gates_unit_has_the_aggregator_and_the_socket_and_nothing_of_a_patient(ready: Machine) -> None:
    done = tries(ready, "oncofed-gate")
    assert (done.pop("aggregator"), done.pop("daemon")) == ("reached", True)
    assert done.pop("others") == []
    assert {done.pop("namespace"), done.pop("another network")} == {-1}
    done.pop("memory as program")
    assert {name: found for name, found in done.items() if found not in REFUSED} == {}
    assert len(done) == 12


def test_what_runs_in_the_daemons_unit_reads_its_data_and_reaches_nobody(ready: Machine) -> None:
    done = tries(ready, "oncofed-daemon")
    assert (done.pop("data"), done.pop("daemon")) == (["clinical.csv"], True)
    assert min(int(str(done.pop("key"))), int(str(done.pop("ledger")))) > 3
    assert done.pop("others") == []
    assert {done.pop("namespace"), done.pop("another network")} == {-1}
    done.pop("memory as program")
    assert {name: found for name, found in done.items() if found not in REFUSED} == {}
    assert len(done) == 10


def test_whatever_is_killed_comes_again_and_finds_the_other(run: Machine) -> None:
    daemon, gate = run.main("oncofed-daemon"), run.main("oncofed-gate")
    served, started = times(run, "oncofed-daemon", "daemon.ready"), times(run, "oncofed-gate", "program.started")
    # The dead that its programs have left are buried: after 128 of them the unit would have no room for another process.
    until(lambda: "Z" not in run.call("ps", "-o", "stat=", "--ppid", gate), 10.0, lambda: logs(run))
    node = run.call("pgrep", "-P", gate).split()[0]
    run.call("kill", "-9", daemon, node)
    until(lambda: times(run, "oncofed-gate", "program.started") > started, PATIENCE, lambda: logs(run))
    until(lambda: times(run, "oncofed-daemon", "daemon.ready") > served, PATIENCE, lambda: logs(run))
    assert run.main("oncofed-gate") == gate
    # The gate that ran on sees the socket of the daemon that came after.
    socket = "run/oncofed/daemon.sock"
    root = f"/proc/{gate}/root"
    assert run.call("stat", "-c", "%i", f"/{socket}") == run.call("stat", "-c", "%i", f"{root}/{socket}")


def test_when_they_are_stopped_they_end_and_leave_nothing_running(run: Machine) -> None:
    run.call("systemctl", "stop", AGGREGATOR, *UNITS)
    left = run.call("pgrep", "-a", "-f", "/opt/oncofed/bin", code=None)
    results = run.call("systemctl", "show", "-p", "Result", "--value", AGGREGATOR, *UNITS).split()
    start(run)
    assert left == ""
    assert set(results) == {"success"}
