"""Whole runs under every rule: what each promises about where it ends and what it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oncofed_shared.messages import Evaluate, Tables, Train, Trial, Update, from_bytes
from oncofed_shared.plan import Plan
from oncofed_shared.ring import COUNT_SCALE, decode
from oncofed_shared.rules import MODES, RULES, verdict
from oncofed_shared.scoring import dense
from oncofed_simulations.consortium import Run
from oncofed_strategies import STRATEGIES, Sums, advance, control, init

Flat = NDArray[np.float64]


def parameters(run: Run) -> Flat:
    assert run.state.server is not None
    return run.state.server.parameters


class Tap:
    """Every message that crossed a site's boundary."""

    def __init__(self) -> None:
        self.bytes: list[bytes] = []
        self.seen: list[tuple[str, str, Any]] = []

    def __call__(self, direction: str, site: str, content: bytes) -> None:
        self.bytes.append(content)
        self.seen.append((direction, site, from_bytes(content)))

    def of(self, kind: type[Any]) -> list[tuple[str, Any]]:
        return [(site, m) for _, site, m in self.seen if isinstance(m, kind)]


# -- the registry -----------------------------------------------------------------------------------------------------------


def test_the_registry_has_every_rule_that_a_plan_may_name(plan_of: Callable[..., Plan]) -> None:
    assert set(STRATEGIES) == set(RULES)
    for name, entry in STRATEGIES.items():
        plan = plan_of(strategy={"name": name})
        given = plan.strategy.model_dump()
        assert {k: given[k] for k in entry.facts.parameters} == entry.facts.parameters
        assert plan_of(strategy={"name": name} | {k: _json(v) for k, v in entry.facts.parameters.items()}) == plan


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_every_rule_does_with_sums_and_says_why() -> None:
    for name, rule in RULES.items():
        assert set(rule.under) == set(MODES)
        assert all(len(v.why) > 10 for v in rule.under.values())
        assert rule.secure_sums.legal, name


ILLEGAL = {("scaffold", "consortium"), ("qfedavg", "site"), ("qfedavg", "consortium")}


def test_what_is_illegal_under_noise_is_known() -> None:
    found = {(n, m) for n in RULES for m in MODES if not verdict(n, m).legal}
    assert found == ILLEGAL
    assert {m for m in MODES if not verdict("fedavg", m, local=True).legal} == {"consortium"}
    assert "F^q" in verdict("qfedavg", "site", local=True).why


@pytest.mark.parametrize("name", sorted(RULES))
def test_sums_are_all_a_rule_needs(small: Callable[..., Any], name: str) -> None:
    """The server's next state from the sum of the updates alone is the run's; single updates are not asked for."""
    world, tap = small(strategy__name=name, strategy__rate=0.5, on_disk=False), Tap()
    run = world.run(tap=tap)
    updates = [decode(m.vector) for _, m in tap.of(Update)]
    rounds = [np.sum(updates[i : i + 3], axis=0) for i in range(0, len(updates), 3)]
    first = tap.of(Train)[0][1].parameters
    size = len(parameters(run))
    assert {len(u) for u in updates} == {size + RULES[name].extra + 2}
    state = init(np.concatenate([first[n].ravel() for n in sorted(first)]))
    for number, total in enumerate(rounds):
        patients = total[-2] / COUNT_SCALE
        sums = Sums(change=total[:size], extra=total[size:-2], patients=patients, population=patients)
        state = advance(world.plan, state, sums, progress=number / len(rounds))
    np.testing.assert_allclose(state.parameters, parameters(run), rtol=0, atol=1e-10)


# -- FedProx ----------------------------------------------------------------------------------------------------------------


def test_fedprox_without_a_pull_is_fedavg_bit_for_bit(small: Callable[..., Any]) -> None:
    one = small(strategy__name="fedavg", training__local_steps=5).run()
    two = small(strategy={"name": "fedprox", "mu": 0.0}, training__local_steps=5).run()
    assert parameters(one).tobytes() == parameters(two).tobytes()


