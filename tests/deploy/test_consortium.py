"""A consortium of real processes, from enrolment to the report: what it computes, what it charges, what crossed, what survived."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shlex
import stat
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "world"))

from running import ROOT, STUDIES, Service, needs_proxy, until  # noqa: E402
from test_nothing_crosses import found, number_forms, row_forms, text_forms  # noqa: E402 - lies in another folder
from whole_run import KINDS, NUMBERS, OPEN, PATIENT, PRIVATE, SITES, TEXTS, WholeRun, whole_run  # noqa: E402

from oncofed_client.budget import epsilon_of_charges  # noqa: E402
from oncofed_client.daemon_client import healthy  # noqa: E402
from oncofed_client.gate.fence import can_be_fenced  # noqa: E402
from oncofed_client.identity import public_half  # noqa: E402
from oncofed_client.ledger import LEDGER_FILE  # noqa: E402
from oncofed_client.ledger_verify import read_account  # noqa: E402
from oncofed_shared.plan import load  # noqa: E402
from oncofed_simulations.synthetic import write_cohort  # noqa: E402

pytestmark = [
    pytest.mark.deploy,
    needs_proxy,
    pytest.mark.skipif(not can_be_fenced(), reason="this kernel gives no process a network of its own"),
    # One run for all of them, so one worker.
    pytest.mark.xdist_group("consortium"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeRun]:
    with whole_run(tmp_path_factory.mktemp("consortium")) as made:
        for study in (OPEN, PRIVATE):
            made.consortium.aggregator("report", study, "--out", made.out(study))
        yield made


def result(run: WholeRun, study: str) -> dict:
    return json.loads((run.out(study) / "result.json").read_text())


def test_both_studies_end_by_themselves(run: WholeRun, capsys: pytest.CaptureFixture[str]):
    assert run.phases == {OPEN: "done", PRIVATE: "done"}
    with capsys.disabled():
        print(f"\nseconds: {run.seconds}\nMiB: {run.memory}")


def test_without_privacy_the_model_is_the_simulations_to_the_last_byte(run: WholeRun):
    made, reference = (folder / "model.safetensors" for folder in (run.out(OPEN), run.reference))
    assert made.read_bytes() == reference.read_bytes()
    known = json.loads((run.reference / "result.json").read_text())
    mine = result(run, OPEN)
    assert mine["plan_hash"] == known["plan_hash"]
    for task, metrics in known["tasks"].items():
        for metric, numbers in metrics.items():
            assert mine["tasks"][task][metric]["federated"]["overall"] == numbers["federated"]["overall"]


def test_one_process_of_each_kind_was_killed_and_another_took_its_place(run: WholeRun):
    assert set(run.killed) == set(KINDS)
    assert all(before != after for before, after in run.killed.values())


def test_every_ledger_says_what_the_report_says(run: WholeRun):
    sites = {s["name"]: s for s in result(run, PRIVATE)["sites"]}
    assert set(sites) == set(SITES)
    for name, hospital in run.hospitals.items():
        (plan,) = read_account(hospital.state / LEDGER_FILE, public_half(hospital.state)).all_plans()
        # The report says what the whole plan costs; the ledger reserved it at the approval, within the ninth digit.
        assert math.isclose(epsilon_of_charges(plan.charges, delta=plan.delta), sites[name]["epsilon"], rel_tol=1e-6)
        assert plan.delta == sites[name]["delta"]
        assert plan.state == "closed"
        train, *scores = plan.used
        planned = load(STUDIES / f"{PRIVATE}.toml")
        assert planned.training.rounds <= train <= planned.training.rounds + planned.privacy.spare_steps
        assert scores == [1, 1]
        # Charged is at least what was released: every reply that left with a charge has its entry.
        receipts = json.loads(run.consortium.site("outbox", hospital.data, "--study", run.ids[PRIVATE][:12], "--json"))
        assert 0 < sum(r["steps"] for r in receipts if r["kind"] == "Contribution") <= sum(plan.used)


def test_a_study_without_noise_charges_nothing(run: WholeRun):
    assert all(s["epsilon"] is None for s in result(run, OPEN)["sites"])


def test_nothing_of_a_patient_was_on_the_sockets_or_on_the_wire(run: WholeRun):
    wanted = {n: list(text_forms(t)) for n, t in TEXTS.items()} | {n: list(number_forms(v)) for n, v in NUMBERS.items()}
    import numpy as np  # noqa: PLC0415

    wanted["a row of expression"] = list(row_forms(np.array(run.row)))
    crossed = [c for h in run.hospitals.values() for _, c in h.tap.kept]
    wire = [bytes(c) for _, c in run.wire.kept]
    assert len(crossed) > 40
    assert sum(map(len, wire)) > sum(map(len, crossed)) / 2
    for content in (*crossed, *wire):
        assert found(content, wanted) == set()
    # The search would see them: they are in the hospital's own files.
    files = b"".join(p.read_bytes() for p in run.hospitals[SITES[1]].data.glob("*.csv"))
    assert set(TEXTS) <= found(files, wanted)
    # What is printed and noted, and what the aggregator keeps.
    notes = list(run.consortium.folder.glob("*.log"))
    kept = [p for p in run.consortium.hub.rglob("*") if p.is_file()]
    outs = [p for study in (OPEN, PRIVATE) for p in run.out(study).rglob("*") if p.is_file()]
    for path in (*notes, *kept, *outs):
        assert found(path.read_bytes(), wanted) == set(), path


def test_the_taps_saw_what_crossed(run: WholeRun):
    """What the daemon was asked came over the wire, and what it answered went back over it, whole."""
    up = b"\0".join(bytes(c) for way, c in run.wire.kept if way == "up")
    answers = [c for h in run.hospitals.values() for way, c in h.tap.kept if way == "up"]
    assert all(a in up for a in answers)


def test_the_same_request_was_always_answered_with_the_same_bytes(run: WholeRun):
    for hospital in run.hospitals.values():
        answers = defaultdict(set)
        kept = iter(hospital.tap.kept)
        for (_, asked), (_, answered) in zip(kept, kept, strict=False):
            answers[hashlib.sha256(asked).digest()].add(answered)
        assert all(len(several) == 1 for several in answers.values())


def test_every_sites_records_hold(run: WholeRun):
    for hospital in run.hospitals.values():
        run.consortium.site("verify", hospital.data)
        receipts = json.loads(run.consortium.site("outbox", hospital.data, "--json"))
        assert {"Description", "Update", "Tables", "Contribution"} <= {r["kind"] for r in receipts}


def test_a_site_takes_the_model_and_applies_it(run: WholeRun):
    hospital = run.hospitals[SITES[2]]
    model, table = run.consortium.folder / "fetched.safetensors", run.consortium.folder / "risks.csv"
    run.consortium.site("model", "fetch", OPEN, "--site", hospital.data, "--out", model)
    assert model.read_bytes() == (run.out(OPEN) / "model.safetensors").read_bytes()
    run.consortium.site("predict", hospital.data, "--model", model, "--out", table)
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    with table.open(newline="") as file, (hospital.data / "clinical.csv").open(newline="") as own:
        rows = list(csv.DictReader(file))
        assert {r["patient_id"] for r in rows} <= {r["patient_id"] for r in csv.DictReader(own)}
    assert all(0 < float(r["survival.risk"]) < 1 for r in rows)


def test_an_outsider_can_check_a_dossier(run: WholeRun):
    hospital, page = run.hospitals[SITES[1]], run.consortium.folder / "dossier.html"
    run.consortium.site("dossier", PRIVATE, "--site", hospital.data, "--out", page)
    assert PATIENT not in page.read_text()
    assert "sound" in run.consortium.site("verify", "--dossier", page.with_suffix(".json"))


def test_the_doctor_finds_a_running_site_sound(run: WholeRun):
    hospital = run.hospitals[SITES[0]]
    said = json.loads(run.consortium.site("doctor", hospital.data, "--socket", hospital.socket, "--json"))
    assert said["sound"]


def test_status_shows_that_both_studies_are_done(run: WholeRun):
    shown = json.loads(run.consortium.aggregator("status", "--json"))
    assert {s["name"]: s["phase"] for s in shown["studies"]} == {OPEN: "done", PRIVATE: "done"}
    assert OPEN in run.consortium.aggregator("status")


def figures(text: str) -> dict[str, dict[frozenset[str], float]]:
    """What Prometheus reads: by name, by the values of labels."""
    return {
        f.name: {frozenset(s.labels.values()): s.value for s in f.samples if not s.name.endswith("_created")}
        for f in text_string_to_metric_families(text)
    }


def test_figures_of_the_aggregator_are_those_of_status_and_report(run: WholeRun):
    with urllib.request.urlopen(f"http://127.0.0.1:{run.consortium.figures}/metrics", timeout=30) as answer:
        told = figures(answer.read().decode())
    for row in json.loads(run.consortium.aggregator("status", "--json"))["studies"]:
        own = {row["id"][:12], row["name"]}
        assert told["oncofed_study_round"][frozenset(own)] == row["rounds"]
        assert told["oncofed_study_bytes"][frozenset(own | {"in"})] == row["bytes_up"] > 0
        assert told["oncofed_study_phase"][frozenset(own | {"done"})] == 1
        if row["name"] == PRIVATE:
            for site in result(run, PRIVATE)["sites"]:
                assert told["oncofed_study_epsilon"][frozenset(own | {site["name"]})] == site["epsilon"]
    # One of each kind was killed, and whoever keeps them has counted; who was connected in the last minute is known.
    for program in ("SuperLink", "proxy"):
        assert told["oncofed_program_starts"][frozenset({program})] >= 2
    # A fourth joins in another test, and tests run in any order.
    shown = {site for key in told["oncofed_site_online"] for site in key}
    assert shown - {"data"} == set(SITES)


def test_figures_of_a_site_are_those_of_its_receipts_and_its_ledger(run: WholeRun):
    for hospital in run.hospitals.values():
        receipts = json.loads(run.consortium.site("outbox", hospital.data, "--json"))
        printed = figures(run.consortium.site("metrics", hospital.data))
        file, name = hospital.figures / "oncofed-daemon.prom", "oncofed_site_released_bytes"
        until(lambda file=file, name=name, wanted=printed[name]: figures(file.read_text())[name] == wanted, 60.0)
        for study in run.ids.values():
            size = sum(r["size"] for r in receipts if r["study_id"] == study)
            assert printed[name][frozenset({study[:12]})] == size
        assert printed["oncofed_site_epsilon_spent"][frozenset({"colluders"})] > 0
        gate = figures((hospital.figures / "oncofed-gate.prom").read_text())
        assert gate["oncofed_site_program_up"][frozenset({"gate"})] == 1


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's first fenced block, as words."""
    block = page.read_text(encoding="utf-8").split("```")[1]
    return [shlex.split(line) for line in block.splitlines() if line.strip()]


