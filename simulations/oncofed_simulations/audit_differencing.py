"""Two studies whose patients differ in one: what the difference of their statistics says of him."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from oncofed_client.cohort import Cohort
from oncofed_client.integer_step import tables_share
from oncofed_client.randomness import Randomness
from oncofed_client.site import Site
from oncofed_client.source import Source, keep_rows
from oncofed_shared.consortium import TablesMechanism, server_counts
from oncofed_shared.features import network_columns, no_sums, prepare, unite
from oncofed_shared.messages import (
    Columns,
    Evaluate,
    Head,
    Open,
    Refusal,
    Reply,
    Request,
    Summarise,
    Summary,
    Tables,
    Trial,
)
from oncofed_shared.network import build
from oncofed_shared.noised_tables import coarse_entries, coarse_size, fixed_grid
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy, parse
from oncofed_shared.scoring import dense
from oncofed_simulations.audit_membership import most_true_alarms
from oncofed_simulations.audit_path import open_sites, with_source, without_ledger
from oncofed_simulations.audit_statistics import rate_interval

__all__ = ["audit_differencing"]

PAIRS = 400
"""Pairs of releases of noised tables; in half of them the patient has left before the second."""
FALSE = 0.1


class _Without:
    """A hospital that one patient has left, and his part is nobody's."""

    def __init__(self, source: Source, plan: Plan, trial: Trial, patient: int) -> None:
        own, parts = source.cohort(plan), source.split(plan, source.cohort(plan), trial)
        kept = np.arange(len(own.patients)) != patient
        self.name = source.name
        self._cohort = keep_rows(own, kept)
        self._parts: NDArray[np.int64] = parts[kept]

    def cohort(self, plan: Plan) -> Cohort:
        """Who is left."""
        del plan
        return self._cohort

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Parts as they were."""
        del plan, cohort, trial
        return self._parts


def audit_differencing(plan: Plan, folder: Path, out: Path, *, seed: int) -> list[dict[str, Any]]:
    """Ask for statistics of two studies, before and after a patient left, and take one from the other.

    Args:
        plan: the study's own.

    Returns:
        A row for each kind of statistics; `control` where it is without privacy, `wrong` where more is found than is promised.
        Sums of columns, and the tables of counts of test patients: whether they are `answered`, and what part is `found` of what
        he is. Noised tables, where there are sites enough: `true` alarms that he left at a rate of `false` ones, with an interval,
        and the `most` that their epsilon allows.
    """
    privacy, trial = plan.privacy, Trial(seed=seed)
    assert not isinstance(privacy, NoPrivacy)  # noqa: S101 - `attacked_plan` makes no other
    open_ = parse(plan.model_dump(mode="json") | {"privacy": {"noise": "none"}})
    rows: list[dict[str, Any]] = []
    for name, own, control in (("no privacy", open_, True), ("under the plan", plan, False)):
        sites = open_sites(own, folder, out / "sites", only=dict.fromkeys(list(privacy.patients), 0))
        columns = unite(own, [s.source.cohort(own).columns for s in sites.values()])
        asked = _Asked(plan=own, site=next(iter(sites.values())), trial=trial, columns=columns)
        sums, tables = asked.sums(), asked.tables()
        uncharged = isinstance(privacy, SitePrivacy) and privacy.release_tables
        rows.append({"what": f"sums of columns, {name}", "control": control, **sums})
        rows[-1]["wrong"] = sums["answered"] and not control
        rows.append({"what": f"tables of test patients, {name}", "control": control, **tables})
        # Released without a charge, the plan promises nothing of them; the report of a run says so too.
        rows[-1]["wrong"] = tables["answered"] and not control and not uncharged
        rows[-1]["uncharged"] = uncharged and not control
    noised = _tables_plan(plan)
    return [*rows, _tables(noised, seed)] if noised is not None else rows


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A site that is asked twice, with a patient and without him."""

    plan: Plan
    site: Site
    trial: Trial
    columns: Columns

    def _both(self, patient: int, requests: Sequence[Request]) -> tuple[Reply, Reply]:
        """The answers to the last request."""
        left = with_source(self.site, _Without(self.site.source, self.plan, self.trial, patient))
        first, second = ([s.handle(r) for r in requests][-1] for s in (without_ledger(self.site), without_ledger(left)))
        return first, second

    def _head(self, step: int) -> Head:
        return Head(session="differencing", step=step, attempt=0, plan_hash=self.plan.hash, trial=self.trial)

    def _first(self, part: int) -> int:
        cohort = self.site.source.cohort(self.plan)
        return int(np.flatnonzero(self.site.source.split(self.plan, cohort, self.trial) == part)[0])

    def sums(self) -> dict[str, Any]:
        """Sums of columns over training patients: the part of his values that are read off them."""
        patient = self._first(0)
        answers = self._both(patient, [Summarise(head=self._head(1), columns=self.columns)])
        before, after = answers
        if not (isinstance(before, Summary) and isinstance(after, Summary)):
            return _refused(answers)
        cohort = self.site.source.cohort(self.plan)
        own = {m: dict(zip(cohort.columns[m], cohort.values[m][patient], strict=True)) for m in self.columns}
        raw = [own[m].get(c, np.nan) for m in sorted(self.columns) for c in self.columns[m]]
        truth = np.array(raw, dtype=np.float64)
        guess = (before.sums - after.sums)[len(truth) : 2 * len(truth)]
        same = np.abs(guess - truth) <= 1e-6 * np.maximum(1.0, np.abs(truth))
        return {"answered": True, "code": None, "found": float(same[~np.isnan(truth)].mean())}

    def tables(self) -> dict[str, Any]:
        """Tables over test patients: whether his cells, and with them his outcome, are what differs."""
        preparation = prepare(self.plan, self.columns, no_sums(self.plan, self.columns))
        network = build(self.plan, network_columns(self.plan, preparation), seed=self.trial.seed)
        model = {n: p.detach().numpy().copy() for n, p in network.named.items()}
        requests: list[Request] = [
            Open(head=self._head(2), columns=preparation.columns, arrays=preparation.arrays()),
            Evaluate(head=self._head(3), part="test", subgroups=False, parameters=model),
        ]
        answers = self._both(self._first(2), requests)
        before, after = answers
        if not (isinstance(before, Tables) and isinstance(after, Tables)):
            return _refused(answers)
        lacking = dense(before.size, before.cells, before.counts) - dense(after.size, after.cells, after.counts)
        return {"answered": True, "code": None, "found": float(bool((lacking > 0).any()) and not (lacking < 0).any())}


