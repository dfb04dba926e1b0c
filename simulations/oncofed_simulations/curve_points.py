"""One point of a privacy curve: every mechanism trained at one epsilon with one seed, and scored exactly on its test patients."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.scratch import Scratch
from oncofed_client.source import Source, parts_of
from oncofed_shared.errors import OncofedError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.comparisons import pooled_like, with_site_noise, without_privacy
from oncofed_simulations.consortium import Consortium, Run, folder_settings, open_site
from oncofed_simulations.exact import exact_numbers, metric_of, numbers_of
from oncofed_simulations.folders import site_folders
from oncofed_simulations.pooled import PooledSource
from oncofed_simulations.reference import reference_predictions

__all__ = ["MECHANISMS", "CurveSource", "Point", "at_epsilon", "measure", "read_point", "reading"]

MECHANISMS = ("pooled", "consortium", "reference", "site")
TRAIN, TEST = 0, 2


class CurveSource:
    """A hospital whose patients are those of the whole study, whichever modalities are read, in folds if there are any.

    A private plan has no folds, because each is one more model of the same patients. Here each is a run of its own, as a seed is.
    Who is in which follows from his id and the seed alone.

    Args:
        whole: the study with all its modalities: who takes part.
        fold, folds: of which how many parts is tested; without folds the plan's split holds.
    """

    def __init__(self, source: Source, whole: Plan, *, fold: int = 0, folds: int | None = None) -> None:
        self.source, self.whole, self.fold, self.folds = source, whole, fold, folds
        self._made: tuple[Cohort, Cohort] | None = None

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """The patients who may enter now, with the modalities of this plan."""
        read = self.source.cohort(self.whole)
        # The same object for the same patients: others remember what they made of it.
        if self._made is None or self._made[0] is not read or set(self._made[1].values) != set(plan.modalities):
            kept = {m: read.values[m] for m in plan.modalities}
            self._made = (read, replace(read, values=kept, columns={m: read.columns[m] for m in kept}))
        return self._made[1]

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient, (n,): 2 in the fold, 0 outside."""
        if self.folds is None:
            return self.source.split(self.whole, cohort, trial)
        evaluation = plan.evaluation.model_copy(update={"folds": self.folds})
        folded = plan.model_copy(update={"evaluation": evaluation})
        return parts_of(folded, cohort, Trial(seed=trial.seed, fold=self.fold))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One seed at one epsilon, in a form that another process can read.

    Attributes:
        mechanisms: those of `MECHANISMS` that are trained.
        modalities: those that are read; all patients of the study take part whichever these are.
        folds: of patients, each held out once; None for the plan's split.
    """

    plan: dict[str, Any]
    epsilon: float
    seed: int
    sites: Path
    out: Path
    minimum: int | None
    mechanisms: tuple[str, ...] = MECHANISMS
    modalities: tuple[str, ...] = ()
    folds: int | None = None

    @property
    def path(self) -> Path:
        """Where its scores are kept."""
        return self.out / "points" / f"epsilon-{self.epsilon:g}.seed-{self.seed}.json"

    @property
    def work(self) -> Path:
        """Folder of what is only there while it is measured."""
        return self.out / "work" / f"{self.epsilon:g}-{self.seed}"


def at_epsilon(plan: Plan, epsilon: float, *, reference: bool = False) -> Plan:
    """The plan with noise over the consortium at an epsilon; scores are not released, for the simulation has exact ones."""
    privacy = plan.privacy.model_dump(mode="json")
    if not isinstance(plan.privacy, ConsortiumPrivacy):
        kept = ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")
        privacy = {k: privacy[k] for k in kept} | {"noise": "consortium"}
    privacy |= {"epsilon": epsilon, "score_epsilon": None}
    if reference:
        privacy |= {"collude": 0, "drop": 0, "reference": True, "threshold": None}
    return parse(plan.model_dump(mode="json") | {"privacy": privacy})


def reading(plan: Plan, modalities: tuple[str, ...]) -> Plan:
    """The plan with some of its modalities, or as it is for no name."""
    if not modalities:
        return plan
    content = plan.model_dump(mode="json")
    return parse(content | {"modalities": {m: content["modalities"][m] for m in modalities}})


def _consortium(point: Point, plan: Plan, name: str, fold: int) -> Consortium:
    place = point.work / f"{name}-{fold}"
    scratch, sites, whole = Scratch(), {}, parse(point.plan)
    for folder in site_folders(point.sites):
        settings = folder_settings(folder, plan)
        try:
            site = open_site(
                folder, plan, state=place / "sites" / settings.site.name, minimum=point.minimum, scratch=scratch
            )
            site.source = CurveSource(site.source, whole, fold=fold, folds=point.folds)
            site.admit(plan, Trial(seed=point.seed))
        except OncofedError:
            continue
        if not isinstance(plan.privacy, NoPrivacy) and site.name in plan.privacy.patients:
            sites[site.name] = site
    return Consortium(plan=plan, sites=sites, externals={}, store=place / "progress")


def _runs(point: Point, fold: int) -> dict[str, tuple[Consortium, Run]]:
    """Every mechanism's run, and the sites that score it."""
    whole, trial = reading(parse(point.plan), point.modalities), Trial(seed=point.seed)
    # Without noise it does not matter whose it is.
    main = _consortium(
        point, at_epsilon(whole, point.epsilon if math.isfinite(point.epsilon) else 1.0), "consortium", fold
    )
    if not math.isfinite(point.epsilon):
        free = without_privacy(main)
        together = [n for n in point.mechanisms if n != "pooled"]
        run = free.federated(trial, arm="without_privacy") if together else None
        made = {name: (main, run) for name in together if run is not None}
        return made | ({"pooled": (main, free.pooled(trial))} if "pooled" in point.mechanisms else {})
    runs: dict[str, tuple[Consortium, Run]] = {}
    for name in point.mechanisms:
        if name == "reference":
            twin = _consortium(point, at_epsilon(whole, point.epsilon, reference=True), name, fold)
            runs[name] = (twin, twin.federated(trial))
        elif name == "pooled":
            runs[name] = (main, pooled_like(main).pooled(trial))
        elif name == "site":
            runs[name] = (main, with_site_noise(main).federated(trial, arm="site_noise"))
        else:
            runs[name] = (main, main.federated(trial))
    return runs


