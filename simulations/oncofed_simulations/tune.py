"""`oncofed-simulate tune`: one setting for a study, chosen on its training patients alone (D-11, D-12)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan
from oncofed_shared.storage import alone, dump_json, write_whole
from oncofed_simulations.compare import claim, hospital_folders
from oncofed_simulations.compare_points import Place, Point, admitted, forget, searched
from oncofed_simulations.compare_search import space_of
from oncofed_simulations.compare_variants import whole_plan
from oncofed_simulations.folders import site_folders

__all__ = ["tune", "tuned_lines"]


def tune(
    plan: Plan, *, trials: int, out: Path, sites: Path | None = None, seed: int = 0, min_patients: int | None = None
) -> dict[str, Any]:
    """Try settings of `[simulation.search]` on the training patients of one seed's split, and write the best to `tuned.json`.

    A setting is scored as in a comparison's search: each third of every hospital's training patients is predicted by a federation
    of the others. Validation and test patients of the seed's split are in no part; the command can be repeated to go on.

    Args:
        trials: settings to try beside the study's own.
        seed: of the split, and of what is tried.
        min_patients: fewest patients of a site, in place of its policy.

    Returns:
        What `tuned.json` holds; see docs/compare.md.

    Raises:
        ConfigError: a private plan, one with folds, in which everybody is tested, or a folder with something else.
    """
    if plan.evaluation.folds:
        raise ConfigError(
            "evaluation.folds: everybody is tested in one of the folds, so there are no patients to choose settings on; use "
            "`oncofed-simulate compare --search`, which chooses anew in each fold"
        )
    # Nothing of the plan changes in what decides who is in which part.
    whole = whole_plan(plan, None)
    space = space_of(whole)
    if sites is not None:
        site_folders(sites)
    with alone(out, "oncofed-simulate tune"):
        claim(
            out,
            {
                "plan_hash": plan.hash,
                "simulation": plan.simulation.model_dump(mode="json"),
                "sites": None if sites is None else str(sites.resolve()),
                "seed": seed,
                "min_patients": min_patients,
            },
            what="tuning",
            options="--sites, --seed or --min-patients",
        )
        content = whole.model_dump(mode="json")
        folders = hospital_folders(plan, sites, out)
        place = Place(whole=content, folders=folders, minimum=min_patients, seed=seed, out=out)
        forget()
        members, excluded = admitted(place)
        if not members:
            raise ConfigError("no hospital can take part:", *(f"{n}: {w}" for n, w in excluded.items()))
        point = Point(place=place, name="tuned", plan=content, fold=-1)
        found, sizes = searched(point, trials=trials)
        result = {
            "study": plan.study.name,
            "plan_hash": plan.hash,
            "main_task": plan.main_task,
            "seed": seed,
            "trials": trials,
            "training_patients": sizes,
            "excluded": [{"name": n, "why": w} for n, w in excluded.items()],
            "space": {path: r.model_dump(mode="json", exclude_none=True) for path, r in space.items()},
            "values": dict(found.values),
            "inner": found.score,
            "planned": found.planned,
        }
        write_whole(out / "tuned.json", dump_json(result))
        return result


def tuned_lines(result: Mapping[str, Any]) -> list[str]:
    """What was chosen, as lines of a study and for a terminal."""
    lines = [f"inner score {result['inner']:.4f}, of the study as it is {result['planned']:.4f}"]
    return lines + [f"{path} = {json.dumps(value)}" for path, value in result["values"].items()]
