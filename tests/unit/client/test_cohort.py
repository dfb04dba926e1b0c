"""A cohort: who enters, with which values and labels; and splits that never depend on the order of rows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.cohort import Cohort, consented, read_cohort, split_patients
from oncofed_client.settings import SiteSettings, settings_from_study
from oncofed_shared.errors import ConfigError, DataError, ExitCode, PolicyRefusal
from oncofed_shared.features import encoded_columns
from oncofed_shared.plan import Plan, parse, validate

GLIOMA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "glioma"
BASIS = {"basis": "public data", "reference": "none", "approved_by": "nobody"}
SURVIVAL = {
    "kind": "survival",
    "time": "days",
    "event": "event",
    "edges": [0, 365, 730],
    "horizon": 365,
}
IDH = {"kind": "classification", "label": "idh", "classes": ["WT", "MUT"]}


def plan_of(tasks: Mapping[str, Any] | None = None, modalities: Mapping[str, Any] | None = None, **more: Any) -> Plan:
    clinical = {"columns": {"age": {"kind": "numeric", "unit": "years", "range": [0, 120]}}}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"os": SURVIVAL},
            "modalities": modalities or {"clinical": clinical},
            "training": {"rounds": 1},
            **more,
        }
    )


def site_of(folder: Path, tables: Mapping[str, str], consent: Mapping[str, str] = BASIS, **more: Any) -> SiteSettings:
    """Write tables and say so in settings; `more` are further keys of a table, by its name."""
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    content = {
        "site": {"name": "north"},
        "tables": {n: {"file": f"{n}.csv", **more.get(n, {})} for n in tables},
        "consent": dict(consent),
    }
    return validate(SiteSettings, content, "site.toml")


CLINICAL = """patient_id,age,days,event,idh,consent
P3,70,0,1.0,WT,yes
P1,50.0,365,0,MUT,no
P2,,730,1,,yes
P4,60,,1,,yes
"""


def test_tables_join_on_ids_whatever_their_order(tmp_path: Path) -> None:
    genes = "patient_id,B_rna,A_rna\nP2,1,2\nP5,9,9\nP3,,4\n"
    site = site_of(tmp_path, {"clinical": CLINICAL, "genes": genes})
    plan = plan_of(
        modalities={
            "clinical": {"columns": {"age": {"kind": "numeric"}}},
            "genes": {"patterns": ["{gene}_rna"]},
            "ct": {"patterns": ["CT_*"], "table": "ct"},
        }
    )
    cohort = read_cohort(tmp_path, site, plan)
    # P4 has no time and P5 no label at all.
    assert cohort.patients == ("P1", "P2", "P3")
    assert cohort.columns == {"clinical": ("age",), "genes": ("A_rna", "B_rna"), "ct": ()}
    np.testing.assert_array_equal(cohort.values["clinical"], [[50], [np.nan], [70]])
    np.testing.assert_array_equal(cohort.values["genes"], [[np.nan, np.nan], [2, 1], [4, np.nan]])
    assert cohort.values["ct"].shape == (3, 0)
    np.testing.assert_array_equal(cohort.labels["os"], [[365, 0], [730, 1], [0, 1]])
    assert "P1" not in repr(cohort)


def test_categories_ranks_classes_and_units(tmp_path: Path) -> None:
    text = "patient_id,age_m,sex,grade,weeks,event,idh\nP1,600,F,high,2,1,MUT\nP2,1440,,low,0,0,\nP3,,M,,1,,WT\n"
    site = site_of(
        tmp_path,
        {"clinical": text},
        clinical={
            "rename": {"age_m": "age", "weeks": "days"},
            "units": {"age": "months", "days": "weeks"},
        },
    )
    columns = {
        "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
        "sex": {"kind": "categorical", "categories": ["M", "F", "other"]},
        "grade": {"kind": "ordinal", "order": ["low", "mid", "high"]},
        "kps": {"kind": "numeric"},
    }
    cohort = read_cohort(tmp_path, site, plan_of({"os": SURVIVAL, "idh": IDH}, {"clinical": {"columns": columns}}))
    assert cohort.columns["clinical"] == ("age", "grade", "sex=M", "sex=F", "sex=other")
    nan = np.nan
    np.testing.assert_array_equal(
        cohort.values["clinical"],
        [[50, 2, 0, 1, 0], [120, 0, nan, nan, nan], [nan, nan, 1, 0, 0]],
    )
    np.testing.assert_array_equal(cohort.labels["os"], [[14, 1], [0, 0], [nan, nan]])
    assert cohort.labels["idh"].tolist() == [1, -1, 0]
    assert cohort.labels["idh"].dtype == np.int64


def test_a_column_has_one_more_for_each_knot(tmp_path: Path) -> None:
    site = site_of(tmp_path, {"clinical": CLINICAL})
    age = {"kind": "numeric", "range": [0, 120], "knots": [55, 62.5]}
    plan = plan_of(modalities={"clinical": {"columns": {"age": age}}})
    cohort = read_cohort(tmp_path, site, plan)
    assert cohort.columns["clinical"] == ("age", "age>55", "age>62.5")
    assert cohort.columns["clinical"] == encoded_columns(plan.modalities["clinical"])
    np.testing.assert_array_equal(cohort.values["clinical"], [[50, 0, 0], [70, 15, 7.5]])


@pytest.mark.parametrize(
    ("age", "more", "message"),
    [
        ({"knots": [60, 50]}, {}, "must be strictly ascending"),
        ({"knots": [130], "range": [0, 120]}, {}, "a knot lies inside the range"),
        ({"knots": [60]}, {"scaling": "minmax"}, "needs scaling = 'zscore'"),
        ({"knots": [60]}, {"transform": "log"}, "no transform"),
    ],
)
def test_knots_that_mean_nothing_are_refused(age: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(modalities={"clinical": {"columns": {"age": {"kind": "numeric", **age}}, **more}})


def test_without_knots_a_plan_s_hash_is_as_it_was() -> None:
    columns = {"age": {"kind": "numeric"}}
    plain = plan_of(modalities={"clinical": {"columns": columns}})
    assert b"knots" not in plain.canonical
    bent = plan_of(modalities={"clinical": {"columns": {"age": {"kind": "numeric", "knots": [60]}}}})
    assert bent.hash != plain.hash
    assert parse(bent.model_dump(mode="json")).hash == bent.hash


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("age\nP1,5,1,old", "row 2, column age: expected a number"),
        ("age\nP1,5,1,121", "row 2, column age: expected from 0 to 120 years"),
        ("age\nP1,-5,1,50", "row 2, column days: expected 0 or more days, because it is a follow"),
        ("age\nP1,inf,1,50", "row 2, column days: expected 0 or more days, because .* infinite"),
        ("age\nP1,5,2,50", "row 2, column event: expected one of: 0, 1"),
        ("sex\nP1,5,1,X", "row 2, column sex: expected one of: F, M"),
        ("grade\nP1,5,1,X", "row 2, column grade: expected one of: low, high"),
        ("g_rna\nP1,5,1,-2", "row 2, column g_rna: expected 0 or more, because .* logarithm"),
    ],
)
def test_values_that_the_study_did_not_declare(tmp_path: Path, cells: str, expected: str) -> None:
    site = site_of(tmp_path, {"clinical": f"patient_id,days,event,{cells}\n"})
    columns = {
        "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
        "sex": {"kind": "categorical", "categories": ["F", "M"]},
        "grade": {"kind": "ordinal", "order": ["low", "high"]},
    }
    modalities = {
        "clinical": {"columns": columns},
        "genes": {"patterns": ["*_rna"], "transform": "log"},
    }
    with pytest.raises(DataError, match=rf"clinical\.csv, {expected}") as caught:
        read_cohort(tmp_path, site, plan_of(modalities=modalities))
    assert caught.value.exit_code == ExitCode.INPUT
    assert len(caught.value.problems) == 1


def test_a_unit_that_does_not_convert_is_named(tmp_path: Path) -> None:
    for unit, expected in (("kg", "expected one that converts to years"), ("years", None)):
        site = site_of(tmp_path, {"clinical": CLINICAL}, clinical={"units": {"age": unit}})
        if expected is None:
            assert len(read_cohort(tmp_path, site, plan_of()).patients) == 2
            continue
        with pytest.raises(DataError, match=rf"column age: the unit under .* {expected}"):
            read_cohort(tmp_path, site, plan_of())
    plain = plan_of(modalities={"clinical": {"columns": {"age": {"kind": "numeric"}}}})
    with pytest.raises(DataError, match="the study declares no unit for this column"):
        read_cohort(tmp_path, site, plain)


def test_absent_labels(tmp_path: Path) -> None:
    site = site_of(tmp_path, {"clinical": "patient_id,age,days,event\nP1,50,1,1\n"})
    cohort = read_cohort(tmp_path, site, plan_of({"os": SURVIVAL, "idh": IDH}))
    assert cohort.labels["idh"].tolist() == [-1]
    with pytest.raises(DataError, match="no table has the column 'idh', the label of") as caught:
        read_cohort(tmp_path, site, plan_of({"idh": IDH, "os": SURVIVAL}))
    assert caught.value.code == "no-label"
    assert caught.value.exit_code == ExitCode.INPUT
    for table, told in (("labels", "there is no table 'labels' with"), ("clinical", "the table 'clinical' has no")):
        with pytest.raises(DataError, match=f"{told} the column 'idh'|{told} column 'idh'"):
            read_cohort(tmp_path, site, plan_of({"idh": IDH | {"table": table}}))
    moved = {"os": SURVIVAL | {"table": "labels"}}
    with pytest.raises(DataError, match=r"'labels' with the column 'days' and 'event' .but 'clinical' has it."):
        read_cohort(tmp_path, site, plan_of(moved))
    split = {"split": {"column": "part", "train": ["0"], "test": ["1"]}}
    with pytest.raises(DataError, match="no table has the column 'part'") as caught:
        read_cohort(tmp_path, site, plan_of(evaluation=split))
    assert caught.value.code == "no-split"


def test_the_same_column_in_two_tables_must_be_named(tmp_path: Path) -> None:
    site = site_of(tmp_path, {"clinical": CLINICAL, "extra": "patient_id,age\nP1,11\n"})
    with pytest.raises(DataError, match="column age: the tables 'clinical' and 'extra' both"):
        read_cohort(tmp_path, site, plan_of())
    modality = {"columns": {"age": {"kind": "numeric"}}, "table": "extra"}
    cohort = read_cohort(tmp_path, site, plan_of(modalities={"clinical": modality}))
    assert cohort.patients == ("P1",)
    assert cohort.values["clinical"].tolist() == [[11]]
    with pytest.raises(DataError, match="column age: the tables 'clinical' and 'extra' both"):
        read_cohort(tmp_path, site, plan_of(modalities={"clinical": {"patterns": ["a*"]}}))


def test_patterns_read_neither_labels_nor_consent_nor_what_is_excluded(tmp_path: Path) -> None:
    consent = {"column": "consent", "value": "yes"}
    site = site_of(tmp_path, {"clinical": CLINICAL}, consent)
    modality = {"patterns": ["*"], "exclude": ["a*"]}
    plan = plan_of({"os": SURVIVAL, "idh": IDH}, {"clinical": modality})
    assert read_cohort(tmp_path, site, plan).columns == {"clinical": ()}


def test_a_table_on_its_side_is_refused_because_column_names_travel(tmp_path: Path) -> None:
    genes = "patient_id,P1,P2,P3\nTP53,1,2,3\n"
    site = site_of(tmp_path, {"clinical": CLINICAL, "genes": genes})
    plan = plan_of(modalities={"genes": {"patterns": ["*"], "table": "genes"}})
    with pytest.raises(DataError, match="expected column names, found patient ids") as caught:
        read_cohort(tmp_path, site, plan)
    assert "P1" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"required": True}, ("P1", "P2")),
        ({"required": True, "missing": "drop"}, ("P1",)),
        ({}, ("P1", "P2", "P3")),
    ],
)
def test_required_modalities(tmp_path: Path, rule: dict[str, Any], expected: tuple[str]) -> None:
    text = "patient_id,days,event,age,a_rna,b_rna\nP1,1,1,5,1,1\nP2,1,1,,1,\nP3,1,0,6,,\nP4,1,0,,,\n"
    site = site_of(tmp_path, {"t": text})
    plan = plan_of(
        modalities={
            "clinical": {"columns": {"age": {"kind": "numeric"}}},
            "genes": {"patterns": ["*_rna"], **rule},
        }
    )
    # P4 has a label but nothing to predict it from.
    assert read_cohort(tmp_path, site, plan).patients == expected


def test_subgroups_by_value_and_by_band(tmp_path: Path) -> None:
    text = "patient_id,days,event,age,kind\n" + "".join(
        f"P{i},1,1,{age},{kind}\n"
        for i, (age, kind) in enumerate([(0, "A"), (50, "B"), (49, "C"), (100, ""), (101, "A"), ("", "B")])
    )
    modality = {"columns": {"age": {"kind": "numeric"}}, "patterns": None}
    plan = plan_of(
        modalities={"clinical": modality, "all": {"patterns": ["age", "days*"], "table": "none"}},
        evaluation={
            "subgroups": {
                "kind": {"column": "kind", "values": ["A", "B"]},
                "age": {"column": "age", "edges": [0, 50, 100]},
                "lacking": {"column": "nothing", "values": ["x"]},
            }
        },
    )
    subgroups = read_cohort(tmp_path, site_of(tmp_path, {"t": text}), plan).subgroups
    assert subgroups["kind"].tolist() == [0, 1, -1, -1, 0]
    assert subgroups["age"].tolist() == [0, 1, 0, 1, -1]
    assert subgroups["lacking"].tolist() == [-1] * 5


def test_nobody_enters_unless_it_is_stated(tmp_path: Path) -> None:
    silent = site_of(tmp_path, {"clinical": CLINICAL}, {})
    nobody = site_of(tmp_path, {"clinical": CLINICAL}, {"column": "consent", "value": "YES"})
    for site in (silent, nobody):
        with pytest.raises(PolicyRefusal, match="nobody may enter") as caught:
            read_cohort(tmp_path, site, plan_of())
        assert caught.value.code == "consent"
        assert caught.value.exit_code == ExitCode.REFUSED
    with pytest.raises(PolicyRefusal):
        consented(tmp_path, silent)
    assert consented(tmp_path, nobody) == frozenset()
    absent = site_of(tmp_path, {"clinical": CLINICAL}, {"column": "agreed", "value": "yes"})
    for call in (lambda: read_cohort(tmp_path, absent, plan_of()), lambda: consented(tmp_path, absent)):
        with pytest.raises(DataError) as wrong:
            call()
        assert wrong.value.code == "no-consent-column"


def test_rows_of_patients_who_did_not_consent_are_not_even_checked(tmp_path: Path) -> None:
    text = CLINICAL.replace("50.0", "SECRET")
    consent = {"column": "consent", "value": "yes", "table": "clinical"}
    cohort = read_cohort(tmp_path, site_of(tmp_path, {"clinical": text}, consent), plan_of())
    assert cohort.patients == ("P3",)


@pytest.mark.parametrize("age", [0, 3600])
def test_a_withdrawal_holds_at_the_next_call(tmp_path: Path, age: int) -> None:
    """Also in a file that is old enough to be remembered, changed to one of equal size and date."""
    consent = {"column": "consent", "value": "yes"}
    site = site_of(tmp_path, {"clinical": CLINICAL}, consent)
    path = tmp_path / "clinical.csv"
    stamp = time.time() - age
    os.utime(path, (stamp, stamp))
    for _ in range(3):
        assert consented(tmp_path, site) == {"P2", "P3", "P4"}
    path.write_text(CLINICAL.replace("730,1,,yes", "730,1,,nay"), encoding="utf-8")
    os.utime(path, (stamp, stamp))
    assert consented(tmp_path, site) == {"P3", "P4"}
    assert "P2" not in read_cohort(tmp_path, site, plan_of()).patients
    path.unlink()
    with pytest.raises(DataError):
        consented(tmp_path, site)


def cohort_of(labels: list[int], *, site: str = "north", published: list[int] | None = None, start: int = 0) -> Cohort:
    n = len(labels)
    return Cohort(
        site=site,
        patients=tuple(f"P{i:05}" for i in range(start, start + n)),
        values={"clinical": np.zeros((n, 1))},
        columns={"clinical": ("age",)},
        labels={"idh": np.array(labels, dtype=np.int64)},
        subgroups={},
        split_labels=None if published is None else np.array(published, dtype=np.int64),
    )


IDH_PLAN = plan_of({"idh": IDH}, evaluation={"folds": 5})
PUBLISHED = plan_of(
    {"idh": IDH},
    evaluation={
        "split": {"column": "part", "train": ["0"], "validation": ["v"], "test": ["1"]},
        "folds": 4,
    },
)
LABELS = st.lists(st.integers(-1, 1), max_size=60)
SEEDS = st.integers(0, 2**40)


@settings(max_examples=50)
@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_a_part_depends_on_the_id_and_not_on_the_order_of_rows(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    cohort = cohort_of(labels)
    order = data.draw(st.permutations(range(len(labels))))
    mixed = Cohort(
        site=cohort.site,
        patients=tuple(cohort.patients[i] for i in order),
        values={},
        columns={},
        labels={"idh": cohort.labels["idh"][order]},
        subgroups={},
        split_labels=None,
    )
    first = dict(zip(cohort.patients, split_patients(cohort, IDH_PLAN, seed).tolist(), strict=True))
    again = dict(zip(mixed.patients, split_patients(mixed, IDH_PLAN, seed).tolist(), strict=True))
    assert first == again


@settings(max_examples=50)
@given(labels=LABELS, seed=SEEDS)
def test_every_stratum_is_split_as_the_plan_says_to_within_one_patient(labels: list[int], seed: int) -> None:
    split = split_patients(cohort_of(labels), IDH_PLAN, seed)
    assert set(split.tolist()) <= {0, 1, 2}
    for stratum in set(labels):
        own = split[np.array(labels) == stratum]
        for part, share in enumerate((0.70, 0.15, 0.15)):
            assert abs(np.count_nonzero(own == part) - share * len(own)) < 1 + 1e-9


def test_the_expected_share_is_right_even_for_one_patient() -> None:
    parts = np.array([split_patients(cohort_of([0]), IDH_PLAN, seed)[0] for seed in range(4000)])
    shares = np.bincount(parts, minlength=3) / len(parts)
    # Four standard errors of a share of 4,000 draws.
    np.testing.assert_allclose(shares, (0.70, 0.15, 0.15), atol=4 * np.sqrt(0.7 * 0.3 / 4000))


def test_sites_and_seeds_differ() -> None:
    labels = [0, 1] * 40
    base = split_patients(cohort_of(labels), IDH_PLAN, 0)
    assert np.array_equal(base, split_patients(cohort_of(labels), IDH_PLAN, 0))
    assert not np.array_equal(base, split_patients(cohort_of(labels), IDH_PLAN, 1))
    shares = {split_patients(cohort_of([0], site=f"s{i}"), IDH_PLAN, 0)[0].item() for i in range(60)}
    assert shares == {0, 1, 2}


@settings(max_examples=50)
@given(labels=LABELS, seed=SEEDS)
def test_folds_partition_the_patients(labels: list[int], seed: int) -> None:
    cohort = cohort_of(labels)
    folds = np.array([split_patients(cohort, IDH_PLAN, seed, fold=k) for k in range(5)])
    assert set(folds.ravel().tolist()) <= {0, 2}
    assert np.all((folds == 2).sum(axis=0) == 1)
    for stratum in set(labels):
        sizes = (folds[:, np.array(labels) == stratum] == 2).sum(axis=1)
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(ConfigError):
        split_patients(cohort, IDH_PLAN, seed, fold=6)
    # The number after the last holds nobody out.
    assert set(split_patients(cohort, IDH_PLAN, seed, fold=5).tolist()) <= {0}


@settings(max_examples=50)
@given(published=st.lists(st.integers(-1, 2), min_size=1, max_size=60), seed=SEEDS)
def test_a_published_split_and_its_resplits(published: list[int], seed: int) -> None:
    cohort = cohort_of([0] * len(published), published=published)
    assert split_patients(cohort, PUBLISHED, seed).tolist() == published
    again = split_patients(cohort, PUBLISHED, seed, resplit=True)
    outside = np.array(published) < 0
    assert np.all((again == -1) == outside)
    for part in range(3):
        # One stratum: systematic sampling misses a whole number by less than one patient.
        wanted = published.count(part)
        assert abs(np.count_nonzero(again == part) - wanted) <= 1
    folds = np.array([split_patients(cohort, PUBLISHED, seed, fold=k) for k in range(4)])
    assert np.all((folds == 2).sum(axis=0) == ~outside)


def test_a_published_split_is_read_from_its_column(tmp_path: Path) -> None:
    text = "patient_id,age,idh,part\nP1,1,WT,0\nP2,1,MUT,1.0\nP3,1,WT,v\nP4,1,WT,elsewhere\nP5,1,WT,\n"
    cohort = read_cohort(tmp_path, site_of(tmp_path, {"t": text}), PUBLISHED)
    assert split_patients(cohort, PUBLISHED, 0).tolist() == [0, 2, 1, -1, -1]


def test_survival_is_stratified_by_event(tmp_path: Path) -> None:
    text = "patient_id,age,days,event\n" + "".join(f"P{i},50,{i},{int(i % 5 == 0)}\n" for i in range(200))
    cohort = read_cohort(tmp_path, site_of(tmp_path, {"t": text}), plan_of())
    split = split_patients(cohort, plan_of(), 3)
    events = cohort.labels["os"][:, 1] == 1
    assert abs(np.count_nonzero(split[events] == 2) - 6) <= 1
    assert abs(np.count_nonzero(split[~events] == 2) - 24) <= 1


@pytest.mark.skipif(not GLIOMA.exists(), reason="../shared/data/glioma is not beside the project")
def test_a_real_hospital_reads_fast() -> None:
    tables = ("clinical", "molecular", "expression", "cnv_genes", "cnv_arms", "mutations", "radiomics")
    content = {"tables": {t: {"file": f"{t}.csv"} for t in tables}, "consent": BASIS}
    folder = GLIOMA / "henry-ford"
    plan = plan_of(
        {"os": SURVIVAL | {"time": "os_days", "event": "os_event"}},
        {
            "clinical": {"columns": {"age": {"kind": "numeric", "range": [0, 120]}}},
            "genes": {"patterns": ["{gene}_rnaseq", "{gene}_cnv", "{gene}_mut", "arm_*"]},
            "radiomics": {"patterns": ["*"], "table": "radiomics"},
        },
    )
    before = time.process_time()
    cohort = read_cohort(folder, settings_from_study(content, folder), plan)
    seconds = time.process_time() - before
    assert len(cohort.patients) == 241
    assert {m: v.shape[1] for m, v in cohort.values.items()} == {
        "clinical": 1,
        "genes": 1544 + 30 + 103 + 39,
        "radiomics": 724,
    }
    assert int((~np.isnan(cohort.values["radiomics"]).all(axis=1)).sum()) == 69
    assert seconds < 1.0
