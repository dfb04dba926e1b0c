"""How a study turns a site's images into radiomics: the `extraction` table of a modality.

The settings themselves are one pyradiomics parameter file beside the study. Its SHA-256 stands here and so in the plan's
hash: a site whose file has other bytes refuses, and all sites measure alike (B-26).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from oncofed_shared.strict import Frozen

__all__ = ["RadiomicFeatures"]


def _beside(file: str) -> str:
    path = PurePosixPath(file.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        message = "must lie beside the study and be written relative to it"
        raise ValueError(message)
    return file


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        message = "must be distinct"
        raise ValueError(message)
    return names


File = Annotated[str, Field(min_length=1, pattern=r"\S"), AfterValidator(_beside)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_distinct)]


class RadiomicFeatures(Frozen):
    """Radiomics of some regions in some images.

    Attributes:
        file: a pyradiomics parameter file, relative to the study's folder.
        sha256: of its bytes, in hex.
        images: roles of series, as a site's `[imaging.series.ROLE]` names them.
        regions: as a site's `[imaging.regions.REGION]` names them.
    """

    file: File
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    images: Names = ("ct",)
    regions: Names = ("tumour",)

    def prefix(self, image: str, region: str) -> str:
        """What stands before a feature's name: image and region, as far as there are several.

        >>> one = RadiomicFeatures(file="r.yaml", sha256="0" * 64)
        >>> two = RadiomicFeatures(file="r.yaml", sha256="0" * 64, images=("t1", "flair"))
        >>> one.prefix("ct", "tumour"), two.prefix("t1", "tumour")
        ('', 't1_')
        """
        parts = [image] * (len(self.images) > 1) + [region] * (len(self.regions) > 1)
        return "".join(f"{part}_" for part in parts)
