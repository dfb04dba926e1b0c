"""`oncofed-simulate audit`: what a private study promises, and what attacks on it find; each beside a control without privacy.

canaries         1,000 of them through the whole path, by a Gaussian auditor and in one run; noise of sums; inclusions
reconstruction   records out of updates, masked uploads and sums, under honest models and a malicious one
membership       likelihood ratios over shadow runs
differencing     statistics of two studies whose patients differ in one
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oncofed_client.session import training_set
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import no_sums, prepare, unite
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.audit_canaries import joined
from oncofed_simulations.audit_claims import CANARIES, audit_canaries
from oncofed_simulations.audit_differencing import audit_differencing
from oncofed_simulations.audit_inclusion import audit_inclusion
from oncofed_simulations.audit_membership import audit_membership
from oncofed_simulations.audit_page import page
from oncofed_simulations.audit_path import attacked_plan, open_sites
from oncofed_simulations.audit_reconstruction import audit_reconstruction
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["ATTACKS", "AuditOptions", "audit", "audit_lines"]

ATTACKS = ("canaries", "reconstruction", "membership", "differencing")
PRODUCTS = ("audit.json", "audit.html")


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What the command line says beside the study.

    Attributes:
        sites: folder of the hospitals; without it, those that the study invents.
        announce: called with what is being done.
    """

    sites: Path | None
    out: Path
    seed: int = 0
    canaries: int = CANARIES
    attacks: tuple[str, ...] = ATTACKS
    command: str = ""
    announce: Callable[[str], None] = lambda what: None


def audit(plan: Plan, options: AuditOptions) -> dict[str, Any]:
    """Attack a private study and write `audit.json` and `audit.html`.

    Returns:
        What `audit.json` holds; see docs/audit.md.

    Raises:
        ConfigError: the study has no privacy, reads images or has local layers, or `out` holds something else.
    """
    started, attacked = time.monotonic(), attacked_plan(plan)
    unknown = sorted(set(options.attacks) - set(ATTACKS))
    if unknown or not options.attacks:
        raise ConfigError(f"--attacks {','.join(options.attacks)}: expected some of {','.join(ATTACKS)}")
    work, folder = _claimed(plan, options)
    result: dict[str, Any] = {
        "study": plan.study.name, "plan_hash": plan.hash, "attacked_plan_hash": attacked.hash, "command": options.command,
        "noise": plan.privacy.noise, "seed": options.seed,
    }  # fmt: skip
    try:
        for name in ATTACKS:
            if name in options.attacks:
                options.announce(name)
                own = plan if name == "differencing" else attacked
                result[name] = _ATTACKS[name](own, folder, work, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result["wrong"] = _wrong(result)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_whole(options.out / "audit.html", page(result).encode())
    write_whole(options.out / "audit.json", dump_json(result))
    return result


def _claimed(plan: Plan, options: AuditOptions) -> tuple[Path, Path]:
    """A folder to work in, and the hospitals' folder; what an earlier audit left goes."""
    out = options.out
    if out.exists() and any(out.iterdir()) and not (out / "plan.json").exists():
        raise ConfigError(f"{out}: is not empty and is not the output of an earlier audit; choose another folder")
    for name in PRODUCTS:
        (out / name).unlink(missing_ok=True)
    write_whole(out / "plan.json", dump_json({"plan_hash": plan.hash, "audit": True}))
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    if options.sites is not None:
        site_folders(options.sites)
        return work, options.sites
    if plan.simulation.cohort is None:
        raise ConfigError("the study has no [simulation.cohort]; say where the hospitals are with --sites DIR")
    write_cohort(work / "cohort", **read_settings(plan.simulation.cohort).model_dump())
    return work, work / "cohort"


def _canaries(plan: Plan, folder: Path, work: Path, options: AuditOptions) -> dict[str, Any]:
    found, heard = audit_canaries(plan, folder, work / "run", seed=options.seed, canaries=options.canaries)
    inclusion = audit_inclusion(plan, heard.preparation, seed=options.seed)
    facts = found.facts()
    facts["checks"]["inclusion"] = inclusion.facts()
    facts["wrong"] = [*found.wrong, *(["inclusion"] if inclusion.wrong else [])]
    return facts


def _reconstruction(plan: Plan, folder: Path, work: Path, options: AuditOptions) -> list[dict[str, Any]]:
    return audit_reconstruction(plan, folder, work / "run", seed=options.seed)


def _membership(plan: Plan, folder: Path, work: Path, options: AuditOptions) -> dict[str, Any]:
    trial = Trial(seed=options.seed)
    sites = open_sites(plan, folder, work / "run" / "sites", only=plan.privacy.patients)  # type: ignore[union-attr]
    cohorts = {n: s.source.cohort(plan) for n, s in sites.items()}
    columns = unite(plan, [c.columns for c in cohorts.values()])
    preparation = prepare(plan, columns, no_sums(plan, columns))
    parts = [training_set(plan, preparation, c, sites[n].source.split(plan, c, trial) == 0) for n, c in cohorts.items()]
    return audit_membership(plan, preparation, joined(parts), seed=options.seed)


def _differencing(plan: Plan, folder: Path, work: Path, options: AuditOptions) -> list[dict[str, Any]]:
    return audit_differencing(plan, folder, work / "run", seed=options.seed)


_ATTACKS: dict[str, Callable[[Plan, Path, Path, AuditOptions], Any]] = {
    "canaries": _canaries,
    "reconstruction": _reconstruction,
    "membership": _membership,
    "differencing": _differencing,
}


def _wrong(result: dict[str, Any]) -> list[str]:
    """What is not as promised, in words."""
    alarms = result.get("membership", {}).get("private", {}).get("alarms", [])
    return [
        *(f"canaries: {name}" for name in result.get("canaries", {}).get("wrong", [])),
        *(
            f"reconstruction: {r['found']} records from {r['view']}, batch {r['batch']}, {r['model']}"
            for r in result.get("reconstruction", [])
            if r["found"] and not r["control"]
        ),
        *(
            f"membership: more than the claim allows at {a['false']:g} false alarms"
            for a in alarms
            if a["low"] > a["most"]
        ),
        *(f"differencing: {r['what']}" for r in result.get("differencing", []) if r["wrong"]),
    ]


def audit_lines(result: dict[str, Any]) -> list[str]:
    """The audit in a few lines, for a terminal."""
    lines = []
    if "canaries" in result:
        c = result["canaries"]
        lines.append(
            f"epsilon: claimed {c['claim']['epsilon']:.2f}; {c['canaries']} canaries prove {c['gaussian']['epsilon']:.2f} "
            f"(99.9 %, Gaussian), {c['one_run']:.2f} (95 %, one run)"
        )
    if "reconstruction" in result:
        for control, name in ((True, "without noise"), (False, "with noise or masks")):
            rows = [r for r in result["reconstruction"] if r["control"] is control]
            found, records = sum(r["found"] for r in rows), sum(r["records"] for r in rows)
            lines.append(f"records recovered {name}: {found} of {records}")
    if "membership" in result:
        m = result["membership"]
        lines.append(f"membership, AUC: {m['private']['auc']:.3f} with privacy, {m['control']['auc']:.3f} without")
    if "differencing" in result:
        lines += [
            f"differencing, {r['what']}: "
            + (f"{100 * r['found']:.0f} % of what he is" if r["answered"] else f"refused ({r['code']})")
            + (", which no epsilon covers" if r.get("uncharged") else "")
            for r in result["differencing"]
            if "answered" in r
        ]
    return [*lines, "not as promised: " + ("; ".join(result["wrong"]) or "nothing")]