def _refused(answers: Sequence[Reply]) -> dict[str, Any]:
    code = next((a.code for a in answers if isinstance(a, Refusal)), "")
    return {"answered": False, "code": code, "found": 0.0}


def _tables_plan(plan: Plan) -> Plan | None:
    """The plan with noised tables of counts at its own epsilon; None where there are too few sites for secure sums."""
    content = plan.model_dump(mode="json")
    privacy = content["privacy"]
    if not isinstance(plan.privacy, ConsortiumPrivacy):
        if len(privacy["patients"]) < 3:
            return None
        kept = ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")
        privacy = {k: privacy[k] for k in kept} | {"noise": "consortium"}
    return parse(content | {"privacy": privacy | {"score_epsilon": privacy["epsilon"]}})


def _tables(plan: Plan, seed: int) -> dict[str, Any]:
    """Two releases of noised tables of the same cohort, between which a patient left or did not."""
    cells, entries = coarse_size(plan, fixed_grid(plan)), coarse_entries(plan)
    mechanism = TablesMechanism.for_plan(plan, cells=cells, entries=entries)
    rng = np.random.default_rng((seed, 3))
    his = np.zeros(cells, dtype=np.int64)
    his[:entries] = 1
    others = [rng.integers(2, 10, size=cells) for _ in range(mechanism.sites)]
    known = plan.simulation.noise_seed

    def released(number: int, extra: NDArray[np.int64]) -> NDArray[np.float64]:
        total = np.zeros(cells, dtype=np.int64)
        for i, counts in enumerate(others):
            label = f"{known}|differencing|{seed}|{number}|{i}"
            random = Randomness.from_os() if known is None else Randomness.repeatable(label)
            total += tables_share(counts + extra * (i == 0), mechanism=mechanism, random=random)
        return server_counts(total, mechanism)

    gone = rng.random(PAIRS) < 0.5
    scores = np.array([(released(2 * i, his) - released(2 * i + 1, his * ~gone[i])) @ his for i in range(PAIRS)])
    threshold = np.quantile(scores[~gone], 1 - FALSE, method="higher")
    true = int((scores[gone] > threshold).sum())
    low, high = rate_interval(true, int(gone.sum()))
    epsilon = mechanism.epsilon()
    most = most_true_alarms(FALSE, epsilon=epsilon, delta=mechanism.delta)
    return {
        "what": "noised tables of test patients",
        "control": False,
        "wrong": low > most,
        "pairs": PAIRS,
        "auc": float(roc_auc_score(gone, scores)),
        "false": FALSE,
        "true": true / int(gone.sum()),
        "low": low,
        "high": high,
        "epsilon": epsilon,
        "most": most,
    }
