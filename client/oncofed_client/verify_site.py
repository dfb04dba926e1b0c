"""`oncofed-site verify DIR`: everything at a site that is signed or chained, checked once more."""

from __future__ import annotations

from pathlib import Path

from oncofed_client.approvals import approvals
from oncofed_client.door_memory import DOOR_FILE, waiting_replies
from oncofed_client.identity import public_half, read_public
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE
from oncofed_client.ledger_commands import verify_state
from oncofed_client.ledger_verify import read_account
from oncofed_client.model_files import fetch_model, is_delivered
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts, verify_receipts
from oncofed_shared.errors import DataError

__all__ = ["verify_site"]


def verify_site(state: Path, *, key: Path | None, witnesses: tuple[Path, ...]) -> tuple[list[str], list[str]]:
    """One line for each thing that is sound, and one per problem.

    Args:
        state: the site's.
        key: file with the site's public key as it was enrolled, in place of the one in the state.
        witnesses: files with heads of the ledger that others signed.

    Raises:
        DataError: there is nothing to check, or a file cannot be read.
    """
    ledger, receipts = state / LEDGER_FILE, state / RECEIPTS_FILE
    known = any(p.exists() for p in (receipts, state / DOOR_FILE))
    sound: list[str] = []
    problems: list[str] = []
    if ledger.exists() or not known:
        line, problems = verify_state(state, key=key, witnesses=witnesses)
        sound += [line] if line else []
    elif witnesses or (state / HEAD_FILE).exists():
        problems.append(f"{ledger}: is gone; its newest head, or somebody else's signature under it, is still here")
    if known:
        ok, wrong = _receipts(state, key, with_ledger=ledger.exists() and not problems)
        sound, problems = sound + ok, problems + wrong
    ok, wrong = _decisions(state)
    return sound + ok, problems + wrong


def _receipts(state: Path, key: Path | None, *, with_ledger: bool) -> tuple[list[str], list[str]]:
    path = state / RECEIPTS_FILE
    public = public_half(state) if key is None else read_public(key)
    account = read_account(state / LEDGER_FILE, public) if with_ledger else None
    if account is None and (state / LEDGER_FILE).exists():
        # A ledger that is not sound has been named already, and says nothing about charges.
        return [], []
    wrong = verify_receipts(path, public, ledger=account, waiting=waiting_replies(state / DOOR_FILE))
    if wrong:
        return [], wrong
    return [f"{path}: sound: {len(read_receipts(path, public))} receipts"], []


def _decisions(state: Path) -> tuple[list[str], list[str]]:
    """Approvals, withdrawals and delivered models."""
    try:
        known = approvals(state)
    except DataError as error:
        return [], list(error.problems)
    problems: list[str] = []
    for study_id, approval in known.items():
        try:
            if is_delivered(state, study_id):
                fetch_model(state, approval.study, out=None)
        except DataError as error:
            problems += error.problems
    if problems or not known:
        return [], problems
    return [f"{state}: sound: decisions about {len(known)} studies, and their models"], []
