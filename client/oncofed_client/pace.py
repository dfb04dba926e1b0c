"""How long a study would take at this site: one step is computed here, on this site's patients, and thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from oncofed_client.cohort import Cohort
from oncofed_client.leaving import exchanges
from oncofed_client.randomness import Randomness
from oncofed_client.scratch import Bench, Scratch
from oncofed_client.session import training_set
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.charged_reductions import stand_in
from oncofed_shared.determinism import one_thread
from oncofed_shared.features import column_sums, encoded_columns, network_columns, prepare
from oncofed_shared.messages import Arrays
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan

__all__ = ["EXCHANGE_SECONDS", "Pace", "measure"]

EXCHANGE_SECONDS = 3.0
"""Of one message to a site and back with next to nothing to compute: docs/cost.md, `oncofed_simulations.bench exchange`."""
NOISE_FACTOR = 2.0
"""A step with a gradient per patient takes about twice as long as a plain one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """A run's length at this site.

    Attributes:
        parameters: of the network, as this site's columns make it.
        shared: those that go round.
        step_seconds: of one round's computing here.
        steps: rounds.
        exchanges: messages to and fro.
    """

    parameters: int
    shared: int
    step_seconds: float
    steps: int
    exchanges: int

    @property
    def hours(self) -> float:
        """If everybody answers at once and computes as fast as this site."""
        return (self.exchanges * EXCHANGE_SECONDS + self.steps * self.step_seconds) / 3600


def measure(plan: Plan, cohort: Cohort, *, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Compute one step as the plan asks for it.

    Args:
        plan: the study.
        cohort: this site's patients; nothing of what is computed over them is kept.
        clock: seconds.
    """
    columns = {m: encoded_columns(plan.modalities[m]) or cohort.columns[m] for m in sorted(plan.modalities)}
    private = not isinstance(plan.privacy, NoPrivacy)
    if private:
        preparation = stand_in(plan, columns)
    else:
        preparation = prepare(plan, columns, column_sums(plan, columns, cohort.values, cohort.columns, cohort.labels))
    bench = Scratch().bench(plan, network_columns(plan, preparation), seed=0)
    data = training_set(plan, preparation, cohort, slice(None))
    parameters = {n: p.detach().numpy().copy() for n, p in bench.network.named.items()}
    factor = NOISE_FACTOR if private else 1.0
    with one_thread():
        if isinstance(plan.privacy, ConsortiumPrivacy):
            seconds, factor = _share_seconds(plan, bench, data, parameters, clock), 1.0
        else:
            start = clock()
            local_update(plan, bench.network, bench.whole, data, parameters, key="pace")
            seconds = clock() - start
    return Pace(
        parameters=bench.whole.size,
        shared=bench.layout.size,
        step_seconds=seconds * factor,
        steps=plan.training.rounds,
        exchanges=exchanges(plan),
    )


def _share_seconds(
    plan: Plan, bench: Bench, data: TrainingSet, parameters: Arrays, clock: Callable[[], float]
) -> float:
    """Of one share of a sum, sampled, clipped and noised."""
    # Accountants take seconds to import.
    from oncofed_client.shares import training_share  # noqa: PLC0415

    planned = training_share(plan, bench.network, bench.whole, data, parameters)
    start = clock()
    planned.share(Randomness.from_os())
    return clock() - start
