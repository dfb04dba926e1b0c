"""`oncofed-site enrol`: keys never leave, and only the answer to this very request is taken."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.enrol import ENROLMENT_FILE, installed
from oncofed_client.identity import KEY_FILE, fingerprint_of, public_half
from oncofed_client.node_key import NODE_KEY_FILE
from oncofed_shared.enrolment import read_enrolment, read_enrolment_request, write_enrolment
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.signed_document import sign_document

from .conftest import AGGREGATOR_KEY, OTHER_KEY, PLAN_KEY, Run


def answer_to(request: Path, out: Path, certificate: str, *, key=AGGREGATOR_KEY, plan_key=PLAN_KEY) -> Path:
    out.write_bytes(
        write_enrolment(
            read_enrolment_request(request.read_bytes()),
            aggregator="lead",
            address="lead.example:9443",
            certificate=certificate,
            plan_key=public_of(plan_key),
            roster=None,
            issued=1_790_000_000.0,
            key=key,
        )
    )
    return out


@pytest.fixture
def asked(run: Run, site: Path, tmp_path: Path) -> Path:
    code, _, err = run("enrol", "request", site, "--out", tmp_path / "request.json")
    assert (code, err) == (0, "")
    return tmp_path / "request.json"


def test_a_request_names_the_site_and_holds_no_secret(run: Run, site: Path, state: Path, asked: Path):
    content = asked.read_bytes()
    request = read_enrolment_request(content)
    assert request.site == "site-1"
    for name in (KEY_FILE, NODE_KEY_FILE):
        path = state / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        # No line of the armour of a private key is in it.
        lines = [line for line in path.read_text().splitlines() if len(line) > 30]
        assert lines
        assert not any(line.encode() in content for line in lines)
    node = load_ssh_private_key((state / NODE_KEY_FILE).read_bytes(), password=None)
    assert node.curve.name == "secp384r1"
    code, out, _ = run("enrol", "request", site, "--out", asked.with_name("again.json"))
    assert code == 0
    assert fingerprint_of(public_half(state)) in out
    assert asked.with_name("again.json").read_bytes() == content
    assert [p.name for p in site.iterdir() if "enrol" in p.name or "key" in p.name] == []


def test_an_answer_is_kept_and_says_what_to_compare(run: Run, site: Path, state: Path, asked: Path, certificate: str):
    answer = answer_to(asked, asked.with_name("answer.json"), certificate)
    spoken = key_fingerprint(public_of(AGGREGATOR_KEY))
    code, out, err = run("enrol", "install", site, answer, "--fingerprint", spoken.upper().replace(" ", ""))
    assert (code, err) == (0, "")
    assert spoken in out
    assert key_fingerprint(public_of(PLAN_KEY)) in out
    assert "lead.example:9443" in out
    kept = installed(state)
    assert kept is not None
    assert kept.certificate == certificate
    assert stat.S_IMODE((state / ENROLMENT_FILE).stat().st_mode) == 0o600
    code, out, _ = run("enrol", "install", site, answer)
    assert code == 0
    assert "by telephone before you approve" in out


def test_an_answer_that_is_not_ours_is_refused_and_nothing_is_kept(
    *, run: Run, site: Path, state: Path, asked: Path, certificate: str, tmp_path: Path
):
    answer = answer_to(asked, tmp_path / "answer.json", certificate)
    wrong = key_fingerprint(public_of(OTHER_KEY))
    code, _, err = run("enrol", "install", site, answer, "--fingerprint", wrong)
    assert code == 5
    assert "not by the one that was said" in err
    # Another site of the same name, with keys of its own.
    code, _, _ = run("enrol", "request", tmp_path / "elsewhere", "--state", tmp_path / "its", "--name", "site-1", "--out",
                     tmp_path / "its.json")  # fmt: skip
    assert code == 0
    code, _, err = run(
        "enrol", "install", site, answer_to(tmp_path / "its.json", tmp_path / "theirs.json", certificate)
    )
    assert code == 5
    assert "is an answer to site site-1 with the key" in err
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(answer.read_bytes().replace(b"lead.example", b"evil.example"))
    code, _, err = run("enrol", "install", site, damaged)
    assert code == 3
    assert "signature" in err
    for content, said in ((b"", "damaged"), (b"[]", "damaged"), (asked.read_bytes(), "expected a signed enrolment")):
        damaged.write_bytes(content)
        code, _, err = run("enrol", "install", site, damaged)
        assert code == 3
        assert said in err
    code, _, err = run("enrol", "install", site, tmp_path / "absent.json")
    assert code == 3
    assert "cannot be read" in err
    assert not (state / ENROLMENT_FILE).exists()


def test_a_site_stays_with_its_aggregator(run: Run, site: Path, state: Path, asked: Path, certificate: str):
    answer = answer_to(asked, asked.with_name("answer.json"), certificate)
    assert run("enrol", "install", site, answer)[0] == 0
    before = (state / ENROLMENT_FILE).read_bytes()
    for changed in ({"key": OTHER_KEY}, {"plan_key": OTHER_KEY}):
        code, _, err = run("enrol", "install", site, answer_to(asked, answer, certificate, **changed))
        assert code == 4
        assert "is enrolled with lead" in err
    assert (state / ENROLMENT_FILE).read_bytes() == before


def test_an_answer_to_an_earlier_request_is_refused(run: Run, site: Path, state: Path, asked: Path, certificate: str):
    answer = answer_to(asked, asked.with_name("answer.json"), certificate)
    (state / NODE_KEY_FILE).unlink()
    assert run("enrol", "request", site, "--out", asked)[0] == 0
    code, _, err = run("enrol", "install", site, answer)
    assert code == 5
    assert "an earlier request" in err


def test_install_without_a_request_says_what_to_do(run: Run, site: Path, tmp_path: Path, certificate: str):
    assert (
        run("enrol", "request", tmp_path / "x", "--state", tmp_path / "y", "--name", "b", "--out", tmp_path / "r")[0]
        == 0
    )
    code, _, err = run("enrol", "install", site, answer_to(tmp_path / "r", tmp_path / "a", certificate))
    assert code == 3
    assert "oncofed-site enrol request" in err


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda p: p.chmod(0o644), 3, "others than its owner may read it"),
        (lambda p: p.write_bytes(b"nothing"), 3, "damaged"),
    ],
)
@pytest.mark.parametrize("name", [KEY_FILE, NODE_KEY_FILE])
def test_keys_that_others_read_or_that_are_damaged_are_not_used(
    *, run: Run, site: Path, state: Path, asked: Path, name, spoil, code, said
):
    spoil(state / name)
    found, _, err = run("enrol", "request", site, "--out", asked.with_name("new.json"))
    assert found == code
    assert said in err
    assert not asked.with_name("new.json").exists()


def test_a_name_that_is_none_and_a_folder_that_is_none(run: Run, site: Path, tmp_path: Path):
    code, _, err = run("enrol", "request", site, "--name", "../x", "--out", tmp_path / "r.json")
    assert code == 3
    assert "site" in err
    code, _, err = run("enrol", "request", tmp_path / "nothing", "--out", tmp_path / "r.json")
    assert code == 3
    assert "is not a folder" in err
    code, _, err = run("enrol", "request", site, "--out", tmp_path / "site-1" / "site.toml" / "r.json")
    assert code == 3
    assert "cannot be written" in err
    assert run("enrol", "request", site)[0] == 2


def test_a_request_signed_by_another_key_is_refused(asked: Path):
    body = json.loads(asked.read_bytes())["body"]
    with pytest.raises(DataError, match="signed by another key"):
        read_enrolment_request(sign_document("enrolment-request", body, OTHER_KEY))


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_reading_gives_one_clear_error_for_whatever_there_is(content: bytes):
    for read in (read_enrolment, read_enrolment_request):
        with pytest.raises(DataError):
            read(content)


_JSON = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.text(max_size=3), max_size=2)


@given(
    st.sampled_from(
        ["site", "identity", "request", "aggregator", "address", "certificate", "plan_key", "roster", "issued"]
    ),
    _JSON,
)
def test_a_signed_answer_of_another_form_is_refused(field: str, value):
    body = {"site": "a", "identity": "0" * 64, "request": "0" * 64, "aggregator": "b", "address": "h:1", "certificate": "",
            "plan_key": "0" * 64, "roster": None, "issued": 1.0}  # fmt: skip
    with pytest.raises(DataError):
        read_enrolment(sign_document("enrolment", body | {field: value}, AGGREGATOR_KEY))


@pytest.mark.parametrize("name", ["../../x", "x" * 65, "a\nb"])
def test_what_is_no_sites_name_makes_no_key(run: Run, site: Path, state: Path, tmp_path: Path, name: str):
    code, _, err = run("enrol", "request", site, "--name", name, "--out", tmp_path / "request.json")
    assert (code, "is not a site's name" in err) == (3, True)
    assert not (state / "identity.key").exists()
    assert not (tmp_path / "request.json").exists()
