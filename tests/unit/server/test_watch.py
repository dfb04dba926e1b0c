"""`status --watch`: what stands on the page, and the loop itself, in a terminal and into a pipe, over real files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from oncofed_server.service.folder import Folder
from oncofed_server.service.letters import HEIGHT, large
from oncofed_server.service.prepare import prepare
from oncofed_server.service.registry import enrol
from oncofed_server.service.running import Seen, Service, keep_nodes
from oncofed_server.service.status import status_of
from oncofed_server.service.studies import StudyFolder, Wanted, add_study
from oncofed_server.service.watch import look_at
from oncofed_shared.enrolment import write_enrolment_request
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import public_of

SITES = ("site-1", "site-2", "site-3")
AT = 1_790_000_000
RUNNING = {
    "phase": "running", "step_phase": "train", "round": 12, "rounds": 40, "step": 31, "attempt": 0, "attempts": 3,
    "asked": list(SITES), "waiting": {"site-2": True}, "connected": list(SITES), "since": AT, "deadline": AT + 1800,
    "excluded": {}, "notes": [], "why": "",
}  # fmt: skip
COMMAND = [sys.executable, "-m", "oncofed_server", "status", "--watch"]


@pytest.fixture
def place(tmp_path: Path, make_plan: Callable[..., Plan]) -> StudyFolder:
    """A study that an aggregator has taken in."""
    key = Ed25519PrivateKey.generate()
    now = time.time()
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


def row_of(place: StudyFolder, said: dict[str, Any], *, driven: bool = True, served: bool = True) -> dict[str, Any]:
    folder = Folder.open(place.path.parents[1])
    place.tell(said)
    folder.run.mkdir(exist_ok=True)
    if served:
        Service.own().keep(folder)
    with place.alone() if driven else contextlib.nullcontext():
        (row,) = status_of(folder, now=time.time())["studies"]
    return row


class TestWords:
    def test_a_running_study_says_who_answered_whom_it_waits_for_and_until_when(self, place: StudyFolder) -> None:
        look = look_at(row_of(place, RUNNING))
        page = "\n".join(look.lines)
        assert (look.mood, look.headline) == ("goes on", "train 12/40")
        assert "round 12 of 40, step 31" in page
        assert "answered: 2 of 3 (site-1, site-3)" in page
        assert "waits for: site-2 to answer" in page
        for at in (AT, AT + 1800):
            assert time.strftime("%H:%M:%S", time.localtime(at)) in page
        assert "then asked again (attempt 1 of 3)" in page
        last = "\n".join(look_at(row_of(place, RUNNING | {"attempt": 2})).lines)
        assert "then without them (attempt 3 of 3)" in last

    def test_the_newest_thing_that_went_wrong_at_a_site_is_why_it_is_waited_for(self, place: StudyFolder) -> None:
        notes = [
            {"site": "site-2", "what": "an old one", "at": AT + 1},
            {"site": "site-2", "what": "does not believe the request", "at": AT + 5},
            {"site": "site-1", "what": "of a step before", "at": AT - 5},
        ]
        row = row_of(place, RUNNING | {"notes": notes, "waiting": dict.fromkeys(SITES[:2], True)})
        assert row["waits_for"] == "site-1 to answer; site-2 (does not believe the request)"

    @pytest.mark.parametrize(
        ("said", "how", "mood", "words"),
        [
            ({"connected": ["site-1", "site-3"]}, {}, "waits", "site-2 to connect"),
            ({"waiting": {}}, {}, "goes on", "nobody: the aggregator computes"),
            ({}, {"driven": False}, "waits", "its next process"),
            ({}, {"driven": False, "served": False}, "waits", "`oncofed-aggregator start`"),
            ({"phase": "stuck", "why": "10 runs ended"}, {}, "needs a person", "a person: 10 runs ended"),
            ({"phase": "failed", "why": "quorum"}, {}, "needs a person", "it failed: quorum"),
            ({"phase": "done", "undelivered": []}, {}, "goes on", "nothing; it is done"),
            ({"phase": "done", "undelivered": ["site-3"]}, {}, "needs a person", "site-3 to take the model"),
        ],
    )
    def test_what_it_waits_for(
        self, place: StudyFolder, said: dict[str, Any], how: dict[str, bool], mood: str, words: str
    ) -> None:
        look = look_at(row_of(place, RUNNING | said, **how))
        assert look.mood == mood
        assert words in "\n".join(look.lines)

    @pytest.mark.parametrize(("wanted", "words"), [(Wanted.PAUSE, "say `resume`"), (Wanted.CANCEL, "was cancelled")])
    def test_what_a_person_wanted_counts_before_what_the_process_last_said(
        self, place: StudyFolder, wanted: Wanted, words: str
    ) -> None:
        place.want(wanted)
        assert words in "\n".join(look_at(row_of(place, RUNNING, driven=False)).lines)

    def test_a_study_that_nobody_has_driven_yet(self, place: StudyFolder) -> None:
        look = look_at(row_of(place, {}, driven=False, served=False))
        assert look.headline == "waiting"
        assert look.lines == ("waits for: `oncofed-aggregator start`: nothing runs it",)


@given(text=st.text(max_size=40), width=st.integers(0, 120))
def test_large_letters_never_leave_the_screen(text: str, width: int) -> None:
    lines = large(text, width=width)
    assert len(lines) in {0, HEIGHT}
    assert all(len(line) <= width and set(line) <= {" ", "\u2588"} for line in lines)


def test_letters_differ_and_a_word_that_does_not_fit_is_left_out() -> None:
    shown = {tuple(large(c, width=9)) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/?"}
    assert len(shown) == 38
    assert large("train 12/40", width=30) == large("train", width=30)
    assert large("train 12/40", width=60) != large("train", width=60)
    assert large("training", width=10) == []


class Pages:
    """What a program writes, page by page."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.text = descriptor, ""

    def read(self, patience: float) -> bool:
        if not select.select([self.descriptor], [], [], patience)[0]:
            return False
        try:
            part = os.read(self.descriptor, 1 << 16)
        except OSError:
            return False
        self.text += part.decode(errors="replace")
        return bool(part)

    def until(self, words: str, patience: float = 60.0) -> str:
        """Everything up to now, once the words are there; what comes later is a page of its own."""
        end = time.monotonic() + patience
        while words not in self.text:
            assert time.monotonic() < end, self.text
            self.read(0.2)
        found, self.text = self.text, ""
        return found


