"""The gate: how a SuperNode is started, what it sees of this machine, and what its relay imports."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.enrol import request_enrolment
from oncofed_client.gate.credentials import clear_way, hand_over
from oncofed_client.gate.flower_parent import RELAYS, complete
from oncofed_client.gate.node import check_enrolled, open_gate
from oncofed_client.gate.programs import BIN, PASSED_ON, QUICK, SILENT, environment_of, gate_program, prepared
from oncofed_shared.enrolment import read_enrolment_request, write_enrolment
from oncofed_shared.errors import ConfigError, DataError, StorageError

HEAVY = (
    "torch",
    "pandas",
    "pydicom",
    "monai",
    "SimpleITK",
    "sklearn",
    "opacus",
    "oncofed_client.site",
    "oncofed_client.door",
)


def authority() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An enrolled site's state."""
    folder = tmp_path / "state"
    request_enrolment(folder, site="Clinic A", out=tmp_path / "request")
    answer = write_enrolment(
        read_enrolment_request((tmp_path / "request").read_bytes()),
        aggregator="hub",
        address="hub.example.org:8443",
        certificate=authority(),
        plan_key=bytes(32),
        roster=None,
        issued=0.0,
        key=Ed25519PrivateKey.generate(),
    )
    (folder / "enrolment.json").write_bytes(answer)
    return folder


