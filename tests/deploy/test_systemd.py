"""The units in deploy/systemd: how exposed systemd finds them, and that what they start exists. Nothing of them is started."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
MOST_EXPOSED = {"oncofed-daemon": 2.0, "oncofed-gate": 3.5, "oncofed-aggregator": 3.5}


def service(name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / f"{name}.service", encoding="utf-8")
    return dict(parser["Service"])


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
