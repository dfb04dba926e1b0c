"""`oncofed-simulate privacy-curve`: what privacy costs, by epsilon and by who draws the noise, over many seeds.

pooled       one site has everybody: DP-SGD as if nobody were apart
consortium   noise drawn once by shares under a secure sum, as the plan's `drop` and `collude` size them
reference    the same with collude = 0: holds only if no site tells its noise
site         every site draws all the noise that it needs on its own
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan
from oncofed_shared.storage import alone, dump_json, write_whole
from oncofed_simulations.compare_statistics import over_folds
from oncofed_simulations.curve_page import page
from oncofed_simulations.curve_points import MECHANISMS, Point, at_epsilon, measure, read_point, reading
from oncofed_simulations.exact import metric_of

__all__ = ["CurveOptions", "privacy_curve", "summary_lines"]

LEVEL = 0.95
PAIRS = (("consortium", "pooled"), ("consortium", "site"), ("reference", "pooled"))


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """What the command line says beside the study.

    Attributes:
        epsilons: infinite for no privacy.
        mechanisms: those of `MECHANISMS` that are trained.
        modalities: those of the plan that are read; empty for all.
        folds: of patients, in place of the plan's split; a seed's score is then the mean over its folds.
        jobs: processes at once.
        announce: called with the number of finished points and of all points.
    """

    sites: Path
    out: Path
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    mechanisms: tuple[str, ...] = MECHANISMS
    modalities: tuple[str, ...] = ()
    folds: int | None = None
    min_patients: int | None = None
    jobs: int = 1
    command: str = ""
    announce: Callable[[int, int], None] = lambda done, total: None


Scores = Sequence[Sequence[float]]
"""By seed, and by its folds."""


def _summary(scores: Scores) -> dict[str, Any]:
    """Mean and 95 % interval: Student's over seeds, or over folds, corrected for training patients that they share."""
    seeds = [float(np.mean(each)) for each in scores]
    made: dict[str, Any] = {"mean": float(np.mean(seeds)), "ci": None, "per_seed": seeds}
    folds = max(map(len, scores))
    if folds > 1:
        estimate = over_folds([v for each in scores for v in each], 1 / (folds - 1))
        return made | {
            "ci": None if estimate is None else list(estimate.interval()),
            "per_fold": list(map(list, scores)),
        }
    if len(seeds) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(seeds) - 1) * np.std(seeds, ddof=1) / math.sqrt(len(seeds)))
        made["ci"] = [made["mean"] - half, made["mean"] + half]
    return made


def _checked(plan: Plan, options: CurveOptions) -> Plan:
    """The plan that is measured.

    Raises:
        ConfigError: it has no privacy, or an option names what is not there.
    """
    if isinstance(plan.privacy, NoPrivacy):
        raise ConfigError(
            "privacy.noise: is 'none'; a curve needs a private study's clip norm, sampling rate and roster"
        )
    wrong = [m for m in options.mechanisms if m not in MECHANISMS]
    if wrong or not options.mechanisms:
        raise ConfigError(f"--mechanisms: no '{', '.join(wrong)}'; there are {', '.join(MECHANISMS)}")
    unknown = [m for m in options.modalities if m not in plan.modalities]
    if unknown:
        raise ConfigError(f"--modalities: no '{unknown[0]}'; there are {', '.join(plan.modalities)}")
    return reading(plan, options.modalities)


def privacy_curve(plan: Plan, options: CurveOptions) -> dict[str, Any]:
    """Measure, and write `curve.json` and `curve.html`.

    Points that are in `out` already are not measured again, so that an interrupted command goes on.

    Returns:
        What the file holds: `mechanisms{name}{epsilon}` and paired `differences{name}{epsilon}`, each with its mean, 95 % interval
        over seeds (or folds), and each seed's; `references{name}`, the same without privacy.

    Raises:
        ConfigError: the study has no privacy, or `out` holds another curve.
        StorageError: another process measures in `out`, or it cannot be written.
    """
    used = _checked(plan, options)
    with alone(options.out, "oncofed-simulate privacy-curve"):
        return _measured(plan, used, options)


