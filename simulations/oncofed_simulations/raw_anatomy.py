"""Lesions and the volumes in which they show: the planted signal as shape, brightness and texture.

A lesion measures its patient's two hidden factors of the radiomics (see `population`) with a little noise: u makes it
larger, bumpier, longer and brighter, v makes its texture stronger and coarser. It is star-shaped in every
axial plane, so that its outline, its mask and its hole come from one formula:

    rho(theta, z) = radius sqrt(1 - (z / height)^2) (1 + bumps sum over k of a_k cos(k theta + p_k + z / height))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "CT_GRID",
    "MR_GRID",
    "PET_GRID",
    "Grid",
    "Lesion",
    "body",
    "draw_lesion",
    "hounsfield",
    "resonance",
    "uptake",
]

Floats = NDArray[np.float64]

_LOADING = 0.92
_WAVES = (2, 3, 5)
_HOLE = 0.4
"""A necrotic core is this part of the lesion's radius, in its middle planes."""
_BODY = (38.0, 34.0)
"""Half axes of the body's outline in mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Voxels in space, axial, (0, 0, 0) mm in the middle of the volume.

    Attributes:
        shape: z, y, x.
        spacing: z, y, x in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def origin(self) -> tuple[float, float, float]:
        """Centre of the first voxel: z, y, x in mm."""
        z, y, x = (-(n - 1) / 2 * s for n, s in zip(self.shape, self.spacing, strict=True))
        return z, y, x

    def axes(self) -> tuple[Floats, Floats, Floats]:
        """Coordinates in mm, each shaped to broadcast to (z, y, x)."""
        z, y, x = (
            np.asarray(o + np.arange(n) * s, dtype=np.float64)
            for o, n, s in zip(self.origin, self.shape, self.spacing, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]


CT_GRID = Grid(shape=(24, 40, 40), spacing=(3.0, 2.0, 2.0))
MR_GRID = Grid(shape=(16, 32, 32), spacing=(4.5, 2.5, 2.5))
PET_GRID = Grid(shape=(16, 24, 24), spacing=(4.5, 3.4, 3.4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """A tumour.

    Attributes:
        centre: z, y, x in mm.
        radius, height: in the axial plane and along z, mm.
        stretch, turn: how much longer than wide, and the angle of its long axis.
        bumps: how far it is from an ellipsoid.
        amplitudes, phases: (3,) of the bumps' waves.
        brightness: mean in Hounsfield units.
        contrast: standard deviation of its texture in Hounsfield units.
        grain: size of the texture's grains in mm.
        hollow: whether it has a necrotic core, which is not part of it.
    """

    centre: tuple[float, float, float]
    radius: float
    height: float
    stretch: float
    turn: float
    bumps: float
    amplitudes: tuple[float, ...]
    phases: tuple[float, ...]
    brightness: float
    contrast: float
    grain: float
    hollow: bool

    def rho(self, theta: Floats, z: Floats) -> Floats:
        """Radius of the surface at an angle and a height over the centre (mm), before it is stretched; 0 outside."""
        up = np.clip(z / self.height, -1.0, 1.0)
        waves = sum(
            (a * np.cos(k * theta + p + up) for k, a, p in zip(_WAVES, self.amplitudes, self.phases, strict=True)),
            np.zeros(()),
        )
        return np.asarray(self.radius * np.sqrt(1 - up**2) * (1 + self.bumps * waves), dtype=np.float64)

    def holds_hole(self, z: float) -> bool:
        """Whether the plane at height z over the centre cuts the core."""
        return self.hollow and abs(z) < _HOLE * self.height

    def outlines(self, z: float, points: int = 72) -> list[Floats]:
        """Closed outlines in the plane at z mm, each (points, 2) of x and y in mm; the second one is the hole's."""
        above = z - self.centre[0]
        if abs(above) >= self.height:
            return []
        theta = np.arange(points) * (2 * np.pi / points)
        rho = self.rho(np.asarray(theta, dtype=np.float64), np.full(points, above))
        long, wide = rho * np.cos(theta) * self.stretch, rho * np.sin(theta) / self.stretch
        x = self.centre[2] + np.cos(self.turn) * long - np.sin(self.turn) * wide
        y = self.centre[1] + np.sin(self.turn) * long + np.cos(self.turn) * wide
        outer = np.stack([x, y], axis=1)
        if not self.holds_hole(above):
            return [outer]
        centre = np.array(self.centre[:0:-1])
        return [outer, centre + _HOLE * (outer - centre)]

    def mask(self, grid: Grid) -> NDArray[np.bool_]:
        """Voxels whose centre is inside, (z, y, x)."""
        z, y, x = (axis - c for axis, c in zip(grid.axes(), self.centre, strict=True))
        long = (np.cos(self.turn) * x + np.sin(self.turn) * y) / self.stretch
        wide = (np.cos(self.turn) * y - np.sin(self.turn) * x) * self.stretch
        angle = np.asarray(np.arctan2(wide, long), dtype=np.float64)
        distance, surface = np.hypot(long, wide), self.rho(angle, z)
        solid = (distance < surface) & (np.abs(z) < self.height)
        core = np.array([self.holds_hole(float(h)) for h in z.ravel()])[:, None, None] & (distance < _HOLE * surface)
        return np.asarray(solid & ~core, dtype=np.bool_)


