"""One point of a comparison: one variant trained without one fold or hospital, and scored on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.scratch import Scratch
from oncofed_client.site import Site
from oncofed_client.source import Source
from oncofed_server.aggregator import Aggregator, Roster
from oncofed_shared.errors import OncofedError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.compare_variants import HOSPITAL, SHUFFLE
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.exact import Scored, score_patients

__all__ = ["ComparedSource", "Place", "Point", "admitted", "measure", "read_point"]

TEST = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which hospitals take part, in a form that another process can read.

    Attributes:
        whole: content of the plan that says who takes part and who is in which fold.
        folders: of the hospitals, by name.
        minimum: fewest patients of a site, in place of its policy.
    """

    whole: dict[str, Any]
    folders: dict[str, Path]
    minimum: int | None
    seed: int
    out: Path


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant without one fold, or without one hospital."""

    place: Place
    name: str
    plan: dict[str, Any]
    fold: int
    hospital: str | None = None

    @property
    def path(self) -> Path:
        """Where the point is kept."""
        part = f"fold-{self.fold}" if self.hospital is None else f"hospital-{self.hospital}"
        return self.place.out / "points" / f"{self.name}.{part}.json"


class ComparedSource:
    """A hospital read by the whole plan, so that every variant has the same patients in the same parts.

    Args:
        held_out: whether all its patients are tested; without it they are in folds.
        spread: whether there are folds; without them everybody else trains.
        task: `label-shuffle` permutes the labels of training patients; `predict-hospital` gives everybody `number`.
    """

    def __init__(
        self,
        source: Source,
        whole: Plan,
        *,
        held_out: bool = False,
        spread: bool = True,
        task: str = "",
        number: int = 0,
    ) -> None:
        self.source, self.whole, self.held_out, self.spread = source, whole, held_out, spread
        self.task, self.number = task, number
        self._made: dict[str, tuple[Cohort, Cohort]] = {}
        self.trial = Trial(seed=0)

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """The whole plan's patients with the modalities of this one."""
        read = self.source.cohort(self.whole)
        known = self._made.get(plan.hash)
        if known is None or known[0] is not read:
            known = self._made[plan.hash] = (read, self._changed(plan, read))
        return known[1]

    def _changed(self, plan: Plan, cohort: Cohort) -> Cohort:
        labels = cohort.labels
        if self.task == HOSPITAL:
            labels = {t: np.full(len(cohort.patients), self.number) for t in plan.tasks}
        elif self.task == SHUFFLE:
            rng = np.random.default_rng([self.trial.seed, self.trial.fold + 1, *self.name.encode()])
            rows = np.flatnonzero(self._parts(cohort) == 0)
            order = rng.permutation(rows)
            labels = {t: v.copy() for t, v in labels.items()}
            for values in labels.values():
                values[rows] = values[order]
        return replace(
            cohort,
            values={m: cohort.values[m] for m in plan.modalities},
            columns={m: cohort.columns[m] for m in plan.modalities},
            labels=labels,
        )

    def _parts(self, cohort: Cohort) -> NDArray[np.int64]:
        if self.held_out or not self.spread:
            return np.full(len(cohort.patients), TEST if self.held_out else 0, dtype=np.int64)
        return self.source.split(self.whole, cohort, self.trial)

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient: that of the whole plan."""
        del plan, cohort, trial
        return self._parts(self.source.cohort(self.whole))


def admitted(place: Place) -> tuple[dict[str, Site], dict[str, str]]:
    """Open the hospitals; those that say no or cannot be read are left out.

    Returns:
        The sites by name, and the others with the reason.
    """
    whole, scratch = parse(place.whole), Scratch()
    sites: dict[str, Site] = {}
    excluded: dict[str, str] = {}
    for name, folder in place.folders.items():
        try:
            state = place.out / "sites" / name
            site = open_site(folder, whole, state=state, minimum=place.minimum, scratch=scratch)
            site.admit(whole, Trial(seed=place.seed, fold=0))
        except OncofedError as error:
            excluded[name] = "; ".join(error.problems[:3])
            continue
        sites[name] = site
    return sites, excluded


def _sites(point: Point, plan: Plan) -> dict[str, Site]:
    whole, opened = parse(point.place.whole), admitted(point.place)[0]
    made = {}
    for number, (name, site) in enumerate(opened.items()):
        task = point.name if point.name in {SHUFFLE, HOSPITAL} else ""
        source = ComparedSource(
            site.source, whole, held_out=name == point.hospital, spread=point.hospital is None, task=task, number=number
        )
        source.trial = Trial(seed=point.place.seed, fold=point.fold)
        made[name] = Site(source, {plan.hash: plan}, minimum_cohort=1)
    return made


def measure(point: Point) -> None:
    """Train a point over its hospitals and write its test patients' predictions and labels down, without their ids."""
    plan = parse(point.plan)
    sites = _sites(point, plan)
    trained = {n: s for n, s in sites.items() if n != point.hospital}
    tested = sites if point.hospital is None else {point.hospital: sites[point.hospital]}
    work = point.place.out / "work" / point.path.stem
    shutil.rmtree(work, ignore_errors=True)
    trial = Trial(seed=point.place.seed, fold=point.fold)
    run = Consortium(plan=plan, sites=trained, externals={}, store=work).federated(trial)
    scored: Scored = {}
    score_patients(tested, run, scored)
    aggregator = Aggregator(plan, Roster(trainers=(), evaluators=()), trial, session="", state=run.state)
    parts = [s.source.split(plan, s.source.cohort(plan), trial) for s in sites.values()]
    content = {
        "parameters": int(sum(a.size for a in aggregator.parameters().values())),
        "train": int(sum((p == 0).sum() for p in parts)),
        "test": int(sum((p == TEST).sum() for p in parts)),
        "tasks": {
            task: {"predictions": np.concatenate(shown).tolist(), "labels": _listed(np.concatenate(labels))}
            for task, (shown, labels) in scored.items()
        },
    }
    write_whole(point.path, dump_json(content), private=True)
    shutil.rmtree(work, ignore_errors=True)


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
    return content
