"""What a person gets wrong ends in one clear message, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncofed_shared.errors import ExitCode

PRODUCTS = {"model.safetensors", "result.json", "report.html", "manifest.json"}
ON_THE_WAY = {"plan.json", "progress", "sites", "cohort"}
QUICK = {"training": {"rounds": 1, "validate_every": 1}}
ALL_YES = {
    "column": "consent",
    "value": "yes",
    "table": "clinical",
    "basis": None,
    "reference": None,
    "approved_by": None,
}


def nothing_half_written(out: Path) -> None:
    """No result, whole or in part, and no file on its way."""
    if out.exists():
        assert {p.name for p in out.iterdir()} <= ON_THE_WAY
        assert not list(out.rglob(".*"))


@pytest.fixture
def quick(world: Any) -> Any:
    return world.change(**QUICK)


def result_of(world: Any) -> dict[str, Any]:
    assert {p.name for p in world.out.iterdir()} == PRODUCTS | {"plan.json", "sites"}
    content: dict[str, Any] = json.loads((world.out / "result.json").read_bytes())
    return content


# -- the study --------------------------------------------------------------------------------------------------------------------


def test_unknown_keys_are_named_with_their_paths(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.change(training={"ronds": 3}, evaluation={"split": {"test_part": 1}}).write()
    outcome = simulate(*quick.arguments())
    outcome.refused(ExitCode.INPUT, "training.ronds", "unknown key", "evaluation.split", "study.toml")
    assert not quick.out.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[study\nname", "not valid TOML"), (b"\xff\xfe\x00", "UTF-8"), (None, "cannot be read")],
    ids=["not TOML", "not text", "absent"],
)
def test_a_study_that_cannot_be_read(
    content: bytes | None, words: str, quick: Any, simulate: Callable[..., Any]
) -> None:
    quick.write()
    if content is None:
        quick.study.unlink()
    else:
        quick.study.write_bytes(content)
    simulate(*quick.arguments()).refused(ExitCode.INPUT, "study.toml", words)
    assert not quick.out.exists()


def test_a_study_that_diverges_says_what_to_lower(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.change(training={"rounds": 60, "rate": 1e4}).write()
    outcome = simulate(*quick.arguments())
    outcome.refused(ExitCode.PEER, "training.rate")
    nothing_half_written(quick.out)


# -- a hospital's files -----------------------------------------------------------------------------------------------------------


def without_label(hospital: Any) -> None:
    del hospital.tables["clinical"]["os_days"]


def test_label_absent_at_one_site_leaves_the_others_to_go_on(quick: Any, simulate: Callable[..., Any]) -> None:
    without_label(quick.hospitals[1])
    outcome = simulate(*quick.write().arguments())
    assert outcome.code == 0, outcome
    result = result_of(quick)
    assert [s["name"] for s in result["sites"]] == ["alpha", "gamma"]
    (left_out,) = result["excluded"]
    assert left_out["name"] == "beta"
    assert "os_days" in left_out["why"]
    assert "beta" in (quick.out / "report.html").read_text(encoding="utf-8")


def test_label_absent_everywhere(quick: Any, simulate: Callable[..., Any]) -> None:
    for hospital in quick.hospitals:
        without_label(hospital)
    outcome = simulate(*quick.write().arguments())
    outcome.refused(ExitCode.INPUT, "no site can take part", "os_days", "alpha", "beta", "gamma", "clinical")
    nothing_half_written(quick.out)


def no_consent(hospital: Any) -> None:
    clinical = hospital.tables["clinical"]
    clinical["consent"] = ["no"] * len(clinical["patient_id"])


def test_nobody_consented_at_one_site(quick: Any, simulate: Callable[..., Any]) -> None:
    no_consent(quick.hospitals[0])
    quick.change(simulation={"site": {"consent": ALL_YES}})
    assert simulate(*quick.write().arguments()).code == 0
    (left_out,) = result_of(quick)["excluded"]
    assert left_out["name"] == "alpha"
    assert "consent" in left_out["why"]


def test_nobody_consented_anywhere(quick: Any, simulate: Callable[..., Any]) -> None:
    for hospital in quick.hospitals:
        no_consent(hospital)
    quick.change(simulation={"site": {"consent": ALL_YES}})
    outcome = simulate(*quick.write().arguments())
    outcome.refused(ExitCode.REFUSED, "no site can take part", "consent")
    nothing_half_written(quick.out)


def test_consent_that_is_not_stated_is_a_no(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.change(simulation={"site": {"consent": None}}).write()
    simulate(*quick.arguments()).refused(ExitCode.REFUSED, "no consent is stated")
    nothing_half_written(quick.out)


def text_in_a_number(clinical: dict[str, list[str]]) -> None:
    clinical["age"][6] = "sixty-four"


def infinite_value(clinical: dict[str, list[str]]) -> None:
    clinical["age"][6] = "inf"


def months_for_years(clinical: dict[str, list[str]]) -> None:
    clinical["age"] = [a and f"{12 * float(a):.1f}" for a in clinical["age"]]


def twice_the_same_patient(clinical: dict[str, list[str]]) -> None:
    clinical["patient_id"][6] = clinical["patient_id"][2]


BROKEN: dict[str, tuple[Callable[[dict[str, list[str]]], None], tuple[str, ...]]] = {
    "text in a numeric column": (text_in_a_number, ("row 8", "age", "number", "text")),
    "an infinite value": (infinite_value, ("row 8", "age", "infinite")),
    "a unit out of range": (months_for_years, ("age", "from 0 to 120 years", "units")),
    "duplicate ids": (twice_the_same_patient, ("row 8", "patient_id")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_at_one_site_are_named_and_the_others_go_on(
    case: str, quick: Any, simulate: Callable[..., Any]
) -> None:
    breaks, words = BROKEN[case]
    clinical = quick.hospitals[1].tables["clinical"]
    breaks(clinical)
    outcome = simulate(*quick.write().arguments("--no-baselines"))
    assert outcome.code == 0, outcome
    (left_out,) = result_of(quick)["excluded"]
    assert left_out["name"] == "beta"
    for word in ("clinical.csv", *words):
        assert word in left_out["why"], left_out
    for value in (
        "sixty-four",
        clinical["patient_id"][6],
        clinical["age"][6] if case == "a unit out of range" else "§",
    ):
        assert value not in left_out["why"]


def test_broken_files_everywhere_end_the_run(quick: Any, simulate: Callable[..., Any]) -> None:
    for hospital in quick.hospitals:
        text_in_a_number(hospital.tables["clinical"])
    outcome = simulate(*quick.write().arguments())
    outcome.refused(ExitCode.INPUT, "no site can take part", "row 8", "age", "clinical.csv")
    assert "sixty-four" not in outcome.err
    nothing_half_written(quick.out)


@pytest.mark.parametrize("kind", ["one class", "no event"])
def test_a_hospital_with_one_class_or_no_event_takes_part(kind: str, world: Any, simulate: Callable[..., Any]) -> None:
    """It helps to train; its own number does not exist, and the result says why."""
    clinical = world.hospitals[1].tables["clinical"]
    task, metric = ("response", "auc") if kind == "one class" else ("survival", "c_index")
    if kind == "one class":
        clinical["response"] = [r and "no" for r in clinical["response"]]
    else:
        clinical["os_event"] = [e and "0" for e in clinical["os_event"]]
    world.change(main_task=task, training={"rounds": 2}).write()
    assert simulate(*world.arguments()).code == 0
    result = result_of(world)
    assert result["excluded"] == []
    assert [s["trained"] for s in result["sites"]] == [True, True, True]
    arms = result["tasks"][task][metric]
    for arm in ("federated", "pooled", "alone"):
        assert arms[arm]["per_site"]["beta"] is None
        assert arms[arm]["why"]["beta"]
        assert arms[arm]["overall"] is not None
    assert arms["federated"]["per_site"]["alpha"] is not None


# -- folders ----------------------------------------------------------------------------------------------------------------------


def test_sites_that_are_not_there(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.write()
    base = ["run", str(quick.study), "--out", str(quick.out)]
    simulate(*base, "--sites", str(quick.root / "nowhere")).refused(ExitCode.INPUT, "nowhere", "is not a folder")
    simulate(*base, "--sites", str(quick.study)).refused(ExitCode.INPUT, "study.toml", "is not a folder")
    empty = quick.root / "empty"
    empty.mkdir()
    simulate(*base, "--sites", str(empty)).refused(ExitCode.INPUT, "no subfolder holds a table")
    simulate(*base, "--external", str(empty), "--sites", str(quick.sites)).refused(ExitCode.INPUT, "empty")
    simulate(*base).refused(ExitCode.INPUT, "[simulation.cohort]", "--sites")
    assert not quick.out.exists()


def test_a_site_folder_that_says_nothing_about_itself(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.change(simulation={"site": None}).write()
    simulate(*quick.arguments()).refused(ExitCode.INPUT, "alpha", "site.toml", "oncofed-site init")
    assert not quick.out.exists()


@pytest.fixture
def powerless(executable: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a user whom file permissions bind, also where the tests run as root."""
    command = [executable]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and setpriv, which would take that away, is not installed")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", executable]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def locked() -> Iterator[Callable[[Path, int], None]]:
    """Change permissions until the test is over."""
    before: list[tuple[Path, int]] = []

    def lock(path: Path, mode: int) -> None:
        before.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield lock
    for path, mode in reversed(before):
        path.chmod(mode)