def draw_lesion(rng: np.random.Generator, u: float, v: float) -> Lesion:
    """Draw a patient's lesion from the hidden factors of the radiomics."""
    noise = np.sqrt(1 - _LOADING**2) * rng.standard_normal(6)
    size, uneven, long, bright = np.clip(_LOADING * u + noise[:4], -2.5, 2.5).tolist()
    strong, coarse = np.clip(_LOADING * v + noise[4:], -2.5, 2.5).tolist()
    radius = 11.5 * np.exp(0.16 * size)
    amplitudes = rng.dirichlet([4.0] * len(_WAVES))
    return Lesion(
        centre=tuple(rng.uniform(-2.0, 2.0, 3).tolist()),
        radius=float(radius),
        height=float(radius * rng.uniform(0.95, 1.1)),
        stretch=float(1.15 * np.exp(0.05 * long)),
        turn=float(rng.uniform(0, np.pi)),
        bumps=float(0.18 * np.exp(0.3 * uneven)),
        amplitudes=tuple(amplitudes.tolist()),
        phases=tuple(rng.uniform(0, 2 * np.pi, len(_WAVES)).tolist()),
        brightness=45.0 + 14.0 * bright,
        contrast=float(30.0 * np.exp(0.3 * strong)),
        grain=float(2.2 * np.exp(0.3 * coarse)),
        hollow=bool(rng.random() < 0.1),
    )


def body(grid: Grid) -> NDArray[np.bool_]:
    """Voxels inside the patient's outline, (z, y, x)."""
    _, y, x = grid.axes()
    inside = (x / _BODY[0]) ** 2 + (y / _BODY[1]) ** 2 < 1
    return np.asarray(np.broadcast_to(inside, grid.shape), dtype=np.bool_)


def _texture(rng: np.random.Generator, grid: Grid, grain: float, part: NDArray[np.bool_]) -> Floats:
    """Smooth noise of mean 0 and standard deviation 1 in a part of the volume; `grain` is its width in mm."""
    rough = rng.standard_normal(grid.shape)
    smooth = ndimage.gaussian_filter(rough, [grain / s for s in grid.spacing], mode="wrap")
    return np.asarray((smooth - smooth[part].mean()) / smooth[part].std(), dtype=np.float64)


def hounsfield(
    rng: np.random.Generator, lesion: Lesion, grid: Grid, *, offset: float = 0.0, noise: float = 6.0
) -> Floats:
    """Draw a CT: the lesion in soft tissue in air.

    Args:
        rng: of noise and texture.
        lesion: the tumour; its necrotic core is dark.
        grid: of the result.
        offset: of the site's scanner, in Hounsfield units.
        noise: of the site's scanner, standard deviation in Hounsfield units.

    Returns:
        (z, y, x) in Hounsfield units.
    """
    mask = lesion.mask(grid)
    tumour = lesion.brightness + lesion.contrast * _texture(rng, grid, lesion.grain, mask)
    z, y, x = (axis - c for axis, c in zip(grid.axes(), lesion.centre, strict=True))
    dark = np.sqrt(z**2 + y**2 + x**2) < _HOLE * lesion.radius if lesion.hollow else np.zeros(grid.shape, np.bool_)
    tissue = np.where(mask, tumour, np.where(dark, 8.0, 20.0))
    inside = tissue + offset + noise * rng.standard_normal(grid.shape)
    return np.asarray(np.where(body(grid), inside, -1000.0), dtype=np.float64)


def resonance(rng: np.random.Generator, lesion: Lesion, grid: Grid, *, tissue: float, tumour: float) -> Floats:
    """Draw an MR sequence: arbitrary units, a slow bias field, the lesion at `tumour` in `tissue`; (z, y, x) >= 0."""
    mask, inside = lesion.mask(grid), body(grid)
    bias = 1 + 0.1 * _texture(rng, grid, 20.0, inside)
    signal = np.where(mask, tumour * (1 + 0.1 * _texture(rng, grid, lesion.grain, mask)), tissue)
    signal = np.where(inside, signal * bias, 0.0) + 8.0 * np.abs(rng.standard_normal(grid.shape))
    return np.asarray(np.clip(signal, 0.0, None), dtype=np.float64)


def uptake(rng: np.random.Generator, lesion: Lesion, grid: Grid) -> Floats:
    """Draw a PET: standardised uptake by body weight, (z, y, x) >= 0."""
    hot = 4.0 + 0.05 * (lesion.contrast - 30.0)
    suv = np.where(lesion.mask(grid), hot, np.where(body(grid), 1.0, 0.0))
    blurred = ndimage.gaussian_filter(suv, [3.0 / s for s in grid.spacing])
    return np.asarray(blurred * (1 + 0.05 * rng.standard_normal(grid.shape)).clip(0.5), dtype=np.float64)
