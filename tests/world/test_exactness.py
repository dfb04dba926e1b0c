"""Without noise, one full-batch step a round over all sites is training on the pooled patients.

The comparison is a bare PyTorch loop over the merged hospitals that shares nothing with a site but the network: it reads the
tables' texts, scales, masks and weighs by itself, and its loss is written out from the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.messages import Columns, Trial
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask

TOLERANCE = 1e-6
TRIAL = Trial(seed=3)
COLUMNS: Columns = {
    "clinical": ("age", "sex=female", "sex=male", "stage"),
    "genes": tuple(f"G{g}_rna" for g in range(7)),
    "radiomics": tuple(f"shape_{r}" for r in range(5)),
}
Parameters = dict[str, np.ndarray[Any, Any]]
TASKS = ("survival", "response", "grade")
EXACT = {"rounds": 10, "dtype": "float64", "validate_every": 100, "rate": 0.3}


def cell(text: str, column: str) -> float:
    """A cell as a number; NaN where it is empty."""
    if text == "":
        return np.nan
    if column == "stage":
        return float(("I", "II", "III").index(text))
    return float(text)


def merged_rows(plan: Plan, hospitals: list[Any]) -> tuple[np.ndarray[Any, Any], list[dict[str, str]]]:
    """All training patients with a label: (n, columns) values with NaN where missing, and their clinical rows."""
    labels = [t.label if isinstance(t, ClassificationTask) else t.time for t in plan.tasks.values()]
    values, rows = [], []
    for hospital in hospitals:
        clinical = hospital.tables["clinical"]
        for i, patient in enumerate(clinical["patient_id"]):
            if clinical["part"][i] != "train" or not any(clinical[label][i] for label in labels):
                continue
            rows.append({c: v[i] for c, v in clinical.items()})
            own = []
            for modality, columns in COLUMNS.items():
                table = hospital.tables.get(modality)
                place = table["patient_id"].index(patient) if table and patient in table["patient_id"] else None
                for column in columns:
                    name, _, category = column.partition("=")
                    if table is None or place is None:
                        own.append(np.nan)
                    elif category:
                        own.append(float(table[name][place] == category) if table[name][place] else np.nan)
                    else:
                        own.append(cell(table[name][place], name))
            values.append(own)
    return np.array(values), rows


def scaled(values: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Z-scores over the merged patients, 0 where missing, and what was seen."""
    spread = np.nanstd(values, axis=0)
    table = (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)
    return torch.tensor(np.nan_to_num(np.clip(table, -5, 5))), torch.tensor(~np.isnan(values)).double()


def survival_loss(task: SurvivalTask, logits: torch.Tensor, row: dict[str, str]) -> torch.Tensor:
    """Minus the log-likelihood of one patient under discrete hazards (Gensheimer & Narasimhan 2019, section 2.2)."""
    total = logits.new_zeros(())
    if row[task.time] == "":
        return total
    days, event = float(row[task.time]), row[task.event] == "1"
    for k, (start, stop) in enumerate(zip(task.edges[:-1], task.edges[1:], strict=True)):
        if event and days <= stop:
            return total - F.logsigmoid(logits[k])
        if not event and days < (start + stop) / 2:
            return total
        total = total - F.logsigmoid(-logits[k])
    return total


def class_loss(
    task: ClassificationTask, logits: torch.Tensor, row: dict[str, str], weights: list[float]
) -> torch.Tensor:
    """Weighted minus log-probability of one patient's class; nothing without a label."""
    if row[task.label] == "":
        return logits.new_zeros(())
    k = task.classes.index(row[task.label])
    both = torch.cat([logits.new_zeros(1), logits]) if len(task.classes) == 2 else logits
    return -weights[k] * torch.log_softmax(both, dim=0)[k]


def class_weights(plan: Plan, task: ClassificationTask, rows: list[dict[str, str]]) -> list[float]:
    if plan.training.class_weights != "balanced":
        return [1.0] * len(task.classes)
    counts = [sum(r[task.label] == c for r in rows) for c in task.classes]
    return [sum(counts) / (len(counts) * c) for c in counts]


def pooled_loss(
    plan: Plan, network: FusionNetwork, data: tuple[torch.Tensor, torch.Tensor], rows: list[dict[str, str]]
) -> torch.Tensor:
    """Mean over patients of the weighted sum over tasks, plus the penalties of the plan's documentation."""
    logits, total = network(*data), torch.zeros((), dtype=torch.float64)
    for name, task in plan.tasks.items():
        weights = class_weights(plan, task, rows) if isinstance(task, ClassificationTask) else []
        for i, row in enumerate(rows):
            if isinstance(task, SurvivalTask):
                loss = survival_loss(task, logits[name][i], row)
            else:
                loss = class_loss(task, logits[name][i], row, weights)
            total = total + task.weight * loss / len(rows)
    deep = plan.training.weight_decay if plan.training.deep_decay is None else plan.training.deep_decay
    for name, weight in network.named_parameters():
        if not name.endswith("weight") or "norm" in name or "baselines" in name:
            continue
        decay = plan.training.weight_decay if name == "linear.weight" else deep
        total = total + decay / 2 * (weight**2).sum()
        if name == "linear.weight" or name.startswith("tokenisers"):
            total = total + plan.training.l1 * weight.abs().sum()
    return total


