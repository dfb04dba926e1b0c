"""Small hospitals as files, and the command as a person runs it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from oncofed_client.site import Site
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.__main__ import main
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.folders import site_folders, write_table

Study = dict[str, Any]

SURVIVAL: Study = {
    "kind": "survival",
    "table": "clinical",
    "time": "os_days",
    "event": "os_event",
    "edges": [0, 90, 180, 365, 730, 1460],
    "horizon": 365,
}
RESPONSE: Study = {
    "kind": "classification",
    "table": "clinical",
    "label": "response",
    "classes": ["no", "yes"],
}
STAGE: Study = {
    "kind": "classification",
    "table": "clinical",
    "label": "grade",
    "classes": ["low", "middle", "high"],
    "weight": 0.5,
}
STUDY: Study = {
    "study": {"name": "world", "purpose": "find out whether the whole thing works"},
    "tasks": {"survival": SURVIVAL, "response": RESPONSE},
    "modalities": {
        "clinical": {
            "table": "clinical",
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
                "stage": {"kind": "ordinal", "order": ["I", "II", "III"]},
            },
        },
        "genes": {"table": "genes", "patterns": ["{gene}_rna"], "tokens": 2},
        "radiomics": {"table": "radiomics", "patterns": ["shape_*"]},
    },
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 8},
    "training": {"rounds": 4, "rate": 0.1, "validate_every": 2},
    "evaluation": {
        "split": {
            "column": "part",
            "table": "clinical",
            "train": ["train"],
            "validation": ["validation"],
            "test": ["test"],
        },
        "minimum_shown": 5,
        "minimum_events": 1,
        "score_bins": 32,
        "bootstrap": 50,
    },
    "simulation": {
        "site": {
            "tables": {name: {"file": f"{name}.csv"} for name in ("clinical", "genes", "radiomics")},
            "consent": {"basis": "invented patients", "reference": "none", "approved_by": "nobody"},
            "policy": {"minimum_cohort": 5},
        }
    },
}


@dataclass(kw_only=True)
class Hospital:
    """A hospital's tables as texts: {table: {column: [text per row]}}; every table has `patient_id`."""

    name: str
    tables: dict[str, dict[str, list[str]]]

    def write(self, root: Path) -> Path:
        """Write the folder, a file per table."""
        folder = root / self.name
        folder.mkdir(parents=True)
        for name, columns in self.tables.items():
            write_table(folder / f"{name}.csv", list(columns), list(zip(*columns.values(), strict=True)))
        return folder


def _clinical(rng: np.random.Generator, signal: np.ndarray[Any, Any], ids: list[str]) -> dict[str, list[str]]:
    count = len(ids)
    days = np.ceil(rng.exponential(500, count) * np.exp(-signal)).astype(int)
    yes = rng.random(count) < 1 / (1 + np.exp(-2 * signal))
    columns = {
        "patient_id": ids,
        "age": [f"{a:.1f}" for a in 60 + 8 * rng.standard_normal(count) + 3 * signal],
        "sex": [("female", "male")[k] for k in rng.integers(0, 2, count)],
        "stage": [("I", "II", "III")[k] for k in rng.integers(0, 3, count)],
        "os_days": [str(d) for d in days],
        "os_event": [str(int(e)) for e in rng.random(count) < 0.7],
        "response": [("no", "yes")[int(k)] for k in yes],
        "grade": [("low", "middle", "high")[k] for k in rng.integers(0, 3, count)],
        "part": [("train", "train", "train", "validation", "test")[i % 5] for i in range(count)],
        "consent": ["yes"] * count,
    }
    for name, every in (("age", 11), ("stage", 13), ("response", 7), ("os_days", 9), ("grade", 8)):
        columns[name] = ["" if i % every == every - 1 else v for i, v in enumerate(columns[name])]
    columns["os_event"] = ["" if d == "" else e for d, e in zip(columns["os_days"], columns["os_event"], strict=True)]
    return columns


