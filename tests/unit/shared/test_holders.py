"""What is a modality's own: what a patient without it cannot change; and how many patients stand behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oncofed_client.rounds import train_round
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.holders import constant_behind, has_modalities, patients_behind, sent_counts, without_own
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.penalties import strengths
from oncofed_shared.plan import Plan, parse
from oncofed_shared.plan_sizes import Fusion
from oncofed_strategies import Sums, advance, init

COLUMNS = {"clinical": ("age", "sex"), "genes": ("A", "B", "C"), "texture": ("t",)}
SIDES = {"genes": {"side": "genes"}, "texture": {"side": "imaging"}}
ALL, GENES = 100.0, 30.0
FUSIONS = Fusion.__args__
SIDES = {"genes": {"side": "genes"}, "texture": {"side": "imaging"}}


def plan_of(fusion: str = "transformer", privacy: Any = None, **strategy: Any) -> Plan:
    private = {"scaling": "none"} if privacy else {}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}},
            "modalities": {m: {"patterns": ["*"], **private, **SIDES.get(m, {})} for m in COLUMNS},
            "model": {"width": 4, "layers": 1, "feedforward": 6, "fusion": fusion, "block_scaling": False},
            "training": {"rounds": 1, "dtype": "float64", "rate": 0.5},
            "strategy": {"average": "holders", **strategy},
            "privacy": privacy or {"noise": "none"},
        }
    )


PRIVATE = {
    "noise": "site", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.5, "patients": {"a": 100},
}  # fmt: skip


def filled(plan: Plan) -> FusionNetwork:
    network = build(plan, COLUMNS, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return network


def own_names(network: FusionNetwork, place: int) -> dict[str, np.ndarray[Any, Any]]:
    """Per parameter which coordinates are a modality's own; those without any are left out."""
    behind = patients_behind(network, ALL, np.where(np.arange(3) == place, GENES, ALL))
    marks = Layout.of(network).arrays((behind == GENES).astype(float), "float64")
    return {n: m for n, m in marks.items() if m.any()}


def test_of_a_transformer_it_is_the_tokeniser_and_the_columns_of_the_linear_path() -> None:
    own = own_names(filled(plan_of()), 1)
    assert set(own) == {"linear.weight", "tokenisers.1.weight", "tokenisers.1.bias"}
    assert own["linear.weight"].tolist() == [[0, 0, 1, 1, 1, 0]]
    assert own["tokenisers.1.bias"].all()
    assert own["tokenisers.1.weight"].all()


def test_of_late_fusion_it_is_the_whole_network_of_the_modality() -> None:
    network = filled(plan_of("late"))
    own = own_names(network, 1)
    trunk = {n for n in Layout.of(network).shapes if n.startswith("fusion.trunks.1.")}
    assert trunk <= set(own)
    assert not any(n.startswith(("fusion.trunks.0.", "fusion.trunks.2.", "tokenisers.0", "tokenisers.2")) for n in own)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_who_lacks_a_modality_does_not_move_what_is_its_own_and_who_has_it_does(fusion: str) -> None:
    plan = plan_of(fusion)
    network = filled(plan)
    rng = np.random.default_rng(3)
    goals = targets(plan, {"r": rng.integers(0, 2, 20)}, {"r": np.ones(2)})
    values = torch.tensor(rng.normal(size=(20, 6)))
    seen = torch.ones(20, 6, dtype=torch.float64)
    without = seen.clone()
    without[:, 2:5] = 0

    def gradient(there: torch.Tensor) -> np.ndarray[Any, Any]:
        loss = patient_losses(plan, network(values, there), goals).sum()
        return np.concatenate(
            [g.flatten() for g in torch.autograd.grad(loss, list(network.named.values()), materialize_grads=True)]
        )

    own = patients_behind(network, ALL, np.array([ALL, GENES, ALL])) == GENES
    assert own.sum() > 3
    assert not gradient(without)[own].any()
    assert np.count_nonzero(gradient(seen)[own]) > 0.9 * own.sum()


