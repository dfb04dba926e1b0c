"""What a site's own monitoring is told: sums over its receipts, and what its ledger says of the budget.

Everything comes from rows that the site has signed anyway. Of their times only whole ticks are shown (protocol, rule 11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oncofed_client.budget import budget_policy
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_account import Account
from oncofed_client.ledger_chain import LEDGER, Chain, Entry, Form, parse_row
from oncofed_client.ledger_report import Totals, ledger_report
from oncofed_client.receipts import FORM, RECEIPTS_FILE
from oncofed_client.settings import Policy
from oncofed_shared.errors import DataError, OncofedError

__all__ = ["SiteFigures", "tick_of"]


def tick_of(policy: Policy) -> float:
    """Seconds of which a site shows only whole ones: its policy's tick, and at least one second."""
    return max(1.0, policy.reply_tick)


class _Rows:
    """New rows of a chain since the last time. They are not verified: `oncofed-site verify` does that."""

    def __init__(self, path: Path, form: Form) -> None:
        self._path, self._form, self._number = path, form, 0

    def new(self) -> list[Entry]:
        """Rows that were not read before, in order; none where there is no file."""
        if not self._path.exists():
            return []
        chain = Chain(self._path, read_only=True)
        try:
            found = [parse_row(row, self._form) for row in chain.rows(self._number)]
        finally:
            chain.close()
        if found:
            self._number = found[-1].number
        return found


class SiteFigures(Collector):
    """One site's figures, read on from where the last look ended.

    Args:
        state: the site's.
        policy: as `site.toml` has it now.
        started: when the daemon began, in seconds since 1970; 0 where none looks.
        clock: seconds since 1970.

    Guarantees:
        - A figure is a sum over receipts, the newest of them, or an epsilon of the ledger: nothing of a patient, and no count.
        - Times are whole multiples of the policy's tick.
        - Records that cannot be read are one figure, and the others stay as they were.
    """

    def __init__(
        self, state: Path, *, site: str, policy: Callable[[], Policy], clock: Callable[[], float], started: float = 0.0
    ) -> None:
        self._policy, self._clock, self._started = policy, clock, started
        self._receipts, self._ledger = _Rows(state / RECEIPTS_FILE, FORM), _Rows(state / LEDGER_FILE, LEDGER)
        self._account = Account(site=site)
        self._replies: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()
        self._charged: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._steps: dict[str, int] = {}
        self._last = 0.0

    def _look(self) -> None:
        """Take new rows.

        Raises:
            OncofedError: receipts or ledger cannot be read, or not now.
        """
        for entry in self._receipts.new():
            if entry.kind == "receipt":
                self._take(entry.body)
                self._last = entry.at
        for entry in self._ledger.new():
            why = self._account.problem(entry)
            if why is not None:
                raise DataError(f"{LEDGER_FILE}: entry {entry.number}: {why}", code="ledger-damaged")
            self._account.apply(entry)

    def _take(self, body: dict[str, Any]) -> None:
        study = str(body["study"])[:12]
        self._replies[study, str(body["kind"])] += 1
        self._bytes[study] += int(body["size"])
        self._charged[study] += int(body["steps"])
        self._steps[study] = int(body["step"])
        if body["code"]:
            self._refusals[str(body["code"])] += 1

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        readable = GaugeMetricFamily("oncofed_site_records_readable", "Whether receipts and ledger could be read.")
        try:
            self._look()
            policy, sound = self._policy(), 1.0
        except OncofedError:
            policy, sound = Policy(), 0.0
        readable.add_metric((), sound)
        yield readable
        yield from self._left()
        yield from self._times(tick_of(policy))
        if sound and self._account.number:
            yield from _budget(ledger_report(self._account, budget_policy(policy)).totals)

    def _left(self) -> Iterator[Metric]:
        replies = CounterMetricFamily("oncofed_site_replies", "Replies that left.", labels=("study", "kind"))
        size = CounterMetricFamily("oncofed_site_released_bytes", "Bytes of replies that left.", labels=("study",))
        charged = CounterMetricFamily("oncofed_site_charged_steps", "Charged steps that left.", labels=("study",))
        refusals = CounterMetricFamily("oncofed_site_refusals", "Refusals by code.", labels=("code",))
        step = GaugeMetricFamily("oncofed_site_last_step", "Step of the newest reply.", labels=("study",))
        for key, number in sorted(self._replies.items()):
            replies.add_metric(key, number)
        plain: tuple[tuple[CounterMetricFamily | GaugeMetricFamily, dict[str, int]], ...] = (
            (size, self._bytes), (charged, self._charged), (refusals, self._refusals), (step, self._steps)
        )  # fmt: skip
        for family, numbers in plain:
            for label, number in sorted(numbers.items()):
                family.add_metric((label,), number)
        yield from (replies, size, charged, refusals, step)

    def _times(self, tick: float) -> Iterator[Metric]:
        for name, what, at in (
            ("last_reply", "When the newest reply was asked for, in whole ticks.", self._last),
            ("daemon_started", "When the daemon began, in whole ticks; absent where none looks.", self._started),
            ("daemon_written", "When this was written, in whole ticks.", self._clock()),
        ):
            family = GaugeMetricFamily(f"oncofed_site_{name}_timestamp_seconds", what)
            if at:
                family.add_metric((), at // tick * tick)
            yield family


def _budget(totals: Totals) -> Iterator[Metric]:
    spent = GaugeMetricFamily(
        "oncofed_site_epsilon_spent", "Reserved and spent in all studies together.", labels=("against",)
    )
    left = GaugeMetricFamily(
        "oncofed_site_epsilon_left", "Left of the policy's limit; absent without.", labels=("against",)
    )
    for against, used, rest in (
        ("colluders", totals.pooled, totals.pooled_left),
        ("everybody", totals.alone, totals.alone_left),
    ):
        spent.add_metric((against,), used)
        if rest is not None:
            left.add_metric((against,), rest)
    yield from (spent, left)
