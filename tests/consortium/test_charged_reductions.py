"""Principal components and the LASSO inside the budget: bounded per patient, charged once, and what training then stands on."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso, LassoLars, MultiTaskLasso

from oncofed_client.egress import check_reply
from oncofed_client.plan_charges import plan_charges
from oncofed_client.source import keep_rows
from oncofed_server.run_state import Phase
from oncofed_shared.charged_products import FINEST, blocks, patient_products, products_entries, products_size
from oncofed_shared.charged_reductions import all_columns, read_columns, with_reductions
from oncofed_shared.charged_statistics import agreed_preparation, patient_counts, statistics_mechanism
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.features import Preparation, network_columns, prepare, scaled_input
from oncofed_shared.messages import Contribute, Open, Refusal, from_bytes
from oncofed_shared.moments import PATH
from oncofed_shared.plan import Plan, parse

WIDTH = 6
GENES = {f"g{i}": {"kind": "numeric", "range": [-4.0, 4.0]} for i in range(WIDTH)}
SHAPES = {f"s{i}": {"kind": "numeric", "range": [0.0, 9.0]} for i in range(3)}
TASKS: dict[str, Any] = {
    "two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]},
    "three": {"kind": "classification", "label": "three", "classes": ["a", "b", "c"]},
    "survival": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 200, 400, 800, 1600], "horizon": 800},
}
PLAN: dict[str, Any] = {
    "study": {"name": "products", "purpose": "add up products without looking"},
    "tasks": TASKS,
    "modalities": {"genes": {"columns": GENES}, "shape": {"columns": SHAPES}},
    "training": {"rounds": 3, "class_weights": "none"},
    "privacy": {
        "noise": "consortium",
        "epsilon": 3,
        "delta": 1e-5,
        "statistics_epsilon": 3,
        "clip_norm": 1.0,
        "sampling_rate": 0.5,
        "patients": dict.fromkeys(("a", "b", "c", "d"), 40),
        "spare_steps": 2,
    },
}
COLUMNS = {"genes": tuple(GENES), "shape": tuple(SHAPES)}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pca": ("two", {"kind": "pca", "components": 3, "bound": 1.0}),
    "lasso, two classes": ("two", {"kind": "lasso", "keep": 2, "bound": 1.0}),
    "lasso, three classes": ("three", {"kind": "lasso", "keep": 2, "bound": 1.0}),
    "lasso, survival": ("survival", {"kind": "lasso", "keep": 2, "bound": 1.0}),
    "lasso, modality": ("survival", {"kind": "lasso", "keep": 2, "against": "shape", "bound": 1.0}),
}


def plan_of(kind: str, **changes: Any) -> Plan:
    """A plan that reduces genes in one way; changes are of the reduction."""
    content = copy.deepcopy(PLAN)
    main, reduction = KINDS[kind]
    content["main_task"] = main
    content["modalities"]["genes"]["reduction"] = {**reduction, **changes}
    return parse(content)


def labels_of(rng: np.random.Generator, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    n = len(rows)
    time = rng.exponential(600 * np.exp(-rows[:, 0]), n)
    return {
        "two": (rows[:, 1] + rng.standard_normal(n) > 0).astype(np.int64),
        "three": rng.integers(0, 3, n),
        "survival": np.stack([np.minimum(time, 1500), time < 1500], axis=1).astype(np.float64),
    }


def bounded(rng: np.random.Generator, n: int) -> np.ndarray[Any, Any]:
    """Values in -1..1, some missing, some rows of one modality alone, some as long as a row can be."""
    values = np.clip(rng.standard_normal((n, WIDTH + 3)) * 10.0 ** rng.integers(-2, 2, (n, 1)), -1, 1)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[0], values[1, :WIDTH], values[2, WIDTH:] = 1.0, np.nan, np.nan
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bound", [1.0, 0.5, 0.1])
def test_one_patient_moves_the_sums_by_no_more_than_is_charged(kind: str, bound: float) -> None:
    plan = plan_of(kind, bound=bound)
    rng = np.random.default_rng(len(kind))
    longest = 0.0
    for _ in range(4):
        table = bounded(rng, 8)
        labels = labels_of(rng, np.nan_to_num(table))
        whole = patient_products(plan, COLUMNS, table, labels, unit=FINEST)
        assert whole.shape == (products_size(plan, COLUMNS),)
        for i in range(len(table)):
            left = {t: np.delete(v, i, axis=0) for t, v in labels.items()}
            change = whole - patient_products(plan, COLUMNS, np.delete(table, i, axis=0), left, unit=FINEST)
            alone = {t: v[i : i + 1] for t, v in labels.items()}
            np.testing.assert_array_equal(change, patient_products(plan, COLUMNS, table[i : i + 1], alone, unit=FINEST))
            assert np.abs(change).max() <= FINEST
            longest = max(longest, float((change.astype(float) ** 2).sum()) / FINEST**2)
    assert longest <= products_entries(plan, COLUMNS)
    # The bound is no larger than it must be: the longest row comes near to it.
    assert longest > (0.5 if kind == "pca" else 0.2) * products_entries(plan, COLUMNS)


def pooled(kind: str, n: int = 400) -> tuple[Plan, np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, Any]]:
    """A plan, values in their units, in -1..1, and labels."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((n, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH)) * 0.4
    values = np.concatenate(
        [np.clip(mixed, -4, 4), np.clip(4 + mixed[:, :3] + rng.standard_normal((n, 3)), 0, 9)], axis=1
    )
    middle, half = np.r_[np.zeros(WIDTH), np.full(3, 4.5)], np.r_[np.full(WIDTH, 4.0), np.full(3, 4.5)]
    return plan_of(kind), values, (values - middle) / half, labels_of(rng, mixed)


