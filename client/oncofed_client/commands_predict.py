"""`oncofed-site predict`: a finished model, applied to this site's patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oncofed_client.options import Folder, OwnState
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.whereabouts import site_place
from oncofed_shared.public_keys import key_fingerprint

__all__ = ["predict"]


def predict(
    folder: Folder,
    model: Annotated[Path, typer.Option("--model", metavar="FILE", help="A model.safetensors.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table, for this site's eyes only.")],
    state: OwnState = None,
) -> None:
    """Apply a finished model to the patients of a folder: risk, interval, weights of the modalities. Nothing leaves."""
    # torch takes a second to import; the other commands do without.
    from oncofed_client.gene_files import gene_folder  # noqa: PLC0415
    from oncofed_client.model_files import check_beside  # noqa: PLC0415
    from oncofed_client.predicting import predicted, read_model, readable_patients  # noqa: PLC0415

    place = site_place(folder, state)
    settings = place.settings()
    sealed = check_beside(model)
    if sealed is None:
        typer.echo(f"{model}: has no seal beside it, so nobody vouches for it; `model fetch` brings one along.")
    else:
        typer.echo(f"{model}: is the model of study {sealed.study[:12]}, sealed by {key_fingerprint(sealed.key)}")
    trained = read_model(model, gene_folder(settings, folder))
    people = readable_patients(folder, settings, trained.plan, existing_cache(place.state))
    made = predicted([trained], people, state=place.state)
    made.write(out)
    typer.echo(
        f"{out}: {len(made.patients)} patients, {', '.join(made.columns)}. It names patients; it must not leave this site."
    )
    for task in trained.plan.task_names:
        # `.observed` from calibration; `.days` between which the model sees the event of 80 patients in a hundred.
        if not any(c.startswith((f"{task}.observed.", f"{task}.days_")) for c in made.columns):
            typer.echo(f"{task}: has no interval; this model's study released no table from which it could be read.")
