"""What a site's monitoring is told, read by Prometheus' own parser and compared with receipts and ledger of real doors."""

from __future__ import annotations

import stat
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from airlock_parts import NOW
from airlock_world import World, aggregator_of, head_of, private_changes, run
from prometheus_client.parser import text_string_to_metric_families

from oncofed_client.budget import budget_policy
from oncofed_client.identity import public_half
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_report import ledger_report
from oncofed_client.ledger_verify import read_account
from oncofed_client.metrics_file import ProgramFigures, check_folder, kept, text_of, write_figures
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts
from oncofed_client.settings import Policy
from oncofed_client.site_figures import SiteFigures
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Describe

SITE = "site-1"
NAMES = {
    "records_readable", "replies", "released_bytes", "charged_steps", "refusals", "last_step",
    "last_reply_timestamp_seconds", "daemon_started_timestamp_seconds", "daemon_written_timestamp_seconds",
    "epsilon_spent", "epsilon_left",
}  # fmt: skip
"""Every figure that there may be: another one has to be thought about."""
ORDER = ("study", "kind", "code", "program", "against")
"""The parser has labels by name."""
POLICY = Policy(epsilon_total=40.0, reply_tick=7.0)


def read(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        samples = {
            tuple(s.labels[name] for name in ORDER if name in s.labels): s.value
            for s in family.samples
            if not s.name.endswith("_created")
        }
        found[family.name.removeprefix("oncofed_site_")] = samples
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory, hospitals, make_plan):
    """A private study that runs to its end, and what a stranger asked beside it."""
    made = World.make(tmp_path_factory.mktemp("figures"), make_plan(**private_changes("consortium")), hospitals)
    state = made.states[SITE]
    before = figures_of(state)
    run(made, aggregator_of(made), after=lambda site, content, reply: text_of(before))
    made.ask(SITE, Describe(head=head_of(made, session="of-somebody-else")))
    made.early = before
    yield made
    made.close()


def figures_of(state: Path, *, policy: Policy = POLICY) -> SiteFigures:
    return SiteFigures(state, site=SITE, policy=lambda: policy, clock=lambda: NOW + 123.4, started=NOW + 5.0)


def test_sums_are_those_of_the_receipts(world):
    state = world.states[SITE]
    receipts = read_receipts(state / RECEIPTS_FILE, public_half(state))
    shown, own = read(text_of(figures_of(state))), world.papers.study.id[:12]
    assert len(receipts) > 5
    assert shown["replies"] == {(own, k): n for k, n in Counter(r.kind for r in receipts).items()}
    assert shown["released_bytes"] == {(own,): sum(r.size for r in receipts)}
    assert shown["charged_steps"] == {(own,): sum(r.steps for r in receipts)}
    assert shown["last_step"] == {(own,): receipts[-1].step}
    assert shown["refusals"] == {("other-run",): 1}
    assert shown["records_readable"] == {(): 1}


def test_the_budget_is_the_ledgers(world):
    state = world.states[SITE]
    account = read_account(state / LEDGER_FILE, public_half(state))
    totals = ledger_report(account, budget_policy(POLICY)).totals
    shown = read(text_of(figures_of(state)))
    assert shown["epsilon_spent"]["colluders",] == totals.pooled > 0
    assert shown["epsilon_left"] == {("colluders",): totals.pooled_left}
    assert 0 < totals.pooled_left < 40.0
    # Without a limit nothing is left of it.
    assert read(text_of(figures_of(state, policy=Policy())))["epsilon_left"] == {}


def test_nothing_else_is_told_and_times_only_in_whole_ticks(world):
    shown = read(text_of(figures_of(world.states[SITE])))
    assert set(shown) <= NAMES
    for name in ("last_reply", "daemon_started", "daemon_written"):
        (at,) = shown[f"{name}_timestamp_seconds"].values()
        assert at % POLICY.reply_tick == 0
        assert NOW - POLICY.reply_tick < at <= NOW + 123.4


def test_who_looks_all_the_time_sees_what_one_sees_who_looks_once(world):
    assert text_of(world.early) == text_of(figures_of(world.states[SITE]))


def test_records_that_cannot_be_read_are_one_figure(tmp_path):
    (tmp_path / RECEIPTS_FILE).write_bytes(b"no chain")
    shown = read(text_of(figures_of(tmp_path)))
    assert shown["records_readable"] == {(): 0}
    assert shown["replies"] == {}
    assert read(text_of(figures_of(tmp_path / "nothing")))["records_readable"] == {(): 1}


class TestFile:
    def test_only_a_folder_that_others_cannot_enter_is_taken(self, tmp_path):
        for mode, fine in ((0o750, True), (0o2750, True), (0o700, True), (0o755, False), (0o751, False)):
            tmp_path.chmod(mode)
            if fine:
                check_folder(tmp_path)
            else:
                with pytest.raises(ConfigError, match="only its owner and the node exporter's group"):
                    check_folder(tmp_path)
        tmp_path.chmod(0o700)
        with pytest.raises(ConfigError, match="make the folder first"):
            check_folder(tmp_path / "absent")

    def test_a_file_is_there_whole_for_owner_and_group(self, tmp_path, world):
        path = tmp_path / "oncofed-daemon.prom"
        write_figures(path, figures_of(world.states[SITE]))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert read(path.read_bytes()) == read(text_of(figures_of(world.states[SITE])))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_it_is_written_now_and_again_and_at_the_end_and_a_full_disk_ends_nothing(self, tmp_path, capfd):
        path, figures = (
            tmp_path / "gate" / "oncofed-gate.prom",
            ProgramFigures(("daemon", "gate"), say=lambda *a, **k: None),
        )
        (tmp_path / "gate").write_text("in the way")
        with kept(path, figures, every=0.05):
            figures.note("program.started", program="daemon", pid=4)
            time.sleep(0.3)
            (tmp_path / "gate").unlink()
        assert read(path.read_bytes())["program_up"] == {("daemon",): 1, ("gate",): 0}
        for event in ("program.ended", "program.started", "program.ended"):
            figures.note(event, program="gate")
        shown = read(text_of(figures))
        assert shown["program_up"] == {("daemon",): 1, ("gate",): 0}
        assert shown["program_starts"] == {("daemon",): 1, ("gate",): 1}
        assert set(shown) == {"program_up", "program_starts", "gate_written_timestamp_seconds"}
        assert "metrics.failed" in capfd.readouterr().err
