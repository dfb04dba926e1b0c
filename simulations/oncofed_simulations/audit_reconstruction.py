"""Whether an aggregator can read a patient's record off what it gets: single updates, masked uploads and sums."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_client.source import Source, keep_rows
from oncofed_shared import secagg
from oncofed_shared.features import no_sums, prepare, unite
from oncofed_shared.messages import Contribution, Trial, from_bytes
from oncofed_shared.plan import ConsortiumPrivacy, Plan, SurvivalTask, parse
from oncofed_simulations.audit_gradients import Attacker
from oncofed_simulations.audit_inversion import Recovery, imprint, records_of, recovered, rows_of
from oncofed_simulations.audit_path import Heard, Planted, Release, hear, open_sites, with_source

__all__ = ["BATCHES", "audit_reconstruction"]

Floats = NDArray[np.float64]
Maker = Callable[[Attacker, Floats], Planted]
BATCHES = (1, 8, 32)
PLAIN_UPDATE, PLAIN_SUM = "single update, no noise", "sum of all sites, no noise"
"""Controls: what is there to be seen without privacy, and what a secure sum alone would leave."""
NOISED_UPDATE, MASKED, NOISED_SUM = "single update, noised", "masked upload of a site", "sum of all sites, noised"
HONEST, TELLING, IMPRINT = "honest", "honest, hazards = free", "imprint"
MINIMUM_SITES = 3


class _Few:
    """A hospital with a few training patients and no others."""

    def __init__(self, source: Source, plan: Plan, trial: Trial, count: int) -> None:
        own = source.cohort(plan)
        rows = np.zeros(len(own.patients), dtype=bool)
        rows[np.flatnonzero(source.split(plan, own, trial) == 0)[:count]] = True
        self.name = source.name
        self._cohort = keep_rows(own, rows)

    def cohort(self, plan: Plan) -> Cohort:
        """The few."""
        del plan
        return self._cohort

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """They all train."""
        del plan, trial
        return np.zeros(len(cohort.patients), dtype=np.int64)


def _plans(plan: Plan) -> dict[str, Plan]:
    """The plan without noise, with each site's, and with the consortium's where it has enough sites; the same epsilon."""
    content = plan.model_dump(mode="json")
    kept = ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")
    common = {k: content["privacy"][k] for k in kept}
    kinds: dict[str, dict[str, Any]] = {"none": {"noise": "none"}, "site": common | {"noise": "site"}}
    if len(common["patients"]) >= MINIMUM_SITES:
        kinds["consortium"] = common | {"noise": "consortium", "spare_steps": 0}
    if isinstance(plan.privacy, ConsortiumPrivacy):
        kinds["consortium"] = content["privacy"]
    return {name: parse(content | {"privacy": privacy}) for name, privacy in kinds.items()}


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A run of one kind of noise with a few patients at each site.

    Attributes:
        records: per site (patients, columns), as the network reads them.
        uploads: per site, what it handed over masked, as if it were a sum.
    """

    attacker: Attacker
    heard: Heard
    records: dict[str, Floats]
    uploads: dict[str, list[Release]]

    def views(self, kind: str) -> dict[str, list[tuple[Floats, list[Release]]]]:
        """What there is to attack: the records that are in it, and its releases."""
        everybody = np.concatenate(list(self.records.values()))
        by_site = {s: [r for r in self.heard.releases if r.sites == (s,)] for s in self.records}
        if kind == "consortium":
            masked = [(self.records[s], up) for s, up in self.uploads.items()]
            return {MASKED: masked, NOISED_SUM: [(everybody, list(self.heard.releases))]}
        single = [(self.records[s], own) for s, own in by_site.items()]
        if kind == "site":
            return {NOISED_UPDATE: single}
        rounds = zip(*by_site.values(), strict=True)
        summed = [replace(each[0], total=np.sum([r.total for r in each], axis=0)) for each in rounds]
        return {PLAIN_UPDATE: single, PLAIN_SUM: [(everybody, summed)]}


