"""What crosses the wire: signed, bounded, of one length, and bound to its request."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from airlock_parts import Papers, key_of

from oncofed_shared import sealed
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Describe, Evaluate, Head, Open, Train, Trial
from oncofed_shared.sealed import REFUSED, open_reply, open_request, seal_reply, seal_request, verify_request
from oncofed_shared.sights import SightBook, agreeing, model_of, moment_of, needed, open_sight, sign_sight

SITES = ("site-1", "site-2", "site-3")
DIGEST = b"d" * 32


@pytest.fixture(scope="module")
def papers(make_plan):
    return Papers(plan=make_plan(), identities={s: key_of(s) for s in SITES})


def request_of(papers, *, body=b"body", number=1, key=None, **changes):
    usual = {"study_id": papers.study.id, "site": "site-1", "number": number, "roster": papers.roster()}
    return seal_request(body, key=key or papers.step_key, **(usual | changes))


def reply_of(papers, *, body=b"body", key=None, **changes):
    usual = {"request_digest": DIGEST, "study_id": papers.study.id, "site": "site-1"}
    return seal_reply(body, key=key or papers.identities["site-1"], **(usual | changes))


def opened(papers, content, **changes):
    usual = {"request_digest": DIGEST, "study_id": papers.study.id, "site": "site-1"}
    return open_reply(content, **(usual | {"identity": papers.publics["site-1"]} | changes))


class TestRequest:
    @given(st.binary(max_size=200), st.integers(1, 2**53 - 1))
    def test_what_was_sealed_is_opened(self, papers, body, number):
        request = open_request(request_of(papers, body=body, number=number, sights=(b"a", b"b")))
        verify_request(request, papers.study)
        assert (request.body, request.number, request.site, request.sights) == (body, number, "site-1", (b"a", b"b"))

    def test_its_digest_is_of_study_site_number_and_body_alone(self, papers):
        first = open_request(request_of(papers)).digest
        assert open_request(request_of(papers, roster=papers.roster(2), sights=(b"x",))).digest == first
        for change in ({"body": b"other"}, {"number": 2}, {"site": "site-2"}, {"study_id": "0" * 64}):
            assert open_request(request_of(papers, **change)).digest != first

    @given(st.integers(0, 10**6), st.integers(0, 7))
    def test_no_bit_can_be_changed(self, papers, place, bit):
        content = bytearray(request_of(papers))
        content[place % len(content)] ^= 1 << bit
        with pytest.raises(RemoteProtocolError) as caught:
            verify_request(open_request(bytes(content)), papers.study)
        assert caught.value.code in {"malformed", "signature", "version", "oversized"}

    def test_only_the_step_key_of_its_study_signs(self, papers):
        for key in (papers.plan_key, papers.identities["site-1"], key_of("nobody")):
            with pytest.raises(RemoteProtocolError) as caught:
                verify_request(open_request(request_of(papers, key=key)), papers.study)
            assert caught.value.code == "signature"
        with pytest.raises(RemoteProtocolError):
            verify_request(open_request(request_of(papers, study_id="0" * 64)), papers.study)

    @pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0, [1]])
    def test_another_version_is_named(self, papers, version):
        _, *rest = msgpack.unpackb(request_of(papers))
        with pytest.raises(RemoteProtocolError) as caught:
            open_request(msgpack.packb((version, *rest)))
        assert caught.value.code in {"version", "malformed"}
        assert caught.value.code == "version" or isinstance(version, list)

    @pytest.mark.parametrize(
        "change",
        [
            {"number": 0},
            {"number": -1},
            {"number": 1 << 53},
            {"site": "s" * 65},
            {"roster": b" " * (1 << 17)},
            {"sights": (b"s" * 2000,)},
            {"sights": (b"",) * 401},
            {"sights": ("text",)},
        ],
        ids=str,
    )
    def test_fields_out_of_bounds(self, papers, change):
        with pytest.raises(RemoteProtocolError) as caught:
            open_request(request_of(papers, **change))
        assert caught.value.code == "malformed"

    def test_too_many_bytes(self, monkeypatch):
        monkeypatch.setattr(sealed, "MAX_SEALED", 1000)
        with pytest.raises(RemoteProtocolError) as caught:
            open_request(bytes(1001))
        assert caught.value.code == "oversized"

    @given(st.binary(max_size=200))
    def test_other_bytes_raise_nothing_else(self, content):
        with pytest.raises(RemoteProtocolError):
            open_request(content)


class TestReply:
    @given(st.binary(max_size=10_000), st.binary(max_size=200))
    @settings(max_examples=50)
    def test_what_was_sealed_is_opened(self, papers, body, sight):
        reply = opened(papers, reply_of(papers, body=body, sight=sight))
        assert (reply.body, reply.sight) == (body, sight)

    def test_it_answers_one_request_of_one_study_by_one_site(self, papers):
        content = reply_of(papers)
        for change in (
            {"request_digest": b"e" * 32},
            {"study_id": "0" * 64},
            {"site": "site-2"},
            {"identity": papers.publics["site-2"]},
        ):
            with pytest.raises(RemoteProtocolError) as caught:
                opened(papers, content, **change)
            assert caught.value.code == "signature"

    @given(st.integers(0, 10**6), st.integers(0, 7))
    def test_no_bit_can_be_changed(self, papers, place, bit):
        content = bytearray(reply_of(papers))
        content[place % len(content)] ^= 1 << bit
        with pytest.raises(RemoteProtocolError):
            opened(papers, bytes(content))

    @pytest.mark.parametrize("blocks", [1, 2, 9, 17])
    def test_its_length_tells_only_how_many_blocks_it_has(self, papers, blocks):
        longest = blocks * sealed.PAD - 8
        lengths = {
            len(reply_of(papers, body=bytes(n)))
            for n in (longest, longest - 1, longest - 255, max(0, longest - sealed.PAD + 1))
        }
        assert len(lengths) == 1
        assert len(reply_of(papers, body=bytes(longest + 1))) > lengths.pop()

    def test_a_site_that_does_not_believe_a_request_says_always_the_same(self, papers):
        with pytest.raises(RemoteProtocolError) as caught:
            opened(papers, REFUSED)
        assert caught.value.code == "refused"

    def test_a_request_is_no_reply(self, papers):
        with pytest.raises(RemoteProtocolError):
            opened(papers, request_of(papers, key=papers.identities["site-1"]))

    def test_a_padding_that_is_not_the_bodys_is_refused(self, papers):
        key = papers.identities["site-1"]
        for padded in (b"", bytes(8), (5).to_bytes(8, "big") + bytes(8000), (1 << 62).to_bytes(8, "big") + bytes(4088)):
            signed = msgpack.packb((papers.study.id, "site-1", DIGEST, b"", padded))
            content = msgpack.packb((1, "reply", signed, key.sign(sealed._to_sign("reply", signed))))
            with pytest.raises(RemoteProtocolError) as caught:
                opened(papers, content)
            assert caught.value.code == "malformed"

    @given(st.binary(max_size=200))
    def test_other_bytes_raise_nothing_else(self, papers, content):
        with pytest.raises(RemoteProtocolError):
            opened(papers, content)


HEAD = Head(session="s", step=7, attempt=0, plan_hash="p", trial=Trial(seed=0))
PARAMETERS = {"a": np.ones((2, 2)), "b": np.zeros(3, dtype=np.float32)}


class TestSights:
    def sight(self, papers, site, *, moment="train 1", model=b"m" * 32, study_id=None, key=None):
        return sign_sight(
            key or papers.identities[site], study_id=study_id or papers.study.id, site=site, moment=moment, model=model
        )

    def agreed(self, papers, sights, holds=lambda site: True):
        return agreeing(sights, study=papers.study, site="site-1", moment="train 1", model=b"m" * 32, holds=holds)

    def test_moments(self, papers):
        empty = {"columns": {}, "arrays": {}}
        assert moment_of(papers.study, Open(head=HEAD, **empty)) == "open"
        assert moment_of(papers.study, Train(head=HEAD, round=3, parameters={})) == "train 3"
        assert moment_of(papers.study, Evaluate(head=HEAD, part="test", subgroups=True, parameters={})) == "evaluate 7"
        assert moment_of(papers.study, Describe(head=HEAD)) == ""

    def test_a_model_is_all_that_training_starts_from(self):
        known = model_of(Train(head=HEAD, round=3, parameters=PARAMETERS))
        assert model_of(Train(head=dataclasses.replace(HEAD, attempt=1), round=3, parameters=PARAMETERS)) == known
        assert model_of(Evaluate(head=HEAD, part="all", subgroups=False, parameters=PARAMETERS)) == known
        others = [
            Train(head=HEAD, round=3, parameters=PARAMETERS, control=np.zeros(1)),
            Train(head=HEAD, round=3, parameters={**PARAMETERS, "b": np.zeros(3)}),
            Train(head=HEAD, round=3, parameters={**PARAMETERS, "a": np.ones(4)}),
            Train(head=HEAD, round=3, parameters={"a": np.ones((2, 2)), "c": np.zeros(3, dtype=np.float32)}),
            Open(head=HEAD, columns={}, arrays=PARAMETERS),
            Open(head=HEAD, columns={"m": ("x",)}, arrays=PARAMETERS),
        ]
        assert len({known, *(model_of(m) for m in others)}) == 1 + len(others)
        with pytest.raises(TypeError):
            model_of(Describe(head=HEAD))

    def test_only_others_that_signed_this_model_for_this_moment_agree(self, papers):
        good = [self.sight(papers, s) for s in SITES]
        assert self.agreed(papers, good) == {"site-2", "site-3"}
        assert self.agreed(papers, good, holds=lambda site: site != "site-3") == {"site-2"}
        assert self.agreed(papers, [good[1], good[1]]) == {"site-2"}
        for useless in (
            self.sight(papers, "site-2", moment="train 2"),
            self.sight(papers, "site-2", study_id="0" * 64),
            self.sight(papers, "site-2", key=papers.step_key),
            sign_sight(key_of("x"), study_id=papers.study.id, site="site-9", moment="train 1", model=b"m" * 32),
        ):
            assert self.agreed(papers, [useless]) == frozenset()

    def test_another_model_is_named(self, papers):
        with pytest.raises(RemoteProtocolError, match="site-2") as caught:
            self.agreed(papers, [self.sight(papers, "site-2", model=b"n" * 32)])
        assert caught.value.code == "other-model"

    @given(st.binary(max_size=300))
    def test_other_bytes_raise_nothing_else(self, content):
        with pytest.raises(RemoteProtocolError):
            open_sight(content)

    def test_how_many_are_needed(self, papers, make_plan):
        assert needed(papers.study, "train 1") == 2
        some = Papers(
            plan=make_plan(strategy={"participation": 0.5, "minimum_sites": 2}), identities=papers.identities
        ).study
        assert [needed(some, "train 1"), needed(some, "evaluate 4"), needed(some, "open")] == [1, 2, 2]

    def test_a_book_gives_each_site_all_sights_of_its_own_last_moment(self, papers):
        book = SightBook(papers.study)
        first = {s: self.sight(papers, s) for s in SITES}
        for site, content in first.items():
            book.take(content, site=site)
        book.take(b"", site="site-1")
        assert book.for_site("site-1") == (first["site-1"], first["site-2"], first["site-3"])
        second = {s: self.sight(papers, s, moment="train 2") for s in SITES[:2]}
        for site, content in second.items():
            book.take(content, site=site)
        assert book.for_site("site-1") == (second["site-1"], second["site-2"])
        assert book.for_site("site-3") == (first["site-1"], first["site-2"], first["site-3"])
        with pytest.raises(RemoteProtocolError):
            book.take(first["site-2"], site="site-1")
        assert SightBook(papers.study).for_site("site-1") == ()
