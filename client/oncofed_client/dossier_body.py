"""What a site says to an outsider about one study: purpose, decisions, policy, what left, epsilon, consents, versions.

It is made of what the site may say: numbers of patients are rounded and withheld below the policy's minimum, and no file, row or
value is named.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from oncofed_client.approvals import STUDIES, Approval
from oncofed_client.budget import budget_policy
from oncofed_client.cohort import read_cohort
from oncofed_client.counting import rounded_counts
from oncofed_client.identity import public_half, raw_public
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_report import ledger_report
from oncofed_client.ledger_verify import read_account
from oncofed_client.model_files import fetch_model, is_delivered
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.receipts import RECEIPTS_FILE, Receipt, read_receipts
from oncofed_client.settings import SiteSettings
from oncofed_client.whereabouts import SitePlace
from oncofed_client.words import task_text
from oncofed_shared.errors import OncofedError
from oncofed_shared.files import read_bounded
from oncofed_shared.plan import NoPrivacy
from oncofed_shared.releases import uncharged

__all__ = ["FORMAT", "dossier_body", "kinds_of"]

FORMAT = 1
_PACKAGES = ("oncofed", "flwr", "torch", "opacus", "cryptography", "numpy")


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def kinds_of(receipts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What left, by kind of message: how many, how many bytes, how many charged steps."""
    names = [f"{r['kind']}: {r['code']}" if r["code"] else str(r["kind"]) for r in receipts]
    number, size, steps = Counter(names), Counter[str](), Counter[str]()
    for name, receipt in zip(names, receipts, strict=True):
        size[name] += receipt["size"]
        steps[name] += receipt["steps"]
    return [{"kind": n, "number": number[n], "bytes": size[n], "charged_steps": steps[n]} for n in sorted(number)]


def _left(found: Sequence[Receipt]) -> dict[str, Any]:
    listed = [{k: v for k, v in asdict(r).items() if k != "study_id"} for r in found]
    return {"kinds": kinds_of(listed), "receipts": listed}


def _spent(approval: Approval, place: SitePlace, settings: SiteSettings) -> dict[str, Any] | None:
    """What the ledger says of this study and of all together; None without privacy, or before its run began."""
    path, plan = place.state / LEDGER_FILE, approval.study.plan
    if isinstance(plan.privacy, NoPrivacy) or not path.exists():
        return None
    account = read_account(path, public_half(place.state))
    report = ledger_report(account, budget_policy(settings.policy))
    own = [asdict(s) for s in report.studies if s.plan.split("/")[0] == plan.hash]
    spent: dict[str, Any] = _finite(
        {"study": own, "all_studies": asdict(report.totals), "entries": report.entries, "epoch": report.epoch}
    )
    return spent


def _finite(value: Any) -> Any:
    """JSON has no infinity: an epsilon without a bound is null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value in {float("inf"), float("-inf")} else value


def _consent(approval: Approval, place: SitePlace, settings: SiteSettings) -> dict[str, Any]:
    """How consent is stated, and about how many gave it now."""
    stated = settings.consent
    form = "each patient" if stated.column is not None else "a basis for all" if stated.basis is not None else "none"
    words = {k: getattr(stated, k) for k in ("basis", "reference", "approved_by")}
    counts: dict[str, int] = {}
    why = ""
    try:
        if place.data is not None:
            cache = existing_cache(place.state)
            cohort = read_cohort(place.data, settings, approval.study.plan, cache)
            counts = rounded_counts(approval.study.plan, cohort, minimum=settings.policy.minimum_cohort)
    except OncofedError as error:
        # Its text names files and rows, which are nobody else's business.
        why = error.code
    return {
        "form": form,
        **words,
        "rounded_to": 10,
        "minimum": settings.policy.minimum_cohort,
        "counts": counts,
        "why": why,
    }


def _study(approval: Approval) -> dict[str, Any]:
    study, plan = approval.study, approval.study.plan
    return {
        "id": study.id,
        "name": study.name,
        "purpose": plan.study.purpose,
        "plan_hash": plan.hash,
        "tasks": {name: task_text(plan.tasks[name]) for name in plan.task_names},
        "modalities": sorted(plan.modalities),
        "privacy": json.loads(plan.canonical)["privacy"],
        "uncharged": list(uncharged(plan)),
        "roster": {s: k.hex() for s, k in study.roster.items()},
        "plan_key": study.plan_key.hex(),
        "step_key": study.step_key.hex(),
        "created": study.created,
        "expires": study.expires,
    }


def dossier_body(approval: Approval, place: SitePlace, *, now: float) -> dict[str, Any]:
    """Everything, as JSON values.

    Args:
        approval: the study, and what was decided about it here.
        place: the site.
        now: seconds since 1970.

    Guarantees:
        - No patient, no file, no row; counts are rounded, and those of fewer patients than the policy's minimum are absent.

    Raises:
        ConfigError: `site.toml` is absent or wrong.
        DataError: ledger, receipts or decisions are damaged.
    """
    settings, public = place.settings(), public_half(place.state)
    study = approval.study
    receipts = [r for r in read_receipts(place.state / RECEIPTS_FILE, public) if r.study_id == study.id]
    decided = json.loads(read_bounded(place.state / STUDIES / f"{study.id}.decisions.json"))
    model = fetch_model(place.state, study, out=None) if is_delivered(place.state, study.id) else None
    return {
        "format": FORMAT,
        "site": settings.site.name,
        "identity": raw_public(public).hex(),
        "made": now,
        "study": _study(approval),
        "signed_study": json.loads(study.content),
        "decisions": [asdict(d) for d in approval.decided],
        "signed_decisions": decided,
        "policy": settings.policy.model_dump(mode="json"),
        "consent": _consent(approval, place, settings),
        "left": _left(receipts),
        "spent": _spent(approval, place, settings),
        "model": model,
        "versions": _versions(),
    }