def _scene(plan: Plan, sites: Mapping[str, Site], out: Path, trial: Trial, *, planted: Maker | None) -> _Scene:
    uploads: dict[str, list[Release]] = {name: [] for name in sites}

    def tap(direction: str, site: str, content: bytes) -> None:
        message = from_bytes(content) if direction == "up" and secure else None
        if isinstance(message, Contribution):
            words = secagg.from_bytes(message.content).masked  # type: ignore[union-attr] # a contribution holds an upload
            signed = words.view(np.int32 if words.dtype.itemsize == 4 else np.int64).astype(np.float64)
            uploads[site].append(Release(round=len(uploads[site]) + 1, sites=(site,), parameters=signed, total=signed))

    secure = isinstance(plan.privacy, ConsortiumPrivacy)
    cohorts = {n: s.source.cohort(plan) for n, s in sites.items()}
    columns = unite(plan, [c.columns for c in cohorts.values()])
    preparation = prepare(plan, columns, no_sums(plan, columns))
    attacker = Attacker.of(plan, preparation)
    records = {
        n: records_of(attacker, training_set(plan, preparation, cohort, slice(None))) for n, cohort in cohorts.items()
    }
    model = None if planted is None else planted(attacker, np.concatenate(list(records.values())))
    heard = hear(plan, sites, trial, out=out, planted=model, tap=tap)
    return _Scene(attacker=attacker, heard=heard, records=records, uploads=uploads)


def audit_reconstruction(plan: Plan, folder: Path, out: Path, *, seed: int) -> list[dict[str, Any]]:
    """Attack a study with 1, 8 and 32 training patients at each site, under an honest model and under a malicious one.

    Where survival has one score per patient, an honest model that gives more away is attacked too.

    An attacker has every round of the study, and knows the penalties and, for his malicious model, how patients lie along its
    direction.

    Args:
        plan: of `attacked_plan`.

    Returns:
        A row for each batch, model and view: whether it is a `control`, `records`, how many were `found`, and `closest`, the mean
        cosine of the best guess.
    """
    if not plan.model.linear_path:
        return []
    trial, rows = Trial(seed=seed), []
    # Read once: all these plans have the same modalities and tasks.
    known = open_sites(plan, folder, out / "sites", only=plan.privacy.patients)  # type: ignore[union-attr]
    for batch, model in product(BATCHES, _models(plan)):
        planted = partial(_steps, rounds=plan.training.rounds, seed=seed) if model == IMPRINT else None
        for kind, own in _plans(_telling(plan) if model == TELLING else plan).items():
            shutil.rmtree(out, ignore_errors=True)
            roster = open_sites(own, folder, out / "sites", only=plan.privacy.patients)  # type: ignore[union-attr]
            sites = {n: with_source(s, _Few(known[n].source, plan, trial, batch)) for n, s in roster.items()}
            scene = _scene(own, sites, out, trial, planted=planted)
            for view, attacked in scene.views(kind).items():
                found = [recovered(records, rows_of(scene.attacker, heard)) for records, heard in attacked]
                rows.append(
                    {
                        "batch": batch,
                        "model": model,
                        "view": view,
                        "control": view in {PLAIN_UPDATE, PLAIN_SUM},
                        **_together(found),
                    }
                )
    shutil.rmtree(out, ignore_errors=True)
    return rows


def _models(plan: Plan) -> tuple[str, ...]:
    survival = any(isinstance(task, SurvivalTask) for task in plan.tasks.values())
    return (HONEST, *((TELLING,) if survival and plan.model.hazards == "proportional" else ()), IMPRINT)


def _telling(plan: Plan) -> Plan:
    """The plan with a logit of its own for each interval of survival: differences between them part patients by their follow-up."""
    return parse(plan.model_dump(mode="json") | {"model": plan.model.model_dump(mode="json") | {"hazards": "free"}})


def _steps(attacker: Attacker, everybody: Floats, *, rounds: int, seed: int) -> Planted:
    return imprint(attacker, everybody, rounds, seed=seed)


def _together(found: list[Recovery]) -> dict[str, Any]:
    records = sum(f.records for f in found)
    return {
        "records": records,
        "found": sum(f.found for f in found),
        "closest": sum(f.closest * f.records for f in found) / records,
    }
