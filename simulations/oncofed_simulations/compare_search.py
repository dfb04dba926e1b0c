"""Search over settings of a plan on training patients alone (D-11, D-12): which to try next is Optuna's to say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_shared.strict import Frozen, validate
from oncofed_simulations.compare_variants import ADAPTIVE

__all__ = ["Found", "SearchRange", "changed", "search", "space_of"]

WORST = 0.0
"""What a setting counts that diverges, or whose held-out patients have no score."""


class SearchRange(Frozen):
    """`[simulation.search."KEY"]` of a study: where to search a key of the plan.

    Attributes:
        choices: values to choose from, or
        low, high: bounds.
        log: search evenly in the logarithm.
    """

    choices: Annotated[tuple[bool | int | float | str, ...], Field(min_length=2)] | None = None
    low: float | None = None
    high: float | None = None
    log: bool = False

    @field_validator("log")
    @classmethod
    def _one(cls, log: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's way to call
        low, high, choices = (info.data.get(k) for k in ("low", "high", "choices"))
        bounded = low is not None and high is not None and low < high and (not log or low > 0)
        if (choices is None) != bounded or (choices is not None and (low is not None or high is not None or log)):
            message = "give either choices, or low and a greater high, with log above 0"
            raise ValueError(message)
        return log

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high; of no meaning where there are choices."""
        return self.low or 0.0, self.high or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search chose.

    Attributes:
        values: by path in the plan.
        score: the metric of the main task on inner held-out patients.
        planned: the same of the plan as it is.
        plan: with the values.
    """

    values: Mapping[str, Any]
    score: float
    planned: float
    plan: Plan


def space_of(plan: Plan) -> dict[str, SearchRange]:
    """Where to search: the study's `[simulation.search]`, or else the rate, the dropout, and the batch where there is one.

    A key under a modality that a variant does not have is left out.

    Raises:
        ConfigError: a path or a range that the plan cannot have.
    """
    given = plan.simulation.search
    if given is None:
        return _default(plan)
    made: dict[str, SearchRange] = {}
    for path, content in given.items():
        where = f'simulation.search."{path}"'
        first, _, rest = path.partition(".")
        if first == "modalities" and rest.partition(".")[0] not in plan.modalities:
            continue
        made[path] = validate(SearchRange, content, where)
        for value in made[path].choices or made[path].bounds:
            try:
                changed(plan, {path: value})
            except ConfigError as error:
                raise ConfigError(f"{where}: {value}: {'; '.join(error.problems)}") from None
    return made


def _default(plan: Plan) -> dict[str, SearchRange]:
    path = "strategy.rate" if plan.strategy.name in ADAPTIVE else "training.rate"
    rate = plan.strategy.rate if plan.strategy.name in ADAPTIVE else plan.training.rate
    made = {path: SearchRange(low=rate / 3, high=rate * 3, log=True)}
    if plan.model.layers:
        made["training.dropout"] = SearchRange(low=0.0, high=0.5)
    if plan.training.batch != "all":
        sizes = {max(plan.training.batch // 2, 1), plan.training.batch, plan.training.batch * 2}
        made["training.batch"] = SearchRange(choices=tuple(sorted(sizes)))
    return made


def changed(plan: Plan, values: Mapping[str, Any]) -> Plan:
    """The plan with other values at some paths, like `modalities.clinical.emphasis`.

    Raises:
        ConfigError: there is no such key, or the plan cannot have the value.
    """
    content = plan.model_dump(mode="json")
    for path, value in values.items():
        *tables, key = path.split(".")
        at: Any = content
        for table in tables:
            at = at.get(table) if isinstance(at, dict) else None
        if not isinstance(at, dict) or not tables:
            raise ConfigError(f"{path}: the plan has no such table")
        at[key] = value
    return parse(content, "the searched plan")


def search(
    plan: Plan, *, trials: int, seed: int, score: Callable[[Plan], float | None], kept: Path | None = None
) -> Found:
    """Try settings, the plan's own first, and keep the best.

    Args:
        trials: how many, the plan's own settings among them where the space holds them.
        seed: the same seed tries the same settings where the scores are the same.
        score: of a plan on held-out training patients; None where there is no score.
        kept: file of scores by the plan's hash, so that an interrupted search is gone on with: the same seed tries the same
            settings again, and those that have a score are not trained.

    Raises:
        ConfigError: a path or a range that the plan cannot have, or `kept` cannot be read.
    """
    import optuna  # noqa: PLC0415 - takes longer to import than a small study takes

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = space_of(plan)
    own = {path: _value(plan, path) for path in space}
    known = _read(kept)

    def scored(made: Plan) -> float:
        if made.hash not in known:
            known[made.hash] = _number(score(made))
            if kept is not None:
                write_whole(kept, dump_json(known))
        return known[made.hash]

    planned = scored(plan)

    def objective(trial: Any) -> float:
        return scored(changed(plan, {path: _suggested(trial, path, r) for path, r in space.items()}))

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, trials // 3))
    study = optuna.create_study(sampler=sampler, direction="maximize")
    if all(_holds(space[path], value) for path, value in own.items()):
        study.enqueue_trial(own)
    study.optimize(objective, n_trials=trials)
    values = study.best_params if study.best_value > planned else own
    return Found(values=values, score=max(study.best_value, planned), planned=planned, plan=changed(plan, values))


def _read(kept: Path | None) -> dict[str, float]:
    if kept is None or not kept.exists():
        return {}
    try:
        return {str(name): float(value) for name, value in json.loads(kept.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"{kept}: cannot be read as the scores of a search; delete it, and they are found anew"
        ) from None


def _number(score: float | None) -> float:
    return WORST if score is None or math.isnan(score) else score


def _value(plan: Plan, path: str) -> Any:
    at: Any = plan
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else getattr(at, part, None)
    return at


def _holds(searched: SearchRange, value: Any) -> bool:
    if searched.choices is not None:
        return value in searched.choices
    low, high = searched.bounds
    return isinstance(value, int | float) and low <= value <= high


def _suggested(trial: Any, path: str, searched: SearchRange) -> Any:
    if searched.choices is not None:
        return trial.suggest_categorical(path, searched.choices)
    return trial.suggest_float(path, *searched.bounds, log=searched.log)
