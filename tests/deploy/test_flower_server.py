"""The deployed ServerApp over a grid in this process: real doors, real seals, a real journal; killed, refused, delayed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

sys.path.insert(0, str(Path(__file__).resolve().parent))
from airlock_world import private_changes

from oncofed_client.app import relay
from oncofed_client.approvals import approve, withdraw
from oncofed_client.deliveries import model_folder
from oncofed_client.door import Door, open_door
from oncofed_client.identity import identity_of, public_half
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_verify import read_account
from oncofed_server import flower_exchange, flower_server
from oncofed_server.app import Courier
from oncofed_server.errands import count_errand
from oncofed_server.flower_exchange import SealedExchange
from oncofed_server.flower_server import drive_study
from oncofed_server.journal import Journal
from oncofed_server.model_file import write_model
from oncofed_server.service.folder import Folder
from oncofed_server.service.prepare import prepare
from oncofed_server.service.products import export_study, report_study
from oncofed_server.service.registry import enrol, revoke
from oncofed_server.service.result import known_certainty
from oncofed_server.service.status import status_of
from oncofed_server.service.studies import StudyFolder, Wanted, add_study
from oncofed_server.snapshot import load_state
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.enrolment import write_enrolment_request
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import public_of
from oncofed_shared.sealed import open_request
from oncofed_shared.sights import SightBook
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.loopback import FakeClock, drive

SITES = ("site-1", "site-2", "site-3")
PLAN_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Killed(BaseException):
    """The process is gone."""


@dataclass(frozen=True)
class Node:
    """What Flower tells of a node."""

    node_id: int
    public_key: bytes


@dataclass(kw_only=True)
class World:
    """An aggregator's folder, three doors, and a grid between them.

    Attributes:
        away: sites whose node is not connected.
        broken: sites whose node answers with an error so many times.
        garbled: sites whose answers lose a bit on the way so many times.
        lost: sites whose node forgets so many messages.
        slow: sites whose node looks at a message only when it has been asked for its answer so many times.
        kill_after: messages that are carried until the ServerApp is killed.
        wire: every message: (site, down, up).
        sent: to whom a message was given to Flower, answered or not.
    """

    folder: Folder
    place: StudyFolder
    doors: dict[str, Door]
    states: dict[str, Path]
    nodes: dict[str, Node]
    away: set[str] = field(default_factory=set)
    broken: dict[str, int] = field(default_factory=dict)
    garbled: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    slow: dict[str, int] = field(default_factory=dict)
    kill_after: int | None = None
    wire: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    def grid(self) -> Grid:
        return _Grid(self)

    def drive(self) -> None:
        """A ServerApp's whole life."""
        drive_study(self.folder.path, self.place.study.id, self.grid())

    def approve_all(self, *, scope: Any = "training") -> None:
        for site, state in self.states.items():
            approve(state, self.place.study.content, now=time.time(), site=site, scope=scope)

    @property
    def notes(self) -> str:
        return json.dumps(self.place.status.get("notes", []))


