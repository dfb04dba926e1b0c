"""The aggregator's door: what a hostile or broken site may send, and what is never asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Outgoing, Phase, Received, Roster, Start, Tick
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import column_sums
from oncofed_shared.messages import (
    Describe,
    Description,
    Evaluate,
    Open,
    Ready,
    Refusal,
    Reply,
    Summarise,
    Summary,
    Tables,
    Train,
    Trial,
    Update,
)
from oncofed_shared.plan import Plan, parse
from oncofed_shared.ring import COUNT_SCALE, encode
from oncofed_shared.scoring import sparse, tabulate, vector_size

COLUMNS = {"m": ("a_x", "b_x")}
PLAN: Plan = parse(
    {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}},
        "modalities": {"m": {"patterns": ["*_x"]}},
        "model": {"layers": 0},
        "training": {"rounds": 2, "validate_every": 1, "dtype": "float64"},
        "evaluation": {"score_bins": 16},
    }
)
NAMES = ("one", "two")
Answer = Callable[[Any, str], Reply]


def honest(request: Any, site: str) -> Reply:
    """What a site with ten patients answers, worked out here; its update is always the same step."""
    head, rng = request.head, np.random.default_rng(len(site) + ord(site[0]))
    values, labels = rng.normal(size=(10, 2)), np.arange(10) % 2
    match request:
        case Describe():
            parts = {"train": 6, "validation": 2, "test": 2, "all": 10}
            return Description(
                head=head, site=site, columns=COLUMNS, parts=parts, modalities={"m": 10}, events={"r.0": 5, "r.1": 5}
            )
        case Summarise():
            sums = column_sums(PLAN, request.columns, {"m": values}, COLUMNS, {"r": labels})
            return Summary(head=head, site=site, sums=sums)
        case Open():
            return Ready(head=head, site=site)
        case Train():
            change = encode(np.full(sum(a.size for a in request.parameters.values()), 0.5 * 6), 4096)
            return Update(
                head=head, site=site, vector=np.concatenate([change, encode(np.array([6, 3.0]) * COUNT_SCALE, 1)])
            )
        case _:
            assert isinstance(request, Evaluate)
            p = np.column_stack([1 - labels * 0.5, labels * 0.5])
            cells, counts = sparse(tabulate(PLAN, {"r": p}, {"r": labels}, {}, subgroups=request.subgroups))
            size = vector_size(PLAN, subgroups=request.subgroups)
            return Tables(head=head, site=site, size=size, cells=cells, counts=counts)


def run(answer: Answer = honest, names: tuple[str, ...] = NAMES) -> Aggregator:
    roster = Roster(trainers=names, evaluators=names)
    aggregator = Aggregator(PLAN, roster, Trial(seed=1), session="s")
    queue: list[Outgoing] = aggregator.step(Start(now=0))
    for _ in range(200):
        if not queue:
            break
        outgoing = queue.pop(0)
        queue += aggregator.step(Received(now=0, reply=answer(outgoing.request, outgoing.site)))
    return aggregator


def test_the_mean_update_over_patients_moves_the_model() -> None:
    done = run()
    assert done.state.phase is Phase.DONE
    assert done.state.server is not None
    # Two rounds of +0.5 for every parameter, from where the seed began.
    first = stand_at(Train)[0].parameters()
    for name, value in done.parameters().items():
        np.testing.assert_allclose(value, first[name] + 1.0, atol=1e-9)
    assert done.state.losses == (0.5, 0.5)


def stand_at(kind: type[Any], names: tuple[str, ...] = NAMES) -> tuple[Aggregator, list[Outgoing]]:
    """A run where the first requests of this kind have just been made, and these requests."""
    aggregator = Aggregator(PLAN, Roster(trainers=names, evaluators=names), Trial(seed=1), session="s")
    queue = aggregator.step(Start(now=0))
    while not isinstance(queue[0].request, kind):
        outgoing = queue.pop(0)
        queue += aggregator.step(Received(now=0, reply=honest(outgoing.request, outgoing.site)))
    return aggregator, queue


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_sums_of_floats_are_added_in_one_order_whoever_answers_first(order: tuple[int, ...]) -> None:
    names = ("a", "b", "c")
    aggregator, queue = stand_at(Summarise, names)
    # In floats, (1e16 + 1) - 1e16 is 0, and (1e16 - 1e16) + 1 is 1.
    totals = (1e16, 1.0, -1e16)
    for i in order:
        reply = honest(queue[i].request, names[i])
        assert isinstance(reply, Summary)
        aggregator.step(Received(now=0, reply=replace(reply, sums=spoil(2, totals[i])(reply.sums))))
    assert aggregator.state.preparation is not None
    assert aggregator.state.preparation.center[0] == (totals[0] + totals[1] + totals[2]) / 30


def bad(kind: type[Any], **changes: Any) -> Answer:
    """Site one answers a request of this kind with other fields."""

    def answer(request: Any, site: str) -> Reply:
        reply = honest(request, site)
        if isinstance(request, kind) and site == "one":
            made = {n: c(getattr(reply, n)) if callable(c) else c for n, c in changes.items()}
            return replace(reply, **made)
        return reply

    return answer


def spoil(index: int, value: float) -> Callable[[Any], Any]:
    def change(vector: Any) -> Any:
        made = np.array(vector)
        made[index] = value
        return made

    return change


LAST = 2**63 - 1
HOSTILE: dict[str, Answer] = {
    "no modality": bad(Describe, columns={}),
    "a modality more": bad(Describe, columns={**COLUMNS, "n": ()}),
    "no numbers of patients": bad(Describe, parts={}),
    "a part too few": bad(Describe, parts={"train": 1, "test": 1, "all": 2}),
    "a negative number of patients": bad(Describe, parts={"train": -1, "validation": 0, "test": 1, "all": 2}),
    "short sums": bad(Summarise, sums=lambda v: v[:-1]),
    "no sums": bad(Summarise, sums=np.empty(0)),
    "long sums": bad(Summarise, sums=lambda v: np.append(v, 0)),
    "sums that are not numbers": bad(Summarise, sums=spoil(2, np.nan)),
    "infinite sums": bad(Summarise, sums=spoil(5, np.inf)),
    "negative counts": bad(Summarise, sums=spoil(0, -1)),
    "a short update": bad(Train, vector=lambda v: v[:-1]),
    "a single number for an update": bad(Train, vector=lambda v: v[:1]),
    "tables of another size": bad(Evaluate, size=3),
    "tables of a huge size": bad(Evaluate, size=LAST),
    "cells that wrap": bad(Evaluate, cells=np.array([0, LAST, -2, 4]), counts=np.ones(4)),
    "more counts than cells": bad(Evaluate, counts=lambda v: np.append(v, 1)),
    "negative tables": bad(Evaluate, counts=lambda v: -v),
    "tables that are not numbers": bad(Evaluate, counts=lambda v: v * np.nan),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_a_reply_that_cannot_be_is_left_out_with_its_site_and_a_reason(answer: Answer) -> None:
    ended = run(answer)
    assert ended.state.phase is Phase.DONE
    assert list(ended.state.excluded) == ["one"]
    assert len(ended.state.excluded["one"]) > 10
    assert list(ended.state.tables) == ["two"]


REPLIES = st.sampled_from(["honest", "refusal", "ready", "tables", "update", "summary", "stranger", "again"])


@given(st.lists(st.tuples(REPLIES, st.integers(0, 2**63 - 1)), max_size=80))
@settings(max_examples=60)
def test_no_sequence_of_replies_and_ticks_breaks_it(steps: list[tuple[str, int]]) -> None:
    aggregator = Aggregator(PLAN, Roster(trainers=NAMES, evaluators=NAMES), Trial(seed=1), session="s")
    queue = aggregator.step(Start(now=0))
    now, last = 0.0, None
    for what, number in steps:
        if not queue:
            now += number % 5000
            queue = aggregator.step(Tick(now=now))
            continue
        outgoing = queue.pop(number % len(queue))
        head, site = outgoing.request.head, outgoing.site
        reply: Reply = {
            "refusal": Refusal(head=head, site=site, code="data", text=""),
            "ready": Ready(head=head, site=site),
            "tables": Tables(head=head, site=site, size=number, cells=np.array([number]), counts=np.ones(1)),
            "update": Update(head=head, site=site, vector=np.full(number % 9, number, np.uint64)),
            "summary": Summary(head=head, site=site, sums=np.full(number % 9, float(number))),
            "stranger": Ready(head=head, site="somebody"),
        }.get(what) or honest(outgoing.request, site)
        if what == "again" and last is not None:
            reply = last
        last = reply
        queue += aggregator.step(Received(now=now, reply=reply))
    # Whatever was sent, honest replies and time bring it to an end.
    for _ in range(300):
        if aggregator.finished:
            break
        if queue:
            outgoing = queue.pop(0)
            queue += aggregator.step(Received(now=now, reply=honest(outgoing.request, outgoing.site)))
        else:
            now = aggregator.state.deadline
            queue += aggregator.step(Tick(now=now))
    assert aggregator.finished
    if aggregator.state.phase is Phase.FAILED:
        assert aggregator.state.why


def test_nobody_with_a_training_patient_is_said() -> None:
    def nobody(request: Any, site: str) -> Reply:
        reply = honest(request, site)
        return replace(reply, vector=np.zeros_like(reply.vector)) if isinstance(reply, Update) else reply

    ended = run(nobody)
    assert ended.state.phase is Phase.FAILED
    assert "training patient" in ended.state.why


def test_a_model_that_diverges_ends_the_run() -> None:
    def refuse(request: Any, site: str) -> Reply:
        if isinstance(request, Train):
            return Refusal(head=request.head, site=site, code="out-of-range", text="")
        return honest(request, site)

    ended = run(refuse)
    assert ended.state.phase is Phase.FAILED
    assert "lower training.rate or raise training.range" in ended.state.why


def test_there_is_no_model_before_columns_are_agreed() -> None:
    aggregator = Aggregator(PLAN, Roster(trainers=NAMES, evaluators=NAMES), Trial(seed=1), session="s")
    with pytest.raises(RemoteProtocolError):
        aggregator.parameters()
    with pytest.raises(RemoteProtocolError):
        _ = aggregator.layout


def test_a_finished_run_asks_nothing_more() -> None:
    done = run()
    before = done.state
    assert done.step(Start(now=1)) == []
    assert done.step(Tick(now=1e12)) == []
    assert done.state is before


def test_a_name_with_two_parts_to_play_is_asked_once() -> None:
    roster = Roster(trainers=("a", "b"), evaluators=("b", "c"), externals=("c", "d"))
    assert roster.everybody == ("a", "b", "c", "d")
