"""The variants of a plan that a comparison runs: fewer modalities, another fusion, another rate, or a label that must fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import NoPrivacy, Plan, parse, side_of
from oncofed_shared.plan_sizes import Fusion

__all__ = [
    "FUSIONS",
    "HOSPITAL",
    "SHUFFLE",
    "Variant",
    "chosen_variants",
    "restricted",
    "sanity_variants",
    "sensitivity_variants",
    "whole_plan",
]

FUSIONS: tuple[str, ...] = tuple(sorted(get_args(Fusion), key=lambda f: f == "transformer"))
"""Every fusion that a plan may have, the default one last."""
LINEAR, GENOMICS, UNHARMONISED = "linear", "genomics", "unharmonised"
SHUFFLE, HOSPITAL = "label-shuffle", "predict-hospital"
NOT_GENES = {"clinical", "radiomics", "imaging"}
RATE, BATCH, SMALL = 0.1, 16, 32
ADAPTIVE = {"fedadam", "fedyogi", "fedadagrad"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One plan to run.

    Attributes:
        kind: `single` (one modality), `joined` (all of them), `sanity` or `sensitivity`.
    """

    name: str
    kind: str
    plan: Plan


def _changed(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    return parse(plan.model_dump(mode="json") | dict(changes), "the changed plan")


def whole_plan(plan: Plan, folds: int | None) -> Plan:
    """The plan that says who takes part and who is in which fold, for every variant; without `folds` the plan's own split.

    Raises:
        ConfigError: the plan is private.
    """
    if not isinstance(plan.privacy, NoPrivacy):
        raise ConfigError(
            "privacy.noise: a comparison trains many models on the same patients, which no privacy budget here pays for; "
            "compare the study without [privacy]"
        )
    evaluation = plan.evaluation.model_dump(mode="json")
    evaluation |= {"folds": folds, "resplits": 0, "reference": {}, "main_reference": None}
    return _changed(plan, {"evaluation": evaluation})


def restricted(plan: Plan, text: str) -> Plan:
    """The plan for patients who have all the modalities that `--patients-with` names; nobody is left out for no name.

    Raises:
        ConfigError: an unknown name.
    """
    names = [n.strip() for n in text.split(",") if n.strip()]
    unknown = [n for n in names if n not in plan.modalities]
    if unknown:
        raise ConfigError(f"--patients-with {text}: no modality '{unknown[0]}'; there are {', '.join(plan.modalities)}")
    modalities = plan.model_dump(mode="json")["modalities"]
    return _changed(plan, {"modalities": modalities | {n: modalities[n] | {"required": True} for n in names}})


def _groups(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Modalities of each single variant."""
    genes = tuple(m for m, s in plan.modalities.items() if m not in NOT_GENES and s.encoder != "cnn")
    made = {m: (m,) for m in plan.modalities if m not in genes or len(genes) > 1}
    return made | ({GENOMICS: genes} if genes else {})


def _only(plan: Plan, kept: Sequence[str]) -> Plan:
    content = plan.model_dump(mode="json")
    if plan.model.fusion == "two_way" and not {"imaging", "genes"} <= {side_of(plan.modalities[m]) for m in kept}:
        # What two-way attention is without a second side.
        content["model"]["fusion"] = "transformer"
    modalities = {m: content["modalities"][m] for m in kept}
    for settings in (m["harmonise"] for m in modalities.values() if m.get("harmonise")):
        # A covariate of a modality that the variant has not got is not there to be kept.
        settings["covariates"] = [c for c in settings["covariates"] if c.partition(".")[0] in kept]
    return parse(content | {"modalities": modalities}, "the changed plan")


def _model(plan: Plan, **changes: object) -> Plan:
    return _changed(plan, {"model": plan.model.model_dump(mode="json") | changes})


def _fused(plan: Plan, name: str) -> Plan:
    if name == "transformer" and not plan.model.layers:
        raise ConfigError("model.layers: is 0, so there is no transformer")
    return _model(plan, fusion=name)


def _linear(plan: Plan) -> Plan:
    content = plan.model.model_dump(mode="json") | {"layers": 0, "linear_path": True}
    content.pop("fusion", None)
    return _changed(plan, {"model": content})


def _unharmonised(plan: Plan) -> Plan:
    if not _harmonises(plan):
        raise ConfigError("no modality has a harmonise table that could be left out")
    modalities = plan.model_dump(mode="json")["modalities"]
    return _changed(plan, {"modalities": {n: m | {"harmonise": None} for n, m in modalities.items()}})


def _harmonises(plan: Plan) -> bool:
    return any(m.harmonise is not None for m in plan.modalities.values())


def _made(plan: Plan, name: str) -> Variant:
    groups = _groups(plan) | {m: (m,) for m in plan.modalities}
    if name in groups:
        return Variant(name=name, kind="single", plan=_only(plan, groups[name]))
    if name in FUSIONS:
        return Variant(name=name, kind="joined", plan=_fused(plan, name))
    if name == LINEAR:
        return Variant(name=name, kind="joined", plan=_linear(plan))
    if name == UNHARMONISED:
        return Variant(name=name, kind="joined", plan=_unharmonised(plan))
    raise ConfigError(f"expected 'all' or names of {', '.join([*groups, *FUSIONS, LINEAR, UNHARMONISED])}")


def chosen_variants(plan: Plan, text: str) -> tuple[list[Variant], dict[str, str]]:
    """The variants that `--variants` names.

    Returns:
        The variants in the order named, and for `all` those that the plan cannot express with the reason.

    Raises:
        ConfigError: an unknown or repeated name, or one that the plan cannot express.
    """
    every = text.strip() == "all"
    own = [UNHARMONISED] if _harmonises(plan) else []
    names = [*_groups(plan), LINEAR, *own, *FUSIONS] if every else [n.strip() for n in text.split(",")]
    if len(set(names)) < len(names):
        raise ConfigError(f"--variants {text}: a name stands there twice")
    made, left = [], {}
    problems: list[str] = []
    for name in names:
        try:
            made.append(_made(plan, name))
        except ConfigError as error:
            left[name] = "; ".join(error.problems)
            problems.append(f"--variants {name}: this plan cannot express it: {left[name]}")
    if problems and not every:
        raise ConfigError(*problems)
    return made, left


def sanity_variants(plan: Plan, hospitals: Sequence[str]) -> list[Variant]:
    """The whole plan on labels that mean nothing, and with the hospital as the answer (D-21)."""
    made = [Variant(name=SHUFFLE, kind="sanity", plan=plan)]
    if len(hospitals) > 1:
        content = plan.model_dump(mode="json")
        task = {"kind": "classification", "label": "hospital", "classes": list(hospitals)}
        content |= {"tasks": {"hospital": task}, "main_task": "hospital"}
        content["training"] |= {"class_weights": "none"}
        made.append(Variant(name=HOSPITAL, kind="sanity", plan=parse(content, "the changed plan")))
    return made


def sensitivity_variants(plan: Plan) -> list[Variant]:
    """The rate 10 % lower and higher, and the batch 16 smaller and larger (D-13).

    A plan whose sites take everybody into a step has no batch to change: it is compared with batches of 32, and of 16 fewer and
    more.
    The rate is the aggregator's under an adaptive rule, which takes the size of a site's step away, and the site's otherwise.
    """
    part = "strategy" if plan.strategy.name in ADAPTIVE else "training"
    settings = plan.model_dump(mode="json")[part]
    made = {
        f"rate{sign * RATE * 100:+.0f}": {part: settings | {"rate": settings["rate"] * (1 + sign * RATE)}}
        for sign in (-1, 1)
    }
    training, batch = plan.training.model_dump(mode="json"), plan.training.batch
    if batch == "all":
        sizes = (SMALL - BATCH, SMALL, SMALL + BATCH)
        made |= {f"batch{size}": {"training": training | {"batch": size}} for size in sizes}
    else:
        made |= {
            f"batch{sign * BATCH:+d}": {"training": training | {"batch": batch + sign * BATCH}}
            for sign in (-1, 1)
            if batch + sign * BATCH >= 1
        }
    return [Variant(name=n, kind="sensitivity", plan=_changed(plan, change)) for n, change in made.items()]
