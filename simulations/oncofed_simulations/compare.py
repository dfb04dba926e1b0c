"""`oncofed-simulate compare`: changes of one plan under one protocol, and whether any beats the best single modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan
from oncofed_shared.storage import alone, dump_json, write_whole
from oncofed_simulations.compare_page import page
from oncofed_simulations.compare_points import Place, Point, admitted, forget, measure, read_point
from oncofed_simulations.compare_scores import Scores, judged, scores_of, within
from oncofed_simulations.compare_variants import (
    HOSPITAL,
    Variant,
    chosen_variants,
    restricted,
    sanity_variants,
    sensitivity_variants,
    whole_plan,
)
from oncofed_simulations.consortium import folder_settings
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["CompareOptions", "claim", "compare", "hospital_folders", "summary_lines"]


POINTS = 2
"""Version of what a point holds: those of another one cannot be gone on with."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What the command line says beside the study.

    Attributes:
        sites: folder of the hospitals; None for the study's own synthetic cohort.
        variants: names with commas, or `all`.
        leave_hospital_out: hold out one hospital at a time in place of folds.
        patients_with: modalities with commas; who lacks one of them does not take part.
        search: trials of settings on each point's training patients; 0 for none.
        jobs: processes at once; with one, this process.
        announce: called with the number of finished points and of all points.
    """

    out: Path
    sites: Path | None = None
    variants: str = "all"
    folds: int = 5
    leave_hospital_out: bool = False
    sanity: bool = False
    sensitivity: bool = False
    seed: int = 0
    min_patients: int | None = None
    patients_with: str = ""
    search: int = 0
    jobs: int = 1
    command: str = ""
    announce: Callable[[int, int], None] = lambda done, total: None


def hospital_folders(plan: Plan, root: Path | None, out: Path) -> dict[str, Path]:
    """The hospitals' folders by name; without `root` the study's own synthetic cohort, written under `out` if it is not there.

    Raises:
        ConfigError: there is neither, or two folders have the same name.
    """
    if root is None:
        if plan.simulation.cohort is None:
            raise ConfigError("the study has no [simulation.cohort]; say where the hospitals are with --sites DIR")
        root = out / "cohort"
        if not root.exists():
            write_cohort(root, **read_settings(plan.simulation.cohort).model_dump())
    made: dict[str, Path] = {}
    for folder in site_folders(root):
        name = folder_settings(folder, plan).site.name
        if name in made:
            raise ConfigError(f"{folder}: another folder has the same site name '{name}'")
        made[name] = folder
    return made


def _claim(plan: Plan, options: CompareOptions) -> None:
    """Make the folder this comparison's: what decides a point is written down, and a repeated command must agree.

    Raises:
        ConfigError: it holds something else.
    """
    claim(
        options.out,
        {
            "plan_hash": plan.hash,
            "simulation": plan.simulation.model_dump(mode="json"),
            "sites": None if options.sites is None else str(options.sites.resolve()),
            "folds": None if options.leave_hospital_out else options.folds,
            "seed": options.seed,
            "min_patients": options.min_patients,
            "patients_with": options.patients_with,
            "search": options.search,
            "points": POINTS,
        },
        what="comparison",
        options="--sites, --folds, --leave-hospital-out, --seed, --min-patients, --patients-with or --search",
    )


def claim(out: Path, content: Mapping[str, Any], *, what: str, options: str) -> None:
    """Make a folder this comparison's or search's, so that a repeated command goes on and another one is refused.

    Args:
        content: what decides the results.
        what: word for it, and stem of the file that holds the content.
        options: of the command line, in which it may differ.

    Raises:
        ConfigError: it holds something else.
    """
    mark, kept = dump_json(dict(content)), out / f"{what}.json"
    if kept.exists() and kept.read_bytes() != mark:
        raise ConfigError(
            f"{out}: holds another {what}, of another study or with other {options}, or of another version; "
            "choose another folder"
        )
    if not kept.exists() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is not empty and is not a {what}; choose another folder")
    write_whole(kept, mark)


def _points(place: Place, variant: Variant, folds: int, hospitals: Sequence[str] | None) -> list[Point]:
    content = variant.plan.model_dump(mode="json")
    # Nobody can be taught a hospital that is held out.
    if hospitals is None or variant.name == HOSPITAL:
        return [Point(place=place, name=variant.name, plan=content, fold=k) for k in range(folds)]
    return [Point(place=place, name=variant.name, plan=content, fold=-1, hospital=h) for h in hospitals]


def _measure_all(points: Sequence[Point], options: CompareOptions) -> None:
    todo = [p for p in points if not p.path.exists()]
    ready = len(points) - len(todo)
    options.announce(ready, len(points))
    if options.jobs == 1:
        for done, point in enumerate(todo, ready + 1):
            measure(point)
            options.announce(done, len(points))
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(measure, p) for p in todo]
        try:
            for done, future in enumerate(as_completed(waiting), ready + 1):
                future.result()
                options.announce(done, len(points))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compare(plan: Plan, options: CompareOptions) -> dict[str, Any]:
    """Train every variant and write `compare.json` and `compare.html`.

    Points that are in `out` already are not trained again, so that an interrupted command goes on, and more variants can be
    added later.

    Returns:
        What `compare.json` holds; see docs/compare.md.

    Raises:
        ConfigError: a variant that the plan cannot express, a private plan, or a folder with something else.
        StorageError: another process compares in `out`, or it cannot be written.
    """
    whole = restricted(whole_plan(plan, options.folds), options.patients_with)
    if options.search and options.sensitivity:
        raise ConfigError("--search chooses the rate that --sensitivity changes; use one of them")
    chosen, left = chosen_variants(whole, options.variants)
    if options.sites is not None:
        site_folders(options.sites)
    with alone(options.out, "oncofed-simulate compare"):
        _claim(plan, options)
        return _compared(plan, options, whole, chosen, left)


def _compared(
    plan: Plan, options: CompareOptions, whole: Plan, chosen: Sequence[Variant], left: Mapping[str, str]
) -> dict[str, Any]:
    folders = hospital_folders(plan, options.sites, options.out)
    place = Place(
        whole=whole.model_dump(mode="json"), folders=folders, minimum=options.min_patients, seed=options.seed,
        out=options.out, trials=options.search,
    )  # fmt: skip
    forget()
    sites, excluded = admitted(place)
    least = 2 if options.leave_hospital_out else 1
    if len(sites) < least:
        raise ConfigError(f"fewer than {least} hospitals can take part:", *(f"{n}: {w}" for n, w in excluded.items()))
    hospitals = tuple(sites) if options.leave_hospital_out else None
    extra = sanity_variants(whole, tuple(sites)) if options.sanity else []
    extra += sensitivity_variants(whole) if options.sensitivity else []
    # The whole plan as it is: what sensitivity runs are compared with.
    base = [Variant(name="as-planned", kind="base", plan=whole)] if options.sensitivity else []
    points = {v.name: _points(place, v, options.folds, hospitals) for v in (*chosen, *base, *extra)}
    _measure_all([p for each in points.values() for p in each], options)
    read = {name: [read_point(p) for p in each] for name, each in points.items()}
    pooled = {name: each[0].hospital is not None for name, each in points.items()}
    scores = {v.name: scores_of(v.plan, read[v.name], pooled=pooled[v.name]) for v in (*chosen, *base, *extra)}
    entries = judged(chosen, scores)
    for variant in chosen:
        for task, groups in within(variant.plan, read[variant.name], pooled=pooled[variant.name]).items():
            entries[variant.name][task]["within"] = groups
    result = {
        "study": plan.study.name,
        "plan_hash": plan.hash,
        "command": options.command,
        "protocol": {
            "held_out": "hospitals" if hospitals else "folds",
            "folds": None if hospitals else options.folds,
            "hospitals": list(sites),
            "seed": options.seed,
            "patients_with": options.patients_with,
            "patients": sum(p["test"] for p in read[chosen[0].name]),
            "search": options.search,
        },
        "excluded": [{"name": n, "why": w} for n, w in excluded.items()],
        "left_out": left,
        "main_task": plan.main_task,
        "variants": entries,
        "chosen": {
            v.name: {
                p.path.stem.partition(".")[2]: r["chosen"] for p, r in zip(points[v.name], read[v.name], strict=True)
            }
            for v in chosen
            if options.search
        },
        "sanity": {v.name: _plain(scores[v.name]) for v in extra if v.kind == "sanity"},
        "sensitivity": {
            v.name: _beside(scores["as-planned"], scores[v.name]) for v in extra if v.kind == "sensitivity"
        },
    }
    write_whole(options.out / "compare.json", dump_json(result))
    write_whole(options.out / "compare.html", page(result).encode())
    return result


def _plain(scores: Mapping[str, Scores]) -> dict[str, Any]:
    return {task: s.entry() for task, s in scores.items()}


def _beside(base: Mapping[str, Scores], scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Scores of a changed rate or batch, and how far they are from the plan's own."""
    made = _plain(scores)
    for task, entry in made.items():
        pairs = ((scores[task].metric, base[task].metric), (scores[task].accuracy, base[task].accuracy))
        changes = [None if a is None or b is None else float(np.subtract(a, b)) for a, b in pairs]
        entry |= {"change": changes[0], "accuracy_change": changes[1]}
    return made


def _groups_line(entry: Mapping[str, Any]) -> str:
    found = [(g, e["metric"]) for groups in entry.get("within", {}).values() for g, e in groups.items()]
    return "".join(f", within {group} {value:.4f}" for group, value in found if value is not None)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Every variant's scores as lines for a terminal."""
    lines = []
    for name, tasks in (result["variants"] | result["sanity"] | result["sensitivity"]).items():
        for task, entry in tasks.items():
            score = "none" if entry["metric"] is None else f"{entry['metric']:.4f}"
            bounds = "" if entry["ci"] is None else f" (95 % {entry['ci'][0]:.4f} to {entry['ci'][1]:.4f})"
            p = entry.get("p_corrected")
            test = "" if p is None else f", p {p:.4f} against {entry['against']}"
            lines.append(f"{name}: {task} {entry['metric_name']} {score}{bounds}{test}{_groups_line(entry)}")
    return lines
