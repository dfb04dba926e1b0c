"""What a data officer has to know before a study is approved, and why this site would refuse it.

Everything is worked out here, from the signed file and this site's own data; nothing is asked of anybody, nothing leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.budget import budget_policy
from oncofed_client.check import check_study
from oncofed_client.cohort import Cohort, read_cohort
from oncofed_client.enrol import installed
from oncofed_client.gene_files import with_gene_files
from oncofed_client.identity import KEY_FILE, public_half
from oncofed_client.known_rosters import newest_roster
from oncofed_client.labels import label_columns
from oncofed_client.leaving import Leaving, leaving
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_account import Account
from oncofed_client.ledger_report import Preview, preview_of
from oncofed_client.ledger_verify import read_account
from oncofed_client.pace import Pace, measure
from oncofed_client.plan_charges import plan_charges, promised
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.reports import CheckReport
from oncofed_client.settings import Policy, SiteSettings
from oncofed_client.site_keys import own_keys
from oncofed_client.whereabouts import SitePlace
from oncofed_shared.charged_location import charges_location
from oncofed_shared.errors import ConfigError, ExitCode, OncofedError
from oncofed_shared.plan import NoPrivacy, Plan, SplitColumn
from oncofed_shared.public_keys import key_fingerprint
from oncofed_shared.releases import uncharged
from oncofed_shared.roster import RosterEpoch
from oncofed_shared.signed_study import SignedStudy

__all__ = ["Review", "columns_read", "review_study", "roster_objections"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """A study as this site sees it.

    Attributes:
        site: this site's name.
        fingerprints: of every site of the roster, of the plan key and the step key, by who it is.
        columns: what is read, in words, by modality; labels, split and subgroups under names of their own.
        leaves: what would leave; empty where the network's size is not known.
        uncharged: what of it the ledger does not charge, by name.
        here: what this site's data have for it.
        pace: how long it takes; None where the data do not allow a try.
        budget: what it costs; None without privacy.
        objections: why this site would refuse it; empty where it would not.
        exit_code: 0, 3 where files are wrong, 4 where it would be refused.
    """

    site: str
    study: SignedStudy
    fingerprints: Mapping[str, str]
    columns: Mapping[str, str]
    leaves: tuple[Leaving, ...]
    uncharged: tuple[str, ...]
    here: CheckReport
    pace: Pace | None
    budget: Preview | None
    objections: tuple[str, ...]
    exit_code: ExitCode


def columns_read(plan: Plan) -> dict[str, str]:
    """Which columns a plan reads, in words."""
    found: dict[str, str] = {}
    for name, modality in sorted(plan.modalities.items()):
        where = f"table {modality.table}: " if modality.table else ""
        if modality.columns is not None:
            found[name] = where + ", ".join(modality.columns)
        else:
            count = len(modality.vocabulary or ())
            which = f"{count} columns that the plan names, all" if count else "every column"
            found[name] = f"{where}{which} like " + ", ".join(modality.patterns or ())
        if modality.exclude:
            found[name] += "; not " + ", ".join(modality.exclude)
        if modality.harmonise is not None:
            noised = ", noised and charged to the ledger," if charges_location(plan) else ""
            found[name] += f"; where this site's own values lie{noised} is found from who trains, and kept"
    for name, task in sorted(plan.tasks.items()):
        found[f"outcome {name}"] = (f"table {task.table}: " if task.table else "") + ", ".join(label_columns(task))
    if isinstance(plan.evaluation.split, SplitColumn):
        found["published split"] = plan.evaluation.split.column
    for name, subgroup in plan.evaluation.subgroups.items():
        found[f"subgroup {name}"] = subgroup.column
    return found


def roster_objections(study: SignedStudy, state: Path, *, site: str, policy: Policy, now: float) -> tuple[str, ...]:
    """Why keys and dates of a study do not allow it here; empty where they do."""
    found = []
    if policy.plan_keys and study.plan_key.hex() not in policy.plan_keys:
        found.append(f"policy.plan_keys: does not have the key that signed it, {key_fingerprint(study.plan_key)}")
    enrolment = installed(state)
    if enrolment is None:
        found.append(
            "this site is not enrolled, so it does not know whose studies to trust: oncofed-site enrol request"
        )
    elif enrolment.plan_key != study.plan_key:
        found.append(
            f"the study is signed by {key_fingerprint(study.plan_key)}, and this site is enrolled under "
            f"{key_fingerprint(enrolment.plan_key)}"
        )
    try:
        own = set(own_keys(state)) if (state / KEY_FILE).exists() else set()
    except OncofedError:
        own = set()
    if site not in study.roster:
        found.append(f"the roster has no site {site}; it has {', '.join(sorted(study.roster))}")
    elif study.roster[site] not in own:
        found.append(f"the roster has another key for {site}: {key_fingerprint(study.roster[site])}")
    elif site not in study.trainers:
        found.append(f"privacy.patients does not name {site}")
    if now > study.expires:
        found.append("the study has expired; ask for one that is signed anew")
    return (*found, *_revoked_since(study, newest_roster(state, study.plan_key)))


def _revoked_since(study: SignedStudy, newest: RosterEpoch | None) -> list[str]:
    """What the newest epoch that this site has seen says against a study's keys."""
    if newest is None:
        return []
    found = []
    # An older epoch than the study's knows less than the study itself.
    if newest.number >= study.epoch:
        standing = {s: newest.standing(s, k) for s, k in study.roster.items()}
        found = [
            f"by roster epoch {newest.number} the key of {s} is {word}"
            for s, word in standing.items()
            if word != "member"
        ]
    if study.step_key in newest.step_keys:
        found.append(
            f"roster epoch {newest.number} has revoked the study's step key, {key_fingerprint(study.step_key)}"
        )
    return found