def bare_loop(
    plan: Plan,
    hospitals: list[Any],
    optimiser: Callable[[FusionNetwork], torch.optim.Optimizer],
    *,
    afresh: bool = False,
) -> tuple[Parameters, Parameters]:
    """Train on the merged patients; first and last parameters. `afresh` forgets the optimiser's state in every round."""
    values, rows = merged_rows(plan, hospitals)
    data = scaled(values)
    network = build(plan, COLUMNS, seed=TRIAL.seed)
    first = {n: p.detach().numpy().copy() for n, p in network.named_parameters()}
    rule = optimiser(network)
    for _ in range(plan.training.rounds):
        rule = optimiser(network) if afresh else rule
        rule.zero_grad()
        torch.autograd.backward([pooled_loss(plan, network, data, rows)])
        rule.step()
    return first, {n: p.detach().numpy() for n, p in network.named_parameters()}


def sgd(plan: Plan) -> Callable[[FusionNetwork], torch.optim.Optimizer]:
    return lambda network: torch.optim.SGD(network.parameters(), lr=plan.training.rate)


def federated(world: Any, arm: str = "federated") -> Parameters:
    """Final parameters of a whole run through `Site.handle` and `Aggregator.step`."""
    consortium = world.consortium()
    run = getattr(consortium, arm)(TRIAL)
    layout_of = build(world.plan, run.state.preparation.columns, seed=0)
    names = sorted(n for n, _ in layout_of.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in layout_of.named_parameters()}
    sizes = [int(np.prod(shapes[n])) for n in names]
    parts = np.split(run.state.server.parameters, np.cumsum(sizes)[:-1])
    assert len(run.state.losses) == world.plan.training.rounds
    return {n: p.reshape(shapes[n]) for n, p in zip(names, parts, strict=True)}


def difference(one: Parameters, other: Parameters) -> float:
    """Largest absolute difference; both have the same finite parameters."""
    assert one.keys() == other.keys()
    assert all(np.isfinite(v).all() for p in (one, other) for v in p.values())
    return max(float(np.abs(one[n] - other[n]).max()) for n in one)


def assert_moved(first: Parameters, last: Parameters) -> None:
    """Training changed most coordinates by far more than the tolerance, so that equal does not mean unchanged."""
    change = np.concatenate([np.abs(first[n] - last[n]).ravel() for n in first])
    assert np.median(change) > 10 * TOLERANCE, np.median(change)
    assert change.max() > 1e-2, change.max()


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "survival, transformer": (("survival",), {"training": {"weight_decay": 0.02}}),
    "survival, linear": (("survival",), {"model": {"layers": 0}, "training": {"l1": 0.003, "weight_decay": 0.01}}),
    "free hazards": (("survival",), {"model": {"hazards": "free", "linear_path": False}}),
    "two classes": (("response",), {"training": {"l1": 0.002, "class_weights": "balanced"}}),
    "three classes, linear": (("grade",), {"model": {"layers": 0, "block_scaling": False}}),
    "weighted sum": (("survival",), {"model": {"fusion": "weighted_sum"}, "training": {"weight_decay": 0.02}}),
    "hybrid": (("response",), {"model": {"fusion": "hybrid"}, "training": {"l1": 0.002}}),
    "late": (("grade",), {"model": {"fusion": "late", "linear_path": False}}),
    "all together": (
        ("survival", "response", "grade"),
        {"training": {"weight_decay": 0.05, "deep_decay": 0.01, "l1": 0.001, "class_weights": "balanced"}},
    ),
}


def studied(world: Any, tasks: tuple[str, ...], changes: dict[str, Any]) -> Any:
    """The world with these tasks and EXACT training, on disk."""
    grade = {"kind": "classification", "table": "clinical", "label": "grade", "weight": 0.5}
    every = {**world.content["tasks"], "grade": {**grade, "classes": ["low", "middle", "high"]}}
    world.change(tasks={t: every[t] if t in tasks else None for t in TASKS}, training=EXACT)
    return world.change(**changes).write()


@pytest.mark.parametrize("case", CASES)
def test_federated_parameters_equal_pooled_training(case: str, world: Any) -> None:
    tasks, changes = CASES[case]
    studied(world, tasks, changes)
    first, bare = bare_loop(world.plan, world.hospitals, sgd(world.plan))
    assert_moved(first, bare)
    ours = federated(world)
    print(f"{case}: largest difference {difference(ours, bare):.2g}")
    assert difference(ours, bare) <= TOLERANCE
    assert difference(ours, federated(world, "pooled")) <= TOLERANCE


