"""From a study's TOML to a signed study: checks that need no network, then the plan key's signature."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import enrolled, newest_roster, publish_roster
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan
from oncofed_shared.roster import RosterEpoch
from oncofed_shared.signed_study import write_study

__all__ = ["EPOCH_DAYS", "STUDY_DAYS", "prepare"]

DAY = 86_400.0
EPOCH_DAYS = 30.0
"""How old the newest roster may be at a site: within it every site has heard of a revocation, or has stopped."""
STUDY_DAYS = 180.0


def prepare(
    folder: Folder,
    plan: Plan,
    plan_key: Ed25519PrivateKey,
    *,
    sites: Sequence[str],
    seed: int,
    fold: int,
    quorum: int | None,
    days: float,
    epoch_days: float,
    now: float,
) -> bytes:
    """Sign a study: this plan, this one run of it, these sites. A new roster is signed before it where that is needed.

    Args:
        sites: who takes part; all of the plan's roster, or all that are enrolled, where none is named.
        quorum: fewest sites that train; all of them, or all but `privacy.drop`, without it.
        days: until the study expires.

    Returns:
        The signed study's bytes.

    Raises:
        ConfigError: plan, sites and roster do not fit each other, every mistake at once; then nothing is signed.
    """
    known = enrolled(folder)
    epoch = newest_roster(folder)
    gone = epoch.gone if epoch else frozenset()
    there = {s: r.identity for s, r in known.items() if r.identity not in gone}
    chosen = tuple(sites) or tuple(sorted(_named(plan) or there))
    problems = _mistakes(plan, chosen, there, fold)
    if epoch is not None and folder.step_key in epoch.step_keys:
        problems.append("the step key was revoked; make a new one: oncofed-aggregator renew --step-key")
    if not problems:
        problems = _impossible_noise(plan)
    if problems:
        raise ConfigError(*(f"{plan.study.name}: {p}" for p in problems))
    if _needs_new(epoch, there, now=now, oldest=epoch_days * DAY / 2):
        epoch = publish_roster(folder, plan_key, now=now)
    assert epoch is not None  # noqa: S101 - made above where there was none
    trainers = _named(plan) or set(chosen)
    drop = plan.privacy.drop if isinstance(plan.privacy, ConsortiumPrivacy) else 0
    return write_study(
        plan=plan,
        trial=Trial(seed=seed, fold=fold),
        step_key=folder.step_key,
        roster={s: there[s] for s in chosen},
        epoch=epoch.number,
        epoch_days=epoch_days,
        created=now,
        expires=now + days * DAY,
        quorum=len(trainers) - drop if quorum is None else quorum,
        key=plan_key,
    )


def _named(plan: Plan) -> set[str]:
    """Sites that a private plan names."""
    return set() if isinstance(plan.privacy, NoPrivacy) else set(plan.privacy.patients)


def _mistakes(plan: Plan, chosen: Sequence[str], there: dict[str, bytes], fold: int) -> list[str]:
    problems = [
        f"'{s}' is not enrolled, or was revoked; `oncofed-aggregator list` says who is"
        for s in chosen
        if s not in there
    ]
    named = _named(plan)
    if len(set(chosen)) != len(chosen):
        problems.append("--sites: names a site twice")
    if named and named != set(chosen):
        apart = ", ".join(sorted(named ^ set(chosen)))
        problems.append(f"privacy.patients and the sites of the study must be the same; they differ in {apart}")
    if not chosen:
        problems.append("nobody is enrolled yet")
    if len(chosen) > plan.training.max_sites:
        problems.append(f"{len(chosen)} sites, and training.max_sites is {plan.training.max_sites}")
    if len(chosen) < plan.strategy.minimum_sites:
        problems.append(f"{len(chosen)} sites, and strategy.minimum_sites is {plan.strategy.minimum_sites}")
    folds = plan.evaluation.folds or 0
    if folds and not 0 <= fold <= folds:
        problems.append(
            f"--fold: a signed study is one run, and the plan has {folds} folds; give 0 to {folds - 1}, or {folds} to learn from "
            "everybody"
        )
    if not folds and fold != -1:
        problems.append("--fold: the plan has no evaluation.folds")
    if isinstance(plan.privacy, ConsortiumPrivacy) and plan.privacy.collude < 1:
        problems.append("privacy.collude: must be at least 1 outside a simulation")
    return problems


def _impossible_noise(plan: Plan) -> list[str]:
    """Calibrate as the sites will: a plan whose epsilon cannot be reached is not signed."""
    from oncofed_server.spending import spending  # noqa: PLC0415 - accountants take seconds to import

    try:
        for site in sorted(_named(plan)):
            spending(plan, site)
    except ConfigError as error:
        return list(error.problems)
    return []


def _needs_new(epoch: RosterEpoch | None, there: dict[str, bytes], *, now: float, oldest: float) -> bool:
    return epoch is None or dict(epoch.sites) != there or now - epoch.issued > oldest
