"""Radiomics of one region by pyradiomics, from the smallest part of the volume that gives the same numbers.

pyradiomics filters the whole volume and then measures inside the region. A filter reaches only so far, so the volume is cut
down first: by the width of the wavelet, and by `LOG_REACH` sigma for the Laplacian of a Gaussian, whose tail never quite ends.
Against the whole volume the original and the wavelet features are equal to the last bit, where the region does not come
near the volume's border; the Laplacian's agree to about 1e-6.

The settings are one pyradiomics file, whose SHA-256 stands in the study plan, so that every site measures alike (B-26).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pywt
import radiomics
import SimpleITK as sitk
from radiomics import imageoperations
from radiomics.featureextractor import RadiomicsFeatureExtractor

from oncofed_shared.errors import ConfigError, DataError

__all__ = ["LOG_REACH", "Extraction", "crop", "extract", "load_extraction", "parse_extraction", "study_name"]

LOG_REACH = 12.0
"""Widths of the Gaussian that are kept round a region. What lies further out changes no feature by more than about 1e-6."""

_IMAGE_TYPES = ("Original", "Wavelet", "LoG")
_CLASSES = ("shape", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")
_REFUSED = {
    "label": "the region is chosen by its name",
    "label_channel": "the region is chosen by its name",
    "correctMask": "a mask that does not lie on its image is an error and is never moved",
    "geometryTolerance": "a mask that does not lie on its image is an error and is never moved",
    "preCrop": "the volume is always cut down before extraction",
    "additionalInfo": "only features are kept",
    "kernelRadius": "features are of regions, not of voxels",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """A pyradiomics settings file that was read and understood.

    Attributes:
        sha256: of the file's bytes, in hex.
        content: what it says, as JSON: `setting`, `imageType` and `featureClass` as pyradiomics takes them.
    """

    sha256: str
    content: str

    @property
    def settings(self) -> dict[str, Any]:
        """`setting` of the file over pyradiomics' own defaults."""
        defaults: dict[str, Any] = RadiomicsFeatureExtractor._getDefaultSettings()  # noqa: SLF001 - it has no public name
        own: dict[str, Any] = json.loads(self.content)["setting"]
        return defaults | own

    @property
    def image_types(self) -> dict[str, dict[str, Any]]:
        """Filters and their own settings."""
        made: dict[str, dict[str, Any]] = json.loads(self.content)["imageType"]
        return made


