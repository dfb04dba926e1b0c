"""A site's own settings: who it is, which tables and raw files it has, who consented, what its policy is.

They stand in `site.toml` in the site's folder or, for a simulation over folders that have none, in
the study's `[simulation.site]`. Every mistake is named with its path, all at once.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import read_toml, validate
from oncofed_shared.renyi_filter import ORDERS

__all__ = [
    "DEFAULT_MISSING",
    "RELEASES",
    "SETTINGS_FILE",
    "Consent",
    "Duration",
    "Policy",
    "SiteHeader",
    "SiteSettings",
    "TableSettings",
    "has_settings",
    "load_settings",
    "settings_from_study",
    "settings_from_text",
]

SETTINGS_FILE = "site.toml"
DEFAULT_MISSING = ("", "NA", "[Not Available]", "nan", "NaN", "null")

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Release = Literal["statistics", "tables", "updates", "noised-sums"]
RELEASES: tuple[Release, ...] = ("statistics", "tables", "updates", "noised-sums")
"""Kinds of what leaves a site: sums over columns, tables of counts, a model's change, and any of it with noise."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SiteHeader(_Frozen):
    """Who the site is.

    Attributes:
        files: folder of the public gene graphs and gene sets that studies name, relative to the site's folder; without it that.
    """

    name: Name
    files: Text | None = None


class Duration(_Frozen):
    """The time between two dates of a patient, in place of the dates.

    Attributes:
        since: the file's column with the first date.
        until: its columns with the last one; the first of them that is not empty counts.
        unit: of the result.
    """

    since: Text
    until: Annotated[tuple[Text, ...], Field(min_length=1)]
    unit: Literal["days", "weeks", "months", "years"] = "days"


class TableSettings(_Frozen):
    """One file of the site.

    Attributes:
        file: relative to the site's folder, .csv or .tsv. A file that does not exist is a table
            that the site lacks.
        id: column with the patient's id.
        rename: the site's column name -> the study's.
        units: by the study's column name, the unit that the file has.
        missing: texts that mean "no value"; an empty cell always does.
        required: a missing file is then an error.
        durations: new column -> the dates that it lies between. Columns of dates are not kept.
        events: new column -> the file's column of dates; 1 where there is one, 0 where not.
        date_format: how the file writes dates, in `%Y`, `%m` and `%d`.
    """

    file: Text
    id: Text = "patient_id"
    rename: dict[str, Text] = {}
    units: dict[str, Text] = {}
    missing: tuple[str, ...] = DEFAULT_MISSING
    required: bool = False
    durations: dict[str, Duration] = {}
    events: dict[str, Text] = {}
    date_format: Annotated[str, Field(pattern=r"^(%[Ymd][-./ ]?){3}$")] = "%Y-%m-%d"

    @model_validator(mode="after")
    def _sound(self) -> Self:
        path = Path(self.file)
        problems = []
        if path.is_absolute() or ".." in path.parts:
            problems.append("file must lie in the site's folder and be written relative to it")
        if path.suffix.lower() not in {".csv", ".tsv"}:
            problems.append("file must be a .csv (commas) or a .tsv (tabs)")
        if len(set(self.rename.values())) != len(self.rename):
            problems.append("rename gives two columns the same name")
        both = sorted(
            (set(self.durations) & set(self.events)) | {*self.durations, *self.events} & set(self.rename.values())
        )
        if both:
            problems.append(f"{', '.join(both)}: is made twice, by two of rename, durations and events")
        if self.id in {*self.durations, *self.events}:
            problems.append("durations and events must not make the id column")
        if any(part not in self.date_format for part in ("%Y", "%m", "%d")):
            problems.append("date_format needs %Y, %m and %d")
        if self.id in self.rename:
            problems.append("rename must not rename the id column; set `id` to the name in the file")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Consent(_Frozen):
    """Why patients may enter: a column that says it for each, or a basis that covers all.

    Attributes:
        column, value: only patients whose `column` is exactly `value` enter.
        table: the table of `column`; without it, any.
        basis, reference, approved_by: why no consent per patient is needed, where that is written,
            who decided it.
    """

    column: Text | None = None
    value: Text | None = None
    table: Text | None = None
    basis: Text | None = None
    reference: Text | None = None
    approved_by: Text | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        each = {"column": self.column, "value": self.value}
        basis = {
            "basis": self.basis,
            "reference": self.reference,
            "approved_by": self.approved_by,
        }
        for form in (each, basis):
            lacking = [k for k, v in form.items() if v is None]
            if lacking and len(lacking) < len(form):
                given = ", ".join(k for k in form if k not in lacking)
                message = f"{given} also needs {', '.join(lacking)}"
                raise ValueError(message)
        if self.column is not None and self.basis is not None:
            message = "give either column and value, or basis, reference and approved_by; not both"
            raise ValueError(message)
        if self.table is not None and self.column is None:
            message = "table goes with column and value"
            raise ValueError(message)
        return self

    @property
    def given(self) -> bool:
        """Whether any form of consent is stated at all."""
        return self.column is not None or self.basis is not None


