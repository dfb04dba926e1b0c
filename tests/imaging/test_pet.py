"""SUV by body weight equals the formula, and what is missing is refused by its tag."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.imaging.headers import Header
from oncofed_client.imaging.pet import suv_factors
from oncofed_client.imaging.series import Series
from oncofed_client.imaging.settings import ImagingSettings, Limits
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError

HOUR = 3600.0
HALF_LIFE = 6586.2
LEFT_AFTER_AN_HOUR = 0.5 ** (HOUR / HALF_LIFE)


def read(dicom, folder, slices):
    paths = dicom.save(folder, *slices)
    return sitk.GetArrayFromImage(read_volume(Series(patient="p", kind="PT", files=tuple(paths)), ImagingSettings()))


def factors(slices):
    return suv_factors([Header(dataset=one, path="pet.dcm") for one in slices], Limits())


def test_suv_is_activity_times_weight_by_the_dose_that_is_left_at_the_start(dicom, tmp_path):
    slices, values = dicom.pet_of()
    for i, one in enumerate(slices):
        one.RescaleSlope = 2.5 + i  # PET has a slope per slice
    becquerel = np.stack([v * (2.5 + i) for i, v in enumerate(values.astype(float))])
    left = 3.7e8 * np.exp(-np.log(2) * HOUR / HALF_LIFE)
    assert np.allclose(read(dicom, tmp_path, slices), becquerel * 72500 / left, rtol=1e-5)


@settings(max_examples=50)
@given(
    weight=st.floats(2, 300),
    dose=st.floats(1e6, 1e9),
    half_life=st.floats(600, 1e6),
    times=st.tuples(st.integers(0, 86399), st.integers(0, 5999)),
)
def test_any_weight_dose_and_time_gives_the_formula_also_over_midnight(dicom, weight, dose, half_life, times):
    start, after = times
    clock = lambda s: f"{s // 3600 % 24:02}{s // 60 % 60:02}{s % 60:02}"  # noqa: E731
    slices, _ = dicom.pet_of(
        2, PatientWeight=f"{weight:.3f}", RadionuclideTotalDose=f"{dose:.1f}", RadionuclideHalfLife=f"{half_life:.2f}",
        RadiopharmaceuticalStartTime=clock(start), SeriesTime=clock(start + after), AcquisitionTime=clock(start + after),
    )  # fmt: skip
    expected = round(weight, 3) * 1000 / (round(dose, 1) * 2 ** (-after / round(half_life, 2)))
    assert np.allclose(factors(slices), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("tags", "decayed"),
    [
        ({}, HOUR),
        ({"DecayCorrection": "ADMIN"}, 0),
        ({"RadiopharmaceuticalStartDateTime": "20240102104500", "RadiopharmaceuticalStartTime": None}, HOUR / 2),
        ({"RadiopharmaceuticalStartDateTime": "20240102104500.000+0100"}, HOUR / 2),
        ({"RadiopharmaceuticalStartDateTime": "20240102084500+0000", "TimezoneOffsetFromUTC": "+0200"}, HOUR / 2),
        ({"SeriesTime": "235900"}, HOUR),  # a workstation changed it: the acquisition counts
        ({"SeriesTime": None}, HOUR),
        ({"AcquisitionTime": None}, HOUR),
        ({"AcquisitionTime": "114500"}, HOUR),  # a later bed: decay is corrected to the start of the series
        ({"AcquisitionDate": None}, HOUR),
        ({"SeriesTime": "111500.500000"}, HOUR),
    ],
)
def test_the_decay_is_of_the_time_from_injection_to_the_start(dicom, tags, decayed):
    slices, _ = dicom.pet_of(3, **tags)
    assert np.allclose(factors(slices), 72500 / (3.7e8 * 0.5 ** (decayed / HALF_LIFE)), rtol=1e-4)


def test_the_earliest_bed_is_the_start_of_all(dicom):
    slices, _ = dicom.pet_of(3, SeriesTime=None)
    for i, one in enumerate(slices):
        one.AcquisitionTime = f"11{15 + 10 * (2 - i)}00"
    assert np.allclose(factors(slices), 72500 / (3.7e8 * LEFT_AFTER_AN_HOUR))


def test_values_that_are_suv_already_stay(dicom):
    assert factors(dicom.pet_of(2, Units="GML", SUVType="BW")[0]) == [1.0, 1.0]
    assert factors(dicom.pet_of(2, Units="GML")[0]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"PatientWeight": None}, "(0010,1030) PatientWeight is missing"),
        ({"PatientWeight": 0}, "PatientWeight should be positive"),
        ({"PatientWeight": 72500}, "PatientWeight should be in kilograms"),
        (
            {"RadiopharmaceuticalInformationSequence": None},
            "(0054,0016) RadiopharmaceuticalInformationSequence is missing",
        ),
        (
            {"RadiopharmaceuticalInformationSequence": []},
            "(0054,0016) RadiopharmaceuticalInformationSequence is missing",
        ),
        ({"RadionuclideTotalDose": None}, "(0018,1074) RadionuclideTotalDose is missing"),
        ({"RadionuclideTotalDose": 370}, "RadionuclideTotalDose should be in becquerel"),
        ({"RadionuclideTotalDose": -3.7e8}, "RadionuclideTotalDose should be positive"),
        ({"RadionuclideHalfLife": None}, "(0018,1075) RadionuclideHalfLife is missing"),
        ({"RadionuclideHalfLife": 0}, "RadionuclideHalfLife should be positive"),
        ({"RadiopharmaceuticalStartTime": None}, "(0018,1072) RadiopharmaceuticalStartTime is missing"),
        ({"RadiopharmaceuticalStartTime": "9x"}, "(0018,1072) RadiopharmaceuticalStartTime is no date and time"),
        ({"RadiopharmaceuticalStartTime": "111501"}, "RadiopharmaceuticalStartTime is after the scan"),
        ({"RadiopharmaceuticalStartDateTime": "20240102120000"}, "RadiopharmaceuticalStartDateTime is after the scan"),
        ({"RadiopharmaceuticalStartDateTime": "19900101120000"}, "RadiopharmaceuticalStartDateTime is after the scan"),
        ({"SeriesTime": None, "AcquisitionTime": None}, "(0008,0031) SeriesTime is missing"),
        ({"SeriesDate": None, "AcquisitionDate": None}, "(0008,0021) SeriesDate is missing"),
        ({"Units": None}, "(0054,1001) Units is missing"),
        ({"Units": "CNTS"}, "(0054,1001) Units should be BQML"),
        ({"Units": "GML", "SUVType": "LBM"}, "(0054,1001) Units should be BQML"),
        ({"DecayCorrection": None}, "(0054,1102) DecayCorrection is missing"),
        ({"DecayCorrection": "NONE"}, "(0054,1102) DecayCorrection should be START"),
        ({"CorrectedImage": None}, "(0028,0051) CorrectedImage is missing"),
        ({"CorrectedImage": ["DECY"]}, "lacks ATTN"),
        ({"CorrectedImage": ["ATTN"]}, "lacks DECY"),
    ],
)
def test_what_is_missing_or_cannot_be_is_refused_by_its_tag(dicom, tmp_path, tags, named):
    slices, _ = dicom.pet_of(2, **tags)
    with pytest.raises(DataError) as caught:
        read(dicom, tmp_path, slices)
    text = str(caught.value)
    assert named in text
    assert str(tmp_path) in text
    assert not [
        v for v in ("72.5", "3.7e8", "370", "111500", "2024", "1990", "Secret") if v in text.replace(str(tmp_path), "")
    ]


def test_units_that_differ_within_a_series_are_refused(dicom):
    slices, _ = dicom.pet_of(3)
    slices[2].DecayCorrection = "ADMIN"
    with pytest.raises(DataError, match="DecayCorrection differs within the series"):
        factors(slices)
