"""`oncofed-site ledger` and `verify`: plain words, the right exit code, and nothing of a patient."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_client.budget import BudgetPolicy, Charge, budget_policy
from oncofed_client.identity import KEY_FILE, PUBLIC_FILE, identity_of
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE, Ledger
from oncofed_client.plan_charges import plan_charges, promised
from oncofed_client.policy import policy_objections, releases_of
from oncofed_client.settings import RELEASES, Policy, load_settings
from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.plan import Plan, load
from oncofed_shared.privacy import epsilon_of
from oncofed_shared.renyi_filter import RenyiFilter, renyi_of
from oncofed_shared.witness import sign_witness

with warnings.catch_warnings():
    # typer 0.20 asks click 8.5, on import, for names that click is about to drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from oncofed_client.__main__ import main

Run = Callable[..., tuple[int, str, str]]
Approve = Callable[..., int]
AGGREGATOR = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
STUDY = """
[study]
name = "small"
purpose = "a study for tests"
[tasks.os]
kind = "survival"
time = "days"
event = "event"
edges = [0, 365, 730]
horizon = 365
[modalities.clinical]
scaling = "none"
patterns = ["age"]
[training]
rounds = 28
[privacy]
"""
CONSORTIUM = """
noise = "consortium"
epsilon = 2.0
delta = 1e-5
clip_norm = 0.5
sampling_rate = 0.25
patients = { north = 200, south = 100, west = 100 }
score_epsilon = 0.5
"""
AT_SITE = """
noise = "site"
epsilon = 2.0
delta = 1e-5
clip_norm = 0.5
sampling_rate = 0.25
patients = { north = 200, south = 100 }
"""
SETTINGS = """
[site]
name = "north"
[tables.clinical]
file = "clinical.csv"
[policy]
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `oncofed-site` with arguments; its exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oncofed-site", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def state(tmp_path: Path, approve: Approve, step: Charge) -> Path:
    """A site's state folder with one study, three of its thirty steps handed over."""
    folder = tmp_path / "north"
    key = identity_of(folder)
    with Ledger.create(folder / LEDGER_FILE, site="north", key=key, now=1_763_700_000.0) as made:
        approve(made, "plan-1", study="lungs", now=1_763_700_001.0)
        for i in range(3):
            number = made.reserve("plan-1", f"r{i}", "q", step, now=1_763_700_002.0)
            made.commit(number, "h", now=1_763_700_002.0)
    return folder


def study(tmp_path: Path, privacy: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY + privacy, encoding="utf-8")
    return path


def site(tmp_path: Path, policy: str) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "site.toml").write_text(SETTINGS + policy, encoding="utf-8")
    return folder


def test_a_ledger_is_said_in_plain_words(run: Run, state: Path) -> None:
    code, out, err = run("ledger", state)
    assert (code, err) == (0, "")
    assert "Ledger of site north: 8 entries, the last of 2025-11-21 04:40 UTC" in out
    row = next(line for line in out.splitlines() if line.startswith("lungs"))
    assert "3 of 30" in row
    # Promised, spent so far, charged, and if all others collude: by the accountant for one plan.
    cost = partial(epsilon_of, sampling_rate=0.3, delta=1e-5)
    numbers = [
        cost(noise_multiplier=8.0, steps=3),
        cost(noise_multiplier=8.0, steps=30),
        cost(noise_multiplier=4.0, steps=30),
    ]
    assert row.split()[-4:] == ["3", *(f"{n:.3g}" for n in numbers)]
    # All studies together: by the filter, so a little more than by the accountant for one plan.
    pooled, alone = (
        RenyiFilter(epsilon=6.0, delta=1e-5).epsilon_of(renyi_of(sampling_rate=0.3, noise_multiplier=n, steps=30))
        for n in (8.0, 4.0)
    )
    assert pooled > numbers[1]
    assert f"reckon with: epsilon {pooled:.3g} of 6; {6 - pooled:.3g} is left" in out
    assert (
        f"if all other sites collude:                                  epsilon {alone:.3g}; the policy has no limit"
        in out
    )


