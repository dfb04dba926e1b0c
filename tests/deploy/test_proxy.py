"""The real proxy in front of the real SuperLink, as `start` runs them: what the network reaches, and what it does not."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from oncofed_server.service.bell import HOLD, NOW
from oncofed_server.service.folder import Folder
from oncofed_server.service.programs import environment, free_port, superlink_port
from oncofed_server.service.proxy import FLEET_PATHS, PULL
from oncofed_server.service.registry import enrol, revoke
from oncofed_shared.enrolment import write_enrolment_request
from oncofed_shared.processes import runs
from oncofed_shared.public_keys import public_of

NGINX = shutil.which("nginx", path=f"{os.defpath}:/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]
PATIENCE = 120.0
PLAN_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass(kw_only=True)
class Service:
    """A running aggregator with one site enrolled; `key` is its gate's."""

    folder: Folder
    port: int
    process: subprocess.Popen[bytes]
    key: Path

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder.certificate))

    def ask(self, target: str, *, port: int | None = None, method: str = "POST", body: bytes = b"") -> int:
        """The status of a request whose target goes out exactly as it stands."""
        with (
            socket.create_connection(("127.0.0.1", port or self.port), timeout=20) as plain,
            self.context().wrap_socket(plain, server_hostname="127.0.0.1") as wire,
        ):
            head = f"{method} {target} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            wire.sendall(head.encode() + b"Content-Type: application/protobuf\r\n\r\n" + body)
            answer = http.client.HTTPResponse(wire)
            answer.begin()
            return answer.status


def _wait(what: str, until: object) -> None:
    end = time.monotonic() + PATIENCE
    while not until():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("hub")
    port = free_port()
    folder = Folder.create(
        root / "hub",
        name="hub",
        address=f"127.0.0.1:{port}",
        plan_key=public_of(PLAN_KEY),
        now=time.time(),
    )
    key = root / "node.key"
    _enrol(folder, "site-1", key)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (root / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "oncofed_server", "start", "--dir", str(folder.path)],
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    made = Service(folder=folder, port=port, process=process, key=key)
    try:
        _wait("the node is registered", (folder.run / "registered.json").exists)
        yield made
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        # Nothing that it started is left.
        assert [c for c in children if c.is_running() and runs(c.pid)] == []


@pytest.fixture
def service(started: Service) -> Service:
    """The aggregator with all its programs up: the test before, in whatever order, may have killed some."""
    _wait("the proxy answers", lambda: _open(started.port))
    _wait("the bell answers", lambda: started.ask(PULL) == HTTPStatus.TEMPORARY_REDIRECT)
    _wait("the SuperLink answers", lambda: started.ask(FLEET_PATHS[0]) == HTTPStatus.UNAUTHORIZED)
    return started


def _enrol(folder: Folder, site: str, path: Path) -> None:
    """Enrol a site whose gate's key goes to a file."""
    gate = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(gate.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    text = gate.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    request = write_enrolment_request(site=site, node_key=text, key=Ed25519PrivateKey.generate())
    enrol(folder, request, now=time.time())


def _open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def test_of_the_superlink_only_the_fleet_paths_are_reachable(service: Service) -> None:
    inside = superlink_port(service.folder)
    assert inside is not None
    paths = ["/v1/control/start-run", "/v1/control/list-runs", "/v1/control/register-node", "/v1/runtime/push-messages"]
    paths += [
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
    ]
    for path in paths:
        # It is there: whoever is on this host reaches it.
        assert service.ask(path, port=inside) != 404, path
        assert service.ask(path) == 404, path
    for path in ("/", "/docs", "/openapi.json", "/health", "/v1/fleet/", "/v1/fleet", "/nginx_status"):
        assert service.ask(path, method="GET") == 404, path


@pytest.mark.parametrize("path", [*FLEET_PATHS, NOW])
def test_a_fleet_path_gets_through_and_asks_for_a_registered_key(service: Service, path: str) -> None:
    # 401: the SuperLink itself has answered, for want of a node's signature. The bell sends a stranger on to it at once.
    assert service.ask(path) == (HTTPStatus.TEMPORARY_REDIRECT if path == PULL else 401)
    assert service.ask(path, method="GET") == 405


TRICKS = (
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2flist-runs",
    "/v1//control/list-runs",
    "//v1/control/list-runs",
    "/V1/CONTROL/LIST-RUNS",
    "/v1/control/list-runs/../../fleet/pull-messages",
    "/v1/control/list-runs%00/v1/fleet/pull-messages",
    "/v1/fleet/pull-messages;/../control/list-runs",
    "/v1/fleet/pull-messages#/v1/control/list-runs",
    "https://127.0.0.1/v1/control/list-runs",
    "/v1/fleet/pull-messages/",
    "*",
)


@pytest.mark.parametrize("target", TRICKS)
def test_no_spelling_of_a_path_reaches_anything_else(service: Service, target: str) -> None:
    log = service.folder.run / "superlink.log"
    before = log.stat().st_size
    status = service.ask(target)
    # Refused by the proxy, or passed on as the very Fleet path, where a node's signature is missing.
    assert status in {307, 400, 401, 404}
    seen = [line for line in log.read_bytes()[before:].decode().splitlines() if "POST" in line]
    # The dispatcher asks the SuperLink itself who is connected, now and then; nothing above asks that.
    known = [*FLEET_PATHS, "/v1/control/list-nodes"]
    assert [line for line in seen if not any(f'"POST {p} HTTP' in line for p in known)] == []


def test_an_oversized_message_is_refused_before_it_is_read(service: Service) -> None:
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=20) as plain,
        service.context().wrap_socket(plain, server_hostname="127.0.0.1") as wire,
    ):
        head = "POST /v1/fleet/push-object HTTP/1.1\r\nHost: hub\r\nContent-Length: 9999999999\r\n\r\n"
        wire.sendall(head.encode())
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        assert answer.status == 413


