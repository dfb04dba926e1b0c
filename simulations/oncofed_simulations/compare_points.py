"""One point of a comparison: one variant trained without one fold or hospital, and scored on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.scratch import Scratch
from oncofed_client.site import Site
from oncofed_client.source import Source
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Roster
from oncofed_shared.errors import OncofedError, RemoteProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.compare_search import Found, search
from oncofed_simulations.compare_source import TEST, TRAIN, ComparedSource, InnerSource, hospital_groups
from oncofed_simulations.compare_variants import HOSPITAL, SHUFFLE
from oncofed_simulations.consortium import Consortium, Run, open_site
from oncofed_simulations.exact import Scored, metric_of, numbers_of, score_patients

__all__ = ["Place", "Point", "admitted", "forget", "measure", "read_point", "searched"]

SUMMING = {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"}
"""Rules that read nothing but the mean of the sites' steps."""
INNER = 3
"""Parts of the training patients in a search, each held out once."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which hospitals take part, in a form that another process can read.

    Attributes:
        whole: content of the plan that says who takes part and who is in which fold.
        folders: of the hospitals, by name.
        minimum: fewest patients of a site, in place of its policy.
        trials: of a search on the training patients of each point; 0 for none.
    """

    whole: dict[str, Any]
    folders: dict[str, Path]
    minimum: int | None
    seed: int
    out: Path
    trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant without one fold, or without one hospital."""

    place: Place
    name: str
    plan: dict[str, Any]
    fold: int
    hospital: str | None = None

    @property
    def trial(self) -> Trial:
        """Who trains and who is tested, and the first values of the network."""
        return Trial(seed=self.place.seed, fold=self.fold)

    @property
    def path(self) -> Path:
        """Where the point is kept."""
        part = f"fold-{self.fold}" if self.hospital is None else f"hospital-{self.hospital}"
        return self.place.out / "points" / f"{self.name}.{part}.json"


@lru_cache(maxsize=2)
def _opened(key: bytes) -> tuple[dict[str, Site], dict[str, str]]:
    """The hospitals of a place, read once in a process; consent is still asked at every use."""
    content = json.loads(key)
    whole, scratch = parse(content["whole"]), Scratch()
    sites: dict[str, Site] = {}
    excluded: dict[str, str] = {}
    first = Trial(seed=content["seed"], fold=0 if whole.evaluation.folds else -1)
    for name, folder in content["folders"].items():
        try:
            state = Path(content["out"]) / "sites" / name
            site = open_site(Path(folder), whole, state=state, minimum=content["minimum"], scratch=scratch)
            site.admit(whole, first)
        except OncofedError as error:
            excluded[name] = "; ".join(error.problems[:3])
            continue
        sites[name] = site
    return sites, excluded


def admitted(place: Place) -> tuple[dict[str, Site], dict[str, str]]:
    """Open the hospitals; those that say no or cannot be read are left out. A process reads each of them once.

    Returns:
        The sites by name, and the others with the reason.
    """
    content = {f.name: getattr(place, f.name) for f in fields(place)}
    content |= {"folders": {n: str(f) for n, f in place.folders.items()}, "out": str(place.out)}
    return _opened(dump_json(content))


def forget() -> None:
    """Read the hospitals anew at the next use: their files may have changed since the last comparison of this process."""
    _opened.cache_clear()


def _sources(point: Point) -> dict[str, ComparedSource]:
    whole, opened = parse(point.place.whole), admitted(point.place)[0]
    made = {}
    for number, (name, site) in enumerate(opened.items()):
        task = point.name if point.name in {SHUFFLE, HOSPITAL} else ""
        made[name] = ComparedSource(
            site.source, whole, held_out=name == point.hospital, spread=point.hospital is None, task=task, number=number
        )
        made[name].trial = point.trial
    return made


def _steps_of_pooled(plan: Plan) -> bool:
    """Whether the federation takes the very steps of pooled training, but for draws of dropout: one step of everybody a round."""
    training, strategy = plan.training, plan.strategy
    whole = training.local_steps == 1 and training.batch == "all" and training.optimiser == "sgd"
    return whole and strategy.name in SUMMING and strategy.participation == 1 and not strategy.local


def _run(
    point: Point, plan: Plan, trained: Mapping[str, Source], tested: Mapping[str, Source], *, pooled: bool = False
) -> tuple[Scored, Run]:
    """Train one federation, or all its patients in one place, and predict for test patients of its hospitals or of others."""
    work = point.place.out / "work" / point.path.stem
    shutil.rmtree(work, ignore_errors=True)
    sites = {n: Site(s, {plan.hash: plan}, minimum_cohort=1) for n, s in {**trained, **tested}.items()}
    members = {n: sites[n] for n in trained}
    consortium = Consortium(plan=plan, sites=members, externals={}, store=work)
    run = consortium.pooled(point.trial) if pooled else consortium.federated(point.trial)
    scored: Scored = {}
    score_patients({n: sites[n] for n in tested}, run, scored)
    shutil.rmtree(work, ignore_errors=True)
    return scored, run


def _inner_score(point: Point, plan: Plan, sources: Mapping[str, ComparedSource]) -> float | None:
    """A plan's score on training patients of a point, each held out once: as the point holds out, patients or hospitals.

    Where a federation takes the steps of pooled training it is trained pooled, which makes the same model many times as fast.
    """
    task, parts = plan.main_task, []
    sizes = {n: int((s.split(plan, s.cohort(plan), point.trial) == TRAIN).sum()) for n, s in sources.items()}
    folds = min(INNER, len(sources)) if point.hospital is not None else 1
    groups = hospital_groups(sizes, folds) if folds > 1 else {}
    folds = folds if groups else INNER
    for fold in range(folds):
        inner = {n: InnerSource(s, fold=fold, folds=folds, group=groups.get(n)) for n, s in sources.items()}
        trained = {n: s for n, s in inner.items() if groups.get(n) != fold or not groups}
        try:
            tested = {n: s for n, s in inner.items() if groups.get(n, fold) == fold}
            scored, _ = _run(point, plan, trained, tested, pooled=_steps_of_pooled(plan))
        except RemoteProtocolError:
            # Settings with which training diverges.
            return None
        parts.append(tuple(np.concatenate(values) for values in scored[task]))
    name = metric_of(plan, task)
    if groups:
        shown, labels = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        return numbers_of(plan, task, shown, labels).get(name)
    known = [numbers_of(plan, task, shown, labels).get(name) for shown, labels in parts]
    return float(np.mean([k for k in known if k is not None])) if any(k is not None for k in known) else None


def searched(point: Point, *, trials: int) -> tuple[Found, dict[str, int]]:
    """Choose settings of a point's plan on its training patients, and say how many these are at each hospital.

    Guarantees:
        - A search sees no test patient: neither of the point's fold or split nor of its held-out hospital.
    """
    plan = parse(point.plan)
    trained = {n: s for n, s in _sources(point).items() if n != point.hospital}
    sizes = {n: int((s.split(plan, s.cohort(plan), point.trial) == TRAIN).sum()) for n, s in trained.items()}
    found = search(
        plan,
        trials=trials,
        seed=point.place.seed,
        score=lambda p: _inner_score(point, p, trained),
        kept=point.place.out / "searched" / point.path.name,
    )
    return found, sizes


def measure(point: Point) -> None:
    """Train a point over its hospitals and write its test patients' predictions and labels down, without their ids.

    With a search, settings are chosen before, on training patients alone.
    """
    plan, sources = parse(point.plan), _sources(point)
    trained: dict[str, ComparedSource] = {n: s for n, s in sources.items() if n != point.hospital}
    found = None
    if point.place.trials and point.name not in {SHUFFLE, HOSPITAL}:
        found, _ = searched(point, trials=point.place.trials)
        plan = found.plan
    tested = sources if point.hospital is None else {point.hospital: sources[point.hospital]}
    scored, run = _run(point, plan, trained, tested)
    aggregator = Aggregator(plan, Roster(trainers=(), evaluators=()), point.trial, session="", state=run.state)
    parts = {n: s.split(plan, s.cohort(plan), point.trial) for n, s in sources.items()}
    asked = {n: s for n, s in tested.items() if n not in run.state.excluded}
    content = {
        "parameters": int(sum(a.size for a in aggregator.parameters().values())),
        "train": int(sum((p == TRAIN).sum() for p in parts.values())),
        "test": int(sum((p == TEST).sum() for p in parts.values())),
        "tasks": {
            task: {"predictions": np.concatenate(shown).tolist(), "labels": _listed(np.concatenate(labels))}
            for task, (shown, labels) in scored.items()
        },
        "groups": {
            group: np.concatenate(
                [s.cohort(plan).subgroups[group][parts[n] == TEST] for n, s in asked.items()]
            ).tolist()
            for group in plan.evaluation.subgroups
        },
        "chosen": None if found is None else {"values": found.values, "inner": found.score, "planned": found.planned},
    }
    write_whole(point.path, dump_json(content), private=True)


def _listed(labels: NDArray[Any]) -> list[Any]:
    """Labels as JSON, which has no NaN."""
    numbers = labels.astype(float)
    listed: list[Any] = np.where(np.isnan(numbers), np.array(None), numbers.astype(object)).tolist()
    return listed


def read_point(point: Point) -> Mapping[str, Any]:
    """What `measure` has written, with predictions and labels as arrays."""
    content: dict[str, Any] = json.loads(point.path.read_bytes())
    for task in content["tasks"].values():
        task["predictions"] = np.array(task["predictions"], float)
        task["labels"] = np.array(task["labels"], float)
    content["groups"] = {name: np.array(members, int) for name, members in content["groups"].items()}
    return content