def test_fedprox_takes_the_step_of_its_definition(small: Callable[..., Any], hospitals_of: Callable[..., Any]) -> None:
    """Two steps on loss + mu / 2 ||w - w_global||^2, with autograd over the whole objective."""
    source, mu, rate = hospitals_of()[0], 0.7, 0.2
    world = small(sources=[source], strategy={"name": "fedprox", "mu": mu}, training__local_steps=2, training__rounds=2)
    rows = np.arange(len(source.labels)) % 5 != 4
    values, labels = torch.from_numpy(source.values[rows]), torch.from_numpy(source.labels[rows]).double()
    anchor = torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        weight = anchor.clone().requires_grad_()
        for _ in range(2):
            logits = values @ weight[1:] + weight[0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            loss = loss + 0.05 / 2 * (weight[1:] ** 2).sum() + mu / 2 * ((weight - anchor) ** 2).sum()
            (gradient,) = torch.autograd.grad(loss, weight)
            weight = (weight - rate * gradient).detach().requires_grad_()
        anchor = weight.detach()
    np.testing.assert_allclose(parameters(world.run()), anchor.numpy(), rtol=0, atol=1e-10)


def test_a_strong_pull_keeps_sites_together(small: Callable[..., Any]) -> None:
    def apart(mu: float) -> float:
        run = small(strategy={"name": "fedprox", "mu": mu}, training__local_steps=20, training__rate=0.1).run()
        assert run.state.divergence[-1] is not None
        return run.state.divergence[-1].mean

    assert apart(5.0) < apart(0.5) < apart(0.0)


# -- SCAFFOLD ---------------------------------------------------------------------------------------------------------------

DECAY = 0.3
MANY = {
    "training__local_steps": 10,
    "training__rate": 0.2,
    "training__rounds": 80,
    "training__weight_decay": DECAY,
    "on_disk": False,
}


def pooled_gradient(world: Any, point: Flat) -> float:
    """Length of the gradient of the penalised loss over all training patients together."""
    rows = [np.arange(len(s.labels)) % 5 != 4 for s in world.sources]
    values = torch.from_numpy(np.concatenate([s.values[r] for s, r in zip(world.sources, rows, strict=True)]))
    labels = torch.from_numpy(np.concatenate([s.labels[r] for s, r in zip(world.sources, rows, strict=True)])).double()
    weight = torch.from_numpy(point.copy()).requires_grad_()
    logits = values @ weight[1:] + weight[0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels) + DECAY / 2 * (weight[1:] ** 2).sum()
    return float(torch.autograd.grad(loss, weight)[0].norm())


def test_scaffold_reaches_the_pooled_optimum_where_fedavg_does_not(small: Callable[..., Any]) -> None:
    """Convex, different hospitals, ten local steps: FedAvg settles beside the optimum, SCAFFOLD on it."""
    ends = {}
    for name in ("fedavg", "scaffold"):
        world = small(strategy__name=name, **MANY)
        ends[name] = pooled_gradient(world, parameters(world.run()))
    assert ends["fedavg"] > 1e-3
    assert ends["scaffold"] < 1e-6


def test_scaffold_with_one_site_is_plain_sgd(small: Callable[..., Any], hospitals_of: Callable[..., Any]) -> None:
    source = hospitals_of()[:1]
    one = small(strategy__name="scaffold", sources=source).run()
    two = small(strategy__name="fedavg", sources=source).run()
    np.testing.assert_allclose(parameters(one), parameters(two), rtol=0, atol=1e-9)


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_the_servers_control_is_the_mean_of_the_sites_although_none_is_sent(
    small: Callable[..., Any], participation: float
) -> None:
    """c = sum n_i c_i / N, over sites asked or not: what makes SCAFFOLD's drift cancel; and no message carries a c_i."""
    world, tap = small(strategy={"name": "scaffold", "participation": participation}, training__rounds=7), Tap()
    consortium = world.consortium(tap=tap)
    run = consortium.federated(Trial(seed=3))
    head = tap.of(Train)[0][1].head
    kept = {n: s.memories.of(head).after.get("control", np.zeros(5)) for n, s in consortium.sites.items()}
    patients = {n: run.state.descriptions[n].parts["train"] for n in kept}
    mean = np.sum([patients[n] * kept[n] for n in kept], axis=0) / sum(patients.values())
    assert run.state.server is not None
    np.testing.assert_allclose(control(world.plan, run.state.server), mean, rtol=0, atol=1e-9)
    assert max(np.abs(k).max() for k in kept.values()) > 1e-2
    assert not any(k.tobytes() in content for k in kept.values() if k.any() for content in tap.bytes)


# -- q-FedAvg ---------------------------------------------------------------------------------------------------------------


def test_q_fedavg_at_zero_is_fedavg_bit_for_bit(small: Callable[..., Any]) -> None:
    one = small(strategy__name="fedavg").run()
    two = small(strategy={"name": "qfedavg", "q": 0.0}).run()
    assert parameters(one).tobytes() == parameters(two).tobytes()


def test_q_fedavg_makes_losses_more_alike(small: Callable[..., Any]) -> None:
    """What it is for: with a larger q the sites' losses at the end lie closer together (Li et al. 2020, table 1)."""

    def spread(q: float) -> float:
        world = small(strategy={"name": "qfedavg", "q": q}, training__local_steps=1, training__rounds=80, on_disk=False)
        end, losses = parameters(world.run()), []
        for source in world.sources:
            rows = np.arange(len(source.labels)) % 5 != 4
            margin = np.where(source.labels[rows] == 1, 1, -1) * (source.values[rows] @ end[1:] + end[0])
            losses.append(np.mean(np.log1p(np.exp(-margin))))
        return float(np.var(losses))

    assert spread(5.0) < spread(1.0) < spread(0.0)


# -- local layers -----------------------------------------------------------------------------------------------------------

LOCAL = {
    "strategy__local": ["baselines*", "norm*", "layers.*.norm_*"],
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 6, "block_scaling": False},
    "training__local_steps": 5,
}


