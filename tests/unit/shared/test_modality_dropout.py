"""Modality dropout: whole modalities, by chance, never all that somebody has; and not at all outside training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from oncofed_shared.modality_dropout import ModalityDropout
from oncofed_shared.network import build
from oncofed_shared.plan import parse

SIZES = (3, 1, 4, 2)
PLAN = {
    "study": {"name": "s", "purpose": "a study for tests"},
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}},
    "modalities": {"m": {"patterns": ["*"]}, "n": {"patterns": ["*"]}},
    "training": {"rounds": 1, "dtype": "float64"},
}


def blocks(seen: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.split(seen, SIZES, dim=1))


@given(st.floats(0.05, 0.95), st.integers(0, 2**31))
@settings(max_examples=60)
def test_a_modality_goes_whole_or_stays_and_somebody_keeps_something(chance: float, seed: int) -> None:
    torch.manual_seed(seed)
    seen = (torch.rand(40, sum(SIZES)) < 0.6).double()
    seen[0] = 0
    layer = ModalityDropout(chance, SIZES).train()
    left = layer(seen)
    for before, after in zip(blocks(seen), blocks(left), strict=True):
        same, gone = (after == before).all(dim=1), (after == 0).all(dim=1)
        assert bool((same | gone).all())
    has = seen.any(dim=1)
    assert torch.equal(left.any(dim=1), has)


def test_it_hides_as_often_as_it_says_and_each_modality_by_itself() -> None:
    torch.manual_seed(5)
    left = ModalityDropout(0.3, SIZES).train()(torch.ones(20_000, sum(SIZES)))
    gone = torch.stack([b[:, 0] == 0 for b in blocks(left)], dim=1).double()
    # All four at once are put back: 0.3^4 of the patients.
    expected = 0.3 - 0.3**4
    for column in gone.T:
        assert binomtest(int(column.sum()), len(column), expected).pvalue > 1e-4
    assert float(torch.corrcoef(gone.T)[0, 2].abs()) < 0.03


def test_outside_training_and_without_a_chance_everything_is_seen() -> None:
    seen = torch.ones(50, sum(SIZES))
    assert torch.equal(ModalityDropout(0.9, SIZES).eval()(seen), seen)
    assert torch.equal(ModalityDropout(0.0, SIZES).train()(seen), seen)


def test_a_network_that_hides_a_modality_says_what_it_says_of_those_who_lack_it() -> None:
    plan = parse({**PLAN, "training": {**PLAN["training"], "modality_dropout": 0.5}})
    columns = {"m": ("a", "b"), "n": ("c", "d", "e")}
    network = build(plan, columns, seed=1).train()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p))
    values = torch.randn(1, 5, dtype=torch.float64).expand(200, 5)
    made = network(values, torch.ones(200, 5, dtype=torch.float64))["r"].flatten().detach()
    network.eval()
    masks = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.float64)
    possible = network(values[:3], masks)["r"].flatten().detach()
    apart = (made[:, None] - possible[None]).abs()
    assert float(apart.min(dim=1).values.max()) < 1e-12
    assert set(apart.argmin(dim=1).tolist()) == {0, 1, 2}


def test_it_is_refused_with_privacy() -> None:
    privacy = {"noise": "site", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.5}
    with pytest.raises(Exception, match="modality_dropout: must be 0 with privacy"):
        parse(
            {
                **PLAN,
                "modalities": {"m": {"patterns": ["*"], "scaling": "none"}},
                "training": {**PLAN["training"], "modality_dropout": 0.1},
                "privacy": {**privacy, "patients": {"a": 100}},
            }
        )
