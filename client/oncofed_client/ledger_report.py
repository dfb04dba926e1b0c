"""What a ledger says to a data officer: which study spent what, what is left, and what one more study would take."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_client.budget import BudgetPolicy, Charge, Cost, cost_of, epsilon_of_charges
from oncofed_client.ledger_account import Account, PlanAccount

__all__ = ["LedgerReport", "Preview", "StudySpending", "Totals", "ledger_report", "preview_of", "totals_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpending:
    """One approved plan.

    Attributes:
        at: time of its approval, seconds since 1970.
        state: `open`, `closed`, or `spent` when a restore ended it.
        epsilon, delta: what it promises.
        reserved, released: steps that it may take, and that were charged for replies so far.
        so_far: epsilon of what was charged for replies, against at most the plan's colluders.
        counted: epsilon of what the account charges for it: all its steps, until it is closed.
        alone: the same, if all other sites collude; infinite where nothing is promised then.
    """

    study: str
    plan: str
    at: float
    state: str
    epsilon: float
    delta: float
    reserved: int
    released: int
    so_far: float
    counted: float
    alone: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """All studies together, by the Renyi filter.

    Attributes:
        delta: of the policy.
        pooled, alone: epsilon against at most the plans' colluders, and if all other sites collude.
        pooled_limit, alone_limit: of the policy; None is no limit.
    """

    delta: float
    pooled: float
    alone: float
    pooled_limit: float | None
    alone_limit: float | None

    @property
    def pooled_left(self) -> float | None:
        """What is left under the limit; None without one."""
        return None if self.pooled_limit is None else max(0.0, self.pooled_limit - self.pooled)

    @property
    def alone_left(self) -> float | None:
        """What is left under the limit; None without one."""
        return None if self.alone_limit is None else max(0.0, self.alone_limit - self.alone)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What one more study would take.

    Attributes:
        epsilon, delta: what its plan promises.
        pooled, alone: what it costs by itself.
        after: all studies together, with it.
        approved: whether this very plan is approved already, so that it takes nothing more.
        objections: why the ledger would refuse it.
    """

    study: str
    epsilon: float
    delta: float
    pooled: float
    alone: float
    after: Totals
    approved: bool
    objections: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerReport:
    """A whole ledger.

    Attributes:
        at: time of the last entry.
        lost: whether charges of entries that a restore has lost are counted.
    """

    site: str
    entries: int
    epoch: int
    at: float
    lost: bool
    studies: tuple[StudySpending, ...]
    totals: Totals


def _spending(plan: PlanAccount) -> StudySpending:
    return StudySpending(
        study=plan.study,
        plan=plan.plan,
        at=plan.at,
        state=plan.state,
        epsilon=plan.epsilon,
        delta=plan.delta,
        reserved=sum(c.steps for c in plan.charges),
        released=sum(plan.used),
        so_far=epsilon_of_charges(plan.released, delta=plan.delta),
        counted=epsilon_of_charges(plan.counted, delta=plan.delta),
        alone=epsilon_of_charges(plan.counted, delta=plan.delta, own=True),
    )


def totals_of(cost: Cost, policy: BudgetPolicy) -> Totals:
    """A cost under a policy, as epsilons of its filters."""
    measure = policy.filter(1.0)
    return Totals(
        delta=policy.delta_total,
        pooled=measure.epsilon_of(cost.pooled),
        alone=measure.epsilon_of(cost.own),
        pooled_limit=policy.epsilon_total,
        alone_limit=policy.epsilon_alone,
    )


def ledger_report(account: Account, policy: BudgetPolicy | None) -> LedgerReport:
    """What an account says.

    Args:
        policy: the site's; without one, that of the last approval.
    """
    policy = policy or account.policy or BudgetPolicy()
    return LedgerReport(
        site=account.site,
        entries=account.number,
        epoch=account.epoch,
        at=account.at,
        lost=bool(account.debt),
        studies=tuple(_spending(plan) for plan in account.all_plans()),
        totals=totals_of(account.total(), policy),
    )


def preview_of(
    account: Account,
    policy: BudgetPolicy | None,
    *,
    plan_hash: str,
    study: str,
    charges: tuple[Charge, ...],
    epsilon: float,
    delta: float,
) -> Preview:
    """What a study would take, if it were approved now; the arguments are those of `Ledger.approve`."""
    policy = policy or account.policy or BudgetPolicy()
    # A simulation's runs of a plan are accounts of their own: `contributor.account_of`.
    known = [p for name, p in account.plans.items() if name.split("/")[0] == plan_hash]
    approved = any(p.state == "open" for p in known)
    after = account.total() if approved else account.total() + cost_of(charges)
    objections = [] if approved else policy.objections_to(epsilon=epsilon, delta=delta) + policy.objections(after)
    return Preview(
        study=study,
        epsilon=epsilon,
        delta=delta,
        pooled=epsilon_of_charges(charges, delta=delta),
        alone=epsilon_of_charges(charges, delta=delta, own=True),
        after=totals_of(after, policy),
        approved=approved,
        objections=tuple(objections),
    )