def load_extraction(path: Path, sha256: str) -> Extraction:
    """Read the settings file that a plan names.

    Args:
        path: a pyradiomics parameter file, YAML or JSON.
        sha256: what the plan says its bytes hash to, in hex.

    Raises:
        ConfigError: it is absent, has other bytes than the plan says, is no parameter file, or asks for what is not offered.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"{path}: the study's radiomics settings cannot be read ({error.strerror}); put the file beside the study"
        ) from None
    if found != sha256:
        raise ConfigError(
            f"{path}: has the SHA-256 {found}, and the plan says {sha256}; get the file that belongs to this plan"
        )
    return parse_extraction(path, sha256)


def parse_extraction(source: Path | Mapping[str, Any], sha256: str = "") -> Extraction:
    """Read settings from a file, or take them as pyradiomics' parameter dictionary.

    Raises:
        ConfigError: pyradiomics does not accept them, or they ask for what is not offered.
    """
    where = str(source) if isinstance(source, Path) else "radiomics settings"
    extractor = _extractor_of(source, where)
    classes = dict(extractor.enabledFeatures)
    if set(classes) == set(extractor.featureClassNames) and not any(classes.values()):
        # Nothing was chosen, so pyradiomics takes all; the shapes of single slices give nothing in a volume.
        classes.pop("shape2D")
    problems = [
        f"{where}: imageType.{name}: expected one of {', '.join(_IMAGE_TYPES)}"
        for name in extractor.enabledImagetypes
        if name not in _IMAGE_TYPES
    ]
    problems += [
        f"{where}: featureClass.{name}: expected one of {', '.join(_CLASSES)}"
        for name in classes
        if name not in _CLASSES
    ]
    defaults = RadiomicsFeatureExtractor._getDefaultSettings()  # noqa: SLF001 - it has no public name
    own = {k: v for k, v in extractor.settings.items() if k not in defaults or v != defaults[k]}
    problems += [f"{where}: setting.{k}: leave it out: {why}" for k, why in _REFUSED.items() if k in own]
    if problems:
        raise ConfigError(*problems)
    content = {
        "setting": own,
        "imageType": {k: v or {} for k, v in extractor.enabledImagetypes.items()},
        "featureClass": classes,
    }
    return Extraction(sha256=sha256, content=json.dumps(content, sort_keys=True, allow_nan=False))


def _extractor_of(source: Path | Mapping[str, Any], where: str) -> Any:
    """Let pyradiomics read its own settings.

    Raises:
        ConfigError: it does not accept them.
    """
    given = str(source) if isinstance(source, Path) else dict(source)
    for name in ("pykwalify", "radiomics"):  # they report on stderr what is raised here once more
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    radiomics.setVerbosity(60)
    with warnings.catch_warnings():
        # pykwalify loads its extensions in a way that Python 3.12 will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        try:
            return RadiomicsFeatureExtractor(given)
        except Exception as error:  # noqa: BLE001 - pykwalify and its YAML reader share no root
            lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
            why = "; ".join(lines[:5]) or type(error).__name__
            raise ConfigError(f"{where}: pyradiomics does not accept it as its parameters: {why}") from None


@lru_cache(maxsize=8)
def _extractor(content: str) -> Any:
    parameters = json.loads(content)
    parameters["setting"] = {**parameters["setting"], "additionalInfo": False}
    return _extractor_of(parameters, "radiomics settings")


def study_name(name: str) -> str:
    """A feature's name in a study: pyradiomics' own without `original_`.

    >>> study_name("original_shape_Sphericity"), study_name("wavelet-LLH_glcm_Contrast")
    ('shape_Sphericity', 'wavelet-LLH_glcm_Contrast')
    """
    return name.removeprefix("original_")


def _reach(extraction: Extraction, spacing: tuple[float, ...]) -> list[int]:
    """Voxels per axis that a region's features depend on beyond its bounding box."""
    voxels = float(extraction.settings["padDistance"])
    millimetres = 0.0
    for name, own in extraction.image_types.items():
        if name == "Wavelet":
            width = pywt.Wavelet(own.get("wavelet", "coif1")).dec_len
            voxels = max(voxels, width * (own.get("start_level", 0) + own.get("level", 1)))
        if name == "LoG":
            millimetres = max([millimetres, *(LOG_REACH * s for s in own.get("sigma", ()))])
    return [max(math.ceil(voxels), math.ceil(millimetres / s)) for s in spacing]


def _bounds(mask: sitk.Image) -> tuple[list[int], list[int]]:
    """First and last index of the region on each axis.

    Raises:
        DataError: the region is empty.
    """
    inside = sitk.GetArrayViewFromImage(mask) != 0
    low, high = [], []
    for axis in (2, 1, 0):  # x, y, z
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(hit):
            raise DataError("the region has no voxel in this image; check which region its name chooses", code="region")
        low.append(int(hit[0]))
        high.append(int(hit[-1]))
    return low, high


def _part(image: sitk.Image, low: list[int], high: list[int], pad: list[int]) -> sitk.Image:
    size = image.GetSize()
    first = [max(a - p, 0) for a, p in zip(low, pad, strict=True)]
    last = [min(b + p, n - 1) for b, p, n in zip(high, pad, size, strict=True)]
    return sitk.RegionOfInterest(image, [b - a + 1 for a, b in zip(first, last, strict=True)], first)


