"""Printing of a review, in plain words for a data officer."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from oncofed_client.leaving import Leaving
from oncofed_client.ledger_report import Preview
from oncofed_client.pace import EXCHANGE_SECONDS
from oncofed_client.review import Review
from oncofed_client.words import day, epsilon_text, hours_text, size_text, task_text
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, SitePrivacy

__all__ = ["show_review"]


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _head(console: Console, text: str) -> None:
    _say(console, f"\n{text}", "bold")


def _asked(console: Console, review: Review) -> None:
    study, plan = review.study, review.study.plan
    _say(console, f"Study {study.name}, for site {review.site}", "bold")
    _say(console, f"  purpose: {plan.study.purpose}")
    _say(console, f"  id {study.id}")
    _say(
        console,
        f"  signed {day(study.created)}, runs until {day(study.expires)}; one training run, seed {study.trial.seed}",
    )
    _head(console, "What is asked")
    for name in plan.task_names:
        _say(console, f"  {name}{' (main)' if name == plan.main_task else ''}: {task_text(plan.tasks[name])}")
    _head(console, "What is read here, and stays here")
    for name, words in review.columns.items():
        _say(console, f"  {name}: {words}")


def _patients(console: Console, review: Review) -> None:
    here = review.here
    _head(console, "Who would take part here")
    _say(
        console,
        f"  {here.usable} patients of {here.patients}; {here.may_enter} consented; the policy asks for {here.minimum}",
    )
    for line in here.problems:
        _say(console, f"  problem: {line}", "red")
    for line in here.warnings:
        _say(console, f"  look at: {line}", "yellow")


def _row(table: Table, item: Leaving) -> None:
    table.add_row(*(Text(c) for c in (item.what, f"up to {item.times}", size_text(item.bytes), item.guarded)))


def _leaves(console: Console, review: Review) -> None:
    _head(console, "What would leave this site, and nothing else")
    if not review.leaves:
        _say(console, "  Its size cannot be said before the data can be read; see the objections below.")
    else:
        table = Table(pad_edge=False, box=None)
        for column in ("what", "times", "bytes each", "guarded by"):
            table.add_column(column, overflow="fold")
        for item in review.leaves:
            _row(table, item)
        console.print(table)
        if review.pace is not None:
            _say(console, f"  The model has {review.pace.parameters:,} numbers.")
    _say(console, "  Without a charge to the ledger:")
    for line in review.uncharged:
        _say(console, f"    - {line}")


def _privacy(console: Console, review: Review) -> None:
    _head(console, "Privacy")
    privacy, budget = review.study.plan.privacy, review.budget
    if isinstance(privacy, NoPrivacy):
        _say(
            console,
            "  No noise: what leaves is exact, and there is no bound on what it tells about one patient.",
            "yellow",
        )
        return
    if isinstance(privacy, SitePrivacy):
        _say(console, "  This site draws all the noise it needs on its own; it does not matter who colludes.")
    if isinstance(privacy, ConsortiumPrivacy):
        _say(
            console,
            f"  Only the sum over {len(privacy.patients)} sites is ever seen; {privacy.threshold} of them open it together. "
            f"The noise counts on {privacy.honest} honest ones: {privacy.drop} may be missing, {privacy.collude} may collude.",
        )
    if budget is not None:
        _costs(console, budget)


def _costs(console: Console, budget: Preview) -> None:
    _say(console, f"  it promises every patient epsilon {epsilon_text(budget.epsilon)} at delta {budget.delta:g}")
    _say(console, f"  pooled, as long as no more collude than it reckons with: epsilon {epsilon_text(budget.pooled)}")
    _say(console, f"  if all other sites collude:                             epsilon {epsilon_text(budget.alone)}")
    after = budget.after
    for words, spent, limit in (
        ("all studies together", after.pooled, after.pooled_limit),
        ("all studies together, if all others collude", after.alone, after.alone_limit),
    ):
        of = "no limit in the policy" if limit is None else f"of {limit:g}"
        _say(console, f"  {words}: epsilon {epsilon_text(spent)}, {of}")
    if budget.approved:
        _say(console, "  It is charged already.")


def show_review(console: Console, review: Review) -> None:
    """Print a review."""
    _asked(console, review)
    _patients(console, review)
    _leaves(console, review)
    _privacy(console, review)
    _head(console, "How long")
    if review.pace is None:
        _say(console, "  Cannot be tried before the data can be read.")
    else:
        pace = review.pace
        _say(
            console,
            f"  about {hours_text(pace.hours)}: {pace.steps} steps of {pace.step_seconds:.2g} s as measured here, and "
            f"{pace.exchanges} exchanges of about {EXCHANGE_SECONDS:g} s; longer if another site is slower",
        )
    _head(console, "Fingerprints, to be compared by telephone before you approve")
    width = max(len(name) for name in review.fingerprints)
    for name, fingerprint in review.fingerprints.items():
        _say(console, f"  {name:<{width}}  {fingerprint}")
    if review.objections:
        _head(console, "This site would refuse it")
        for line in review.objections:
            _say(console, f"  - {line}", "red")
    else:
        _say(console, "\nNothing here speaks against it. Approve it with: oncofed-site approve", "bold green")
