"""A private study end to end: what leaves, what does not, what repeats, and what a site refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from oncofed_client.cohort import split_patients
from oncofed_client.identity import identity_of
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_client.outbox import OUTBOX_FILE, Outbox
from oncofed_client.site import Site
from oncofed_client.source import keep_rows
from oncofed_server.run_state import Phase
from oncofed_shared.errors import ExitCode
from oncofed_shared.features import no_sums, prepare
from oncofed_shared.messages import (
    Describe,
    Description,
    Evaluate,
    Head,
    Open,
    Ready,
    Refusal,
    Summarise,
    Tables,
    Train,
    Trial,
    Update,
    from_bytes,
)
from oncofed_shared.network import build
from oncofed_shared.privacy import Mechanism
from oncofed_shared.ring import COUNT_SCALE, decode
from oncofed_shared.storage import read_arrays
from oncofed_simulations.comparisons import pooled_like, without_privacy
from oncofed_simulations.consortium import POOLED

PRIVATE: dict[str, Any] = {
    "modalities": {
        "clinical": {
            "scaling": "constants",
            "columns": {"age": {"kind": "numeric", "unit": "years", "range": [0, 120], "center": 60, "spread": 10}},
        },
        "genes": {"scaling": "constants", "center": 2, "spread": 3},
        "radiomics": {"scaling": "constants", "center": 2, "spread": 3},
    },
    "model": {"layers": 0},
    "privacy": {
        "noise": "site",
        "epsilon": 5,
        "delta": 1e-4,
        "clip_norm": 0.5,
        "sampling_rate": 0.5,
        "patients": {"alpha": 25, "beta": 20, "gamma": 15},
        "release_tables": True,
    },
}
TRIAL = Trial(seed=0)


@pytest.fixture
def private(new_world: Callable[..., Any]) -> Any:
    """Three hospitals and a private study; `write` puts them on disk."""
    return new_world().change(**PRIVATE)


def result_of(world: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.out / "result.json").read_text(encoding="utf-8"))
    return found


def test_a_study_with_every_comparison(private: Any, simulate: Callable[..., Any]) -> None:
    private.write()
    ended = simulate(*private.arguments("--seeds", "0,1"))
    assert ended.code == ExitCode.DONE, ended.err
    result = result_of(private)
    for site in result["sites"]:
        assert 0.97 * 5 <= site["epsilon"] <= 5
        assert site["delta"] == 1e-4
        assert site["patients"] == PRIVATE["privacy"]["patients"][site["name"]], "the public count, not the true one"
        assert (site["train"], site["test"], site["modalities"], site["events"]) == (None, None, {}, {})
    assert all(entry["train_loss"] is None for entry in result["rounds"])
    assert not any("update" in line or "sums" in line for line in result["uncharged"])
    assert any("tables of counts" in line for line in result["uncharged"])
    assert any("1 more training runs" in line for line in result["uncharged"])
    arms = result["tasks"]["survival"]["c_index"]
    assert list(arms) == ["federated", "pooled", "alone", "without_privacy"]
    assert all(len(arm["per_seed"]) == 2 for arm in arms.values())
    page = (private.out / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="privacy">') :]
    assert "Epsilon bounds" in section
    assert 'aria-label="Privacy spent"' in section
    assert all(line.split(",")[0] in unescape(section) for line in result["uncharged"])
    assert "Without privacy (not released)" in page
    assert "Much about modalities that few patients have" not in page


def test_nothing_uncharged_is_on_the_wire(private: Any) -> None:
    private.change(privacy={"release_tables": False}).write()
    sent: list[Any] = []
    consortium = private.consortium(tap=lambda direction, site, content: sent.append((direction, from_bytes(content))))
    run = consortium.federated(TRIAL)
    assert run.state.phase is Phase.DONE
    assert {type(m) for d, m in sent if d == "down"} == {Describe, Open, Train}
    assert {type(m) for d, m in sent if d == "up"} == {Description, Ready, Update}
    for _, message in sent:
        if isinstance(message, Description):
            assert (message.parts, message.modalities, message.events) == ({}, {}, {})
        if isinstance(message, Update):
            assert decode(message.vector)[-2] / COUNT_SCALE == private.plan.privacy.patients[message.site]
            assert decode(message.vector)[-1] == 0
    lengths = {len(m.vector) for _, m in sent if isinstance(m, Update)}
    assert len(lengths) == 1
    assert not run.tables


def test_without_tables_there_is_no_score_and_the_reason(private: Any, simulate: Callable[..., Any]) -> None:
    private.change(privacy={"release_tables": False}).write()
    assert simulate(*private.arguments("--no-baselines")).code == ExitCode.DONE
    result = result_of(private)
    entry = result["tasks"]["survival"]["c_index"]["federated"]
    assert entry["overall"] is None
    assert entry["why"]["overall"]
    assert entry["exact"] is not None, "a simulation has it beside"
    assert not any("tables" in line for line in result["uncharged"])


def model(out: Path) -> bytes:
    arrays, _ = read_arrays(out / "model.safetensors")
    return b"".join(arrays[n].tobytes() for n in sorted(arrays))


def test_the_noise_seed_repeats_a_run_and_without_it_two_runs_differ(
    private: Any, simulate: Callable[..., Any], tmp_path: Path
) -> None:
    private.write()
    made = {}
    for name, seed in (("free-1", None), ("free-2", None), ("7-1", 7), ("7-2", 7), ("8", 8)):
        simulation = private.content["simulation"] | ({} if seed is None else {"noise_seed": seed})
        private.study.write_text(tomli_w.dumps(private.content | {"simulation": simulation}), encoding="utf-8")
        out = tmp_path / name
        ended = simulate("run", str(private.study), "--sites", str(private.sites), "--out", str(out), "--no-baselines")
        assert ended.code == ExitCode.DONE, ended.err
        made[name] = model(out)
    assert made["7-1"] == made["7-2"]
    assert len({made[n] for n in ("free-1", "free-2", "7-1", "8")}) == 4


def opened(world: Any, name: str = "alpha", **of_site: Any) -> tuple[Site, Callable[..., Any], dict[str, Any]]:
    """A site with an open session, a maker of heads, and parameters."""
    consortium = world.consortium()
    source = consortium.sites[name].source
    site = Site(source, {world.plan.hash: world.plan}, minimum_cohort=5, **of_site)

    def head(step: int = 1, attempt: int = 0, session: str = "s") -> Head:
        return Head(session=session, step=step, attempt=attempt, plan_hash=world.plan.hash, trial=TRIAL)

    columns = {m: tuple(c) for m, c in source.cohort(world.plan).columns.items()}
    preparation = prepare(world.plan, columns, no_sums(world.plan, columns))
    assert isinstance(site.handle(Open(head=head(), columns=columns, arrays=preparation.arrays())), Ready)
    network = build(world.plan, {m: columns[m] for m in sorted(columns)}, seed=0)
    return site, head, {n: p.detach().numpy().copy() for n, p in network.named_parameters()}


def refused(reply: Any, code: str) -> None:
    assert isinstance(reply, Refusal), reply
    assert reply.code == code


def test_a_site_refuses_what_is_not_charged(private: Any) -> None:
    site, head, parameters = opened(private.write())
    columns = dict(site.sessions["s"].preparation.columns)
    refused(site.handle(Summarise(head=head(), columns=columns)), "uncharged-statistics")
    for part in ("train", "all"):
        asked = Evaluate(head=head(), part=part, subgroups=False, parameters=parameters)
        refused(site.handle(asked), "uncharged-tables")
    asked = Evaluate(head=head(), part="test", subgroups=False, parameters=parameters)
    assert isinstance(site.handle(asked), Tables)


def test_a_site_refuses_every_table_unless_the_plan_releases_them(private: Any) -> None:
    site, head, parameters = opened(private.change(privacy={"release_tables": False}).write())
    asked = Evaluate(head=head(), part="test", subgroups=False, parameters=parameters)
    refused(site.handle(asked), "uncharged-tables")


def test_a_round_is_noised_once(private: Any) -> None:
    site, head, parameters = opened(private.write())
    first = site.handle(Train(head=head(step=2), round=1, parameters=parameters))
    again = site.handle(Train(head=head(step=2, attempt=1), round=1, parameters=parameters))
    assert isinstance(first, Update)
    assert isinstance(again, Update)
    assert np.array_equal(first.vector, again.vector)
    assert again.head.attempt == 1
    others = {n: a + 1 for n, a in parameters.items()}
    refused(site.handle(Train(head=head(step=3), round=1, parameters=others)), "round-is-over")
    beyond = private.plan.training.rounds + 1
    refused(site.handle(Train(head=head(step=3), round=beyond, parameters=others)), "round-is-over")
    # Opened anew, the session has not become a new one.
    columns = dict(site.sessions["s"].preparation.columns)
    site.handle(Open(head=head(), columns=columns, arrays=site.sessions["s"].preparation.arrays()))
    refused(site.handle(Train(head=head(step=4), round=1, parameters=others)), "round-is-over")


def test_an_update_that_cannot_be_sent_is_not_drawn_again(private: Any) -> None:
    site, head, parameters = opened(private.change(training={"range": 1e-6}).write())
    refused(site.handle(Train(head=head(step=2), round=1, parameters=parameters)), "out-of-range")
    refused(site.handle(Train(head=head(step=3), round=1, parameters=parameters)), "round-is-over")


def test_a_site_outside_the_roster_does_not_train(private: Any, simulate: Callable[..., Any]) -> None:
    private.content["privacy"]["patients"] = {"alpha": 25, "beta": 20}
    private.write()
    site, head, parameters = opened(private, "gamma")
    refused(site.handle(Train(head=head(), round=1, parameters=parameters)), "not-in-roster")
    assert simulate(*private.arguments("--no-baselines")).code == ExitCode.DONE
    result = result_of(private)
    assert [s["name"] for s in result["sites"]] == ["alpha", "beta"]
    assert [e["name"] for e in result["excluded"]] == ["gamma"]
    assert "privacy.patients" in result["excluded"][0]["why"]


def test_withdrawn_consent_changes_neither_rate_nor_divisor_nor_weight(private: Any) -> None:
    private.change(model={"layers": 1, "width": 16, "feedforward": 64}, privacy={"epsilon": 0.5})
    private.content["simulation"]["site"]["consent"] = {"column": "consent", "value": "yes", "table": "clinical"}
    root = private.root
    for withdrawn in (0, 30):
        private.root = root / str(withdrawn)
        private.root.mkdir()
        private.hospitals[0].tables["clinical"]["consent"][:withdrawn] = ["no"] * withdrawn
        site, head, parameters = opened(private.write())
        assert len(site.source.cohort(private.plan).patients) <= 40 - withdrawn
        reply = site.handle(Train(head=head(), round=1, parameters=parameters))
        assert isinstance(reply, Update)
        total = decode(reply.vector)
        assert total[-2] / COUNT_SCALE == 25
        # At this epsilon the update is noise, whose size tells rate, divisor and weight: a divisor in patients would double it.
        mechanism = Mechanism.for_plan(private.plan, "alpha")
        expected = mechanism.noise_scale / (0.5 * 25) * 25 * private.plan.training.rate
        assert np.std(total[:-2]) == pytest.approx(expected, rel=0.15)


def test_one_patient_more_or_less_moves_nobody_else_between_parts(private: Any) -> None:
    split = {"train": 0.6, "validation": 0.2, "test": 0.2}
    private.content["evaluation"]["split"] = split
    private.write()
    plan = private.plan
    cohort = private.consortium().sites["alpha"].source.cohort(plan)
    parts = split_patients(cohort, plan, seed=1)
    assert set(parts.tolist()) == {0, 1, 2}
    for i in range(len(parts)):
        rest = np.arange(len(parts)) != i
        assert np.array_equal(split_patients(keep_rows(cohort, rest), plan, seed=1), parts[rest])


def test_the_compared_arms_have_the_same_patients_and_their_own_plans(private: Any) -> None:
    consortium = private.write().consortium()
    free, pooled = without_privacy(consortium), pooled_like(consortium)
    assert free.plan.privacy.noise == "none"
    assert dict(pooled.plan.privacy.patients) == {POOLED: 60}
    assert (pooled.plan.privacy.epsilon, pooled.plan.privacy.delta) == (5, 1e-4)
    own = consortium.sites["beta"].source
    for other in (free, pooled):
        source = other.sites["beta"].source
        cohort = source.cohort(other.plan)
        assert cohort is own.cohort(consortium.plan)
        assert np.array_equal(source.split(other.plan, cohort, TRIAL), own.split(consortium.plan, cohort, TRIAL))


def test_without_privacy_everything_is_compared_as_before(world: Any) -> None:
    consortium = world.write().consortium()
    assert pooled_like(consortium) is consortium


def test_a_plan_that_learns_its_scaling_is_refused(private: Any, simulate: Callable[..., Any]) -> None:
    genes = {"scaling": "zscore", "center": None, "spread": None}
    private.change(modalities={"genes": genes}).write()
    simulate(*private.arguments()).refused(ExitCode.INPUT, "modalities.genes.scaling: 'zscore' needs sums")


def test_an_impossible_epsilon_is_refused_before_the_run(private: Any, simulate: Callable[..., Any]) -> None:
    private.change(privacy={"epsilon": 1e-4}).write()
    simulate(*private.arguments()).refused(ExitCode.INPUT, "privacy.epsilon: 0.0001", "impossible")
    assert not (private.out / "result.json").exists()


def test_a_noise_seed_is_no_key_of_a_site_s_own_settings(private: Any, simulate: Callable[..., Any]) -> None:
    private.content["simulation"]["site"]["policy"]["noise_seed"] = 1
    private.write()
    simulate(*private.arguments()).refused(ExitCode.INPUT, "noise_seed")


def test_a_run_that_is_over_is_over_in_every_ledger(private: Any, simulate: Callable[..., Any]) -> None:
    assert simulate(*private.write().arguments("--no-baselines")).code == ExitCode.DONE
    for site in result_of(private)["sites"]:
        folder = private.out / "sites" / site["name"]
        with Ledger.open(folder / LEDGER_FILE, site=site["name"], key=identity_of(folder)) as ledger:
            (account,) = ledger.plans()
            assert account.state == "closed"
            with Outbox(folder / OUTBOX_FILE, epoch=ledger.epoch) as outbox:
                assert outbox.waiting() == ()
        assert not list(folder.rglob("*.keys"))