def test_an_empty_ledger_and_none_are_said(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    Ledger.create(folder / LEDGER_FILE, site="north", key=identity_of(folder), now=1.0).close()
    code, out, _ = run("ledger", folder)
    assert code == 0
    assert "nothing was spent" in out
    for command in ("ledger", "verify"):
        code, out, err = run(command, tmp_path)
        assert (code, out) == (ExitCode.INPUT, "")
        assert "does not exist; a site's ledger is made when it first approves a private plan" in err


@pytest.mark.parametrize(("privacy", "taken"), [(CONSORTIUM, "would take 2,"), (AT_SITE, "would take 2,")])
def test_what_a_study_would_take(run: Run, state: Path, tmp_path: Path, privacy: str, taken: str) -> None:
    code, out, err = run("ledger", state, "--study", study(tmp_path, privacy))
    assert (code, err) == (0, "")
    assert "promises epsilon 2 at delta 1e-05" in out
    assert taken in out
    alone = out.split(taken)[1].split()[0]
    # What is all the site's own noise holds whoever colludes.
    assert (alone == "2") == (privacy == AT_SITE)
    assert "The ledger would let it." in out


def test_a_study_that_does_not_fit_is_refused_by_the_sites_own_policy(run: Run, state: Path, tmp_path: Path) -> None:
    folder = site(tmp_path, "epsilon_total = 2.0\nepsilon_study = 1.5\nepsilon_alone = 3.0\n")
    code, out, _ = run("ledger", state, "--study", study(tmp_path, CONSORTIUM), "--site", folder)
    assert code == ExitCode.REFUSED
    assert "The ledger would refuse it:" in out
    for word in ("policy.epsilon_total: is 2", "policy.epsilon_study: is 1.5", "policy.epsilon_alone: is 3"):
        assert word in out
    assert re.search(r"epsilon 1\.0\d of 2; 0\.9\d+ is left", out)


def test_a_study_that_is_approved_takes_nothing_more_and_one_without_noise_nothing(
    run: Run, state: Path, tmp_path: Path
) -> None:
    path = study(tmp_path, CONSORTIUM)
    plan = load(path)
    epsilon, delta = promised(plan)
    with Ledger.open(state / LEDGER_FILE, site="north", key=identity_of(state)) as ledger:
        ledger.approve(
            f"{plan.hash}/0123abcd",
            study="small",
            charges=plan_charges(plan, "north", parameters=1000),
            epsilon=epsilon,
            delta=delta,
            policy=BudgetPolicy(),
            now=1_763_700_009.0,
        )
        # The preview, which does not know the network, is not off by more than rounding.
        guess, real = plan_charges(plan, "north"), ledger.plans()[-1].charges
        for a, b in zip(guess, real, strict=True):
            assert a.noise_multiplier == b.noise_multiplier
            assert a.own_noise_multiplier == pytest.approx(b.own_noise_multiplier, rel=1e-6)
            assert (a.sampling_rate, a.steps, a.part) == (b.sampling_rate, b.steps, b.part)
    code, out, _ = run("ledger", state, "--study", path)
    assert code == 0
    assert "it takes nothing more" in out
    code, out, _ = run("ledger", state, "--study", study(tmp_path, 'noise = "none"'))
    assert code == 0
    assert "Study small" not in out


def test_a_plan_that_does_not_count_on_the_site_is_an_error(run: Run, state: Path, tmp_path: Path) -> None:
    code, _, err = run("ledger", state, "--study", study(tmp_path, AT_SITE.replace("north", "east")))
    assert code == ExitCode.INPUT
    assert "has no 'north'" in err


def test_verify_says_that_a_ledger_is_sound_and_by_which_key(run: Run, state: Path, tmp_path: Path) -> None:
    key = identity_of(state)
    with Ledger.open(state / LEDGER_FILE, site="north", key=key) as ledger:
        witness = sign_witness(AGGREGATOR, name="aggregator", head=ledger.head())
    (tmp_path / "seen").write_bytes(witness.to_bytes())
    # What is looked at is left as it is, also without the private key.
    (state / KEY_FILE).unlink()
    before = {p.name: p.read_bytes() for p in state.iterdir()}
    code, out, err = run("verify", state, "--key", state / PUBLIC_FILE, "--witness", tmp_path / "seen")
    assert (code, err) == (0, "")
    assert "sound: 8 entries of site north, epoch 1" in out
    assert {p.name: p.read_bytes() for p in state.iterdir()} == before


def test_verify_says_one_line_per_problem(run: Run, state: Path, tmp_path: Path) -> None:
    with Ledger.open(state / LEDGER_FILE, site="north", key=identity_of(state)) as ledger:
        witness = sign_witness(AGGREGATOR, name="aggregator", head=ledger.head())
    (tmp_path / "seen").write_bytes(witness.to_bytes())
    with closing(sqlite3.connect(state / LEDGER_FILE)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM entries WHERE number > 6")
        for _, sql in triggers:
            connection.execute(sql)
        connection.commit()
    (state / HEAD_FILE).unlink()
    code, out, err = run("verify", state, "--witness", tmp_path / "seen")
    assert (code, out) == (ExitCode.PEER, "")
    missing, seen = err.splitlines()
    assert missing.startswith(f"{HEAD_FILE}: is missing")
    assert seen.startswith(
        "witness aggregator: somebody has seen entry 8 of epoch 1, and this ledger ends with entry 6"
    )
    code, _, err = run("verify", state, "--witness", state / PUBLIC_FILE)
    assert code == ExitCode.INPUT
    assert "is not the witness of a ledger" in err
    code, _, err = run("verify", state, "--witness", state / "nothing")
    assert code == ExitCode.INPUT
    assert "cannot be read" in err
    other = tmp_path / "other"
    identity_of(other)
    code, _, err = run("verify", state, "--key", other / PUBLIC_FILE)
    assert code == ExitCode.PEER
    assert "is not signed by this site's key" in err.splitlines()[0]
    code, _, err = run("ledger", other.parent / "north")
    assert code == 0
    shutil.copy(other / PUBLIC_FILE, state / PUBLIC_FILE)
    code, _, err = run("ledger", state)
    assert code == ExitCode.INPUT
    assert "is not sound" in err.splitlines()[-1]


def test_a_restored_ledger_says_so(run: Run, state: Path) -> None:
    key = identity_of(state)
    copy = state.with_name("copy")
    shutil.copytree(state, copy)
    with Ledger.open(state / LEDGER_FILE, site="north", key=key) as ledger:
        ledger.approve(
            "plan-2",
            study="brains",
            charges=(Charge(sampling_rate=1.0, noise_multiplier=9.0, own_noise_multiplier=0.0),),
            epsilon=3.0,
            delta=1e-5,
            policy=BudgetPolicy(),
            now=1_763_700_009.0,
        )
        witness = sign_witness(AGGREGATOR, name="aggregator", head=ledger.head())
    Ledger.begin_epoch(copy / LEDGER_FILE, site="north", key=key, now=1_763_700_010.0, witnesses=[witness]).close()
    code, out, _ = run("ledger", copy)
    assert code == 0
    assert "Epoch 2: it was restored from a backup." in out
    assert "Entries that the restore has lost are counted" in out
    assert "ended by a restore" in out
    assert "epsilon no bound; the policy has no limit" in out


NOISED = ("consortium", "site", "tables")
PLANS = {
    "consortium": CONSORTIUM,
    "site": AT_SITE,
    "tables": f"{AT_SITE}release_tables = true",
    "none": 'noise = "none"',
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return {name: load(study(tmp_path_factory.mktemp(name), privacy)) for name, privacy in PLANS.items()}


def test_a_policy_without_limits_allows_every_plan(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        assert policy_objections(plan, Policy()) == ()
        assert set(releases_of(plan)) <= set(RELEASES)


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        (Policy(minimum_sites=4), {"consortium": "minimum_sites: is 4, and the plan's roster has 3"}),
        (Policy(maximum_colluders=2), {"consortium": "maximum_colluders: is 2, and the plan's noise holds against 1"}),
        (Policy(release=("noised-sums",)), {"none": "release: does not have 'updates'", "tables": "'tables'"}),
        (Policy(release=()), dict.fromkeys(PLANS, "release: does not have")),
        (Policy(epsilon_study=1.0), dict.fromkeys(NOISED, "epsilon_study: is 1, and the plan promises only 2")),
        (Policy(epsilon_total=9.0, delta_total=1e-6), dict.fromkeys(NOISED, "delta_total: is 1e-06")),
        (Policy(delta_total=1e-6), {}),
    ],
)  # fmt: skip
def test_rule_2_a_site_refuses_what_its_policy_does_not_allow(
    plans: dict[str, Plan], policy: Policy, refused: dict[str, str]
) -> None:
    for name, plan in plans.items():
        text = "\n".join(policy_objections(plan, policy))
        assert (text != "") == (name in refused), name
        assert refused.get(name, "") in text
        assert all(line.startswith("policy.") for line in text.splitlines())


def test_a_policy_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    folder = site(
        tmp_path,
        'epsilon_total = -1\ndelta_total = 1\nminimum_sites = 0\nrelease = ["everything"]\n',
    )
    with pytest.raises(ConfigError) as wrong:
        load_settings(folder)
    for key in ("epsilon_total", "delta_total", "minimum_sites", "release"):
        assert f"policy.{key}" in str(wrong.value)
    folder = site(tmp_path, "epsilon_total = 1.0\nepsilon_study = 2.0\norders = [5.0, 2.0, 2.0]\n")
    with pytest.raises(ConfigError) as wrong:
        load_settings(folder)
    assert "epsilon_study must not be above epsilon_total" in str(wrong.value)
    assert "orders must be some of 2, 3, 4, 6, 9, 14, 24, 48, each once" in str(wrong.value)


def test_the_ledgers_policy_is_the_sites(tmp_path: Path) -> None:
    policy = load_settings(site(tmp_path, "epsilon_total = 9.0\norders = [4.0, 9.0]\n")).policy
    assert budget_policy(policy) == BudgetPolicy(epsilon_total=9.0, orders=(4.0, 9.0))
    assert {f.name for f in dataclasses.fields(BudgetPolicy)} <= set(Policy.model_fields)
    assert BudgetPolicy.from_body(budget_policy(policy).as_body()) == budget_policy(policy)


def test_no_message_of_a_ledger_has_a_path_to_a_patient(run: Run, state: Path) -> None:
    """Nothing that a patient has is given to a ledger, so nothing can be in it: its text is names, numbers and hashes."""
    content = (state / LEDGER_FILE).read_bytes()
    _, out, err = run("ledger", state)
    _, more, most = run("verify", state)
    for word in (b"patient_id", b"mrn", b".csv"):
        assert word not in content
        assert word.decode() not in out + err + more + most
