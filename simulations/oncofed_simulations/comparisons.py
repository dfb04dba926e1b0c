"""What a private study is compared with: the same plan without noise, and pooled DP-SGD. Only a simulation can run either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_client.source import Source
from oncofed_shared.messages import Trial
from oncofed_shared.plan import NoPrivacy, Plan, parse
from oncofed_simulations.consortium import POOLED, Consortium, baseline_plan, by_constants, noise_of_each

__all__ = ["AsPlanned", "pooled_like", "with_site_noise", "without_ledgers", "without_privacy"]


class AsPlanned:
    """A source that reads its patients and their parts by another plan, so that two arms compare on the same patients."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self.source, self.plan = source, plan

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """The patients who may enter now."""
        del plan
        return self.source.cohort(self.plan)

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient as in the plan of the study."""
        del plan
        return self.source.split(self.plan, cohort, trial)


def _under(consortium: Consortium, plan: Plan) -> Consortium:
    """The same hospitals and patients under a changed plan."""
    plans = {p.hash: p for p in (plan, baseline_plan(plan))}

    def sites(members: Mapping[str, Site]) -> dict[str, Site]:
        return {
            name: Site(AsPlanned(site.source, consortium.plan), plans, minimum_cohort=1)
            for name, site in members.items()
        }

    return replace(consortium, plan=plan, sites=sites(consortium.sites), externals=sites(consortium.externals))


def _with(plan: Plan, privacy: dict[str, object]) -> Plan:
    return parse(plan.model_dump(mode="json") | {"privacy": privacy})


def _constant(plan: Plan, privacy: dict[str, object]) -> Plan:
    return parse(by_constants(plan) | {"privacy": privacy})


def without_privacy(consortium: Consortium) -> Consortium:
    """The same study without noise; who has which modality is then said by the sites, and no constant of the plan."""
    content = consortium.plan.model_dump(mode="json")
    content["strategy"].pop("holders", None)
    return _under(consortium, parse(content | {"privacy": {"noise": "none"}}))


def pooled_like(consortium: Consortium) -> Consortium:
    """For the pooled arm: a roster of one site that has everybody, with the public total and the same epsilon.

    Without privacy, the consortium as it is.
    """
    privacy = consortium.plan.privacy
    if isinstance(privacy, NoPrivacy):
        return consortium
    total = sum(privacy.patients[name] for name in consortium.sites)
    each = noise_of_each(privacy.model_dump(mode="json"))
    return _under(consortium, _constant(consortium.plan, each | {"patients": {POOLED: total}}))


def with_site_noise(consortium: Consortium) -> Consortium:
    """The same study with all the noise drawn by every site, and the same bound for a patient."""
    privacy = consortium.plan.privacy.model_dump(mode="json")
    return _under(consortium, _constant(consortium.plan, noise_of_each(privacy)))


def without_ledgers(consortium: Consortium) -> Consortium:
    """For the arms of single sites under a private plan: they are comparisons, and no account of a site pays for them.

    Without privacy, the consortium as it is.
    """
    if isinstance(consortium.plan.privacy, NoPrivacy):
        return consortium
    plan = baseline_plan(consortium.plan)
    return _under(consortium, plan)
