"""Which reductions a plan may ask for: what they may look at, what they charge, and which steps they are exact under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oncofed_shared.plan_modalities import Modality
from oncofed_shared.plan_reduction import Autoencoder, Charged, GroupLasso, Lasso, ReliefF, Statistical
from oncofed_shared.strict import Frozen

__all__ = [
    "group_lasso_mistakes",
    "private_reductions",
    "reduction_mistakes",
    "uncharged_reductions",
    "without_range",
]

PLAIN = frozenset({"classification", "survival"})
"""Tasks for which there is a response, or a class, of each patient."""


def reduction_mistakes(modalities: Mapping[str, Modality], main: Frozen | None) -> list[str]:
    """What modalities are reduced against that is not there, each with its path.

    Args:
        main: the main task; None where that is wrong itself.
    """
    found = []
    for name, modality in modalities.items():
        settings = modality.reduction
        if not isinstance(settings, Lasso | ReliefF):
            continue
        against = settings.against
        if against is None and main is not None and getattr(main, "kind", "") not in PLAIN:
            found.append(
                f".{name}.reduction.against: is missing; a column can be chosen by classes or survival, or a modality"
            )
        elif against is not None and (against == name or against not in modalities):
            others = ", ".join(m for m in modalities if m != name) or "no other"
            found.append(f".{name}.reduction.against: names no other modality; there are {others}")
        elif against is not None and modalities[against].encoder == "cnn":
            found.append(f".{name}.reduction.against: '{against}' has patches and no columns")
    return found


def _steps(plan: Mapping[str, Any]) -> Iterator[str]:
    training, strategy = plan.get("training"), plan.get("strategy")
    if training is not None and (training.optimiser != "sgd" or training.momentum or training.local_steps != 1):
        yield "training.optimiser = 'sgd' without momentum and training.local_steps = 1"
    if strategy is not None and (strategy.name != "fedavg" or strategy.participation != 1 or strategy.local):
        yield "strategy.name = 'fedavg' with all sites in every round and no local layers"


def group_lasso_mistakes(plan: Mapping[str, Any]) -> list[str]:
    """Where a group LASSO would not be the one of pooled training: only a plain step can be followed by its shrinking.

    Args:
        plan: the plan's other tables by name; those that are wrong themselves are absent.
    """
    modalities = plan.get("modalities") or {}
    asked = [n for n, m in modalities.items() if isinstance(m.reduction, GroupLasso)]
    needs = list(_steps(plan)) if asked else []
    return [f"/modalities.{n}.reduction.kind: 'group_lasso' needs {need}" for n in asked for need in needs]


def without_range(modality: Modality) -> list[str] | None:
    """Numeric columns of which no range is declared; empty where none of any is, and None where all have one."""
    columns = modality.columns or {}
    lacking = [n for n, c in columns.items() if c.kind == "numeric" and c.range is None]
    return None if modality.range is not None or (columns and not lacking) else lacking


def private_reductions(modalities: Mapping[str, Modality], *, charged: bool) -> list[str]:
    """What a private plan must not reduce, and what those that it may reduce lack, each with its path.

    Args:
        charged: whether the plan has noised statistics of training patients.
    """
    return [m for name, modality in modalities.items() for m in _private(name, modality, modalities, charged=charged)]


def _private(name: str, modality: Modality, modalities: Mapping[str, Modality], *, charged: bool) -> Iterator[str]:
    settings, path = modality.reduction, f"/modalities.{name}.reduction"
    if not isinstance(settings, Statistical):
        return
    if isinstance(settings, ReliefF):
        yield (
            f"{path}.kind: 'relieff' compares near patients, and one patient may be the nearest of all others: no noise that hides "
            "him leaves anything; with privacy use 'lasso', or 'group_lasso'"
        )
    elif isinstance(settings, Autoencoder):
        yield (
            f"{path}.kind: 'autoencoder' is a training of its own, and no epsilon is charged for its steps; with privacy use "
            "'pca', or 'group_lasso'"
        )
    elif not charged:
        yield (
            f"{path}.kind: '{settings.kind}' releases sums over patients that no epsilon is charged for; give "
            "privacy.statistics_epsilon under noise = 'consortium', or use 'group_lasso'"
        )
    else:
        yield from _charged(path, settings, modality, modalities)


def _charged(path: str, settings: Charged, modality: Modality, modalities: Mapping[str, Modality]) -> Iterator[str]:
    name = settings.against if isinstance(settings, Lasso) else None
    against = modalities.get(name or "")
    where = [modality] if against is None else [modality, against]
    if any(m.columns is None and m.vocabulary is None for m in where):
        needs = "columns that the plan names; give columns, or patterns and a vocabulary"
        yield f"{path}.kind: '{settings.kind}' with noise needs {needs}"
    if against is not None and without_range(against) is not None:
        yield f"{path}.against: '{name}' needs a declared range of each column, which bounds what a patient moves"
    if isinstance(settings, Lasso) and (isinstance(modality.tokens, dict) or modality.encoder != "linear"):
        yield (
            f"{path}.kind: 'lasso' with noise needs encoder = 'linear' and no named tokens, because the budget is reserved for a "
            "network whose size does not depend on which columns are chosen"
        )


def uncharged_reductions(modalities: Mapping[str, Modality]) -> list[str]:
    """What the sums of a plan's reductions release, modality by modality."""
    what = {
        "pca": "sums of products of each two of its columns",
        "lasso": "sums of products of its columns, and of each with what it is chosen by",
        "relieff": "sums of differences between near patients of each site",
        "autoencoder": "each site's sum of gradients and of losses in every step of its autoencoder",
    }
    return [
        f"{what[m.reduction.kind]}, over each site's training patients (reduction of {name})"
        for name, m in modalities.items()
        if isinstance(m.reduction, Statistical)
    ]
