"""The bell: a gate's question waits until there is something for it, never in vain for long, and nobody else's waits."""

from __future__ import annotations

import base64
import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from oncofed_server.service.bell import KEY, NOW, PORT_FILE, Bell, Ringer, Waiting
from oncofed_server.service.folder import Folder
from oncofed_server.service.programs import free_port
from oncofed_server.service.registry import enrol, gates
from oncofed_shared.enrolment import write_enrolment_request
from oncofed_shared.public_keys import public_of

PLAN_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SHORT = 0.05


def took(work) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def test_the_first_question_is_let_through_and_the_next_waits_for_its_time():
    waiting = Waiting(hold=0.3)
    assert took(lambda: waiting.wait("a")) < 0.2
    assert took(lambda: waiting.wait("a")) >= 0.3


def test_a_ring_lets_its_own_site_through_and_nobody_else():
    waiting = Waiting(hold=20.0)
    for site in ("a", "b"):
        waiting.wait(site)
    with ThreadPoolExecutor(2) as pool:
        both = {site: pool.submit(waiting.wait, site) for site in ("a", "b")}
        while len(waiting._held) < 2:
            time.sleep(0.01)
        waiting.ring("a")
        both["a"].result(10)
        assert not both["b"].done()
        waiting.ring_all()
        both["b"].result(10)
    assert not waiting._held


def test_a_ring_for_a_site_that_is_busy_is_not_forgotten_and_counts_once():
    waiting = Waiting(hold=0.3)
    waiting.wait("a")
    waiting.ring("a")
    waiting.ring("a")
    assert took(lambda: waiting.wait("a")) < 0.2
    assert took(lambda: waiting.wait("a")) >= 0.3


def test_of_a_site_one_question_waits_the_newest():
    waiting = Waiting(hold=20.0)
    waiting.wait("a")
    with ThreadPoolExecutor(2) as pool:
        old = pool.submit(waiting.wait, "a")
        while not waiting._held:
            time.sleep(0.01)
        new = pool.submit(waiting.wait, "a")
        old.result(10)
        assert not new.done()
        waiting.ring("a")
        new.result(10)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, str, int]:
    """A folder with one site enrolled, what its gate shows, and the port of its bell."""
    root = tmp_path_factory.mktemp("hub") / "hub"
    folder = Folder.create(root, name="hub", address="127.0.0.1:9", plan_key=public_of(PLAN_KEY), now=time.time())
    folder.run.mkdir()
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    enrol(folder, write_enrolment_request(site="A", node_key=text, key=Ed25519PrivateKey.generate()), now=time.time())
    shown = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert gates(folder, now=time.time()) == {shown: "A"}
    (folder.run / PORT_FILE).write_text(str(free_port()))
    return folder, base64.b64encode(shown).decode(), int((folder.run / PORT_FILE).read_text())


def ask(port: int, shown: str | None, method: str = "POST") -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, "/", headers={} if shown is None else {KEY: shown})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location")
    finally:
        connection.close()


def test_a_gate_waits_for_the_bell_and_a_stranger_is_sent_on_at_once(hub: tuple[Folder, str, int]):
    folder, shown, port = hub
    with Bell(folder).listening(), ThreadPoolExecutor(1) as pool:
        assert ask(port, shown) == (307, NOW)
        held = pool.submit(ask, port, shown)
        for stranger in (None, "", "%%%", "é", base64.b64encode(b"somebody else's").decode(), "A" * 5000):
            assert ask(port, stranger) == (307, NOW)
        assert ask(port, shown, method="GET")[0] == 501
        time.sleep(SHORT)
        assert not held.done()
        Ringer(folder).ring("somebody else")
        time.sleep(SHORT)
        assert not held.done()
        Ringer(folder).ring("A")
        assert held.result(10) == (307, NOW)


def test_when_the_bell_ends_nobody_is_left_waiting(hub: tuple[Folder, str, int]):
    folder, shown, port = hub
    with ThreadPoolExecutor(1) as pool:
        with Bell(folder).listening():
            ask(port, shown)
            held = pool.submit(ask, port, shown)
            time.sleep(4 * SHORT)
        assert held.result(10) == (307, NOW)


def test_without_a_port_or_with_one_that_is_taken_there_is_no_bell_and_no_error(hub: tuple[Folder, str, int]):
    folder, shown, port = hub
    with Bell(folder).listening(), Bell(folder).listening():
        assert ask(port, shown) == (307, NOW)
    path = Path(folder.run / PORT_FILE)
    kept = path.read_text()
    path.unlink()
    try:
        Ringer(folder).ring("A")
        with Bell(folder).listening(), pytest.raises(ConnectionRefusedError):
            ask(port, shown)
    finally:
        path.write_text(kept)
