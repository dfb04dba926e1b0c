"""Who may import whom: the arrows of docs/adr/0001-layout.md, read from every import in the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_SEE = {
    "shared": set(),
    "strategies": {"shared"},
    "server": {"shared", "strategies"},
    "client": {"shared"},
    "simulations": {"shared", "strategies", "server", "client"},
}
MODULES = {path: folder for folder in MAY_SEE for path in sorted((ROOT / folder / f"oncofed_{folder}").rglob("*.py"))}
NAMES = {str(p.relative_to(ROOT)): p for p in MODULES}
FLOWER_FILE = re.compile(r"(app|flower\w*)\.py")
# What is measured against a part of Flower that has no public name calls that part, and nothing else does.
INSIDE_FLOWER = {"flower_secagg.py": ("flwr.common.secure_aggregation", "flwr.supercore.primitives.asymmetric")}
CORES = (
    "client/oncofed_client/site.py",
    "server/oncofed_server/aggregator.py",
    "server/oncofed_server/run_state.py",
)
NETWORK_AND_TIME = {"asyncio", "datetime", "flwr", "grpc", "http", "requests", "select", "socket", "ssl", "time"}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it, also for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide the arrow"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def reads_environment(path: Path) -> bool:
    wanted = {"environ", "environb", "getenv", "getenvb", "putenv"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in wanted:
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in wanted for a in node.names):
            return True
    return False


def test_every_folder_has_its_package():
    empty = [folder for folder in MAY_SEE if not (ROOT / folder / f"oncofed_{folder}" / "__init__.py").is_file()]
    assert not empty


@pytest.mark.parametrize("name", NAMES)
def test_a_module_sees_only_what_the_arrows_allow(name):
    folder = MODULES[NAMES[name]]
    own = {t.removeprefix("oncofed_") for t in tops(NAMES[name]) if t.startswith("oncofed_")}
    assert own - {folder} <= MAY_SEE[folder]
    assert not tops(NAMES[name]) & {"client", "server", "shared", "strategies", "simulations", "tests"}


@pytest.mark.parametrize("name", NAMES)
def test_flower_is_imported_at_the_edge_only_and_only_its_public_names(name):
    flower = {m for m in imported(NAMES[name]) if m.split(".")[0] == "flwr"}
    if not FLOWER_FILE.fullmatch(NAMES[name].name):
        assert not flower
    allowed = ("flwr.app", "flwr.clientapp", "flwr.serverapp", *INSIDE_FLOWER.get(NAMES[name].name, ()))
    assert all(m.startswith(allowed) for m in flower)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_arguments_and_only_main_may_read_the_environment(name):
    if NAMES[name].name != "__main__.py":
        assert not reads_environment(NAMES[name])


@pytest.mark.parametrize("name", CORES)
def test_the_two_cores_have_no_socket_no_flower_and_no_clock(name):
    assert not tops(ROOT / name) & NETWORK_AND_TIME


@pytest.mark.parametrize("commands", ["oncofed_client", "oncofed_server"])
def test_a_command_loads_nothing_that_takes_seconds_before_it_needs_it(commands):
    slow = {"dp_accounting", "flwr", "opacus", "pandas", "scipy", "sklearn", "torch"}
    program = f"import sys, {commands}.__main__; print(*{slow} & sys.modules.keys())"
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ended.stdout.split() == []


def test_nothing_unpickles():
    guilty = {n for n, p in NAMES.items() if tops(p) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}}
    guilty |= {n for n, p in NAMES.items() if "torch.load(" in p.read_text(encoding="utf-8")}
    assert not guilty


def test_the_check_itself_notices(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def f():\n    from oncofed_simulations.run import run_study\n    import flwr.server\n", encoding="utf-8"
    )
    assert {"oncofed_simulations", "flwr"} <= tops(bad)
    bad.write_text("import os\nHOME = os.environ['HOME']\n", encoding="utf-8")
    assert reads_environment(bad)
    bad.write_text("from os import getenv\n", encoding="utf-8")
    assert reads_environment(bad)
