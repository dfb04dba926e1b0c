"""docs/genomics.md says what the code says, and its examples are ones that work."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from oncofed_client.genomics import settings
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_shared.plan import validate

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "genomics.md").read_text(encoding="utf-8")
PARTS = re.split(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[1::2], PARTS[2::2], strict=True))
MODELS = {
    "`[genomics]`": settings.GenomicsSettings,
    "`[genomics.samples]`": settings.Samples,
    "`[genomics.expression]`": settings.ExpressionFiles,
    "`[genomics.copy_number]`": settings.CopyNumberFiles,
    "`[genomics.mutations]`": settings.MutationFiles,
    "`[genomics.limits]`": settings.Limits,
}


def example(section: str) -> dict:
    return tomllib.loads(re.search(r"```toml\n(.*?)```", SECTIONS[section], re.DOTALL)[1])


def shown(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return "none" if value is None else "all defaults"
    return f"{value:g}" if isinstance(value, int) else f"`{json.dumps(value)}`"


@pytest.mark.parametrize(("section", "model"), MODELS.items())
def test_every_key_is_documented_with_its_default_and_words(section, model):
    rows = [[c.strip() for c in m[1].split("|")] for m in re.finditer(r"^\|(.*)\|$", SECTIONS[section], re.MULTILINE)]
    keys = {row[0].strip("`"): row for row in rows if row[0].startswith("`")}
    assert {k: row[2] for k, row in keys.items()} == {n: shown(model, n) for n in model.model_fields}
    for name, row in keys.items():
        words = re.findall(r"'(?:const|enum)': (\[[^]]*\]|'[^']*')", str(model.model_json_schema()["properties"][name]))
        assert all(f'"{w}"' in row[1] for w in re.findall(r"'([^']*)'", " ".join(words)))


def test_every_model_of_the_settings_is_there():
    made = {m for m in vars(settings).values() if isinstance(m, type) and issubclass(m, BaseModel) and m.model_fields}
    assert made == set(MODELS.values())


def test_the_examples_are_read(make_plan):
    validate(GenomicsSettings, example("A whole `[genomics]`")["genomics"], "site.toml: genomics")
    plan = make_plan(modalities=example("And the study's part")["modalities"])
    assert {m.genomics.kind for m in plan.modalities.values()} == {"expression", "copy_number", "mutations"}
