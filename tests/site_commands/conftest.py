"""A hospital with the files of an aggregator, and `oncofed-site` as a person runs it."""

from __future__ import annotations

import datetime
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from oncofed_shared.plan import Plan
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
        .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2046, 1, 1, tzinfo=datetime.UTC))
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
