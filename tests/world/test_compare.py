"""`oncofed-simulate compare` over small hospitals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from oncofed_client import source as source_module
from oncofed_shared.messages import Trial
from oncofed_simulations import compare_points
from oncofed_simulations.compare_points import Place, admitted
from oncofed_simulations.compare_source import ComparedSource
from oncofed_simulations.compare_variants import SHUFFLE, chosen_variants, whole_plan
from oncofed_simulations.exact import numbers_of
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
    # The plan as it is, scored by hand: what a changed rate or batch is compared with.
    kept = sorted((small.out / "points").glob("as-planned.*"))
    assert len(kept) == 2
    planned = [json.loads(p.read_bytes())["tasks"]["response"] for p in kept]
    shown, truth = (np.concatenate([np.array(p[k]) for p in planned]) for k in ("predictions", "labels"))
    right = numbers_of(small.plan, "response", shown, truth)["accuracy"]
    for found in result["sensitivity"].values():
        entry = found["response"]
        assert entry["accuracy_change"] == pytest.approx(entry["accuracy"] - right)
    html = (small.out / "compare.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "http://" not in html
    # A picture beside each row of a table.
    assert html.count("<svg") >= 2 * (3 + 2)
    points = sorted((small.out / "points").iterdir())
    stamps = {p: p.stat().st_mtime_ns for p in points}
    points[0].unlink()
    first = (small.out / "compare.json").read_bytes()
    assert simulate(*words).code == 0
    assert {p for p in points if p.stat().st_mtime_ns != stamps[p]} == {points[0]}
    assert (small.out / "compare.json").read_bytes() == first
    simulate(*words, "--seed", "1").refused(3, "another comparison")


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_comparison(small, simulate):
    made = []
    for jobs in ("1", "2"):
        out = small.out / jobs
        words = ("compare", str(small.study), "--sites", str(small.sites), "--variants", "clinical,radiomics,linear")
        assert simulate(*words, "--folds", "2", "--jobs", jobs, "--out", str(out)).code == 0
        made.append({k: v for k, v in json.loads((out / "compare.json").read_bytes()).items() if k != "command"})
        assert len(list((out / "points").iterdir())) == 6
    assert made[0] == made[1]


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


def test_a_folder_with_something_else_is_refused_and_kept(small, simulate):
    small.out.mkdir()
    (small.out / "letter.txt").write_text("mine", encoding="utf-8")
    simulate(*call(small, "--variants", "clinical")).refused(3, "is not a comparison")
    assert [p.name for p in small.out.iterdir()] == ["letter.txt"]


GROUPS = {"sex": {"table": "clinical", "column": "sex", "values": ["female", "male"]}}


def test_scores_within_groups_are_of_their_patients_alone(small, simulate):
    small.change(evaluation={"subgroups": GROUPS}).write_study()
    assert simulate(*call(small, "--variants", "clinical,linear", "--leave-hospital-out")).code == 0
    entry = json.loads((small.out / "compare.json").read_bytes())["variants"]["linear"]["response"]
    points = [json.loads(p.read_bytes()) for p in (small.out / "points").glob("linear.*")]
    for number, group in enumerate(("female", "male")):
        shown, truth = [], []
        for point in points:
            rows = np.array(point["groups"]["sex"]) == number
            task = point["tasks"]["response"]
            shown.append(np.array(task["predictions"])[rows])
            truth.append(np.array(task["labels"])[rows])
        wanted = numbers_of(small.plan, "response", np.concatenate(shown), np.concatenate(truth))["auc"]
        assert entry["within"]["sex"][group]["metric"] == pytest.approx(wanted)
        assert entry["within"]["sex"][group]["patients"] > 0
    html = (small.out / "compare.html").read_text(encoding="utf-8")
    assert "Within sex" in html


def test_a_hospital_is_read_once_in_a_process(small, simulate, monkeypatch):
    read: list[str] = []
    whole = source_module.read_cohort
    monkeypatch.setattr(
        source_module, "read_cohort", lambda folder, *rest: (read.append(folder.name), whole(folder, *rest))[1]
    )
    assert simulate(*call(small, "--variants", "clinical,linear", "--folds", "2")).code == 0
    assert sorted(read) == sorted(h.name for h in small.hospitals)


def test_only_patients_who_have_it_all_take_part(small, simulate):
    words = call(small, "--variants", "clinical,linear", "--folds", "2", "--min-patients", "1")
    simulate(*words, "--patients-with", "scans").refused(3, "--patients-with scans", "no modality 'scans'")
    assert simulate(*words, "--patients-with", "genes,radiomics").code == 0
    result = json.loads((small.out / "compare.json").read_bytes())
    both = [h for h in small.hospitals if {"genes", "radiomics"} <= set(h.tables)]
    ids = [set(h.tables["genes"]["patient_id"]) & set(h.tables["radiomics"]["patient_id"]) for h in both]
    assert 0 < result["protocol"]["patients"] <= sum(len(i) for i in ids)
    assert result["protocol"]["hospitals"] == [h.name for h in both]
    assert result["variants"]["linear"]["response"]["detectable"] > 0
    simulate(*words).refused(3, "another comparison")


@pytest.mark.parametrize(("held", "batch"), [(("--folds", "2"), "all"), (("--leave-hospital-out",), 16)])
def test_a_search_says_what_it_chose_for_each_point(small, simulate, held, batch):
    ranges = {"modalities.genes.emphasis": {"low": 0.2, "high": 5.0, "log": True}}
    small.change(simulation={"search": ranges}, training={"batch": batch}).write_study()
    assert simulate(*call(small, "--variants", "clinical,linear", *held, "--search", "2")).code == 0
    result = json.loads((small.out / "compare.json").read_bytes())
    assert result["protocol"]["search"] == 2
    assert len(result["chosen"]["linear"]) == (2 if "--folds" in held else len(small.hospitals))
    for chosen in result["chosen"]["linear"].values():
        assert chosen["inner"] >= chosen["planned"]
        assert 0.2 <= chosen["values"]["modalities.genes.emphasis"] <= 5
    assert all(c["values"] == {} for c in result["chosen"]["clinical"].values())


SPACE = {
    "modalities.genes.emphasis": {"low": 0.2, "high": 5.0, "log": True},
    "training.rate": {"low": 0.01, "high": 1.0},
    "training.dropout": {"low": 0.0, "high": 0.5},
    "training.batch": {"choices": [4, 8, 16]},
}
"""Batch, rate and dropout (D-11), and what the study is about."""


def spoil(hospital, ids, sites):
    """Turn round the labels and values of some patients of a hospital, on disk."""
    for name, table in hospital.tables.items():
        rows = [i for i, p in enumerate(table["patient_id"]) if p in ids]
        for column, values in table.items():
            if column in {"patient_id", "part", "consent", "age", "sex", "stage"}:
                continue
            turned = [values[i] for i in reversed(rows)]
            for i, value in zip(rows, turned, strict=True):
                values[i] = {"yes": "no", "no": "yes"}.get(value, value if name == "clinical" else f"{i * 7}.5")
    shutil.rmtree(sites / hospital.name)
    hospital.write(sites)


@pytest.mark.parametrize("held", [("--folds", "2"), ("--leave-hospital-out",)])
def test_what_a_search_chooses_does_not_depend_on_test_patients(small, simulate, held):
    """Labels and values of a point's test patients are turned round: what is chosen for the point stays, and its scores."""
    small.change(simulation={"search": SPACE}, training={"batch": 8, "dropout": 0.1}).write_study()
    words = call(small, "--variants", "linear", *held, "--search", "3")
    assert simulate(*words).code == 0
    folds = "--folds" in held
    point = small.out / "points" / ("linear.fold-0.json" if folds else "linear.hospital-beta.json")
    first = json.loads(point.read_bytes())
    whole = whole_plan(small.plan, 2 if folds else 5)
    for hospital in small.hospitals:
        source = admitted(place(small, whole))[0][hospital.name].source
        cohort = source.cohort(whole)
        parts = source.split(whole, cohort, Trial(seed=0, fold=0))
        tested = {p for p, part in zip(cohort.patients, parts, strict=True) if part == 2 or not folds}
        if folds or hospital.name == "beta":
            spoil(hospital, tested, small.sites)
    point.unlink()
    kept = small.out / "searched" / point.name
    kept.unlink()
    assert simulate(*words).code == 0
    second = json.loads(point.read_bytes())
    assert first["chosen"] == second["chosen"]
    assert set(first["chosen"]["values"]) == set(SPACE)
    assert first["tasks"]["response"]["labels"] != second["tasks"]["response"]["labels"]
    assert first["tasks"]["response"]["predictions"] != second["tasks"]["response"]["predictions"]