def test_a_site_sends_zeros_for_what_it_lacks_and_says_how_many_patients_have_what() -> None:
    plan = plan_of()
    network = filled(plan)
    rng = np.random.default_rng(0)
    seen = torch.ones(8, 6, dtype=torch.float64)
    seen[:, 2:5] = 0
    data = TrainingSet(
        values=torch.tensor(rng.normal(size=(8, 6))),
        seen=seen,
        goals=targets(plan, {"r": np.arange(8) % 2}, {"r": np.ones(2)}),
    )
    layout = Layout.of(network)
    decayed = parse(plan.model_dump(mode="json") | {"training": {"rounds": 1, "dtype": "float64", "weight_decay": 0.2}})
    start = {n: p.detach().numpy().copy() for n, p in network.named.items()}
    made, _ = train_round(
        decayed, network, data, start, whole=layout, layout=layout, control=np.zeros(0), kept={}, key="k"
    )
    assert sent_counts(plan) == 3
    assert made[layout.size : -2].tolist() == [8, 0, 8]
    own = patients_behind(network, ALL, np.array([ALL, GENES, ALL])) == GENES
    assert not made[: layout.size][own].any()
    assert made[: layout.size][~own].all() or np.count_nonzero(made[: layout.size][~own]) > 0.5 * (~own).sum()


def test_the_mean_is_over_the_holders_and_over_all_for_the_rest() -> None:
    plan = plan_of()
    network = filled(plan)
    size = Layout.of(network).size
    behind = patients_behind(network, 12, np.array([12.0, 4.0, 0.0]))
    before = init(np.zeros(size))
    sums = Sums(change=np.full(size, 6.0), extra=np.zeros(3), patients=12, population=12, behind=behind)
    after = advance(plan, before, sums).parameters
    own = patients_behind(network, ALL, np.array([ALL, GENES, ALL])) == GENES
    assert np.allclose(after[own], 1.5)
    # Nobody has texture: what is its own is divided like the rest, and its sum is 0 in a real round.
    assert np.allclose(after[~own], 0.5)


def test_a_change_of_a_site_with_everything_is_left_alone() -> None:
    network = filled(plan_of())
    change = np.random.default_rng(1).normal(size=Layout.of(network).size)
    everything = np.ones(3, dtype=bool)
    assert np.array_equal(without_own(network, change, everything), change)
    assert has_modalities(network, torch.eye(6)[[0, 5]]).tolist() == [True, False, True]


def test_under_privacy_the_divisor_is_a_constant_and_nothing_is_sent() -> None:
    plan = plan_of(privacy=PRIVATE, holders={"genes": 0.25})
    network = filled(plan)
    assert sent_counts(plan) == 0
    behind = constant_behind(network, plan, patients=200)
    assert set(behind.tolist()) == {50.0, 200.0}


def test_under_privacy_the_penalty_of_sites_without_the_modality_does_not_add_up() -> None:
    shares = {"average": "holders", "holders": {"genes": 0.25}}
    content = plan_of(privacy=PRIVATE, holders={"genes": 0.25}).model_dump(mode="json")
    content["training"]["weight_decay"] = 0.4
    with_holders, plain = parse(content), parse({**content, "strategy": {}})
    assert content["strategy"]["holders"] == shares["holders"]
    one, two = filled(with_holders), filled(plain)
    behind = constant_behind(one, with_holders, patients=1.0)
    assert torch.allclose(strengths(with_holders, one)[0] / torch.tensor(behind), strengths(plain, two)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "scaffold"}, "goes with rules that step along a mean"),
        ({"name": "qfedavg"}, "goes with rules that step along a mean"),
        ({"holders": {"genes": 0.5}}, "strategy.holders: is for private plans"),
        ({"average": "patients", "holders": {"genes": 0.5}}, "is of average = 'holders'"),
        ({"privacy": PRIVATE}, "strategy.holders: is missing"),
        ({"privacy": PRIVATE, "holders": {"gene": 0.5}}, "strategy.holders.gene: no modality has this name"),
        ({"privacy": PRIVATE, "holders": {"genes": 0.0}}, "strategy.holders.genes"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(**changes)


def test_a_plan_without_it_keeps_its_bytes() -> None:
    assert b"holders" not in plan_of(average="patients").canonical
    assert b"modality_dropout" not in plan_of().canonical
