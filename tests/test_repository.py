"""The repository as a whole: nothing of one machine in it, and every dependency declared, pinned and explained."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
THIS = Path(__file__).resolve()
TEXT = {".cfg", ".css", ".html", ".j2", ".json", ".md", ".py", ".svg", ".toml", ".txt", ".yaml", ".yml", ".sh", ""}
BUILT = {".git", ".venv", "out", "dist", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
# Where the units and images of deploy/ have oncofed is a promise and no machine's own.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/:<-])/(?!(?:opt|srv)/oncofed\b)(?:home|root|work|tmp|Users|mnt|srv|opt|media|private)/[\w.]"
)
PUBLIC_REGISTRIES = (
    "pypi.org", "pythonhosted.org", "download.pytorch.org", "anaconda.org", "registry.npmjs.org", "crates.io",
    "proxy.golang.org", "docker.io", "ghcr.io", "quay.io", "gcr.io", "mcr.microsoft.com",
)  # fmt: skip
# Imported under another name, or by way of a package that documents it as its own.
PROVIDED_BY = {
    "click": "typer", "markupsafe": "jinja2", "sklearn": "scikit-learn", "sksurv": "scikit-survival",
    "grpc": "grpcio", "dp_accounting": "dp-accounting", "radiomics": "pyradiomics", "tomli_w": "tomli-w",
    "pywt": "pywavelets", "google": "protobuf", "grpc_health": "grpcio-health-checking",
}  # fmt: skip
FIXED = {
    "flwr", "torch", "opacus", "monai", "pyradiomics", "pydicom", "pandas", "cryptography", "grpcio", "pytest",
}  # fmt: skip


@cache
def files() -> tuple[Path, ...]:
    """Files that are tracked, or would be; without git, all but what is built."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        output = subprocess.run(listed, capture_output=True, check=True, text=True).stdout
        found = [ROOT / name for name in output.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [p for p in ROOT.rglob("*") if not BUILT & set(p.relative_to(ROOT).parts)]
    return tuple(p for p in sorted(found) if p.is_file() and not p.is_symlink())


def texts() -> dict[str, str]:
    chosen = [p for p in files() if p.suffix in TEXT and p != THIS]
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in chosen}


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """Exact versions of a constraints file, by normalised name."""
    found = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            name, _, version = text.partition("==")
            found[normal(name)] = version
    return found


def declared() -> dict[str, str]:
    """Dependencies of pyproject.toml with their versions, by normalised name; extras left out of the name."""
    wanted = [*project()["project"]["dependencies"]]
    for extra in project()["project"].get("optional-dependencies", {}).values():
        wanted += extra
    found = {}
    for requirement in wanted:
        name, _, version = requirement.partition("==")
        found[normal(name.split("[")[0])] = version
    return found


def test_no_file_holds_a_path_of_one_machine():
    found = [f"{n}: {m.group()}" for n, t in texts().items() for m in MACHINE_PATH.finditer(t)]
    assert not found


def registry_hosts() -> set[str]:
    """Public registries, and whatever this machine has pip configured to use."""
    ask = [sys.executable, "-m", "pip", "config", "list"]
    configured = subprocess.run(ask, capture_output=True, check=False, text=True).stdout
    configured += "\n".join(v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_")))
    hosts = {urlsplit(u).hostname for u in re.findall(r"https?://[^\s'\"]+", configured)}
    return {h for h in hosts if h} | set(PUBLIC_REGISTRIES)


def test_no_file_names_a_registry():
    hosts = registry_hosts()
    assert not [f"{n}: names a registry" for n, t in texts().items() if any(h in t for h in hosts)]


def test_no_file_is_large():
    assert not [str(p.relative_to(ROOT)) for p in files() if p.stat().st_size > 1_000_000]


def test_every_dependency_is_pinned_to_the_version_that_is_declared():
    constraints = pins("constraints.txt")
    assert {n: constraints.get(n) for n in declared()} == declared()
    assert all(re.fullmatch(r"[\w.!+]+", v) for v in constraints.values())


def test_what_builds_is_pinned_like_the_rest():
    build, constraints = pins("constraints-build.txt"), pins("constraints.txt")
    assert {normal(r) for r in project()["build-system"]["requires"]} <= set(build)
    both = set(build) & set(constraints)
    assert {n: build[n] for n in both} == {n: constraints[n] for n in both}


def test_what_is_installed_is_what_is_pinned():
    installed = {n: importlib.metadata.version(n).split("+")[0] for n in declared()}
    assert installed == declared()


def imports() -> set[str]:
    """Top-level names that the packages import from others."""
    found: set[str] = set()
    for path in files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {a.name.split(".")[0] for a in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(str(node.module).split(".")[0])
    return {n for n in found if n not in sys.stdlib_module_names and not n.startswith("oncofed_")}


def test_every_import_is_of_a_declared_dependency():
    assert {normal(PROVIDED_BY.get(n, n)) for n in imports()} <= set(declared())


def rows(decision: str) -> set[str]:
    text = (ROOT / "docs" / "adr" / decision).read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([\w.-]+)` \|", text, re.MULTILINE))


def test_every_dependency_that_was_chosen_has_its_reason():
    build = {normal(r) for r in project()["build-system"]["requires"]}
    assert {normal(n) for n in rows("0002-dependencies.md")} == (set(declared()) - FIXED) | build


def test_the_decision_says_which_dependencies_wait_for_their_code():
    text = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text(encoding="utf-8")
    waiting = set(re.findall(r"^\| `([\w.-]+)` \|.*not imported", text, re.MULTILINE | re.IGNORECASE))
    runtime = {normal(r.split("==")[0].split("[")[0]) for r in project()["project"]["dependencies"]} - FIXED
    assert waiting == runtime - {normal(PROVIDED_BY.get(n, n)) for n in imports()}


def test_every_decision_weighs_options_and_says_what_it_costs():
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [p.name[:4] for p in decisions] == [f"{i:04}" for i in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]} ")
        missing = [w for w in ("ptions", "**Outcome", "**What it costs.**") if w not in text]
        assert not missing, f"{path.name}: {missing}"


def test_every_command_that_is_installed_exists():
    for name, target in project()["project"].get("scripts", {}).items():
        entry = importlib.metadata.EntryPoint(name=name, value=target, group="console_scripts")
        assert callable(entry.load()), name


def test_the_licence_is_the_full_apache_text():
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    assert text.startswith("Apache License Version 2.0, January 2004")
    for part in (
        "TERMS AND CONDITIONS",
        "9. Accepting Warranty",
        "END OF TERMS AND CONDITIONS",
        "limitations under the License.",
    ):
        assert part in text
    assert "Copyright [yyyy] [name of copyright owner]" in text


@pytest.mark.parametrize("bad", ["see /home/anna/data", "x = '/ro" + "ot/y'", "(/" + "work/main)"])
def test_the_check_for_paths_notices(bad):
    assert MACHINE_PATH.search(bad)


@pytest.mark.parametrize(
    "fine", ["out/wo" + "rk/x", "https://example.org/home/x", "../tmp/x", "a/opt/b", "/opt/oncofed/bin"]
)
def test_the_check_for_paths_leaves_others_alone(fine):
    assert not MACHINE_PATH.search(fine)
