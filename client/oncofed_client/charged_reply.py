"""The one order in which a charged reply is made: reserve, compute, keep, commit, hand over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from oncofed_client.budget import Charge
from oncofed_client.ledger import Ledger
from oncofed_client.outbox import Outbox
from oncofed_shared.errors import RemoteProtocolError

__all__ = ["charged_reply"]


def charged_reply(
    ledger: Ledger,
    outbox: Outbox,
    *,
    plan_hash: str,
    session: str,
    reply_id: str,
    request_hash: str,
    charge: Charge,
    compute: Callable[[], bytes],
    now: float,
) -> bytes:
    """The reply to a request: the stored one, or one that is computed now.

    Args:
        reply_id: of session, step, attempt and request.
        compute: samples, draws noise and masks; called at most once, and only under a reservation.

    Guarantees:
        - What is returned was charged, and stored on the disk, before.
        - The same id gives the same bytes, whatever was killed in between; with another request it gives nothing.
        - Whatever fails leaves the charge as it is.

    Raises:
        RemoteProtocolError: the id had another request, or is over.
        PolicyRefusal: the plan is not approved or has no steps left, or the ledger may not speak.
        StorageError: nothing may be handed over, because it could not be stored.
    """
    stored = outbox.get(reply_id, request_hash)
    entry = ledger.reserve(plan_hash, reply_id, request_hash, charge, now=now)
    if stored is None:
        reservation = ledger.reservation(reply_id)
        if reservation is None or reservation.state != "open":
            raise RemoteProtocolError("this reply is over; a new attempt has an id of its own", code="reply-is-over")
        stored = compute()
        outbox.keep(reply_id, request_hash, stored, session=session)
    ledger.commit(entry, hashlib.sha256(stored).hexdigest(), now=now)
    return stored
