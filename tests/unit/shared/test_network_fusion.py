"""Each fusion against its formula, worked out patient by patient; sizes by name; what a plan without them keeps."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from oncofed_shared.errors import ConfigError
from oncofed_shared.losses import Target, patient_losses
from oncofed_shared.messages import Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.network_fusion import (
    ATTENTIVE,
    JOINS,
    Concat,
    Hybrid,
    Kronecker,
    Late,
    Shape,
    WeightedSum,
    modality_vectors,
)
from oncofed_shared.network_weights import modality_weights
from oncofed_shared.plan import Plan, parse
from oncofed_shared.plan_sizes import SIZES

Values = NDArray[np.float64]
COLUMNS: Columns = {"clinical": ("c1", "c2"), "genes": ("g1", "g2", "g3"), "texture": ("t1", "t2")}
PARTS = {"clinical": slice(0, 2), "genes": slice(2, 5), "texture": slice(5, 7)}
WIDTH = 7
SIDES = {"clinical": "neither", "genes": "genes", "texture": "imaging"}
FUSIONS = (*sorted(ATTENTIVE), *JOINS)


def plan_of(tokens: Any = "one", training: dict[str, Any] | None = None, **model: Any) -> Plan:
    modalities = {n: {"patterns": [f"{n[0]}*"], "tokens": tokens, "side": SIDES[n]} for n in COLUMNS}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": modalities,
            "model": model,
            "training": {"rounds": 1, "dtype": "float64", **(training or {})},
        }
    )


def stir(module: nn.Module, seed: int = 0) -> None:
    """Fill what starts at zero, so that every path has an influence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.4)


def lively(**model: Any) -> FusionNetwork:
    network = build(plan_of(**model), COLUMNS, seed=0)
    stir(network)
    return network.eval()


def made(kind: type[nn.Module], modalities: int = 3) -> Any:
    """A join of width 6 with two outputs, and feed-forward layers behind it."""
    torch.manual_seed(1)
    shape = Shape(modalities=modalities, width=6, layers=2, feedforward=10, dropout=0.0, outputs=2)
    join = kind(shape).double()
    stir(join)
    return join.eval()


def given_vectors(modalities: int = 3) -> tuple[Tensor, Tensor]:
    """Vectors of one patient for every way to have and to lack modalities."""
    present = torch.tensor(list(itertools.product([0.0, 1.0], repeat=modalities)), dtype=torch.float64)
    vectors = torch.randn(len(present), modalities, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return vectors * present[:, :, None], present


# -- an independent implementation, in numpy, of one patient ------------------------------------------------------------------


def of(layer: Any) -> tuple[Values, Values | float]:
    return layer.weight.detach().numpy(), 0.0 if layer.bias is None else layer.bias.detach().numpy()


def linear(layer: Any, x: Values) -> Values:
    weight, bias = of(layer)
    return np.asarray(weight @ x + bias)


def norm(layer: Any, x: Values) -> Values:
    weight, bias = of(layer)
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias)


