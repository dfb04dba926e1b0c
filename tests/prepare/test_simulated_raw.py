"""A simulation over raw files prepares them by itself, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from oncofed_client.prepare.report import Report
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.bench_prepare import write_site
from oncofed_simulations.raw_prepare import clear_states
from oncofed_simulations.run import Options, run_study

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"


@pytest.fixture(scope="module")
def short_plan(demo_plan: Plan) -> Plan:
    content = demo_plan.model_dump(mode="json")
    content["training"] |= {"rounds": 2}
    content["evaluation"] |= {"minimum_shown": 1, "minimum_events": 1, "bootstrap": 50}
    return parse(content)


def test_a_run_over_raw_files_prepares_them_once(raw_sites: Path, short_plan: Plan, tmp_path: Path) -> None:
    told: dict[str, Report] = {}
    seen: list[tuple[str, int, int]] = []

    def run() -> None:
        told.clear()
        options = Options(
            sites=raw_sites,
            external=None,
            out=tmp_path / "out",
            min_patients=1,
            baselines=False,
            study=STUDIES,
            jobs=2,
            tell=lambda site, report: told.update({site: report}),
            prepared=lambda site, done, total: seen.append((site, done, total)),
        )
        run_study(short_plan, options)

    run()
    assert set(told) == {"site-1", "site-2"}
    assert all(r.made == r.patients["radiomics"] + 3 and not r.failures for r in told.values())
    for name, report in told.items():
        assert (name, report.made, report.made) in seen
        assert (tmp_path / "out" / "sites" / name / "cache" / "index").is_file()
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    run()
    assert all(r.made == 0 and r.found for r in told.values()), "what was prepared holds for the next run"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    options = Options(sites=raw_sites, external=None, out=tmp_path / "other", min_patients=1, baselines=False)
    with pytest.raises(ConfigError, match="the folder of the study is not known"):
        run_study(short_plan, options)


def test_states_are_cleared_but_for_what_was_prepared(tmp_path: Path) -> None:
    state = tmp_path / "sites" / "a"
    for kept in ("cache/p/entry", "site.key"):
        (state / kept).parent.mkdir(parents=True, exist_ok=True)
        (state / kept).write_text("x", encoding="ascii")
    (state / "parts").mkdir()
    (state / "parts" / "one.json").write_text("{}", encoding="ascii")
    clear_states(tmp_path / "sites")
    clear_states(tmp_path / "nowhere")
    assert sorted(p.name for p in state.rglob("*")) == ["cache", "entry", "p", "site.key"]


def test_the_bench_has_a_site_that_can_be_prepared(tmp_path: Path) -> None:
    from oncofed_simulations import bench_prepare  # noqa: PLC0415 - its private parts are what is tested

    plan = write_site(tmp_path, 3, 32)
    cases = bench_prepare._cases(tmp_path, plan)
    assert [c.patient for c in cases] == ["P000", "P001", "P002"]
    entry = bench_prepare.perform(cases[0])
    assert len(entry.columns) > 100
    assert bench_prepare._twice(tmp_path, plan).value < 1
