"""Federated averaging as one writes it by hand in PyTorch: what a loopback run is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.losses import patient_losses
from oncofed_shared.messages import Trial
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.penalties import penalties
from oncofed_shared.plan import Plan
from oncofed_simulations.consortium import Consortium, Run, open_site
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["Workload", "train"]

TRIAL = Trial(seed=0)


def _server(plan: Plan, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    rule = plan.strategy
    if rule.name == "fedadam":
        return torch.optim.Adam(weights, lr=rule.rate, betas=rule.betas or (0.9, 0.999), eps=rule.tau or 1e-3)
    if rule.name == "fedavg":
        return torch.optim.SGD(weights, lr=rule.rate)
    raise ConfigError(f"strategy.name: the bare loop knows fedavg and fedadam, not {rule.name}")


def _groups(plan: Plan, network: FusionNetwork) -> list[dict[str, object]]:
    """Parameters by their weight decay, as torch.optim takes them."""
    if plan.training.optimiser != "sgd" or plan.training.batch != "all" or plan.training.l1:
        raise ConfigError("training: the bare loop is full-batch SGD without L1")
    decays = {id(p): decay for p, decay, _ in penalties(plan, network)}
    by_decay: dict[float, list[nn.Parameter]] = {}
    for parameter in network.parameters():
        by_decay.setdefault(decays.get(id(parameter), 0.0), []).append(parameter)
    return [{"params": ps, "weight_decay": decay} for decay, ps in by_decay.items()]


def _step(plan: Plan, network: FusionNetwork, data: TrainingSet, optimiser: torch.optim.Optimizer) -> None:
    """A round's steps at one site."""
    for _ in range(plan.training.local_steps):
        optimiser.zero_grad()
        loss = patient_losses(plan, network(data.values, data.seen), data.goals).sum() / len(data)
        torch.autograd.backward([loss])
        optimiser.step()


def train(plan: Plan, preparation: Preparation, sets: Sequence[TrainingSet]) -> dict[str, Tensor]:
    """Train the plan's network over the sites' patients; its last parameters, by name.

    No messages, no bytes, no consent, no evaluation, nothing on disk. In every round a network takes the global
    parameters, makes its local steps at a site, and is added to the mean; the server's optimiser then moves the global ones.
    """
    server_network = build(plan, network_columns(plan, preparation), seed=TRIAL.seed)
    network = build(plan, network_columns(plan, preparation), seed=TRIAL.seed)
    network.train()
    weights, local = list(server_network.parameters()), list(network.parameters())
    server, groups = _server(plan, weights), _groups(plan, network)
    patients = sum(len(s) for s in sets)
    training, rule = plan.training, plan.strategy
    for done in range(training.rounds):
        if rule.schedule == "linear":
            server.param_groups[0]["lr"] = rule.rate * (1 - done / training.rounds)
        change = [torch.zeros_like(w) for w in weights]
        for data in sets:
            network.load_state_dict(server_network.state_dict())
            optimiser = torch.optim.SGD(groups, lr=training.rate, momentum=training.momentum)
            _step(plan, network, data, optimiser)
            with torch.no_grad():
                for total, mine in zip(change, local, strict=True):
                    total.add_(mine, alpha=len(data) / patients)
        for weight, total in zip(weights, change, strict=True):
            weight.grad = weight.detach() - total
        server.step()
    return {n: p.detach() for n, p in server_network.named_parameters()}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A study over generated hospitals, ready to be trained both ways.

    Attributes:
        sets: the training patients of each site.
        reference: a federated run that was made before anything is timed.
    """

    plan: Plan
    folder: Path
    sites: dict[str, Site]
    sets: tuple[TrainingSet, ...]
    reference: Run

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> Workload:
        """Generate the study's cohort below `folder`, read it, and run once, so that everything is warm."""
        write_cohort(folder / "cohort", **read_settings(plan.simulation.cohort or {}).model_dump())
        sites = {}
        for path in site_folders(folder / "cohort"):
            site = open_site(path, plan, state=folder / "sites" / path.name, minimum=None)
            sites[site.name] = site
        reference = _federated(plan, sites, folder / "reference")
        preparation = reference.state.preparation
        if preparation is None:
            raise ConfigError("the study did not run")
        sets = []
        for site in sites.values():
            cohort = site.source.cohort(plan)
            sets.append(training_set(plan, preparation, cohort, site.source.split(plan, cohort, TRIAL) == 0))
        return cls(plan=plan, folder=folder, sites=sites, sets=tuple(sets), reference=reference)

    def federated(self, name: str) -> Run:
        """One whole loopback run, with snapshots in a folder of this name."""
        return _federated(self.plan, self.sites, self.folder / name)

    def bare(self) -> dict[str, Tensor]:
        """The same by hand."""
        if self.reference.state.preparation is None:
            raise ConfigError("the study did not run")
        return train(self.plan, self.reference.state.preparation, self.sets)

    def steps(self) -> None:
        """As many steps at every site, each on a network of its own, and nothing else: the least that training can take."""
        plan, preparation = self.plan, self.reference.state.preparation
        if preparation is None:
            raise ConfigError("the study did not run")
        networks = [build(plan, network_columns(plan, preparation), seed=TRIAL.seed).train() for _ in self.sets]
        rate, momentum = plan.training.rate / 10, plan.training.momentum
        optimisers = [torch.optim.SGD(_groups(plan, n), lr=rate, momentum=momentum) for n in networks]
        for _ in range(plan.training.rounds):
            for network, data, optimiser in zip(networks, self.sets, optimisers, strict=True):
                _step(plan, network, data, optimiser)

    def difference(self) -> float:
        """Largest difference between the parameters that the two ways end with."""
        ours = self.reference.state.server
        theirs = self.bare()
        flat = torch.cat([theirs[n].flatten() for n in sorted(theirs)]).double().numpy()
        return float("inf") if ours is None else float(np.abs(ours.parameters - flat).max())


def _federated(plan: Plan, sites: dict[str, Site], store: Path) -> Run:
    return Consortium(plan=plan, sites=sites, externals={}, store=store).federated(TRIAL)
