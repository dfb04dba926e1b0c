"""Signed files: what was signed is what is read, and nothing else."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from airlock_parts import DAY, NOW, Papers, key_of

from oncofed_client.approvals import approval_of, approve, approved, decisions, withdraw
from oncofed_client.identity import identity_of
from oncofed_client.known_rosters import keep_roster, newest_roster
from oncofed_shared.errors import ConfigError, DataError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.public_keys import public_of
from oncofed_shared.roster import read_roster, write_roster
from oncofed_shared.signed_document import canonical, read_document, sign_document
from oncofed_shared.signed_study import read_study, write_study

KEY = key_of("somebody")
SIMPLE_TASKS = {"response": {"kind": "classification", "label": "response", "classes": ["no", "yes"]}}
SIMPLE_MODALITIES = {"values": {"patterns": ["v*"], "scaling": "none"}}
SIMPLE_EVALUATION = {}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
BODIES = st.dictionaries(st.text(), JSON, max_size=4)


@pytest.fixture(scope="module")
def papers(make_plan):
    return Papers(plan=make_plan(), identities={s: key_of(s) for s in ("site-1", "site-2", "site-3")})


class TestSignedDocument:
    @given(BODIES)
    def test_what_was_signed_is_read(self, body):
        document = read_document(sign_document("study", body, KEY), "study", signer=public_of(KEY))
        assert canonical(document.body) == canonical(body)
        assert document.key == public_of(KEY)

    def test_the_signature_is_over_the_documented_bytes(self):
        envelope = json.loads(sign_document("roster", {"b": 1, "a": "ä"}, KEY))
        signed = b'oncofed document\0roster\0{"a":"\\u00e4","b":1}'
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(envelope["key"])).verify(
            bytes.fromhex(envelope["signature"]), signed
        )

    @given(st.integers(0, 10**6), st.integers(0, 7))
    def test_no_bit_can_be_changed(self, place, bit):
        body = {"a": [1, 2.5, "x"], "number": 17}
        content = bytearray(sign_document("study", body, KEY))
        content[place % len(content)] ^= 1 << bit
        try:
            document = read_document(bytes(content), "study", signer=public_of(KEY))
        except DataError as error:
            assert error.code in {"document", "signature"}  # noqa: PT017 - either outcome is sound
        else:
            # A space may become a tab: how the file is laid out means nothing.
            assert canonical(document.body) == canonical(body)

    @pytest.mark.parametrize("kind", ["roster", "decision"])
    def test_a_signature_of_one_kind_says_nothing_under_another(self, kind):
        envelope = json.loads(sign_document("study", {"a": 1}, KEY))
        with pytest.raises(DataError) as caught:
            read_document(json.dumps(envelope).encode(), kind, signer=None)
        assert caught.value.code == "document"
        with pytest.raises(DataError) as caught:
            read_document(json.dumps(envelope | {"oncofed": kind}).encode(), kind, signer=None)
        assert caught.value.code == "signature"

    def test_another_signer_is_named_by_fingerprint(self):
        with pytest.raises(DataError, match="telephone") as caught:
            read_document(sign_document("study", {}, KEY), "study", signer=public_of(key_of("other")))
        assert caught.value.code == "signature"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"{}",
            b"\xff",
            b"[" * 100_000,
            b'{"oncofed":"study","body":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
            b"1" * 5000,
            b'{"oncofed":"study","body":{"a":1,"a":2},"key":"","signature":""}',
            b'{"oncofed":"study","body":{"a":NaN},"key":"","signature":""}',
            b'{"oncofed":"study","body":{"a":1e999},"key":"%s","signature":"%s"}' % (b"0" * 64, b"0" * 128),
            b'{"oncofed":"study","body":{},"key":"%s","signature":"%s"}' % (b"A" * 64, b"0" * 128),
            b" " * ((1 << 24) + 1),
        ],
    )
    def test_whatever_is_none_has_one_clear_error(self, content):
        with pytest.raises(DataError, match=r"x\.study"):
            read_document(content, "study", signer=None, where="x.study")

    @given(st.binary(max_size=300) | st.text(string.printable, max_size=300).map(str.encode))
    def test_other_bytes_raise_nothing_else(self, content):
        with pytest.raises(DataError):
            read_document(content, "study", signer=None)


class TestSignedStudy:
    def test_what_was_signed_is_read(self, papers):
        study = papers.study
        assert study.plan.hash == papers.plan.hash
        assert study.trial == Trial(seed=0)
        assert dict(study.roster) == papers.publics
        assert study.plan_key == public_of(papers.plan_key)
        assert len(study.id) == 64
        assert study.trainers == ("site-1", "site-2", "site-3")

    def test_simulation_settings_are_dropped(self, papers, make_plan):
        plan = make_plan(simulation__noise_seed=3)
        other = Papers(plan=plan, identities=papers.identities)
        assert other.study.plan.simulation.noise_seed is None
        assert other.study.id == papers.study.id

    @pytest.mark.parametrize(
        "change",
        [
            {"trial": Trial(seed=1)},
            {"step_key": public_of(key_of("another"))},
            {"epoch": 2},
            {"epoch_days": 3.0},
            {"expires": NOW + 1},
            {"quorum": 2},
            {"session": "another-session"},
            {"roster": {s: public_of(key_of(s + "'")) for s in ("site-1", "site-2", "site-3")}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_everything_that_is_decided_elsewhere_is_in_its_id(self, papers, change):
        assert Papers(plan=papers.plan, identities=papers.identities, changes=change).study.id != papers.study.id

    @pytest.mark.parametrize(
        ("field", "value"), [("protocol", 0), ("protocol", 2), ("suite", "rot13"), ("protocol", None)]
    )
    def test_an_older_or_unknown_version_is_refused(self, papers, field, value):
        body = json.loads(papers.content)["body"] | {field: value}
        with pytest.raises(DataError) as caught:
            read_study(sign_document("study", body, papers.plan_key), plan_key=None)
        assert caught.value.code == "version"

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"quorum": 1}, "quorum"),
            ({"quorum": 4}, "quorum"),
            ({"expires": NOW - 2 * DAY}, "expires"),
            ({"step_key": public_of(key_of("site-1"))}, "different keys"),
            ({"step_key": public_of(key_of("plan key"))}, "different keys"),
            ({"roster": {"../evil": public_of(KEY)}}, "roster"),
            ({"session": "UPPER"}, "session"),
        ],
    )
    def test_parts_that_do_not_fit_are_named(self, papers, change, word):
        with pytest.raises(ConfigError, match=word):
            _ = Papers(plan=papers.plan, identities=papers.identities, changes=change).content

    def test_a_plan_that_is_not_written_out_whole_is_refused(self, papers):
        body = json.loads(papers.content)["body"]
        del body["plan"]["model"]
        with pytest.raises(DataError, match="whole"):
            read_study(sign_document("study", body, papers.plan_key), plan_key=None)

    def test_a_plan_whose_trainers_are_not_in_the_roster_is_refused(self, papers, make_plan):
        patients = dict.fromkeys(("site-1", "site-2", "site-3", "site-4"), 30)
        privacy = {
            "noise": "site",
            "epsilon": 3,
            "delta": 1e-4,
            "clip_norm": 1.0,
            "sampling_rate": 0.5,
            "patients": patients,
        }
        plan = make_plan(
            privacy=privacy,
            main_task="response",
            tasks=SIMPLE_TASKS,
            modalities=SIMPLE_MODALITIES,
            evaluation=SIMPLE_EVALUATION,
        )
        with pytest.raises(ConfigError, match=r"lacks site-4, whom privacy\.patients names"):
            _ = Papers(plan=plan, identities=papers.identities).content


class TestRoster:
    def test_standing(self, papers):
        old, new = public_of(key_of("old")), public_of(key_of("new"))
        content = write_roster(
            number=3,
            issued=NOW,
            sites={"a": new, "b": public_of(key_of("b"))},
            revoked={"a": (old,)},
            key=papers.plan_key,
        )
        epoch = read_roster(content, plan_key=public_of(papers.plan_key))
        assert [epoch.standing("a", new), epoch.standing("a", old)] == ["member", "revoked"]
        assert [epoch.standing("b", new), epoch.standing("c", new)] == ["other-key", "absent"]

    def test_several_revoked_keys_former_keys_and_step_keys(self, papers):
        keys = {name: public_of(key_of(name)) for name in ("first", "second", "third", "new", "step")}
        content = write_roster(
            number=3,
            issued=NOW,
            sites={"a": keys["new"]},
            former={"a": (keys["third"],)},
            revoked={"a": (keys["first"], keys["second"])},
            step_keys={keys["step"]},
            key=papers.plan_key,
        )
        epoch = read_roster(content, plan_key=public_of(papers.plan_key))
        standing = {name: epoch.standing("a", key) for name, key in keys.items()}
        assert standing == {
            "first": "revoked", "second": "revoked", "third": "member", "new": "member", "step": "other-key"
        }  # fmt: skip
        assert epoch.standing("b", keys["first"]) == "revoked"
        assert epoch.step_keys == {keys["step"]}

    def test_an_epoch_without_them_is_as_an_earlier_version_wrote_it(self, papers):
        """So that a site which is upgraded later reads it: fields are added only where they say something."""
        content = papers.roster(1, revoked={"x": (public_of(key_of("x")),)})
        body = json.loads(content)["body"]
        assert set(body) == {"number", "issued", "sites", "revoked"}
        assert body["revoked"] == {"x": public_of(key_of("x")).hex()}

    def test_impossible_epochs_are_refused(self, papers):
        key = public_of(KEY)
        for sites, revoked in (
            ({"a": key}, {"a": (public_of(key_of("x")), key)}),
            ({"a": key, "b": key}, {}),
            ({"a": b"short"}, {}),
        ):
            with pytest.raises(ConfigError):
                write_roster(number=1, issued=NOW, sites=sites, revoked=revoked, key=papers.plan_key)

    def test_a_site_never_goes_back(self, papers, tmp_path):
        plan_key = public_of(papers.plan_key)
        first, second = papers.roster(1), papers.roster(2, revoked={"x": (public_of(key_of("x")),)})
        assert newest_roster(tmp_path, plan_key) is None
        assert keep_roster(tmp_path, first, plan_key=plan_key, now=NOW).number == 1
        assert keep_roster(tmp_path, second, plan_key=plan_key, now=NOW).number == 2
        assert keep_roster(tmp_path, second, plan_key=plan_key, now=NOW).number == 2
        for bad in (
            first,
            papers.roster(2),
            papers.roster(3, key=key_of("other")),
            papers.roster(3, issued=NOW + 2 * DAY),
            b"",
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                keep_roster(tmp_path, bad, plan_key=plan_key, now=NOW)
            assert caught.value.code == "roster-epoch"
        kept = newest_roster(tmp_path, plan_key)
        assert kept is not None
        assert kept.content == second


class TestApprovals:
    @pytest.fixture
    def mine(self, papers, tmp_path):
        """A site's state, and the papers of a study that has its key."""
        identity = identity_of(tmp_path)
        return tmp_path, Papers(plan=papers.plan, identities=papers.identities | {"site-1": identity})

    def test_an_approval_is_for_one_study_and_one_scope(self, mine):
        state, papers = mine
        study = approve(state, papers.content, now=NOW, site="site-1", plan_key=public_of(papers.plan_key), by="Dr Who")
        assert set(approved(state)) == {study.id}
        assert approved(state, scope="counting") == {}
        approve(state, papers.content, now=NOW, site="site-1", scope="counting")
        assert set(approved(state, scope="counting")) == {study.id}
        assert [(d.what, d.scope, d.by) for d in decisions(state, study.id)] == [
            ("approve", "training", "Dr Who"),
            ("approve", "counting", ""),
        ]
        other = Papers(plan=papers.plan, identities=papers.identities, changes={"trial": Trial(seed=9)})
        assert approval_of(state, other.study.id) is None

    def test_a_withdrawal_ends_all_of_it_until_approved_again(self, mine):
        state, papers = mine
        study = approve(state, papers.content, now=NOW, site="site-1")
        withdraw(state, study.id, now=NOW + 1, site="site-1", reason="the board said so")
        assert approved(state) == {}
        found = approval_of(state, study.id)
        assert found is not None
        assert found.withdrawn
        assert found.decided[-1].reason == "the board said so"
        approve(state, papers.content, now=NOW + 2, site="site-1")
        assert set(approved(state)) == {study.id}

    def test_what_a_site_may_not_approve(self, mine, papers):
        state, mine_papers = mine
        for content, site, now, code in (
            (papers.content, "site-1", NOW, "roster"),
            (mine_papers.content, "site-9", NOW, "roster"),
            (mine_papers.content, "site-1", NOW + 91 * DAY, "expired"),
        ):
            with pytest.raises(PolicyRefusal) as caught:
                approve(state, content, now=now, site=site)
            assert caught.value.code == code
        with pytest.raises(DataError):
            approve(state, mine_papers.content, now=NOW, site="site-1", plan_key=public_of(KEY))
        assert approved(state) == {}
        with pytest.raises(PolicyRefusal):
            withdraw(state, "0" * 64, now=NOW, site="site-1")

    def test_files_that_were_changed_are_noticed(self, mine):
        state, papers = mine
        study = approve(state, papers.content, now=NOW, site="site-1")
        withdraw(state, study.id, now=NOW, site="site-1")
        path = state / "studies" / f"{study.id}.decisions.json"
        whole = path.read_text()
        path.write_text(json.dumps(json.loads(whole)[1:]))
        with pytest.raises(DataError, match="removed"):
            approved(state)
        path.write_text(whole.replace('"withdraw"', '"approve"'))
        with pytest.raises(DataError, match="signature"):
            approved(state)
        path.write_text("{")
        with pytest.raises(DataError):
            approved(state)
        path.write_text(whole)
        other = Papers(plan=papers.plan, identities=papers.identities, changes={"quorum": 2})
        (state / "studies" / f"{study.id}.study").write_bytes(other.content)
        with pytest.raises(DataError, match="replaced"):
            approved(state)

    def test_what_was_decided_is_the_owners_alone(self, mine):
        state, papers = mine
        study = approve(state, papers.content, now=NOW, site="site-1")
        for name in (f"{study.id}.study", f"{study.id}.decisions.json"):
            assert not (state / "studies" / name).stat().st_mode & 0o077


def test_a_session_is_random_unless_it_is_given(papers):
    common = {
        "plan": papers.plan,
        "trial": Trial(seed=0),
        "step_key": public_of(papers.step_key),
        "roster": papers.publics,
        "epoch": 1,
        "epoch_days": 1.0,
        "created": NOW,
        "expires": NOW + 1,
        "quorum": 2,
        "key": papers.plan_key,
    }
    assert (
        read_study(write_study(**common), plan_key=None).session
        != read_study(write_study(**common), plan_key=None).session
    )