@contextlib.contextmanager
def piped(place: StudyFolder, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Pages]]:
    command = [*COMMAND, "--dir", str(place.path.parents[1]), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, Pages(process.stdout.fileno())
        finally:
            process.kill()


def test_into_a_pipe_a_page_is_written_for_each_change_and_a_signal_ends_it(place: StudyFolder) -> None:
    with piped(place) as (process, pages):
        first = pages.until("nothing runs it\n")
        assert re.match(r"-- \d\d \w+ \d\d:\d\d:\d\d\nhub at h\.example:8443: 3 sites", first)
        assert "\x1b" not in first
        place.tell(RUNNING)
        assert "train 12/40, waits" in pages.until("nothing runs it")
        # Nothing has changed, so nothing is written.
        assert not pages.read(2.5)
        place.tell(RUNNING | {"round": 13})
        assert pages.until("round 13 of 40").count("-- ") == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_lines_of_json_and_a_reader_that_goes_away(place: StudyFolder) -> None:
    with piped(place, "--json") as (process, pages):
        line = pages.until("\n")
        assert json.loads(line)["studies"][0]["phase"] == "waiting"
        assert process.stdout is not None
        process.stdout.close()
        place.tell(RUNNING)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_in_a_terminal_the_page_is_drawn_again_and_ctrl_c_ends_it(place: StudyFolder) -> None:
    folder = Folder.open(place.path.parents[1])
    folder.run.mkdir()
    Service.own().keep(folder)
    keep_nodes(folder, {"site-1": Seen(online=True, at=AT), "site-2": Seen(online=False, at=AT)})
    place.tell(RUNNING)
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(  # noqa: S606 - our own words
            COMMAND[0], [*COMMAND, "--dir", str(folder.path)], {**os.environ, "TERM": "xterm-256color", "LINES": "40"}
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    pages = Pages(terminal)
    try:
        with place.alone():
            drawn = pages.until("answered: 2 of 3")
            assert "\x1b[?1049h" in drawn, "fills the screen"
            # The letter T of TRAIN, drawn in blocks.
            assert all(line in drawn for line in large("train 12/40", width=98))
            assert "1 of 3 sites online; not site-2" in drawn
            place.tell(RUNNING | {"round": 13, "waiting": {"site-3": True}})
            again = pages.until("waits for: site-3 to answer")
            assert "round 13 of 40" in again
            os.write(terminal, b"\x03")
            end = time.monotonic() + 20
            while pages.read(0.5) and time.monotonic() < end:
                pass
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert "Traceback" not in pages.text
        assert "\x1b[?1049l" in pages.text, "gives the screen back"
        # The last page stays behind.
        assert "waits for" in pages.text.split("\x1b[?1049l")[-1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(terminal)
