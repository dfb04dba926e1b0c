"""What an aggregator ships to the sites: names of two apps, and no code."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import oncofed_server

BUNDLE = Path(oncofed_server.__file__).parent / "bundle"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that Flower makes of it."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(BUNDLE, folder / "bundle")
    flower = Path(sys.executable).with_name("flwr")
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(folder / "home")}
    words = [flower, "build", "--app", folder / "bundle"]
    subprocess.run(words, cwd=folder, env={**os.environ, **quiet}, check=True, capture_output=True)
    (archive,) = folder.glob("*.fab")
    return archive


def test_the_archive_that_reaches_a_site_holds_no_code(shipped: Path):
    with zipfile.ZipFile(shipped) as archive:
        names = {n for n in archive.namelist() if not n.startswith(".info/")}
        assert names == {"pyproject.toml", "README.md", "LICENSE"}
        assert not [n for n in archive.namelist() if n.endswith((".py", ".pyc", ".so", ".pth"))]


def test_both_apps_are_what_is_installed():
    named = tomllib.loads((BUNDLE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["components"]
    assert named == {
        "serverapp": "oncofed_server.flower_server:app",
        "clientapp": "oncofed_client.flower_gate:app",
    }
    for component in named.values():
        module, name = component.split(":")
        assert hasattr(importlib.import_module(module), name)