@pytest.mark.parametrize("what", ["the folder of sites", "its parent", "a site's folder", "OUT's parent"])
def test_unreadable_folders(
    what: str,
    quick: Any,
    powerless: Callable[..., subprocess.CompletedProcess[str]],
    locked: Callable[[Path, int], None],
) -> None:
    quick.write()
    out = quick.out
    if what == "OUT's parent":
        parent = quick.root / "locked"
        parent.mkdir()
        out = parent / "out"
        locked(parent, 0o500)
    elif what == "its parent":
        inner = quick.root / "inner"
        inner.mkdir()
        quick.sites.rename(inner / "sites")
        locked(inner, 0o000)
    else:
        locked({"the folder of sites": quick.sites}.get(what, quick.sites / "beta"), 0o000)
    sites = quick.root / "inner" / "sites" if what == "its parent" else quick.sites
    ended = powerless("run", str(quick.study), "--sites", str(sites), "--out", str(out))
    assert ended.returncode == ExitCode.INPUT, ended
    assert "Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""
    nothing_half_written(quick.out)


def test_one_unreadable_table_leaves_the_others_to_go_on(
    quick: Any, powerless: Callable[..., subprocess.CompletedProcess[str]], locked: Callable[[Path, int], None]
) -> None:
    quick.write()
    locked(quick.sites / "beta" / "genes.csv", 0o000)
    ended = powerless(*quick.arguments("--no-baselines"))
    assert ended.returncode == 0, ended
    (left_out,) = result_of(quick)["excluded"]
    assert left_out["name"] == "beta"
    assert "genes.csv" in left_out["why"]


