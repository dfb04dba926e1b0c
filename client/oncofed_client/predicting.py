"""A released model's predictions for a hospital's patients, with their uncertainty; they stay where they are written.

    one model            its predictions, and what such predictions have meant for patients it had not learned from
    mc:N                 N passes with dropout as in training (Gal & Ghahramani 2016): their mean and standard deviation
    several models       the same over the models (Lakshminarayanan et al. 2017), with mc:N over all passes of all models

Beside them stands how much each modality counted for each patient (`network_weights`), the mean over models, without dropout.
Sets and bands were calibrated for the predictions of one model without dropout, and stand beside those alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed_client.cohort import Cohort, nobody_consented
from oncofed_client.columns import read_modality, reserved_columns
from oncofed_client.consent import allowed_patients
from oncofed_client.images import patch_block, read_patches
from oncofed_client.locations import kept_locations, own_locations
from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.tables import prepared_tables
from oncofed_client.session import training_set
from oncofed_client.settings import SiteSettings
from oncofed_client.tables import Problems, load_tables
from oncofed_client.training import TrainingSet
from oncofed_shared.calibrated import band_of, sets
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError, DataError, RemoteProtocolError
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.layers import load_parameters
from oncofed_shared.layout import Layout
from oncofed_shared.losses import predict
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_weights import modality_weights
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask, parse
from oncofed_shared.storage import read_arrays, write_whole

__all__ = ["Model", "Predicted", "days_until", "mc_passes", "predicted", "read_model", "readable_patients"]

Values = NDArray[np.float64]
NETWORK, PREPARATION = "network.", "preparation."
MOST_PASSES = 10_000
_SHARES = {"days_10": 0.1, "days_50": 0.5, "days_90": 0.9}
"""Of patients to whom the event has happened; between the first and the last lie 80 in a hundred, as the model sees it."""


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
            yield [patient, *(c if isinstance(c, str) else "" if np.isnan(c) else f"{c:.6g}" for c in cells)]

    def write(self, out: Path) -> None:
        """Write the table, whole or not at all, for its owner's eyes alone.

        Raises:
            StorageError: it cannot be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["patient_id", *self.columns], *self.rows()])
        write_whole(out, text.getvalue().encode(), private=True)


def days_until(survival: Values, edges: tuple[float, ...], share: float) -> Values:
    """Days by which the event has happened to a share of patients with these curves, (n,).

    Between two edges the curve is taken as straight. NaN where the share is not reached by the last edge.

    Args:
        survival: (n, intervals) at the end of each interval.
        edges: (intervals + 1,) days, from 0 on.
        share: above 0 and below 1.
    """
    curve = np.concatenate([np.ones((len(survival), 1)), survival], axis=1)
    left = 1 - share
    reached = curve[:, 1:] <= left
    first = reached.argmax(axis=1)
    rows = np.arange(len(curve))
    before, after = curve[rows, first], curve[rows, first + 1]
    start, stop = np.asarray(edges)[first], np.asarray(edges)[first + 1]
    fall = np.where(before > after, before - after, 1.0)
    days = start + (stop - start) * (before - left) / fall
    return np.where(reached.any(axis=1), days, np.nan)


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


