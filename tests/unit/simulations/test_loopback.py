"""The in-process driver: every byte over a site's boundary is seen, and time passes only when nothing else can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Roster
from oncofed_shared.messages import Train, Trial, Update, from_bytes
from oncofed_shared.plan import Plan
from oncofed_simulations.consortium import Consortium
from oncofed_simulations.loopback import FakeClock, drive

MakePlan = Callable[..., Plan]
MakeConsortium = Callable[..., Consortium]
TRIAL = Trial(seed=2)
Seen = list[tuple[str, str, bytes]]


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(model__layers=0)


@pytest.fixture
def consortium(make_consortium: MakeConsortium, plan: Plan, tmp_path: Path) -> Consortium:
    return make_consortium(plan, tmp_path)


def test_every_byte_over_a_boundary_passes_the_tap_and_is_a_message(consortium: Consortium, plan: Plan) -> None:
    seen: Seen = []
    names = tuple(consortium.sites)
    aggregator = Aggregator(plan, Roster(trainers=names, evaluators=names), TRIAL, session="s")
    clock, steps = FakeClock(), Counter[Phase]()
    drive(
        aggregator,
        consortium.sites,
        clock=clock,
        tap=lambda *message: seen.append(message),
        after_step=lambda a: steps.update([a.state.phase]),
    )
    assert aggregator.state.phase is Phase.DONE
    # A request and a reply in turn, of the same site, step and session.
    for down, up in zip(seen[::2], seen[1::2], strict=True):
        assert (down[0], up[0], down[1]) == ("down", "up", up[1])
        request, reply = from_bytes(down[2]), from_bytes(up[2])
        assert request.head == reply.head
        assert isinstance(reply, Update) == isinstance(request, Train)
    assert sum(steps.values()) == len(seen) // 2
    assert clock.now == 0


def test_a_clock_goes_on_only_when_told() -> None:
    clock = FakeClock()
    clock.advance(2.5)
    clock.advance(1)
    assert clock.now == 3.5
