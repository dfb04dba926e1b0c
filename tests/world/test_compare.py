"""`oncofed-simulate compare` over small hospitals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from oncofed_shared.messages import Trial
from oncofed_shared.plan import ModelSettings
from oncofed_simulations.compare_points import ComparedSource, Place, admitted
from oncofed_simulations.compare_variants import SHUFFLE, chosen_variants, whole_plan
from oncofed_simulations.folders import site_folders


@pytest.fixture
def small(world):
    return world.change(training={"rounds": 2, "validate_every": 2}).write()


def call(world, *more):
    return ("compare", str(world.study), "--sites", str(world.sites), "--out", str(world.out), "--jobs", "1", *more)


def place(world, whole):
    folders = {f.name: f for f in site_folders(world.sites)}
    return Place(whole=whole.model_dump(mode="json"), folders=folders, minimum=None, seed=0, out=world.out)


def test_a_comparison_has_its_keys_and_repeats_nothing(small, simulate):
    words = call(small, "--variants", "clinical,radiomics,linear", "--folds", "2", "--sanity", "--sensitivity")
    assert simulate(*words).code == 0
    result = json.loads((small.out / "compare.json").read_bytes())
    wanted = {"metric", "metric_name", "ci", "folds", "p_ttest", "p_corrected", "parameters"}
    assert all(wanted <= set(e) for tasks in result["variants"].values() for e in tasks.values())
    assert set(result["variants"]) == {"clinical", "radiomics", "linear"}
    entry = result["variants"]["linear"]["response"]
    assert entry["metric"] == pytest.approx(np.mean(entry["folds"]))
    assert entry["p_corrected"] is not None
    assert result["variants"]["clinical"]["response"]["p_corrected"] is None
    assert set(result["sanity"]) == {"label-shuffle", "predict-hospital"}
    assert set(result["sensitivity"]) == {"rate-10", "rate+10", "batch16", "batch32", "batch48"}
    html = (small.out / "compare.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "http://" not in html
    points = sorted((small.out / "points").iterdir())
    stamps = {p: p.stat().st_mtime_ns for p in points}
    points[0].unlink()
    first = (small.out / "compare.json").read_bytes()
    assert simulate(*words).code == 0
    assert {p for p in points if p.stat().st_mtime_ns != stamps[p]} == {points[0]}
    assert (small.out / "compare.json").read_bytes() == first
    simulate(*words, "--seed", "1").refused(3, "another comparison")


def test_all_test_patients_are_pooled_over_held_out_hospitals(small, simulate):
    assert simulate(*call(small, "--variants", "clinical,linear", "--leave-hospital-out")).code == 0
    result = json.loads((small.out / "compare.json").read_bytes())
    assert result["protocol"]["held_out"] == "hospitals"
    points = [json.loads(p.read_bytes()) for p in (small.out / "points").glob("clinical.*")]
    whole = whole_plan(small.plan, 5)
    sizes = [len(s.source.cohort(whole).patients) for s in admitted(place(small, whole))[0].values()]
    assert sorted(p["test"] for p in points) == sorted(sizes)
    assert {p["test"] + p["train"] for p in points} == {sum(sizes)}


def test_folds_are_the_same_for_all_variants_and_share_nobody_with_training(small):
    whole = whole_plan(small.plan, 3)
    variants, _ = chosen_variants(whole, "clinical,genomics,radiomics,linear")
    site = next(iter(admitted(place(small, whole))[0].values()))
    tested = []
    for fold in range(3):
        source = ComparedSource(site.source, whole)
        source.trial = Trial(seed=0, fold=fold)
        parts = [source.split(v.plan, source.cohort(v.plan), source.trial) for v in variants]
        assert all((p == parts[0]).all() for p in parts)
        assert {source.cohort(v.plan).patients for v in variants} == {site.source.cohort(whole).patients}
        tested.append(parts[0] == 2)
    assert (np.sum(tested, axis=0) == 1).all()


def test_a_shuffle_moves_training_labels_alone(small):
    whole = whole_plan(small.plan, 3)
    site = next(iter(admitted(place(small, whole))[0].values()))
    source = ComparedSource(site.source, whole, task=SHUFFLE)
    source.trial = Trial(seed=0, fold=1)
    before, after = site.source.cohort(whole).labels["response"], source.cohort(whole).labels["response"]
    test = source.split(whole, site.source.cohort(whole), source.trial) == 2
    assert (before[test] == after[test]).all()
    assert (before[~test] != after[~test]).any()
    assert sorted(before) == sorted(after)


def test_a_variant_that_the_plan_cannot_express_is_one_error(small, simulate):
    simulate(*call(small, "--variants", "clinical,imaging")).refused(
        3, "--variants imaging: this plan cannot express it"
    )
    simulate(*call(small, "--variants", "clinical,clinical")).refused(3, "twice")
    assert not small.out.exists()


@pytest.mark.skipif("fusion" in ModelSettings.model_fields, reason="the plan knows fusions")
def test_a_fusion_that_the_plan_does_not_know_is_refused(small, simulate):
    simulate(*call(small, "--variants", "late")).refused(3, "--variants late", "fusion")


def test_a_folder_with_something_else_is_refused_and_kept(small, simulate):
    small.out.mkdir()
    (small.out / "letter.txt").write_text("mine", encoding="utf-8")
    simulate(*call(small, "--variants", "clinical")).refused(3, "is not a comparison")
    assert [p.name for p in small.out.iterdir()] == ["letter.txt"]
