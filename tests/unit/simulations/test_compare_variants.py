"""The variants of a plan: what each changes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from oncofed_shared.plan import Plan, parse
from oncofed_simulations.compare_variants import (
    FUSIONS,
    chosen_variants,
    sanity_variants,
    sensitivity_variants,
    whole_plan,
)


def plan_of(**changes: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {
                "clinical": {"patterns": ["c_*"]},
                "radiomics": {"patterns": ["r_*"], "side": "imaging"},
                "expression": {"patterns": ["{gene}_rna"], "side": "genes"},
                "mutations": {"patterns": ["{gene}_mut"], "side": "genes"},
            },
            "training": {"rounds": 1, "rate": 0.5, **changes.pop("training", {})},
            **changes,
        }
    )


def differing(one: Plan, other: Plan) -> set[str]:
    first, second = (p.model_dump(mode="json") for p in (one, other))
    return {
        f"{table}.{key}"
        for table in first
        if isinstance(first[table], dict)
        for key in {*first[table], *second[table]}
        if first[table].get(key) != second[table].get(key)
    }


def test_all_is_each_modality_genes_together_every_fusion_and_the_linear_model() -> None:
    plan = plan_of()
    chosen, left = chosen_variants(plan, "all")
    names = {v.name: v for v in chosen}
    assert set(names) == {*plan.modalities, "genomics", "linear", *FUSIONS}
    assert not left
    assert {n for n, v in names.items() if v.kind == "single"} == {*plan.modalities, "genomics"}
    for name, variant in names.items():
        if name in FUSIONS:
            assert variant.plan.model.fusion == name
            assert differing(plan, variant.plan) <= {"model.fusion"}
        elif variant.kind == "single":
            kept = {"expression", "mutations"} if name == "genomics" else {name}
            assert set(variant.plan.modalities) == kept
            assert {d.partition(".")[0] for d in differing(plan, variant.plan)} == {"modalities"}
    assert names["linear"].plan.model.layers == 0
    assert names["linear"].plan.model.linear_path


def test_without_two_sides_there_is_no_two_way_and_the_reason() -> None:
    plan = plan_of(modalities={"clinical": {"patterns": ["c_*"]}, "other": {"patterns": ["o_*"]}})
    chosen, left = chosen_variants(plan, "all")
    assert "two_way" not in {v.name for v in chosen}
    assert "sides" in left["two_way"] or "imaging" in left["two_way"]


@pytest.mark.parametrize(
    ("strategy", "key"), [({"name": "fedavg", "rate": 1.0}, "training"), ({"name": "fedadam", "rate": 0.2}, "strategy")]
)
def test_rates_differ_by_a_tenth_and_batches_by_sixteen(strategy: dict[str, Any], key: str) -> None:
    plan = plan_of(strategy=strategy, training={"batch": 40})
    made = {v.name: v.plan for v in sensitivity_variants(plan)}
    assert set(made) == {"rate-10", "rate+10", "batch-16", "batch+16"}
    rate = getattr(plan, key).rate
    assert [getattr(made[n], key).rate for n in ("rate-10", "rate+10")] == pytest.approx([0.9 * rate, 1.1 * rate])
    assert [made[n].training.batch for n in ("batch-16", "batch+16")] == [24, 56]
    for name, variant in made.items():
        assert differing(plan, variant) == {f"{key}.rate" if name.startswith("rate") else "training.batch"}


def test_a_plan_that_takes_everybody_is_compared_with_batches_about_32_and_a_small_batch_has_no_smaller() -> None:
    sizes = {v.plan.training.batch for v in sensitivity_variants(plan_of()) if v.name.startswith("batch")}
    assert sizes == {16, 32, 48}
    names = {v.name for v in sensitivity_variants(plan_of(training={"batch": 12}))}
    assert names == {"rate-10", "rate+10", "batch+16"}


def test_sanity_is_a_shuffle_of_the_same_plan_and_hospitals_as_classes() -> None:
    plan = whole_plan(plan_of(), 5)
    shuffled, hospital = sanity_variants(plan, ("a", "b"))
    assert shuffled.plan.hash == plan.hash
    task = hospital.plan.tasks["hospital"]
    assert getattr(task, "classes", None) == ("a", "b")
    assert [v.name for v in sanity_variants(plan, ("a",))] == ["label-shuffle"], "one hospital cannot be guessed"
