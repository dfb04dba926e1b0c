"""A hospital with the files of an aggregator, and `oncofed-site` as a person runs it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from oncofed_client.identity import public_half, raw_public
from oncofed_shared.enrolment import read_enrolment_request, write_enrolment
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import public_of
from oncofed_shared.roster import write_roster
from oncofed_shared.signed_study import write_study
from oncofed_simulations.run import Options, run_study

with warnings.catch_warnings():
    # typer 0.20 asks click 8.5, on import, for names that click is about to drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from oncofed_client.__main__ import main

Run = Callable[..., tuple[int, str, str]]
PLAN_KEY, STEP_KEY, AGGREGATOR_KEY, OTHER_KEY = (
    Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(4)
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `oncofed-site` with arguments; its exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oncofed-site", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def site(hospitals: Path, tmp_path: Path) -> Path:
    """A copy of site-1's folder; its state will lie beside it."""
    return Path(shutil.copytree(hospitals / "site-1", tmp_path / "site-1"))


@pytest.fixture
def state(site: Path) -> Path:
    return site.with_name("site-1.state")


@pytest.fixture(scope="session")
def certificate() -> str:
    """PEM of a private authority."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "oncofed test authority")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(AGGREGATOR_KEY.public_key())
        .serial_number(7)
        .not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2046, 1, 1, tzinfo=dt.UTC))
        .sign(AGGREGATOR_KEY, None)
    )
    return made.public_bytes(Encoding.PEM).decode()


@pytest.fixture(scope="session")
def trained(hospitals: Path, make_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run whose fusion weighs its modalities."""
    out = tmp_path_factory.mktemp("trained") / "out"
    plan = make_plan(model__fusion="weighted_sum", training__rounds=2)
    run_study(plan, Options(sites=hospitals, external=None, out=out, baselines=False))
    return out


PRIVATE = {
    "noise": "consortium",
    "epsilon": 3.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "sampling_rate": 0.5,
    "patients": {"site-1": 40, "site-2": 30, "site-3": 20},
    "score_epsilon": 1.0,
}
PRIVATE_PLAN = {"privacy": PRIVATE} | {f"modalities__{m}__scaling": "none" for m in ("clinical", "shape", "mutations")}
"""Changes that make the small plan a private one."""


@dataclasses.dataclass(frozen=True)
class Papers:
    """What the aggregator of a consortium has signed for site-1.

    Attributes:
        enrolment: its answer.
        roster: the sites' keys.
        folder: where studies are written.
    """

    enrolment: Path
    roster: dict[str, bytes]
    folder: Path

    def study(self, plan: Plan, name: str = "small", **changes: Any) -> Path:
        """A signed study's file."""
        now = time.time()
        usual = {
            "plan": plan,
            "trial": Trial(seed=0),
            "step_key": public_of(STEP_KEY),
            "roster": self.roster,
            "epoch": 1,
            "epoch_days": 30.0,
            "created": now - 60,
            "expires": now + 90 * 86400,
            "quorum": len(self.roster),
            "key": PLAN_KEY,
            "session": f"session-of-{name}",
        }
        path = self.folder / f"{name}.study"
        path.write_bytes(write_study(**(usual | changes)))
        return path


@pytest.fixture
def papers(run: Run, site: Path, state: Path, tmp_path: Path, certificate: str) -> Papers:
    """site-1 is enrolled, and the others of the roster have keys."""
    assert run("enrol", "request", site, "--out", tmp_path / "request.json")[0] == 0
    keys = {f"site-{n}": Ed25519PrivateKey.from_private_bytes(bytes([40 + n]) * 32) for n in (2, 3)}
    roster = {"site-1": raw_public(public_half(state))} | {n: public_of(k) for n, k in keys.items()}
    now = time.time()
    answer = write_enrolment(
        read_enrolment_request((tmp_path / "request.json").read_bytes()),
        aggregator="lead",
        address="lead.example:9443",
        certificate=certificate,
        plan_key=public_of(PLAN_KEY),
        roster=write_roster(number=1, issued=now - 60, sites=roster, revoked={}, key=PLAN_KEY),
        issued=now - 60,
        key=AGGREGATOR_KEY,
    )
    (tmp_path / "answer.json").write_bytes(answer)
    assert run("enrol", "install", site, tmp_path / "answer.json")[0] == 0
    return Papers(enrolment=tmp_path / "answer.json", roster=roster, folder=tmp_path)
