"""`oncofed-site epoch`: what follows when a site's state came back from a backup."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.options import OwnState, State
from oncofed_client.whereabouts import site_place

__all__ = ["epoch_app", "epoch_begin", "epoch_witness"]

epoch_app = typer.Typer(
    help="After a restore from a backup: the ledger's new epoch, and the signature that lets the site speak again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@epoch_app.command("begin")
def epoch_begin(
    folder: State,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the new epoch's head goes; send it on.")],
    witness: Annotated[
        list[Path] | None,
        typer.Option("--witness", metavar="FILE", help="The newest head that the aggregator, or a peer, has seen."),
    ] = None,
    old: Annotated[
        Path | None,
        typer.Option(
            "--old", metavar="DIR", help="State under an identity that was revoked: take over what it has spent."
        ),
    ] = None,
    state: OwnState = None,
) -> None:
    """Go on with a restored ledger, or with an old identity's: what was open is spent, what others have seen is charged."""
    # The accountant takes a second to import, and the other commands need it not.
    from oncofed_client.restoring import begin_epoch, take_over  # noqa: PLC0415

    if old is not None and witness:
        raise typer.BadParameter(
            "--witness is of a restored ledger, --old of one that a new identity takes over; give one"
        )
    place, now = site_place(folder, state), time.time()
    if old is None:
        begun = begin_epoch(place.state, witnesses=tuple(witness or ()), out=out, now=now)
    else:
        begun = take_over(place.state, old=old, out=out, now=now)
    typer.echo(f"Epoch {begun.epoch} has begun; every study that was approved before is over at this site.")
    if old is None and not witness:
        typer.echo("No witness was given: only what this copy has kept of others' signatures is charged.")
    typer.echo(f"{out} written: the aggregator signs it with `oncofed-aggregator witness SITE --head {out.name}`.")
    typer.echo(f"Until its answer is taken nothing is answered: oncofed-site epoch witness {folder} FILE")


@epoch_app.command("witness")
def epoch_witness(
    folder: State,
    witness: Annotated[Path, typer.Argument(metavar="FILE", help="What the aggregator has signed.")],
    state: OwnState = None,
) -> None:
    """Keep what somebody has signed of this ledger; of the newest epoch, it lets the site speak again."""
    from oncofed_client.restoring import take_witness  # noqa: PLC0415 - as above

    known = take_witness(site_place(folder, state).state, witness)
    words = "is of an earlier epoch: the site stays silent" if known.silent else "the site may answer"
    typer.echo(f"Kept. Epoch {known.epoch}: {words}.")
