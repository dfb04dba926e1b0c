"""What the entries of a ledger mean: one table of kinds, and the account that they add up to.

    kind     body                                                          may follow when
    open     format, public_key                                            it is the first
    approve  plan, study, charges, epsilon, delta, policy                  the plan is new and the policy's limits hold
    reserve  plan, reply, request, line, steps                             the plan is open, the id new, the steps are left
    commit   entry, reply_hash                                             the reservation is open
    void     entry                                                         the reservation is open: no byte was handed over
    close    plan                                                          the plan is open; open reservations are then spent
    epoch    lost                                                          always; ends every plan, charges what was lost

A plan costs all its steps from its approval on. When it is closed, it costs what was reserved and not void. When an epoch ends it,
it costs all its steps for good. So what is charged is never less than what was handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from oncofed_client.budget import BudgetPolicy, Charge, Cost, cost_of
from oncofed_client.ledger_chain import Entry
from oncofed_shared.errors import ConfigError
from oncofed_shared.renyi_filter import ORDERS, Curve

__all__ = ["FORMAT", "Account", "PlanAccount", "Reservation", "charge_body", "cost_body"]

FORMAT = 1
PlanState = Literal["open", "closed", "spent"]
ReservationState = Literal["open", "committed", "void", "spent"]


@dataclass(kw_only=True, slots=True)
class Reservation:
    """One reply's charge.

    Attributes:
        entry: number of its entry.
        line: which of the plan's charges.
        state: `spent` when an epoch ended before it was committed.
    """

    entry: int
    plan: str
    reply: str
    request: str
    line: int
    steps: int
    state: ReservationState = "open"
    reply_hash: str | None = None


@dataclass(kw_only=True, slots=True)
class PlanAccount:
    """What one approved plan may spend and has spent.

    Attributes:
        charges: all that it reserved at its approval.
        used: per charge, steps that are reserved for a reply and not void.
        entry, at: its approval.
    """

    plan: str
    study: str
    charges: tuple[Charge, ...]
    epsilon: float
    delta: float
    entry: int
    at: float
    used: list[int]
    state: PlanState = "open"

    @property
    def released(self) -> tuple[Charge, ...]:
        """What was reserved for replies and not void."""
        return tuple(replace(c, steps=n) for c, n in zip(self.charges, self.used, strict=True) if n)

    @property
    def counted(self) -> tuple[Charge, ...]:
        """What the account charges for it."""
        return self.released if self.state == "closed" else self.charges


def charge_body(charge: Charge) -> dict[str, Any]:
    """A charge as an entry keeps it."""
    return {
        "sampling_rate": float(charge.sampling_rate),
        "noise_multiplier": float(charge.noise_multiplier),
        "own_noise_multiplier": float(charge.own_noise_multiplier),
        "steps": charge.steps,
        "part": charge.part,
        "slack": float(charge.slack),
    }


def cost_body(cost: Cost) -> dict[str, Any]:
    """A cost as an entry keeps it; null is infinite."""

    def plain(curve: Curve) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in curve]

    return {"pooled": plain(cost.pooled), "own": plain(cost.own), "slack": float(cost.slack)}


def _cost(body: Mapping[str, Any]) -> Cost:
    def curve(values: list[float | None]) -> Curve:
        made = np.array([np.inf if v is None else float(v) for v in values])
        if made.shape != (len(ORDERS),) or not (made >= 0).all():
            raise ValueError
        return made

    return Cost(pooled=curve(body["pooled"]), own=curve(body["own"]), slack=float(body["slack"]))


def _lost(body: Mapping[str, Any]) -> list[tuple[int, Cost]]:
    """Per epoch of which entries were lost, the most that anybody has seen it charge."""
    return [(int(item["epoch"]), _cost(item["total"])) for item in body["lost"]]


@dataclass(kw_only=True, slots=True)
class Account:
    """What all entries so far add up to. `problem` says why an entry may not follow; `apply` lets it follow.

    Attributes:
        number, at, epoch: of the last entry.
        policy: under which the last plan was approved.
        plans: by hash.
        replies: by id.
        reservations: by number of their entry.
        debt: what was lost in restores and counts for good.
        restores: per epoch that began after a restore its number, its first entry, and what was charged then.
        seen: per epoch of which entries were lost, the most that anybody has seen it charge, as far as that is charged here.
        hashes: of all entries, in order.
    """

    site: str
    number: int = 0
    at: float = 0.0
    epoch: int = 1
    policy: BudgetPolicy | None = None
    plans: dict[str, PlanAccount] = field(default_factory=dict)
    ended: list[PlanAccount] = field(default_factory=list)
    replies: dict[str, Reservation] = field(default_factory=dict)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    debt: Cost = field(default_factory=Cost.nothing)
    restores: list[tuple[int, int, Cost]] = field(default_factory=list)
    seen: dict[int, Cost] = field(default_factory=dict)
    hashes: list[bytes] = field(default_factory=list)

    def total(self) -> Cost:
        """What a patient of this site has paid at most, all studies together."""
        total = self.debt
        for plan in self.all_plans():
            total = total + cost_of(plan.counted)
        return total

    def all_plans(self) -> tuple[PlanAccount, ...]:
        """Every plan that was ever approved, in that order; one that was approved anew is there twice."""
        return tuple(sorted((*self.ended, *self.plans.values()), key=lambda p: p.entry))

    def problem(self, entry: Entry) -> str | None:
        """Why an entry may not follow the ones so far; None where it may."""
        if entry.number != self.number + 1 or (entry.number == 1) != (entry.kind == "open"):
            return "stands in a wrong place"
        if entry.site != self.site:
            return f"belongs to another site; this ledger is of {self.site}"
        if entry.at < self.at:
            return "is earlier than the entry before; time never runs backwards"
        if not (entry.epoch > self.epoch if entry.kind == "epoch" else entry.epoch == self.epoch):
            return "belongs to another epoch"
        try:
            return _RULES[entry.kind](self, entry.body)
        except (KeyError, TypeError, ValueError, ConfigError, AttributeError):
            return f"has not what belongs to the kind '{entry.kind}'"

    def apply(self, entry: Entry) -> None:
        """Let an entry follow in which `problem` found nothing."""
        self.number, self.at, self.epoch = entry.number, entry.at, entry.epoch
        self.hashes.append(entry.hash)
        body = entry.body
        match entry.kind:
            case "approve":
                charges = _charges(body)
                self.policy = BudgetPolicy.from_body(body["policy"])
                if body["plan"] in self.plans:
                    self.ended.append(self.plans[body["plan"]])
                self.plans[body["plan"]] = PlanAccount(
                    plan=body["plan"],
                    study=body["study"],
                    charges=charges,
                    epsilon=body["epsilon"],
                    delta=body["delta"],
                    entry=entry.number,
                    at=entry.at,
                    used=[0] * len(charges),
                )
            case "reserve":
                made = Reservation(entry=entry.number, **body)
                self.replies[made.reply] = self.reservations[entry.number] = made
                self.plans[made.plan].used[made.line] += made.steps
            case "commit":
                done = self.reservations[body["entry"]]
                done.state, done.reply_hash = "committed", body["reply_hash"]
            case "void":
                gone = self.reservations[body["entry"]]
                gone.state = "void"
                self.plans[gone.plan].used[gone.line] -= gone.steps
            case "close":
                self.plans[body["plan"]].state = "closed"
                self._spend(body["plan"])
            case "epoch":
                self._begin_epoch(entry)
            case _:
                pass

    def restore_after(self, epoch: int) -> tuple[int, Cost] | None:
        """The first restore that ended an epoch: the entry with which it began another, and what of that epoch is charged."""
        for later, first, total in self.restores:
            if later > epoch:
                return first, total.larger(self.seen.get(epoch, Cost.nothing()))
        return None

    def _begin_epoch(self, entry: Entry) -> None:
        for plan in self.plans.values():
            plan.state = "spent" if plan.state == "open" else plan.state
        self._spend(None)
        here = self.total()
        for epoch, total in _lost(entry.body):
            known = self.restore_after(epoch)
            self.debt = self.debt + total.beyond(here if known is None else known[1])
            self.seen[epoch] = total.larger(self.seen.get(epoch, Cost.nothing()))
        self.restores.append((entry.epoch, entry.number, self.total()))

    def _spend(self, plan: str | None) -> None:
        """What is open counts as spent: it can be neither handed over nor taken back any more."""
        for reservation in self.reservations.values():
            if reservation.state == "open" and plan in {None, reservation.plan}:
                reservation.state = "spent"


def _charges(body: Mapping[str, Any]) -> tuple[Charge, ...]:
    return tuple(Charge(**c) for c in body["charges"])


def _texts(body: Mapping[str, Any], *names: str) -> None:
    if not all(type(body[n]) is str and body[n] for n in names):
        raise ValueError


def _keys(body: Mapping[str, Any], *names: str) -> None:
    if set(body) != set(names):
        raise ValueError


def _open(_: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "format", "public_key")
    return None if body["format"] == FORMAT else f"is of format {body['format']}; this program reads {FORMAT}"


def _approve(account: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "plan", "study", "charges", "epsilon", "delta", "policy")
    _texts(body, "plan", "study")
    policy, charges = BudgetPolicy.from_body(body["policy"]), _charges(body)
    known = account.plans.get(body["plan"])
    if known is not None and known.state == "open":
        return "approves a plan that is approved already"
    if not charges:
        return "has no charge"
    objections = policy.objections_to(epsilon=float(body["epsilon"]), delta=float(body["delta"]))
    objections += policy.objections(account.total() + cost_of(charges))
    return f"passes the site's policy: {'; '.join(objections)}" if objections else None


def _reserve(account: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "plan", "reply", "request", "line", "steps")
    _texts(body, "plan", "reply", "request")
    plan = account.plans.get(body["plan"])
    if plan is None or plan.state != "open":
        return "spends for a plan that is not approved, or is over"
    if body["reply"] in account.replies:
        return "spends for a reply that has its entry"
    line, steps = body["line"], body["steps"]
    if type(line) is not int or type(steps) is not int or not 0 <= line < len(plan.charges) or steps < 1:
        raise ValueError
    left = plan.charges[line].steps - plan.used[line]
    return None if steps <= left else f"spends {steps} steps; the plan has {left} left of those reserved for it"


def _commit(account: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "entry", "reply_hash")
    _texts(body, "reply_hash")
    return _is_open(account, body["entry"])


def _void(account: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "entry")
    return _is_open(account, body["entry"])


def _is_open(account: Account, number: int) -> str | None:
    reservation = account.reservations.get(number)
    if reservation is None:
        return "ends a reservation that was never made"
    return None if reservation.state == "open" else f"ends a reservation that is {reservation.state}"


def _close(account: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "plan")
    plan = account.plans.get(body["plan"])
    return None if plan is not None and plan.state == "open" else "closes a plan that is not open"


def _epoch(_: Account, body: Mapping[str, Any]) -> str | None:
    _keys(body, "lost")
    _lost(body)
    return None


_RULES: dict[str, Callable[[Account, Mapping[str, Any]], str | None]] = {
    "open": _open,
    "approve": _approve,
    "reserve": _reserve,
    "commit": _commit,
    "void": _void,
    "close": _close,
    "epoch": _epoch,
}
