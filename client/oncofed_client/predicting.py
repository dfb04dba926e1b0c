"""A released model's predictions for a hospital's patients, with their uncertainty; they stay where they are written.

    one model            its predictions, and what such predictions have meant for patients it had not learned from
    mc:N                 N passes with dropout as in training (Gal & Ghahramani 2016): their mean and standard deviation
    several models       the same over the models (Lakshminarayanan et al. 2017), with mc:N over all passes of all models

Beside them stands how much each modality counted for each patient (`network_weights`), the mean over models, without dropout.
Sets and bands were calibrated for the predictions of one model without dropout, and stand beside those alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed_client.cohort import Cohort, assemble, nobody_consented
from oncofed_client.consent import allowed_patients
from oncofed_client.images import read_patches
from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.session import training_set
from oncofed_client.settings import SiteSettings
from oncofed_client.tables import Problems, load_tables
from oncofed_shared.calibrated import band_of, sets
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.features import Preparation
from oncofed_shared.layers import load_parameters
from oncofed_shared.losses import predict
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_weights import modality_weights
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask, parse
from oncofed_shared.storage import read_arrays

__all__ = ["Model", "Predicted", "mc_passes", "predicted", "read_model", "readable_patients"]

Values = NDArray[np.float64]
NETWORK, PREPARATION = "network.", "preparation."
MOST_PASSES = 10_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A released model.

    Attributes:
        certainty: per task what its predictions have meant; see docs/result-json.md.
    """

    plan: Plan
    preparation: Preparation
    network: FusionNetwork
    certainty: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Predictions as a table: numbers and words, a row per patient."""

    patients: tuple[str, ...]
    columns: Mapping[str, Sequence[float | str]]

    def rows(self) -> Iterator[list[str]]:
        """Rows of text; numbers with six digits."""
        for i, patient in enumerate(self.patients):
            cells = (column[i] for column in self.columns.values())
            yield [patient, *(c if isinstance(c, str) else f"{c:.6g}" for c in cells)]


def mc_passes(text: str) -> int:
    """How many passes `--uncertainty` asks for: `mc:50` is 50, nothing is 0.

    Raises:
        ConfigError: it is something else.
    """
    if not text:
        return 0
    kind, _, number = text.partition(":")
    if kind != "mc" or not number.isdecimal() or not 2 <= int(number) <= MOST_PASSES:
        raise ConfigError(f"--uncertainty {text}: expected mc:N with N from 2 to {MOST_PASSES}, like mc:50")
    return int(number)


def read_model(path: Path) -> Model:
    """Read a `model.safetensors`.

    Raises:
        DataError: it is no model of this version.
    """
    arrays, facts = read_arrays(path)
    try:
        plan = parse(json.loads(facts["plan"]), str(path))
        columns = {m: tuple(c) for m, c in facts["columns"].items()}
        seed = int(facts["seed"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path}: is not a model of oncofed, or of another version") from None
    own = {k.removeprefix(PREPARATION): v for k, v in arrays.items() if k.startswith(PREPARATION)}
    preparation = Preparation.from_arrays(plan, columns, own)
    network = build(plan, columns, seed)
    weights = {k.removeprefix(NETWORK): v for k, v in arrays.items() if k.startswith(NETWORK)}
    if {n: tuple(p.shape) for n, p in network.named.items()} != {n: w.shape for n, w in weights.items()}:
        raise DataError(
            f"{path}: its parameters are not those of its plan's network; it is damaged, or of another version"
        )
    load_parameters(network, weights)
    return Model(plan=plan, preparation=preparation, network=network, certainty=facts.get("certainty") or {})


def readable_patients(folder: Path, settings: SiteSettings, plan: Plan, cache: Cache | None = None) -> Cohort:
    """The patients of a folder who consented and have what the plan requires, with a label or without.

    Args:
        cache: what was prepared of the folder's raw files; without it they are not used.

    Raises:
        DataError: files are malformed, or nobody is left.
        PolicyRefusal: nobody consented.
    """
    problems = Problems()
    tables = load_tables(folder, settings, problems)
    problems.raise_if_any()
    allowed = allowed_patients(tables, settings)
    if not allowed:
        raise nobody_consented(folder)
    tables |= prepared_tables(settings, plan, cache, allowed)
    patches = read_patches(settings, plan, cache, allowed)
    assembly = assemble(tables, settings, plan, allowed, problems, patches=patches)
    problems.raise_if_any()
    usable = np.logical_or.reduce([block.present for block in assembly.blocks.values()])
    for name, modality in plan.modalities.items():
        if modality.required:
            usable &= assembly.blocks[name].present
    if not usable.any():
        raise DataError(f"{folder}: nobody has a value of any modality that the model reads")
    return replace(assembly, usable=usable).cohort(settings.site.name)


@contextmanager
def _dropping(network: FusionNetwork, seed: int) -> Iterator[None]:
    """Dropout as in training, drawn from a seed; whole modalities stay, for a patient's own are no matter of chance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in network.modules():
            layer.train(isinstance(layer, nn.Dropout))
        yield
    network.eval()


