"""`oncofed-site outbox`, `metrics`, `verify`, `dossier`: what left, whether the records hold, and what to show an outsider."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oncofed_client.approvals import approvals
from oncofed_client.find_study import approved_study
from oncofed_client.identity import identity_of, public_half
from oncofed_client.options import Folder, OwnState, Site, State, Study
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts
from oncofed_client.whereabouts import site_place
from oncofed_client.words import day
from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.files import read_bounded
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["dossier", "metrics", "outbox", "register", "verify"]


def metrics(folder: Folder, *, state: OwnState = None) -> None:
    """Print once, as Prometheus reads it, what left and what is left of the budget; `start --metrics` keeps a file of it."""
    from oncofed_client.metrics_file import text_of  # noqa: PLC0415 - the other commands need no accountant
    from oncofed_client.site_figures import SiteFigures  # noqa: PLC0415

    place = site_place(folder, state)
    settings = place.settings()
    figures = SiteFigures(place.state, site=settings.site.name, policy=lambda: settings.policy, clock=time.time)
    typer.echo(text_of(figures).decode(), nl=False)


def outbox(
    folder: State,
    *,
    study: Annotated[str, typer.Option("--study", metavar="STUDY", help="Only of this one.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
    state: OwnState = None,
) -> None:
    """List what left this site: one receipt per reply, with its kind, size, hash and charge."""
    place = site_place(folder, state)
    path = place.state / RECEIPTS_FILE
    found = read_receipts(path, public_half(place.state)) if path.exists() else ()
    names = {study_id: a.study.name for study_id, a in approvals(place.state).items()}
    if study:
        wanted = approved_study(place.state, study).study.id
        found = tuple(r for r in found if r.study_id == wanted)
    if as_json:
        typer.echo(dump_json([asdict(r) for r in found]).decode(), nl=False)
        return
    if not found:
        typer.echo("Nothing has left this site.")
        return
    table = Table(pad_edge=False, box=None)
    for i, column in enumerate(("receipt", "when", "study", "step", "kind", "bytes", "SHA-256", "charged steps")):
        numbers = i in {0, 3, 5, 7}
        table.add_column(column, justify="right" if numbers else "left", overflow="fold", no_wrap=column == "kind")
    for r in found:
        kind = f"{r.kind}: {r.code}" if r.code else r.kind
        known = names.get(r.study_id, r.study_id[:12])
        cells = (str(r.entry), day(r.at), known, str(r.step), kind, str(r.size), r.sha256[:16], str(r.steps or ""))
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)
    typer.echo(
        f"{len(found)} replies, {sum(r.size for r in found)} bytes. `oncofed-site verify` checks that none was removed."
    )


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="The site's folder, or its state folder with ledger and identity."),
    ] = None,
    *,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The site's public key as it was enrolled, in place of DIR/identity.pub."
        ),
    ] = None,
    witness: Annotated[
        list[Path] | None,
        typer.Option("--witness", metavar="FILE", help="A head of this ledger that somebody else signed."),
    ] = None,
    dossier: Annotated[
        Path | None,
        typer.Option("--dossier", metavar="FILE", help="Check a dossier instead; needs nothing of the site."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", metavar="HEX", help="Of the site whose dossier it is.")
    ] = None,
    state: OwnState = None,
) -> None:
    """Look for edited, removed, reordered or rolled-back entries in a site's records, or for changes in a dossier."""
    if (folder is None) == (dossier is None):
        raise typer.BadParameter("give a site's folder, or --dossier FILE")
    if dossier is not None:
        _verify_dossier(dossier, fingerprint)
        return
    # The accountant takes a second to import, and the other commands need it not.
    from oncofed_client.verify_site import verify_site  # noqa: PLC0415

    if folder is not None:
        place = site_place(folder, state)
        sound, problems = verify_site(place.state, key=key, witnesses=tuple(witness or ()))
        for line in problems or sound:
            typer.echo(line, err=bool(problems))
        if problems:
            raise typer.Exit(ExitCode.PEER)


def _verify_dossier(path: Path, fingerprint: str | None) -> None:
    from oncofed_client.dossier_verify import verify_dossier  # noqa: PLC0415 - as above

    found = verify_dossier(read_bounded(path), fingerprint=fingerprint, where=str(path))
    for line in found.problems:
        typer.echo(f"{path}: {line}", err=True)
    if found.problems:
        raise typer.Exit(ExitCode.PEER)
    typer.echo(
        f"{path}: sound: site {found.site} on study {found.study[:12]}, {found.receipts} receipts, signed by the key "
        f"{found.fingerprint}"
    )
    if fingerprint is None:
        typer.echo("Ask the site by telephone whether this is its key.")


def dossier(
    study: Study,
    site: Site,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The page, like dossier.html; its data go beside it.")
    ],
    state: OwnState = None,
) -> None:
    """Write one signed page for an outsider: purpose, decisions, policy, what left, epsilon, consents, versions."""
    from oncofed_client.dossier import make_dossier  # noqa: PLC0415 - as above
    from oncofed_client.dossier_body import dossier_body  # noqa: PLC0415

    if out.suffix == ".json":
        raise ConfigError(f"--out {out}: is the page's name; its data go to the same name with .json")
    place = site_place(site, state)
    body = dossier_body(approved_study(place.state, study), place, now=time.time())
    page, data = make_dossier(body, identity_of(place.state))
    write_whole(out.with_suffix(".json"), data)
    write_whole(out, page)
    typer.echo(f"{out} written, and its data by themselves beside it. Read it before you give it to anybody.")
    typer.echo(f"Anybody can check it: oncofed-site verify --dossier {out}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (outbox, metrics, verify, dossier):
        app.command()(command)
