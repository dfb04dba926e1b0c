"""A small private study with many columns, its hospitals, and bugs that are planted where the real code calls its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oncofed_client import contributor, integer_step, private_training
from oncofed_client.contributor import Contributor
from oncofed_client.randomness import Randomness
from oncofed_shared.plan import Plan, load, parse
from oncofed_simulations.audit_path import attacked_plan

SITES = ("site-1", "site-2", "site-3", "site-4")
DEMO = Path(__file__).resolve().parents[2] / "simulations" / "studies" / "demo_private.toml"


def study(noise: str, seed: int = 0, *, rate: float = 1.0, rounds: int = 4, **privacy: Any) -> Plan:
    """The demonstration study, made short, with noise that repeats: a test that passes goes on passing.

    Everybody is in every step unless a test says otherwise, so that the claim is exactly that of a Gaussian mechanism.
    """
    content = load(DEMO).model_dump(mode="json")
    more = {"spare_steps": 0} if noise == "consortium" else {}
    content["privacy"] = {
        "noise": noise, "epsilon": 3, "delta": 1e-4, "clip_norm": 1.0, "sampling_rate": rate,
        "patients": dict.fromkeys(SITES, 30), **more, **privacy,
    }  # fmt: skip
    content["training"] |= {"rounds": rounds, "rate": 0.5}
    content["simulation"] = {"noise_seed": seed}
    return attacked_plan(parse(content))


Plant = Callable[[pytest.MonkeyPatch], None]


def noise_halved(patch: pytest.MonkeyPatch) -> None:
    """Every share of noise is half as wide as the mechanism says."""
    for module in (integer_step, private_training):
        real = module.add_discrete_gaussian
        patch.setattr(module, "add_discrete_gaussian", lambda r, sigma, onto, real=real: real(r, sigma / 2, onto))


def clip_doubled(patch: pytest.MonkeyPatch) -> None:
    """A patient is shortened to twice the bound."""
    for module in (integer_step, private_training):
        real = module.integer_sum

        @wraps(real)
        def doubled(*arguments: Any, real: Any = real, **more: Any) -> Any:
            *others, integers = arguments
            twice = replace(integers, clip_norm=2 * integers.clip_norm, bound=2 * integers.bound)
            return real(*others, twice, **more)

        patch.setattr(module, "integer_sum", doubled)


def same_seed_every_step(patch: pytest.MonkeyPatch) -> None:
    """A site draws the same stream in every step."""
    patch.setattr(Contributor, "_random", lambda self, _: Randomness.repeatable(self.site))


def same_seed_at_every_site(patch: pytest.MonkeyPatch) -> None:
    """All sites draw the same stream in a step."""
    patch.setattr(Contributor, "_random", lambda _, label: Randomness.repeatable(label))


def share_left_out(patch: pytest.MonkeyPatch) -> None:
    """One site adds its patients to the sum, and no noise."""
    real = contributor.Contributor._random

    class Silent(Randomness):
        """A stream by which noise is drawn as nothing."""

    def draw(self: Contributor, label: str) -> Randomness:
        made = real(self, label)
        if self.site == SITES[0]:
            made.__class__ = Silent
        return made

    gaussian = integer_step.add_discrete_gaussian

    def added(random: Randomness, sigma: float, numbers: np.ndarray[Any, Any]) -> None:
        if not isinstance(random, Silent):
            gaussian(random, sigma, numbers)

    patch.setattr(Contributor, "_random", draw)
    patch.setattr(integer_step, "add_discrete_gaussian", added)


def _half(random: Randomness, rate: float, patients: int) -> torch.Tensor:
    """A batch of a fixed size, drawn without replacement."""
    order = np.argsort(random.uniforms(patients))
    return torch.from_numpy(np.sort(order[: round(rate * patients)]))


def _first(random: Randomness, rate: float, patients: int) -> torch.Tensor:
    """The same part of the patients in every step."""
    del random
    return torch.arange(round(rate * patients))


def _all(random: Randomness, rate: float, patients: int) -> torch.Tensor:
    """Everybody in every step."""
    del random, rate
    return torch.arange(patients)


NOT_POISSON = {"fixed size": _half, "same batch": _first, "everybody": _all}


def not_poisson(sampler: Callable[..., torch.Tensor]) -> Plant:
    """Patients are sampled in another way than is accounted."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for module in (integer_step, private_training):
            patch.setattr(module, "sample", sampler)

    return plant


@pytest.fixture(scope="session")
def folder(hospitals: Path) -> Path:
    """The hospitals of the audited study."""
    return hospitals