def gelu(x: Values) -> Values:
    return np.asarray([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def trunk(part: Any, x: Values) -> Values:
    for block in part.layers:
        x = x + linear(block.narrow, gelu(linear(block.widen, norm(block.norm, x))))
    return linear(part.heads, norm(part.norm, x))


def flagged(x: Values, has: Values) -> Values:
    return np.concatenate([np.append(v if h else 0 * v, h) for v, h in zip(x, has, strict=True)])


def concat(join: Any, x: Values, has: Values) -> Values:
    return trunk(join.trunk, linear(join.joined, flagged(x, has)))


def weighted_sum(join: Any, x: Values, has: Values) -> Values:
    there = np.flatnonzero(has)
    scores = np.exp(of(join.scores)[0][there, 0])
    return trunk(join.trunk, sum((s / scores.sum() * x[m] for m, s in zip(there, scores, strict=True)), 0 * x[0]))


def late(join: Any, x: Values, has: Values) -> Values:
    there = np.flatnonzero(has)
    return np.mean([trunk(join.trunks[m], x[m]) for m in there], axis=0) if len(there) else np.zeros(2)


def hybrid(join: Any, x: Values, has: Values) -> Values:
    return concat(join.inner, x, has) + late(join.outer, x[1:], has[1:])


def kronecker(join: Any, x: Values, has: Values) -> Values:
    gates = (1 / (1 + np.exp(-linear(join.gates, flagged(x, has))))).reshape(len(x), -1)
    few = [g * np.maximum(linear(r, v), 0) * h for g, r, v, h in zip(gates, join.reduced, x, has, strict=True)]
    features = [np.concatenate([few[b], *(np.kron(few[a], few[b]) for a in range(b))]) for b in range(len(few))]
    return trunk(join.trunk, linear(join.joined, np.concatenate(features)))


FORMULAS: dict[type[nn.Module], Any] = {
    Concat: concat, WeightedSum: weighted_sum, Late: late, Hybrid: hybrid, Kronecker: kronecker,
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMULAS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_a_join_is_its_formula_for_every_way_to_lack_modalities(kind: type[nn.Module], modalities: int) -> None:
    join = made(kind, modalities)
    vectors, present = given_vectors(modalities)
    ours = join(vectors, present).detach().numpy()
    for i, (x, has) in enumerate(zip(vectors.numpy(), present.numpy(), strict=True)):
        np.testing.assert_allclose(ours[i], FORMULAS[kind](join, x, has), rtol=1e-9, atol=1e-11)
    assert len(np.unique(ours.round(9), axis=0)) > len(ours) / 2


def test_early_is_a_network_of_all_columns() -> None:
    network = lively(fusion="early", layers=2, linear_path=False, block_scaling=False)
    values = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = torch.ones_like(values)
    seen[0, 2:5], seen[1, 3] = 0, 0
    for i in range(3):
        own, there = values[i].numpy(), seen[i].numpy()
        parts = [np.append(np.where(there, own, 0)[p], there[p].mean()) for p in PARTS.values()]
        expected = trunk(network.fusion.trunk, gelu(linear(network.tokenisers[0], np.concatenate(parts))))
        out = network(values[i : i + 1], seen[i : i + 1])["two"][0].detach().numpy()
        # A third is stored in single precision in a network's shares.
        np.testing.assert_allclose(out - of(network.baselines[0])[0][:, 0], expected, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=25)
def test_a_modality_s_vector_is_the_mean_of_its_tokens_that_are_there(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    owners = np.array([0, 0, 1, 2, 2, 2])
    tokens, present = rng.normal(size=(n, 6, 5)), (rng.random((n, 6)) < 0.5).astype(float)
    member = torch.tensor(owners[:, None] == np.arange(3), dtype=torch.float64)
    vectors, has = modality_vectors(torch.tensor(tokens), torch.tensor(present), member)
    for i, m in itertools.product(range(n), range(3)):
        own = [gelu(tokens[i, t]) for t in range(6) if owners[t] == m and present[i, t]]
        np.testing.assert_allclose(vectors[i, m].numpy(), np.mean(own, axis=0) if own else np.zeros(5), atol=1e-12)
        assert has[i, m] == float(bool(own))


# -- weights of modalities -----------------------------------------------------------------------------------------------------


def seen_by_presence(present: Tensor) -> Tensor:
    seen = torch.zeros(len(present), WIDTH, dtype=torch.float64)
    for m, part in enumerate(PARTS.values()):
        seen[:, part] = present[:, m : m + 1]
    return seen


def values_of(n: int) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


MODELS: dict[str, dict[str, Any]] = {
    **{fusion: {"fusion": fusion} for fusion in FUSIONS},
    "two ways, three layers": {"fusion": "two_way", "layers": 3},
    "linear alone": {"layers": 0},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_patient_s_weights_are_of_what_he_has_and_add_up_to_one(model: dict[str, Any]) -> None:
    _, present = given_vectors()
    network, seen = lively(**model), seen_by_presence(present)
    values = values_of(len(seen))
    weights = modality_weights(network, values, seen)
    assert list(weights) == list(COLUMNS)
    table = torch.stack(list(weights.values()), dim=1)
    assert torch.equal(table > 0, present > 0)
    torch.testing.assert_close(table.sum(dim=1), (present.sum(dim=1) > 0).double())
    garbage = modality_weights(network, torch.where(seen > 0, values, torch.nan), seen)
    assert torch.equal(torch.stack(list(garbage.values()), dim=1), table)
    if model.get("fusion") == "weighted_sum":
        assert len({round(float(w), 9) for w in table[-1]}) == 3, "learned, and so different by modality"
        torch.testing.assert_close(table[3, 1] / table[3, 2], table[7, 1] / table[7, 2])


def test_weights_begin_equal() -> None:
    _, present = given_vectors()
    seen = seen_by_presence(present)
    for model in ({"fusion": "weighted_sum"}, {"fusion": "concat"}, {"layers": 0}):
        weights = modality_weights(build(plan_of(**model), COLUMNS, seed=0), values_of(len(seen)), seen)
        torch.testing.assert_close(
            torch.stack(list(weights.values()))[:, 7], torch.full((3,), 1 / 3, dtype=torch.float64)
        )


def test_weights_leave_a_network_in_training_there() -> None:
    network = build(plan_of(training={"dropout": 0.5}), COLUMNS, seed=0).train()
    seen = torch.ones(2, WIDTH, dtype=torch.float64)
    one, two = (modality_weights(network, values_of(2), seen) for _ in range(2))
    assert network.training
    assert all(torch.equal(one[m], two[m]) for m in one), "without dropout"


def test_a_transformer_s_weights_are_the_summary_s_attention() -> None:
    """With one layer: by modality the share of the summary's softmax that falls on its tokens, the mean over heads."""
    network = lively(tokens="columns")
    values, seen = values_of(1), torch.ones(1, WIDTH, dtype=torch.float64)
    summary = of(network.summary)[0][:, 0]
    scaled = values[0].numpy() * network.block.numpy() if network.block is not None else values[0].numpy()
    tokens = [linear(network.tokenisers[t], np.array([scaled[t], 0.0])) for t in range(WIDTH)]
    (layer,) = network.layers
    normed = [norm(layer.norm_attention, x) for x in (summary, *tokens)]
    query, keys = linear(layer.attention.query, normed[0]), [linear(layer.attention.key, x) for x in normed]
    heads, width = layer.attention.heads, len(summary)
    shares = np.zeros(1 + WIDTH)
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        scores = np.exp([query[part] @ k[part] / math.sqrt(width / heads) for k in keys])
        shares += scores / scores.sum() / heads
    expected = {m: shares[1:][p].sum() / shares[1:].sum() for m, p in PARTS.items()}
    found = modality_weights(network, values, seen)
    for modality, share in expected.items():
        # The root of a number of columns is stored in single precision.
        assert float(found[modality][0]) == pytest.approx(share, rel=1e-5)


def test_the_weights_of_the_others_are_what_leaving_a_modality_out_changes() -> None:
    network = lively(layers=0)
    values, seen = values_of(4), torch.ones(4, WIDTH, dtype=torch.float64)
    assert network.linear is not None
    parts = network.linear.weight.detach()[0] * values * (network.block if network.block is not None else 1)
    changes = torch.stack([parts[:, p].sum(dim=1).abs() for p in PARTS.values()], dim=1)
    found = torch.stack(list(modality_weights(network, values, seen).values()), dim=1)
    torch.testing.assert_close(found, changes / changes.sum(dim=1, keepdim=True))


def test_crossing_is_in_the_weights_of_two_way() -> None:
    """What the summary reads of imaging's tokens, they have read of genes."""
    network, seen = lively(fusion="two_way"), torch.ones(3, WIDTH, dtype=torch.float64)
    crossing = network.crossing
    assert crossing is not None
    present = torch.ones(3, 3, dtype=torch.bool)
    present[0, 1] = False
    held = crossing.reading(torch.randn(3, 3, network.tokenisers.width, dtype=torch.float64), present)
    torch.testing.assert_close(held.sum(dim=2), torch.ones(3, 3, dtype=torch.float64))
    whole = torch.eye(3, dtype=torch.float64)
    assert torch.equal(held[0, [0, 2]], whole[[0, 2]]), "clinical, and imaging without genes"
    assert held[1, 2, 1].item() == held[1, 1, 2].item() == 0.5, (
        "one token of either side, which reads half of the other"
    )
    assert network.attended(values_of(3), seen).shape == (3, 3)


# -- what a fusion can learn -----------------------------------------------------------------------------------------------------


def learned(fusion: str) -> float:
    """Share of new patients that are told right, where only the product of two modalities' columns tells."""
    plan = plan_of(fusion=fusion, width=8, heads=2, layers=1, feedforward=16)
    rng = np.random.default_rng(5)
    values = torch.tensor(rng.normal(size=(900, WIDTH)))
    goal = ((values[:, 0] > 0) != (values[:, 2] > 0)).double()[:, None]
    network, seen = build(plan, COLUMNS, seed=0), torch.ones(900, WIDTH, dtype=torch.float64)
    adam = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        goals = {"two": Target(goal=goal[:600], weight=torch.ones(600, dtype=torch.float64))}
        loss = patient_losses(plan, network(values[:600], seen[:600]), goals).mean()
        adam.zero_grad()
        torch.autograd.backward([loss])
        adam.step()
    said = network(values[600:], seen[600:])["two"] > 0
    return float((said == (goal[600:] > 0)).double().mean())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_interaction_is_learned_by_all_but_late(fusion: str) -> None:
    """A sum over modalities, as `late` is for patients who have them all, cannot tell; what joins before its end can."""
    share = learned(fusion)
    assert (0.35 < share < 0.65) if fusion == "late" else share > 0.8, share


# -- sizes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_size_stands_for_its_numbers_and_what_is_given_wins(size: str) -> None:
    model = plan_of(size=size).model
    assert {k: getattr(model, k) for k in SIZES[size]} == SIZES[size]
    changed = plan_of(size=size, layers=0, feedforward=7).model
    assert (changed.layers, changed.feedforward, changed.width) == (0, 7, SIZES[size]["width"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_in_every_size_passes_opacus(size: str, fusion: str) -> None:
    network = build(plan_of(fusion=fusion, size=size), COLUMNS, seed=0)
    assert ModuleValidator.validate(network.train(), strict=False) == []
    nothing = torch.zeros(1, WIDTH, dtype=torch.float64)
    assert bool(torch.isfinite(network(nothing, nothing)["two"]).all())


def test_sizes_grow() -> None:
    for fusion in FUSIONS:
        counts = [build(plan_of(fusion=fusion, size=s), COLUMNS, seed=0).vector.numel() for s in SIZES]
        assert counts == sorted(set(counts)), fusion


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"fusion": "sum"}, "model.fusion: Input should be 'transformer', 'concat'"),
        ({"size": "huge"}, "model.size: Input should be 'tiny', 'small' or 'base'"),
        ({"size": 3}, "model.size: Input should be"),
        ({"size": ["tiny"]}, "model.size: Input should be"),
        ({"fusion": "late", "layers": 0}, "model.layers: 0 leaves the linear path alone, and fusion = 'late' nothing"),
        ({"size": "small", "width": 6}, "model.heads: width must be a multiple of heads"),
    ],
)
def test_what_is_no_fusion_and_no_size_is_named(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(**model)


# -- what a plan without them keeps ------------------------------------------------------------------------------------------------


def test_the_defaults_leave_a_plan_s_hash_as_it_was() -> None:
    plain = plan_of()
    assert b"fusion" not in plain.canonical
    assert b'"size"' not in plain.canonical
    assert plan_of(fusion="transformer").hash == plain.hash
    others = [plan_of(fusion="late"), plan_of(size="tiny"), plan_of(size="tiny", fusion="late")]
    assert len({p.hash for p in (plain, *others)}) == 4


@pytest.mark.parametrize("model", [{"fusion": "late", "size": "base"}, {"size": "tiny", "width": 10}, {}])
def test_the_canonical_form_reads_back_as_the_same_plan(model: dict[str, Any]) -> None:
    plan = plan_of(**model)
    again = Plan.model_validate_json(plan.canonical)
    assert again == plan
    assert again.hash == plan.hash


def test_the_default_network_begins_with_the_same_numbers_as_before_there_were_others() -> None:
    network = build(plan_of(tokens="columns"), COLUMNS, seed=0)
    named = hashlib.sha256()
    for name, parameter in network.named.items():
        named.update(name.encode())
        named.update(np.round(parameter.detach().numpy(), 12).tobytes())
    assert named.hexdigest() == "dda0cc390596005a09aed622281c9efe97d09dc684456eb14ee717eb5dc9ecab"
