"""The last look at a reply knows an answer to every request, and no other."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import pytest

from oncofed_client.egress import ANSWERS, check_reply
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.messages import (
    Contribute,
    Contribution,
    Describe,
    Description,
    Errand,
    Formation,
    Head,
    Open,
    Ready,
    Reduce,
    Reduced,
    Request,
    Summarise,
    Summary,
    Trial,
)
from oncofed_shared.plan import Plan, load

STUDIES = Path(__file__).parents[3] / "simulations" / "studies"


def head_of(plan: Plan) -> Head:
    return Head(session="s", step=1, attempt=0, plan_hash=plan.hash, trial=Trial(seed=0))


def test_every_request_has_its_answer() -> None:
    assert set(ANSWERS) == {*typing.get_args(Request), *typing.get_args(Errand)}


def test_sums_of_reductions_and_harmonisations_leave_under_a_plan_without_privacy_alone() -> None:
    for name, allowed in (("scanners", True), ("demo_private", False), ("statistics_private", False)):
        plan = load(STUDIES / f"{name}.toml")
        head, sums = head_of(plan), np.zeros(3)
        reduce = Reduce(head=head, number=0, columns={}, arrays={})
        pairs = (
            (reduce, Reduced(head=head, site="a", sums=sums)),
            (Summarise(head=head, columns={}), Summary(head=head, site="a", sums=sums)),
        )
        for request, reply in pairs:
            if allowed:
                check_reply(plan, request, reply, site="a")
            else:
                with pytest.raises(LocalProtocolError, match="stays here"):
                    check_reply(plan, request, reply, site="a")
        with pytest.raises(LocalProtocolError, match="stays here"):
            check_reply(plan, reduce, Summary(head=head, site="a", sums=sums), site="a")


def test_a_private_plan_with_reductions_sends_shares_and_nothing_else() -> None:
    """The kinds of answers of such a run, which `tests/consortium/test_charged_reductions.py` sees on the wire, pass the egress."""
    plan = load(STUDIES / "reduction_private.toml")
    head = head_of(plan)
    formation = Formation(name="f", members=("a", "b", "c"))
    asked = Contribute(
        head=head,
        formation=formation,
        number=0,
        kind="statistics",
        round=0,
        parameters={},
        histogram=np.zeros(0),
        columns={},
    )
    passes = (
        (asked, Contribution(head=head, site="a", content=b"masked", ledger=b"head")),
        (Describe(head=head), Description(head=head, site="a", columns={}, parts={}, modalities={}, events={})),
        (Open(head=head, columns={}, arrays={}), Ready(head=head, site="a")),
    )
    for request, reply in passes:
        check_reply(plan, request, reply, site="a")
    sums = np.zeros(3)
    stays = (
        (Reduce(head=head, number=0, columns={}, arrays={}), Reduced(head=head, site="a", sums=sums)),
        (Summarise(head=head, columns={}), Summary(head=head, site="a", sums=sums)),
        (asked, Reduced(head=head, site="a", sums=sums)),
    )
    for request, reply in stays:
        with pytest.raises(LocalProtocolError, match="stays here"):
            check_reply(plan, request, reply, site="a")
