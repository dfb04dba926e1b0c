"""`result.json` has the keys that docs/interfaces and the report build on, with the right types, whatever a run has in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from oncofed_shared.plan import load
from oncofed_shared.storage import read_arrays
from oncofed_simulations.folders import site_folders

Number = Annotated[float, Field(allow_inf_nan=False)]
Bounds = tuple[Number, Number]
Count = Annotated[int, Field(ge=0)]
METRICS = {
    "classification": {"auc", "accuracy", "sensitivity", "specificity", "precision", "f1", "brier"},
    "survival": {"c_index", "brier"},
}


class Part(BaseModel):
    """A JSON object with exactly these keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Group(Part):
    overall: Number | None
    ci: Bounds | None
    patients: Count | None
    why: dict[str, str] = {}


class External(Part):
    overall: Number | None
    ci: Bounds | None = None
    per_site: dict[str, Number | None]
    per_site_ci: dict[str, Bounds] = {}
    why: dict[str, str] = {}


class Score(Part):
    """One metric of one arm."""

    overall: Number | None
    ci: Bounds | None
    per_site: dict[str, Number | None]
    per_site_ci: dict[str, Bounds]
    per_site_on_all: dict[str, Number | None] | None = None
    per_seed: list[Number | None]
    subgroups: dict[str, dict[str, Group]]
    external: External
    exact: Number | None = None
    why: dict[str, str]


class Spread(Part):
    overall: Number | None
    sd: Number | None
    ci: Bounds | None
    per_split: list[Number | None] | None = None
    per_fold: list[Number | None] | None = None


class Band(Part):
    low: Number
    high: Number
    predicted: Number
    observed: Number
    interval: Bounds
    patients: Count


class PredictionSets(Part):
    level: Number
    threshold: Number
    covered: Number | None
    size: Number | None
    test_patients: Count | None


class Certainty(Part):
    patients: Count
    band_level: Number
    bands: list[Band]
    sets: PredictionSets | None


class Divergence(Part):
    mean: Annotated[float, Field(ge=0, le=1 + 1e-9)]
    max: Annotated[float, Field(ge=1 - 1e-9)]


class Round(Part):
    seed: int
    fold: int | None = None
    round: Annotated[int, Field(ge=1)]
    seconds: Number
    train_loss: Number
    divergence: Divergence | None
    validation: dict[str, dict[str, Number | None]]
    bytes_up: Annotated[int, Field(gt=0)]
    bytes_down: Annotated[int, Field(gt=0)]
    participants: list[str] | None = None


class SiteRow(Part):
    name: str
    patients: Count
    train: Count
    validation: Count
    test: Count
    modalities: dict[str, Count]
    events: dict[str, Count]
    epsilon: None
    epsilon_alone: None
    delta: None
    trained: bool
    external: bool


class Excluded(Part):
    name: str
    why: str


class Point(Part):
    """A group of score bins in a released calibration."""

    predicted: Number
    range: Bounds
    observed: Number
    ci: Bounds
    patients: int


class Released(Part):
    """A score from a noised sum; its totals may be negative."""

    task: str
    metric: str
    value: Number | None
    ci: Bounds | None
    why: str
    points: list[Point] | None = None
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0)]
    noise_std: Annotated[float, Field(gt=0)]
    patients: int
    events: int
    seed: int | None = None


class Result(Part):
    study: str
    purpose: str
    plan: dict[str, Any]
    plan_hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: str
    versions: dict[str, str]
    seconds: Annotated[float, Field(gt=0)]
    bytes_up: Annotated[int, Field(gt=0)]
    bytes_down: Annotated[int, Field(gt=0)]
    seeds: list[int]
    uncharged: list[str]
    rounds: list[Round]
    sites: list[SiteRow]
    excluded: list[Excluded]
    tasks: dict[str, dict[str, dict[str, Score]]]
    references: dict[str, dict[str, dict[str, Score]]]
    binning_error: dict[str, dict[str, Number]]
    figures: dict[str, dict[str, dict[str, Any]]]
    certainty: dict[str, Certainty]
    released: list[Released] | None = None
    resplits: dict[str, dict[str, dict[str, Spread]]]
    folds: dict[str, dict[str, dict[str, Spread]]]
    command: str


