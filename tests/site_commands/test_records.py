"""`oncofed-site outbox`, `verify`, `dossier`, `model`: after real runs through real doors, and after somebody tampered."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from airlock_world import World, aggregator_of
from airlock_world import run as run_world

from oncofed_client.approvals import STUDIES
from oncofed_client.deliveries import model_folder
from oncofed_client.dossier import open_dossier
from oncofed_client.identity import identity_of, public_half
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts
from oncofed_server.run_state import Phase
from oncofed_shared.messages import Deliver, Head
from oncofed_shared.model_seal import MODEL_FILES, seal_model
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import key_fingerprint
from oncofed_shared.signed_document import canonical, sign_document
from oncofed_shared.signed_study import SignedStudy

from .conftest import OTHER_KEY, PRIVATE_PLAN, Run

Make = Callable[..., Plan]


@dataclass(frozen=True)
class Lived:
    """A site that has a study behind it; `left` is every byte that left it."""

    data: Path
    state: Path
    study: SignedStudy
    left: tuple[bytes, ...]

    @property
    def fingerprint(self) -> str:
        return key_fingerprint(self.study.roster["site-1"])


def _life(folder: Path, plan: Plan, hospitals: Path, model: bytes) -> Lived:
    world = World.make(folder, plan, hospitals)
    aggregator = aggregator_of(world)
    run_world(world, aggregator)
    assert aggregator.state.phase is Phase.DONE
    study = world.papers.study
    head = Head(session=study.session, step=999, attempt=0, plan_hash=plan.hash, trial=study.trial)
    seal = seal_model(study.id, model, b"{}", world.papers.step_key)
    world.ask("site-1", Deliver(head=head, model=model, manifest=b"{}", seal=seal))
    world.close()
    left = tuple(content for direction, site, content in world.wire if (direction, site) == ("up", "site-1"))
    return Lived(data=hospitals / "site-1", state=world.states["site-1"], study=study, left=left)


@pytest.fixture(scope="module")
def lives(
    hospitals: Path, make_plan: Make, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Lived]:
    model = (trained / "model.safetensors").read_bytes()
    made = {}
    for name, changes in {"none": {}, "private": PRIVATE_PLAN}.items():
        plan = make_plan(training__rounds=2, **changes)
        made[name] = _life(tmp_path_factory.mktemp(name), plan, hospitals, model)
    return made


@pytest.fixture(params=["none", "private"])
def lived(request: pytest.FixtureRequest, lives: dict[str, Lived], tmp_path: Path) -> Iterator[Lived]:
    """A copy that a test may spoil."""
    found = lives[request.param]
    data = Path(shutil.copytree(found.data, tmp_path / "site-1"))
    state = Path(shutil.copytree(found.state, tmp_path / "site-1.state"))
    return Lived(data=data, state=state, study=found.study, left=found.left)


def test_the_outbox_lists_every_byte_that_left(run: Run, lived: Lived):
    code, out, err = run("outbox", lived.data, "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert [(r["sha256"], r["size"]) for r in listed] == [(hashlib.sha256(c).hexdigest(), len(c)) for c in lived.left]
    code, out, _ = run("outbox", lived.data, "--study", lived.study.id[:10])
    assert code == 0
    assert f"{len(lived.left)} replies, {sum(map(len, lived.left))} bytes" in out
    assert "small" in out
    assert "Delivered" in out
    assert run("outbox", lived.data, "--study", "ffffff")[0] == 3


def test_an_empty_outbox_says_so(run: Run, site: Path, state: Path):
    state.mkdir()
    code, out, _ = run("outbox", site)
    assert code == 0
    assert "Nothing has left" in out


def test_sound_records_are_sound(run: Run, lived: Lived):
    code, out, err = run("verify", lived.data)
    assert (code, err) == (0, "")
    assert f"sound: {len(lived.left)} receipts" in out
    assert "decisions about 1 studies" in out
    assert ("ledger" in out) == (lived.study.plan.privacy.noise != "none")
    # The state folder may be named as well.
    assert run("verify", lived.state)[:2] == (0, out)


def _without_guards(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for _, text in triggers:
            connection.execute(text)
        connection.commit()


TAMPERED = {
    "edited": "UPDATE entries SET content = replace(content, '\"size\":', '\"size\":1') WHERE number = 3",
    "removed": "DELETE FROM entries WHERE number = 2",
    "last one removed": "DELETE FROM entries WHERE number = (SELECT max(number) FROM entries)",
    "reordered": "UPDATE entries SET number = CASE number WHEN 2 THEN -3 WHEN 3 THEN -2 END WHERE number IN (2, 3)",
}


@pytest.mark.parametrize("how", TAMPERED)
def test_receipts_that_were_tampered_with_are_found(run: Run, lived: Lived, how: str):
    fix = "UPDATE entries SET number = -number WHERE number < 0"
    _without_guards(lived.state / RECEIPTS_FILE, TAMPERED[how], fix)
    code, out, err = run("verify", lived.data)
    assert (code, out) == (5, "")
    assert "receipts" in err


def test_records_that_are_gone_are_missed(run: Run, lived: Lived):
    (lived.state / RECEIPTS_FILE).unlink()
    code, _, err = run("verify", lived.data)
    assert code == 5
    assert "is gone" in err
    if (lived.state / LEDGER_FILE).exists():
        (lived.state / LEDGER_FILE).unlink()
        assert (lived.state / HEAD_FILE).exists()
        code, _, err = run("verify", lived.data)
        assert code == 5
        assert "its newest head" in err


def test_decisions_and_models_are_verified_too(run: Run, lived: Lived):
    model = model_folder(lived.state, lived.study) / MODEL_FILES[0]
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(bytes(content))
    code, _, err = run("verify", lived.data)
    assert code == 5
    assert "is not the model that the aggregator of this study sealed" in err
    decisions = lived.state / STUDIES / f"{lived.study.id}.decisions.json"
    decisions.write_text(decisions.read_text().replace('"training"', '"counting"'))
    code, _, err = run("verify", lived.data)
    assert code == 5
    assert "signature" in err


def test_verify_asks_for_one_thing(run: Run, lived: Lived, tmp_path: Path):
    assert run("verify")[0] == 2
    assert run("verify", lived.data, "--dossier", "x")[0] == 2
    assert run("verify", "--dossier", tmp_path / "absent")[0] == 3
    assert run("verify", tmp_path / "absent")[0] == 3


def test_a_model_is_fetched_checked_and_used(run: Run, lived: Lived, tmp_path: Path, trained: Path):
    code, out, _ = run("model", "list", "--site", lived.data)
    assert code == 0
    assert "small: its model is here" in out
    out_file = tmp_path / "fetched.safetensors"
    code, out, _ = run("model", "fetch", lived.study.id[:12], "--site", lived.data, "--out", out_file)
    assert code == 0
    assert out_file.read_bytes() == (trained / "model.safetensors").read_bytes()
    code, out, _ = run("predict", lived.data, "--model", out_file, "--out", tmp_path / "risk.csv")
    assert code == 0
    assert f"is the model of study {lived.study.id[:12]}" in out
    for name in MODEL_FILES:
        path = model_folder(lived.state, lived.study) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        code, _, err = run("model", "fetch", lived.study.id, "--site", lived.data, "--out", tmp_path / "no.safetensors")
        assert code == 3
        assert err
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    assert not (tmp_path / "no.safetensors").exists()
    shutil.rmtree(model_folder(lived.state, lived.study))
    code, _, err = run("model", "fetch", "small", "--site", lived.data, "--out", tmp_path / "no.safetensors")
    assert code == 3
    assert "no model was delivered" in err
    assert "no model yet" in run("model", "list", "--site", lived.data)[1]


@pytest.fixture
def page(run: Run, lived: Lived, tmp_path: Path) -> Path:
    assert (
        run(
            "withdraw", "small", "--site", lived.data, "--reason", "<b>the board</b> & </script> more", "--by", "Dr. A"
        )[0]
        == 0
    )
    code, _, err = run("dossier", lived.study.id[:12], "--site", lived.data, "--out", tmp_path / "dossier.html")
    assert (code, err) == (0, "")
    return tmp_path / "dossier.html"


def test_a_dossier_says_what_happened(lived: Lived, page: Path):
    body = open_dossier(page.read_bytes(), signer=lived.study.roster["site-1"]).body
    assert body["study"]["id"] == lived.study.id
    assert [d["what"] for d in body["decisions"]] == ["approve", "withdraw"]
    receipts = body["left"]["receipts"]
    assert [r["sha256"] for r in receipts] == [hashlib.sha256(c).hexdigest() for c in lived.left]
    assert sum(k["bytes"] for k in body["left"]["kinds"]) == sum(map(len, lived.left))
    assert body["model"]
    text = page.read_text()
    assert "a study that a test can wait for" in text
    assert "&lt;b&gt;the board&lt;/b&gt; &amp; &lt;/script&gt; more" in text
    assert lived.fingerprint in text
    if lived.study.plan.privacy.noise == "none":
        assert body["spent"] is None
        assert "no epsilon bounds" in text
    else:
        (spent,) = body["spent"]["study"]
        assert spent["state"] == "closed"
        charged = {(r["charge"], r["steps"]) for r in receipts if r["charge"]}
        assert spent["released"] == sum(steps for _, steps in charged) > 0
        assert 0 < spent["counted"] <= spent["epsilon"] * 1.001
    counts = body["consent"]["counts"]
    assert counts
    assert all(n % 10 == 0 for n in counts.values())


def test_a_dossier_names_no_patient_no_file_and_loads_nothing(lived: Lived, page: Path, tmp_path: Path):
    text = page.read_text()
    ids = [line.split(",")[0] for line in (lived.data / "clinical.csv").read_text().splitlines()[1:]]
    assert ids
    assert [i for i in ids if i in text] == []
    assert str(tmp_path) not in text
    assert re.findall(r"(?:src|href|url)\s*[=(]", text) == []
    assert "default-src 'none'" in text
    assert len(re.findall(r"<script", text)) == 1


def test_an_outsider_checks_it_with_the_file_and_a_fingerprint(run: Run, lived: Lived, page: Path, tmp_path: Path):
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    copy = Path(shutil.copy(page, alone / "d.html"))
    data = Path(shutil.copy(page.with_suffix(".json"), alone / "d.json"))
    for path in (copy, data):
        code, out, _ = run("verify", "--dossier", path, "--fingerprint", lived.fingerprint)
        assert code == 0
        assert f"site site-1 on study {lived.study.id[:12]}, {len(lived.left)} receipts" in out
        code, _, err = run("verify", "--dossier", path, "--fingerprint", key_fingerprint(b"x" * 32))
        assert code == 5
        assert "not by the key that was said" in err
    code, out, _ = run("verify", "--dossier", copy)
    assert code == 0
    assert "by telephone" in out


def test_it_can_be_checked_without_this_program(lived: Lived, page: Path):
    """As docs/site.md says: by the Ed25519 of any library."""
    content = page.read_bytes()
    data = json.loads(re.search(rb'id="oncofed-dossier">(.*?)</script>', content, re.DOTALL)[1])
    signed = (
        b"oncofed document\0dossier\0"
        + json.dumps(data["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    )
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(data["key"])).verify(bytes.fromhex(data["signature"]), signed)
    assert hashlib.sha256(bytes.fromhex(data["key"])).hexdigest()[:32] == lived.fingerprint.replace(" ", "")
    empty = re.sub(rb'(id="oncofed-dossier">).*?(</script>)', rb"\1\2", content, flags=re.DOTALL)
    assert hashlib.sha256(empty).hexdigest() == data["body"]["page"]


def test_one_changed_byte_of_a_dossier_is_found(run: Run, page: Path, tmp_path: Path):
    content = page.read_bytes()
    bad = tmp_path / "bad.html"
    for place in (*range(200, len(content), len(content) // 60), content.index(b"Who takes part"), len(content) - 3):
        changed = bytearray(content)
        changed[place] ^= 1
        bad.write_bytes(bytes(changed))
        code, _, err = run("verify", "--dossier", bad)
        assert code in {3, 5}
        assert err
    for cut in (b"", content[:100], content[:-20], content + b" "):
        bad.write_bytes(cut)
        assert run("verify", "--dossier", bad)[0] == 3


def test_a_site_that_lies_in_its_dossier_is_found_where_others_have_signed(
    run: Run, lived: Lived, page: Path, tmp_path: Path
):
    """The site can sign what it likes, but not the study, and not for another key."""
    document = open_dossier(page.with_suffix(".json").read_bytes(), signer=None)
    lies: dict[str, Callable[[dict], object]] = {
        "another purpose": lambda b: b["study"].update(purpose="something nicer"),
        "another roster": lambda b: b["study"].update(roster={}),
        "more or fewer decisions": lambda b: b["decisions"].pop(),
        "is told otherwise": lambda b: b["decisions"][-1].update(reason="none"),
        "not those of its receipts": lambda b: b["left"]["receipts"].pop(),
        "does not hold": lambda b: b["signed_study"]["body"].update(quorum=1),
        "names another key": lambda b: b.update(identity="0" * 64),
    }
    for said, lie in lies.items():
        body = json.loads(canonical(document.body))
        lie(body)
        bad = tmp_path / "bad.json"
        bad.write_bytes(sign_document("dossier", body, identity_of(lived.state)))
        code, _, err = run("verify", "--dossier", bad)
        assert (code, said in err) == (5, True), said
    bad.write_bytes(sign_document("dossier", document.body, OTHER_KEY))
    code, _, err = run("verify", "--dossier", bad)
    assert code == 5
    assert "another key" in err
    for body in ({}, {"format": 2}, {"format": 1, "study": 3}):
        bad.write_bytes(sign_document("dossier", body, OTHER_KEY))
        assert run("verify", "--dossier", bad)[0] == 3


def test_a_dossier_needs_an_approved_study_and_sound_records(run: Run, lived: Lived, tmp_path: Path):
    out = tmp_path / "d.html"
    assert run("dossier", "abcdef", "--site", lived.data, "--out", out)[0] == 3
    assert run("dossier", "small", "--site", lived.state, "--out", out)[0] == 3
    assert run("dossier", "small", "--site", lived.data, "--out", tmp_path / "d.json")[0] == 3
    code, _, err = run("dossier", "small", "--site", lived.data, "--out", lived.data / "site.toml" / "d.html")
    assert code == 3
    assert "cannot be written" in err
    _without_guards(lived.state / RECEIPTS_FILE, TAMPERED["edited"])
    assert run("dossier", "small", "--site", lived.data, "--out", out)[0] == 3
    assert not out.exists()


def test_numbers_of_few_patients_are_withheld(run: Run, lived: Lived, tmp_path: Path):
    text = (lived.data / "site.toml").read_text()
    assert "[policy]" in text
    text = re.sub(r"^minimum_cohort = .*\n", "", text, flags=re.MULTILINE)
    (lived.data / "site.toml").write_text(text.replace("[policy]\n", "[policy]\nminimum_cohort = 1000\n"))
    assert run("dossier", "small", "--site", lived.data, "--out", tmp_path / "d.html")[0] == 0
    assert open_dossier((tmp_path / "d.html").read_bytes(), signer=None).body["consent"]["counts"] == {}
    assert "No number is shown" in (tmp_path / "d.html").read_text()
    (lived.data / "site.toml").write_text(re.sub(r"\[consent\][^[]*", "[consent]\n", text))
    assert run("dossier", "small", "--site", lived.data, "--out", tmp_path / "d.html")[0] == 0
    assert "(consent)" in (tmp_path / "d.html").read_text()
    assert read_receipts(lived.state / RECEIPTS_FILE, public_half(lived.state))