def test_only_those_who_trust_the_private_authority_connect(service: Service) -> None:
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=20) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=20) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        service.context().wrap_socket(plain, server_hostname="elsewhere.example")


def test_the_superlink_listens_on_this_host_only(service: Service) -> None:
    inside = superlink_port(service.folder)
    listening = set()
    for ours in psutil.Process(service.process.pid).children(recursive=True):
        # Flower's client comes and goes: the dispatcher asks it who is connected.
        with contextlib.suppress(psutil.NoSuchProcess):
            listening |= {c.laddr for c in ours.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {a.port for a in listening if a.ip not in {"127.0.0.1", "::1"}} == {service.port}
    assert inside in {a.port for a in listening}


def test_a_supernode_with_the_enrolled_key_gets_through_and_a_stranger_does_not(
    service: Service, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.key"
    key = ec.generate_private_key(ec.SECP384R1())
    stranger.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    started = [_supernode(service, stranger, tmp_path / "s"), _supernode(service, service.key, tmp_path / "o")]
    log = service.folder.run / "superlink.log"
    try:
        _wait("the site's node is activated", lambda: "Activated node_id" in log.read_text())
        # The stranger is turned away and ends by itself.
        assert started[0].wait(PATIENCE) != 0
        assert started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


def _supernode(service: Service, key: Path, home: Path) -> subprocess.Popen[bytes]:
    home.mkdir()
    env = environment(service.folder, os.environ) | {"FLWR_HOME": str(home)}
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name("flower-supernode")),
            *("--superlink", f"127.0.0.1:{service.port}", "--root-certificates", str(service.folder.certificate)),
            *("--auth-supernode-private-key", str(key), "--port", str(free_port())),
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_site_that_comes_later_is_let_in_and_a_revoked_one_is_thrown_out(service: Service, tmp_path: Path) -> None:
    _enrol(service.folder, "site-2", tmp_path / "late.key")
    said = service.folder.run / "dispatcher.log"
    _wait("it is let in", lambda: '"event": "gate.let-in", "site": "site-2"' in said.read_text())
    log = service.folder.run / "superlink.log"
    before = log.read_text().count("Activated node_id")
    node = _supernode(service, tmp_path / "late.key", tmp_path / "home")
    try:
        _wait("its node is activated", lambda: log.read_text().count("Activated node_id") > before)
        revoke(service.folder, "site-2", PLAN_KEY, now=time.time())
        _wait("it is thrown out", lambda: '"event": "gate.shut-out", "site": "site-2"' in said.read_text())
        # The bell rings for the SuperNode, the SuperLink refuses its question, and it ends by itself, sooner than without a ring.
        node.wait(HOLD)
    finally:
        node.kill()
        node.wait()
    again = _supernode(service, tmp_path / "late.key", tmp_path / "again")
    try:
        assert again.wait(PATIENCE) != 0
    finally:
        again.kill()
        again.wait()


def test_a_renewed_certificate_is_shown_without_a_restart(service: Service) -> None:
    def shown() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", service.port), timeout=20) as plain,
            service.context().wrap_socket(plain, server_hostname="127.0.0.1") as wire,
        ):
            return wire.getpeercert(binary_form=True) or b""

    before = shown()
    time.sleep(0.05)
    service.folder.make_certificates(now=time.time())
    _wait("the new certificate", lambda: shown() != before)


def test_without_a_bell_the_superlink_is_asked_at_once(service: Service) -> None:
    (dispatcher,) = (p for p in psutil.Process(service.process.pid).children() if "dispatch" in p.cmdline())
    dispatcher.kill()
    assert service.ask(PULL) == 401
    assert service.ask(PULL, method="GET") == 405
    _wait("the bell is back", lambda: service.ask(PULL) == 307)


def test_a_superlink_whose_superexec_died_is_started_again(service: Service) -> None:
    def superexec() -> psutil.Process | None:
        for below in psutil.Process(service.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if runs(below.pid) and below.name().startswith("flower-superexe"):
                    return below
        return None

    _wait("there is one", superexec)
    first = superexec()
    assert first is not None
    first.kill()
    _wait("there is another", lambda: (now := superexec()) is not None and now.pid != first.pid)
    _wait("the SuperLink answers", lambda: service.ask(FLEET_PATHS[0]) == 401)


def test_killed_programs_are_started_again_and_the_node_comes_back(service: Service) -> None:
    def children() -> dict[str, psutil.Process]:
        found = {}
        for child in psutil.Process(service.process.pid).children():
            try:
                words = " ".join(child.cmdline())
            except psutil.Error:
                continue
            for name in ("flower-superlink", "nginx", "dispatch"):
                if name in words:
                    found[name] = child
        return found

    before = children()
    assert set(before) == {"flower-superlink", "nginx", "dispatch"}
    for child in before.values():
        child.kill()

    def others() -> bool:
        """All three, and none of those that were killed: a moment ago they may all have been there still, or all be gone."""
        now = children()
        return now.keys() == before.keys() and not {c.pid for c in now.values()} & {c.pid for c in before.values()}

    _wait("all are back, and others than before", others)
    _wait("the proxy answers", lambda: _open(service.port))
    _wait("the SuperLink answers behind it", lambda: service.ask(FLEET_PATHS[0]) == 401)