def without_noise(kind: str) -> tuple[Plan, Preparation, np.ndarray[Any, Any], dict[str, Any]]:
    """The preparation from exact sums of four hospitals, its scaled values, and labels."""
    plan, values, inside, labels = pooled(kind)
    unit = 1 << 44
    parts = [
        patient_products(plan, COLUMNS, inside[i::4], {t: v[i::4] for t, v in labels.items()}, unit=unit) / unit
        for i in range(4)
    ]
    seen = np.full(values.shape[1], float(len(values)))
    sums = np.concatenate([seen, values.sum(axis=0), (values**2).sum(axis=0), np.zeros(5)])
    whole = prepare(plan, COLUMNS, sums)
    made = with_reductions(plan, whole, np.sum(parts, axis=0), noise=0.0, least=0.0)
    scaled, _ = scaled_input(plan, whole, {"genes": values[:, :WIDTH], "shape": values[:, WIDTH:]}, COLUMNS)
    return plan, made, scaled, labels


def test_without_noise_components_are_scikit_learns_over_pooled_patients() -> None:
    plan, made, scaled, _ = without_noise("pca")
    found = made.reduction["genes.map"].reshape(3, WIDTH)
    wanted = PCA(3).fit(scaled[:, :WIDTH]).components_
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((unit * wanted).sum(axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(made.reduction["genes.mean"], scaled[:, :WIDTH].mean(axis=0), atol=1e-6)
    assert network_columns(plan, made) == read_columns(plan, COLUMNS)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "pca"])
def test_without_noise_chosen_columns_are_those_of_scikit_learns_lasso_over_pooled_patients(kind: str) -> None:
    plan, made, scaled, labels = without_noise(kind)
    rows = scaled[:, :WIDTH] - scaled[:, :WIDTH].mean(axis=0)
    if kind == "lasso, modality":
        answers = scaled[:, WIDTH:]
    elif kind == "lasso, survival":
        answers = residuals(labels["survival"], plan.tasks["survival"].edges)[:, None]
    else:
        marks = labels[plan.main_task][:, None] == np.arange(3 if "three" in kind else 2)
        answers = marks[:, 1:].astype(float) if "two" in kind else marks.astype(float)
    answers = answers - answers.mean(axis=0)
    first = np.linalg.norm(rows.T @ answers, axis=1).max() / len(rows)
    for share in PATH:
        single = answers.shape[1] == 1
        model = (Lasso if single else MultiTaskLasso)(
            alpha=first * share, tol=1e-12, max_iter=100_000, fit_intercept=False
        )
        weights = np.atleast_2d(model.fit(rows, answers[:, 0] if single else answers).coef_)
        if np.count_nonzero(weights.any(axis=0)) >= 2:
            break
    lengths = np.linalg.norm(weights, axis=0)
    assert made.columns["genes"] == tuple(f"g{i}" for i in np.sort(np.argsort(-lengths)[:2]))
    assert made.columns["shape"] == COLUMNS["shape"]
    assert all_columns(plan, made.columns) == COLUMNS
    if answers.shape[1] == 1:
        # Least angle regression is another algorithm for the same minimum.
        lars = LassoLars(alpha=first * share, fit_intercept=False).fit(rows, answers[:, 0]).coef_
        np.testing.assert_allclose(lars, weights[0], atol=1e-6)