def load_result(out: Path) -> Result:
    """Parse and check what holds for every result."""
    content = json.loads((out / "result.json").read_bytes())
    result = Result.model_validate_json(json.dumps(content))
    assert next(iter(content["tasks"])) == content["plan"]["main_task"]
    assert datetime.fromisoformat(result.created).tzinfo is not None
    assert {"oncofed", "torch", "numpy", "flwr", "python"} <= set(result.versions)
    names = [s.name for s in result.sites if not s.external]
    externals = [s.name for s in result.sites if s.external]
    for task, metrics in result.tasks.items():
        assert set(metrics) == METRICS[result.plan["tasks"][task]["kind"]]
        for arms in metrics.values():
            for arm, score in arms.items():
                check_score(score, arm, names, externals, len(result.seeds))
    for site in result.sites:
        assert site.train + site.validation + site.test <= site.patients
        assert site.trained is not site.external
        assert set(site.modalities) == set(result.plan["modalities"])
    assert sum(r.bytes_up for r in result.rounds) <= result.bytes_up
    assert sum(r.bytes_down for r in result.rounds) <= result.bytes_down
    return result


def check_score(score: Score, arm: str, names: list[str], externals: list[str], seeds: int) -> None:
    """A number, or null and why; means are means."""
    assert list(score.per_site) == names
    assert all(score.why[s] for s, v in score.per_site.items() if v is None)
    assert len(score.per_seed) == seeds
    known = [v for v in score.per_seed if v is not None]
    if score.overall is None:
        assert score.why["overall"]
        assert not known
    else:
        assert score.overall == pytest.approx(sum(known) / len(known))
        assert 0 <= score.overall <= 1
    for bounds in [score.ci, *score.per_site_ci.values()]:
        assert bounds is None or 0 <= bounds[0] <= bounds[1] <= 1
    for groups in score.subgroups.values():
        for group in groups.values():
            assert group.overall is not None or group.ci is None
    if arm == "alone":
        assert score.per_site_on_all is not None
        own = [v for v in score.per_site_on_all.values() if v is not None]
        assert score.overall == (pytest.approx(sum(own) / len(own)) if own else None)
    elif externals:
        assert list(score.external.per_site) == externals
    if not externals:
        assert score.external.overall is None
        assert score.external.why["overall"]


@pytest.fixture
def full(world: Any, hospitals_of: Callable[..., list[Any]]) -> Any:
    """Subgroups, references, an external hospital."""
    world.hospitals, (_, _, _, delta) = world.hospitals, hospitals_of((8, 8, 8, 26), seed=9)
    delta.write(world.root / "external")
    world.change(
        evaluation={
            "subgroups": {"sex": {"column": "sex", "values": ["female", "male"]}},
            "reference": {"age": {"features": ["age"]}, "all": {"features": ["*"], "penalty": 1.0}},
            "main_reference": "all",
        },
    )
    return world.write()


def test_everything_at_once(full: Any, simulate: Callable[..., Any]) -> None:
    outcome = simulate(*full.arguments("--seeds", "0,7", "--external", str(full.root / "external")))
    assert outcome.code == 0, outcome
    result = load_result(full.out)
    assert result.study == "world"
    assert result.seeds == [0, 7]
    assert result.plan_hash == full.plan.hash
    assert [(s.name, s.external) for s in result.sites] == [
        ("alpha", False), ("beta", False), ("gamma", False), ("delta", True),
    ]  # fmt: skip
    assert [(r.seed, r.round) for r in result.rounds] == [(s, r) for s in (0, 7) for r in (1, 2, 3, 4)]
    assert [bool(r.validation) for r in result.rounds] == [False, True] * 4
    assert set(result.references) == {"age", "all"}
    for task, metrics in result.tasks.items():
        for metric, arms in metrics.items():
            assert list(arms) == ["federated", "pooled", "alone", "reference"]
            assert arms["reference"] == result.references["all"][task][metric]
            assert set(arms["federated"].subgroups) == {"sex"}
            assert set(arms["federated"].subgroups["sex"]) == {"female", "male"}
    main = result.tasks["survival"]["c_index"]
    assert main["federated"].external.overall is not None
    assert main["federated"].external.per_site["delta"] == main["federated"].external.overall
    assert main["federated"].exact is not None
    bound = result.binning_error["survival"]["c_index"]
    assert main["federated"].overall == pytest.approx(main["federated"].exact, abs=max(bound, 0.1))
    assert {"roc", "calibration", "confusion", "classes"} <= set(result.figures["response"]["federated"])
    assert {"km", "calibration"} <= set(result.figures["survival"]["pooled"])
    assert set(result.figures["survival"]) == {"federated", "pooled", "reference"}
    assert result.resplits == {}
    assert result.folds == {}


