"""The reference pages say what the code says: every key, every default, every message, every phase."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from oncofed_client import settings
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.imaging import settings as imaging
from oncofed_client.units import known_units
from oncofed_server.aggregator import FATAL_CODES
from oncofed_server.run_state import Phase
from oncofed_shared import messages, plan, plan_harmonise, plan_modalities, plan_reduction
from oncofed_simulations.compare_search import SearchRange
from oncofed_simulations.synthetic import CohortSettings

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)

STUDY = {
    "Top level": plan.Plan,
    "`[study]`": plan.StudyHeader,
    "`[tasks.NAME]`, classification": plan.ClassificationTask,
    "`[tasks.NAME]`, survival": plan.SurvivalTask,
    "`[modalities.NAME]`": plan.Modality,
    "`[modalities.NAME.columns]`, numeric": plan.NumericColumn,
    "`[modalities.NAME.columns]`, categorical": plan.CategoricalColumn,
    "`[modalities.NAME.columns]`, ordinal": plan.OrdinalColumn,
    "`[modalities.NAME.extraction]`": plan.RadiomicFeatures,
    "`[modalities.NAME.patch.ROLE]`": plan_modalities.RegionPatch,
    "`[modalities.NAME.graph]`": plan_modalities.GeneGraph,
    "`[modalities.NAME.pathways]`": plan_modalities.GeneSets,
    "`[modalities.NAME.reduction]`, principal components": plan_reduction.PrincipalComponents,
    "`[modalities.NAME.reduction]`, LASSO": plan_reduction.Lasso,
    "`[modalities.NAME.reduction]`, ReliefF": plan_reduction.ReliefF,
    "`[modalities.NAME.reduction]`, autoencoder": plan_reduction.Autoencoder,
    "`[modalities.NAME.reduction]`, group LASSO": plan_reduction.GroupLasso,
    "`[modalities.NAME.harmonise]`": plan_harmonise.Combat,
    "`[modalities.NAME.augmentation]`": plan_modalities.AugmentationSettings,
    "`[modalities.NAME.genomics]`, expression": plan.ExpressionFeatures,
    "`[modalities.NAME.genomics.reference]`": plan.ReferenceSample,
    "`[modalities.NAME.genomics]`, copy number": plan.CopyNumberFeatures,
    "`[modalities.NAME.genomics.thresholds]`": plan.CallThresholds,
    "`[modalities.NAME.genomics]`, mutations": plan.MutationFeatures,
    "`[modalities.NAME.genomics.severity]`": plan.Severity,
    "`[modalities.NAME.genomics.drivers]`": plan.Drivers,
    "`[model]`": plan.ModelSettings,
    "`[training]`": plan.Training,
    "`[strategy]`": plan.Strategy,
    "`[evaluation]`": plan.Evaluation,
    "`[evaluation.split]`, fractions": plan.SplitFractions,
    "`[evaluation.split]`, a published column": plan.SplitColumn,
    "`[evaluation.subgroups.NAME]`": plan.Subgroup,
    "`[evaluation.reference.NAME]`": plan.Reference,
    "`[privacy]`, none": plan.NoPrivacy,
    "`[privacy]`, at the site": plan.SitePrivacy,
    "`[privacy]`, consortium": plan.ConsortiumPrivacy,
    "`[simulation]`": plan.Simulation,
    "`[simulation.cohort]`": CohortSettings,
    '`[simulation.search."KEY"]`': SearchRange,
}
SITE = {
    "`[site]`": settings.SiteHeader,
    "`[tables.NAME]`": settings.TableSettings,
    "`[tables.NAME.durations]`": settings.Duration,
    "`[consent]`": settings.Consent,
    "`[policy]`": settings.Policy,
}
IMAGING = {
    "`[imaging]`": imaging.ImagingSettings,
    "`[imaging.patient]`": imaging.PatientSource,
    "`[imaging.series.ROLE]`": imaging.SeriesRule,
    "`[imaging.regions.REGION]`": imaging.RegionRule,
    "`[imaging.limits]`": imaging.Limits,
}
# Keys that are filled in when the file is read, from what the file says first.
READ_FROM_FILE = {"main_task": "the first one written", "main_reference": "the first one written"}


def sections(page: str) -> dict[str, str]:
    """Content under each heading of a page, of whatever level."""
    parts = re.split(r"^#+ (.+)$", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> list[list[str]]:
    """Cells of the rows of the tables in a text, without headers."""
    rows = [[cell.strip() for cell in m[1].split("|")] for m in ROW.finditer(text)]
    return [row for row in rows if row[0].startswith("`")]


def shown(name: str, model: type[BaseModel]) -> str:
    """A default as the pages write it."""
    field = model.model_fields[name]
    if name in READ_FROM_FILE or field.is_required():
        return READ_FROM_FILE.get(name, "required")
    value = field.get_default(call_default_factory=True)
    if isinstance(value, plan.SplitFractions):
        return f"{value.train:.2f} / {value.validation:.2f} / {value.test:.2f}"
    if value is None or isinstance(value, BaseModel):
        return "none" if value is None else "all defaults"
    if isinstance(value, (bool, str, tuple, dict)):
        return f"`{json.dumps(value)}`"
    return str(value) if isinstance(value, int) else f"{value:g}"


WHERE = {"study.md": STUDY, "site.md": SITE, "preprocessing.md": IMAGING}
PAGES = [(page, s, m) for page, models in WHERE.items() for s, m in models.items()]


@pytest.mark.parametrize(("page", "section", "model"), PAGES)
def test_a_reference_has_every_key_with_its_default_and_no_other(page, section, model):
    documented = {row[0].strip("`"): row[2] for row in table(sections(page)[section])}
    assert documented == {name: shown(name, model) for name in model.model_fields}


@pytest.mark.parametrize(("page", "section", "model"), PAGES)
def test_a_reference_says_which_words_a_key_may_have(page, section, model):
    for row in table(sections(page)[section]):
        described = model.model_json_schema()["properties"][row[0].strip("`")]
        words = re.findall(r"'(?:const|enum)': (\[[^]]*\]|'[^']*')", str(described))
        for word in re.findall(r"'([^']*)'", " ".join(words)):
            assert f'"{word}"' in row[1], f"{section} {row[0]}: {word}"


def test_every_model_of_a_file_has_its_table():
    modules = (plan, plan_modalities, plan_reduction, settings)
    made = {m for module in modules for m in vars(module).values() if isinstance(m, type)}
    models = {m for m in made if issubclass(m, BaseModel) and m.model_fields}
    documented = {*STUDY.values(), *SITE.values(), imaging.ImagingSettings}
    # [genomics] has its own page and its own test.
    assert models - {settings.SiteSettings, GenomicsSettings} == documented - {CohortSettings, SearchRange}
    assert set(settings.SiteSettings.model_fields) == {"site", "tables", "imaging", "genomics", "consent", "policy"}


def test_every_unit_that_converts_is_named():
    text = (DOCS / "site.md").read_text(encoding="utf-8")
    assert [u for u in known_units() if not re.search(rf"[`(\s]{re.escape(u)}[`)\s]", text)] == []


REQUESTS = set(messages.Request.__args__)
TO_SITES = REQUESTS | set(messages.Errand.__args__)
KINDS = sorted(TO_SITES | {*messages.Reply.__args__, *messages.ErrandReply.__args__}, key=lambda k: k.__name__)


def test_the_table_of_messages_has_every_message_and_no_other():
    documented = [row[0].strip("`") for row in table(sections("protocol-messages.md")["Messages"])]
    assert sorted(documented) == sorted([*(k.__name__ for k in KINDS), "Head", "Trial", "Formation"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_a_message_is_documented_with_its_direction_and_fields(kind):
    rows = {row[0].strip("`"): row for row in table(sections("protocol-messages.md")["Messages"])}
    _, direction, fields, _ = rows[kind.__name__]
    assert direction == ("to a site" if kind in TO_SITES else "to the aggregator")
    assert re.findall(r"`(\w+)`", fields) == [f.name for f in dataclasses.fields(kind) if f.name != "head"]


@pytest.mark.parametrize("part", [messages.Head, messages.Trial, messages.Formation])
def test_what_every_message_carries_is_documented(part):
    rows = {row[0].strip("`"): row for row in table(sections("protocol-messages.md")["Messages"])}
    assert re.findall(r"`(\w+)`", rows[part.__name__][1]) == [f.name for f in dataclasses.fields(part)]


def test_the_bounds_of_messages_are_documented():
    text = sections("protocol-messages.md")["Messages"]
    assert f"The version is {messages.VERSION}." in text
    assert f"more than 2^{messages.MAX_BYTES.bit_length() - 1} bytes" in text
    assert f"more than {messages.MAX_TEXT} bytes" in text
    assert f"more than {messages.MAX_ITEMS} items" in text
    assert all(f"`{part}`" in text for part in messages.PARTS)


def test_the_state_table_has_every_phase_in_order_and_asks_with_existing_requests():
    rows = table(sections("protocol-messages.md")["States of a run"])
    assert [row[0].strip("`") for row in rows] == [p.name for p in Phase]
    asked = {row[1].strip("`") for row in rows} - {""}
    assert asked == {k.__name__ for k in REQUESTS}
    assert len(FATAL_CODES) == 2, "the page says which updates end a run"


def test_governance_names_tests_that_exist():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (DOCS / "governance" / "gdpr-hipaa.md").read_text(encoding="utf-8")))
    sources = (p.read_text(encoding="utf-8") for p in Path(__file__).parent.rglob("test_*.py"))
    there = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    assert len(named) > 15
    assert named - there == set()


def test_every_row_of_the_legal_map_has_a_test_or_a_document():
    text = (DOCS / "governance" / "gdpr-hipaa.md").read_text(encoding="utf-8")
    rows = [r for r in ROW.findall(text) if not set(r) <= set("-| ") and not r.startswith(" clause")]
    assert [r for r in rows if "`test_" not in r and ".md)" not in r] == []