def test_the_supernode_is_started_with_tls_a_key_and_what_the_relay_needs(state, tmp_path):
    gate = open_gate(state, home=tmp_path / "gate", socket=Path("run.sock"))
    words = list(gate.command())
    assert words[:4] == [sys.executable, "-m", "oncofed_client.gate.flower_parent", "flower-supernode"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert given["--superlink"] == "hub.example.org:8443"
    assert Path(given["--root-certificates"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert given["--auth-supernode-private-key"] == str(state / "node.key")
    assert given["--host"] == "127.0.0.1"
    assert given["--node-config"] == f'site="Clinic A" socket={json.dumps(str(Path("run.sock").absolute()))}'
    assert "--insecure" not in words
    told = prepared(state, home=tmp_path / "gate", socket=Path("run.sock"))
    assert (told.address, list(told.words)) == ("hub.example.org:8443", words)
    program = gate_program(told, home=tmp_path / "gate", environment={}, way=7)
    ports = set()
    for _ in range(8):
        *fence, port = program.command()
        assert fence == [sys.executable, "-m", "oncofed_client.gate.fence", "7", told.address, *words, "--port"]
        assert 0 < int(port) < 65536
        ports.add(port)
    # Ports are asked for anew, since another process may take one that was free.
    assert len(ports) > 1


def test_a_gate_sees_what_it_needs_of_the_environment_and_is_silent(state, tmp_path):
    gate = prepared(state, home=tmp_path / "gate", socket=Path("s"))
    given = {name: f"of {name}" for name in PASSED_ON} | {"DATABASE_PASSWORD": "x", "FLWR_HOME": "y", "AWS_KEY": "z"}
    made = gate_program(gate, home=tmp_path / "gate", environment=given, way=3).environment
    assert set(made) <= {*PASSED_ON, *SILENT, *QUICK, "HOME", "FLWR_HOME"}
    assert SILENT.items() <= made.items()
    assert made["FLWR_TELEMETRY_ENABLED"] == "0"
    assert made["FLWR_HOME"] == str(tmp_path / "gate" / "flower")
    assert made["HTTPS_PROXY"] == "of HTTPS_PROXY"
    assert made["NO_PROXY"] == made["no_proxy"] == "127.0.0.1,localhost,of NO_PROXY"
    assert made["PATH"].split(os.pathsep)[:2] == [str(BIN), str(Path(sys.executable).parent)]
    assert environment_of({}, tmp_path)["NO_PROXY"] == "127.0.0.1,localhost"


def test_exit_305_is_explained(state, tmp_path):
    gate = prepared(state, home=tmp_path / "gate", socket=Path("s"))
    why = gate_program(gate, home=tmp_path / "gate", environment={}, way=3).why
    assert "for up to a minute" in why(1)
    assert why(3) == "ended with code 3"
    assert why(-9) == "was ended by signal 9"


def test_a_gate_of_a_site_that_is_not_enrolled_does_not_start(state, tmp_path):
    check_enrolled(state)
    (state / "enrolment.json").rename(state / "other")
    for open_it in (open_gate, prepared):
        with pytest.raises(ConfigError, match=r"has no enrolment.json; .*enrol request"):
            open_it(state, home=tmp_path / "gate", socket=Path("s"))
    (state / "enrolment.json").write_bytes((state / "other").read_bytes()[:-40])
    with pytest.raises(DataError):
        open_gate(state, home=tmp_path / "gate", socket=Path("s"))
    with pytest.raises(StorageError, match="--socket"):
        open_gate(state, home=tmp_path / "gate", socket=Path("x" * 120))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to another user")
def test_a_gate_of_its_own_user_is_given_two_files(state, tmp_path):
    made = hand_over(state, home=tmp_path / "gate", user="nobody")
    assert {p.name for p in made.iterdir()} == {"enrolment.json", "node.key"}
    for path in (tmp_path / "gate", made, *made.iterdir()):
        assert path.owner() == "nobody"
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    assert (made / "node.key").read_bytes() == (state / "node.key").read_bytes()
    with pytest.raises(ConfigError, match="no such user"):
        hand_over(state, home=tmp_path / "other", user="nobody-of-this-name")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root tries what another user may do")
def test_a_gate_of_its_own_user_is_told_before_it_starts_that_it_cannot_get_there(tmp_path):
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no Python on this machine that another user may start")
    with tempfile.TemporaryDirectory() as name:
        short = Path(name)
        short.chmod(0o755)
        before = os.umask(0o077)
        try:
            clear_way("nobody", short / "a" / "b", short / "c", python=python)
        finally:
            os.umask(before)
        assert {stat.S_IMODE(p.stat().st_mode) for p in (short / "a", short / "a" / "b", short / "c")} == {0o755}
        (short / "a").chmod(0o700)
        with pytest.raises(ConfigError, match=r"nobody: cannot get into .*/a/b; name places"):
            clear_way("nobody", short / "a" / "b", short / "c", python=python)
        (short / "own").mkdir(mode=0o700)
        shutil.copy(python, short / "own" / "python")
        with pytest.raises(ConfigError, match=r"may not start .*/own/python; install oncofed"):
            clear_way("nobody", short, python=str(short / "own" / "python"))
    with pytest.raises(ConfigError, match="no such user"):
        clear_way("nobody-of-this-name", tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root tries what another user may do")
def test_a_gate_that_may_not_read_its_two_files_says_so_in_a_line(state):
    asked = "import pathlib, sys; from oncofed_client.gate import node; node.check_enrolled(pathlib.Path(sys.argv[1]))"
    # Root without its rights over other users' files.
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", asked, str(state)]
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    shutil.chown(state / "node.key", "nobody")
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "node.key cannot be read by this user" in told.stderr
    shutil.chown(state, "nobody")
    state.chmod(0o700)
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "enrolment.json and node.key cannot be read by this user" in told.stderr


def loaded(module: str) -> set[str]:
    asked = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module", ["oncofed_client.flower_gate", "oncofed_client.gate.__main__", "oncofed_client.gate.flower_parent"]
)
def test_what_has_the_network_imports_nothing_that_reads_data(module):
    names = loaded(module)
    assert module in names
    assert not [n for n in HEAVY if n in names]


def test_what_stays_all_the_time_imports_next_to_nothing():
    names = loaded("oncofed_client.gate.__main__")
    assert not [n for n in ("numpy", "grpc", "pydantic", "cryptography", "flwr") if n in names]
    assert "numpy" in loaded("oncofed_client.gate.prepare")


def test_the_check_of_imports_would_notice():
    assert "torch" in loaded("oncofed_client.site")


def test_a_mistake_gives_one_line_and_a_code(tmp_path):
    words = ["--credentials", tmp_path, "--home", tmp_path / "home", "--socket", "s"]
    ended = subprocess.run(
        [sys.executable, "-m", "oncofed_client.gate", *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("oncofed-gate: ")
    assert len(ended.stderr.splitlines()) == 1


# -- relays as copies ---------------------------------------------------------------------------------------------------------


@given(
    lists=st.lists(st.lists(st.text("ab -/=.", max_size=9), min_size=1, max_size=6), max_size=5),
    cut=st.integers(0, 200),
)
def test_words_come_out_of_the_pipe_as_they_went_in_however_they_are_cut(lists, cut):
    whole = "".join("".join(f"{line}\n" for line in (len(words), *words)) for words in lists).encode()
    kept = bytearray(whole[:cut])
    found = complete(kept)
    kept += whole[cut:]
    assert found + complete(kept) == lists
    assert not kept


@given(st.binary(max_size=200))
def test_what_nobody_of_ours_wrote_on_the_pipe_ends_nothing(content):
    kept = bytearray(content)
    assert all(1 <= len(words) <= 32 for words in complete(kept))


def relay(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": f"{BIN}{os.pathsep}{home / 'next'}{os.pathsep}/usr/bin:/bin"}
    program = shutil.which("flwr-clientapp", path=environment["PATH"])
    assert program is not None
    return subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=20, check=False)


def test_a_relay_is_asked_for_by_its_words_and_without_a_parent_flowers_own_program_runs(tmp_path):
    words = ["--token", "x y", "--insecure"]
    (tmp_path / "next").mkdir()
    other = tmp_path / "next" / "flwr-clientapp"
    other.write_text("#!/bin/sh\necho its own: $#\n")
    other.chmod(0o755)
    assert relay(tmp_path, *words).stdout == "its own: 3\n"
    os.mkfifo(tmp_path / RELAYS)
    pipe = os.open(tmp_path / RELAYS, os.O_RDWR | os.O_NONBLOCK)
    try:
        ended = relay(tmp_path, *words)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        kept = bytearray(os.read(pipe, 4096))
        assert complete(kept) == [words]
    finally:
        os.close(pipe)
