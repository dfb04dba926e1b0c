"""Patches in the network: gradients per patient, channels that are absent, fusions and sizes, and what a plan may say."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor

from oncofed_shared.errors import ConfigError
from oncofed_shared.features import encoded_columns
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_image import filters
from oncofed_shared.plan import Plan, parse
from oncofed_shared.plan_sizes import SIZES, Fusion

FUSIONS = get_args(Fusion)
GRID = (5, 6, 4)
COLUMNS: Columns = {"clinical": ("age",), "genes": ("A_rna", "B_rna", "C_rna"), "scan": ("ct", "pet")}
TABLE, VOXELS = 6, 2 * math.prod(GRID)


def plan_of(scan: dict[str, Any] | None = None, **model: Any) -> Plan:
    patch = {"size": list(GRID), "window": [-100, 200]}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {
                "clinical": {"columns": {"age": {"kind": "numeric"}}},
                "genes": {"patterns": ["{gene}_rna"], "tokens": 2, "side": "genes"},
                "scan": {"encoder": "cnn", "patch": {"ct": patch, "pet": patch}} if scan is None else scan,
            },
            "model": {"width": 8, "heads": 2, "layers": 1, "feedforward": 12, **model},
            "training": {"rounds": 1, "dtype": "float64"},
        }
    )


def lively(plan: Plan) -> FusionNetwork:
    """A network whose zeros are filled, so that every path has an influence."""
    network = build(plan, COLUMNS, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    return network.eval()


def patients(n: int = 6) -> tuple[Tensor, Tensor]:
    """The first has nothing, the second no patch, the third one series, the others most of everything."""
    rng = np.random.default_rng(0)
    seen = rng.random((n, TABLE)) < 0.8
    seen[0], seen[1, 4:], seen[2, 4:] = False, False, (True, False)
    values = np.where(seen, rng.normal(size=(n, TABLE)), 0)
    values[:, 4:] = 0
    voxels = rng.normal(size=(n, VOXELS)) * np.repeat(seen[:, 4:], VOXELS // 2, axis=1)
    return torch.tensor(np.concatenate([values, voxels], axis=1)), torch.tensor(seen).double()


PLANS = {f: plan_of(fusion=f) for f in FUSIONS} | {size: plan_of(size=size) for size in SIZES}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@each_plan
def test_gradients_are_those_of_each_patient_alone_and_opacus_is_content(plan: Plan) -> None:
    values, seen = patients()
    labels = np.array([1, 0] * 3)

    def loss(network: torch.nn.Module, rows: slice) -> Tensor:
        goals = targets(plan, {"two": labels[rows]}, {"two": np.ones(2)})
        return patient_losses(plan, network(values[rows], seen[rows]), goals).sum()

    network = lively(plan)
    assert ModuleValidator.validate(lively(plan).train(), strict=False) == []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooked = GradSampleModule(lively(plan).train(), loss_reduction="sum", strict=True)
        torch.autograd.backward([loss(hooked, slice(None))])
    for i in range(len(values)):
        network.zero_grad(set_to_none=True)
        torch.autograd.backward([loss(network, slice(i, i + 1))])
        for name, parameter in hooked._module.named_parameters():
            alone = dict(network.named_parameters())[name].grad
            torch.testing.assert_close(
                parameter.grad_sample[i], torch.zeros_like(parameter) if alone is None else alone, rtol=1e-5, atol=1e-5
            )


@each_plan
def test_garbage_in_a_series_that_is_absent_changes_nothing_and_what_is_there_counts(plan: Plan) -> None:
    network = lively(plan)
    values, seen = patients()
    clean = network(values, seen)["two"]
    here = torch.cat([seen, seen[:, 4:].repeat_interleave(VOXELS // 2, dim=1)], dim=1) > 0
    for garbage in (float("nan"), float("inf"), 1e30):
        assert torch.equal(network(torch.where(here, values, garbage), seen)["two"], clean)
    other = values.clone()
    other[3, TABLE:] += torch.linspace(-2, 2, VOXELS, dtype=torch.float64)
    changed = (network(other, seen)["two"] != clean)[:, 0]
    assert changed.tolist() == [i == 3 for i in range(len(values))]


@each_plan
def test_an_image_that_nobody_has_is_as_if_the_plan_had_none(plan: Plan) -> None:
    """Its token is masked, in each fusion: whatever the weights of its encoder, they have no say."""
    one, two = lively(plan), lively(plan)
    with torch.no_grad():
        for name, parameter in two.named_parameters():
            if name.startswith("tokenisers.encoders."):
                parameter.add_(1)
    values, seen = patients()
    seen[:, 4:] = 0
    assert torch.equal(one(values, seen)["two"], two(values, seen)["two"])


def test_a_missing_series_is_told_from_one_that_is_all_zero() -> None:
    values, seen = patients()
    values[:, TABLE:] = 0
    without = seen.clone()
    without[3:, 5] = 0
    network = lively(plan_of())
    assert not torch.allclose(network(values, seen)["two"][4], network(values, without)["two"][4])


def test_the_linear_path_reads_no_voxel() -> None:
    linear = lively(plan_of()).linear
    assert linear is not None
    assert linear.weight.shape == (1, TABLE)


def test_filters_grow_with_the_width() -> None:
    assert [filters(SIZES[size]["width"]) for size in SIZES] == [(2, 4, 8), (8, 16, 32), (32, 64, 128)]


def test_columns_are_the_roles_by_name() -> None:
    assert encoded_columns(plan_of().modalities["scan"]) == ("ct", "pet")


PATCH = {"size": [4, 4, 4], "window": [0, 1]}


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        ({"encoder": "cnn"}, r"scan.patch: encoder = 'cnn' reads patches, and there are none"),
        ({"encoder": "cnn", "patch": {"ct": PATCH}, "patterns": ["*"]}, "scan.patterns: encoder = 'cnn' reads patches"),
        ({"encoder": "cnn", "patch": {"ct": PATCH}, "tokens": 3}, "scan.tokens: encoder = 'cnn' makes its own tokens"),
        (
            {"encoder": "cnn", "patch": {"ct": PATCH, "pet": {**PATCH, "size": [4, 4, 5]}}},
            "scan.patch: .* the same size",
        ),
        ({"encoder": "mlp", "patterns": ["*"]}, "scan.encoder: Input should be 'linear'"),
        ({"patch": {"ct": PATCH}}, "scan.patterns: give either columns or patterns"),
        ({"encoder": "cnn", "patch": {"ct": PATCH}, "emphasis": 2}, "scan.emphasis: is a factor on columns"),
    ],
)
def test_what_an_encoder_cannot_read_is_refused(scan: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(scan)


def test_the_default_encoder_leaves_a_plan_s_hash_as_it_was() -> None:
    plain = plan_of({"patterns": ["*"]})
    assert b"encoder" not in plain.canonical
    assert plan_of({"patterns": ["*"], "encoder": "linear"}).hash == plain.hash
    assert plan_of().hash == Plan.model_validate_json(plan_of().canonical).hash


def test_the_page_has_the_parameters_of_every_size() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "network.md").read_text(encoding="utf-8")
    for channels in (1, 2, 4):
        counts = []
        for numbers in SIZES.values():
            width, (a, b, c) = numbers["width"], filters(numbers["width"])
            stages = (27 * channels + 3) * a + (27 * a + 3) * b + (27 * b + 3) * c
            counts.append(stages + (c + channels + 1) * width)
        assert f"| {channels} | {' | '.join(f'{n:,}' for n in counts)} |" in page
