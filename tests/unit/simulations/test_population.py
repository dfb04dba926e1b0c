"""What the planted signal promises: plain models find it in every modality, and most in all."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from oncofed_simulations.folders import site_folders
from oncofed_simulations.population import COLUMNS, MODALITIES, PLANTED, STAGES, TREATMENTS
from oncofed_simulations.synthetic import write_cohort

A_03 = {"sites": 6, "patients": 420}
Table = dict[str, dict[str, str]]


def read(path: Path) -> Table:
    """Read a table by patient id; ids must be unique."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = {row["patient_id"]: row for row in rows}
    assert len(table) == len(rows)
    return table


class Pool:
    """Everybody with consent, each modality as scaled numbers with 0 where missing."""

    def __init__(self, root: Path) -> None:
        tables: dict[str, Table] = {m: {} for m in MODALITIES}
        self.site: dict[str, str] = {}
        for folder in site_folders(root):
            for modality in MODALITIES:
                path = folder / f"{modality}.csv"
                tables[modality] |= read(path) if path.exists() else {}
            self.site |= dict.fromkeys(read(folder / "clinical.csv"), folder.name)
        clinical = tables["clinical"]
        self.ids = sorted(i for i, row in clinical.items() if row["consent"] == "yes")
        rows = [clinical[i] for i in self.ids]
        self.died = np.array([row["os_event"] == "1" for row in rows])
        self.days = np.array([float(row["os_days"]) for row in rows])
        self.labelled = np.array([row["response"] != "" for row in rows])
        self.responded = np.array([row["response"] == "responder" for row in rows])
        self.sites = np.array([self.site[i] for i in self.ids])
        self.values = {"age": scaled([[row["age"]] for row in rows])}
        one_hot = [[str(float(row["treatment"] == t)) for t in TREATMENTS] for row in rows]
        numbers = [
            [r["age"], str(STAGES.index(r["stage"])) if r["stage"] else "", r["dose_gy"], *hot]
            for r, hot in zip(rows, one_hot, strict=True)
        ]
        self.values["clinical"] = scaled(numbers)
        for modality, columns in COLUMNS.items():
            nothing = dict.fromkeys(columns, "")
            found = [tables[modality].get(i, nothing) for i in self.ids]
            self.values[modality] = scaled([[row[c] for c in columns] for row in found])
        self.values["all"] = np.hstack([self.values[m] for m in MODALITIES])

    def survival(self, name: str) -> float:
        """C-index out of fold of a ridge Cox regression."""
        x, risk = self.values[name], np.zeros(len(self.ids))
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, self.died):
            risk[test] = self.cox(name, train).predict(x[test])
        return float(concordance_index_censored(self.died, self.days, risk)[0])

    def response(self, name: str) -> float:
        """AUC out of fold of a ridge logistic regression."""
        x, y = self.values[name][self.labelled], self.responded[self.labelled]
        model = LogisticRegression(C=0.02)
        return float(roc_auc_score(y, cross_val_predict(model, x, y, method="decision_function")))

    def alone(self) -> float:
        """Mean C-index, on the other sites' patients, of a model of one site."""
        scores = []
        for site in np.unique(self.sites):
            here = self.sites == site
            risk = self.cox("all", np.flatnonzero(here)).predict(self.values["all"][~here])
            scores.append(concordance_index_censored(self.died[~here], self.days[~here], risk)[0])
        return float(np.mean(scores))

    def cox(self, name: str, train: NDArray[np.intp]) -> CoxPHSurvivalAnalysis:
        """Fit a ridge Cox regression on some patients."""
        outcome = Surv.from_arrays(self.died[train], self.days[train])
        return CoxPHSurvivalAnalysis(alpha=60.0).fit(self.values[name][train], outcome)


def scaled(rows: list[list[str]]) -> NDArray[np.float64]:
    """Texts to z-scores within +-5, 0 where missing."""
    x = np.array([[float(v) if v else np.nan for v in row] for row in rows])
    x = (x - np.nanmean(x, axis=0)) / np.nanstd(x, axis=0)
    return np.asarray(np.nan_to_num(np.clip(x, -5, 5)), dtype=np.float64)


@pytest.mark.parametrize("seed", [2024, 7])
def test_every_modality_says_something_and_all_together_clearly_more(tmp_path: Path, seed: int) -> None:
    write_cohort(tmp_path / "out", **A_03, seed=seed)
    pool = Pool(tmp_path / "out")
    assert 0.5 < pool.died.mean() < 0.75
    assert 0.4 < pool.responded[pool.labelled].mean() < 0.6
    for score, everything in ((pool.survival, 0.73), (pool.response, 0.74)):
        single = {m: score(m) for m in MODALITIES}
        assert min(single.values()) > 0.53, single
        together = score("all")
        assert together > everything
        assert together > max(single.values()) + 0.07
    assert 0.55 < pool.survival("age") < pool.survival("all") - 0.1
    assert pool.survival("all") > pool.alone() + 0.03


def test_without_signal_nothing_is_found(tmp_path: Path) -> None:
    write_cohort(tmp_path / "out", **A_03, seed=3, signal=0.0)
    pool = Pool(tmp_path / "out")
    assert pool.survival("all") == pytest.approx(0.5, abs=0.06)
    assert pool.response("all") == pytest.approx(0.5, abs=0.08)


def test_the_planted_columns_are_the_ones_that_carry_it(tmp_path: Path) -> None:
    write_cohort(tmp_path / "out", sites=1, patients=1500, seed=5, gaps=0.0, site_effect=0.0)
    pool = Pool(tmp_path / "out")
    for modality, columns in COLUMNS.items():
        strength = np.abs([np.corrcoef(x, np.log(pool.days))[0, 1] for x in pool.values[modality].T])
        planted = np.isin(columns, PLANTED[modality]["survival"])
        assert strength[planted].min() > strength[~planted].max()
