"""What a site works with in a session and does not depend on its patients: the network to train in, and the layouts."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_shared.layers import initial_local, shared_layout
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Arrays, Columns
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import Plan

__all__ = ["Bench", "Scratch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A network whose parameters are overwritten before every use.

    Attributes:
        whole: all parameters.
        layout: those that are shared.
        local: first values of the others.
    """

    network: FusionNetwork
    whole: Layout
    layout: Layout
    local: Arrays


class Scratch:
    """Makes benches, and gives the last one again where the same is asked for.

    Sites of one process and one thread may have one scratch in common: memory then does not grow by a network per site. No
    number goes from one to the other, because a network is scratch: every round begins by writing all of its parameters.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[str, Columns, int], Bench] | None = None

    def bench(self, plan: Plan, columns: Columns, *, seed: int) -> Bench:
        """The plan's network over these columns.

        Raises:
            ConfigError: a pattern of `strategy.local` matches no parameter, or none is left to share.
        """
        asked = (plan.hash, columns, seed)
        if self._last is None or self._last[0] != asked:
            network = build(plan, columns, seed=seed)
            layout = shared_layout(plan, network)
            made = Bench(network=network, whole=Layout.of(network), layout=layout, local=initial_local(layout, network))
            self._last = asked, made
        return self._last[1]
