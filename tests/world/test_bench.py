"""What `make bench` compares is comparable: the loop by hand ends with the network of the federated run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed_shared.plan import load, parse
from oncofed_simulations.bare import Workload
from oncofed_simulations.bench import BENCHMARKS, DEMO, main
from oncofed_simulations.bench_clipping import WAYS, ways_of
from oncofed_simulations.bench_measure import Measure


def test_loop_by_hand_trains_the_same_network(tmp_path: Path) -> None:
    content = load(DEMO).model_dump(mode="json", exclude_none=True)
    content["training"] |= {"rounds": 4, "local_steps": 2, "rate": 0.3}
    content["simulation"] = {"cohort": {"sites": 3, "patients": 90, "seed": 4}}
    workload = Workload.of(parse(content), tmp_path)
    assert [len(s) > 5 for s in workload.sets] == [True] * 3
    assert workload.difference() < 1e-4
    # And both moved: the server's optimiser alone goes up to `rate` a round.
    state = workload.reference.state.server
    assert state is not None
    assert np.abs(state.parameters).max() > 0.01
    workload.steps()


def test_a_measure_knows_its_goal() -> None:
    assert Measure(name="m", value=1.0, unit="x", goal=1.1).verdict == "met"
    assert Measure(name="m", value=1.2, unit="x", goal=1.1).verdict == "MISSED"
    assert Measure(name="m", value=1.2, unit="x").verdict == ""


def test_unknown_benchmarks_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loopback", "speed"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "speed" in printed.err
    assert all(name in printed.err for name in BENCHMARKS)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_a_step_trains_the_network_that_is_timed(way: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        work, network, _ = ways_of("linear-heavy", way)
        before = network.vector.clone()
        work()
    assert 950_000 < len(before) < 1_050_000
    assert torch.isfinite(network.vector).all()
    assert (network.vector != before).float().mean() > 0.5
