"""The units in deploy/systemd: how exposed systemd finds them, and that they fit the programs. `test_units_run.py` starts them.

Each of the later tests is a way in which a unit did not start, or held less than it says, when one was first started.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
OPEN_TO_ALL = {"/tmp", "/var/tmp", "/dev/shm"}  # noqa: S108 - what a unit says of them
MOST_EXPOSED = {"oncofed-daemon": 2.0, "oncofed-gate": 3.5, "oncofed-aggregator": 3.5}


def service(name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / f"{name}.service", encoding="utf-8")
    return dict(parser["Service"])


def named(unit: str, option: str) -> list[str]:
    """All words of an option that may be given several times."""
    text = (UNITS / f"{unit}.service").read_text(encoding="utf-8")
    return [w for line in re.findall(rf"^{option}=(.*)$", text, re.MULTILINE) for w in line.split()]


def conf(kind: str) -> list[list[str]]:
    """Lines of all files for systemd-tmpfiles or systemd-sysusers."""
    lines = [line for path in UNITS.glob(f"*.{kind}.conf") for line in path.read_text(encoding="utf-8").splitlines()]
    return [shlex.split(line) for line in lines if not line.startswith("#")]


def test_there_is_a_bound_for_every_unit() -> None:
    assert {p.stem for p in UNITS.glob("*.service")} == set(MOST_EXPOSED)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_systemd_finds_a_unit_hardly_exposed(name: str) -> None:
    words = ["systemd-analyze", "security", "--offline=true", str(UNITS / f"{name}.service")]
    ended = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ended.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSED[name]


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_every_option_of_a_unit_is_one_of_the_program(name: str) -> None:
    program, *words = shlex.split(service(name)["ExecStart"])
    options = {w for w in words if w.startswith("--")}
    if Path(program).name == "python":
        asked = [sys.executable, *words[: words.index("-m") + 2], "--help"]
    else:
        asked = [str(Path(sys.executable).with_name(Path(program).name)), words[0], "--help"]
    shown = subprocess.run(
        asked, check=True, capture_output=True, text=True, env={"COLUMNS": "300", "PATH": "/usr/bin"}
    )
    assert {o for o in options if o not in shown.stdout} == set()


def test_the_daemon_has_no_network_and_reads_its_data_only() -> None:
    unit = service("oncofed-daemon")
    assert (unit["PrivateNetwork"], unit["RestrictAddressFamilies"], unit["IPAddressDeny"]) == ("yes", "AF_UNIX", "any")
    assert unit["BindReadOnlyPaths"] in unit["ExecStart"]


def test_the_gate_reaches_the_aggregator_and_no_file_of_a_patient() -> None:
    text = (UNITS / "oncofed-gate.service").read_text(encoding="utf-8")
    assert "IPAddressDeny=any" in text
    assert set(re.findall(r"^IPAddressAllow=(.*)$", text, re.MULTILINE)) == {"localhost", "192.0.2.1"}
    hidden = service("oncofed-gate")["InaccessiblePaths"].split()
    daemon = service("oncofed-daemon")
    assert any(Path(daemon["BindReadOnlyPaths"]).is_relative_to(h) for h in hidden)
    assert f"/var/lib/{daemon['StateDirectory']}" in hidden
    assert service("oncofed-gate")["User"] != daemon["User"]


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_the_whole_of_proc_is_there_for_torch_and_for_supervisors(name: str) -> None:
    assert "ProcSubset" not in service(name)
    # The reason: what is asked for lies beside the processes' own folders.
    shared = ROOT / "shared" / "oncofed_shared"
    assert "oncofed_shared.processes" in (shared / "keeping.py").read_text(encoding="utf-8")
    assert "psutil" in (shared / "processes.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_no_unit_asks_its_program_for_what_it_forbids_it(name: str) -> None:
    unit, words = service(name), shlex.split(service(name)["ExecStart"])
    forbidden = {w for w in named(name, "SystemCallFilter") if w.startswith(("~@privileged", "@chown"))}
    assert forbidden
    assert unit["RestrictSUIDSGID"] == unit["PrivateUsers"] == unit["RestrictNamespaces"] == "yes"
    # It takes chown, and a group that exists in the unit's own user namespace.
    assert "--socket-group" not in words
    if "oncofed_client.gate" in words:
        # It takes a network namespace to be its own fence.
        assert words[words.index("--fence") + 1] == "unit"


def test_the_sockets_folder_is_made_for_the_daemon_and_the_gates_group_and_stays() -> None:
    words = [shlex.split(service(f"oncofed-{part}")["ExecStart"]) for part in ("daemon", "gate")]
    (socket,) = {Path(w[w.index("--socket") + 1]) for w in words}
    daemon, gate = service("oncofed-daemon"), service("oncofed-gate")
    made = {line[1]: line[2:5] for line in conf("tmpfiles")}
    assert made[str(socket.parent)] == ["2750", daemon["User"], gate["Group"]]
    assert str(socket.parent) in named("oncofed-daemon", "ReadWritePaths")
    # A folder of a unit's own would go away under the gate, and have the unit's own group.
    assert "RuntimeDirectory" not in daemon
    assert "RuntimeDirectory" not in gate


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_whom_and_what_a_unit_names_is_made_before(name: str) -> None:
    unit = service(name)
    assert unit["User"] == unit["Group"]
    assert unit["User"] in {line[1] for line in conf("sysusers")}
    assert {line[0] for line in conf("sysusers")} == {"u"}
    state = f"/var/lib/{unit['StateDirectory']}"
    made = {line[1]: line[2:5] for line in conf("tmpfiles")}
    assert made.get(state, ["0700", unit["User"], unit["User"]]) == ["0700", unit["User"], unit["User"]]


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_what_a_unit_may_write_it_may_not_run(name: str) -> None:
    writable = {*named(name, "ReadWritePaths"), f"/var/lib/{service(name)['StateDirectory']}"}
    assert writable | OPEN_TO_ALL | {"/", "/run"} <= set(named(name, "NoExecPaths"))
    assert {"/", "/run"} <= set(named(name, "ReadOnlyPaths"))
    # systemd 252 takes away again from what is named in both.
    assert not set(named(name, "ExecPaths")) & (set(named(name, "ReadOnlyPaths")) | writable)
    assert Path(shlex.split(service(name)["ExecStart"])[0]).is_relative_to(named(name, "ExecPaths")[0])


def test_the_aggregators_unit_may_run_its_proxy() -> None:
    places = named("oncofed-aggregator", "ExecPaths")
    for program in ("/usr/sbin/nginx", "/usr/bin/env", "/opt/oncofed/bin/flower-superlink"):
        assert any(Path(program).is_relative_to(p) for p in places)
