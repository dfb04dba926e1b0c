"""`python -m oncofed_simulations.sizes`: how many parameters a study's network has, by fusion and size, as a table in Markdown."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, get_args

import typer

from oncofed_shared.commands import run_app
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import unite
from oncofed_shared.messages import Columns
from oncofed_shared.network import build
from oncofed_shared.plan import ModelSettings, Plan, load, side_of
from oncofed_shared.plan_sizes import SIZES, Fusion
from oncofed_simulations.consortium import open_site
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["agreed_columns", "main", "parameter_counts", "table"]

app = typer.Typer(help="Parameters of a study's network.", pretty_exceptions_enable=False)


def agreed_columns(plan: Plan, sites: Path | None) -> Columns:
    """The columns that a study's sites agree on: those of the folders, or of the plan's synthetic cohort.

    Raises:
        ConfigError: there are no folders and the plan has no cohort, or a folder does not fit the plan.
    """
    with tempfile.TemporaryDirectory() as made:
        root = sites
        if root is None:
            if plan.simulation.cohort is None:
                raise ConfigError("the study has no cohort of its own: give --sites FOLDER")
            root = Path(made) / "cohort"
            write_cohort(root, **read_settings(plan.simulation.cohort).model_dump())
        opened = [open_site(folder, plan, state=None, minimum=None) for folder in site_folders(root)]
        return unite(plan, [site.source.cohort(plan).columns for site in opened])


def parameter_counts(plan: Plan, columns: Columns) -> dict[str, dict[str, int]]:
    """Parameters per fusion that the plan can have: with those of each size, and with its own numbers if it has layers."""
    own = plan.model.model_dump()
    presets: dict[str, dict[str, int]] = {"study": {}} if plan.model.layers else {}
    presets |= {size: dict(numbers) for size, numbers in SIZES.items()}
    counts = {}
    sides = {side_of(modality) for modality in plan.modalities.values()}
    for fusion in get_args(Fusion):
        if fusion == "two_way" and not {"imaging", "genes"} <= sides:
            continue
        models = {s: ModelSettings(**{**own, "fusion": fusion, **numbers}) for s, numbers in presets.items()}
        plans = {s: plan.model_copy(update={"model": model}) for s, model in models.items()}
        counts[fusion] = {s: build(p, columns, seed=0).vector.numel() for s, p in plans.items()}
    return counts


def table(plan: Plan, sites: Path | None) -> str:
    """The counts in Markdown."""
    columns = agreed_columns(plan, sites)
    counts = parameter_counts(plan, columns)
    sizes = list(next(iter(counts.values())))
    width = sum(len(names) for names in columns.values())
    rows = [f"| `{plan.study.name}`, {width:,} columns | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    rows += [f"| `{f}` | {' | '.join(f'{n:,}' for n in by_size.values())} |" for f, by_size in counts.items()]
    return "\n".join(rows)


@app.command()
def main(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    sites: Annotated[Path | None, typer.Option(help="Folder with a folder per hospital.", readable=False)] = None,
) -> None:
    """Print how many parameters the study's network has with every fusion: with its own numbers, and in every size."""
    print(table(load(study), sites))


if __name__ == "__main__":
    run_app(app)
