"""When a file counts as changed, and what besides files decides a patient's features."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from oncofed_client.prepare import recipes
from oncofed_client.prepare.keys import SiteKey
from oncofed_client.prepare.recipes import code_version, prepared_modalities, recipe
from oncofed_client.prepare.stamps import Contents, folder_stamp
from oncofed_client.settings import SiteSettings, load_settings
from oncofed_shared.errors import DataError
from oncofed_shared.plan import Plan, parse
from oncofed_shared.strict import validate

KEY = SiteKey(bytes(range(32)))


def test_a_file_is_read_again_only_when_its_time_stamps_may_hide_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"one")
    fresh = Contents(tmp_path, KEY, {})
    assert fresh.of(path) == KEY.digest_chunks([b"one"])
    assert fresh.kept == {}, "a file of this moment may change again within one tick of its clock"
    time.sleep(2.1)
    first = Contents(tmp_path, KEY, {})
    first.of(path)
    assert list(first.kept.values()) == [KEY.digest_chunks([b"one"])]
    told = dict.fromkeys(first.kept, "as it was")
    assert Contents(tmp_path, KEY, told).of(path) == "as it was"
    path.write_bytes(b"two")
    assert Contents(tmp_path, KEY, told).of(path) == KEY.digest_chunks([b"two"])
    with pytest.raises(DataError, match="cannot be read"):
        first.of(tmp_path / "gone")


def test_a_folder_has_a_stamp_once_it_is_settled_and_another_after_any_change(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "a.csv"
    path.write_bytes(b"one")
    assert folder_stamp(tmp_path, KEY) is None
    time.sleep(2.1)
    first = folder_stamp(tmp_path, KEY, "facts")
    assert first == folder_stamp(tmp_path, KEY, "facts")
    assert first is not None
    assert first != folder_stamp(tmp_path, KEY, "other facts")
    assert first != folder_stamp(tmp_path, SiteKey(bytes(32)), "facts")
    path.rename(tmp_path / "b.csv")
    time.sleep(2.1)
    assert folder_stamp(tmp_path, KEY, "facts") not in {first, None}
    assert folder_stamp(tmp_path / "nowhere", KEY) is None


def changed(settings: SiteSettings, **parts: Any) -> SiteSettings:
    content = settings.model_dump(mode="json", exclude_none=True)
    for name, more in parts.items():
        content[name] = content[name] | more
    return validate(SiteSettings, content, "changed")


def test_a_recipe_changes_with_what_decides_the_features_and_with_nothing_else(
    raw_sites: Path, demo_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(raw_sites / "site-1")
    wanted = prepared_modalities(demo_plan, settings)
    assert set(wanted) == {"radiomics", "expression", "cnv", "mutations"}
    before = {name: recipe(modality, settings) for name, modality in wanted.items()}
    assert len(set(before.values())) == 4

    def moved(settings: SiteSettings, plan: Plan = demo_plan) -> set[str]:
        return {n for n, m in prepared_modalities(plan, settings).items() if recipe(m, settings) != before[n]}

    assert moved(changed(settings, imaging={"folder": "elsewhere", "limits": {"depth": 3}})) == set()
    assert moved(changed(settings, policy={"minimum_cohort": 99})) == set()
    other = {"tumour": {"names": ["other*"]}}
    assert moved(changed(settings, imaging={"regions": other})) == {"radiomics"}
    assert moved(changed(settings, genomics={"mutations": {"files": ["x.maf"], "panel": "exome"}})) >= {"mutations"}
    content = demo_plan.model_dump(mode="json")
    content["modalities"]["expression"]["genomics"]["logarithm"] = False
    content["modalities"]["radiomics"]["scaling"] = "minmax"
    assert moved(settings, parse(content)) == {"expression"}
    monkeypatch.setattr(recipes, "code_version", lambda kind: "other code")
    assert moved(settings) == set(before)


def test_the_version_of_the_code_is_its_source_and_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {kind: code_version(kind) for kind in ("extraction", "genomics")}
    assert before["extraction"] != before["genomics"]
    monkeypatch.setattr(recipes, "version", lambda name: "0.0")
    assert code_version.__wrapped__("extraction") != before["extraction"]