def _same_grid(image: sitk.Image, mask: sitk.Image) -> bool:
    close = all(
        np.allclose(getattr(image, get)(), getattr(mask, get)(), rtol=1e-5, atol=1e-4)
        for get in ("GetSpacing", "GetOrigin", "GetDirection")
    )
    return image.GetDimension() == 3 and image.GetSize() == mask.GetSize() and close


def crop(image: sitk.Image, mask: sitk.Image, extraction: Extraction) -> tuple[sitk.Image, sitk.Image]:
    """Cut image and mask down to what the features depend on, after what the settings do to the whole volume.

    Args:
        image: a volume.
        mask: on the image's grid; not 0 inside the region.
        extraction: says how far the filters reach, and whether to normalise or resample first.

    Returns:
        Image and mask (1 inside, uint32) of equal geometry: what plain pyradiomics measures with the same settings less
        normalisation and resampling, which are done.

    Raises:
        DataError: the mask does not lie on the image's grid, or is empty.
    """
    if not _same_grid(image, mask):
        raise DataError(
            "the mask does not lie on its image: size, spacing, origin or direction differ; export both from one series",
            code="mask-grid",
        )
    settings = extraction.settings
    low, high = _bounds(mask)
    if settings["normalize"]:
        # By the mean and spread of the whole volume, so it comes before the cut.
        image = imageoperations.normalizeImage(image, **settings)
    spacing = settings["resampledPixelSpacing"]
    if spacing and settings["interpolator"] is not None:
        # The new grid begins at the old one's origin: the whole mask fixes it. The image is only needed as far as the
        # padding reaches, and the spline's coefficients fade by 0.27 per voxel.
        ratio = [(new or old) / old for new, old in zip(spacing, image.GetSpacing(), strict=True)]
        pad = [math.ceil((settings["padDistance"] + 1) * r) + 24 for r in ratio]
        image = _part(image, low, high, pad)
        whole: tuple[sitk.Image, sitk.Image] = imageoperations.resampleImage(
            image, sitk.Cast(mask != 0, sitk.sitkUInt32), **settings
        )
        return whole
    pad = _reach(extraction, image.GetSpacing())
    return _part(image, low, high, pad), sitk.Cast(_part(mask, low, high, pad) != 0, sitk.sitkUInt32)


def extract(image: sitk.Image, mask: sitk.Image, extraction: Extraction) -> dict[str, float]:
    """Measure a region (B-02, B-03, B-04).

    Args:
        image: a volume.
        mask: on the image's grid; not 0 inside the region.
        extraction: the study's settings.

    Returns:
        Features by the study's names; NaN where a feature does not exist for this region.

    Raises:
        DataError: the mask does not lie on the image, or the region is too small to be measured.
    """
    part, region = crop(image, mask, extraction)
    done = {"normalize": False, "resampledPixelSpacing": None}
    content = json.loads(extraction.content)
    content["setting"] |= done
    extractor = _extractor(json.dumps(content, sort_keys=True))
    with warnings.catch_warnings():
        # Logarithms and quotients of empty matrices: the feature is then NaN, which is said by its value.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            found = extractor.execute(part, region)
        except ValueError as error:
            raise DataError(
                f"the region cannot be measured: {_why(str(error))}; draw it anew or leave this patient out",
                code="region",
            ) from None
    values = {study_name(name): float(value) for name, value in found.items()}
    return {name: value if math.isfinite(value) else math.nan for name, value in sorted(values.items())}


def _why(message: str) -> str:
    """A refusal of pyradiomics in our words: its own may hold numbers of this patient."""
    for part, words in {
        "1 segmented voxel": "it is a single voxel",
        "too few dimensions": "it is flat",
        "too small": "it is smaller than setting.minimumROISize",
        "excluded too many voxels": "too few voxels lie in setting.resegmentRange",
        "larger than image space": "it reaches beyond the image",
        "not present in mask": "nothing of it is left after resampling",
        "No labels found": "nothing of it is left after resampling",
    }.items():
        if part in message:
            return words
    return "pyradiomics refused it"
