"""`oncofed-site review`, `approve`, `withdraw`, `model`: what a data officer decides about a study."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from oncofed_client.approvals import approvals, approve, withdraw
from oncofed_client.enrol import installed
from oncofed_client.find_study import approved_study, find_study
from oncofed_client.model_files import fetch_model, is_delivered
from oncofed_client.options import OwnState, Site, Study
from oncofed_client.whereabouts import site_place
from oncofed_client.words import day
from oncofed_shared.errors import DataError, ExitCode, PolicyRefusal
from oncofed_shared.plan import NoPrivacy

__all__ = [
    "approve_command",
    "model_app",
    "model_fetch",
    "model_list",
    "register",
    "review_command",
    "withdraw_command",
]

model_app = typer.Typer(
    help="Final models that studies have brought here.", no_args_is_help=True, pretty_exceptions_enable=False
)
By = Annotated[str, typer.Option("--by", help="Who decides; it stands in the signed decision.")]


def review_command(study: Study, site: Site, state: OwnState = None) -> None:
    """Say in plain words what a study asks, what would leave, what it costs, and why this site would refuse it."""
    # Accountants and torch take seconds to import.
    from oncofed_client.review import review_study  # noqa: PLC0415
    from oncofed_client.show_review import show_review  # noqa: PLC0415

    place = site_place(site, state)
    found = review_study(find_study(place.state, study), place, now=time.time())
    show_review(Console(highlight=False), found)
    raise typer.Exit(found.exit_code)


def approve_command(
    study: Study,
    site: Site,
    *,
    counting: Annotated[
        bool, typer.Option("--counting", help="Only let it count patients, rounded, above this site's minimum.")
    ] = False,
    by: By = "",
    state: OwnState = None,
) -> None:
    """Approve a study, this one file to the last bit; refused where the policy, the budget or the data do not allow it."""
    from oncofed_client.review import review_study, roster_objections  # noqa: PLC0415 - as above

    place, now = site_place(site, state), time.time()
    found, settings = find_study(place.state, study), place.settings()
    name = settings.site.name
    if counting:
        objections = roster_objections(found, place.state, site=name, policy=settings.policy, now=now)
    else:
        review = review_study(found, place, now=now)
        if review.exit_code is ExitCode.INPUT:
            raise DataError(*(review.here.problems or review.objections))
        objections = review.objections
    if objections:
        raise PolicyRefusal(*(f"{found.name}: {line}" for line in objections), code="policy")
    enrolment = installed(place.state)
    reserved = False
    if not counting:
        from oncofed_client.reserving import reserve_run  # noqa: PLC0415 - as above

        # Before the approval is written: if that fails, something is reserved too much, and never too little.
        reserved = reserve_run(found, place, settings, now=now)
    approve(
        place.state,
        found.content,
        now=now,
        site=name,
        plan_key=None if enrolment is None else enrolment.plan_key,
        scope="counting" if counting else "training",
        by=by,
        where=study,
    )
    typer.echo(
        f"Study {found.name} is approved for {'counting' if counting else 'training'} at site {name}: {found.id}"
    )
    if reserved:
        typer.echo("All that it may cost is reserved in the ledger; `withdraw` gives back what it has not spent.")
    elif not counting and not isinstance(found.plan.privacy, NoPrivacy):
        typer.echo("Its budget is reserved when the run begins: its columns, and so its size, are agreed on only then.")
    typer.echo(f"Take it back at any time: oncofed-site withdraw {found.id[:12]} --site {site} --reason ...")


def withdraw_command(
    study: Study,
    site: Site,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the signed decision.")],
    by: By = "",
    state: OwnState = None,
) -> None:
    """Take back every approval of a study; its next message is refused. What it has cost stays charged."""
    place = site_place(site, state)
    known = approved_study(place.state, study)
    if known.withdrawn:
        raise PolicyRefusal(f"{study}: was withdrawn already, {day(known.decided[-1].at)}", code="unapproved-plan")
    site_name = known.decided[-1].site
    now = time.time()
    withdraw(place.state, known.study.id, now=now, site=site_name, reason=reason, by=by)
    typer.echo(f"Study {known.study.name} is withdrawn at site {site_name}; the next message of it is refused.")
    if not isinstance(known.study.plan.privacy, NoPrivacy):
        from oncofed_client.reserving import free_run  # noqa: PLC0415 - accountants take seconds to import

        if free_run(known.study, place.state, site=site_name, now=now):
            typer.echo("What it had reserved and never asked for is free again; what it has cost stays charged.")


@model_app.command("list")
def model_list(site: Site, state: OwnState = None) -> None:
    """List the studies that were approved here, and whether their final model has come."""
    place = site_place(site, state)
    known = approvals(place.state)
    if not known:
        typer.echo("No study was approved here.")
    for study_id, approval in known.items():
        there = "its model is here" if is_delivered(place.state, study_id) else "no model yet"
        typer.echo(f"{study_id[:12]}  {approval.study.name}: {there}")


@model_app.command("fetch")
def model_fetch(
    study: Study,
    site: Site,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the model goes, its seal beside it.")],
    state: OwnState = None,
) -> None:
    """Bring out a study's final model, checked against the seal of the study's step key."""
    place = site_place(site, state)
    found = approved_study(place.state, study).study
    digest = fetch_model(place.state, found, out=out)
    typer.echo(f"{out}: the final model of {found.name}, sealed by its aggregator, SHA-256 {digest}")
    typer.echo(f"Next: oncofed-site predict {site} --model {out} --out FILE")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("review")(review_command)
    app.command("approve")(approve_command)
    app.command("withdraw")(withdraw_command)
    app.add_typer(model_app, name="model")
