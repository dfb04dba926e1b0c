"""How images become patches for the network: one pipeline in the plan, so that every site has the same (B-26).

Axes are z, y, x everywhere: towards the head, towards the back, towards the patient's left.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from oncofed_shared.strict import Frozen

__all__ = ["AugmentationSettings", "PatchSettings"]

_MOST_VOXELS = 2**27
Count = Annotated[int, Field(ge=1, le=1024)]
Millimetres = Annotated[float, Field(gt=0.05, le=50)]
Share = Annotated[float, Field(ge=0, le=1)]


class PatchSettings(Frozen):
    """One patch per patient and series, round the region of interest.

    Attributes:
        size: voxels along z, y, x.
        spacing: mm along z, y, x.
        intensity: "window" maps [low, high] to [0, 1] and cuts what is outside (CT in HU, PET in SUV); "zscore" subtracts the
            mean and divides by the standard deviation inside the body, and cuts at `cut` (MR, whose units mean nothing).
        window: low and high.
        cut: standard deviations.
    """

    size: tuple[Count, Count, Count] = (32, 64, 64)
    spacing: tuple[Millimetres, Millimetres, Millimetres] = (2.0, 1.0, 1.0)
    intensity: Literal["window", "zscore"] = "window"
    window: tuple[float, float] | None = None
    cut: Annotated[float, Field(gt=0, le=100)] = 5.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = []
        if math.prod(self.size) > _MOST_VOXELS:
            problems.append(f".size: has more than {_MOST_VOXELS} voxels")
        if (self.intensity == "window") != (self.window is not None):
            problems.append(".window: goes with intensity = window, and with nothing else")
        if self.window is not None and not self.window[0] < self.window[1]:
            problems.append(".window: expected [low, high]")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class AugmentationSettings(Frozen):
    """How patches are varied while training (B-31); 0 leaves a step out.

    Attributes:
        flip: probability of a flip left to right.
        rotation: largest turn about the z axis, in degrees.
        crop: smallest share of each axis that is kept; the patch is filled up to its size.
        noise: standard deviation of added noise, in units of the patch.
    """

    flip: Share = 0.5
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    crop: Annotated[float, Field(gt=0, le=1)] = 0.9
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0
