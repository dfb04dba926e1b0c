"""The runbook is run: every command of it that is ours, and every `tar` and `mv`, from top to bottom in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.identity import identity_of
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_server.journal import Journal
from oncofed_server.service.folder import Folder
from oncofed_server.service.studies import find_study
from oncofed_shared.errors import ExitCode
from oncofed_shared.messages import Exchanged, Head, Trial, to_bytes
from oncofed_shared.witness import sign_witness
from oncofed_simulations.synthetic import write_cohort

with warnings.catch_warnings():
    # typer 0.20 asks click 8.5, on import, for names that click is about to drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from oncofed_client.__main__ import main as site_main
    from oncofed_server.__main__ import main as aggregator_main

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
MAIN = {"oncofed-site": site_main, "oncofed-aggregator": aggregator_main}
PROCEDURES = ("Enrol", "Rotate", "Revoke", "Upgrade", "Back up", "Restore", "Incident")
# Services are not started by a test of commands: `tests/deploy/test_consortium.py` starts them.
LEFT_OUT = {"systemctl"}
# There is no aggregator of that name, and `doctor` says so.
MAY_END = {("oncofed-site", "doctor"): {ExitCode.DONE, ExitCode.INPUT}}
Type = Callable[[str], tuple[int, str]]


def procedures() -> dict[str, list[str]]:
    """The lines of the blocks under each heading, in order."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    block = re.compile(r"^ {4,8}(?=\S)(.+)$", re.MULTILINE)
    return {name: block.findall(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Type:
    """Type a line; its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def line(text: str) -> tuple[int, str]:
        words = shlex.split(text)
        if words[0] not in MAIN:
            ended = subprocess.run(words, check=False, capture_output=True, text=True)
            return ended.returncode, ended.stdout + ended.stderr
        monkeypatch.setattr(sys, "argv", words)
        code = 0
        try:
            MAIN[words[0]]()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out + said.err

    return line


@pytest.fixture
def ours(typed: Type) -> Type:
    """Type a line that has to end well."""

    def line(text: str) -> tuple[int, str]:
        words = shlex.split(text)
        code, said = typed(text)
        assert code in MAY_END.get(tuple(words[:2]), {0}), f"{text}: {code}\n{said}"
        return code, said

    return line


def hospitals(folder: Path) -> None:
    """`data` is north's folder; south and west are two that have a folder each."""
    write_cohort(folder / "cohort", sites=3, patients=150, seed=7)
    for old, new, where in (("site-1", "north", "data"), ("site-2", "south", "south"), ("site-3", "west", "west")):
        shutil.move(folder / "cohort" / old, folder / where)
        settings = folder / where / "site.toml"
        settings.write_text(settings.read_text(encoding="utf-8").replace(f'"{old}"', f'"{new}"'), encoding="utf-8")
        (folder / where).chmod(0o700)


def study(folder: Path) -> Path:
    text = (ROOT / "simulations" / "studies" / "consortium_private.toml").read_text(encoding="utf-8")
    for old, new in (("consortium_private", "runbook"), ("site-1", "north"), ("site-2", "south"), ("site-3", "west")):
        text = text.replace(old, new)
    path = folder / "runbook.toml"
    path.write_text(text, encoding="utf-8")
    return path


def ask_once(folder: Path) -> None:
    """What the study's first message leaves in the aggregator's journal: the head of north's ledger."""
    place = find_study(Folder.open(folder / "hub"), "runbook")
    state = folder / "data.state"
    with Ledger.open(state / LEDGER_FILE, site="north", key=identity_of(state)) as ledger:
        head = Head(session="s", step=1, attempt=0, plan_hash=place.study.plan.hash, trial=Trial(seed=0, fold=-1))
        reply = Exchanged(head=head, site="north", content=b"x", ledger=ledger.head(), witnesses={})
    journal = Journal(place.journal, study=place.study.id)
    with journal.transaction():
        journal.append("received", 1.0, reply=to_bytes(reply))
    journal.close()


def test_the_runbook_has_every_procedure_and_each_has_commands() -> None:
    found = procedures()
    assert tuple(found) == PROCEDURES
    for name, lines in found.items():
        assert any(line.startswith(("oncofed-", "tar ")) for line in lines), name
    known = {shlex.split(line)[0] for lines in found.values() for line in lines}
    assert known == {*MAIN, *LEFT_OUT, "tar", "mv"}


@pytest.fixture
def consortium(ours: Type, tmp_path: Path) -> dict[str, list[str]]:
    """Enrolled as the runbook says, and a study `runbook` that nobody has approved; what can be typed, by procedure."""
    hospitals(tmp_path)
    study(tmp_path)
    lines = {name: [t for t in found if shlex.split(t)[0] not in LEFT_OUT] for name, found in procedures().items()}
    for line in lines["Enrol"]:
        ours(line)
    assert "in roster" in ours("oncofed-aggregator list --dir hub")[1]
    for name in ("south", "west"):
        ours(f"oncofed-site enrol request {name} --out {name}.request")
        ours(f"oncofed-aggregator enrol {name}.request --out {name}.answer --dir hub")
        ours(f"oncofed-site enrol install {name} {name}.answer")
    ours("oncofed-aggregator prepare runbook.toml --plan-key plan.key --out runbook.study --dir hub")
    ours("oncofed-aggregator submit runbook.study --dir hub")
    return lines


def test_the_procedures_that_lose_nothing(
    consortium: dict[str, list[str]], ours: Type, typed: Type, tmp_path: Path
) -> None:
    ours("oncofed-site approve runbook.study --site data --by board")
    keys, once = tmp_path / "hub" / "keys", epsilon(ours)
    before = {p.name: p.read_bytes() for p in keys.iterdir()}
    said = "".join(ours(line)[1] for line in consortium["Rotate"])
    assert "roster: epoch" in said
    assert (keys / "server.crt").read_bytes() != before["server.crt"]
    assert (keys / "ca.crt").read_bytes() == before["ca.crt"]
    assert before.keys() < {p.name for p in keys.iterdir()}, "the old step key stays, and there is a new one"
    # North has another identity now, and its ledger counts what it has spent under the old one.
    assert "the site may answer" in said
    assert epsilon(ours) == once
    ours("oncofed-aggregator prepare runbook.toml --plan-key plan.key --seed 2 --out again.study --dir hub")
    ours("oncofed-site approve again.study --site data --by board")
    assert epsilon(ours) > once
    ours("mv data.state data.state.new")
    ours("mv data.state.revoked data.state")

    said = "".join(ours(line)[1] for line in consortium["Revoke"])
    assert re.search(r"^south: .*revoked", said, re.MULTILINE)
    assert re.search(r"^north: .*in roster", said, re.MULTILINE), "with its new key"
    assert "is withdrawn at site north" in said
    code, said = typed(consortium["Revoke"][0])
    assert code == ExitCode.INPUT
    assert "is revoked already" in said

    for name in ("Upgrade", "Back up", "Incident"):
        said = "".join(ours(line)[1] for line in consortium[name])
    assert "Nothing has left this site." in said
    assert "dossier.html: sound" in said
    for name in ("before-upgrade.tar", "site-backup.tar", "hub-before-upgrade.tar", "hub-backup.tar"):
        assert (tmp_path / name).stat().st_size > 0


def epsilon(ours: Type) -> float:
    """What north's ledger says of all studies together."""
    said = ours("oncofed-site ledger data")[1]
    found = re.search(r"epsilon ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


def test_a_restore_counts_what_the_copy_has_forgotten(
    consortium: dict[str, list[str]], ours: Type, typed: Type, tmp_path: Path
) -> None:
    ours("oncofed-aggregator prepare runbook.toml --plan-key plan.key --seed 1 --out later.study --dir hub")
    ours("oncofed-site approve later.study --site data --by board")
    for line in consortium["Back up"]:
        ours(line)
    once = epsilon(ours)
    ours("oncofed-site approve runbook.study --site data --by board")
    twice = epsilon(ours)
    assert twice > once
    ask_once(tmp_path)

    restore = consortium["Restore"]
    signed = restore.index("oncofed-site epoch witness data north.witness")
    for line in restore[:signed]:
        ours(line)
    # Between the epoch and its signature nothing is approved.
    code, said = typed("oncofed-site approve runbook.study --site data")
    assert code == ExitCode.REFUSED
    assert "nobody has signed" in said
    assert "the site may answer" in ours(restore[signed])[1]
    for line in restore[signed + 1 :]:
        ours(line)
    assert epsilon(ours) == twice

    # The first backup again, brought to the aggregator that has lost nothing as if nobody had seen more.
    ours("mv hub hub.old")
    ours("mv hub.broken hub")
    ours("mv data.state third.state")
    ours("tar --extract --file site-backup.tar")
    assert epsilon(ours) == once
    code, said = typed("oncofed-site epoch begin data --out old.head")
    assert code == 0
    assert "No witness was given" in said
    code, said = typed("oncofed-aggregator witness north --head old.head --out x.witness --dir hub")
    assert (code, (tmp_path / "x.witness").exists()) == (ExitCode.REFUSED, False)
    assert "was seen; the site begins another epoch" in said
    ours("oncofed-aggregator witness north --out seen.witness --dir hub")
    # This copy has an epoch 2 of its own now, and what was seen is of another one.
    code, said = typed("oncofed-site epoch begin data --witness seen.witness --out new.head")
    assert (code, (tmp_path / "new.head").exists()) == (ExitCode.REFUSED, False)
    assert "others written in their place" in said
    ours("mv data.state fourth.state")
    ours("tar --extract --file site-backup.tar")
    ours("oncofed-site epoch begin data --witness seen.witness --out new.head")
    ours("oncofed-aggregator witness north --head new.head --out new.witness --dir hub")
    assert "Epoch 3: the site may answer" in ours("oncofed-site epoch witness data new.witness")[1]
    assert epsilon(ours) == twice


def test_nobody_elses_head_or_signature_is_taken(
    consortium: dict[str, list[str]], ours: Type, typed: Type, tmp_path: Path
) -> None:
    assert consortium
    code, said = typed("oncofed-aggregator witness north --out x.witness --dir hub")
    assert code == ExitCode.INPUT
    assert "no study here has shown its ledger" in said
    code, said = typed("oncofed-site epoch begin data --out x.head")
    assert code == ExitCode.INPUT
    assert "bring the newest backup back first" in said
    ours("oncofed-site approve runbook.study --site data --by board")
    ours("oncofed-site approve runbook.study --site south --by board")
    ours("oncofed-site epoch begin south --out south.head")
    ours("oncofed-aggregator witness south --head south.head --out south.witness --dir hub")
    stranger = sign_witness(
        Ed25519PrivateKey.generate(), name="aggregator", head=(tmp_path / "south.head").read_bytes()
    )
    (tmp_path / "stranger.witness").write_bytes(stranger.to_bytes())
    for line, ends, why in (
        ("oncofed-aggregator witness north --head south.head --out x.witness --dir hub", 3, "is not a head that north"),
        (
            "oncofed-aggregator witness north --head plan.pub --out x.witness --dir hub",
            3,
            "is not the head of a ledger",
        ),
        ("oncofed-aggregator witness nobody --out x.witness --dir hub", 3, "is not enrolled"),
        ("oncofed-site epoch begin data --witness south.witness --out x.head", 5, "not a signed head of this site"),
        ("oncofed-site epoch witness data south.witness", 5, "not a signed head of this site"),
        ("oncofed-site epoch witness south stranger.witness", 5, "not in the roster"),
        ("oncofed-site epoch witness south south.head", 3, "is not the witness of a ledger"),
    ):
        code, said = typed(line)
        assert (code, why in said) == (ends, True), f"{line}: {code} {said}"
    assert not (tmp_path / "x.witness").exists()
    assert not (tmp_path / "x.head").exists()
    # Asked for again, the same signature: an answer that was lost by mail is no other epoch.
    ours("oncofed-aggregator witness south --head south.head --out again.witness --dir hub")
    assert (tmp_path / "again.witness").read_bytes() == (tmp_path / "south.witness").read_bytes()
    assert "Epoch 2: the site may answer" in ours("oncofed-site epoch witness south south.witness")[1]
