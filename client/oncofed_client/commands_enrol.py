"""`oncofed-site enrol`: a request goes out, an answer comes back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.enrol import install, request_enrolment
from oncofed_client.options import Folder, OwnState
from oncofed_client.whereabouts import site_place
from oncofed_shared.public_keys import key_fingerprint

__all__ = ["enrol_app", "enrol_install", "enrol_request"]

enrol_app = typer.Typer(
    help="Join a consortium: a request with this site's keys goes out, an answer comes back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@enrol_app.command("request")
def enrol_request(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the request goes; send it on.")],
    *,
    name: Annotated[str | None, typer.Option("--name", help="The site's name; site.toml's without it.")] = None,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="New keys in place of those that are enrolled, which studies under way keep."),
    ] = False,
    state: OwnState = None,
) -> None:
    """Make this site's keys, which never leave, and a request file for the aggregator."""
    place = site_place(folder, state)
    asked = request_enrolment(place.state, site=name or place.settings().site.name, out=out, renew=renew)
    typer.echo(f"{out} written: site {asked.site} asks to be enrolled. It holds no secret; send it to the aggregator.")
    typer.echo(f"Fingerprint of this site, to be read out by telephone: {asked.fingerprint}")
    typer.echo(f"The private keys are in {place.state}; keep a backup of it where only you can read it.")


@enrol_app.command("install")
def enrol_install(
    folder: Folder,
    answer: Annotated[Path, typer.Argument(metavar="ANSWER", help="The file that the aggregator sent back.")],
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="HEX", help="Of the aggregator's key, as its people said by telephone."),
    ] = None,
    state: OwnState = None,
) -> None:
    """Check the aggregator's answer and keep it."""
    place = site_place(folder, state)
    made = install(place.state, answer, fingerprint=fingerprint, now=time.time())
    typer.echo(f"Site {made.site} is enrolled with {made.aggregator} at {made.address}.")
    typer.echo(f"  key of the aggregator: {key_fingerprint(made.signer)}")
    typer.echo(f"  key that signs plans:  {key_fingerprint(made.plan_key)}")
    if fingerprint is None:
        typer.echo("Nobody has checked these yet: compare both by telephone before you approve a study.")
    typer.echo(f"Next: oncofed-site doctor {folder}")