def _measured(plan: Plan, used: Plan, options: CurveOptions) -> dict[str, Any]:
    mark: dict[str, Any] = {
        "plan_hash": plan.hash,
        "modalities": list(options.modalities),
        "sites": str(options.sites.resolve()),
        "minimum": options.min_patients,
    }
    mark |= {"mechanisms": list(options.mechanisms), "folds": options.folds}
    kept = options.out / "plan.json"
    if kept.exists() and kept.read_bytes() != dump_json(mark):
        raise ConfigError(f"{options.out}: holds another curve; choose another folder")
    write_whole(kept, dump_json(mark))
    content = plan.model_dump(mode="json")
    points = [
        Point(
            plan=content, epsilon=e, seed=s, sites=options.sites, out=options.out, minimum=options.min_patients,
            mechanisms=options.mechanisms, modalities=options.modalities, folds=options.folds,
        )
        for s in options.seeds
        for e in options.epsilons
    ]  # fmt: skip
    _measure_all(points, options)
    result = _result(used, options, points)
    write_whole(options.out / "curve.json", dump_json(result))
    write_whole(options.out / "curve.html", page(result).encode())
    return result


def _measure_all(points: Sequence[Point], options: CurveOptions) -> None:
    todo = [p for p in points if not p.path.exists()]
    options.announce(len(points) - len(todo), len(points))
    if options.jobs == 1:
        for done, point in enumerate(todo, len(points) - len(todo) + 1):
            measure(point)
            options.announce(done, len(points))
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(measure, p) for p in todo]
        for done, future in enumerate(as_completed(waiting), len(points) - len(todo) + 1):
            future.result()
            options.announce(done, len(points))


def _result(plan: Plan, options: CurveOptions, points: Sequence[Point]) -> dict[str, Any]:
    read: dict[float, list[Mapping[str, Mapping[str, list[float]]]]] = {e: [] for e in options.epsilons}
    for point in points:
        read[point.epsilon].append(read_point(point))
    privacy = at_epsilon(plan, 1.0).privacy
    assert isinstance(privacy, ConsortiumPrivacy)  # noqa: S101 - `at_epsilon` makes no other
    names = options.mechanisms

    def apart(a: Sequence[float], b: Sequence[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    first = next(iter(read.values()))
    return {
        "study": plan.study.name,
        "plan_hash": plan.hash,
        "command": options.command,
        "metric": metric_of(plan, plan.main_task),
        "delta": privacy.delta,
        "sites": len(privacy.patients),
        "drop": privacy.drop,
        "collude": privacy.collude,
        "seeds": list(options.seeds),
        "folds": options.folds,
        "modalities": list(plan.modalities),
        "mechanisms": {
            name: {f"{e:g}": _summary([s["mechanisms"][name] for s in each]) for e, each in read.items()}
            for name in names
        },
        "differences": {
            f"{a} - {b}": {
                f"{e:g}": _summary([apart(s["mechanisms"][a], s["mechanisms"][b]) for s in each])
                for e, each in read.items()
            }
            for a, b in PAIRS
            if a in names and b in names
        },
        "references": {name: _summary([s["references"][name] for s in first]) for name in first[0]["references"]},
    }


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Every number of a curve as a line for a terminal."""
    lines = []
    rows = [
        (n, f", epsilon {e}", c)
        for n, by in (result["mechanisms"] | result["differences"]).items()
        for e, c in by.items()
    ]
    for name, at, cell in rows + [(n, ", without privacy", c) for n, c in result["references"].items()]:
        bounds = "" if cell["ci"] is None else f" (95 % {cell['ci'][0]:.4f} to {cell['ci'][1]:.4f})"
        folds = f" of {result['folds']} folds" if result["folds"] else ""
        lines.append(f"{name}{at}: {cell['mean']:.4f}{bounds}, {len(cell['per_seed'])} seeds{folds}")
    return lines
