"""A model of 200 MB through the whole real path: aggregator, proxy, gates, daemons, and back, to the model that a site fetches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from running import needs_proxy  # lies beside this file

from oncofed_simulations.deployment import new_consortium
from oncofed_simulations.synthetic import write_cohort

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("site-1", "site-2")
MEGABYTES = 200
PATIENCE = 3600.0


pytestmark = [
    pytest.mark.slow,
    needs_proxy,
]


def large_plan(path: Path) -> Path:
    """The small study of the benchmark with a network of 25 million numbers of 8 bytes, trained for one round."""
    text = (ROOT / "simulations" / "studies" / "exchange.toml").read_text(encoding="utf-8")
    changes = {
        'name = "exchange"': 'name = "large"',
        "width = 8": "width = 512",
        "layers = 1": "layers = 8",
        "feedforward = 16": "feedforward = 2048",
        "rounds = 24": 'rounds = 1\ndtype = "float64"',
        "validate_every = 24": "validate_every = 1",
        "deadline_minutes = 5": "deadline_minutes = 60",
        'name = "fedadam"\nrate = 0.05': 'name = "fedavg"',
    }
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_model_of_200_megabytes_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_consortium(tmp_path) as consortium:
        write_cohort(tmp_path / "sites", sites=2, patients=60, seed=3)
        consortium.join(NAMES)
        study = consortium.submit(large_plan(tmp_path / "large.toml"), NAMES)
        consortium.start(NAMES)
        status = consortium.finish(study, PATIENCE)
        assert status["phase"] == "done", status
        assert set(status["delivered"]) == set(NAMES)  # type: ignore[arg-type] - JSON
        model = consortium.place / "studies" / study / "model.safetensors"
        assert model.stat().st_size >= MEGABYTES * 10**6
        fetched = tmp_path / "fetched.safetensors"
        consortium.call("client", "model", "fetch", "large", "--site", consortium.data(NAMES[1]), "--out", fetched)
        assert fetched.read_bytes() == model.read_bytes()
        for name in NAMES:
            receipts = json.loads(consortium.call("client", "outbox", consortium.data(name), "--json"))
            (update,) = (r for r in receipts if r["kind"] == "Update")
            assert update["size"] >= MEGABYTES * 10**6
        with capsys.disabled():
            print(
                f"\n{model.stat().st_size / 1e6:.0f} MB, {status['seconds']} s of the study, {status['bytes_down']} bytes down"
            )