def _references(plan: Plan, consortium: Consortium, trial: Trial) -> dict[str, float]:
    """Scores of the plan's references, fitted without privacy on the same training patients."""
    pooled = PooledSource([s.source for s in consortium.sites.values()])
    cohort, task = pooled.cohort(plan), plan.main_task
    parts = pooled.split(plan, cohort, trial)
    made: dict[str, float] = {}
    for name, reference in plan.evaluation.reference.items():
        there = {c for columns in cohort.columns.values() for c in (*columns, *(x.split("=")[0] for x in columns), "*")}
        if not set(reference.features) <= there:
            continue
        predictions = reference_predictions(plan, cohort, parts == TRAIN, name)
        if task in predictions:
            test = parts == TEST
            made |= {
                name: numbers_of(plan, task, predictions[task][test], cohort.labels[task][test])[metric_of(plan, task)]
            }
    return made


def measure(point: Point) -> None:
    """Train every mechanism at one point and write the scores down, one for each fold or one in all."""
    scores: dict[str, dict[str, list[float]]] = {"mechanisms": {}, "references": {}}
    for fold in range(point.folds or 1):
        runs = _runs(point, fold)
        for name, (consortium, run) in runs.items():
            found = exact_numbers(run.plan, consortium.sites, [[run]])[run.plan.main_task]
            scores["mechanisms"].setdefault(name, []).append(found[metric_of(run.plan, run.plan.main_task)])
        consortium, _ = next(iter(runs.values()))
        for name, score in _references(consortium.plan, consortium, Trial(seed=point.seed)).items():
            scores["references"].setdefault(name, []).append(score)
        shutil.rmtree(point.work, ignore_errors=True)
    write_whole(point.path, dump_json(scores))


def read_point(point: Point) -> Mapping[str, Mapping[str, list[float]]]:
    """What `measure` has written."""
    content: dict[str, dict[str, list[float]]] = json.loads(point.path.read_bytes())
    return content
