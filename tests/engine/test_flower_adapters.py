"""The two adapters on a grid in this process: real Flower messages and apps, a real aggregator, real sites, no Ray."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from oncofed_client.app import relay
from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.app import Exchange, ask_names
from oncofed_server.run_state import Phase
from oncofed_server.snapshot import load_state
from oncofed_shared.errors import Interrupted, RemoteProtocolError
from oncofed_shared.flower_records import pack, seconds_of, unpack
from oncofed_shared.messages import Trial, from_bytes, to_bytes
from oncofed_shared.plan import Plan, load
from oncofed_simulations.consortium import federated_roster, open_site
from oncofed_simulations.flower_apps import client_app, run_job
from oncofed_simulations.flower_job import Job, Member, ask_to_stop
from oncofed_simulations.folders import site_folders
from oncofed_simulations.loopback import FakeClock, drive


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    """Flower makes messages only in a process that it has told who it is."""
    before = {n: getattr(TaskIdentity, f"_{n}", None) for n in ("task_id", "run_id", "node_id")}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        setattr(TaskIdentity, f"_{name}", value)


class Nodes(Grid):
    """Flower's grid with an app per node; a message is answered when it is pulled. `silent` nodes never answer."""

    def __init__(self, apps: dict[int, ClientApp], job: Path = Path()) -> None:
        self.apps = apps
        self.job = job
        self.silent: set[int] = set()
        self.pushed: list[Message] = []
        self._waiting: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            identity = f"m{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = identity
            self.pushed.append(message)
            self._waiting[identity] = message
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for identity in message_ids:
            node = self._waiting[identity].metadata.dst_node_id
            if node not in self.silent:
                where = {"partition-id": node, "num-partitions": len(self.apps)}
                context = Context(
                    run_id=1,
                    node_id=node,
                    node_config=where,
                    state=RecordDict(),
                    run_config={"job": str(self.job)},
                )
                replies.append(self.apps[node](self._waiting.pop(identity), context))
        return replies

    def set_run(self, run: Any) -> None: ...
    def run(self) -> Any: ...
    def create_message(self, *_: Any, **__: Any) -> Any: ...
    def send_and_receive(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture
def plan(study: Callable[..., Path]) -> Plan:
    return load(study(evaluation={"folds": None}, attempts=2, deadline_minutes=1.0))


@pytest.fixture
def sites(plan: Plan, hospitals: Path) -> dict[str, Site]:
    opened = [open_site(folder, plan, state=None, minimum=None) for folder in site_folders(hospitals)]
    return {site.name: site for site in opened}


def app_of(site: Site) -> ClientApp:
    return relay(lambda _: lambda content: to_bytes(site.handle(from_bytes(content))), lambda _: site.name)


def aggregator(plan: Plan, sites: dict[str, Site]) -> Aggregator:
    return Aggregator(plan, federated_roster(sites, ()), Trial(seed=0), session="s")


def finish(exchange: Exchange, clock: FakeClock | None = None) -> None:
    for _ in range(10_000):
        if exchange.finished:
            return
        if not exchange.advance() and clock is not None:
            clock.advance(10.0)
    pytest.fail("the run does not end")


def test_a_run_over_flower_s_messages_is_the_run_over_function_calls(plan: Plan, sites: dict[str, Site]) -> None:
    grid = Nodes({100 + i: app_of(site) for i, site in enumerate(sites.values())})
    names = ask_names(grid, 3, patience=1.0)
    assert names == {name: 100 + i for i, name in enumerate(sites)}
    over = aggregator(plan, sites)
    seen: list[Phase] = []
    finish(Exchange(over, grid, names, at_once=2, after_step=lambda a: seen.append(a.state.phase)))
    plain = aggregator(plan, sites)
    drive(plain, sites, clock=FakeClock())
    assert over.state.phase is plain.state.phase is Phase.DONE
    assert over.state.server is not None
    assert plain.state.server is not None
    assert np.isfinite(over.state.server.parameters).all()
    assert over.state.server.parameters.tobytes() == plain.state.server.parameters.tobytes()
    assert (over.state.cost.bytes_up, over.state.cost.bytes_down) == (
        plain.state.cost.bytes_up,
        plain.state.cost.bytes_down,
    )
    assert over.state.cost.seconds > 0
    assert seen[-1] is Phase.DONE


def test_workers_that_take_turns_at_a_site_share_what_it_keeps(
    study: Callable[..., Path], hospitals: Path, tmp_path: Path
) -> None:
    """SCAFFOLD's controls and local layers: what one worker has learned, the next one goes on from."""
    rule = {"name": "scaffold", "local": ["tokenisers.*"]}
    path = study(evaluation={"folds": None}, strategy=rule, momentum=0.0, dropout=0.0, rounds=5)
    plan = load(path)

    def opened(state: str) -> dict[str, Site]:
        folders = site_folders(hospitals)
        sites = [open_site(f, plan, state=tmp_path / state / f.name, minimum=None) for f in folders]
        return {site.name: site for site in sites}

    workers = itertools.cycle([opened("shared"), opened("shared")])
    names = list(opened("shared"))
    apps = {
        i: relay(lambda _, n=n: lambda c: to_bytes(next(workers)[n].handle(from_bytes(c))), lambda _, n=n: n)
        for i, n in enumerate(names)
    }
    grid = Nodes(apps)
    over, plain = aggregator(plan, opened("shared")), aggregator(plan, opened("one"))
    finish(Exchange(over, grid, ask_names(grid, 3, patience=1.0)))
    drive(plain, opened("one"), clock=FakeClock())
    assert over.state.phase is plain.state.phase is Phase.DONE
    assert over.state.server is not None
    assert plain.state.server is not None
    assert over.state.server.parameters.tobytes() == plain.state.server.parameters.tobytes()
    assert all(np.array_equal(over.state.tables[n], plain.state.tables[n]) for n in names)


def test_a_silent_site_is_asked_again_and_then_left_out(plan: Plan, sites: dict[str, Site]) -> None:
    grid = Nodes({i: app_of(site) for i, site in enumerate(sites.values())})
    names = ask_names(grid, 3, patience=1.0)
    grid.pushed.clear()
    grid.silent = {1}
    silent = next(n for n, node in names.items() if node == 1)
    clock = FakeClock()
    over = aggregator(plan, sites)
    finish(Exchange(over, grid, names, clock=lambda: clock.now), clock)
    assert over.state.phase is Phase.DONE
    assert over.state.excluded == {silent: "no answer before the deadline"}
    assert len([m for m in grid.pushed if m.metadata.dst_node_id == 1]) == plan.training.attempts
    assert clock.now >= 60.0 * plan.training.attempts


def test_a_site_without_a_node_is_left_out_too(plan: Plan, sites: dict[str, Site]) -> None:
    grid = Nodes({i: app_of(site) for i, site in enumerate(sites.values())})
    names = ask_names(grid, 3, patience=1.0)
    gone = next(iter(names))
    del names[gone]
    clock, told = FakeClock(), []
    over = aggregator(plan, sites)
    finish(Exchange(over, grid, names, clock=lambda: clock.now, on_error=lambda *e: told.append(e)), clock)
    assert over.state.excluded == {gone: "no answer before the deadline"}
    assert set(told) == {(gone, "its node is not there")}


def test_nobody_answers_in_another_s_name(plan: Plan, sites: dict[str, Site]) -> None:
    first, second, third = sites
    grid = Nodes({i: app_of(site) for i, site in enumerate(sites.values())})
    told: list[tuple[str, str]] = []
    over = aggregator(plan, sites)
    exchange = Exchange(over, grid, {first: 1, second: 0, third: 2}, on_error=lambda *e: told.append(e))
    while exchange.advance():
        pass
    assert sorted(told) == [(first, "answered in another site's name"), (second, "answered in another site's name")]
    assert set(over.state.descriptions) == {third}


@pytest.mark.parametrize("answer", [b"", b"\xc1", to_bytes])
def test_what_is_no_reply_is_reported_and_not_taken(
    plan: Plan, sites: dict[str, Site], answer: bytes | Callable[..., bytes]
) -> None:
    """Noise, or the request itself sent back."""
    told: list[tuple[str, str]] = []
    echo = relay(lambda _: lambda content: content if callable(answer) else answer, lambda _: "x")
    over = aggregator(plan, sites)
    exchange = Exchange(over, Nodes({0: echo}), dict.fromkeys(sites, 0), on_error=lambda *e: told.append(e))
    while exchange.advance():
        pass
    assert [site for site, _ in told] == list(sites)
    assert not over.state.descriptions


def test_a_failure_at_a_site_is_told_without_its_text(plan: Plan, sites: dict[str, Site]) -> None:
    def fail(content: bytes) -> bytes:
        raise ValueError(f"{len(content)} bytes about a patient who is 77 years old")

    told: list[tuple[str, str]] = []
    over = aggregator(plan, sites)
    nodes = dict.fromkeys(sites, 0)
    exchange = Exchange(
        over, Nodes({0: relay(lambda _: fail, lambda _: "x")}), nodes, on_error=lambda *e: told.append(e)
    )
    while exchange.advance():
        pass
    assert len(told) == 3
    assert all(what.startswith("ValueError in test_flower_adapters.py, line ") for _, what in told)
    assert "patient" not in str(told)


def test_nodes_that_do_not_come_or_share_a_name_are_one_clear_message(sites: dict[str, Site]) -> None:
    site = next(iter(sites.values()))
    with pytest.raises(RemoteProtocolError, match="1 of 2 nodes are there"):
        ask_names(Nodes({0: app_of(site)}), 2, patience=0.1, pause=0.01)
    with pytest.raises(RemoteProtocolError, match=f"two nodes are called {site.name}"):
        ask_names(Nodes({0: app_of(site), 1: app_of(site)}), 2, patience=1.0)
    silent = Nodes({0: app_of(site)})
    silent.silent = {0}
    with pytest.raises(RemoteProtocolError, match="1 of 1 nodes have not said their name"):
        ask_names(silent, 1, patience=0.1, pause=0.01)


def test_records_hold_the_bytes_and_foreign_ones_are_refused() -> None:
    record = pack(b"\x00\xff" * 1000, seconds=1.5)
    assert unpack(record) == b"\x00\xff" * 1000
    assert seconds_of(record) == 1.5
    assert seconds_of(pack(b"", seconds=float("nan"))) == 0.0
    assert seconds_of(pack(b"", seconds=-1.0)) == 0.0
    assert seconds_of(RecordDict()) == 0.0
    with pytest.raises(RemoteProtocolError):
        unpack(RecordDict())


class Stopping(Nodes):
    """A grid during whose n-th request somebody asks to stop."""

    def __init__(self, apps: dict[int, ClientApp], job: Path, after: int) -> None:
        super().__init__(apps, job)
        self.after = after

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if len(self.pushed) >= self.after:
            ask_to_stop(self.job.parent)
        return super().pull_messages(message_ids)


# 12 requests of one run: names, Describe, Summarise, Open. The wish then comes between the loop's look and the run's own.
@pytest.mark.parametrize(("runs", "after"), [(1, 12), (1, 15), (3, 10), (3, 26), (3, 36)])
def test_a_job_that_is_stopped_anywhere_goes_on_to_the_same_model(
    plan: Plan, hospitals: Path, tmp_path: Path, runs: int, after: int
) -> None:
    members = [
        Member(name=f.name, folder=str(f), state=str(tmp_path / "sites" / f.name), external=False)
        for f in site_folders(hospitals)
    ]
    trials, lanes = [Trial(seed=s) for s in range(runs)], min(runs, 2)

    def job(name: str) -> Path:
        path = tmp_path / name / "job.json"
        store = tmp_path / name / "progress"
        Job.of(plan, trials, members=members, minimum=None, lanes=lanes, store=store, driver=os.getpid()).write(path)
        return path

    def finished(path: Path) -> list[bytes]:
        states = [load_state(path.parent / "progress" / f"federated.seed{t.seed}.safetensors", plan) for t in trials]
        assert {s.phase for s in states} == {Phase.DONE}
        return [s.server.parameters.tobytes() for s in states if s.server]

    apps = dict.fromkeys(range(3 * lanes), client_app)
    whole, parts = job("whole"), job("parts")
    run_job(Nodes(apps, whole), whole)
    with pytest.raises(Interrupted, match="--resume goes on"):
        run_job(Stopping(apps, parts, after), parts)
    (parts.parent / "stop").unlink()
    run_job(Nodes(apps, parts), parts)
    assert finished(parts) == finished(whole)
