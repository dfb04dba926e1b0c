"""Which of a network's parameters go round, and which stay at their site (personalisation; FedBN, Li et al. 2021)."""

from __future__ import annotations

import torch
from torch import nn

from oncofed_shared.errors import ConfigError
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Arrays
from oncofed_shared.plan import Plan, compile_pattern

__all__ = ["initial_local", "load_parameters", "shared_layout"]


def shared_layout(plan: Plan, network: nn.Module) -> Layout:
    """The parameters that cross a site's boundary: all but those that a pattern of `strategy.local` matches.

    Raises:
        ConfigError: a pattern matches no parameter, or none is left to share.
    """
    whole = Layout.of(network)
    if not plan.strategy.local:
        return whole
    patterns = {p: compile_pattern(p) for p in plan.strategy.local}
    local = {n: [p for p, c in patterns.items() if c.fullmatch(n)] for n in whole.shapes}
    used = {p for found in local.values() for p in found}
    names = ", ".join(whole.shapes)
    problems = [f"strategy.local: '{p}' matches no parameter; there are {names}" for p in patterns if p not in used]
    if all(local.values()):
        problems.append(f"strategy.local: nothing is left to share; there are {names}")
    if problems:
        raise ConfigError(*problems)
    return Layout({n: s for n, s in whole.shapes.items() if not local[n]})


def initial_local(layout: Layout, network: nn.Module) -> Arrays:
    """First values of the parameters that are not shared: what a site uses that never trained."""
    return {n: p.detach().numpy().copy() for n, p in network.named_parameters() if n not in layout.shapes}


def load_parameters(network: nn.Module, arrays: Arrays) -> None:
    """Put named arrays into a network; every parameter must be among them."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name].copy()))