def test_five_commands_make_an_empty_machine_a_running_site(run: WholeRun):
    """A fourth hospital joins the aggregator that runs, by the very lines of deploy/README.md."""
    consortium = run.consortium
    folder = consortium.folder / "fourth"
    write_cohort(folder, sites=1, patients=30, seed=11)
    (folder / "site-1").rename(folder / "data")
    (folder / "data" / "site.toml").unlink()
    (folder / "data").chmod(0o700)
    install, init, request, answer, start = commands(ROOT / "deploy" / "README.md")
    assert install == ["make", "install"]
    # Where this runs from what `make install` made, that command has nothing to do; elsewhere it would make another environment.
    dry = () if (ROOT / ".venv" / ".installed").exists() else ("-n",)
    subprocess.run([*install, *dry], cwd=ROOT, check=True, capture_output=True)
    program = ".venv/bin/oncofed-site"
    assert {words[0] for words in (init, request, answer, start)} == {program}

    def here(words: list[str]) -> list[str]:
        return consortium.words("client", *words[1:])

    def do(words: list[str]) -> None:
        ended = subprocess.run(
            here(words), cwd=folder, env=consortium.environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr

    do(init)
    settings = folder / "data" / "site.toml"
    text = settings.read_text(encoding="utf-8")
    head, _, tail = text.partition("[consent]")
    settings.write_text(
        f'{head}[consent]\ntable = "clinical"\ncolumn = "consent"\nvalue = "yes"\n{tail}', encoding="utf-8"
    )
    do(request)
    consortium.aggregator("enrol", folder / "request.json", "--out", folder / "answer.json")
    do(answer)
    # A test's folder has a longer name than a socket's path may have.
    socket = consortium.short / "fourth" / "daemon.sock"
    service = Service(
        [*here(start), "--socket", str(socket)], consortium.folder / "fourth.log", consortium.environment, folder
    )
    service.start()
    until(lambda: healthy(socket), 120.0, service.log.read_text)
    until(lambda: "SuperNode ID" in service.log.read_text(errors="replace"), 120.0, service.log.read_text)
    assert service.stop() == 0
    assert not socket.exists()
