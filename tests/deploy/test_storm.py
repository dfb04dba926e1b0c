"""The services in a storm: `kill -9` at random moments for as long as it is told, and everything else that may go wrong meanwhile.

`ONCOFED_STORM_KILLS` (50) and `ONCOFED_STORM_SECONDS` (0) say how many processes are killed at least, and for how long;
`ONCOFED_STORM_SEED` asks for another storm.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from running import needs_proxy  # noqa: E402 - lies beside this file
from storm_run import AGAIN, OPEN, PRIVATE, SITES, StormRun, restored, storm_run  # noqa: E402

from oncofed_client.identity import public_half  # noqa: E402
from oncofed_client.ledger import LEDGER_FILE  # noqa: E402
from oncofed_client.ledger_verify import read_account  # noqa: E402
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts  # noqa: E402
from oncofed_shared.errors import RemoteProtocolError  # noqa: E402
from oncofed_shared.messages import Refusal, from_bytes  # noqa: E402
from oncofed_shared.sealed import open_reply, open_request  # noqa: E402

KILLS = int(os.environ.get("ONCOFED_STORM_KILLS", "50"))
SECONDS = float(os.environ.get("ONCOFED_STORM_SECONDS", "0"))
SEED = int(os.environ.get("ONCOFED_STORM_SEED", "1"))


pytestmark = [
    pytest.mark.slow,
    needs_proxy,
    pytest.mark.xdist_group("storm"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StormRun]:
    with storm_run(tmp_path_factory.mktemp("storm"), kills=KILLS, seconds=SECONDS, seed=SEED) as made:
        for study in (OPEN, PRIVATE):
            made.consortium.aggregator("report", study, "--out", made.out(study), patience=300.0)
        # Before a test brings back an old copy, which would not verify.
        for hospital in made.hospitals.values():
            made.consortium.site("verify", hospital.data, patience=300.0)
        yield made


def test_so_many_were_killed_and_everything_else_went_wrong_too(
    run: StormRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nkilled: {run.kills.total()} {dict(run.kills)}\nfaults: {[f.name for f in run.faults if f.over]}")
        print(f"not made: {run.missing}\nseconds: {run.seconds}")
    assert run.kills.total() >= KILLS
    if KILLS >= 50:
        assert set(run.kills) == {"daemon", "gate", "SuperLink", "ServerApp", "proxy"}
    assert all(f.begun for f in run.faults)


def test_both_studies_end_by_themselves_with_all_sites(run: StormRun) -> None:
    assert {n: p for n, p in run.phases().items() if n != AGAIN} == {OPEN: "done", PRIVATE: "done"}
    assert run.status(OPEN)["excluded"] == run.status(PRIVATE)["excluded"] == {}


def test_without_privacy_the_model_is_that_of_a_run_without_a_storm(run: StormRun) -> None:
    made, calm = run.out(OPEN), run.consortium.folder / "simulated"
    assert (made / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()


def test_every_site_has_charged_what_left_it(run: StormRun) -> None:
    study = run.study(PRIVATE)
    for hospital in run.hospitals.values():
        public = public_half(hospital.state)
        account = read_account(hospital.state / LEDGER_FILE, public)
        committed = {entry for entry, r in account.reservations.items() if r.state == "committed"}
        charged = [r for r in read_receipts(hospital.state / RECEIPTS_FILE, public) if r.charge]
        assert {r.charge for r in charged} <= committed
        left = sum(r.steps for r in charged if r.study_id == study.id)
        plan = next(p for p in account.all_plans() if p.plan.startswith(study.plan.hash))
        assert 0 < left <= sum(plan.used)


def test_the_same_request_never_had_two_answers_and_each_has_its_receipt(run: StormRun) -> None:
    for name, hospital in run.hospitals.items():
        kept, answers = hospital.tap.kept, defaultdict(set)
        # A call that a kill has cut off has no answer.
        pairs = [(a, b) for (way, a), (back, b) in pairwise(kept) if (way, back) == ("down", "up")]
        for asked, answered in pairs:
            request = open_request(asked)
            study = next(s for s in map(run.study, (OPEN, PRIVATE, AGAIN)) if s.id == request.study_id)
            try:
                opened = open_reply(
                    answered, request_digest=request.digest, study_id=study.id, site=name, identity=study.roster[name]
                )
            except RemoteProtocolError:
                continue
            if not isinstance(from_bytes(opened.body), Refusal):
                answers[study.id, request.digest].add(answered)
        assert len(answers) > 20
        assert all(len(several) == 1 for several in answers.values())
        receipts = json.loads(run.consortium.site("outbox", hospital.data, "--json"))
        for study in map(run.study, (OPEN, PRIVATE, AGAIN)):
            if (name, study.id) == (SITES[2], run.study(AGAIN).id):
                # Where a copy of this site is brought back, if that test came first, the receipts since then are gone with it.
                continue
            receipted = sum(r["kind"] != "Refusal" and r["study_id"] == study.id for r in receipts)
            count = sum(of == study.id for of, _ in answers)
            assert receipted >= count
            assert count > 10 or study.id == run.study(AGAIN).id


def test_a_site_from_yesterdays_copy_is_noticed_and_leaves(run: StormRun) -> None:
    status = restored(run, SITES[2])
    assert status["phase"] == "failed"
    assert SITES[2] in status["why"]
    assert any(w in status["why"] for w in ("rolled-back", "replayed", "unknown-formation", "reply-is-over")), status
