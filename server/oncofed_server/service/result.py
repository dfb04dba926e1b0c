"""`result.json` of a deployed study: what is known without ever having seen a patient."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from oncofed_server.certainty import certainty
from oncofed_server.results import arm_numbers, binning_errors, drawn
from oncofed_server.run_facts import curve, released_rows, site_rows, versions
from oncofed_server.run_state import State
from oncofed_server.spending import spending
from oncofed_shared.metrics import metric_names
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy
from oncofed_shared.releases import uncharged
from oncofed_shared.signed_study import SignedStudy

__all__ = ["deployed_result", "known_certainty"]

_WHY = {
    "pooled": "needs all patients in one place, which is what a deployed study avoids",
    "alone": "a site's own model stays at the site: nobody asked for it",
    "reference": "needs the patients' own values in one place",
}
_NO_TABLE = "no exact table leaves a site; see the released, noised scores"


def deployed_result(study: SignedStudy, state: State, *, seconds: float, command: str) -> dict[str, Any]:
    """What `result.json` holds, as after a simulation; what only a simulation knows is null, with the reason.

    Args:
        state: of the finished run.
        seconds: in which the study was driven.
    """
    plan, trial = study.plan, study.trial
    private = not isinstance(plan.privacy, NoPrivacy)
    spent = {s: spending(plan, s) for s in study.trainers if private}
    tables = dict(state.tables)
    numbers = arm_numbers(plan, [tables], study.trainers)
    return {
        "study": plan.study.name,
        "study_id": study.id,
        "purpose": plan.study.purpose,
        "plan_hash": plan.hash,
        "plan": plan.model_dump(mode="json", exclude={"simulation"}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "seeds": [trial.seed],
        "command": command,
        "seconds": round(seconds, 3),
        "bytes_up": state.cost.bytes_up,
        "bytes_down": state.cost.bytes_down,
        "rounds": curve(plan, trial, state),
        "uncharged": list(uncharged(plan, runs=1)),
        "released": released_rows(plan, state),
        "sites": site_rows(state, sites=study.trainers, externals=(), spent=spent),
        "excluded": [{"name": n, "why": w} for n, w in state.excluded.items()],
        "tasks": {
            task: {
                metric: _arms(numbers[task][metric], secure=isinstance(plan.privacy, ConsortiumPrivacy))
                for metric in metric_names(plan.tasks[task])
            }
            for task in plan.task_names
        },
        "certainty": known_certainty(study, state),
        "references": {},
        "binning_error": binning_errors(plan, tables, study.trainers),
        "figures": {t: {"federated": f} for t, f in drawn(plan, [tables], study.trainers).items()},
        "resplits": {},
        "folds": {},
    }


def known_certainty(study: SignedStudy, state: State) -> dict[str, Any]:
    """What the model's predictions have meant, as after a simulation: see `certainty`."""
    last = state.validation.get(study.plan.training.rounds)
    return certainty(study.plan, last, {s: state.tables[s] for s in study.trainers if s in state.tables})


def _arms(federated: dict[str, Any], *, secure: bool) -> dict[str, Any]:
    if secure and federated["overall"] is None:
        federated = federated | {"why": dict.fromkeys(federated.get("why", {}), _NO_TABLE) | {"overall": _NO_TABLE}}
    missing: dict[str, Any] = {
        arm: {"overall": None, "ci": None, "per_site": {}, "per_seed": [], "subgroups": {}, "why": {"overall": why}}
        for arm, why in _WHY.items()
    }
    return {"federated": federated} | missing
