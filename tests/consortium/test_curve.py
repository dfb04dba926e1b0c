"""`oncofed-simulate privacy-curve`: who is trained and scored, what its page shows, and folds that hold everybody out once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.cohort import Cohort
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import load, parse
from oncofed_simulations.__main__ import main as simulate
from oncofed_simulations.compare_statistics import over_folds
from oncofed_simulations.consortium import open_site
from oncofed_simulations.curve import CurveOptions, privacy_curve
from oncofed_simulations.curve_page import figure
from oncofed_simulations.curve_points import CurveSource

from .conftest import PLAN, Invented

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "simulations" / "studies"
GLIOMA = ROOT / ".." / "shared" / "data" / "glioma"
Measured = tuple[dict[str, Any], CurveOptions]

STUDY: dict[str, Any] = {
    "study": {"name": "curve", "purpose": "a curve that a test can wait for"},
    "tasks": {
        "survival": {
            "kind": "survival", "time": "os_days", "event": "os_event", "edges": [0, 180, 365, 730, 1461], "horizon": 365,
        },
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "scaling": "constants",
            "columns": {"age": {"kind": "numeric", "unit": "years", "range": [0, 120], "center": 60, "spread": 12}},
        },
        "mutations": {"table": "mutations", "patterns": ["{gene}_mut"], "scaling": "none"},
    },
    "model": {"layers": 0},
    "training": {"rounds": 4, "rate": 1.0, "weight_decay": 0.01},
    "privacy": {
        "noise": "consortium", "epsilon": 3, "delta": 1e-4, "clip_norm": 1.0, "sampling_rate": 1.0, "spare_steps": 0,
        "patients": dict.fromkeys(("site-1", "site-2", "site-3", "site-4"), 20),
    },
    "evaluation": {"split": {"train": 0.6, "validation": 0.0, "test": 0.4}, "reference": {"age": {"features": ["age"]}}},
    "simulation": {"noise_seed": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out = tmp_path_factory.mktemp("curve")
    options = CurveOptions(
        sites=hospitals,
        out=out,
        epsilons=(2.0, float("inf")),
        seeds=(0, 1),
        mechanisms=("pooled", "consortium", "site"),
    )
    return privacy_curve(parse(STUDY), options), options


def test_every_mechanism_is_scored_at_every_epsilon_with_its_interval_over_seeds(measured: Measured) -> None:
    result, _ = measured
    assert set(result["mechanisms"]) == {"pooled", "consortium", "site"}
    for by in result["mechanisms"].values():
        assert list(by) == ["2", "inf"]
        for cell in by.values():
            assert len(cell["per_seed"]) == 2
            assert 0 < cell["mean"] < 1
            assert cell["ci"][0] <= cell["mean"] <= cell["ci"][1]
    free = {name: by["inf"]["per_seed"] for name, by in result["mechanisms"].items()}
    assert free["consortium"] == free["site"]
    noised = {name: by["2"]["per_seed"] for name, by in result["mechanisms"].items()}
    assert noised["consortium"] != noised["site"]
    paired = np.subtract(noised["consortium"], noised["site"])
    np.testing.assert_allclose(result["differences"]["consortium - site"]["2"]["per_seed"], paired)
    assert set(result["differences"]) == {"consortium - pooled", "consortium - site"}
    assert set(result["references"]) == {"age"}


def test_the_page_shows_every_number_and_needs_nothing_from_elsewhere(measured: Measured) -> None:
    result, options = measured
    text = (options.out / "curve.html").read_text()
    assert json.loads((options.out / "curve.json").read_bytes()) == result
    shown = [c["mean"] for by in result["mechanisms"].values() for c in by.values()]
    assert all(f"{v:.3f}" in text for v in [*shown, result["references"]["age"]["mean"]])
    assert "no privacy" in text
    assert not re.search(r"<script|https?://|url\(", text)


def test_marks_stand_higher_where_the_score_is(measured: Measured) -> None:
    result, _ = measured
    picture = str(figure(result))
    marks = re.findall(r'cy="([\d.]+)" r="4\.5"[^>]*><title>consortium, epsilon (\w+)', picture)
    heights = {epsilon: float(y) for y, epsilon in marks}
    means = {e: c["mean"] for e, c in result["mechanisms"]["consortium"].items()}
    assert set(heights) == {"2", "inf"}
    assert (heights["2"] < heights["inf"]) == (means["2"] > means["inf"])
    assert picture.count('class="whisker"') == sum(len(by) for by in result["mechanisms"].values())


def test_a_repeated_command_reads_what_is_there_and_another_one_is_refused(measured: Measured, hospitals: Path) -> None:
    result, options = measured
    kept = {p: p.stat().st_mtime_ns for p in (options.out / "points").iterdir()}
    assert privacy_curve(parse(STUDY), options) == result
    assert {p: p.stat().st_mtime_ns for p in (options.out / "points").iterdir()} == kept
    other = CurveOptions(sites=hospitals, out=options.out, epsilons=(2.0,), seeds=(0,), mechanisms=("pooled",))
    with pytest.raises(ConfigError, match="holds another curve"):
        privacy_curve(parse(STUDY), other)


def test_folds_and_fewer_modalities_from_the_command_line(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(STUDY))
    words = [
        "privacy-curve",
        study,
        "--sites",
        hospitals,
        "--epsilon",
        "3",
        "--seeds",
        "4",
        "--folds",
        "2",
        "--jobs",
        "1",
    ]
    more = ["--mechanisms", "pooled", "--modalities", "clinical", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["oncofed-simulate", *map(str, [*words, *more])])
    with pytest.raises(SystemExit) as left:
        simulate()
    assert left.value.code == 0
    assert "pooled, epsilon 3:" in (said := capsys.readouterr().out)
    assert said.splitlines()[-1] == f"curve: {tmp_path / 'out' / 'curve.html'}"
    result = json.loads((tmp_path / "out" / "curve.json").read_bytes())
    assert result["modalities"] == ["clinical"]
    cell = result["mechanisms"]["pooled"]["3"]
    assert len(cell["per_fold"][0]) == 2
    assert cell["mean"] == pytest.approx(np.mean(cell["per_fold"][0]))
    # Nadeau and Bengio's correction; two folds share no training patients, but the formula is the same for any number.
    estimate = over_folds(cell["per_fold"][0], 1.0)
    assert estimate is not None
    assert cell["ci"] == pytest.approx(estimate.interval())


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"mechanisms": ("nobody",)}, "--mechanisms: no 'nobody'"), ({"modalities": ("mri",)}, "--modalities: no 'mri'")],
)
def test_a_name_that_is_not_there_is_an_error_before_anything_is_written(
    changed: dict[str, Any], says: str, hospitals: Path, tmp_path: Path
) -> None:
    options = CurveOptions(sites=hospitals, out=tmp_path / "out", epsilons=(3.0,), seeds=(0,), **changed)
    with pytest.raises(ConfigError, match=says):
        privacy_curve(parse(STUDY), options)
    assert not (tmp_path / "out").exists()


def test_fewer_modalities_are_read_of_the_same_patients(hospitals: Path) -> None:
    whole = parse({**STUDY, "modalities": {m: s | {"required": True} for m, s in STUDY["modalities"].items()}})
    fewer = parse({**STUDY, "modalities": {"clinical": STUDY["modalities"]["clinical"]}})
    sites = [open_site(f, fewer, state=None, minimum=None) for f in sorted(hospitals.iterdir())]
    read = [CurveSource(site.source, whole).cohort(fewer) for site in sites]
    assert all(set(c.values) == {"clinical"} for c in read)
    assert [c.patients for c in read] == [site.source.cohort(whole).patients for site in sites]
    assert [c.patients for c in read] != [site.source.cohort(fewer).patients for site in sites]


@pytest.mark.slow
@pytest.mark.skipif(not GLIOMA.is_dir(), reason="the real hospitals' tables are absent: ../shared/data")
def test_a_private_model_of_genes_is_worth_more_than_age_and_sex_without_privacy(tmp_path: Path) -> None:
    plan = load(STUDIES / "glioma_genomics_private.toml")
    content = plan.model_dump(mode="json")
    content["simulation"] |= {"noise_seed": 3}
    options = CurveOptions(
        sites=GLIOMA, out=tmp_path, epsilons=(3.0,), seeds=(0,), mechanisms=("pooled",), folds=5, jobs=1
    )
    result = privacy_curve(parse(content), options)
    private = result["mechanisms"]["pooled"]["3"]
    assert private["mean"] >= 0.765
    assert private["mean"] > result["references"]["age + sex"]["mean"] + 0.03


@given(seed=st.integers(0, 50), folds=st.integers(2, 7), count=st.integers(20, 60), leaver=st.integers(0, 19))
def test_folds_hold_everybody_out_once_and_one_patient_fewer_moves_nobody(
    seed: int, folds: int, count: int, leaver: int
) -> None:
    plan = parse(PLAN)

    def held(cohort: Cohort) -> dict[str, list[int]]:
        source = Invented(name="alpha", patients=cohort)
        parts = [
            CurveSource(source, plan, fold=k, folds=folds).split(plan, cohort, Trial(seed=seed)) for k in range(folds)
        ]
        return {p: [int(part[i]) for part in parts] for i, p in enumerate(cohort.patients)}

    whole = Invented.of("alpha", count).patients
    every = held(whole)
    assert all(sorted(parts) == [0] * (folds - 1) + [2] for parts in every.values())
    stay = np.arange(count) != leaver
    fewer = Cohort(
        patients=tuple(p for p, s in zip(whole.patients, stay, strict=True) if s),
        values={"values": whole.values["values"][stay]},
        columns=whole.columns,
        labels={"response": whole.labels["response"][stay]},
        subgroups={},
        split_labels=None,
    )
    assert held(fewer) == {p: parts for p, parts in every.items() if p != whole.patients[leaver]}
