"""The study plan: a TOML file that parses into one frozen value, the root of trust.

`load(path)` names every mistake at once, each with its path. `Plan.hash` is the SHA-256 of the canonical form and is
equal on every machine; `[simulation.*]` is not part of it. Everything here is public: nothing was learned from a patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from oncofed_shared.plan_evaluation import Evaluation, Reference, SplitColumn, SplitFractions, Subgroup
from oncofed_shared.plan_fields import Key, Name
from oncofed_shared.plan_genomics import (
    CallThresholds,
    CopyNumberFeatures,
    Drivers,
    ExpressionFeatures,
    GenomicFeatures,
    MutationFeatures,
    ReferenceSample,
    Severity,
)
from oncofed_shared.plan_harmonise import harmonise_mistakes
from oncofed_shared.plan_modalities import (
    CategoricalColumn,
    Column,
    Modality,
    NumericColumn,
    OrdinalColumn,
    compile_pattern,
    side_of,
    voxels_of,
)
from oncofed_shared.plan_model import ModelSettings
from oncofed_shared.plan_privacy import ConsortiumPrivacy, NoPrivacy, Privacy, SitePrivacy, privacy_mistakes
from oncofed_shared.plan_radiomics import RadiomicFeatures
from oncofed_shared.plan_tasks import ClassificationTask, SurvivalTask, Task
from oncofed_shared.plan_training import Strategy, Training
from oncofed_shared.reduction_rules import group_lasso_mistakes, reduction_mistakes
from oncofed_shared.rules import MODES, verdict
from oncofed_shared.strict import Frozen, read_toml, validate

__all__ = [
    "CallThresholds",
    "CategoricalColumn",
    "ClassificationTask",
    "Column",
    "ConsortiumPrivacy",
    "CopyNumberFeatures",
    "Drivers",
    "Evaluation",
    "ExpressionFeatures",
    "GenomicFeatures",
    "Modality",
    "ModelSettings",
    "MutationFeatures",
    "NoPrivacy",
    "NumericColumn",
    "OrdinalColumn",
    "Plan",
    "Privacy",
    "RadiomicFeatures",
    "Reference",
    "ReferenceSample",
    "Severity",
    "Simulation",
    "SitePrivacy",
    "SplitColumn",
    "SplitFractions",
    "Strategy",
    "StudyHeader",
    "Subgroup",
    "SurvivalTask",
    "Task",
    "Training",
    "compile_pattern",
    "load",
    "parse",
    "read_toml",
    "side_of",
    "validate",
    "voxels_of",
]


class StudyHeader(Frozen):
    """Who asks what, and why."""

    name: Name
    purpose: Annotated[str, Field(min_length=10)]


class Simulation(Frozen):
    """How a single machine plays the consortium; not part of the plan's hash.

    Attributes:
        site: what a `site.toml` says, for folders that have none.
        cohort: arguments of `oncofed-simulate cohort`, for a study without `--sites`.
        files: folder of the files about genes that the plan names by their hash, relative to the study; without it the
            study's own.
        noise_seed: makes the noise of a private study repeatable, which protects nobody: whoever knows it can take the noise
            away. A deployed site has no way to be given one.
        search: key of the plan -> where `compare --search` looks for a better value.
    """

    site: dict[str, Any] | None = None
    cohort: dict[str, Any] | None = None
    files: str | None = None
    noise_seed: Annotated[int, Field(ge=0)] | None = None
    search: dict[str, Any] | None = None


class Plan(Frozen):
    """A whole study. Build it with `load` or `parse`."""

    format: Literal[1] = 1
    study: StudyHeader
    tasks: Annotated[dict[Key, Task], Field(min_length=1)]
    main_task: str
    modalities: Annotated[dict[Key, Modality], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: Training
    strategy: Strategy = Strategy()
    evaluation: Evaluation = Evaluation()
    privacy: Privacy = NoPrivacy()
    simulation: Simulation = Simulation()

    @field_validator("main_task")
    @classmethod
    def _is_a_task(cls, main: str, info: ValidationInfo) -> str:
        tasks = info.data.get("tasks", {main: None})
        if main not in tasks:
            message = f"no task has this name; there are {', '.join(tasks)}"
            raise ValueError(message)
        return main

    @field_validator("modalities")
    @classmethod
    def _reduced_against(cls, modalities: dict[str, Modality], info: ValidationInfo) -> dict[str, Modality]:
        tasks, main = info.data.get("tasks") or {}, info.data.get("main_task")
        problems = reduction_mistakes(modalities, tasks.get(str(main))) + harmonise_mistakes(modalities)
        if problems:
            raise ValueError("\n".join(problems))
        return modalities

    @field_validator("model")
    @classmethod
    def _read(cls, model: ModelSettings, info: ValidationInfo) -> ModelSettings:
        marked = [n for n, m in (info.data.get("modalities") or {}).items() if m.presence]
        if marked and not model.linear_path:
            message = f"modalities.{marked[0]}.presence is read by the linear path, and linear_path is false"
            raise ValueError(message)
        return model

    @field_validator("model")
    @classmethod
    def _sides(cls, model: ModelSettings, info: ValidationInfo) -> ModelSettings:
        sides = {side_of(m) for m in (info.data.get("modalities") or {}).values()}
        if model.fusion == "two_way" and sides and not {"imaging", "genes"} <= sides:
            message = (
                ".fusion: 'two_way' lets imaging and genes read each other, and no modality is on one of these sides; "
                "say modalities.NAME.side"
            )
            raise ValueError(message)
        return model

    @field_validator("training")
    @classmethod
    def _weights(cls, training: Training, info: ValidationInfo) -> Training:
        weights, problems = training.class_weights, []
        tasks: Mapping[str, Any] = info.data.get("tasks") or {}
        for name, values in weights.items() if isinstance(weights, dict) and tasks else ():
            task = tasks.get(name)
            if not isinstance(task, ClassificationTask):
                problems.append(f".class_weights.{name}: not a classification task")
            elif len(values) != len(task.classes):
                problems.append(f".class_weights.{name}: {len(values)} weights for {len(task.classes)} classes")
        if training.loss == "focal" and tasks and not any(isinstance(t, ClassificationTask) for t in tasks.values()):
            problems.append(".loss: 'focal' is of classifications, and the study has none")
        if problems:
            raise ValueError("\n".join(problems))
        return training

    @field_validator("strategy")
    @classmethod
    def _local_steps(cls, strategy: Strategy, info: ValidationInfo) -> Strategy:
        training = info.data.get("training")
        plain = training is None or (training.optimiser == "sgd" and training.momentum == 0)
        if strategy.name in {"scaffold", "qfedavg"} and not plain:
            message = (
                f".name: {strategy.name} needs training.optimiser = 'sgd' without momentum, because it reads gradients off "
                "the change that plain steps made"
            )
            raise ValueError(message)
        unknown = set(strategy.holders or {}) - set(info.data.get("modalities") or strategy.holders or {})
        if unknown:
            raise ValueError("\n".join(f".holders.{name}: no modality has this name" for name in sorted(unknown)))
        return strategy

    @field_validator("privacy")
    @classmethod
    def _legal(cls, privacy: Privacy, info: ValidationInfo) -> Privacy:
        problems = privacy_mistakes(privacy, info.data)
        strategy = info.data.get("strategy")
        if strategy is not None and privacy.noise == "none" and strategy.holders is not None:
            problems.append("/strategy.holders: is for private plans; without privacy the sites say who has what")
        problems += group_lasso_mistakes(info.data)
        if strategy is not None and privacy.noise in MODES:
            found = verdict(strategy.name, privacy.noise, local=bool(strategy.local))
            if not found.legal:
                what = f"{strategy.name} with local layers" if strategy.local else strategy.name
                problems.append(f".noise: '{privacy.noise}' cannot be combined with {what}: {found.why}")
        if problems:
            raise ValueError("\n".join(problems))
        return privacy

    @cached_property
    def canonical(self) -> bytes:
        """The canonical form: JSON with sorted keys, without `[simulation]`."""
        content = self.model_dump(mode="json", exclude={"simulation"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.canonical).hexdigest()

    @property
    def task_names(self) -> tuple[str, ...]:
        """All tasks, the main one first, the others by name."""
        return (self.main_task, *sorted(set(self.tasks) - {self.main_task}))


def parse(content: dict[str, Any], where: str = "study") -> Plan:
    """Parse a study's content. `main_task` and `evaluation.main_reference` default to the first one written."""
    tasks, evaluation = content.get("tasks"), content.get("evaluation")
    if "main_task" not in content and isinstance(tasks, dict) and tasks:
        content = {**content, "main_task": next(iter(tasks))}
    if isinstance(evaluation, dict) and isinstance(evaluation.get("reference"), dict):
        first = {"main_reference": next(iter(evaluation["reference"]), None)}
        content = {**content, "evaluation": first | evaluation}
    return validate(Plan, content, where)


def load(path: Path) -> Plan:
    """Load a study from a TOML file.

    Raises:
        ConfigError: with every mistake at once, each with its path in the file.
    """
    return parse(_placed(read_toml(path), path.parent), str(path))


def _placed(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the folder of the files about genes, where the study names any: what is made of a plan must find them too."""
    modalities, simulation = content.get("modalities"), content.get("simulation", {})
    tables = modalities.values() if isinstance(modalities, dict) else ()
    named = any(isinstance(m, dict) and {"graph", "pathways"} & set(m) for m in tables)
    files = simulation.get("files", ".") if isinstance(simulation, dict) else None
    if not named or not isinstance(files, str):
        return content
    return {**content, "simulation": {**simulation, "files": str((folder / files).resolve())}}
