"""What `check` finds: counts, giveaways, one class only, no event, and why a study cannot run; never a value."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score
from sksurv.metrics import concordance_index_censored

from oncofed_client.check import CheckReport, check_study, inventory
from oncofed_client.leaks import auc, concordance, giveaways
from oncofed_client.settings import SiteSettings, settings_from_study
from oncofed_client.show import show_check, show_inventory
from oncofed_shared.errors import DataError, ExitCode
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask, parse, validate

GLIOMA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "glioma"
BASIS = {"basis": "public data", "reference": "none", "approved_by": "nobody"}
OS = {"kind": "survival", "time": "days", "event": "event", "edges": [0, 365, 730], "horizon": 365}
IDH = {"kind": "classification", "label": "idh", "classes": ["WT", "MUT"]}
AGE = {"columns": {"age": {"kind": "numeric", "unit": "years", "range": [0, 120]}}}
HEADER = "patient_id,age,days,event,idh,consent\n"


def plan_of(tasks: Mapping[str, Any] | None = None, **modalities: Any) -> Plan:
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": tasks or {"os": OS},
            "modalities": modalities or {"clinical": AGE},
            "training": {"rounds": 1},
        }
    )


def site_of(folder: Path, clinical: str, consent: Mapping[str, str] = BASIS, **table: Any) -> SiteSettings:
    (folder / "clinical.csv").write_text(clinical, encoding="utf-8")
    content = {
        "site": {"name": "north"},
        "tables": {"clinical": {"file": "clinical.csv", **table}, "genes": {"file": "genes.csv"}},
        "consent": dict(consent),
    }
    return validate(SiteSettings, content, "site.toml")


def patients(n: int, *, event: int | None = None, idh: str | None = None) -> str:
    rng = np.random.default_rng(0)
    return HEADER + "".join(
        f"P{i},{rng.integers(20, 90)},{rng.integers(1, 2000)},{i % 2 if event is None else event},"
        f"{idh or ('WT', 'MUT')[i % 3 == 0]},{'yes' if i % 2 else 'no'}\n"
        for i in range(n)
    )


def printed(report: CheckReport) -> str:
    console = Console(width=160, file=io.StringIO())
    show_check(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_counts_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "genes.csv").write_text("patient_id,A_rna,B_rna\nP1,1,\nP2,1,2\nP99,1,2\n", encoding="utf-8")
    kps = {"columns": {**AGE["columns"], "kps": {"kind": "numeric"}}}
    plan = plan_of(
        {"os": OS, "idh": IDH}, clinical=kps, genes={"patterns": ["*_rna"]}, ct={"patterns": ["CT_*"], "table": "ct"}
    )
    report = check_study(tmp_path, site_of(tmp_path, patients(30)), plan)
    assert (report.patients, report.may_enter, report.counted, report.usable) == (31, 31, 31, 30)
    by_name = {m.name: m for m in report.modalities}
    assert (by_name["clinical"].found, by_name["clinical"].expected) == (1, 2)
    assert by_name["clinical"].absent == ("kps",)
    assert (by_name["genes"].patients, by_name["genes"].missing, by_name["genes"].values) == (3, 1, 6)
    assert (by_name["ct"].patients, by_name["ct"].found) == (0, 0)
    tasks = {t.name: t for t in report.tasks}
    assert tasks["os"].counts == {"event": 15, "censored": 15}
    assert tasks["idh"].counts == {"WT": 20, "MUT": 10}
    assert tasks["os"].main
    assert report.can_run
    assert report.exit_code == ExitCode.DONE
    assert any("modality ct: the site has none of its columns" in w for w in report.warnings)
    assert any("modality ct" in w and "table 'ct', which site.toml does not name" in w for w in report.warnings)
    assert any("modality clinical: the site lacks kps" in w for w in report.warnings)
    assert "The study can run here." in printed(report)


@pytest.mark.parametrize(
    ("content", "tasks", "expected"),
    [
        (patients(30, event=0), {"os": OS}, "task os: nobody has an event"),
        (patients(30, event=1), {"os": OS}, "task os: everybody has an event"),
        (patients(30, idh="WT"), {"idh": IDH}, "task idh: all patients with a label are of one class, WT"),
        (patients(20), {"idh": IDH}, "task idh: rare classes, fewer than 10 patients: MUT (7)"),
        (patients(30, idh="NA"), {"os": OS, "idh": IDH}, "task idh: nobody has this label here"),
        (patients(30) + "P77,50,,1,WT,yes\n", {"os": OS, "idh": IDH}, "task os: 1 patients have only one of"),
        (patients(30).replace("idh", "other"), {"os": OS, "idh": IDH}, "task idh: the site has no idh"),
    ],
)
def test_a_site_that_can_run_but_should_be_looked_at(
    tmp_path: Path, content: str, tasks: dict[str, Any], expected: str
) -> None:
    report = check_study(tmp_path, site_of(tmp_path, content), plan_of(tasks))
    assert any(w.startswith(expected) for w in report.warnings), report.warnings
    assert report.exit_code == ExitCode.DONE


def test_too_few_patients_are_refused_by_policy(tmp_path: Path) -> None:
    report = check_study(tmp_path, site_of(tmp_path, patients(9)), plan_of())
    assert report.why_not == ("9 patients can take part; the site's policy asks for at least 10",)
    assert report.exit_code == ExitCode.REFUSED


@pytest.mark.parametrize("consent", [{}, {"column": "consent", "value": "agreed"}])
def test_nobody_consented(tmp_path: Path, consent: dict[str, str]) -> None:
    report = check_study(tmp_path, site_of(tmp_path, patients(30), consent), plan_of())
    assert (report.may_enter, report.counted, report.usable) == (0, 30, 30)
    assert len(report.why_not) == 1
    assert "nobody may enter" in report.why_not[0]
    assert report.exit_code == ExitCode.REFUSED
    assert "Nobody may enter, so the numbers below count everybody in the files." in printed(report)


def test_only_those_who_consented_are_counted(tmp_path: Path) -> None:
    site = site_of(tmp_path, patients(30), {"column": "consent", "value": "yes"})
    report = check_study(tmp_path, site, plan_of())
    assert (report.patients, report.may_enter, report.counted, report.usable) == (30, 15, 15, 15)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (patients(30).replace("days", "dayz"), "no table has the column 'days', the label of"),
        (patients(30) + "P77,old,5,1,WT,yes\n", "row 32, column age: expected a number"),
        (patients(30) + "P77,600,5,1,WT,yes\n", "row 32, column age: expected from 0 to 120 years"),
        (patients(30) + "P77,inf,5,1,WT,yes\n", "row 32, column age: expected from 0 to 120 years, found an inf"),
        (patients(30) + "P7,60,5,1,WT,yes\n", "row 32, column patient_id: the same patient id as in row 9"),
        (patients(30) + "P77,60\n", "row 32: expected 6 cells"),
    ],
)
def test_wrong_files_are_in_the_report(tmp_path: Path, content: str, expected: str) -> None:
    report = check_study(tmp_path, site_of(tmp_path, content), plan_of())
    assert len(report.problems) == 1
    assert expected in report.problems[0]
    assert report.exit_code == ExitCode.INPUT
    assert not report.can_run
    assert expected in printed(report)


def test_a_consent_column_that_is_not_there_is_a_wrong_file(tmp_path: Path) -> None:
    site = site_of(tmp_path, patients(30), {"column": "agreed", "value": "yes"})
    report = check_study(tmp_path, site, plan_of())
    assert report.exit_code == ExitCode.INPUT
    assert any("consent.column: 'agreed' is not a column of any table" in p for p in report.problems)


def test_an_unreadable_folder_has_no_report(tmp_path: Path) -> None:
    site = site_of(tmp_path, patients(30))
    for call in (lambda f: check_study(f, site, plan_of()), lambda f: inventory(f, site)):
        with pytest.raises(DataError, match="cannot be read as a folder") as caught:
            call(tmp_path / "nowhere")
        assert caught.value.exit_code == ExitCode.INPUT


def test_an_inventory_needs_no_study(tmp_path: Path) -> None:
    (tmp_path / "genes.csv").write_text("patient_id,a\nX1,1\nX2,\n", encoding="utf-8")
    rename = {"rename": {"gone": "kps"}, "units": {"height": "cm"}}
    found = inventory(tmp_path, site_of(tmp_path, patients(3), {}, **rename))
    assert found.patients == 5
    assert found.may_enter == 0
    assert [(t.name, t.patients, t.columns, t.missing) for t in found.tables] == [
        ("clinical", 3, 5, 0),
        ("genes", 2, 1, 1),
    ]
    assert "nobody may enter" in found.consent
    for expected in ("becomes 'kps'", "no column 'height'", "none of its patients is in another table"):
        assert any(expected in w for w in found.warnings)
    console = Console(width=160, file=io.StringIO())
    show_inventory(console, found)


SCORES = st.lists(st.integers(0, 5), min_size=4, max_size=40)


@settings(max_examples=50)
@given(scores=SCORES, data=st.data())
def test_auc_is_that_of_scikit_learn(scores: list[int], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    labels[0], labels[1] = True, False
    ours = auc(np.array(scores, dtype=np.float64), np.array(labels))
    assert ours == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@settings(max_examples=50)
@given(scores=SCORES, data=st.data())
def test_concordance_is_that_of_scikit_survival(scores: list[int], data: st.DataObject) -> None:
    n = len(scores)
    days = np.array(data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)), dtype=np.float64)
    event = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    days[:2], event[0] = (0, 9), True
    risk = np.array(scores, dtype=np.float64)
    theirs = concordance_index_censored(event, days, risk)[0]
    assert concordance(risk, np.column_stack([days, event])) == pytest.approx(theirs, abs=1e-12)


def test_giveaways_of_a_class() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, -1], [20, 20, 5])
    truth = labels.astype(np.float64)
    values = np.column_stack(
        [truth, -truth, rng.normal(size=45), np.where(np.arange(45) % 2, truth, np.nan), np.full(45, 3.0)]
    )
    names = ("same", "mirror", "noise", "half", "constant")
    task = ClassificationTask(kind="classification", label="l", classes=("a", "b"))
    assert giveaways(task, labels, names, values) == ("same", "mirror", "half")
    few = np.repeat([0, 1], [36, 9])
    assert giveaways(task, few, ("same",), few.astype(np.float64)[:, None]) == ()
    three = ClassificationTask(kind="classification", label="l", classes=("a", "b", "c"))
    labels = np.repeat([0, 1, 2], 15)
    assert giveaways(three, labels, ("middle",), (labels == 1).astype(np.float64)[:, None]) == ("middle",)


def test_giveaways_of_a_survival() -> None:
    rng = np.random.default_rng(2)
    n = 1500
    days = rng.exponential(1000, n)
    labels = np.column_stack([days, rng.integers(0, 2, n)])
    gapped = np.where(rng.random(n) < 0.5, days, np.nan)
    values = np.column_stack([days, -days, rng.normal(size=n), gapped])
    task = SurvivalTask(kind="survival", time="t", event="e", edges=(0, 1, 2), horizon=1)
    assert giveaways(task, labels, ("days", "speed", "noise", "gapped"), values) == ("days", "speed", "gapped")
    labels[9:, 1] = 0
    assert giveaways(task, labels, ("days",), values[:, :1]) == ()


def test_a_feature_that_gives_the_label_away_is_named(tmp_path: Path) -> None:
    lines = patients(60).splitlines()
    idh = [line.split(",")[4] == "MUT" for line in lines[1:]]
    content = "\n".join([f"{lines[0]},sneaky"] + [f"{line},{int(m)}" for line, m in zip(lines[1:], idh, strict=True)])
    clinical = {"columns": {**AGE["columns"], "sneaky": {"kind": "numeric"}}}
    report = check_study(tmp_path, site_of(tmp_path, content), plan_of({"idh": IDH}, clinical=clinical))
    told = [w for w in report.warnings if "away" in w]
    assert len(told) == 1
    assert told[0].startswith("modality clinical: sneaky alone nearly gives the label of task idh away; is it")


@pytest.mark.skipif(not GLIOMA.exists(), reason="../shared/data/glioma is not beside the project")
def test_a_real_hospital() -> None:
    tables = {t: {"file": f"{t}.csv"} for t in ("clinical", "molecular", "mutations", "radiomics")}
    folder = GLIOMA / "henry-ford"
    site = settings_from_study({"tables": tables, "consent": BASIS}, folder)
    plan = plan_of(
        {
            "os": OS | {"time": "os_days", "event": "os_event"},
            "idh": IDH | {"label": "IDH_STATUS", "classes": ["WT", "Mutant"]},
        },
        clinical=AGE,
        mutations={"patterns": ["{gene}_mut"]},
        radiomics={"patterns": ["*"], "table": "radiomics"},
    )
    report = check_study(folder, site, plan)
    assert report.can_run
    assert (report.patients, report.usable) == (243, 241)
    assert {t.name: t.counts for t in report.tasks}["os"] == {"event": 172, "censored": 69}
    assert any("IDH1_mut alone nearly gives the label of task idh away" in w for w in report.warnings)
    assert "TCGA-" not in printed(report)
