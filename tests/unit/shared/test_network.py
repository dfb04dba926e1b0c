"""The network: per-sample gradients everywhere, attention as PyTorch's, absent values without any influence."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from oncofed_shared.errors import ConfigError
from oncofed_shared.heads import FIRST_HAZARD, outputs
from oncofed_shared.losses import Target, patient_losses, targets
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_attention import Attention, Crossing
from oncofed_shared.network_fusion import JOINS
from oncofed_shared.network_tokens import token_columns
from oncofed_shared.plan import Modality, Plan, parse, side_of

COLUMNS: Columns = {
    "clinical": ("age", "sex=f", "sex=m", "stage"),
    "genes": ("A_rna", "B_rna", "C_rna", "D_rna", "E_rna"),
    "texture": ("glcm_1", "glcm_2", "other_1"),
}
WIDTH = 12
SURVIVAL = {"kind": "survival", "time": "t", "event": "e", "edges": [0, 100, 300, 900], "horizon": 300}
TWO = {"kind": "classification", "label": "two", "classes": ["no", "yes"]}
THREE = {"kind": "classification", "label": "three", "classes": ["a", "b", "c"], "weight": 0.5}


def plan_of(
    tasks: dict[str, Any] | None = None, genes: Any = 2, dtype: str = "float32", presence: float = 0.0, **model: Any
) -> Plan:
    clinical = {
        "age": {"kind": "numeric"},
        "sex": {"kind": "categorical", "categories": ["f", "m"]},
        "stage": {"kind": "ordinal", "order": ["I", "II"]},
    }
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"os": SURVIVAL, "two": TWO, "three": THREE},
            "modalities": {
                "clinical": {"columns": clinical, "tokens": "columns"},
                "genes": {"patterns": ["{gene}_rna"], "tokens": genes, "side": "genes", "presence": 2 * presence},
                "texture": {"patterns": ["*"], "tokens": {"glcm": ["glcm_*"]}, "side": "imaging", "presence": presence},
            },
            "model": {"width": 8, "heads": 2, "layers": 1, "feedforward": 12, **model},
            "training": {"rounds": 1, "dtype": dtype},
        }
    )


PLANS = {
    "two classes": plan_of({"two": TWO}),
    "three classes": plan_of({"three": THREE}),
    "proportional hazards": plan_of({"os": SURVIVAL}),
    "free hazards": plan_of({"os": SURVIVAL}, hazards="free"),
    "all tasks, two layers": plan_of(layers=2, hazards="free"),
    "linear alone": plan_of(layers=0),
    "no linear path": plan_of(linear_path=False, block_scaling=False),
    "one token": plan_of(genes="one"),
    "a token per column": plan_of(genes="columns", heads=4),
    "presence on the linear path": plan_of(presence=0.5, hazards="free"),
    "more parts than columns": plan_of(genes=9),
    **{fusion: plan_of(fusion=fusion, hazards="free") for fusion in JOINS},
    "two ways": plan_of(fusion="two_way", hazards="free"),
    "two ways, two layers": plan_of(fusion="two_way", layers=2, genes="columns", heads=4),
    "kronecker of few numbers": plan_of(fusion="kronecker", width=2, genes="columns"),
    "late, without a linear path": plan_of(fusion="late", layers=2, linear_path=False),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def lively(plan: Plan, columns: Columns = COLUMNS, seed: int = 0) -> FusionNetwork:
    """A network whose zeros are filled, so that every path has an influence."""
    network = build(plan, columns, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    return network.eval()


def patients(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Values and presence: single gaps, whole modalities that are absent, and one patient with nothing."""
    rng = np.random.default_rng(seed)
    seen = rng.random((n, WIDTH)) < 0.8
    for part in (slice(0, 4), slice(4, 9), slice(9, 12)):
        seen[rng.random(n) < 0.3, part] = False
    seen[:1] = False
    values = np.where(seen, rng.normal(size=(n, WIDTH)), 0)
    return torch.tensor(values).to(dtype), torch.tensor(seen).to(dtype)


