"""The wheelhouse refuses what nobody listed; that it installs is shown by `make wheelhouse`, which moves a gigabyte."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILLED = ROOT / "dist" / "wheelhouse"


def _module():
    spec = importlib.util.spec_from_file_location("wheelhouse", ROOT / "deploy" / "wheelhouse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wheelhouse = _module()


def wheel(folder: Path, name: str, version: str, *, code: str = "", command: str = "") -> Path:
    """A wheel that pip installs."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        if command:
            archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{command} = {name}:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "wheels"
    made.mkdir()
    wheel(made, "alpha", "1.0")
    wheel(made, "beta_gamma", "2.5+cpu")
    (made / "constraints.txt").write_text("# pinned\nalpha==1.0\nBeta.Gamma==2.5\n", encoding="utf-8")
    wheelhouse.write_list(made)
    return made


def test_a_folder_that_is_as_it_was_listed_is_sound(folder: Path) -> None:
    assert wheelhouse.check(folder) == 2
    told = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True
    )
    assert told.stdout.count(b": OK") == 3


def _byte(folder: Path) -> None:
    path = folder / "alpha-1.0-py3-none-any.whl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_byte, "alpha-1.0-py3-none-any.whl: was changed"),
        (lambda f: wheel(f, "alpha", "1.1"), "alpha-1.1-py3-none-any.whl: is not on the list"),
        (lambda f: wheel(f, "evil", "1.0"), "evil-1.0-py3-none-any.whl: is not on the list"),
        (
            lambda f: (f / "alpha-1.0-py3-none-any.whl").unlink(),
            "alpha-1.0-py3-none-any.whl: is on the list and not here",
        ),
        (lambda f: (f / "constraints.txt").write_text("alpha==1.0\n"), "constraints.txt: was changed"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: cannot be read"),
        (lambda f: (f / "SHA256SUMS").write_text("x\n"), "line 1 is not a hash"),
        (lambda f: (f / "SHA256SUMS").write_bytes(b"\xff\n"), "SHA256SUMS: cannot be read"),
    ],
)
def test_what_is_not_as_listed_is_refused(folder: Path, change: Callable[[Path], object], said: str) -> None:
    change(folder)
    with pytest.raises(wheelhouse.WheelhouseError) as refused:
        wheelhouse.check(folder)
    assert any(said in line for line in refused.value.args), refused.value.args
    with pytest.raises(SystemExit) as ended:
        wheelhouse.main(["check", str(folder)])
    assert said in str(ended.value.code)


def test_a_pin_without_its_wheel_and_a_wheel_of_another_version_are_named(folder: Path) -> None:
    (folder / "constraints.txt").write_text("alpha==1.1\nBeta.Gamma==2.5\ndelta==1\n", encoding="utf-8")
    wheelhouse.write_list(folder)
    with pytest.raises(wheelhouse.WheelhouseError) as refused:
        wheelhouse.check(folder)
    assert refused.value.args == (
        f"{folder}: alpha 1.1 is pinned, and here is 1.0",
        f"{folder}: delta 1 is pinned, and here is none",
    )


@pytest.mark.slow
def test_a_trial_installs_from_the_folder_alone_and_names_a_command_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for oncofed that has one command: pip's own settings do not count."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    wheel(folder, "oncofed", "0.1.0", code="def main():\n    pass\n", command="oncofed-site")
    wheelhouse.write_list(folder)
    with pytest.raises(wheelhouse.WheelhouseError, match=r"bin/oncofed-aggregator --help: No such file"):
        wheelhouse.try_out(folder, sys.executable)


@pytest.mark.skipif(not (FILLED / "SHA256SUMS").exists(), reason="dist/wheelhouse is not filled: make wheelhouse")
@pytest.mark.slow
def test_the_filled_wheelhouse_installs_without_a_network() -> None:
    assert wheelhouse.check(FILLED) == len(wheelhouse.pins(ROOT / "constraints.txt")) + 1
    unshared = ["unshare", "--net"] if subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0 else []
    words = [*unshared, sys.executable, str(ROOT / "deploy" / "wheelhouse.py"), "try", str(FILLED)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "installed from without a network" in said