def residuals(outcome: np.ndarray[Any, Any], edges: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """Events less those that the hazards of all patients together expect, written out patient by patient."""
    at_risk, happened = np.zeros((len(outcome), len(edges) - 1)), np.zeros((len(outcome), len(edges) - 1))
    for i, (time, event) in enumerate(outcome):
        for k, (low, high) in enumerate(pairwise(edges)):
            ends = low <= time < high
            # Censored in an interval, a patient was not seen through it.
            at_risk[i, k] = time >= high or (ends and event)
            happened[i, k] = ends and event
    hazards = happened.sum(axis=0) / np.maximum(at_risk.sum(axis=0), 1)
    return happened.sum(axis=1) - at_risk @ hazards


def test_a_direction_that_noise_alone_would_make_is_no_component() -> None:
    plan, _, inside, labels = pooled("pca")
    exact = patient_products(plan, COLUMNS, inside, labels, unit=FINEST) / FINEST
    whole = prepare(plan, COLUMNS, np.zeros(3 * (WIDTH + 3) + 5))
    rng = np.random.default_rng(0)
    (block,) = blocks(plan, COLUMNS)

    def real(of: np.ndarray[Any, Any], noise: float) -> int:
        """Components that are not always 0."""
        released = of + noise * rng.standard_normal(len(of))
        released[0] = exact[0]
        rows = with_reductions(plan, whole, released, noise=noise, least=0.0).reduction["genes.map"]
        assert np.isfinite(rows).all()
        return np.count_nonzero(rows.reshape(3, block.columns).any(axis=1))

    assert real(exact, 0.01) == 3
    assert all(1 <= real(exact, 1e4) <= 3 for _ in range(20))
    assert np.mean([real(np.zeros_like(exact), 10.0) for _ in range(200)]) < 1.15
    with pytest.raises(RemoteProtocolError, match="fewer patients"):
        with_reductions(plan, whole, exact, noise=1.0, least=401.0)


# -- a whole run --------------------------------------------------------------------------------------------------------------

NAMED = {f"v{i}": {"kind": "numeric", "range": [-6.0, 6.0]} for i in range(5)}


def values(reduction: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Changes for a plan whose modality is so."""
    modality = {"columns": NAMED, **more, "reduction": reduction}
    return {"modalities": {"values": modality}, "privacy__statistics_epsilon": 4.0}


COMPONENTS, CHOSEN = {"kind": "pca", "components": 2}, {"kind": "lasso", "keep": 2}
PATTERNED = {"patterns": ["v*"], "vocabulary": [f"v{i}" for i in range(5)], "range": [-6.0, 6.0]}
RUNS = {
    "pca": values(COMPONENTS),
    "lasso": {"modalities": {"values": {**PATTERNED, "reduction": CHOSEN}}, "privacy__statistics_epsilon": 4.0},
}


@pytest.fixture(scope="module", params=RUNS)
def finished(request, new_world_at, tmp_path_factory):
    """A world after its run, and the aggregator."""
    world = new_world_at(tmp_path_factory.mktemp(request.param), **RUNS[request.param])
    return request.param, world, world.run()


def test_a_run_stands_on_noised_products_of_all_training_patients(finished) -> None:
    kind, world, aggregator = finished
    plan, state = world.plan, aggregator.state
    assert state.phase is Phase.DONE, state.why
    preparation, columns = state.preparation, {"values": tuple(NAMED)}
    mechanism = statistics_mechanism(plan, columns)
    exact = np.zeros(mechanism.cells)
    for site in world.sites.values():
        cohort = site.source.cohort(plan)
        own = keep_rows(cohort, site.source.split(plan, cohort, aggregator.trial) == 0)
        counts = patient_counts(plan, columns, own.values, own.columns, own.labels, unit=mechanism.unit)
        exact += counts / mechanism.unit
    noise = mechanism.noise_std(4)
    assert 0.5 * noise < (preparation.statistics - exact).std() < 1.5 * noise
    assert network_columns(plan, preparation) == read_columns(plan, preparation.columns)
    assert len(network_columns(plan, preparation)["values"]) == 2
    made = agreed_preparation(plan, columns, preparation.statistics)
    assert made.columns == preparation.columns
    assert (made.columns["values"] == tuple(NAMED)) == (kind == "pca")
    for name, array in made.arrays().items():
        np.testing.assert_array_equal(array, preparation.arrays()[name])


def test_it_is_charged_once_with_the_whole_run_and_as_was_reserved(finished) -> None:
    _, world, _ = finished
    plan = world.plan
    columns = {"values": tuple(NAMED)}
    for site in world.sites.values():
        (account,) = site.contributor.ledger.plans()
        assert account.used == [plan.training.rounds, 1, 1, 1]
        size = site.scratch.bench(plan, read_columns(plan, columns), seed=3).whole.size
        assert account.charges == plan_charges(plan, site.name, parameters=size, columns=columns)


def test_nothing_of_it_leaves_but_in_a_masked_share(finished) -> None:
    _, world, _ = finished
    kinds = {type(from_bytes(c)).__name__ for d, _, c in world.traffic if d == "up"}
    assert kinds == {"Description", "Exchanged", "Contribution", "Ready"}


def test_every_answer_of_the_run_passes_the_egress_of_a_deployed_site(finished) -> None:
    _, world, _ = finished
    asked = {(s, m.head): m for d, s, c in world.traffic if d == "down" for m in [from_bytes(c)]}
    answers = [(s, from_bytes(c)) for d, s, c in world.traffic if d == "up"]
    assert {m.kind for m in asked.values() if isinstance(m, Contribute)} == {
        "statistics",
        "train",
        "histogram",
        "scores",
    }
    for site, reply in answers:
        check_reply(world.plan, asked[site, reply.head], reply, site=site)


def sent(world, kind):
    found = [from_bytes(c) for d, s, c in world.traffic if d == "down" and s == "alpha"]
    return next(m for m in found if isinstance(m, kind))


def test_a_preparation_with_another_map_or_other_columns_is_refused(finished) -> None:
    kind, world, _ = finished
    opening, site = sent(world, Open), world.sites["alpha"]
    if kind == "pca":
        arrays = opening.arrays
        names = ("reduction.values.map", "reduction.values.mean")
        spoilt = [replace(opening, arrays=arrays | {name: arrays[name] + 1e-3}) for name in names]
    else:
        others = tuple(n for n in NAMED if n not in opening.columns["values"])[:2]
        spoilt = [replace(opening, columns={"values": names}) for names in (others, tuple(NAMED))]
    released = opening.arrays["statistics"].copy()
    released[-1] += 1
    spoilt.append(replace(opening, arrays=opening.arrays | {"statistics": released[:-1]}))
    for wrong in spoilt:
        reply = site.handle(wrong)
        assert isinstance(reply, Refusal)
        assert reply.code in {"preparation", "protocol"}


def test_the_numbers_of_another_processor_are_accepted(finished) -> None:
    """Its eigenvectors differ in their last digits."""
    _, world, _ = finished
    opening = sent(world, Open)
    last = {n: a * (1 + 1e-12) for n, a in opening.arrays.items() if n.startswith("reduction.")}
    reply = world.sites["alpha"].handle(replace(opening, arrays=opening.arrays | last))
    assert type(reply).__name__ == "Ready"


def test_statistics_with_products_are_not_given_to_a_plan_without_them(finished, new_world) -> None:
    asked = sent(finished[1], Contribute)
    other = new_world(privacy__spare_steps=3)
    reply = other.sites["alpha"].handle(replace(asked, head=replace(asked.head, plan_hash=other.plan.hash)))
    assert isinstance(reply, Refusal)
    assert reply.code == "uncharged-statistics"


def test_too_few_patients_after_noise_end_the_run_with_the_reason(new_world) -> None:
    world = new_world(**values(COMPONENTS) | {"privacy__statistics_epsilon": 0.05})
    aggregator = world.run()
    assert aggregator.state.phase is Phase.FAILED
    assert "fewer patients have it than a reduction may be made of" in aggregator.state.why
    assert "charged once" in aggregator.state.why


OTHER = {"columns": {"w": {"kind": "numeric"}}, "scaling": "none"}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (values({"kind": "relieff", "keep": 2}), "'relieff' compares near patients"),
        (values({"kind": "autoencoder", "components": 2}), "'autoencoder' is a training of its own"),
        (
            {**values(COMPONENTS, scaling="none"), "privacy__statistics_epsilon": None},
            r"'pca' releases sums over patients that no epsilon is charged for; give privacy\.statistics_epsilon",
        ),
        (
            values(CHOSEN, columns={**NAMED, "v0": {"kind": "numeric"}}),
            r"modalities\.values\.range: is missing of v0",
        ),
        (
            {"modalities": {"values": {"patterns": ["v*"], "range": [-6, 6], "reduction": COMPONENTS}},
             "privacy__statistics_epsilon": 4.0},
            "'pca' with noise needs columns that the plan names",
        ),
        (
            values(CHOSEN, tokens={"a": ["v*"]}),
            "'lasso' with noise needs encoder = 'linear' and no named tokens",
        ),
        (
            {**values({**CHOSEN, "against": "other"}), "modalities__other": OTHER},
            r"values\.reduction\.against: 'other' needs a declared range",
        ),
    ],
)  # fmt: skip
def test_a_reduction_that_cannot_be_bounded_is_a_mistake_of_the_plan(new_world, changes, where) -> None:
    with pytest.raises(ConfigError, match=where):
        new_world(**changes)


def test_a_reduction_is_a_use_of_statistics_and_changes_no_other_plans_hash(new_world) -> None:
    plan = new_world(**values(COMPONENTS, scaling="none")).plan
    assert b"bound" not in plan.canonical
    assert b"vocabulary" not in plan.canonical