def goals_of(plan: Plan, n: int, seed: int = 0) -> dict[str, Target]:
    rng = np.random.default_rng(seed)
    every = {
        "os": np.column_stack([rng.integers(0, 1000, n), rng.integers(0, 2, n)]).astype(float),
        "two": rng.integers(-1, 2, n),
        "three": rng.integers(-1, 3, n),
    }
    weights = {"two": np.array([1.0, 2.0]), "three": np.array([1.0, 0.5, 2.0])}
    return targets(plan, {t: every[t] for t in plan.tasks}, weights)


def row(goals: dict[str, Target], i: int) -> dict[str, Target]:
    return {n: Target(goal=t.goal[i : i + 1], weight=t.weight[i : i + 1]) for n, t in goals.items()}


# -- per-sample gradients ---------------------------------------------------------------------------------------------------


@each_plan
def test_opacus_finds_nothing_to_complain_of(plan: Plan) -> None:
    assert ModuleValidator.validate(build(plan, COLUMNS, seed=0).train(), strict=False) == []


@each_plan
def test_per_sample_gradients_are_those_of_each_patient_alone(plan: Plan) -> None:
    n = 6
    values, seen = patients(n)
    goals = goals_of(plan, n)
    network = lively(plan)
    alone = []
    for i in range(n):
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(
            [patient_losses(plan, network(values[i : i + 1], seen[i : i + 1]), row(goals, i)).sum()]
        )
        alone.append({k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None})
    network.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        hooked = GradSampleModule(lively(plan).train(), loss_reduction="sum", strict=True)
        torch.autograd.backward([patient_losses(plan, hooked(values, seen), goals).sum()])
    for name, parameter in hooked._module.named_parameters():
        each = parameter.grad_sample
        assert each.shape == (n, *parameter.shape)
        for i in range(n):
            torch.testing.assert_close(each[i], alone[i][name], rtol=1e-5, atol=1e-5)


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    """Give PyTorch's attention the same weights."""
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)


# -- attention --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6), st.sampled_from([1, 2, 4]))
@settings(max_examples=25)
def test_attention_is_pytorchs_with_the_same_weights(seed: int, n: int, t: int, heads: int) -> None:
    torch.manual_seed(seed)
    ours, theirs = Attention(8, heads), nn.MultiheadAttention(8, heads, batch_first=True)
    copy_attention(ours, theirs)
    tokens, present = torch.randn(n, t, 8), torch.rand(n, t) < 0.6
    present[:, 0] = True
    expected, _ = theirs(tokens, tokens, tokens, key_padding_mask=~present)
    torch.testing.assert_close(ours(tokens, present), expected, rtol=1e-5, atol=1e-5)