def _fingerprints(study: SignedStudy) -> dict[str, str]:
    keys = {"plan key": study.plan_key, "step key": study.step_key}
    return {name: key_fingerprint(k) for name, k in (keys | dict(sorted(study.roster.items()))).items()}


def _budget(study: SignedStudy, place: SitePlace, settings: SiteSettings) -> Preview | None:
    plan, site = study.plan, settings.site.name
    if isinstance(plan.privacy, NoPrivacy) or site not in plan.privacy.patients:
        return None
    path = place.state / LEDGER_FILE
    account = read_account(path, public_half(place.state)) if path.exists() else Account(site=site)
    epsilon, delta = promised(plan)
    return preview_of(
        account,
        budget_policy(settings.policy),
        plan_hash=plan.hash,
        study=study.name,
        charges=plan_charges(plan, site),
        epsilon=epsilon,
        delta=delta,
    )


def _cohort(place: SitePlace, settings: SiteSettings, plan: Plan) -> Cohort | None:
    """This site's patients; None where its files or its consent do not allow a look, which the check has said already."""
    try:
        return None if place.data is None else read_cohort(place.data, settings, plan, existing_cache(place.state))
    except OncofedError:
        return None


def _pace(plan: Plan, cohort: Cohort) -> Pace | None:
    """One step, timed; None without the plan's files about genes, of which the check has said so."""
    try:
        return measure(plan, cohort)
    except ConfigError as error:
        if error.code != "gene-file":
            raise
        return None


def review_study(study: SignedStudy, place: SitePlace, *, now: float) -> Review:
    """Look at a study from this site.

    Args:
        study: its signature holds; whether it is the right plan key's is looked at here.
        place: the site, with its data.
        now: seconds since 1970.

    Raises:
        ConfigError: the site's data were not named, or `site.toml` is wrong.
        DataError: ledger, enrolment or roster of the site are damaged.
    """
    settings, plan = place.settings(), study.plan
    if place.data is None:
        raise ConfigError(f"{place.state}: is not a folder with site.toml")
    here = check_study(place.data, settings, plan, place.state)
    budget = _budget(study, place, settings)
    cohort = _cohort(place, settings, plan)
    pace = None if cohort is None or not cohort.patients else _pace(with_gene_files(plan, settings, place.data), cohort)
    objections = [
        *roster_objections(study, place.state, site=settings.site.name, policy=settings.policy, now=now),
        *here.why_not,
    ]
    if budget is not None:
        objections += [o for o in budget.objections if o not in objections]
    wrong_files = here.exit_code is ExitCode.INPUT
    return Review(
        site=settings.site.name,
        study=study,
        fingerprints=_fingerprints(study),
        columns=columns_read(plan),
        leaves=() if pace is None else leaving(plan, pace.shared),
        uncharged=uncharged(plan),
        here=here,
        pace=pace,
        budget=budget,
        objections=tuple(objections),
        exit_code=ExitCode.INPUT if wrong_files else ExitCode.REFUSED if objections else ExitCode.DONE,
    )
