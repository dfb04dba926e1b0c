"""A private plan's whole budget, reserved when a person approves it, and given back when it is withdrawn (protocol, rule 16)."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from oncofed_client.approvals import approved
from oncofed_client.contributor import Contributor, account_of
from oncofed_client.identity import identity_of
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_client.plan_charges import plan_charges
from oncofed_client.scratch import Scratch
from oncofed_client.settings import SiteSettings
from oncofed_client.whereabouts import SitePlace
from oncofed_shared.charged_reductions import read_columns
from oncofed_shared.features import encoded_columns
from oncofed_shared.messages import Columns, Head
from oncofed_shared.plan import NoPrivacy, Plan, SitePrivacy
from oncofed_shared.plan_reduction import Statistical
from oncofed_shared.signed_study import SignedStudy

__all__ = ["free_run", "known_parameters", "reserve_run"]


def known_parameters(plan: Plan, *, seed: int) -> int | None:
    """How many parameters the network of a plan has; None where that depends on columns that only the sites know.

    Args:
        seed: of the trial.
    """
    known = _columns(plan)
    reduced = any(isinstance(modality.reduction, Statistical) for modality in plan.modalities.values())
    if known is None or (reduced and isinstance(plan.privacy, NoPrivacy)):
        return None
    return Scratch().bench(plan, read_columns(plan, known), seed=seed).whole.size


def _columns(plan: Plan) -> Columns | None:
    """A plan's columns; None where only the sites know them."""
    columns = {name: encoded_columns(modality) for name, modality in sorted(plan.modalities.items())}
    known = {name: own for name, own in columns.items() if own is not None}
    return known if len(known) == len(columns) else None


def reserve_run(study: SignedStudy, place: SitePlace, settings: SiteSettings, *, now: float) -> bool:
    """Let the ledger reserve the whole run of a study.

    Args:
        now: seconds since 1970.

    Returns:
        Whether it is reserved. False for a plan without noise, and under noise of the consortium for one whose columns the sites
        agree on: rounding to integers is charged, and depends on the network's size. That is reserved when the run opens, and
        refused then if another study took the budget in between.

    Guarantees:
        - What is reserved here is to the last digit what the run asks for when it opens, so it is reserved once.
        - Asked again, nothing is charged twice.

    Raises:
        PolicyRefusal: code `budget`, a limit of the policy would be passed; code `silent` or `rolled-back`, the ledger may be old.
        DataError: the ledger is damaged.
    """
    plan, site = study.plan, settings.site.name
    if isinstance(plan.privacy, NoPrivacy) or site not in plan.privacy.patients:
        return False
    # The noise of one site alone does not depend on the network's size.
    parameters = 1 if isinstance(plan.privacy, SitePrivacy) else known_parameters(plan, seed=study.trial.seed)
    if parameters is None:
        return False
    contributor = Contributor(site=site, state=place.state, identities=dict, policy=settings.policy, clock=lambda: now)
    head = Head(session=study.session, step=0, attempt=0, plan_hash=plan.hash, trial=study.trial)
    with closing(contributor.ledger):
        contributor.approve(plan, head, plan_charges(plan, site, parameters=parameters, columns=_columns(plan)))
    return True


def free_run(study: SignedStudy, state: Path, *, site: str, now: float) -> bool:
    """End the run of a withdrawn study in the ledger; whether anything was reserved.

    Guarantees:
        - Nothing is freed while the same run is approved under another signature.
        - What was charged for replies stays charged, and a reservation that is open counts as spent.

    Raises:
        DataError, PolicyRefusal: the ledger is damaged or an old copy.
    """
    if isinstance(study.plan.privacy, NoPrivacy) or not (state / LEDGER_FILE).exists():
        return False
    if any((s.plan.hash, s.trial) == (study.plan.hash, study.trial) for s in approved(state).values()):
        # The same run, signed anew, is approved here too: it goes on under the same account.
        return False
    account = account_of(study.plan, study.trial)
    with closing(Ledger.open(state / LEDGER_FILE, site=site, key=identity_of(state))) as ledger:
        if not any(known.plan == account and known.state == "open" for known in ledger.plans()):
            return False
        ledger.end_plan(account, now=now)
    return True
