"""`oncofed-simulate predict`: the model's own numbers, their spread, and what they have meant; for patients without a label too."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GRADE = {
    "kind": "classification", "table": "clinical", "label": "grade", "classes": ["low", "middle", "high"], "ordered": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(new_world: Callable[..., Any], hospitals_of: Callable[..., Any]) -> Any:
    """Three larger hospitals and three trained models: two seeds with dropout, one without."""
    world = new_world(hospitals=hospitals_of((90, 80, 70)))
    world.change(evaluation={"score_bins": 128}, training={"rounds": 12, "rate": 0.5, "dropout": 0.3})
    world.content["tasks"]["grade"] = GRADE
    world.write()
    return world


@pytest.fixture
def models(trained: Any, simulate: Callable[..., Any]) -> list[Path]:
    made = []
    for seed, dropout in ((0, 0.3), (1, 0.3), (2, 0.0)):
        out = trained.root / f"model-{seed}"
        if not out.exists():
            trained.change(training={"dropout": dropout}).write_study()
            arguments = [
                "run",
                str(trained.study),
                "--sites",
                str(trained.sites),
                "--out",
                str(out),
                "--seeds",
                str(seed),
            ]
            done = simulate(*arguments, "--no-baselines")
            assert done.code == 0, done.err
        made.append(out / "model.safetensors")
    return made


@pytest.fixture
def table(trained: Any, simulate: Callable[..., Any]) -> Callable[..., dict[str, list[str]]]:
    def read(*models: Path, more: tuple[str, ...] = (), site: str = "beta", name: str = "p") -> dict[str, list[str]]:
        out = trained.root / f"{name}.csv"
        known = ["--site", str(trained.sites / site), "--study", str(trained.study), "--out", str(out)]
        done = simulate("predict", *map(str, models), *known, *more)
        assert done.code == 0, done.err
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {c: [r[c] for r in rows] for c in rows[0]}

    return read


def test_one_model_gives_its_predictions_and_what_they_have_meant(models: Any, table: Any) -> None:
    made = table(models[0])
    assert len(made["patient_id"]) == 80
    shares = np.array([made[f"grade.{c}"] for c in GRADE["classes"]], dtype=float)
    assert np.allclose(shares.sum(axis=0), 1, atol=1e-5)
    certainty = json.loads((models[0].parent / "result.json").read_bytes())["certainty"]
    at = certainty["grade"]["sets"]["threshold"]
    for share, chosen in zip(shares.T, made["grade.set"], strict=True):
        inside = chosen.split("|")
        assert {c for c, p in zip(GRADE["classes"], share, strict=True) if p >= at} <= set(inside)
    for task in ("survival", "response"):
        ends = np.array([b["interval"] for b in certainty[task]["bands"]])
        shown = np.array([made[f"{task}.observed.low"], made[f"{task}.observed.high"]], dtype=float).T
        assert np.abs(shown[:, None] - ends[None]).max(axis=2).min(axis=1).max() < 1e-5
    weights = np.array([made[c] for c in made if c.startswith("weight.")], dtype=float)
    assert len(weights) > 1
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-5), "everybody has something"
    assert ((weights >= 0) & (weights <= 1)).all()
    assert "survival.risk.sd" not in made
    report = (models[0].parent / "report.html").read_text(encoding="utf-8")
    assert "How sure a prediction is" in report
    assert "What a predicted risk has meant" in report


def test_passes_with_dropout_have_a_mean_and_a_spread_and_repeat(models: Any, table: Any) -> None:
    one, again = table(models[0], more=("--uncertainty", "mc:40")), table(models[0], more=("--uncertainty", "mc:40"))
    other = table(models[0], more=("--uncertainty", "mc:40", "--seed", "1"))
    plain = table(models[0])
    assert one == again
    assert one != other
    spread = np.array(one["survival.risk.sd"], dtype=float)
    apart = np.array(one["survival.risk"], dtype=float) - np.array(plain["survival.risk"], dtype=float)
    assert (spread > 0).all()
    assert np.abs(apart).max() < 3 * spread.max()
    # What was calibrated were predictions without dropout.
    assert "grade.set" not in one


def test_several_models_are_averaged(models: Any, table: Any) -> None:
    both, first, second = table(models[0], models[1]), table(models[0]), table(models[1])
    a, b = (np.array(m["response.yes"], dtype=float) for m in (first, second))
    assert np.allclose(np.array(both["response.yes"], dtype=float), (a + b) / 2, atol=1e-5)
    assert np.allclose(np.array(both["response.yes.sd"], dtype=float), np.abs(a - b) / np.sqrt(2), atol=1e-5)
    assert "response.set" not in both


def test_a_patient_needs_no_label(trained: Any, models: Any, table: Any, hospitals_of: Callable[..., Any]) -> None:
    unknown = hospitals_of((90, 80, 70))[1]
    unknown.name = "new"
    clinical = unknown.tables["clinical"]
    for column in ("os_days", "os_event", "response", "grade", "part"):
        clinical.pop(column)
    unknown.write(trained.root / "elsewhere")
    made = table(models[0], site="../elsewhere/new", name="new")
    assert made == table(models[0])


@pytest.mark.parametrize(
    ("model", "asked", "words"),
    [
        (0, "mc", ("--uncertainty mc", "mc:50")),
        (0, "mc:1", ("mc:1", "from 2 to")),
        (2, "mc:5", ("trained without dropout",)),
    ],
)
def test_what_cannot_be_is_refused(  # noqa: PLR0917 - fixtures and cases
    trained: Any, models: Any, simulate: Callable[..., Any], model: int, asked: str, words: tuple[str, ...]
) -> None:
    known = ["--site", str(trained.sites / "beta"), "--study", str(trained.study), "--out", str(trained.root / "x.csv")]
    simulate("predict", str(models[model]), *known, "--uncertainty", asked).refused(3, *words)
    assert not (trained.root / "x.csv").exists()


def test_a_file_that_is_no_model_is_refused(trained: Any, models: Any, simulate: Callable[..., Any]) -> None:
    broken = trained.root / "broken.safetensors"
    broken.write_bytes(models[0].read_bytes()[:-40])
    known = ["--site", str(trained.sites / "beta"), "--study", str(trained.study), "--out", str(trained.root / "x.csv")]
    simulate("predict", str(broken), *known).refused(3, "broken.safetensors", "damaged")
