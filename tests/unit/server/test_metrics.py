"""What Prometheus is told of an aggregator, read by Prometheus' own parser and compared with what `status` says."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from oncofed_server.__main__ import app
from oncofed_server.service.authority import days_left
from oncofed_server.service.dispatch import SEE_NODES, SEE_SOON, Dispatcher, rest_after
from oncofed_server.service.folder import Folder
from oncofed_server.service.metrics import MINUTE, figures_text, served
from oncofed_server.service.prepare import prepare
from oncofed_server.service.registry import enrol, newest_roster
from oncofed_server.service.running import Seen, Service, keep_nodes, read_nodes
from oncofed_server.service.status import status_of
from oncofed_server.service.studies import StudyFolder, Wanted, add_study
from oncofed_shared.enrolment import write_enrolment_request
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import public_of
from oncofed_shared.storage import dump_json

SITES = ("site-1", "site-2", "site-3")
SAID = {
    "phase": "running", "step_phase": "train", "round": 12, "rounds": 40, "step": 31, "attempt": 0, "attempts": 3,
    "asked": list(SITES), "waiting": {"site-2": True}, "connected": list(SITES), "since": 1e9, "deadline": 1e9 + 60,
    "excluded": {"site-3": "gone"}, "bytes_up": 4711, "bytes_down": 815, "losses": [0.6931, 0.123456],
}  # fmt: skip
NAMES = {
    "readable", "service_up", "program_starts", "sites_enrolled", "sites_online", "site_online",
    "site_last_seen_timestamp_seconds", "certificate_ends_timestamp_seconds", "roster_epoch",
    "roster_issued_timestamp_seconds", "warnings", "study_phase", "study_round", "study_rounds", "study_exchanges",
    "study_bytes", "study_sites", "study_expires_timestamp_seconds", "study_epsilon",
}  # fmt: skip
"""Every figure that there may be: another one has to be thought about."""

ORDER = ("study", "name", "phase", "direction", "which", "site", "program", "certificate")
"""The parser has labels by name."""


@pytest.fixture
def place(tmp_path: Path, make_plan: Callable[..., Plan]) -> StudyFolder:
    """A study that an aggregator has taken in."""
    key, now = Ed25519PrivateKey.generate(), time.time()
    folder = Folder.create(tmp_path / "hub", name="hub", address="h.example:8443", plan_key=public_of(key), now=now)
    for site in SITES:
        node = ec.generate_private_key(ec.SECP384R1()).public_key()
        text = node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        enrol(folder, write_enrolment_request(site=site, node_key=text, key=Ed25519PrivateKey.generate()), now=now)
    content = prepare(
        folder, make_plan(), key, sites=(), seed=0, fold=-1, quorum=None, days=10, epoch_days=5, now=now
    )  # fmt: skip
    (tmp_path / "x.study").write_bytes(content)
    found = add_study(folder, tmp_path / "x.study", now=now)
    found.want(Wanted.RUN)
    return found


def folder_of(place: StudyFolder) -> Folder:
    return Folder.open(place.path.parents[1])


def read(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Figures by name and values of labels, without our own prefix."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("oncofed_")
        assert family.documentation
        samples = {
            tuple(s.labels[name] for name in ORDER if name in s.labels): s.value
            for s in family.samples
            if not s.name.endswith("_created")
        }
        found[family.name.removeprefix("oncofed_")] = samples
    return found


def figures(place: StudyFolder) -> dict[str, dict[tuple[str, ...], float]]:
    return read(figures_text(folder_of(place), clock=time.time))


def test_every_figure_is_one_of_status(place: StudyFolder) -> None:
    folder = folder_of(place)
    folder.run.mkdir()
    Service(pid=os.getpid(), born=psutil.Process().create_time(), started={"SuperLink": 1, "proxy": 3}).keep(folder)
    keep_nodes(folder, {"site-1": Seen(online=True, at=1e9 + 30), "site-2": Seen(online=False, at=1e9 + 59)})
    place.tell(SAID)
    place.keep_spending({"site-1": 2.5, "site-2": 2.5})
    with place.alone():
        shown, row = figures(place), status_of(folder, now=time.time())["studies"][0]
    assert set(shown) <= NAMES
    own = (row["id"][:12], row["name"])
    assert shown["study_round"] == {own: row["round"]}
    assert shown["study_rounds"] == {own: row["rounds"]}
    assert shown["study_exchanges"] == {own: row["step"]}
    assert shown["study_bytes"] == {(*own, "in"): row["bytes_up"], (*own, "out"): row["bytes_down"]}
    assert shown["study_sites"] == {(*own, "all"): 3, (*own, "asked"): 3, (*own, "awaited"): 1, (*own, "out"): 1}
    assert {key[-1] for key, value in shown["study_phase"].items() if value} == {row["phase"]}
    assert shown["study_expires_timestamp_seconds"] == {own: place.study.expires}
    assert shown["study_epsilon"] == {(*own, "site-1"): 2.5, (*own, "site-2"): 2.5}
    assert shown["program_starts"] == {("SuperLink",): 1, ("proxy",): 3}
    assert (shown["service_up"], shown["readable"]) == ({(): 1}, {(): 1})
    assert shown["sites_enrolled"] == {(): 3}
    assert shown["sites_online"] == {(): 1}
    # Of whom the SuperLink has said nothing, nothing is said.
    assert shown["site_online"] == {("site-1",): 1, ("site-2",): 0}
    assert all(at % MINUTE == 0 for at in shown["site_last_seen_timestamp_seconds"].values())
    epoch = newest_roster(folder)
    assert epoch is not None
    assert shown["roster_epoch"] == {(): epoch.number}
    for name in ("server", "ca"):
        end = shown["certificate_ends_timestamp_seconds"][name,]
        assert end == pytest.approx(time.time() + 86_400 * days_left(folder.keys / f"{name}.crt", now=time.time()))


def test_nothing_of_training_is_told(place: StudyFolder) -> None:
    place.tell(SAID | {"losses": [0.123456], "seconds": 98.765})
    text = figures_text(folder_of(place), clock=time.time)
    for number in ("0.123456", "98.765"):
        assert number not in text
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert not [n for n in named for w in ("loss", "patient", "duration") if w in n]


def test_what_cannot_be_read_is_a_figure_and_no_error(place: StudyFolder) -> None:
    (place.path / "status.json").write_text("{")
    assert figures(place) == {"readable": {(): 0}}
    place.tell({})
    assert figures(place)["readable"] == {(): 1}


def test_a_service_that_has_ended_is_not_up_and_nobody_is_online(place: StudyFolder) -> None:
    folder = folder_of(place)
    folder.run.mkdir()
    Service(pid=os.getpid(), born=1.0, started={"proxy": 1}).keep(folder)
    keep_nodes(folder, {"site-1": Seen(online=True, at=1e9)})
    shown = figures(place)
    assert (shown["service_up"], shown["sites_online"], shown["site_online"]) == ({(): 0}, {(): 0}, {})


def test_it_listens_on_this_host_alone_and_the_command_prints_the_same(place: StudyFolder) -> None:
    folder = folder_of(place)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(folder, port, clock=time.time):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            told = answer.read().decode()
        mine = [
            c.laddr for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
        ]
        assert [a.ip for a in mine] == ["127.0.0.1"]
        with pytest.raises(ConfigError, match="cannot be had"), served(folder, port, clock=time.time):
            pass
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=2):
        pytest.fail("still listens")
    printed = CliRunner().invoke(app, ["status", "--metrics", "--dir", str(folder.path)]).output
    assert read(printed) == read(told)


def test_who_is_online_is_taken_from_what_flowers_client_lists(place: StudyFolder) -> None:
    folder = folder_of(place)
    registered = {f"key {n}": {"site": s, "node": 100 + n} for n, s in enumerate(SITES)} | {
        "lost": {"site": "site-3", "node": None}
    }
    folder.run.mkdir()
    (folder.run / "registered.json").write_bytes(dump_json(registered))
    keep_nodes(folder, {"site-2": Seen(online=True, at=50.0)})
    said: list[Any] = []
    dispatcher = Dispatcher(folder=folder, environment={}, stop=None, say=lambda *a, **k: said.append(a))  # type: ignore[arg-type]
    nodes = [
        {"node-id": "100", "status": "online"},
        {"node-id": "101", "status": "offline"},
        {"node-id": "7", "status": "x"},
    ]
    listed = f"Listing all nodes...\n{dump_json({'success': True, 'nodes': nodes}).decode()}"
    found = dispatcher._seen_nodes(listed, now=90.0)
    assert found == {"site-1": Seen(online=True, at=90.0), "site-2": Seen(online=False, at=50.0)}
    for nothing in ("", "Error", '{"success": false}'):
        assert dispatcher._seen_nodes(nothing, now=90.0) == read_nodes(folder)


def test_whoever_connects_after_a_start_is_seen_soon_and_nobody_is_asked_about_for_long_when_nothing_changes() -> None:
    def there(*sites: str) -> dict[str, Seen]:
        return {f"site-{i}": Seen(online=f"site-{i}" in sites, at=1.0) for i in (1, 2, 3)}

    rest, rests = SEE_SOON, []
    for _ in range(8):
        rest = rest_after(rest, there("site-1"), there("site-1"))
        rests.append(rest)
    assert rests == sorted(rests)
    assert rests[0] == 2 * SEE_SOON
    assert rests[-1] == SEE_NODES
    # One comes, one goes, one is known for the first time.
    for before, seen in (
        (there("site-1"), there("site-1", "site-2")),
        (there("site-1"), there()),
        ({}, there("site-3")),
    ):
        assert rest_after(SEE_NODES, before, seen) == SEE_SOON
