"""Fifty sites on one machine enrol and finish a study, through the real aggregator; `light_sites` says what is light about them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from running import needs_proxy  # noqa: E402 - lies beside this file

from oncofed_client.commands_enrol import enrol_install, enrol_request  # noqa: E402
from oncofed_client.commands_study import approve_command  # noqa: E402
from oncofed_client.gate.programs import environment_of  # noqa: E402
from oncofed_client.whereabouts import site_place  # noqa: E402
from oncofed_server.service.folder import Folder  # noqa: E402
from oncofed_server.service.registry import enrol  # noqa: E402
from oncofed_shared.signed_study import read_study  # noqa: E402
from oncofed_simulations.deployment import Consortium, Service, free_port, new_consortium, wait_until  # noqa: E402
from oncofed_simulations.synthetic import write_cohort  # noqa: E402

ROOT = HERE.parents[1]
SITES = 50
PATIENTS = 60
PATIENCE = 3600.0


pytestmark = [
    pytest.mark.slow,
    needs_proxy,
]


def join(consortium: Consortium, names: list[str]) -> None:
    """What `enrol request`, `enrol` and `enrol install` do, in this process."""
    hub = Folder.open(consortium.place)
    for name in names:
        request, answer = consortium.folder / f"{name}.request", consortium.folder / f"{name}.answer"
        consortium.data(name).chmod(0o700)
        enrol_request(consortium.data(name), out=request)
        answer.write_bytes(enrol(hub, request.read_bytes(), now=time.time()))
        enrol_install(consortium.data(name), answer, fingerprint=None)


def study_of(consortium: Consortium, names: list[str]) -> str:
    text = (ROOT / "simulations" / "studies" / "exchange.toml").read_text(encoding="utf-8")
    changes = {
        'name = "exchange"': 'name = "many"',
        "rounds = 24": "rounds = 2",
        "validate_every = 24": "validate_every = 2",
    }
    changes |= {"deadline_minutes = 5": "deadline_minutes = 60", "minimum_sites = 2": f"minimum_sites = {SITES}"}
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    plan, signed = consortium.folder / "many.toml", consortium.folder / "many.study"
    plan.write_text(text, encoding="utf-8")
    consortium.aggregator("prepare", plan, "--plan-key", consortium.plan_key, "--out", signed)
    for name in names:
        approve_command(signed, consortium.data(name))
    consortium.aggregator("submit", signed)
    return read_study(signed.read_bytes(), plan_key=None).id


def light(name: str, consortium: Consortium, rows: list[dict[str, object]]) -> Service:
    """A process of `light_sites`, which sees what a gate sees."""
    given = consortium.folder / "rows.json"
    given.write_text(json.dumps(rows), encoding="utf-8")
    home = consortium.short / "home"
    home.mkdir(exist_ok=True)
    environment = environment_of(dict(os.environ), home)
    words = [sys.executable, str(HERE / "light_sites.py"), name, str(given)]
    return Service(name=name, words=words, environment=environment)


def test_fifty_sites_enrol_and_finish_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with new_consortium(tmp_path) as consortium:
        write_cohort(tmp_path / "sites", sites=SITES, patients=SITES * PATIENTS, seed=5)
        names = sorted(p.name for p in (tmp_path / "sites").iterdir() if p.is_dir())
        assert len(names) == SITES
        join(consortium, names)
        study = study_of(consortium, names)
        enrolled = time.monotonic() - started
        with tempfile.TemporaryDirectory(prefix="o-") as short:
            # A port is free again once it has been asked for: one by one they may come twice.
            ports: set[int] = set()
            while len(ports) < SITES:
                ports.add(free_port())
            rows: list[dict[str, object]] = [
                {
                    "data": str(consortium.data(name)),
                    "state": str(site_place(consortium.data(name)).state),
                    "socket": f"{short}/{name}/d.sock",
                    "home": str(tmp_path / "gates" / name),
                    "port": port,
                }
                for name, port in zip(names, sorted(ports), strict=True)
            ]
            consortium.hub = Service(name="hub", words=consortium.words("server", "start", "--dir", consortium.place))
            consortium.hub.start()
            doors, gates = light("doors", consortium, rows), light("gates", consortium, rows)
            doors.start()
            wait_until(lambda: doors.said("doors are open"), 600.0, doors.tail)
            # A gate is let in when the aggregator has registered it.
            registered = consortium.place / "run" / "registered.json"
            wait_until(
                lambda: registered.exists() and len(json.loads(registered.read_bytes())) == SITES,
                PATIENCE,
                consortium.hub.tail,
            )
            gates.start()
            wait_until(lambda: len(gates.said("SuperNode ID")) == SITES, 900.0, gates.tail)
            begun = time.monotonic()
            status = consortium.finish(study, PATIENCE)
            assert status["phase"] == "done", (status, gates.tail())
            assert set(status["delivered"]) == set(names)  # type: ignore[arg-type] - JSON
            took = time.monotonic() - begun
        with capsys.disabled():
            print(
                f"\n{SITES} sites: {enrolled:.0f} s to enrol and approve, {took:.0f} s for the study, {status['step']} steps"
            )