def crossed_apart(ours: Crossing, tokens: Tensor, present: Tensor) -> Tensor:
    """Two-way attention in other words: PyTorch's own, for one patient, (t, width) and (t,), over what he has alone."""
    after = tokens.clone()
    norms = [cast("nn.LayerNorm", norm) for norm in ours.norms]
    for own in (0, 1):
        mine, other = ours.sides[own], ours.sides[1 - own]
        there = other[present[other]]
        if not len(there):
            continue
        layer = cast("Attention", ours.attention[own])
        theirs = nn.MultiheadAttention(8, layer.heads)
        copy_attention(layer, theirs)
        query, read = norms[own](tokens[mine]), norms[1 - own](tokens[there])
        after[mine] = tokens[mine] + theirs(query, read, read)[0]
    return after


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]))
@settings(max_examples=25)
def test_crossing_lets_each_side_read_what_the_patient_has_of_the_other(seed: int, heads: int) -> None:
    torch.manual_seed(seed)
    crossing = Crossing(8, heads, 0.0, ([4, 0, 2], [1, 5]))
    with torch.no_grad():
        for norm in crossing.norms:
            for parameter in norm.parameters():
                parameter.normal_()
    tokens, present = torch.randn(6, 7, 8), torch.rand(6, 7) < 0.5
    present[0, [4, 0, 2]], present[1, [1, 5]], present[2] = False, False, True
    crossed = crossing(tokens, present)
    for i in range(6):
        expected = crossed_apart(crossing, tokens[i], present[i])
        torch.testing.assert_close(crossed[i], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(crossed[:, [3, 6]], tokens[:, [3, 6]]), "tokens of neither side"
    assert torch.equal(crossed[1, [4, 0, 2]], tokens[1, [4, 0, 2]]), "imaging of a patient without genes"


def test_a_side_that_no_hospital_has_leaves_a_transformer() -> None:
    fewer: Columns = {**COLUMNS, "genes": ()}
    crossed = lively(PLANS["two ways"], fewer)
    plain = lively(plan_of(fusion="transformer", hazards="free"), fewer)
    with torch.no_grad():
        own = dict(crossed.named_parameters())
        for name, parameter in plain.named_parameters():
            parameter.copy_(own[name])
    seen = torch.ones(3, 7)
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    for task, logits in plain(values, seen).items():
        torch.testing.assert_close(crossed(values, seen)[task], logits)


@pytest.mark.parametrize("sides", [("imaging", "neither"), ("genes", "genes"), ("neither", "neither")])
def test_two_way_without_two_sides_is_refused(sides: tuple[str, str]) -> None:
    content = plan_of().model_dump(mode="json")
    for modality, side in zip(("genes", "texture"), sides, strict=True):
        content["modalities"][modality]["side"] = side
    content["model"]["fusion"] = "two_way"
    with pytest.raises(ConfigError, match=r"model\.fusion: 'two_way' lets imaging and genes read each other"):
        parse(content)


def test_a_modality_s_side_is_what_it_is_made_of() -> None:
    digest = "0" * 64
    expression = {"kind": "expression", "genes": ["TP53"], "normalisation": "none"}
    made: dict[str, dict[str, Any]] = {
        "imaging": {"patterns": ["*"], "extraction": {"file": "p.yaml", "sha256": digest}},
        "genes": {"patterns": ["{gene}_rna"], "genomics": expression | {"column": "{gene}_rna"}},
        "neither": {"patterns": ["*"]},
    }
    for side, content in made.items():
        assert side_of(Modality.model_validate(content, strict=False)) == side
        assert side_of(Modality.model_validate({**content, "side": "genes"}, strict=False)) == "genes"


# -- what is absent ---------------------------------------------------------------------------------------------------------


@each_plan
def test_garbage_in_what_is_missing_changes_nothing(plan: Plan) -> None:
    network = lively(plan)
    values, seen = patients(7)
    clean = network(values, seen)
    for garbage in (float("nan"), float("inf"), 1e30, -7.0, torch.randn(values.shape) * 1e6):
        dirty = network(torch.where(seen > 0, values, torch.as_tensor(garbage)), seen)
        for task, logits in clean.items():
            assert torch.equal(dirty[task], logits)


@each_plan
def test_a_patient_with_nothing_gets_the_same_as_any_other_with_nothing(plan: Plan) -> None:
    nothing = torch.zeros(2, WIDTH)
    for logits in lively(plan)(nothing, nothing).values():
        assert bool(torch.isfinite(logits).all())
        torch.testing.assert_close(logits[0], logits[1])


@each_plan
def test_an_absent_token_is_as_if_it_did_not_exist(plan: Plan) -> None:
    """A network for two modalities, with the same weights, says the same about patients who lack the third."""
    network = lively(plan)
    fewer: Columns = {**COLUMNS, "texture": ()}
    smaller = build(plan, fewer, seed=0).eval()
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            # What belongs to the third modality is what comes last.
            parameter.copy_(own[name][tuple(slice(size) for size in parameter.shape)])
    values, seen = patients(5)
    values[:, 9:], seen[:, 9:] = 0, 0
    for task, logits in network(values, seen).items():
        torch.testing.assert_close(smaller(values[:, :9], seen[:, :9])[task], logits)


@each_plan
def test_an_empty_batch_works_forward_and_backward(plan: Plan) -> None:
    network = lively(plan)
    logits = network(torch.zeros(0, WIDTH), torch.zeros(0, WIDTH))
    losses = patient_losses(plan, logits, goals_of(plan, 0))
    assert losses.shape == (0,)
    torch.autograd.backward([losses.sum()])
    assert all(p.grad is None or not bool(p.grad.any()) for p in network.parameters())


@each_plan
def test_a_patients_output_does_not_depend_on_the_others(plan: Plan) -> None:
    network = lively(plan).double()
    values, seen = patients(8, dtype=torch.float64)
    together = network(values, seen)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    permuted = network(values[order], seen[order])
    others = torch.randn(values.shape, dtype=torch.float64)
    for i in range(8):
        alone = network(values[i : i + 1], seen[i : i + 1])
        company = torch.cat([others[:i], values[i : i + 1], others[i + 1 :]])
        presence = torch.cat([torch.ones(i, WIDTH), seen[i : i + 1], torch.ones(7 - i, WIDTH)]).double()
        mixed = network(company, presence)
        for task, logits in together.items():
            torch.testing.assert_close(alone[task][0], logits[i], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(mixed[task][i], logits[i], rtol=1e-10, atol=1e-10)
    for task, logits in together.items():
        torch.testing.assert_close(permuted[task], logits[order], rtol=1e-10, atol=1e-10)


def test_what_was_observed_of_a_token_is_seen() -> None:
    """A value of 0 that was measured and a value that is missing are different patients."""
    network = lively(PLANS["one token"])
    values = torch.zeros(2, WIDTH)
    seen = torch.ones(2, WIDTH)
    seen[1, 5] = 0
    assert not torch.allclose(*network(values, seen)["os"])


# -- shape and first values -------------------------------------------------------------------------------------------------


@each_plan
def test_the_first_prediction_is_the_same_for_everybody(plan: Plan) -> None:
    values, seen = patients(6)
    for task, logits in build(plan, COLUMNS, seed=3)(values, seen).items():
        # The baseline: no class is preferred, and few patients have an event in an interval.
        first = FIRST_HAZARD if task == "os" else 0.0
        assert torch.equal(logits, torch.full_like(logits, first))


def test_outputs_per_task_and_their_shapes() -> None:
    plan = plan_of()
    sizes = {n: outputs(t, proportional=True) for n, t in plan.tasks.items()}
    assert sizes == {"os": 1, "three": 3, "two": 1}
    assert outputs(plan.tasks["os"], proportional=False) == 3
    shapes = {n: tuple(v.shape) for n, v in lively(plan)(*patients(4)).items()}
    assert shapes == {"os": (4, 3), "three": (4, 3), "two": (4, 1)}


def test_proportional_hazards_differ_by_one_number_per_patient() -> None:
    logits = lively(PLANS["proportional hazards"]).double()(*patients(5, dtype=torch.float64))["os"]
    shifts = logits - logits[0]
    torch.testing.assert_close(shifts, shifts[:, :1].expand(-1, 3))


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=15)
def test_first_values_depend_on_the_seed_alone(seed: int) -> None:
    before = torch.get_rng_state()
    one, two = (
        build(PLANS["all tasks, two layers"], COLUMNS, seed),
        build(PLANS["all tasks, two layers"], COLUMNS, seed),
    )
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_dtype_is_the_plans() -> None:
    assert {p.dtype for p in build(plan_of(dtype="float64"), COLUMNS, 0).parameters()} == {torch.float64}
    assert {p.dtype for p in build(plan_of(), COLUMNS, 0).parameters()} == {torch.float32}


def test_a_modality_of_many_columns_weighs_as_much_on_the_linear_path_as_one_of_few() -> None:
    network = build(plan_of({"two": TWO}, layers=0), COLUMNS, 0)
    assert network.linear is not None
    with torch.no_grad():
        network.linear.weight.fill_(1)
    one = torch.eye(WIDTH)
    logits = network(one, torch.ones(WIDTH, WIDTH))["two"][:, 0]
    expected = torch.tensor([4**-0.5] * 4 + [5**-0.5] * 5 + [3**-0.5] * 3)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("scaling", [True, False])
def test_emphasis_is_a_factor_on_a_modality_s_columns(scaling: bool) -> None:
    content = plan_of({"two": TWO}, block_scaling=scaling).model_dump(mode="json")
    content["modalities"]["genes"]["emphasis"] = 3.0
    plain, more = plan_of({"two": TWO}, block_scaling=scaling), parse(content)
    factors = torch.ones(WIDTH)
    factors[4:9] = 3
    values, seen = torch.randn(6, WIDTH), (torch.rand(6, WIDTH) > 0.3).float()
    torch.testing.assert_close(lively(more)(values, seen)["two"], lively(plain)(values * factors, seen)["two"])


def test_presence_adds_a_number_for_each_modality_that_is_there() -> None:
    plan = plan_of({"two": TWO}, layers=0, presence=0.5)
    network = build(plan, COLUMNS, 0)
    assert network.linear is not None
    assert network.linear.weight.shape == (1, 2 + WIDTH)
    with torch.no_grad():
        network.linear.weight[0, :2] = torch.tensor([1.0, 10.0])
    seen = torch.zeros(3, WIDTH)
    seen[1, 5], seen[2, 0], seen[2, 11] = 1, 1, 1
    shown = network(torch.zeros(3, WIDTH), seen)["two"][:, 0]
    torch.testing.assert_close(shown, torch.tensor([0.0, 1.0, 5.0]))


def test_what_is_not_used_leaves_a_plan_s_hash_as_it_was() -> None:
    assert b"presence" not in plan_of().canonical
    assert b"emphasis" not in plan_of().canonical
    assert plan_of(presence=0).hash == plan_of().hash != plan_of(presence=1).hash
    assert parse(plan_of(presence=1).model_dump(mode="json")).hash == plan_of(presence=1).hash


def test_presence_without_a_linear_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear_path is false"):
        plan_of(linear_path=False, presence=1)
    with pytest.raises(ConfigError, match="presence"):
        plan_of(presence=-1)


@pytest.mark.parametrize("name", ["type", "train", "keys", "forward", "half", "weight", "os 5 y", "_".join("abc")])
def test_a_task_may_have_any_name(name: str) -> None:
    network = lively(plan_of({name: TWO}))
    assert network(*patients(3))[name].shape == (3, 1)


# -- tokens -----------------------------------------------------------------------------------------------------------------


def test_each_rule_makes_its_tokens() -> None:
    tokens = token_columns(COLUMNS, plan_of(genes=2).modalities)
    assert tokens == {
        "clinical.age": [0],
        "clinical.sex": [1, 2],
        "clinical.stage": [3],
        "genes.0": [4, 5],
        "genes.1": [6, 7, 8],
        "texture.glcm": [9, 10],
        "texture.other": [11],
    }


RULES = st.sampled_from(["one", "columns"]) | st.integers(1, 9)


@given(st.integers(0, 9), RULES)
@settings(max_examples=50)
def test_every_column_is_in_exactly_one_token(columns: int, rule: Any) -> None:
    names = tuple(f"{c}_rna" for c in "ABCDEFGHI"[:columns])
    tokens = token_columns({**COLUMNS, "genes": names}, plan_of(genes=rule).modalities)
    together = sorted(i for indices in tokens.values() for i in indices)
    assert together == list(range(7 + columns))
    assert all(tokens.values())
