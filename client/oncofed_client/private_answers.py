"""What a site answers under a private plan: a refusal of whatever the plan does not charge, and no round twice.

Opacus and the accountant are imported where a private plan needs them: they take seconds, and most commands need neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oncofed_client.randomness import Randomness
from oncofed_client.rounds import LocalUpdate
from oncofed_shared.errors import PolicyRefusal, RemoteProtocolError
from oncofed_shared.features import REDUCTION, Preparation, no_sums, prepare
from oncofed_shared.layout import fingerprint
from oncofed_shared.messages import Evaluate, Reduce, Request, Summarise, Train
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy

if TYPE_CHECKING:
    from oncofed_client.contributor import Contributor

__all__ = ["PrivateTrainer", "check_preparation", "guard"]

Ring = NDArray[np.uint64]
DIGITS = 1e-6
"""Part of a map's largest number by which what was sent may differ from what this site finds."""
Trained = Callable[[LocalUpdate], Ring]
"""Trains a round with the given local update."""


def guard(plan: Plan, site: str, request: Request) -> None:
    """Refuse what would leave without a charge.

    Guarantees:
        - No statistics of training patients.
        - No table over training patients: a site of the roster tabulates `validation` and `test` alone.
        - No table at all unless the plan says `release_tables`.
        - A site that is not in the roster does not train.
        - Under noise of the consortium no update and no table leaves but as a masked share.

    Raises:
        PolicyRefusal: with the code that goes to the aggregator.
    """
    privacy = plan.privacy
    if isinstance(privacy, ConsortiumPrivacy):
        _only_shares(request)
    if not isinstance(privacy, SitePrivacy):
        return
    member = site in privacy.patients
    match request:
        case Summarise() | Reduce():
            raise PolicyRefusal("a private plan has no statistics of patients", code="uncharged-statistics")
        case Train() if not member:
            raise PolicyRefusal(f"privacy.patients has no '{site}'", code="not-in-roster")
        case Evaluate() if not privacy.release_tables:
            raise PolicyRefusal("the plan does not release tables of counts", code="uncharged-tables")
        case Evaluate(part=part) if member and part not in {"validation", "test"}:
            raise PolicyRefusal("tables of training patients are not released", code="uncharged-tables")
        case _:
            return


def check_preparation(plan: Plan, preparation: Preparation) -> None:
    """See that a private plan's preparation follows from its constants, and from the statistics that it charges and nothing else.

    Raises:
        RemoteProtocolError: it has another number than the plan (code `preparation`).
    """
    if isinstance(plan.privacy, NoPrivacy):
        return
    columns, released = preparation.columns, preparation.statistics
    if isinstance(plan.privacy, ConsortiumPrivacy) and plan.privacy.statistics_epsilon is not None:
        from oncofed_shared.charged_reductions import all_columns  # noqa: PLC0415 - see the header
        from oncofed_shared.charged_statistics import agreed_preparation  # noqa: PLC0415

        made = agreed_preparation(plan, all_columns(plan, columns), released)
    else:
        made = replace(prepare(plan, columns, no_sums(plan, columns)), statistics=released)
    wanted, sent = made.arrays(), preparation.arrays()
    same = made.columns == columns and wanted.keys() == sent.keys()
    if not same or not all(_as_found(name, wanted[name], sent[name]) for name in wanted):
        raise RemoteProtocolError("the preparation does not follow from the plan's constants", code="preparation")


def _as_found(name: str, own: NDArray[np.float64], sent: NDArray[np.float64]) -> bool:
    """Whether a number is this site's own. Eigenvectors differ in their last digits from one processor to another."""
    if not name.startswith(REDUCTION):
        return np.array_equal(own, sent)
    apart = DIGITS * max(float(np.abs(own).max(initial=0.0)), np.finfo(np.float64).tiny)
    return own.shape == sent.shape and bool((np.abs(own - sent) <= apart).all())


def _only_shares(request: Request) -> None:
    match request:
        case Summarise() | Reduce():
            raise PolicyRefusal("a private plan has no statistics of patients", code="uncharged-statistics")
        case Train():
            raise PolicyRefusal("this plan's updates leave as masked shares alone", code="unmasked-update")
        case Evaluate():
            raise PolicyRefusal("this plan's tables leave as masked shares alone", code="uncharged-tables")
        case _:
            return


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    session: str
    digest: str
    vector: Ring