def test_manifest_and_model_belong_to_the_result(full: Any, simulate: Callable[..., Any]) -> None:
    assert simulate(*full.arguments("--no-baselines")).code == 0
    manifest = json.loads((full.out / "manifest.json").read_bytes())
    assert manifest["plan_hash"] == full.plan.hash
    assert set(manifest["files"]) == {"model.safetensors", "report.html", "result.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((full.out / name).read_bytes()).hexdigest() == digest
    arrays, facts = read_arrays(full.out / "model.safetensors")
    assert facts["plan_hash"] == full.plan.hash
    assert hashlib.sha256(facts["plan"].encode()).hexdigest() == full.plan.hash
    assert {n.split(".")[0] for n in arrays} == {"network", "preparation"}
    for modality, columns in facts["columns"].items():
        assert all(isinstance(c, str) for c in columns), modality


def test_no_baselines(full: Any, simulate: Callable[..., Any]) -> None:
    assert simulate(*full.arguments("--no-baselines")).code == 0
    result = load_result(full.out)
    assert set(result.tasks["survival"]["c_index"]) == {"federated", "reference"}
    assert set(result.figures["response"]) == {"federated", "reference"}


def test_folds(full: Any, simulate: Callable[..., Any]) -> None:
    """Every patient is scored once, by a model that has not seen him; the released model has seen everybody."""
    full.change(evaluation={"folds": 3}, training={"rounds": 2})
    full.write_study()
    assert simulate(*full.arguments("--seeds", "0,1", "--no-baselines")).code == 0
    result = load_result(full.out)
    entry = result.folds["survival"]["c_index"]["federated"]
    assert entry.per_fold is not None
    assert len(entry.per_fold) == 6
    assert {(r.seed, r.fold, r.round) for r in result.rounds} == {
        (s, f, r) for s in (0, 1) for f in (0, 1, 2) for r in (1, 2)
    }
    scored = sum(g.patients or 0 for g in result.tasks["response"]["auc"]["federated"].subgroups["sex"].values())
    assert scored == sum(1 for h in full.hospitals for r in h.tables["clinical"]["response"] if r)


def test_resplits(full: Any, simulate: Callable[..., Any]) -> None:
    """Random splits beside the published one."""
    full.change(evaluation={"resplits": 3}, training={"rounds": 2})
    full.write_study()
    assert simulate(*full.arguments()).code == 0
    result = load_result(full.out)
    arms = result.resplits["survival"]["c_index"]
    assert set(arms) == {"federated", "pooled", "reference", "age"}
    for entry in arms.values():
        assert entry.per_split is not None
        assert len(entry.per_split) == 3
        assert entry.overall == pytest.approx(sum(v for v in entry.per_split if v is not None) / 3)
        assert entry.sd is not None


def test_a_study_that_generates_its_cohort(world: Any, simulate: Callable[..., Any]) -> None:
    """Like the demo, but small; and a changed cohort is generated anew."""
    demo = load(Path(__file__).parents[2] / "simulations" / "studies" / "demo.toml")
    world.content = demo.model_dump(mode="json", exclude_none=True)
    world.change(training={"rounds": 2}, simulation={"cohort": {"sites": 4, "patients": 160, "seed": 1}})
    world.root.mkdir(exist_ok=True)
    world.write_study()
    arguments = ["run", str(world.study), "--out", str(world.out)]
    assert simulate(*arguments).code == 0
    result = load_result(world.out)
    assert [s.name for s in result.sites] == ["site-1", "site-2", "site-3", "site-4"]
    assert set(result.tasks) == set(demo.tasks)
    assert set(result.tasks[demo.main_task]["c_index"]) == {"federated", "pooled", "alone", "reference"}
    first = (world.out / "model.safetensors").read_bytes()
    world.change(simulation={"cohort": {"sites": 3}})
    world.write_study()
    assert simulate(*arguments, "--resume").code == 3
    assert simulate(*arguments, "--no-baselines").code == 0
    assert len(load_result(world.out).sites) == 3
    assert len(site_folders(world.out / "cohort")) == 3
    assert (world.out / "model.safetensors").read_bytes() != first
