"""`oncofed-site review`, `approve`, `withdraw`: what is asked, in plain words, and what this site refuses."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oncofed_client.approvals import approved
from oncofed_client.contributor import Contributor
from oncofed_client.identity import public_half
from oncofed_client.known_rosters import keep_roster
from oncofed_client.leaving import exchanges, leaving
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_verify import read_account
from oncofed_client.predicting import read_model
from oncofed_client.reserving import known_parameters
from oncofed_client.settings import load_settings
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_shared.charged_statistics import agreed_preparation, charges_statistics, statistics_size
from oncofed_shared.features import encoded_columns, no_sums, prepare
from oncofed_shared.layers import shared_layout
from oncofed_shared.messages import (
    Contribution,
    Description,
    Head,
    Open,
    Ready,
    Reduced,
    Summary,
    Tables,
    Trial,
    Update,
    from_bytes,
)
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.roster import write_roster
from oncofed_shared.signed_study import read_study
from oncofed_simulations.run import Options, run_study

from .conftest import OTHER_KEY, PLAN_KEY, PRIVATE, PRIVATE_PLAN, STEP_KEY, Papers, Run

Make = Callable[..., Plan]


def ids_of(site: Path) -> set[str]:
    text = (site / "clinical.csv").read_text()
    return {line.split(",")[0] for line in text.splitlines()[1:]}


def test_a_review_says_what_is_asked_what_leaves_and_what_it_costs(
    run: Run, site: Path, papers: Papers, make_plan: Make
):
    study = papers.study(make_plan(**PRIVATE_PLAN))
    code, out, err = run("review", study, "--site", site)
    assert (code, err) == (0, "")
    for words in (
        "purpose: a study that a test can wait for",
        "survival (main): the time to an event (os_event)",
        "clinical: table clinical: age, sex, stage",
        "outcome response: table clinical: response",
        "non-responder or responder (response)",
        "every column like shape_*",
        "sum of clipped gradients of a random sample of patients",
        "noise and mask",
        "Only the sum over 3 sites is ever seen",
        "it promises every patient epsilon 3 at delta 1e-05",
        "if all other sites collude:",
        "exchanges of about 3 s",
        "Nothing here speaks against it",
    ):
        assert words in out, words
    for key in (*papers.roster.values(), public_of(PLAN_KEY), public_of(STEP_KEY)):
        assert key_fingerprint(key) in out
    pooled, alone = (
        float(re.search(rf"{words}: +epsilon ([0-9.]+)", out)[1])
        for words in ("no more collude than it reckons with", "if all other sites collude")
    )
    assert pooled <= 3.003 < alone
    assert not any(patient in out for patient in ids_of(site))


def test_without_privacy_it_says_that_nothing_is_bounded(run: Run, site: Path, papers: Papers, make_plan: Make):
    code, out, _ = run("review", papers.study(make_plan()), "--site", site)
    assert code == 0
    assert "there is no bound on what it tells about one patient" in out
    assert "change of the model from training here, number of patients, sum of losses" in out
    assert "each site's update and mean training loss in every round" in out


REFUSED = {
    "policy": ('release = ["noised-sums"]', {}, "does not have 'updates'"),
    "few": ("minimum_cohort = 1000", {}, "asks for at least 1000"),
    "total": ("epsilon_total = 1.0", PRIVATE_PLAN, "epsilon"),
    "study": ("epsilon_study = 1.0", PRIVATE_PLAN, "policy.epsilon_study: is 1"),
    "colluders": ("maximum_colluders = 2", PRIVATE_PLAN, "policy.maximum_colluders"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_policy_that_says_no_says_so_in_review_and_approve(
    *, run: Run, site: Path, state: Path, papers: Papers, make_plan: Make, case
):
    policy, changes, said = REFUSED[case]
    text = (site / "site.toml").read_text()
    key = policy.split(" ")[0]
    text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
    (site / "site.toml").write_text(text.replace("[policy]\n", f"[policy]\n{policy}\n"))
    study = papers.study(make_plan(**changes))
    code, out, _ = run("review", study, "--site", site)
    assert code == 4
    assert "This site would refuse it" in out
    assert said in out
    code, _, err = run("approve", study, "--site", site)
    assert code == 4
    assert said in err
    assert approved(state) == {}


def test_wrong_files_are_exit_3_and_no_consent_is_exit_4(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    study = papers.study(make_plan())
    settings = (site / "site.toml").read_text()
    (site / "site.toml").write_text(re.sub(r"\[consent\][^[]*", "[consent]\n", settings))
    for command in ("review", "approve"):
        code, out, err = run(command, study, "--site", site)
        assert code == 4
        assert "nobody may enter" in out + err
    (site / "site.toml").write_text(settings)
    table = (site / "clinical.csv").read_text().splitlines()
    header = table[0].split(",")
    row = table[3].split(",")
    row[header.index("os_days")] = "-5123"
    (site / "clinical.csv").write_text("\n".join([*table[:3], ",".join(row), *table[4:]]) + "\n")
    for command in ("review", "approve"):
        code, out, err = run(command, study, "--site", site)
        assert code == 3
        assert "os_days" in out + err
        assert "-5123" not in out + err
    (site / "site.toml").write_text("nonsense")
    assert run("review", study, "--site", site)[0] == 3
    assert approved(state) == {}


def test_only_a_study_that_is_meant_for_this_site_is_approved(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    plan = make_plan()
    others = {n: k for n, k in papers.roster.items() if n != "site-1"}
    cases = {
        "another plan key": (papers.study(plan, "a", key=OTHER_KEY), "is enrolled under"),
        "expired": (papers.study(plan, "b", created=1.0, expires=time.time() - 1), "has expired"),
        "not in the roster": (papers.study(plan, "c", roster=others, quorum=2), "has no site site-1"),
        "another key": (papers.study(plan, "d", roster=others | {"site-1": public_of(OTHER_KEY)}), "has another key"),
    }
    for name, (study, said) in cases.items():
        code, out, _ = run("review", study, "--site", site)
        assert (code, said in out) == (4, True), name
        for options in ((), ("--counting",)):
            code, _, err = run("approve", study, "--site", site, *options)
            assert (code, said in err) == (4, True), name
    good = papers.study(plan, "e")
    content = good.read_bytes()
    good.write_bytes(content.replace(b"a study that a test", b"a study that a Test"))
    for command in ("review", "approve"):
        code, _, err = run(command, good, "--site", site)
        assert code == 3
        assert "signature" in err
    for content in (b"", b"{}", papers.enrolment.read_bytes()):
        good.write_bytes(content)
        assert run("approve", good, "--site", site)[0] == 3
    code, _, err = run("approve", "deadbeef", "--site", site)
    assert code == 3
    assert "is no file, and no study" in err
    assert approved(state) == {}


def test_a_revoked_site_of_the_roster_is_an_objection(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    revoked = {"site-3": (papers.roster["site-3"],)}
    left = {n: k for n, k in papers.roster.items() if n not in revoked}
    epoch = write_roster(number=2, issued=time.time() - 1, sites=left, revoked=revoked, key=PLAN_KEY)
    keep_roster(state, epoch, plan_key=public_of(PLAN_KEY), now=time.time())
    code, out, _ = run("review", papers.study(make_plan()), "--site", site)
    assert code == 4
    assert "by roster epoch 2 the key of site-3 is revoked" in out
    # A study of a later epoch than any that came here was signed by somebody who knew more.
    code, out, _ = run("review", papers.study(make_plan(), "later", epoch=3), "--site", site)
    assert code == 0


def test_an_approval_is_of_one_file_and_is_taken_back(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    study = papers.study(make_plan())
    known = read_study(study.read_bytes(), plan_key=public_of(PLAN_KEY))
    code, out, _ = run("approve", study, "--site", site, "--counting")
    assert code == 0
    assert approved(state) == {}
    assert set(approved(state, scope="counting")) == {known.id}
    code, out, _ = run("approve", study, "--site", site, "--by", "Dr. A")
    assert code == 0
    assert known.id in out
    assert set(approved(state)) == {known.id}
    study.unlink()
    code, out, _ = run("review", known.id[:12], "--site", site)
    assert code == 0
    code, out, _ = run("withdraw", known.id[:8], "--site", site, "--reason", "the board said so")
    assert code == 0
    assert approved(state) == approved(state, scope="counting") == {}
    code, _, err = run("withdraw", "small", "--site", site, "--reason", "again")
    assert code == 4
    assert "was withdrawn already" in err
    assert run("withdraw", known.id[:5], "--site", site, "--reason", "x")[0] == 3
    assert run("withdraw", known.id, "--site", site)[0] == 2


def test_without_an_enrolment_nothing_is_approved(run: Run, site: Path, state: Path, papers: Papers, make_plan: Make):
    (state / "enrolment.json").unlink()
    study = papers.study(make_plan())
    code, out, _ = run("review", study, "--site", site)
    assert code == 4
    assert "is not enrolled" in out
    assert run("approve", study, "--site", site)[0] == 4
    (state / "enrolment.json").write_bytes(b"{}")
    code, _, err = run("review", study, "--site", site)
    assert code == 3
    assert "enrolment.json" in err


HOLDERS_PLAN = {
    "strategy__average": "holders",
    "modalities__mutations__reduction": {"kind": "lasso", "keep": 4},
    "modalities__shape__reduction": {"kind": "pca", "components": 2},
}
"""Changes under which a site sends counts by modality, and sums before the training."""


CLINICAL = {
    "table": "clinical",
    "tokens": "columns",
    "scaling": "none",
    "columns": {
        "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
        "sex": {"kind": "categorical", "categories": ["female", "male"]},
    },
}
LISTED = {
    "privacy": PRIVATE | {"statistics_epsilon": 15.0},
    "modalities": {
        "clinical": CLINICAL,
        "mutations": {
            "table": "mutations",
            "patterns": ["{gene}_mut"],
            "vocabulary": ["TP53_mut", "KRAS_mut", "EGFR_mut", "PTEN_mut", "NOWHERE_mut"],
            "scaling": "none",
            "range": [0, 1],
            "reduction": {"kind": "lasso", "keep": 3, "bound": 1.0},
        },
    },
}
"""Changes that make it one whose genes are a public list, and reduced inside the budget."""


LOCATED = {
    "privacy": PRIVATE | {"statistics_epsilon": 4.0, "harmonise_epsilon": 2.0},
    "modalities": {
        "clinical": CLINICAL,
        "shape": {
            "table": "radiomics",
            "columns": {
                "shape_Sphericity": {"kind": "numeric", "range": [-2, 3]},
                "shape_Flatness": {"kind": "numeric", "range": [-2, 3]},
            },
            "harmonise": {"kind": "combat"},
            "reduction": {"kind": "pca", "components": 1},
        },
    },
}


def test_a_review_of_a_study_that_harmonises_and_reduces_inside_the_budget(
    run: Run, site: Path, papers: Papers, make_plan: Make
):
    plan = make_plan(**LOCATED)
    code, out, err = run("review", papers.study(plan), "--site", site)
    assert code == 0, out + err
    said = " ".join(out.split())
    assert "sums of products of each two columns of shape" in said
    assert "names of columns, as the plan has them" in said
    # 3 + 4 + 2 for who trains: the location is charged, and not among what leaves.
    assert "it promises every patient epsilon 9 at delta 1e-05" in said
    assert (
        "where this site's own values lie, noised and charged to the ledger, is found from who trains, and kept" in said
    )
    assert "location" not in said.split("What would leave")[1].split("Privacy")[0]
    assert known_parameters(plan, seed=0)


@pytest.mark.parametrize(
    "changes", [{}, HOLDERS_PLAN, PRIVATE_PLAN, LISTED], ids=["none", "holders", "consortium", "reduced"]
)
def test_what_is_said_to_leave_is_what_leaves(
    hospitals: Path, make_plan: Make, tmp_path: Path, changes: dict[str, Any]
):
    """Numbers and sizes of messages are those of a real run."""
    plan = make_plan(training__rounds=3, training__validate_every=2, **changes)
    sent: list[object] = []
    names = ("site-1", "site-2", "site-3")
    options = Options(
        sites=hospitals,
        external=None,
        out=tmp_path / "out",
        only=names,
        baselines=False,
        tap=lambda direction, site, content: (
            sent.append(from_bytes(content)) if (direction, site) == ("up", "site-1") else None
        ),
    )
    run_study(plan, options)
    network = read_model(tmp_path / "out" / "model.safetensors").network
    said = {item.what: item for item in leaving(plan, shared_layout(plan, network).size)}
    # One reply per exchange; a set-up of keys is the part of a run that depends on how many sums are left.
    assert len(sent) == exchanges(plan)
    if isinstance(plan.privacy, NoPrivacy):
        kinds = {
            Update: "change of the model",
            Tables: "table of",
            Summary: "sums over",
            Description: "names of columns",
        }
        # Sums of all reductions go in one message.
        reduced = [item.times for what, item in said.items() if "(reduction of" in what]
        assert sum(isinstance(r, Reduced) for r in sent) == max(reduced, default=0)
        assert any("for each modality" in what for what in said) == (plan.strategy.average == "holders")
        large = [(r.vector.nbytes, "change") for r in sent if isinstance(r, Update)]
    else:
        first = ("statistics of", "sum of clipped", "histogram", "tables")
        kinds = {Contribution: first, Description: "names of columns"}
        large = [(len(r.content), "clipped") for r in sent if isinstance(r, Contribution)]
        before = sum(item.times for what, item in said.items() if what.startswith("statistics of"))
        large = large[before : before + 3]
    for kind, starts in kinds.items():
        promised = sum(item.times for what, item in said.items() if what.startswith(starts))
        found = sum(isinstance(r, kind) for r in sent)
        spare = 0 if isinstance(plan.privacy, NoPrivacy) or kind is Description else plan.privacy.spare_steps
        assert found == promised - spare
    assert large
    for size, words in large:
        item = next(i for w, i in said.items() if words in w)
        assert item.bytes <= size <= item.bytes + 300


NAMED = {"privacy": PRIVATE, "modalities": {"clinical": CLINICAL}}
"""Changes that make the small plan a private one whose columns are its constants."""
AT_THE_SITE = PRIVATE_PLAN | {
    "privacy": {k: PRIVATE[k] for k in ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")}
    | {"noise": "site"}
}


@pytest.mark.parametrize("changes", [NAMED, AT_THE_SITE, LISTED], ids=["consortium", "site", "reduced"])
def test_approving_a_private_study_reserves_all_of_it_and_withdrawing_frees_it(
    *, run: Run, site: Path, state: Path, papers: Papers, make_plan: Make, changes: dict[str, Any]
):
    """Protocol, rule 16: what the run asks for when it opens is what was reserved here, to the last digit."""
    plan = make_plan(**changes)
    study = papers.study(plan)
    assert run("approve", study, "--site", site, "--counting")[0] == 0
    assert not (state / LEDGER_FILE).exists()
    code, out, _ = run("approve", study, "--site", site)
    assert (code, "is reserved in the ledger" in out) == (0, True)
    account = read_account(state / LEDGER_FILE, public_half(state))
    (reserved,) = account.plans.values()
    assert reserved.state == "open"
    # A real site opens the run: the ledger takes the same charges, or it would refuse them as others.
    settings = load_settings(site)
    contributor = Contributor(
        site="site-1", state=state, identities=dict, policy=settings.policy, clock=time.time, synced=False
    )
    here = Site(FolderSource(site, settings, state=state), {plan.hash: plan}, minimum_cohort=1, contributor=contributor)
    head = Head(session="session-of-small", step=0, attempt=0, plan_hash=plan.hash, trial=Trial(seed=0))
    columns = {m: encoded_columns(v) or ("a", "b") for m, v in sorted(plan.modalities.items())}
    preparation = prepare(plan, columns, no_sums(plan, columns))
    if charges_statistics(plan):
        preparation = agreed_preparation(plan, columns, np.full(statistics_size(plan, columns), 1000.0))
        columns = preparation.columns
    answer = here.handle(Open(head=head, columns=columns, arrays=preparation.arrays()))
    contributor.ledger.close()
    assert isinstance(answer, Ready), here.journal
    assert read_account(state / LEDGER_FILE, public_half(state)).number == account.number
    code, out, _ = run("withdraw", "small", "--site", site, "--reason", "the board said so")
    assert (code, "is free again" in out) == (0, True)
    after = read_account(state / LEDGER_FILE, public_half(state))
    assert [p.state for p in after.plans.values()] == ["closed"]
    assert not after.total()


def test_two_studies_cannot_both_be_approved_on_one_budget(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    settings = site / "site.toml"
    text = re.sub(r"^epsilon_total = .*\n", "", settings.read_text(), flags=re.MULTILINE)
    settings.write_text(text.replace("[policy]\n", "[policy]\nepsilon_total = 5.0\n"))
    first, second = (
        papers.study(make_plan(study__purpose=purpose, **NAMED), name=name)
        for name, purpose in (("one", "The first of two."), ("two", "The second of two."))
    )
    assert run("approve", first, "--site", site)[0] == 0
    code, _, err = run("approve", second, "--site", site)
    assert (code, "policy.epsilon_total" in err) == (4, True)
    known = read_study(first.read_bytes(), plan_key=None)
    assert set(approved(state)) == {known.id}
    assert run("withdraw", known.id, "--site", site, "--reason", "the other one is better")[0] == 0
    assert run("approve", second, "--site", site)[0] == 0


def test_what_the_sites_agree_on_is_reserved_when_the_run_opens_and_that_is_said(
    run: Run, site: Path, state: Path, papers: Papers, make_plan: Make
):
    assert known_parameters(make_plan(**NAMED), seed=0)
    plan = make_plan(**PRIVATE_PLAN)
    assert known_parameters(plan, seed=0) is None
    code, out, _ = run("approve", papers.study(plan), "--site", site)
    assert (code, "is reserved when the run begins" in out) == (0, True)
    assert not (state / LEDGER_FILE).exists()
    assert run("withdraw", "small", "--site", site, "--reason", "x")[0] == 0
