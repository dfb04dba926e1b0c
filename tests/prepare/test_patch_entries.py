"""Patches that a study asks for: cut once, kept encrypted, made anew when their own settings change and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oncofed_client.check import check_study
from oncofed_client.cohort import consented
from oncofed_client.imaging.patches import patch
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import find_series
from oncofed_client.imaging.volume import read_volume
from oncofed_client.prepare.cache import PatchEntry
from oncofed_client.prepare.patches import prepared_patches_of
from oncofed_client.settings import load_settings
from oncofed_shared.plan import Plan, parse

CT = {"region": "tumour", "size": [8, 10, 12], "spacing": [3.0, 2.0, 2.0], "window": [-160.0, 240.0]}
FLAIR = {"region": "tumour", "size": [6, 8, 8], "spacing": [4.0, 2.0, 2.0], "intensity": "zscore"}


def with_patches(plan: Plan, **patches: Any) -> Plan:
    content = plan.model_dump(mode="json", exclude_none=True)
    content["modalities"]["radiomics"]["patch"] = patches
    return parse(content)


def test_patches_are_cut_kept_counted_and_made_anew_alone(copy_of: Callable[[str], Any]) -> None:
    hospital = copy_of("site-1")
    hospital = type(hospital)(hospital.folder, hospital.state, with_patches(hospital.plan, ct=CT))
    tables = hospital.entries()
    report = hospital.preprocess()
    count = report.patients["radiomics.patch.ct"]
    assert (report.made, report.failures) == (count, ())
    settings = load_settings(hospital.folder)
    allowed = consented(hospital.folder, settings)
    found = prepared_patches_of("radiomics.patch.ct", settings, hospital.plan, hospital.cache, allowed)
    assert len(found) == count > 0
    inventory = find_series(hospital.folder, settings.imaging)
    patient = min(found)
    series = inventory.images(patient)["ct"]
    image = read_volume(series, settings.imaging)
    mask = read_region("tumour", image, series, inventory, settings.imaging)
    wanted = hospital.plan.modalities["radiomics"].patch["ct"]
    assert np.array_equal(found[patient].voxels, patch(image, mask, wanted))
    assert found[patient].voxels.shape == (8, 10, 12)
    warnings = check_study(hospital.folder, settings, hospital.plan, hospital.state).warnings
    assert any(f"radiomics.patch.ct: {count} patches" in w and "no encoder" in w for w in warnings)
    assert hospital.preprocess().made == 0
    before = hospital.entries()
    assert tables.items() <= before.items()
    other = type(hospital)(hospital.folder, hospital.state, with_patches(hospital.plan, ct=CT | {"size": [8, 10, 10]}))
    assert other.preprocess().made == count, "a changed patch does the patches anew and nothing else"
    assert tables.items() <= other.entries().items()
    voxels = prepared_patches_of("radiomics.patch.ct", settings, other.plan, other.cache, allowed)[patient].voxels
    assert voxels.shape == (8, 10, 10)


def test_a_plan_without_patches_keeps_its_form(demo_plan: Plan) -> None:
    assert "patch" not in demo_plan.model_dump(mode="json")["modalities"]["radiomics"]
    assert with_patches(demo_plan, ct=CT).hash != demo_plan.hash


def test_what_is_no_patch_is_not_read_as_one() -> None:
    made = PatchEntry(voxels=np.zeros((2, 3, 4), dtype=np.float32)).to_bytes()
    assert PatchEntry.from_bytes(made).voxels.shape == (2, 3, 4)
    for content in (b"", made[:-3], PatchEntry(voxels=np.zeros(4, dtype=np.float32)).to_bytes()):
        with pytest.raises(ValueError, match="not a patch"):
            PatchEntry.from_bytes(content)