class _Grid(Grid):
    def __init__(self, world: World) -> None:
        self.world = world
        self.under_way: dict[str, tuple[str, Message]] = {}
        self.count = 0

    def get_nodes(self) -> Iterable[Any]:
        return [n for s, n in self.world.nodes.items() if s not in self.world.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = []
        for message in messages:
            site = next(s for s, n in self.world.nodes.items() if n.node_id == message.metadata.dst_node_id)
            identity = f"m{self.count}"
            self.count += 1
            message.metadata.__dict__["_message_id"] = identity
            self.under_way[identity] = (site, message)
            self.world.sent.append(site)
            found.append(identity)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for identity in list(message_ids):
            if identity not in self.under_way:
                continue
            site, message = self.under_way[identity]
            if self.world.slow.get(site, 0) > 0:
                self.world.slow[site] -= 1
                continue
            del self.under_way[identity]
            if self.world.lost.get(site, 0) > 0:
                self.world.lost[site] -= 1
                continue
            replies.append(self._answer(site, message))
        return replies

    def _answer(self, site: str, message: Message) -> Message:
        world = self.world
        if world.kill_after is not None:
            if world.kill_after == 0:
                raise Killed
            world.kill_after -= 1
        if world.broken.get(site, 0) > 0:
            world.broken[site] -= 1
            return Message(Error(1000, "its daemon is gone"), reply_to=message)

        def handle(content: bytes) -> bytes:
            reply = world.doors[site].handle(content)
            world.wire.append((site, content, reply))
            if world.garbled.get(site, 0) > 0:
                world.garbled[site] -= 1
                reply = reply[:-1] + bytes([reply[-1] ^ 1])
            return reply

        node = world.nodes[site].node_id
        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        return relay(lambda _: handle, lambda _: site)(message, context)

    def get_node_ids(self) -> Iterable[int]:
        return [n.node_id for n in self.get_nodes()]

    def set_run(self, run: Any) -> None: ...
    def run(self) -> Any: ...
    def create_message(self, *_: Any, **__: Any) -> Any: ...
    def send_and_receive(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flower makes messages only in a process that it has told who it is; and pauses are short here."""
    before = {n: getattr(TaskIdentity, f"_{n}", None) for n in ("task_id", "run_id", "node_id")}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(flower_exchange, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(flower_exchange, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(flower_server, "LOOK_AT_WISHES", 0.0)
    monkeypatch.setattr(flower_server, "LOOK_AT_NODES", 0.0)
    monkeypatch.setattr(flower_server, "TELL", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name, value in before.items():
        setattr(TaskIdentity, f"_{name}", value)


@pytest.fixture
def new_world(tmp_path: Path, hospitals: Path, make_plan: Callable[..., Plan]) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*, approved: bool = True, quorum: int | None = None, **changes: Any) -> World:
        plan = make_plan(**({"training__rounds": 2, "training__deadline_minutes": 5} | changes))
        folder = Folder.create(
            tmp_path / "hub", name="hub", address="127.0.0.1:8443", plan_key=public_of(PLAN_KEY), now=time.time()
        )
        nodes = {}
        states = {s: tmp_path / "states" / s for s in SITES}
        for number, site in enumerate(SITES, 1):
            gate = ec.generate_private_key(ec.SECP384R1()).public_key()
            text = gate.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            request = write_enrolment_request(site=site, node_key=text, key=identity_of(states[site]))
            enrol(folder, request, now=time.time())
            nodes[site] = Node(number, gate.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        content = prepare(
            folder,
            plan,
            PLAN_KEY,
            sites=(),
            seed=0,
            fold=-1,
            quorum=quorum,
            days=10,
            epoch_days=5,
            now=time.time() - 1,
        )
        (tmp_path / "x.study").write_bytes(content)
        place = add_study(folder, tmp_path / "x.study", now=time.time())
        doors = {s: open_door(hospitals / s, states[s], clock=time.time, synced=False) for s in SITES}
        world = World(folder=folder, place=place, doors=doors, states=states, nodes=nodes)
        made.append(world)
        if approved:
            world.approve_all()
            place.want(Wanted.RUN)
        return world

    yield make
    for world in made:
        for door in world.doors.values():
            door.close()


def _expected(world: World, make_consortium: Callable[..., Consortium], tmp_path: Path) -> bytes:
    """The model of a simulation of the same plan and trial over the same three hospitals."""
    study = world.place.study
    consortium = make_consortium(study.plan, tmp_path / "simulated", externals=("site-4",))
    consortium.externals.clear()
    run = consortium.federated(study.trial)
    tables = {s: run.tables[s] for s in study.trainers}
    known = known_certainty(study, replace(run.state, tables=tables))
    write_model(tmp_path / "expected.safetensors", study.plan, study.trial, run.state, certainty=known)
    return (tmp_path / "expected.safetensors").read_bytes()


def test_a_study_runs_is_delivered_and_reported_with_the_model_of_a_simulation(
    new_world: Callable[..., World], make_consortium: Callable[..., Consortium], tmp_path: Path
) -> None:
    world = new_world()
    world.drive()
    place, status = world.place, world.place.status
    assert (status["phase"], status["undelivered"], status["round"]) == ("done", [], 2)
    assert place.model.read_bytes() == _expected(world, make_consortium, tmp_path)
    for state in world.states.values():
        assert (model_folder(state, place.study) / "model.safetensors").read_bytes() == place.model.read_bytes()
    result = report_study(place, tmp_path / "out", command="x")
    assert result["tasks"]["survival"]["c_index"]["federated"]["overall"] is not None
    pooled = result["tasks"]["survival"]["c_index"]["pooled"]
    assert pooled["overall"] is None
    assert "patients in one place" in pooled["why"]["overall"]
    assert {s["name"] for s in result["sites"]} == set(SITES)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    names = export_study(world.folder, place, tmp_path / "all.zip", command="x")
    assert {"study.json", "digests.json", "model.safetensors"} <= set(names)
    # Once more changes nothing: it has ended.
    before = len(world.wire)
    world.drive()
    assert len(world.wire) == before


def test_a_plan_with_a_reduction_runs_deployed_as_it_is_simulated(
    new_world: Callable[..., World], make_consortium: Callable[..., Consortium], tmp_path: Path
) -> None:
    world = new_world(modalities__mutations__reduction={"kind": "pca", "components": 2}, training__rounds=1)
    world.drive()
    assert world.place.status["phase"] == "done"
    assert world.place.model.read_bytes() == _expected(world, make_consortium, tmp_path)


def test_killed_again_and_again_it_ends_with_the_same_model_and_no_request_changes(
    new_world: Callable[..., World], make_consortium: Callable[..., Consortium], tmp_path: Path
) -> None:
    world = new_world()
    for carried in (0, 2, 4, 1, 7, 3, 5):
        world.kill_after = carried
        with pytest.raises(Killed):
            world.drive()
    world.kill_after = None
    world.drive()
    assert world.place.status["phase"] == "done"
    assert world.place.model.read_bytes() == _expected(world, make_consortium, tmp_path)
    answers: dict[bytes, bytes] = {}
    for _, down, up in world.wire:
        # The same request gets the same bytes, however often it is sent again.
        assert answers.setdefault(open_request(down).digest, up) == up


def test_errors_on_the_way_and_answers_that_nobody_signed_are_silence(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.broken = {"site-1": 3}
    world.garbled = {"site-2": 3}
    world.drive()
    status = world.place.status
    assert (status["phase"], status["excluded"]) == ("done", {})
    assert "its daemon is gone" in world.notes
    assert "signature: site-2: the reply is not signed" in world.notes


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no answer is sent once more almost at once."""
    monkeypatch.setattr(flower_exchange, "SILENCE", 0.05)


@pytest.mark.usefixtures("soon")
def test_a_message_that_a_node_forgot_is_sent_again_long_before_the_deadline(
    new_world: Callable[..., World],
    make_consortium: Callable[..., Consortium],
    tmp_path: Path,
) -> None:
    world = new_world(training__deadline_minutes=60)
    world.lost = {"site-1": 2, "site-3": 1}
    world.drive()
    status = world.place.status
    assert (status["phase"], status["excluded"], status["attempt"]) == ("done", {}, 0)
    assert world.place.model.read_bytes() == _expected(world, make_consortium, tmp_path)
    assert "has not answered for a while: it is asked once more" in world.notes


@pytest.mark.usefixtures("soon")
def test_a_slow_site_that_is_asked_once_more_computes_once(
    new_world: Callable[..., World],
    make_consortium: Callable[..., Consortium],
    tmp_path: Path,
) -> None:
    world = new_world()
    world.slow = {"site-2": 100}
    world.drive()
    status = world.place.status
    assert (status["phase"], status["excluded"]) == ("done", {})
    assert world.place.model.read_bytes() == _expected(world, make_consortium, tmp_path)
    answers: dict[bytes, set[bytes]] = {}
    for _, down, up in world.wire:
        answers.setdefault(open_request(down).digest, set()).add(up)
    assert len(world.wire) > len(answers), "it has been asked twice"
    assert all(len(each) == 1 for each in answers.values())


def test_each_silence_is_twice_as_long_and_a_large_request_may_take_longer(
    new_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, now = new_world(), [0.0]
    study, journal = world.place.study, Journal(world.place.journal, study=world.place.study.id)

    def times(until: float) -> list[float]:
        """When one site is asked, that never answers."""
        errand = count_errand(study, journal, sites=SITES[:1], seconds=1e9, came=lambda site, answer: None)
        exchange = SealedExchange(
            errand,
            errand.requests,
            Courier(world.grid(), {SITES[0]: 1}),
            study,
            roster=world.folder.roster.read_bytes,
            key=world.folder.step_key_of(study.step_key),
            book=SightBook(study),
            say=lambda site, what: None,
            clock=lambda: now[0],
        )
        world.slow, found = {SITES[0]: 10**9}, []
        now[0] = 0.0
        while now[0] < until:
            world.sent.clear()
            exchange.advance()
            found += [now[0]] * len(world.sent)
            now[0] += 1.0
        return found

    monkeypatch.setattr(flower_exchange, "SLOWEST", 1e12)
    assert times(2000) == [0, 121, 362, 843, 1804]
    monkeypatch.setattr(flower_exchange, "SLOWEST", 1.0)
    # More than a hundred bytes at a byte a second.
    assert times(200) == [0]


def test_a_site_that_has_not_approved_yet_is_asked_until_it_has(new_world: Callable[..., World]) -> None:
    world = new_world(approved=False)
    for site in SITES[:2]:
        approve(world.states[site], world.place.study.content, now=time.time(), site=site)
    world.place.want(Wanted.RUN)
    thread = Thread(target=world.drive)
    thread.start()
    _wait(lambda: "does not believe the request" in world.notes)
    assert world.place.status["phase"] == "running"
    approve(world.states["site-3"], world.place.study.content, now=time.time(), site="site-3")
    thread.join(120)
    assert (world.place.status["phase"], world.place.status["excluded"]) == ("done", {})


def test_a_site_that_comes_late_is_waited_for(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.away = {"site-2"}
    thread = Thread(target=world.drive)
    thread.start()
    _wait(lambda: list(world.place.status.get("waiting", {})) == ["site-2"])
    status = world.place.status
    assert status["connected"] == ["site-1", "site-3"]
    assert status["asked"] == list(SITES)
    # Five minutes is the plan's deadline; who watches is told when it began and when it ends.
    assert abs(status["deadline"] - status["since"] - 300) <= 1
    assert abs(status["since"] - time.time()) < 60
    world.away = set()
    thread.join(120)
    assert world.place.status["phase"] == "done"


def test_a_withdrawn_approval_ends_a_study_that_needs_everybody(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.kill_after = 8
    with pytest.raises(Killed):
        world.drive()
    withdraw(world.states["site-2"], world.place.study.id, now=time.time(), site="site-2", reason="no more")
    world.kill_after = None
    world.drive()
    status = world.place.status
    assert status["phase"] == "failed"
    assert "quorum is 3" in status["why"]
    assert "withdrawn" in status["why"]
    assert not world.place.model.exists()
    with pytest.raises(ConfigError, match="no model yet"):
        report_study(world.place, world.folder.path / "out", command="x")


def test_with_a_smaller_quorum_it_goes_on_without_the_one_that_left(new_world: Callable[..., World]) -> None:
    world = new_world(quorum=2)
    world.kill_after = 8
    with pytest.raises(Killed):
        world.drive()
    revoke(world.folder, "site-2", PLAN_KEY, now=time.time())
    world.kill_after = None
    world.drive()
    status = world.place.status
    assert status["phase"] == "done"
    assert list(status["excluded"]) == ["site-2"]
    # A revoked site is given nothing, not even the model; the roster that says so reached it with its next message.
    assert not (model_folder(world.states["site-2"], world.place.study) / "model.safetensors").exists()


def test_pause_and_resume(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.away = {"site-3"}
    thread = Thread(target=world.drive)
    thread.start()
    _wait(lambda: list(world.place.status.get("waiting", {})) == ["site-3"])
    world.place.want(Wanted.PAUSE)
    thread.join(30)
    assert not thread.is_alive()
    shown = status_of(world.folder, now=time.time())["studies"][0]
    assert (shown["phase"], shown["driven"]) == ("paused", False)
    world.away = set()
    world.place.want(Wanted.RUN)
    world.drive()
    assert world.place.status["phase"] == "done"
    assert status_of(world.folder, now=time.time())["studies"][0]["phase"] == "done"


def test_a_run_that_begins_after_somebody_paused_asks_nothing(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.away = {"site-3"}
    thread = Thread(target=world.drive)
    thread.start()
    _wait(lambda: list(world.place.status.get("waiting", {})) == ["site-3"])
    world.place.want(Wanted.PAUSE)
    thread.join(30)
    assert not thread.is_alive()
    asked = list(world.sent)
    assert asked == ["site-1", "site-2"]
    world.away = set()
    world.drive()
    assert world.sent == asked
    assert not world.place.final.exists()
    assert status_of(world.folder, now=time.time())["studies"][0]["phase"] == "paused"


def _reserved(world: World) -> dict[str, list[str]]:
    found = {}
    for site, state in world.states.items():
        account = read_account(state / LEDGER_FILE, public_half(state)) if (state / LEDGER_FILE).exists() else None
        found[site] = [] if account is None else [p.state for p in account.plans.values()]
    return found


def test_a_study_that_is_cancelled_frees_the_budget_of_all_that_are_there(
    new_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(**private_changes("site"))
    world.kill_after = 7
    with pytest.raises(Killed):
        world.drive()
    world.kill_after = None
    assert set(map(tuple, _reserved(world).values())) == {("open",)}
    charged = {s: door._contributor.ledger.plans() for s, door in world.doors.items()}
    world.place.want(Wanted.CANCEL)
    world.away = {"site-3"}
    monkeypatch.setattr(flower_server, "END_SECONDS", 2.0)
    world.drive()
    assert world.place.status["phase"] == "cancelled"
    assert _reserved(world) == {"site-1": ["closed"], "site-2": ["closed"], "site-3": ["open"]}
    assert "was away when the study ended" in world.notes
    # What was charged stays charged.
    for site, door in world.doors.items():
        assert [p.used for p in door._contributor.ledger.plans()] == [p.used for p in charged[site]]
    asked = len(world.sent)
    world.drive()
    assert len(world.sent) == asked


def test_a_study_that_fails_frees_it_too(new_world: Callable[..., World]) -> None:
    world = new_world(**private_changes("site"))
    world.kill_after = 7
    with pytest.raises(Killed):
        world.drive()
    withdraw(world.states["site-2"], world.place.study.id, now=time.time(), site="site-2", reason="no more")
    world.kill_after = None
    world.drive()
    assert world.place.status["phase"] == "failed"
    assert {s: v for s, v in _reserved(world).items() if s != "site-2"} == {"site-1": ["closed"], "site-3": ["closed"]}
    assert "does not take the end: withdrawn" in world.notes


def test_patients_are_counted_where_that_is_approved_and_training_is_not(new_world: Callable[..., World]) -> None:
    world = new_world(approved=False)
    for site in SITES:
        approve(world.states[site], world.place.study.content, now=time.time(), site=site, scope="counting")
    world.place.want(Wanted.COUNT)
    world.drive()
    counts = world.place.counts
    assert counts["finished"]
    assert set(counts["sites"]) == set(SITES)
    assert all(number % 10 == 0 for own in counts["sites"].values() for number in own.values())
    assert world.place.status["phase"] == "prepared"
    # Counting is no approval of training; afterwards the numbers of requests go on.
    world.approve_all()
    world.place.want(Wanted.RUN)
    world.drive()
    assert world.place.status["phase"] == "done"


def test_with_noise_of_the_consortium_kills_lose_no_sum_and_the_ledgers_say_what_the_report_says(
    new_world: Callable[..., World], tmp_path: Path
) -> None:
    world = new_world(
        modalities={
            "clinical": {
                "table": "clinical",
                "tokens": "columns",
                "scaling": "minmax",
                "columns": {
                    "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                    "sex": {"kind": "categorical", "categories": ["female", "male"]},
                },
            }
        },
        training__rate=0.1,
        training__local_steps=1,
        training__batch="all",
        training__optimiser="sgd",
        training__class_weights="none",
        privacy={
            "noise": "consortium",
            "epsilon": 3,
            "delta": 1e-4,
            "clip_norm": 1.0,
            "sampling_rate": 0.5,
            "patients": dict.fromkeys(SITES, 30),
            "spare_steps": 1,
            "score_epsilon": 3,
        },
    )
    for carried in (4, 9, 11, 5, 8, 3):
        world.kill_after = carried
        with pytest.raises(Killed):
            world.drive()
    world.kill_after = None
    world.drive()
    state = load_state(world.place.final, world.place.study.plan)
    assert (world.place.status["phase"], state.lost, dict(state.excluded)) == ("done", 0, {})
    result = report_study(world.place, tmp_path / "out", command="x")
    assert {r["metric"] for r in result["released"]} >= {"auc", "c_index"}
    federated = result["tasks"]["survival"]["c_index"]["federated"]
    assert (federated["overall"], federated["why"]["overall"][:14]) == (None, "no exact table")
    for site, folder in world.states.items():
        row = next(r for r in result["sites"] if r["name"] == site)
        contributor = world.doors[site]._contributor
        assert contributor is not None
        plans = contributor.ledger.plans()
        # One plan was reserved, however often the aggregator died, and its promise covers what the report says.
        assert len(plans) == 1
        assert row["epsilon"] <= plans[0].epsilon == 3
        mechanism = ConsortiumMechanism.for_plan(world.place.study.plan, parameters=1)
        assert plans[0].charges[0].noise_multiplier == pytest.approx(mechanism.noise_multiplier, rel=1e-6)
        assert folder.exists()


def test_only_one_process_drives_a_study(new_world: Callable[..., World]) -> None:
    world = new_world()
    with world.place.alone() as free:
        assert free
        world.drive()
    assert world.wire == []
    assert world.place.status == {}


def test_whoever_looks_is_no_driver_and_keeps_none_away(new_world: Callable[..., World]) -> None:
    place = new_world().place
    over = Event()

    def look() -> bool:
        return any(place.driven for _ in iter(over.is_set, True))

    with ThreadPoolExecutor(8) as pool:
        looking = [pool.submit(look) for _ in range(8)]
        time.sleep(0.3)
        over.set()
        assert not any(each.result() for each in looking)
        over.clear()
        looking = [pool.submit(look) for _ in range(8)]
        with place.alone() as free:
            assert free
            assert place.driven
            over.set()
    assert not place.driven


def test_the_state_that_is_kept_is_the_end(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.drive()
    state = load_state(world.place.final, world.place.study.plan)
    assert len(state.losses) == 2
    assert set(state.tables) == set(SITES)


def test_without_seals_in_between_the_aggregator_is_the_simulations(
    new_world: Callable[..., World], hospitals: Path
) -> None:
    # Guards the comparison above: the plain driver over the same doors' sites gives the same model too.
    world = new_world()
    world.drive()
    driver = flower_server._Driver(world.folder, world.place, world.grid())
    plain = driver.aggregator(state=None, names=lambda: "")
    sites = {s: open_site(hospitals / s, world.place.study.plan, state=None, minimum=None) for s in SITES}
    drive(plain, sites, clock=FakeClock())
    study, known = world.place.study, known_certainty(world.place.study, plain.state)
    write_model(world.folder.path / "plain.safetensors", study.plan, study.trial, plain.state, certainty=known)
    assert (world.folder.path / "plain.safetensors").read_bytes() == world.place.model.read_bytes()
    driver.journal.close()


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)