# -- OUT --------------------------------------------------------------------------------------------------------------------------


def test_out_that_is_not_ours_stays_as_it_is(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.write().out.mkdir()
    (quick.out / "thesis.txt").write_text("ten years of work")
    simulate(*quick.arguments()).refused(ExitCode.INPUT, "not the output of an earlier run")
    simulate(*quick.arguments("--resume")).refused(ExitCode.INPUT, "not the output of an earlier run")
    assert [p.name for p in quick.out.iterdir()] == ["thesis.txt"]
    simulate("run", str(quick.study), "--sites", str(quick.sites), "--out", str(quick.study)).refused(
        ExitCode.INPUT, "study.toml"
    )
    assert quick.study.read_text().startswith("[study]")


def test_resume_needs_the_same_run(quick: Any, simulate: Callable[..., Any]) -> None:
    quick.write()
    simulate(*quick.arguments("--resume")).refused(ExitCode.INPUT, "there is no run to resume")
    assert not quick.out.exists()
    assert simulate(*quick.arguments("--no-baselines")).code == 0
    before = {n: (quick.out / n).read_bytes() for n in PRODUCTS}
    elsewhere = quick.root / "elsewhere"
    shutil.copytree(quick.sites, elsewhere)
    for more in (
        ("--seeds", "1"),
        ("--only", "alpha,beta"),
        ("--min-patients", "6"),
        ("--sites", str(elsewhere)),
        ("--external", str(elsewhere)),
    ):
        simulate(*quick.arguments("--resume", *more)).refused(ExitCode.INPUT, "resume with the same ones", more[0])
    quick.change(training={"rate": 0.2}).write_study()
    simulate(*quick.arguments("--resume")).refused(ExitCode.INPUT, "holds a run of another study")
    assert {n: (quick.out / n).read_bytes() for n in PRODUCTS} == before


def test_a_run_that_cannot_begin_leaves_earlier_results(quick: Any, simulate: Callable[..., Any]) -> None:
    assert simulate(*quick.write().arguments("--no-baselines")).code == 0
    before = {n: (quick.out / n).read_bytes() for n in PRODUCTS}
    simulate(*quick.arguments("--sites", str(quick.root / "nowhere"))).refused(ExitCode.INPUT, "nowhere")
    simulate(*quick.arguments("--only", "nobody")).refused(ExitCode.INPUT, "--only")
    for folder in quick.sites.iterdir():
        (folder / "clinical.csv").write_text("patient_id,age\np,1\n")
    simulate(*quick.arguments()).refused(ExitCode.INPUT, "no site can take part")
    assert {n: (quick.out / n).read_bytes() for n in PRODUCTS} == before


# -- options ----------------------------------------------------------------------------------------------------------------------


def test_only_unknown_names(quick: Any, simulate: Callable[..., Any]) -> None:
    outcome = simulate(*quick.write().arguments("--only", "alpha, epsilon,omega"))
    outcome.refused(ExitCode.INPUT, "--only", "epsilon, omega", "alpha, beta, gamma")
    assert not quick.out.exists()


def test_only_some(quick: Any, simulate: Callable[..., Any]) -> None:
    assert simulate(*quick.write().arguments("--only", "alpha,gamma", "--no-baselines")).code == 0
    assert [s["name"] for s in result_of(quick)["sites"]] == ["alpha", "gamma"]


@pytest.mark.parametrize("seeds", ["", "one", "1,,2", "0,1,0", "-1", "1.5", "0 1"])
def test_malformed_seeds(seeds: str, quick: Any, simulate: Callable[..., Any]) -> None:
    simulate(*quick.write().arguments("--seeds", seeds)).refused(ExitCode.INPUT, "--seeds", "expected")
    assert not quick.out.exists()


@pytest.mark.parametrize("arguments", [(), ("--frobnicate",), ("--min-patients", "few"), ("--min-patients", "0")])
def test_usage(arguments: tuple[str, ...], quick: Any, simulate: Callable[..., Any]) -> None:
    complete = quick.write().arguments(*arguments) if arguments else ["run"]
    outcome = simulate(*complete)
    assert outcome.code == ExitCode.USAGE
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert not quick.out.exists()


def test_smallest_cohort(quick: Any, simulate: Callable[..., Any]) -> None:
    outcome = simulate(*quick.write().arguments("--min-patients", "1000"))
    outcome.refused(ExitCode.REFUSED, "alpha", "at least 1000")
    nothing_half_written(quick.out)


def test_quiet_when_nobody_looks(quick: Any, simulate: Callable[..., Any]) -> None:
    outcome = simulate(*quick.write().arguments("--no-baselines"))
    assert outcome.code == 0
    assert outcome.err == ""
    headline, where = outcome.out.splitlines()
    assert "survival" in headline
    assert where == f"report: {quick.out / 'report.html'}"
