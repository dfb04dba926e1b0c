"""What a finished run says of itself for `result.json`: its rounds, its sites, what it released. The same for every engine."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from oncofed_server.released import released_scores
from oncofed_server.results import shown
from oncofed_server.run_state import State
from oncofed_server.spending import Spending
from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.messages import Trial
from oncofed_shared.noised_tables import coarse_entries, placed_grid
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_shared.scoring import WHOLE, split_vector

__all__ = ["PACKAGES", "curve", "released_rows", "site_rows", "versions"]

PACKAGES = ("oncofed", "torch", "numpy", "flwr", "opacus", "scikit-survival", "scikit-learn")


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {p: importlib.metadata.version(p) for p in PACKAGES} | {"python": platform.python_version()}


def curve(plan: Plan, trial: Trial, state: State) -> list[dict[str, Any]]:
    """`rounds` of one run. Under a private plan no site says its loss."""
    private = not isinstance(plan.privacy, NoPrivacy)
    entries = []
    for i, (loss, cost) in enumerate(zip(state.losses, state.costs, strict=True), 1):
        entry: dict[str, Any] = {
            "seed": trial.seed,
            "round": i,
            "train_loss": None if private else loss,
            "seconds": cost.seconds,
            "bytes_up": cost.bytes_up,
            "bytes_down": cost.bytes_down,
            "validation": {},
            "divergence": None,
        }
        if trial.fold >= 0:
            entry["fold"] = trial.fold
        if (apart := state.divergence[i - 1]) is not None:
            entry["divergence"] = {"mean": apart.mean, "max": apart.max}
        if state.participants:
            entry["participants"] = list(state.participants[i - 1])
        table = state.validation.get(i)
        if table is not None:
            whole = split_vector(plan, table, subgroups=False)[WHOLE]
            entry["validation"] = {t: shown(plan, t, v) for t, v in whole.items()}
        entries.append(entry)
    return entries


def released_rows(plan: Plan, state: State) -> list[dict[str, Any]]:
    """`released`: scores from the opened, noised sum of test tables; nothing where there was none."""
    counts = state.released
    if counts is None:
        return []
    grid = placed_grid(plan, state.histogram)
    mechanism = TablesMechanism.for_plan(plan, cells=len(counts), entries=coarse_entries(plan))
    return released_scores(plan, counts, mechanism, state.present, grid)


def site_rows(
    state: State, *, sites: Sequence[str], externals: Sequence[str], spent: Mapping[str, Spending]
) -> list[dict[str, Any]]:
    """`sites`: what each said of itself, and what a private plan spends there."""
    rows = []
    for name in (*sites, *externals):
        described, spending = state.descriptions.get(name), spent.get(name)
        if described is None:
            continue
        parts = described.parts
        rows.append(
            {
                "name": name,
                "patients": spending.patients if spending else parts.get("all"),
                "train": parts.get("train"),
                "validation": parts.get("validation"),
                "test": parts.get("test"),
                "modalities": dict(described.modalities),
                "events": dict(described.events),
                "epsilon": spending.epsilon if spending else None,
                "delta": spending.delta if spending else None,
                "epsilon_alone": spending.epsilon_alone if spending else None,
                "trained": name in sites and name not in state.excluded,
                "external": name in externals,
            }
        )
    return rows