def tuned(world, *more):
    return ("tune", str(world.study), "--sites", str(world.sites), "--out", str(world.out / "tuned"), *more)


def test_one_setting_is_chosen_on_the_training_patients_of_a_split(small, simulate):
    """Nobody but training patients counts: the others' labels and values are turned round and nothing changes."""
    split = {"train": 0.6, "validation": 0.2, "test": 0.2}
    small.content["evaluation"]["split"] = split
    small.change(simulation={"search": SPACE}, training={"batch": 8, "dropout": 0.1}).write_study()
    done = simulate(*tuned(small, "--trials", "3"))
    assert done.code == 0, done.err
    first = json.loads((small.out / "tuned" / "tuned.json").read_bytes())
    assert first["inner"] >= first["planned"]
    assert set(first["values"]) == set(SPACE)
    assert f"training.rate = {json.dumps(first['values']['training.rate'])}" in done.out
    sites = {n: s.source for n, s in admitted(place(small, small.plan))[0].items()}
    for hospital in small.hospitals:
        source = sites[hospital.name]
        cohort = source.cohort(small.plan)
        parts = source.split(small.plan, cohort, Trial(seed=0))
        assert first["training_patients"][hospital.name] == int((parts == 0).sum())
        spoil(hospital, {p for p, part in zip(cohort.patients, parts, strict=True) if part != 0}, small.sites)
    shutil.rmtree(small.out / "tuned" / "searched")
    assert simulate(*tuned(small, "--trials", "3")).code == 0
    assert json.loads((small.out / "tuned" / "tuned.json").read_bytes()) == first
    simulate(*tuned(small, "--seed", "1")).refused(3, "another tuning")


