"""The last look at what leaves: at a share before it is masked, when nobody can tell any more what is in it, and at each reply."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.messages import (
    Contribute,
    Contribution,
    Count,
    Counted,
    Deliver,
    Delivered,
    Describe,
    Description,
    End,
    Ended,
    Errand,
    ErrandReply,
    Evaluate,
    Exchange,
    Exchanged,
    Open,
    Ready,
    Reduce,
    Reduced,
    Refusal,
    Reply,
    Request,
    Summarise,
    Summary,
    Tables,
    Train,
    Update,
)
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan

__all__ = ["ANSWERS", "check_reply", "check_share"]

ANSWERS: dict[type, type] = {
    Describe: Description,
    Summarise: Summary,
    Reduce: Reduced,
    Open: Ready,
    Train: Update,
    Evaluate: Tables,
    Exchange: Exchanged,
    Contribute: Contribution,
    Count: Counted,
    Deliver: Delivered,
    End: Ended,
}
_MOST_PER_PARAMETER, _MOST_BESIDE = 4, 64
"""Numbers in an update for each parameter that was sent, and beside them: what the rules append, with room."""


def check_share(share: NDArray[np.int64], *, size: int, largest: int, smallest: int | None = None) -> None:
    """See that a share is what the plan declares, before its noise and once more with it.

    Args:
        size: its length.
        largest: magnitude that the plan's bound, the number of patients and the noise leave to a coordinate.
        smallest: least value of a coordinate; without it, minus `largest`.

    Guarantees:
        - Other than whole numbers, another length, or a coordinate out of range: nothing leaves.
        - Whatever is wrong has one code and no value.

    Raises:
        LocalProtocolError: with the code `egress`.
    """
    ok = share.dtype == np.int64 and share.shape == (size,)
    # Compared on both sides: the smallest integer has no magnitude.
    ok = ok and bool((share <= largest).all() and (share >= (-largest if smallest is None else smallest)).all())
    if not ok:
        raise LocalProtocolError("a share is not what the plan declares, and stays here", code="egress")


def check_reply(plan: Plan, request: Request | Errand, reply: Reply | ErrandReply, *, site: str) -> None:
    """See that a reply is the kind of thing that its request asks for, under its plan, before it is sealed.

    Guarantees:
        - Other than the one kind that answers this request, or a refusal: nothing leaves. The same for another head or site.
        - Under a private plan: no sums over columns and no numbers of patients; under noise of the consortium neither an update nor
          tables.
        - An update has no more numbers than its request has parameters for; a count is a multiple of ten.
        - Whatever is wrong has one code and no value.

    Raises:
        LocalProtocolError: with the code `egress`.
    """
    if isinstance(reply, Refusal):
        ok = reply.head == request.head and reply.site == site
    else:
        ok = type(reply) is ANSWERS[type(request)] and reply.head == request.head and reply.site == site
        ok = ok and _allowed(plan, reply) and _sized(request, reply)
    if not ok:
        raise LocalProtocolError("a reply is not what its request and the plan allow, and stays here", code="egress")


def _allowed(plan: Plan, reply: Reply | ErrandReply) -> bool:
    if isinstance(plan.privacy, NoPrivacy):
        return not isinstance(reply, Contribution | Exchanged)
    match reply:
        case Description(parts=parts, modalities=modalities, events=events):
            return not (parts or modalities or events)
        case Summary() | Reduced():
            return False
        case Update() | Tables():
            return not isinstance(plan.privacy, ConsortiumPrivacy)
        case Contribution() | Exchanged():
            return isinstance(plan.privacy, ConsortiumPrivacy)
        case _:
            return True


def _sized(request: Request | Errand, reply: Reply | ErrandReply) -> bool:
    if isinstance(request, Train) and isinstance(reply, Update):
        parameters = sum(a.size for a in request.parameters.values())
        return reply.vector.size <= _MOST_PER_PARAMETER * parameters + _MOST_BESIDE
    if isinstance(reply, Counted):
        return all(n >= 0 and n % 10 == 0 for n in reply.counts.values())
    return True