def _members(model: Model, cohort: Cohort, passes: int, seed: int) -> list[dict[str, Values]]:
    """A model's predictions: one, or one per pass."""
    data = training_set(model.plan, model.preparation, cohort, slice(None))
    network = model.network.eval()
    with torch.no_grad():
        if not passes:
            return [predict(model.plan, network(data.values, data.seen))]
        with _dropping(network, seed):
            return [predict(model.plan, network(data.values, data.seen)) for _ in range(passes)]


def _shown(task: ClassificationTask | SurvivalTask, prediction: Values) -> dict[str, Values]:
    """The numbers of a prediction that a table holds, by name: every class, or the risk of each cause by the horizon."""
    if isinstance(task, ClassificationTask):
        return dict(zip(task.classes, prediction.T, strict=True))
    column = task.edges.index(task.horizon) - 1
    if task.causes:
        return {c: prediction[:, i * task.intervals + column] for i, c in enumerate(task.causes)}
    return {"risk": 1 - prediction[:, column]}


def _calibrated(
    task: ClassificationTask | SurvivalTask, prediction: Values, known: Mapping[str, Any]
) -> dict[str, Any]:
    """The set of a patient's classes, and the observed risk of patients with similar predictions."""
    made: dict[str, Any] = {}
    if isinstance(task, ClassificationTask) and known.get("sets"):
        chosen = sets(task, prediction, float(known["sets"]["threshold"]))
        made["set"] = ["|".join(c for c, inside in zip(task.classes, row, strict=True) if inside) for row in chosen]
    found = known.get("bands") or []
    if found:
        # Bands are of the last class of two, and of the first cause.
        numbers = list(_shown(task, prediction).values())
        risks = numbers[-1] if isinstance(task, ClassificationTask) else numbers[0]
        place = band_of(risks, found)
        made |= {
            f"observed.{end}": np.array([float(band["interval"][i]) for band in found])[place]
            for i, end in enumerate(("low", "high"))
        }
    return made


def _weights(models: Sequence[Model], cohort: Cohort) -> dict[str, list[float]]:
    """How much each modality counted for each patient: the mean over models; a modality that a model never saw has 0 there."""
    total = {modality: np.zeros(len(cohort.patients)) for modality in sorted(models[0].plan.modalities)}
    for model in models:
        data = training_set(model.plan, model.preparation, cohort, slice(None))
        for modality, weights in modality_weights(model.network, data.values, data.seen).items():
            total[modality] += weights.numpy().astype(np.float64) / len(models)
    return {f"weight.{modality}": weights.tolist() for modality, weights in total.items()}


def predicted(models: Sequence[Model], cohort: Cohort, *, passes: int = 0, seed: int = 0) -> Predicted:
    """Predictions of one or several models of one study.

    Args:
        models: with the same plan, or plans that ask the same.
        passes: with dropout, of each model; 0 for none.
        seed: of the dropout; the same seed gives the same table.

    Returns:
        Columns `task.class`, `task.risk` or `task.cause`; with several members their mean, and `.sd` behind each. With one,
        `task.set` and `task.observed.low`, `.high` where the model has been calibrated. Last `weight.MODALITY`, from 0 to 1.

    Raises:
        ConfigError: the models answer different questions, or have no dropout for passes.
    """
    first = models[0].plan
    if any(m.plan.tasks != first.tasks for m in models):
        raise ConfigError("the models answer different questions: their plans' [tasks] are not the same")
    if passes and any(not (m.plan.training.dropout or m.plan.training.input_dropout) for m in models):
        raise ConfigError(
            "--uncertainty mc: a model was trained without dropout, so that all passes are alike; train with "
            "training.dropout or training.input_dropout, or give several models"
        )
    if any(set(m.plan.modalities) != set(first.modalities) for m in models):
        raise ConfigError("the models read different modalities: their plans' [modalities] do not have the same names")
    with one_thread():
        members = [p for m in models for p in _members(m, cohort, passes, seed)]
        weights = _weights(models, cohort)
    columns: dict[str, Sequence[float | str]] = {}
    for name in first.task_names:
        each = [_shown(first.tasks[name], p[name]) for p in members]
        for label in each[0]:
            drawn = np.stack([e[label] for e in each])
            columns[f"{name}.{label}"] = drawn.mean(axis=0).tolist()
            if len(members) > 1:
                columns[f"{name}.{label}.sd"] = drawn.std(axis=0, ddof=1).tolist()
        if len(members) == 1:
            known = models[0].certainty.get(name) or {}
            columns |= {
                f"{name}.{k}": list(v) for k, v in _calibrated(first.tasks[name], members[0][name], known).items()
            }
    return Predicted(patients=cohort.patients, columns=columns | weights)
