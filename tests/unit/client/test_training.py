"""One round at a site: the step that a person would compute by hand, and nothing that the key does not decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oncofed_client.augmented import augmenter
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.errors import ConfigError
from oncofed_shared.layout import Layout
from oncofed_shared.losses import patient_losses, targets
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.penalties import penalties
from oncofed_shared.plan import Plan, parse

Values = NDArray[np.float64]
COLUMNS: Columns = {"m": ("a", "b", "c"), "n": ("d", "e")}


def plan_of(layers: int = 0, tasks: dict[str, Any] | None = None, **training: Any) -> Plan:
    two = {"kind": "classification", "label": "r", "classes": ["no", "yes"]}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"r": two},
            "modalities": {"m": {"patterns": ["*"], "tokens": "columns"}, "n": {"patterns": ["*"]}},
            "model": {"width": 4, "heads": 2, "layers": layers, "feedforward": 6, "block_scaling": False},
            "training": {"rounds": 1, "dtype": "float64", **training},
        }
    )


def data_of(plan: Plan, n: int, seed: int = 0) -> tuple[TrainingSet, Values, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    seen = rng.random((n, 5)) < 0.8
    values = np.where(seen, rng.normal(size=(n, 5)), 0.0)
    labels = rng.integers(0, 2, n)
    goals = targets(plan, {"r": labels}, {"r": np.ones(2)})
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    data = TrainingSet(values=torch.tensor(values).to(dtype), seen=torch.tensor(seen).to(dtype), goals=goals)
    return data, values, labels


def start_of(plan: Plan, seed: int = 0) -> tuple[FusionNetwork, Layout, dict[str, NDArray[Any]]]:
    network = build(plan, COLUMNS, seed)
    layout = Layout.of(network)
    rng = np.random.default_rng(seed)
    return network, layout, layout.arrays(rng.normal(size=layout.size) * 0.3, plan.training.dtype)


def run(plan: Plan, n: int = 12, key: str = "k", seed: int = 0) -> Values:
    network, layout, parameters = start_of(plan)
    return local_update(plan, network, layout, data_of(plan, n, seed)[0], parameters, key=key)


def test_one_full_batch_step_of_sgd_is_the_gradient_worked_out_by_hand() -> None:
    """Logistic regression: the gradient is the mean over patients of (p - y) x, and p - y for the baseline."""
    plan = plan_of(rate=0.2)
    data, values, labels = data_of(plan, 12)
    network, layout, parameters = start_of(plan)
    total = local_update(plan, network, layout, data, parameters, key="k")
    weight, baseline = parameters["linear.weight"], parameters["baselines.0.weight"]
    p = 1 / (1 + np.exp(-(values @ weight[0] + baseline[0, 0])))
    step = {"linear.weight": -0.2 * (p - labels) @ values, "baselines.0.weight": -0.2 * (p - labels).sum()}
    change = layout.arrays(total[:-2], "float64")
    for name, expected in step.items():
        np.testing.assert_allclose(change[name].ravel(), expected, rtol=1e-10, atol=1e-12)
    losses = -np.log(np.where(labels == 1, p, 1 - p))
    np.testing.assert_allclose(total[-2:], [12, losses.sum()], rtol=1e-10)


@pytest.mark.parametrize(("decay", "l1"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_penalties_are_added_to_the_mean_loss(decay: float, l1: float) -> None:
    plain, penalised = plan_of(rate=0.2), plan_of(rate=0.2, weight_decay=decay, l1=l1)
    n = 12
    difference = run(penalised, n) - run(plain, n)
    _, layout, parameters = start_of(plain)
    weight = parameters["linear.weight"]
    change = layout.arrays(difference[:-2], "float64")
    # d/dw of decay/2 |w|^2 + l1 |w|_1; whatever the number of patients, times that number.
    np.testing.assert_allclose(change["linear.weight"], -0.2 * n * (decay * weight + l1 * np.sign(weight)), rtol=1e-9)
    np.testing.assert_array_equal(change["baselines.0.weight"], 0)
    # The loss that is reported is the patients', without the penalty.
    np.testing.assert_array_equal(difference[-2:], 0)


def test_which_weights_are_penalised() -> None:
    plan = plan_of(layers=1, weight_decay=0.1, deep_decay=0.2, l1=0.3)
    network = build(plan, COLUMNS, 0)
    names = {id(p): n for n, p in network.named_parameters()}
    strength = {names[id(p)]: (decay, l1) for p, decay, l1 in penalties(plan, network)}
    assert strength["linear.weight"] == (0.1, 0.3)
    tokens = {n: s for n, s in strength.items() if n.startswith("tokenisers.")}
    assert tokens
    assert set(tokens.values()) == {(0.2, 0.3)}
    assert strength["layers.0.attention.query.weight"] == (0.2, 0.0)
    assert strength["heads.weight"] == (0.2, 0.0)
    assert not [n for n in strength if n.startswith("baselines.") or "norm" in n or n.endswith(".bias")]
    assert penalties(plan_of(layers=1), network) == []


def test_several_steps_are_those_of_torchs_optimiser() -> None:
    for optimiser, momentum in (("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)):
        plan = plan_of(layers=1, rate=0.05, local_steps=4, optimiser=optimiser, momentum=momentum)
        data, *_ = data_of(plan, 10)
        network, layout, parameters = start_of(plan)
        total = local_update(plan, network, layout, data, parameters, key="k")
        bare = build(plan, COLUMNS, 0)
        bare.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in parameters.items()})
        rule: torch.optim.Optimizer = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=momentum)
        if optimiser == "adam":
            rule = torch.optim.Adam(bare.parameters(), lr=0.05)
        for _ in range(4):
            rule.zero_grad()
            torch.autograd.backward([patient_losses(plan, bare(data.values, data.seen), data.goals).mean()])
            rule.step()
        after = layout.flatten({n: p.detach().numpy() for n, p in bare.named_parameters()})
        np.testing.assert_allclose(total[:-2] / 10, after - layout.flatten(parameters), rtol=1e-9, atol=1e-12)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 2**31))
@settings(max_examples=25)
def test_steps_of_two_sites_add_up_to_the_step_of_both(one: int, two: int, seed: int) -> None:
    """Full batch and one step: patients x change is additive, with penalties too."""
    plan = plan_of(layers=1, rate=0.1, weight_decay=0.05, l1=0.01)
    whole, *_ = data_of(plan, one + two, seed)
    network, layout, parameters = start_of(plan)
    parts = [torch.arange(one), torch.arange(one, one + two)]
    sums = [local_update(plan, network, layout, whole.rows(p), parameters, key=str(i)) for i, p in enumerate(parts)]
    pooled = local_update(plan, network, layout, whole, parameters, key="pooled")
    np.testing.assert_allclose(np.sum(sums, axis=0), pooled, rtol=1e-9, atol=1e-11)


NOISY = {"layers": 1, "batch": 4, "local_steps": 5, "dropout": 0.3, "input_dropout": 0.2, "dtype": "float32"}


def test_the_key_decides_batches_and_dropout_and_nothing_else_does() -> None:
    plan = plan_of(**NOISY)
    first = run(plan)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert run(plan).tobytes() == first.tobytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert run(plan, key="l").tobytes() != first.tobytes()


def test_a_scratch_network_remembers_nothing() -> None:
    plan = plan_of(**NOISY)
    data, *_ = data_of(plan, 12)
    network, layout, parameters = start_of(plan)
    first = local_update(plan, network, layout, data, parameters, key="k")
    network.eval()
    local_update(plan, network, layout, data, layout.arrays(np.ones(layout.size), "float32"), key="other")
    assert local_update(plan, network, layout, data, parameters, key="k").tobytes() == first.tobytes()
    fresh, *_ = start_of(plan)
    assert local_update(plan, fresh, layout, data, parameters, key="k").tobytes() == first.tobytes()


def test_the_arguments_are_not_changed() -> None:
    plan = plan_of(**NOISY)
    data, *_ = data_of(plan, 12)
    network, layout, parameters = start_of(plan)
    before = (data.values.clone(), layout.flatten(parameters))
    local_update(plan, network, layout, data, parameters, key="k")
    assert torch.equal(data.values, before[0])
    np.testing.assert_array_equal(layout.flatten(parameters), before[1])


@pytest.mark.parametrize("batch", ["all", 1, 5])
def test_nobody_is_an_update_of_nothing(batch: Any) -> None:
    total = run(plan_of(layers=1, batch=batch), n=0)
    assert total.shape == (start_of(plan_of(layers=1))[1].size + 2,)
    assert not total.any()


@pytest.mark.parametrize("batch", [12, 13, 1000])
def test_a_batch_that_holds_everybody_is_everybody(batch: int) -> None:
    assert run(plan_of(batch=batch, local_steps=2)).tobytes() == run(plan_of(local_steps=2)).tobytes()


def test_small_batches_use_every_patient_once_before_any_twice() -> None:
    """With a rate so small that nothing moves, three batches of four sum up to the full gradient."""
    small, whole = plan_of(rate=1e-9, batch=4, local_steps=3), plan_of(rate=1e-9)
    np.testing.assert_allclose(run(small)[:-2] / 3, run(whole)[:-2], rtol=1e-6, atol=1e-12)
    # And again in the next pass, shuffled anew.
    np.testing.assert_allclose(
        run(plan_of(rate=1e-9, batch=4, local_steps=6))[:-2] / 6, run(whole)[:-2], rtol=1e-6, atol=1e-12
    )


def test_patients_without_any_label_change_nothing_but_the_count() -> None:
    plan = plan_of(layers=1)
    network, layout, parameters = start_of(plan)
    goals = targets(plan, {"r": np.full(3, -1)}, {"r": np.ones(2)})
    data = TrainingSet(
        values=torch.zeros(3, 5, dtype=torch.float64), seen=torch.ones(3, 5, dtype=torch.float64), goals=goals
    )
    total = local_update(plan, network, layout, data, parameters, key="k")
    np.testing.assert_array_equal(total[:-2], 0)
    np.testing.assert_array_equal(total[-2:], [3, 0])


def test_patches_are_varied_by_the_key_alone_and_what_is_absent_stays_so() -> None:
    patch = {"size": [4, 6, 8], "window": [0, 1]}
    scan = {"encoder": "cnn", "patch": {"ct": patch, "pet": patch}}
    content: dict[str, Any] = {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
        "modalities": {"age": {"patterns": ["age"]}, "scan": scan},
        "training": {"rounds": 1},
    }
    assert augmenter(parse(content), "key") is None
    plan = parse(
        content | {"modalities": {"age": {"patterns": ["age"]}, "scan": scan | {"augmentation": {"noise": 0.1}}}}
    )
    values, seen = torch.rand(3, 3 + 2 * 192), torch.ones(3, 3)
    values[0, 3:] = 0
    values[1, 3 : 3 + 192] = 0
    before = values.clone()
    vary, again, other = (augmenter(plan, key) for key in ("key", "key", "other"))
    assert vary is not None
    assert again is not None
    assert other is not None
    made = vary(values, seen)
    assert torch.equal(values, before)
    assert torch.equal(made[:, :3], values[:, :3])
    assert torch.equal(made[0], values[0])
    assert not bool(made[1, 3 : 3 + 192].any())
    assert not torch.equal(made[1, 3 + 192 :], values[1, 3 + 192 :])
    assert torch.equal(made, again(values, seen))
    assert not torch.equal(made, other(values, seen))
    assert not torch.equal(made, vary(values, seen)), "anew in every batch"
    with pytest.raises(ConfigError, match=r"age\.augmentation: varies patches"):
        parse(content | {"modalities": {"age": {"patterns": ["age"], "augmentation": {}}}})