class Policy(_Frozen):
    """What the site allows.

    Attributes:
        minimum_cohort: fewest patients with whom the site takes part.
        approve: hashes of the plans that the data officer approved.
        epsilon_total: most that a patient may spend over all studies, against at most the plans' colluders.
        epsilon_study: most that one plan may promise.
        epsilon_alone: most that a patient may spend over all studies, if all other sites collude.
        delta_total: probability with which these limits need not hold.
        orders: Renyi orders in which the account over all studies is kept.
        minimum_sites: fewest sites in the roster of a plan whose noise is shared.
        maximum_colluders: most other sites that this site reckons might collude; a plan whose noise holds against fewer is refused.
        release: what may leave the site at all.
        reply_tick: a deployed site's replies leave this many seconds after their request, or a multiple of it; 0 as soon as they
            are ready, which shows how long each was computed.
        plan_keys: the plan keys, in hex, whose studies may be approved here; empty for any that the site was enrolled under.
    """

    minimum_cohort: Annotated[int, Field(ge=1)] = 10
    approve: tuple[Text, ...] = ()
    epsilon_total: Positive | None = None
    epsilon_study: Positive | None = None
    epsilon_alone: Positive | None = None
    delta_total: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    orders: Annotated[tuple[float, ...], Field(min_length=1)] = ORDERS
    minimum_sites: Annotated[int, Field(ge=1)] = 1
    maximum_colluders: Annotated[int, Field(ge=0)] | None = None
    release: tuple[Release, ...] = RELEASES
    reply_tick: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.5
    plan_keys: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        problems = []
        if (
            self.epsilon_total is not None
            and self.epsilon_study is not None
            and self.epsilon_study > self.epsilon_total
        ):
            problems.append("epsilon_study must not be above epsilon_total")
        if not set(self.orders) <= set(ORDERS) or len(set(self.orders)) < len(self.orders):
            problems.append(f"orders must be some of {', '.join(f'{a:g}' for a in ORDERS)}, each once")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class SiteSettings(_Frozen):
    """All of a `site.toml`.

    Attributes:
        tables: by the names that a study uses.
        imaging: how the site's images are read; without it, it has none.
        genomics: how its sequencing files are read.
    """

    site: SiteHeader
    tables: dict[Name, TableSettings] = {}
    imaging: ImagingSettings | None = None
    genomics: GenomicsSettings | None = None
    consent: Consent = Consent()
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _references(self) -> Self:
        problems = []
        if not self.tables and self.imaging is None and self.genomics is None:
            problems.append("tables: is missing; give at least one [tables.NAME], [imaging] or [genomics]")
        if self.consent.table is not None and self.consent.table not in self.tables:
            problems.append(f"consent.table: no table has this name; there are {', '.join(self.tables)}")
        files: dict[str, str] = {}
        for name, table in self.tables.items():
            other = files.setdefault(table.file, name)
            if other != name:
                problems.append(f"tables.{name}.file: is already the file of tables.{other}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def settings_from_text(text: str, where: str) -> SiteSettings:
    """Parse the text of a `site.toml`.

    Args:
        text: TOML.
        where: named in messages.

    Raises:
        ConfigError: one line per mistake, each with its path.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: is not valid TOML: {error}") from None
    return validate(SiteSettings, content, where)


def has_settings(folder: Path) -> bool:
    """Whether a folder has its own `site.toml`; False also for a folder that cannot be read."""
    return os.path.exists(folder / SETTINGS_FILE)  # noqa: PTH110 - Path.exists raises without rights


def load_settings(folder: Path) -> SiteSettings:
    """Read `site.toml` of a site's folder.

    Raises:
        ConfigError: it is absent, unreadable or wrong; every mistake at once.
    """
    path = folder / SETTINGS_FILE
    if not has_settings(folder):
        raise ConfigError(
            f"{path}: does not exist; write one with `oncofed-site init {folder}`, "
            "or give a study with [simulation.site]",
            code="no-settings",
        )
    return validate(SiteSettings, read_toml(path), str(path))


def settings_from_study(site: dict[str, Any], folder: Path) -> SiteSettings:
    """Read a study's `[simulation.site]` for one folder; the folder's name is the site's name.

    Args:
        site: `plan.simulation.site`.
        folder: the site's folder.

    Raises:
        ConfigError: one line per mistake, each with its path.
    """
    content = {**site, "site": {"name": folder.resolve().name}}
    return validate(SiteSettings, content, "study: simulation.site")
