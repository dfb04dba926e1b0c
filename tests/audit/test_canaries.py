"""The audit calls correct code correct, and each planted bug by its name, in every one of ten seeds."""

from __future__ import annotations

import pytest

from oncofed_client.source import FolderSource
from oncofed_shared.features import no_sums, prepare, unite
from oncofed_simulations.audit_claims import audit_canaries
from oncofed_simulations.audit_inclusion import audit_inclusion
from oncofed_simulations.consortium import folder_settings

from .conftest import (
    NOT_POISSON,
    clip_doubled,
    noise_halved,
    not_poisson,
    same_seed_at_every_site,
    same_seed_every_step,
    share_left_out,
    study,
)

TEN = range(10)
NOISES = ("site", "consortium")


@pytest.fixture
def audit(folder, tmp_path, monkeypatch):
    """A run with canaries of the study, with a bug planted or without."""

    def run(noise, seed, plant=None, **more):
        if plant is not None:
            plant(monkeypatch)
        return audit_canaries(study(noise, seed, **more), folder, tmp_path / "audit", seed=seed)[0]

    return run


@pytest.fixture(scope="module")
def preparation(folder):
    """Constants of the study over the hospitals' columns."""
    plan = study("site")
    folders = [f for f in sorted(folder.iterdir()) if f.is_dir()]
    columns = unite(plan, [FolderSource(f, folder_settings(f, plan)).cohort(plan).columns for f in folders])
    return prepare(plan, columns, no_sums(plan, columns))


def sound(found):
    """Nothing is wrong, and there was something to see: canaries were in the sums, clipped, as often as they should."""
    assert found.wrong == ()
    assert 0 < found.bound.epsilon <= found.claim.epsilon
    assert found.one_run <= found.claim.epsilon
    assert found.clipped > 0.9
    assert abs(found.change - 1) < 5 * found.error


@pytest.mark.parametrize("noise", NOISES)
def test_correct_code_stays_at_or_below_the_claim(audit, noise):
    sound(audit(noise, 0))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("bug", [noise_halved, clip_doubled])
def test_less_noise_or_a_longer_clip_norm_is_above_the_claim(audit, noise, bug):
    found = audit(noise, 0, bug)
    assert "epsilon" in found.wrong
    assert found.bound.epsilon > 1.3 * found.claim.epsilon


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_seed_in_two_steps_is_a_correlation(audit, noise):
    assert "correlation" in audit(noise, 0, same_seed_every_step).wrong


def test_the_same_seed_at_two_sites_is_a_correlation(audit):
    assert "correlation" in audit("site", 0, same_seed_at_every_site).wrong


def test_a_share_that_is_left_out_is_a_smaller_variance(audit):
    found = audit("consortium", 0, share_left_out, rounds=8)
    assert "variance" in found.wrong
    assert found.variance.found < 1


@pytest.mark.parametrize("noise", NOISES)
def test_correct_sampling_is_called_so(preparation, noise):
    found = audit_inclusion(study(noise, rate=0.5), preparation, seed=0)
    assert found.wrong == ()
    assert abs(found.rate - 0.5) < 0.02


@pytest.mark.parametrize("sampler", NOT_POISSON)
@pytest.mark.parametrize("noise", NOISES)
def test_another_sampling_than_poisson_shows_in_inclusions(preparation, monkeypatch, noise, sampler):
    not_poisson(NOT_POISSON[sampler])(monkeypatch)
    assert audit_inclusion(study(noise, rate=0.5), preparation, seed=0).wrong != ()


def test_everybody_in_every_step_is_above_the_claim_too(audit):
    assert "epsilon" in audit("site", 0, not_poisson(NOT_POISSON["everybody"]), rate=0.25, rounds=24).wrong


@pytest.mark.slow
@pytest.mark.parametrize("seed", TEN)
class TestTenSeeds:
    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize(("rate", "rounds"), [(1.0, 8), (0.5, 24)])
    def test_correct_code_stays_at_or_below_the_claim(self, audit, noise, seed, rate, rounds):
        sound(audit(noise, seed, rate=rate, rounds=rounds))

    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("bug", [noise_halved, clip_doubled])
    def test_less_noise_or_a_longer_clip_norm_is_above_the_claim(self, audit, noise, seed, bug):
        found = audit(noise, seed, bug)
        assert "epsilon" in found.wrong
        assert found.bound.epsilon > 1.1 * found.claim.epsilon

    @pytest.mark.parametrize("noise", NOISES)
    def test_the_same_seed_in_two_steps_is_a_correlation(self, audit, noise, seed):
        assert "correlation" in audit(noise, seed, same_seed_every_step).wrong

    def test_the_same_seed_at_two_sites_is_a_correlation(self, audit, seed):
        assert "correlation" in audit("site", seed, same_seed_at_every_site).wrong

    def test_a_share_that_is_left_out_is_a_smaller_variance(self, audit, seed):
        assert "variance" in audit("consortium", seed, share_left_out, rounds=8).wrong

    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("rate", [0.1, 0.5])
    def test_correct_sampling_is_called_so(self, preparation, noise, seed, rate):
        assert audit_inclusion(study(noise, seed, rate=rate), preparation, seed=seed).wrong == ()

    @pytest.mark.parametrize(("noise", "rate"), [(noise, rate) for noise in NOISES for rate in (0.1, 0.5)])
    def test_another_sampling_than_poisson_shows_in_inclusions(self, preparation, monkeypatch, noise, seed, rate):
        for sampler in NOT_POISSON.values():
            not_poisson(sampler)(monkeypatch)
            assert audit_inclusion(study(noise, seed, rate=rate), preparation, seed=seed).wrong != ()
