"""Encoders of a modality's own under privacy: images, gene graphs and gene sets."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oncofed_client.integer_step import integer_sum, places_of
from oncofed_client.patient_gradients import backward, per_patient
from oncofed_client.private_training import check_private
from oncofed_client.training import TrainingSet
from oncofed_shared.integer_noise import IntegerNoise
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan, parse

EDGES = b"A\tB\nB C\nD\tC\n"
SETS = b"ONE\tx\tA\tB\tC\nTWO\tx\tC\tD\n"
GENES = tuple(f"{gene}_rna" for gene in "ABCDE")
GRID = (6, 5, 4)


def named(content: bytes, file: str, **more: Any) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), **more}


GENE = {"patterns": ["{gene}_rna"], "scaling": "none"}
PATCH = {"size": list(GRID), "window": [-100, 200]}
ENCODERS: dict[str, dict[str, Any]] = {
    "images": {"encoder": "cnn", "scaling": "none", "patch": {"ct": PATCH, "pet": PATCH}},
    "graph convolution": GENE
    | {"encoder": "graph", "graph": named(EDGES, "graph.txt", kind="convolution", channels=3)},
    "graph attention": GENE | {"encoder": "graph", "graph": named(EDGES, "graph.txt", kind="attention", channels=3)},
    "gene sets": GENE | {"encoder": "pathways", "pathways": named(SETS, "sets.gmt", smallest=2)},
}


def case_of(encoder: str, folder: Path, dtype: str) -> tuple[Plan, FusionNetwork, TrainingSet]:
    """A private plan, a network away from its first values, and 64 patients, some of whom lack something."""
    (folder / "graph.txt").write_bytes(EDGES)
    (folder / "sets.gmt").write_bytes(SETS)
    plan = parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {"own": ENCODERS[encoder]},
            "model": {"width": 8, "heads": 2, "layers": 1, "feedforward": 12},
            "training": {"rounds": 3, "rate": 0.1, "dtype": dtype},
            "privacy": {
                "noise": "site", "epsilon": 3, "delta": 1e-4, "clip_norm": 0.1, "sampling_rate": 0.5, "patients": {"a": 40},
            },
            "simulation": {"files": str(folder)},
        }
    )  # fmt: skip
    columns = ("ct", "pet") if encoder == "images" else GENES
    network = build(plan, {"own": columns}, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    rng = np.random.default_rng(2)
    kind = torch.float64 if dtype == "float64" else torch.float32
    return plan, network, TrainingSet(
        values=torch.from_numpy(rng.standard_normal((64, network.reads))).to(kind),
        seen=torch.from_numpy(rng.random((64, len(columns))) < 0.8).to(kind),
        goals=targets(plan, {"two": rng.integers(0, 2, 64)}, {"two": np.ones(2)}),
    )  # fmt: skip


each_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@each_encoder
def test_removing_any_one_of_64_patients_moves_the_integers_by_at_most_the_bound(encoder, tmp_path) -> None:
    plan, network, patients = case_of(encoder, tmp_path, "float32")
    integers = IntegerNoise.sized(parameters=network.vector.numel(), clip_norm=0.1, noise_multiplier=1.0)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(6))
    assert places_of(plan) == 32
    with per_patient(network) as hooked:
        whole = integer_sum(hooked, plan, patients, order, integers).copy()
        squares = []
        for i in range(64):
            left = order[:-1].clone()
            if i < 63:
                left[i] = order[-1]
            moved = whole - integer_sum(hooked, plan, patients, left, integers)
            squares.append(sum(int(v) ** 2 for v in moved))
    assert max(squares) <= integers.bound**2
    assert max(squares) > (0.9975 * integers.bound) ** 2


@each_encoder
def test_gradients_are_those_of_one_by_one_autograd(encoder, tmp_path) -> None:
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5)):
        plan, network, patients = case_of(encoder, tmp_path, dtype)
        few = patients.rows(torch.arange(8))
        with per_patient(network) as hooked:
            made = backward(hooked, plan, few, patient_losses)
            rows = made.each()
        for i in range(8):
            one = few.rows(torch.tensor([i]))
            loss = patient_losses(plan, network(one.values, one.seen), one.goals).sum()
            own = torch.autograd.grad(loss, list(network.named.values()), allow_unused=True, materialize_grads=True)
            alone = torch.cat([g.flatten() for g in own]).double()
            length = float(alone.norm())
            assert torch.allclose(rows[i], alone, rtol=tolerance, atol=tolerance * length)
            assert math.isclose(float(made.lengths[i]), length, rel_tol=max(tolerance, 1e-5))


@each_encoder
def test_a_private_study_may_use_it(encoder, tmp_path) -> None:
    plan, network, patients = case_of(encoder, tmp_path, "float32")
    check_private(plan, network, width=patients.seen.shape[1])