def test_linear_path_equals_plain_logistic_regression(world: Any) -> None:
    """The same without the network's own code: a matrix and a baseline."""
    changes = {"model": {"layers": 0, "block_scaling": False}, "training": {"weight_decay": 0.01}}
    plan = studied(world, ("response",), changes).plan
    values, rows = merged_rows(plan, world.hospitals)
    table, _ = scaled(values)
    known = torch.tensor([r["response"] != "" for r in rows]).double()
    truth = torch.tensor([float(r["response"] == "yes") for r in rows]).double()
    weight = torch.zeros(table.shape[1], dtype=torch.float64, requires_grad=True)
    baseline = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(plan.training.rounds):
        risk = torch.sigmoid(table @ weight + baseline)
        likelihood = truth * risk.log() + (1 - truth) * (1 - risk).log()
        loss = -(likelihood * known).sum() / len(rows) + plan.training.weight_decay / 2 * (weight**2).sum()
        gradients = torch.autograd.grad(loss, [weight, baseline])
        with torch.no_grad():
            weight -= plan.training.rate * gradients[0]
            baseline -= plan.training.rate * gradients[1]
    ours = federated(world)
    assert float(weight.detach().abs().max()) > 1e-3
    assert np.abs(ours["linear.weight"][0] - weight.detach().numpy()).max() <= TOLERANCE
    (name,) = set(ours) - {"linear.weight"}
    assert np.abs(ours[name].ravel() - baseline.detach().numpy()).max() <= TOLERANCE


def test_adam_at_the_server_equals_pooled_adam(world: Any) -> None:
    """One local SGD step of rate 1 sends the gradient; FedAdam then is Adam on the pooled patients."""
    server = {"name": "fedadam", "rate": 0.01, "betas": [0.9, 0.99], "tau": 1e-6}
    studied(world, TASKS, {"training": {"rate": 1.0, "weight_decay": 0.01}, "strategy": server})
    plan = world.plan
    first, bare = bare_loop(
        plan, world.hospitals, lambda n: torch.optim.Adam(n.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-6)
    )
    assert_moved(first, bare)
    assert difference(federated(world), bare) <= TOLERANCE


LOCAL_ADAM = {"training": {"optimiser": "adam", "rate": 0.01, "weight_decay": 0.01}}


def adam_afresh(world: Any) -> tuple[Parameters, Parameters]:
    """Pooled Adam that, like a site, begins every round without a memory."""
    plan = world.plan
    return bare_loop(
        plan, world.hospitals, lambda n: torch.optim.Adam(n.parameters(), lr=plan.training.rate), afresh=True
    )


def test_local_adam_at_equal_sites_equals_pooled_adam(
    new_world: Callable[..., Any], hospitals_of: Callable[..., list[Any]]
) -> None:
    """Sites that hold the same patients agree in every sign, so their mean step is the pooled step."""
    hospitals = []
    for name in ("one", "two", "three"):
        (hospital,) = hospitals_of((45,))
        hospital.name = name
        hospitals.append(hospital)
    world = studied(new_world(hospitals=hospitals), TASKS, LOCAL_ADAM)
    first, bare = adam_afresh(world)
    assert_moved(first, bare)
    assert difference(federated(world), bare) <= TOLERANCE


def test_local_adam_at_different_sites_stays_within_its_stated_tolerance(world: Any) -> None:
    """Adam's first step has length `rate` in every coordinate, whatever the gradient's length.

    Sites that disagree on a sign therefore average to less than the pooled step. No coordinate can be further from pooled
    training than 2 x rate x rounds, and the loss falls at least half as far: that is the tolerance we state for local Adam.
    Who needs the pooled result exactly uses FedAdam with one local step, which the test above holds to 1e-6.
    """
    studied(world, TASKS, LOCAL_ADAM)
    plan = world.plan
    first, bare = adam_afresh(world)
    ours = federated(world)
    assert_moved(first, ours)
    bound = 2 * plan.training.rate * plan.training.rounds
    far = difference(ours, bare)
    print(f"local Adam: largest difference {far:.3g} of at most {bound:.3g}")
    assert far <= bound
    values, rows = merged_rows(plan, world.hospitals)
    losses = []
    for parameters in (first, ours, bare):
        network = build(plan, COLUMNS, seed=0)
        network.load_state_dict({n: torch.from_numpy(v) for n, v in parameters.items()})
        with torch.no_grad():
            losses.append(float(pooled_loss(plan, network, scaled(values), rows)))
    start, federal, pooled = losses
    print(f"local Adam: loss {start:.4f} -> federated {federal:.4f}, pooled {pooled:.4f}")
    assert start - federal >= 0.5 * (start - pooled)
