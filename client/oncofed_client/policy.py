"""A site's policy against a plan: what the site refuses before anybody else is asked."""

from __future__ import annotations

from oncofed_client.settings import Policy, Release
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy

__all__ = ["policy_objections", "releases_of"]

_WHAT = {
    "statistics": "sums over columns of patients",
    "tables": "tables of counts without noise",
    "updates": "changes of the model without noise",
    "noised-sums": "sums with noise",
}


def releases_of(plan: Plan) -> tuple[Release, ...]:
    """Kinds of what a plan lets leave a site."""
    match plan.privacy:
        case NoPrivacy():
            return ("statistics", "tables", "updates")
        case SitePrivacy(release_tables=True):
            return ("tables", "noised-sums")
        case _:
            return ("noised-sums",)


def policy_objections(plan: Plan, policy: Policy) -> tuple[str, ...]:
    """Why a site's policy does not allow a plan, whatever was spent before; nothing where it does.

    A plan without noise has no roster and no promise: `release` alone says whether it may run. Under noise = "site" all other sites
    may collude.
    """
    found = [
        f"policy.release: does not have '{kind}', and the plan lets {_WHAT[kind]} leave"
        for kind in releases_of(plan)
        if kind not in policy.release
    ]
    privacy = plan.privacy
    if isinstance(privacy, ConsortiumPrivacy):
        sites = len(privacy.patients)
        if sites < policy.minimum_sites:
            found.append(f"policy.minimum_sites: is {policy.minimum_sites}, and the plan's roster has {sites}")
        if policy.maximum_colluders is not None and privacy.collude < policy.maximum_colluders:
            found.append(
                f"policy.maximum_colluders: is {policy.maximum_colluders}, and the plan's noise holds against {privacy.collude}"
            )
    if not isinstance(privacy, NoPrivacy):
        if policy.epsilon_study is not None and privacy.epsilon > policy.epsilon_study:
            found.append(
                f"policy.epsilon_study: is {policy.epsilon_study:g}, and the plan promises only {privacy.epsilon:g}"
            )
        limited = any((policy.epsilon_total, policy.epsilon_study, policy.epsilon_alone))
        if limited and privacy.delta > policy.delta_total:
            found.append(f"policy.delta_total: is {policy.delta_total:g}, and the plan's delta is {privacy.delta:g}")
    return tuple(found)