def _hospital(name: str, count: int, rng: np.random.Generator, lacking: tuple[str, ...]) -> Hospital:
    ids = [f"{name}-{i:04d}" for i in range(count)]
    signal = rng.standard_normal(count)
    tables = {"clinical": _clinical(rng, signal, ids)}
    for table, names in (("genes", [f"G{g}_rna" for g in range(7)]), ("radiomics", [f"shape_{r}" for r in range(5)])):
        values = rng.standard_normal((count, len(names))) * 3 + 2 + signal[:, None]
        gaps = rng.random(values.shape) < 0.1
        columns = {n: ["" if gaps[i, j] else f"{values[i, j]:.6g}" for i in range(count)] for j, n in enumerate(names)}
        rows = [i for i in range(count) if i % 6 != 5]
        whole = {"patient_id": ids, **columns}
        if table not in lacking:
            tables[table] = {c: [v[i] for i in rows] for c, v in whole.items()}
    return Hospital(name=name, tables=tables)


def make_hospitals(sizes: Iterable[int] = (40, 30, 25), seed: int = 5) -> list[Hospital]:
    """Unequal hospitals with a signal; from two on, the last lacks radiomics and the first genes."""
    sizes = tuple(sizes)
    names = ("alpha", "beta", "gamma", "delta")
    several = len(sizes) > 1
    made = []
    for k, (name, count) in enumerate(zip(names, sizes, strict=False)):
        lacking = ("genes",) * (several and k == 0) + ("radiomics",) * (several and k == len(sizes) - 1)
        made.append(_hospital(name, count, np.random.default_rng([seed, k]), lacking))
    return made


def merged(content: Study, changes: Study) -> Study:
    """A study with changes; nested tables are merged, None removes a key."""
    made = copy.deepcopy(content)
    for key, value in changes.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict) and "kind" not in value:
            made[key] = merged(made[key], value)
        else:
            made[key] = copy.deepcopy(value)
    return made


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Assert one clear message with these words, this exit code, and no traceback."""
        assert self.code == code, self
        assert "Traceback" not in self.err, self.err
        assert not self.out, self.out
        for word in words:
            assert word in self.err, self.err


@dataclass(kw_only=True)
class World:
    """A folder with hospitals and a study."""

    root: Path
    content: Study = field(default_factory=lambda: copy.deepcopy(STUDY))
    hospitals: list[Hospital] = field(default_factory=make_hospitals)

    @property
    def sites(self) -> Path:
        """Folder of the hospitals."""
        return self.root / "sites"

    @property
    def study(self) -> Path:
        """The study's file."""
        return self.root / "study.toml"

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.root / "out"

    @property
    def plan(self) -> Plan:
        """The study, parsed."""
        return parse(self.content)

    def change(self, **changes: Any) -> World:
        """Change the study; see `merged`."""
        self.content = merged(self.content, changes)
        return self

    def write(self) -> World:
        """Write hospitals and study."""
        for hospital in self.hospitals:
            hospital.write(self.sites)
        return self.write_study()

    def write_study(self) -> World:
        """Write the study alone."""
        self.study.write_text(tomli_w.dumps(self.content), encoding="utf-8")
        return self

    def arguments(self, *more: str) -> list[str]:
        """Of `oncofed-simulate`, for a run of this world."""
        return ["run", str(self.study), "--sites", str(self.sites), "--out", str(self.out), *more]

    def consortium(self, **options: Any) -> Consortium:
        """The hospitals opened in this process, admitted and in their order."""
        plan = self.plan
        sites: dict[str, Site] = {}
        for folder in site_folders(self.sites):
            site = open_site(folder, plan, state=None, minimum=None)
            sites[site.name] = site
        return Consortium(plan=plan, sites=sites, externals={}, **{"store": self.root / "store", **options})


@pytest.fixture(scope="session")
def new_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """Make a world in a new folder."""

    def make(**parts: Any) -> World:
        return World(root=tmp_path_factory.mktemp("world"), **parts)

    return make


@pytest.fixture(scope="session")
def hospitals_of() -> Callable[..., list[Hospital]]:
    """Make hospitals: `make_hospitals`."""
    return make_hospitals


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """Three hospitals and a study of two tasks; `write` puts them on disk."""
    return new_world()


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`oncofed-simulate` in this process: its exit code and what it printed."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["oncofed-simulate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        out, err = capsys.readouterr()
        return Outcome(code=code if isinstance(code, int) else 0, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def executable() -> str:
    """The installed `oncofed-simulate`."""
    path = Path(sys.executable).with_name("oncofed-simulate")
    assert path.exists(), f"{path} is missing; run 'make install'"
    return str(path)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests that run a bare loop compute as a site does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