def test_local_layers_are_in_no_message_and_differ_between_sites(small: Callable[..., Any]) -> None:
    world, tap = small(**LOCAL), Tap()
    consortium = world.consortium(tap=tap)
    run = consortium.federated(Trial(seed=3))
    names = [set(m.parameters) for kind in (Train, Evaluate) for _, m in tap.of(kind)]
    assert names
    assert not any(n.startswith(("baselines", "norm")) or ".norm_" in n for found in names for n in found)
    assert {len(m.vector) for _, m in tap.of(Update)} == {len(parameters(run)) + 2}
    head = tap.of(Train)[0][1].head
    own = [s.memories.of(head).after for s in consortium.sites.values()]
    assert {n.split(".")[0] for n in own[0]} == {"baselines", "norm", "layers"}
    assert all(not np.array_equal(own[0][n], own[1][n]) for n in own[0])
    trained = [a.tobytes() for layers in own for a in layers.values()]
    assert not any(part in content for part in trained for content in tap.bytes)


def test_a_site_is_judged_with_its_own_layers_and_one_that_never_trained_with_the_first(
    small: Callable[..., Any],
) -> None:
    """Three hospitals that agree but for their base rates: only a local baseline fits them all."""
    rng = np.random.default_rng(0)
    sources = small().sources
    slopes = rng.normal(size=4)
    for source, base in zip(sources, (-3.0, 0.0, 3.0), strict=True):
        source.labels = (source.values @ slopes + base > 0).astype(np.int64)
    world, tap = small(sources=sources, on_disk=True, **{**LOCAL, "training__rounds": 6}), Tap()
    consortium = world.consortium(tap=tap)
    consortium.federated(Trial(seed=3))
    asked = {site: m for site, m in tap.of(Evaluate) if m.part == "test"}
    answered = dict(tap.of(Tables))
    for name, site in consortium.sites.items():
        # A new process reads its layers from disk and answers alike.
        again = world.consortium().sites[name]
        assert np.array_equal(again.handle(asked[name]).counts, answered[name].counts)  # type: ignore[union-attr]
        session = site._session(asked[name].head)
        layers = site.memories.of(asked[name].head).after
        whole = session.complete(asked[name].parameters, layers)
        assert all(np.array_equal(whole[n], layers[n]) for n in session.local)
        # Somebody with the same patients who never trained: the first layers, which every machine makes from the seed.
        stranger = replace(world, root=world.root / "stranger").consortium().sites[name]
        opening = next(m for who, m in tap.of(type(_opening(tap))) if who == name)
        stranger.handle(opening)
        other = stranger._session(asked[name].head)
        assert all(np.array_equal(other.local[n], session.local[n]) for n in session.local)
        reply = stranger.handle(asked[name])
        assert isinstance(reply, Tables)
        one = dense(reply.size, reply.cells, reply.counts)
        two = dense(answered[name].size, answered[name].cells, answered[name].counts)
        assert not np.array_equal(one, two)


def _opening(tap: Tap) -> Any:
    return next(m for _, _, m in tap.seen if type(m).__name__ == "Open")


def test_baselines_have_nothing_local(small: Callable[..., Any]) -> None:
    """A pooled model has no site of its own to keep layers at; they would stay at their first values when it is scored."""
    world = small(**LOCAL)
    assert len(parameters(world.consortium().pooled(Trial(seed=3)))) > len(parameters(world.run()))


@pytest.mark.parametrize(("local", "words"), [(["nothing*"], "matches no parameter"), (["*"], "nothing is left")])
def test_patterns_that_fit_nothing_or_everything_end_the_run_with_the_names(
    small: Callable[..., Any], local: list[str], words: str
) -> None:
    with pytest.raises(Exception, match=words) as caught:
        small(strategy__local=local).run()
    assert "baselines.0.weight" in str(caught.value)