def test_a_search_goes_on_where_it_was_interrupted(small, simulate, monkeypatch):
    small.change(simulation={"search": SPACE}, training={"batch": 8}).write_study()
    assert simulate(*tuned(small, "--trials", "4")).code == 0
    whole = (small.out / "tuned" / "tuned.json").read_bytes()
    (kept,) = (small.out / "tuned" / "searched").iterdir()
    scores = json.loads(kept.read_bytes())
    assert len(scores) >= 4
    lost = set(list(scores)[-2:])
    kept.write_text(json.dumps({n: v for n, v in scores.items() if n not in lost}), encoding="utf-8")
    trained: list[str] = []
    inner = compare_points._inner_score
    monkeypatch.setattr(compare_points, "_inner_score", lambda *a: (trained.append(a[1].hash), inner(*a))[1])
    assert simulate(*tuned(small, "--trials", "4")).code == 0
    assert set(trained) == lost
    assert len(trained) == 2
    assert (small.out / "tuned" / "tuned.json").read_bytes() == whole
    kept.write_text("[3", encoding="utf-8")
    simulate(*tuned(small, "--trials", "4")).refused(3, "cannot be read as the scores of a search")


def test_what_cannot_be_tuned_is_refused(small, simulate):
    small.change(evaluation={"folds": 3}).write_study()
    simulate(*tuned(small)).refused(3, "evaluation.folds", "compare --search")
    small.change(evaluation={"folds": None}, simulation={"search": {"training.speed": {"low": 1, "high": 2}}})
    small.write_study()
    simulate(*tuned(small)).refused(3, "training.speed")
    assert not small.out.exists()


def test_a_search_and_sensitivity_do_not_go_together(small, simulate):
    simulate(*call(small, "--variants", "linear", "--search", "2", "--sensitivity")).refused(
        3, "--search", "--sensitivity"
    )
