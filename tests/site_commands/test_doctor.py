"""`oncofed-site doctor`: each thing is ok, or wrong with what to do; against a real TLS server."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.doctor_check import Verdict
from oncofed_client.doctor_machine import disk_check, memory_check, version_checks
from oncofed_client.doctor_network import clock_check, network_checks, proxy_for
from oncofed_client.identity import identity_of
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_shared.enrolment import Enrolment

from .conftest import Papers, Run

NAMES = {
    "site.toml", "data folder", "consent", "state folder", "identity key", "gate key", "ledger", "enrolment",
    "name of the aggregator", "proxy", "TLS", "clock", "disk", "memory", "versions", "phone-home switches", "daemon socket",
}  # fmt: skip
Trust = tuple[str, Path]


def _authority(tmp: Path, host: str, *, days: int = 400) -> Trust:
    """A private authority and, signed by it, a server's key with certificate; PEM of the one, file of the other."""
    root_key, key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=10)

    def made(name: str, issuer: str, public, signer, alternative=None) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=alternative is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        )
        if alternative is None:
            usage = dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "crl_sign", "encipher_only", "decipher_only"), False)  # fmt: skip
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, **usage), critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return builder.sign(signer, SHA256())

    root = made("root", "root", root_key.public_key(), root_key)
    name = x509.IPAddress(ipaddress.ip_address(host))
    leaf = made("server", "root", key.public_key(), root_key, name)
    path = tmp / f"server-{days}.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + leaf.public_bytes(Encoding.PEM))
    return root.public_bytes(Encoding.PEM).decode(), path


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler], chain: Path | None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if chain is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _speaking(offset: float) -> type[BaseHTTPRequestHandler]:
    """A server whose clock is `offset` seconds behind ours."""

    class Speaking(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            del timestamp
            return formatdate(time.time() - offset, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    return Speaking


class _Tunnel(BaseHTTPRequestHandler):
    """A proxy: CONNECT, and nothing else."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_CONNECT(self) -> None:
        self.asked.append((self.path, self.headers.get("Proxy-Authorization")))
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as other:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self._copy, args=(other, self.connection))
            back.start()
            self._copy(self.connection, other)
            back.join()
        self.close_connection = True

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return _authority(tmp_path, "127.0.0.1")


def _enrolment(port: int, certificate: str) -> Enrolment:
    return Enrolment(
        site="site-1", identity=b"i" * 32, request="0" * 64, aggregator="lead", address=f"127.0.0.1:{port}",
        certificate=certificate, plan_key=b"p" * 32, roster=None, issued=1.0, signer=b"s" * 32,
    )  # fmt: skip


def _verdicts(enrolment: Enrolment | None, environment: dict[str, str]) -> dict[str, tuple[Verdict, str]]:
    return {c.name: (c.verdict, f"{c.found} {c.remedy}") for c in network_checks(enrolment, environment)}


def test_a_server_that_holds_and_whose_clock_agrees(trust: Trust):
    with _served(_speaking(0), trust[1]) as port:
        found = _verdicts(_enrolment(port, trust[0]), {})
    assert {v for v, _ in found.values()} == {Verdict.OK}
    assert "direct" in found["proxy"][1]
    assert "TLSv1.3" in found["TLS"][1]


@pytest.mark.parametrize(("offset", "said"), [(10, "ahead"), (-400, "behind")])
def test_a_clock_that_would_lock_the_gate_out(trust: Trust, offset: float, said: str):
    with _served(_speaking(offset), trust[1]) as port:
        verdict, words = _verdicts(_enrolment(port, trust[0]), {})["clock"]
    assert verdict is Verdict.WRONG
    assert said in words
    assert "NTP" in words


def test_another_authority_or_an_expired_certificate_is_wrong(trust: Trust, tmp_path: Path):
    other, _ = _authority(tmp_path, "127.0.0.1", days=300)
    old, chain = _authority(tmp_path, "127.0.0.1", days=5)
    elsewhere, wrong_name = _authority(tmp_path, "127.0.0.9", days=200)
    for certificate, served in ((other, trust[1]), (old, chain), (elsewhere, wrong_name)):
        with _served(_speaking(0), served) as port:
            found = _verdicts(_enrolment(port, certificate), {})
        assert found["TLS"][0] is Verdict.WRONG
        assert "certificate does not hold" in found["TLS"][1]
        assert found["clock"][0] is Verdict.NOT_CHECKED


def test_nobody_there_plain_http_and_a_name_without_an_address(trust: Trust):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = _verdicts(_enrolment(free.getsockname()[1], trust[0]), {})
    assert found["TLS"][0] is Verdict.WRONG
    assert "cannot be reached" in found["TLS"][1]
    with _served(_speaking(0), None) as port:
        assert _verdicts(_enrolment(port, trust[0]), {})["TLS"][0] is Verdict.WRONG
    proxied = _verdicts(_enrolment(1, trust[0]), {"https_proxy": "http://proxy.invalid:3128"})
    assert proxied["name of the aggregator"][0] is Verdict.WRONG


def test_by_way_of_a_proxy(trust: Trust):
    _Tunnel.asked.clear()
    with _served(_Tunnel, None) as proxy, _served(_speaking(0), trust[1]) as port:
        environment = {"HTTPS_PROXY": f"http://user:pass%40word@127.0.0.1:{proxy}"}
        found = _verdicts(_enrolment(port, trust[0]), environment)
        assert {v for v, _ in found.values()} == {Verdict.OK}
        assert _Tunnel.asked == [(f"127.0.0.1:{port}", "Basic dXNlcjpwYXNzQHdvcmQ=")]
        assert "pass" not in str(found)
        _Tunnel.asked.clear()
        _verdicts(_enrolment(port, trust[0]), environment | {"NO_PROXY": "localhost, 127.0.0.1"})
        assert _Tunnel.asked == []
    found = _verdicts(_enrolment(port, trust[0]), {"HTTPS_PROXY": "ftp://x"})
    assert found["proxy"][0] is Verdict.WRONG


def test_exceptions_to_a_proxy_are_hosts_and_their_domains():
    environment = {"https_proxy": "proxy:3128"}
    for exceptions, direct in (
        ("", False), ("*", True), ("example", False), ("lead.example", True), (".example", True), ("d.example", False),
        ("other,  example ", True),
    ):  # fmt: skip
        host = "lead.example" if exceptions != "example" else "leadexample"
        assert (proxy_for(host, environment | {"no_proxy": exceptions}) is None) == direct
    assert proxy_for("lead.example", {}) is None


@given(st.floats(-1e5, 1e5))
def test_a_clock_is_ok_exactly_where_flower_lets_it_in_with_a_margin(offset: float):
    now = 1_790_000_000.0
    check = clock_check(formatdate(now, usegmt=True), now + offset)
    if offset >= 5 or offset <= -300:
        assert check.verdict is Verdict.WRONG
    if -200 <= offset <= 3:
        assert check.verdict is Verdict.OK


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_a_server_without_a_clock_is_not_an_error(date: str | None):
    assert clock_check(date, 1.0).verdict is Verdict.NOT_CHECKED


def test_without_an_enrolment_the_rest_is_checked(run: Run, site: Path):
    code, out, _ = run("doctor", site, "--json")
    found = json.loads(out)
    assert {c["name"] for c in found["checks"]} == NAMES - {"identity key", "gate key"}
    verdicts = {c["name"]: c["verdict"] for c in found["checks"]}
    assert verdicts["enrolment"] == verdicts["clock"] == verdicts["state folder"] == "not checked"
    assert verdicts["disk"] == verdicts["versions"] == verdicts["site.toml"] == "ok"
    assert (code == 0) == found["sound"]
    code, out, _ = run("doctor", site)
    assert "this site is not enrolled" in out
    assert "oncofed-site enrol request" in out


def test_an_enrolled_site_has_every_check(run: Run, site: Path, papers: Papers):
    code, out, _ = run("doctor", site, "--json")
    found = {c["name"]: c for c in json.loads(out)["checks"]}
    assert set(found) == NAMES | {"certificate authority"}
    # Nobody answers to the name in these papers.
    assert code == 3
    assert found["name of the aggregator"]["verdict"] == "wrong"
    assert all(c["remedy"] for c in found.values() if c["verdict"] == "wrong")
    assert found["enrolment"]["verdict"] == found["identity key"]["verdict"] == "ok"
    assert papers.enrolment.exists()


def test_wrong_things_are_named_each_with_what_to_do(
    run: Run, site: Path, state: Path, papers: Papers, monkeypatch: pytest.MonkeyPatch
):
    Ledger.create(state / LEDGER_FILE, site="site-1", key=identity_of(state), now=1.0).close()
    content = bytearray((state / LEDGER_FILE).read_bytes())
    place = content.rindex(b'"kind":"open"')
    content[place + 8] ^= 1
    (state / LEDGER_FILE).write_bytes(bytes(content))
    (state / "node.key").chmod(0o640)
    (state / "enrolment.json").write_bytes(b"{}")
    (state / "run").mkdir(mode=0o755)
    (state / "run" / "daemon.sock").write_text("")
    (site / "site.toml").write_text("[site]\nname = 3\n")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    assert papers.folder
    code, out, err = run("doctor", site, "--json")
    assert (code, err) == (3, "")
    found = {c["name"]: c for c in json.loads(out)["checks"]}
    wrong = {n for n, c in found.items() if c["verdict"] == "wrong"}
    assert wrong >= {"site.toml", "ledger", "gate key", "enrolment", "daemon socket", "phone-home switches"}
    assert all(found[n]["remedy"] for n in wrong)
    code, out, _ = run("doctor", site)
    assert code == 3
    assert out.count("what to do:") >= 6


def test_a_socket_that_others_may_use_is_wrong(run: Run, site: Path, state: Path, papers: Papers):
    # A socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp())
    assert papers.folder
    assert state.exists()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "s"))
            for mode, expected in ((0o755, "wrong"), (0o750, "ok")):
                folder.chmod(mode)
                (folder / "s").chmod(0o660)
                _, out, _ = run("doctor", site, "--json", "--socket", folder / "s")
                assert {c["name"]: c["verdict"] for c in json.loads(out)["checks"]}["daemon socket"] == expected
    finally:
        shutil.rmtree(folder)


def test_data_that_every_user_may_read_is_wrong(run: Run, site: Path):
    # Not below pytest's own folder, which is closed to others.
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder = Path(shutil.copytree(site, Path(above) / "site-1"))
        for mode, expected in ((0o755, "wrong"), (0o750, "ok")):
            folder.chmod(mode)
            for file in folder.iterdir():
                file.chmod(mode & 0o664)
            _, out, _ = run("doctor", folder, "--json")
            assert {c["name"]: c["verdict"] for c in json.loads(out)["checks"]}["data folder"] == expected
        Path(above).chmod(0o700)
        folder.chmod(0o755)
        _, out, _ = run("doctor", folder, "--json")
        assert {c["name"]: c["verdict"] for c in json.loads(out)["checks"]}["data folder"] == "ok"


def test_too_little_disk_or_memory_and_another_version(tmp_path: Path):
    assert disk_check(tmp_path / "not" / "there").verdict is Verdict.OK
    assert disk_check(tmp_path, least=1 << 60).verdict is Verdict.WRONG
    assert memory_check(least=1 << 60).verdict is Verdict.WRONG
    assert memory_check(least=1).verdict is Verdict.OK
    (absent,) = version_checks("oncofed-of-nobody")
    assert absent.verdict is Verdict.WRONG


def test_a_pin_that_does_not_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "oncofedtest-1.0.dist-info"
    folder.mkdir()
    pins = ["torch==0.0.1", "no-such-package==1", "click", 'numpy==0; extra == "dev"']
    lines = ["Metadata-Version: 2.1", "Name: oncofedtest", "Version: 1.0", *(f"Requires-Dist: {p}" for p in pins)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (check,) = version_checks("oncofedtest")
    assert check.verdict is Verdict.WRONG
    assert "torch: is " in check.found
    assert "no-such-package: is not installed" in check.found
    assert "numpy" not in check.found
    assert "click" not in check.found


def test_a_folder_that_is_none_is_one_clear_error(run: Run, tmp_path: Path):
    code, _, err = run("doctor", tmp_path / "nothing")
    assert code == 3
    assert "is not a folder" in err
