"""A finished model as a file: the network's parameters, how inputs are prepared, and the plan that says what they mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError, DataError, RemoteProtocolError
from oncofed_shared.features import Preparation
from oncofed_shared.layers import load_parameters
from oncofed_shared.layout import Layout
from oncofed_shared.losses import predict
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan, parse
from oncofed_shared.storage import read_arrays

__all__ = ["Predictions", "TrainedModel", "read_model"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """What a model says of n patients.

    Attributes:
        tasks: per task (n, classes) probabilities, or (n, intervals) survival at the end of each interval.
        weights: per modality (n,), from 0 to 1; empty where the plan's fusion weighs none.
    """

    tasks: dict[str, NDArray[Any]]
    weights: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedModel:
    """A model that can be applied.

    Attributes:
        plan: the study that made it; what it predicts and from what.
        preparation: columns, scaling and what fills a gap.
        network: in the plan's dtype, not training.
    """

    plan: Plan
    preparation: Preparation
    network: FusionNetwork

    def apply(self, values: NDArray[Any], seen: NDArray[Any]) -> Predictions:
        """Predict.

        Args:
            values: (n, columns) as `features.prepared_input` gives them.
            seen: (n, columns) what was observed.
        """
        dtype = torch.float64 if self.plan.training.dtype == "float64" else torch.float32
        inputs, present = torch.from_numpy(values).to(dtype), torch.from_numpy(seen).to(dtype)
        with torch.no_grad(), one_thread():
            tasks = predict(self.plan, self.network(inputs, present))
            try:
                weights = {m: w.numpy() for m, w in self.network.modality_weights(present).items()}
            except ConfigError:
                weights = {}
        return Predictions(tasks=tasks, weights=weights)


def read_model(path: Path) -> TrainedModel:
    """Read `model.safetensors` of a run.

    Guarantees:
        - Names and shapes are those of the plan's network, and every number is finite.
        - The plan in the file has the hash that the file names.

    Raises:
        DataError: it is no such model, is damaged, or is of another version.
    """
    arrays, facts = read_arrays(path)
    try:
        plan = parse(json.loads(facts["plan"]), str(path))
        columns = {str(m): tuple(str(c) for c in names) for m, names in facts["columns"].items()}
        known, seed = facts["plan_hash"], int(facts["seed"])
        preparation = Preparation.from_arrays(plan, columns, _under("preparation.", arrays))
        network = build(plan, preparation.columns, seed=seed)
        parameters = _under("network.", arrays)
        Layout.of(network).check(parameters)
    except (ConfigError, RemoteProtocolError, KeyError, ValueError, TypeError, AttributeError):
        raise _damaged(path) from None
    if plan.hash != known:
        raise _damaged(path)
    load_parameters(network, parameters)
    network.eval()
    return TrainedModel(plan=plan, preparation=preparation, network=network)


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _damaged(path: Path) -> DataError:
    return DataError(
        f"{path}: is not a model that this version can use, or it is damaged; expected model.safetensors of a finished study, "
        "made by the same version of oncofed",
        code="model",
    )
