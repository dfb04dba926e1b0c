"""What `oncofed-site ledger` and `oncofed-site verify` do: read, never write, also while the site is at work."""

from __future__ import annotations

from pathlib import Path

from oncofed_client.budget import budget_policy
from oncofed_client.identity import fingerprint_of, public_half, read_public
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_report import LedgerReport, Preview, ledger_report, preview_of
from oncofed_client.ledger_verify import read_account, verify
from oncofed_client.plan_charges import plan_charges, promised
from oncofed_client.settings import load_settings
from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_shared.witness import Witness

__all__ = ["report_on", "verify_state"]


def report_on(state: Path, *, plan: Plan | None, site: Path | None) -> tuple[LedgerReport, Preview | None]:
    """What a site's ledger says, and what a plan would take.

    Args:
        state: the site's state folder.
        plan: may be one without noise, which takes nothing.
        site: folder whose `site.toml` has the policy; without it, the policy of the last approval.

    Raises:
        DataError: there is no ledger, or it is not sound.
        ConfigError: the plan does not have this site in its roster, or `site.toml` is wrong.
    """
    path = _ledger_of(state)
    account = read_account(path, public_half(state))
    policy = None if site is None else budget_policy(load_settings(site).policy)
    report = ledger_report(account, policy)
    if plan is None or isinstance(plan.privacy, NoPrivacy):
        return report, None
    epsilon, delta = promised(plan)
    preview = preview_of(
        account,
        policy,
        plan_hash=plan.hash,
        study=plan.study.name,
        charges=plan_charges(plan, account.site),
        epsilon=epsilon,
        delta=delta,
    )
    return report, preview


def verify_state(state: Path, *, key: Path | None, witnesses: tuple[Path, ...]) -> tuple[str, list[str]]:
    """One line for a sound ledger, and one line per problem of another.

    Args:
        key: file with the site's public key as it was enrolled.
        witnesses: files with heads that others signed.

    Raises:
        DataError: no ledger, or a file that cannot be read.
    """
    path = _ledger_of(state)
    public = public_half(state) if key is None else read_public(key)
    seen = [_read_witness(w) for w in witnesses]
    problems = verify(path, public, witnesses=seen)
    if problems:
        return "", problems
    account = read_account(path, public)
    return (
        f"{path}: sound: {account.number} entries of site {account.site}, epoch {account.epoch}, signed by the key "
        f"{fingerprint_of(public)}"
    ), []


def _ledger_of(state: Path) -> Path:
    path = state / LEDGER_FILE
    if not path.is_file():
        raise DataError(f"{path}: does not exist; a site's ledger is made when it first approves a private plan")
    return path


def _read_witness(path: Path) -> Witness:
    try:
        return Witness.from_bytes(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except RemoteProtocolError:
        raise DataError(f"{path}: is not the witness of a ledger, or it is damaged") from None
