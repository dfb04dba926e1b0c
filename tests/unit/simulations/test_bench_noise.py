"""The benchmark of noise still finds plans that it can draw for."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed_simulations import bench_noise


def test_noise_is_drawn_at_the_width_of_a_small_and_of_a_large_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("DRAWS", 1000), ("FEWER", 10), ("REPEATS", 1)):
        monkeypatch.setattr(bench_noise, name, value)
    small, large, *_ = bench_noise.sampler(tmp_path)
    assert small.value > 0
    assert large.value > 0
    assert int(large.note.split()[0].replace(",", "")) > int(small.note.split()[1].replace(",", ""))
