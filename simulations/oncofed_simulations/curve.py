"""`oncofed-simulate privacy-curve`: what privacy costs, by epsilon and by who draws the noise, over many seeds.

pooled       one site has everybody: DP-SGD as if nobody were apart
consortium   noise drawn once by shares under a secure sum, as the plan's `drop` and `collude` size them
reference    the same with collude = 0: holds only if no site tells its noise
site         every site draws all the noise that it needs on its own
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from oncofed_client.scratch import Scratch
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.comparisons import pooled_like, with_site_noise, without_privacy
from oncofed_simulations.consortium import Consortium, Run, folder_settings, open_site
from oncofed_simulations.exact import exact_numbers
from oncofed_simulations.folders import site_folders

__all__ = ["MECHANISMS", "CurveOptions", "privacy_curve"]

MECHANISMS = ("pooled", "consortium", "reference", "site")
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """What the command line says beside the study.

    Attributes:
        epsilons: infinite for no privacy.
        jobs: processes at once.
        announce: called with the number of finished points and of all points.
    """

    sites: Path
    out: Path
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    min_patients: int | None = None
    jobs: int = 1
    command: str = ""
    announce: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One seed at one epsilon, in a form that another process can read."""

    plan: dict[str, Any]
    epsilon: float
    seed: int
    sites: Path
    out: Path
    minimum: int | None

    @property
    def path(self) -> Path:
        return self.out / "points" / f"epsilon-{self.epsilon:g}.seed-{self.seed}.json"


def _at(plan: Plan, epsilon: float, *, reference: bool = False) -> Plan:
    """The plan with noise over the consortium at an epsilon; scores are not released, for the simulation has exact ones."""
    privacy = plan.privacy.model_dump(mode="json")
    if not isinstance(plan.privacy, ConsortiumPrivacy):
        kept = ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")
        privacy = {k: privacy[k] for k in kept} | {"noise": "consortium"}
    privacy |= {"epsilon": epsilon, "score_epsilon": None}
    if reference:
        privacy |= {"collude": 0, "drop": 0, "reference": True, "threshold": None}
    return parse(plan.model_dump(mode="json") | {"privacy": privacy})


def _consortium(point: _Point, plan: Plan, name: str) -> Consortium:
    place = point.out / "work" / f"{point.epsilon:g}-{point.seed}" / name
    scratch, sites = Scratch(), {}
    for folder in site_folders(point.sites):
        settings = folder_settings(folder, plan)
        try:
            site = open_site(
                folder, plan, state=place / "sites" / settings.site.name, minimum=point.minimum, scratch=scratch
            )
            site.admit(plan, Trial(seed=point.seed))
        except OncofedError:
            continue
        if not isinstance(plan.privacy, NoPrivacy) and site.name in plan.privacy.patients:
            sites[site.name] = site
    return Consortium(plan=plan, sites=sites, externals={}, store=place / "progress")


def _score(plan: Plan, consortium: Consortium, run: Run) -> float:
    metric = "c_index" if plan.tasks[plan.main_task].kind == "survival" else "auc"
    return exact_numbers(plan, consortium.sites, [[run]])[plan.main_task][metric]


def _measure(point: _Point) -> None:
    """Train every mechanism at one point and write the scores down."""
    whole, trial = parse(point.plan), Trial(seed=point.seed)
    private = math.isfinite(point.epsilon)
    # Without noise it does not matter whose it is.
    plan = _at(whole, point.epsilon if private else 1.0)
    main = _consortium(point, plan, "consortium")
    if private:
        twin = _consortium(point, _at(whole, point.epsilon, reference=True), "reference")
        runs = {
            "pooled": (main, pooled_like(main).pooled(trial)),
            "consortium": (main, main.federated(trial)),
            "reference": (twin, twin.federated(trial)),
            "site": (main, with_site_noise(main).federated(trial, arm="site_noise")),
        }
    else:
        free = without_privacy(main)
        together = free.federated(trial, arm="without_privacy")
        runs = dict.fromkeys(("consortium", "reference", "site"), (main, together))
        runs["pooled"] = (main, free.pooled(trial))
    scores = {name: _score(run.plan, consortium, run) for name, (consortium, run) in runs.items()}
    write_whole(point.path, dump_json(scores))
    shutil.rmtree(point.out / "work" / f"{point.epsilon:g}-{point.seed}", ignore_errors=True)


def _interval(values: Sequence[float]) -> list[float] | None:
    """Student's interval of a mean."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    mean = float(np.mean(values))
    return [mean - half, mean + half]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "ci": _interval(values), "per_seed": list(values)}


def privacy_curve(plan: Plan, options: CurveOptions) -> dict[str, Any]:
    """Measure and write `curve.json`.

    Points that are in `out` already are not measured again, so that an interrupted command goes on.

    Returns:
        What the file holds: `mechanisms{name}{epsilon}` and paired `differences{name}{epsilon}`, each with its mean, 95 % interval
        over seeds, and each seed's.

    Raises:
        ConfigError: the study has no privacy, or `out` holds another curve.
    """
    if isinstance(plan.privacy, NoPrivacy):
        raise ConfigError(
            "privacy.noise: is 'none'; a curve needs a private study's clip norm, sampling rate and roster"
        )
    mark = dump_json({"plan_hash": plan.hash, "sites": str(options.sites.resolve()), "minimum": options.min_patients})
    kept = options.out / "plan.json"
    if kept.exists() and kept.read_bytes() != mark:
        raise ConfigError(f"{options.out}: holds the curve of another study; choose another folder")
    write_whole(kept, mark)
    content = plan.model_dump(mode="json")
    points = [
        _Point(plan=content, epsilon=e, seed=s, sites=options.sites, out=options.out, minimum=options.min_patients)
        for s in options.seeds
        for e in options.epsilons
    ]
    todo = [p for p in points if not p.path.exists()]
    options.announce(len(points) - len(todo), len(points))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_measure, p) for p in todo]
        for done, future in enumerate(as_completed(waiting), len(points) - len(todo) + 1):
            future.result()
            options.announce(done, len(points))
    result = _result(plan, options, points)
    write_whole(options.out / "curve.json", dump_json(result))
    return result


def _result(plan: Plan, options: CurveOptions, points: Sequence[_Point]) -> dict[str, Any]:
    scores: dict[float, list[Mapping[str, float]]] = {e: [] for e in options.epsilons}
    for point in points:
        scores[point.epsilon].append(json.loads(point.path.read_bytes()))
    privacy = _at(plan, 1.0).privacy
    assert isinstance(privacy, ConsortiumPrivacy)  # noqa: S101 - `_at` makes no other
    pairs = (("consortium", "pooled"), ("consortium", "site"), ("reference", "pooled"))
    return {
        "study": plan.study.name,
        "plan_hash": plan.hash,
        "command": options.command,
        "metric": "c_index" if plan.tasks[plan.main_task].kind == "survival" else "auc",
        "delta": privacy.delta,
        "sites": len(privacy.patients),
        "drop": privacy.drop,
        "collude": privacy.collude,
        "seeds": list(options.seeds),
        "mechanisms": {
            name: {f"{e:g}": _summary([s[name] for s in each]) for e, each in scores.items()} for name in MECHANISMS
        },
        "differences": {
            f"{a} - {b}": {f"{e:g}": _summary([s[a] - s[b] for s in each]) for e, each in scores.items()}
            for a, b in pairs
        },
    }