@dataclass(kw_only=True)
class PrivateTrainer:
    """A site's private rounds.

    Args:
        site: its name.
        noise_seed: makes samples and noise repeatable, in a simulation only.

    Attributes:
        rounds: the last answered round of each session, as long as this process lives.
    """

    site: str
    noise_seed: int | None = None
    rounds: dict[str, int] = field(default_factory=dict)
    _last: _Answer | None = None

    def check(self, plan: Plan, network: FusionNetwork, *, width: int) -> None:
        """Refuse a plan whose noise, network or loss is not possible, before the first round.

        Raises:
            ConfigError: with the reason.
        """
        from oncofed_client.private_training import check_private  # noqa: PLC0415 - see the header
        from oncofed_shared.consortium import ConsortiumMechanism  # noqa: PLC0415
        from oncofed_shared.privacy import Mechanism  # noqa: PLC0415

        privacy = plan.privacy
        if isinstance(privacy, NoPrivacy) or self.site not in privacy.patients:
            return
        parameters = network.vector.numel()
        if isinstance(privacy, SitePrivacy):
            Mechanism.for_plan(plan, self.site).integers(parameters)
        else:
            ConsortiumMechanism.for_plan(plan, parameters=parameters)
        check_private(plan, network, width=width)

    def charged(self, plan: Plan, request: Train, train: Trained, *, contributor: Contributor) -> Ring:
        """A round of a site with a ledger: charged, computed once, stored.

        Raises:
            RemoteProtocolError: a round that the plan does not have, or that had another request.
            PolicyRefusal: the plan has no steps left.
        """
        from oncofed_client.plan_charges import training_charge  # noqa: PLC0415 - see the header
        from oncofed_client.private_training import private_update  # noqa: PLC0415
        from oncofed_shared.privacy import Mechanism  # noqa: PLC0415

        _of_the_plan(plan, request)
        mechanism = Mechanism.for_plan(plan, self.site)
        return contributor.noised(
            plan,
            request,
            charge=training_charge(mechanism, steps=plan.training.local_steps),
            compute=lambda random: train(partial(private_update, mechanism=mechanism, random=random)),
        )

    def once(self, plan: Plan, request: Train, train: Trained) -> Ring:
        """A round of a site without a ledger, which only a simulation has: computed once, remembered as long as this process.

        Guarantees:
            - A site answers at most the plan's rounds in a session, each at most once; what fails on the way is not drawn a
              second time.
            - Asked again with the same request, the site gives the same ring elements.

        Raises:
            RemoteProtocolError: a round that the plan does not have, or one that is over.
            ConfigError: no noise reaches the plan's epsilon.
        """
        from oncofed_client.private_training import private_update  # noqa: PLC0415 - see the header
        from oncofed_shared.privacy import Mechanism  # noqa: PLC0415

        session, last = request.head.session, self._last
        if last is not None and (last.session, last.digest) == (session, _digest(request)):
            return last.vector
        _of_the_plan(plan, request)
        if request.round <= self.rounds.get(session, 0):
            raise RemoteProtocolError("this round was answered before", code="round-is-over")
        mechanism = Mechanism.for_plan(plan, self.site)
        self.rounds[session] = request.round
        if self.noise_seed is None:
            random = Randomness.from_os()
        else:
            random = Randomness.repeatable(f"{self.noise_seed}|{self.site}|{request.head.trial}|{request.round}")
        vector = train(partial(private_update, mechanism=mechanism, random=random))
        self._last = _Answer(session=session, digest=_digest(request), vector=vector)
        return vector


def _of_the_plan(plan: Plan, request: Train) -> None:
    if not 1 <= request.round <= plan.training.rounds:
        raise RemoteProtocolError("this round is not the plan's", code="round-is-over")


def _digest(request: Train) -> str:
    content = f"{request.head.plan_hash}|{request.head.trial}|{request.round}|{fingerprint(request.parameters)}|"
    return hashlib.sha256(content.encode() + request.control.tobytes()).hexdigest()