def read_model(path: Path, files: Path | str | None = None) -> Model:
    """Read a `model.safetensors`.

    Args:
        path: the file.
        files: folder of the gene graphs and gene sets that its plan names, if it names any.

    Guarantees:
        - Names and shapes are those of the plan's network, and every number is finite.
        - The plan in the file has the hash that the file names.

    Raises:
        DataError: it is no model of this version, or it is damaged.
        ConfigError: a file about genes is absent or not the plan's (code `gene-file`).
    """
    arrays, facts = read_arrays(path)
    try:
        placed = {} if files is None else {"simulation": {"files": str(files)}}
        plan = parse(json.loads(facts["plan"]) | placed, str(path))
        columns = {str(m): tuple(str(c) for c in names) for m, names in facts["columns"].items()}
        preparation = Preparation.from_arrays(plan, columns, _under(PREPARATION, arrays))
        network = build(plan, network_columns(plan, preparation), seed=int(facts["seed"]))
        weights = _under(NETWORK, arrays)
        Layout.of(network).check(weights)
        sound = plan.hash == facts["plan_hash"]
    except (ConfigError, RemoteProtocolError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError) and error.code == "gene-file":
            raise
        sound = False
    if not sound:
        raise DataError(
            f"{path}: is not a model that this version can use, or it is damaged; expected model.safetensors of a finished "
            "study, made by the same version of oncofed",
            code="model",
        )
    load_parameters(network, weights)
    return Model(plan=plan, preparation=preparation, network=network, certainty=facts.get("certainty") or {})


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def readable_patients(folder: Path, settings: SiteSettings, plan: Plan, cache: Cache | None = None) -> Cohort:
    """The patients of a folder who consented and have what the plan requires; no label is needed or read.

    Args:
        folder: with the patients' files.
        settings: of the folder.
        plan: the model's.
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
    order, reserved = tuple(sorted(allowed)), reserved_columns(plan, settings)
    patches = read_patches(settings, plan, cache, allowed) or {}
    blocks, images = {}, {}
    for name, modality in plan.modalities.items():
        if modality.encoder == "cnn":
            blocks[name], images[name] = patch_block(modality, order, patches.get(name, {}))
        else:
            blocks[name] = read_modality(tables, modality, order, reserved, problems)
    problems.raise_if_any()
    usable = np.logical_or.reduce([block.present for block in blocks.values()])
    for name, modality in plan.modalities.items():
        if modality.required:
            usable &= blocks[name].present
    if not usable.any():
        raise DataError(
            f"{folder}: nobody has a value of any modality that the model reads: {', '.join(sorted(plan.modalities))}; "
            "`oncofed-site check` says which columns are missing",
            code="no-patient",
        )
    n = int(np.count_nonzero(usable))
    return Cohort(
        site=settings.site.name,
        patients=tuple(p for p, keep in zip(order, usable, strict=True) if keep),
        values={m: b.values[usable] for m, b in blocks.items()},
        columns={m: b.columns for m, b in blocks.items()},
        labels={name: _unknown(task, n) for name, task in plan.tasks.items()},
        subgroups={},
        split_labels=None,
        images={m: v[usable] for m, v in images.items()},
    )


def _unknown(task: ClassificationTask | SurvivalTask, patients: int) -> NDArray[Any]:
    """Labels that nobody knows, as a cohort has them."""
    if isinstance(task, ClassificationTask):
        return np.full(patients, -1, dtype=np.int64)
    return np.full((patients, 2), np.nan)


@contextmanager
def _dropping(network: FusionNetwork, seed: int) -> Iterator[None]:
    """Dropout as in training, drawn from a seed; whole modalities stay, for a patient's own are no matter of chance."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in network.modules():
            layer.train(isinstance(layer, nn.Dropout))
        yield
    network.eval()


def _input(model: Model, cohort: Cohort, state: Path | None) -> TrainingSet:
    """What a model reads of patients: of harmonised values, with the location that this site found when the model was trained.

    A hospital that took no part finds it from these patients, all of them, without their outcomes.
    """
    plan, preparation = model.plan, model.preparation
    everybody = np.ones(len(cohort.patients), dtype=bool)
    locations = kept_locations(state, plan, preparation)
    if locations is None:
        locations = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, everybody)
    return training_set(plan, preparation, cohort, slice(None), locations)


def _members(model: Model, data: TrainingSet, passes: int, seed: int) -> list[dict[str, Values]]:
    """A model's predictions: one, or one per pass."""
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
    days = {key: days_until(prediction, task.edges, share) for key, share in _SHARES.items()}
    return {"risk": 1 - prediction[:, column], **days}


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


def _weights(models: Sequence[Model], inputs: Sequence[TrainingSet]) -> dict[str, list[float]]:
    """How much each modality counted for each patient: the mean over models; a modality that a model never saw has 0 there."""
    total = {modality: np.zeros(len(inputs[0])) for modality in sorted(models[0].plan.modalities)}
    for model, data in zip(models, inputs, strict=True):
        for modality, weights in modality_weights(model.network, data.values, data.seen).items():
            total[modality] += weights.numpy().astype(np.float64) / len(models)
    return {f"weight.{modality}": weights.tolist() for modality, weights in total.items()}


def predicted(
    models: Sequence[Model], cohort: Cohort, *, passes: int = 0, seed: int = 0, state: Path | None = None
) -> Predicted:
    """Predictions of one or several models of one study.

    Args:
        models: with the same plan, or plans that ask the same.
        passes: with dropout, of each model; 0 for none.
        seed: of the dropout; the same seed gives the same table.
        state: the site's state folder, where its own location lies for models of harmonised values.

    Returns:
        Columns `task.class`, `task.risk` or `task.cause`; with several members their mean, and `.sd` behind each. With one,
        `task.set` and `task.observed.low`, `.high` where the model has been calibrated. Then `weight.MODALITY`, from 0 to 1, and
        `missing`.

    Raises:
        ConfigError: the models answer different questions, or have no dropout for passes.
        PolicyRefusal: too few patients for a hospital's own location (code `too-few-to-harmonise`).
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
        inputs = [_input(m, cohort, state) for m in models]
        members = [p for m, d in zip(models, inputs, strict=True) for p in _members(m, d, passes, seed)]
        weights = _weights(models, inputs)
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
    columns |= weights
    columns["missing"] = _missing(cohort)
    return Predicted(patients=cohort.patients, columns=columns)


def _missing(cohort: Cohort) -> list[str]:
    """Modalities of which a patient has no value, with | between."""
    has = {m: np.asarray((~np.isnan(v)).any(axis=1)) for m, v in cohort.values.items()}
    return ["|".join(m for m in sorted(has) if not has[m][i]) for i in range(len(cohort.patients))]
