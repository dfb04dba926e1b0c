"""A folder from which oncofed is installed without a network: every pinned wheel, our own, and a list of hashes.

`make wheelhouse` fills it, checks it and installs from it. `python deploy/wheelhouse.py check DIR` is for the machine that it was
carried to, and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["WheelhouseError", "check", "fill", "listed", "main", "pins", "try_out", "wheels_of", "write_list"]

ROOT = Path(__file__).resolve().parents[1]
LIST, CONSTRAINTS = "SHA256SUMS", "constraints.txt"
COMMANDS = ("oncofed-site", "oncofed-aggregator", "oncofed-simulate")
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._+-]+)")


class WheelhouseError(Exception):
    """The folder is not what its list says, or cannot be filled; one line per problem."""


def normal(name: str) -> str:
    """A project's name as all its spellings are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: Path) -> dict[str, str]:
    """Versions of a constraints file, by normal name."""
    lines = (line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def wheels_of(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """(version without its local part, file) of each wheel in a folder, by normal name (PEP 427)."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        found.setdefault(normal(name), []).append((version.partition("+")[0], path))
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_list(folder: Path) -> None:
    """Write the hashes of all wheels and of the constraints, in the form that `sha256sum --check` reads."""
    files = [*sorted(folder.glob("*.whl")), folder / CONSTRAINTS]
    text = "".join(f"{digest(path)}  {path.name}\n" for path in files)
    temporary = folder / f".{LIST}"
    temporary.write_text(text, encoding="ascii")
    temporary.replace(folder / LIST)


def listed(folder: Path) -> dict[str, str]:
    """What the list says: hash by name.

    Raises:
        WheelhouseError: there is no list, or a line of it is not one.
    """
    try:
        lines = (folder / LIST).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WheelhouseError(
            f"{folder / LIST}: cannot be read ({error}); fill the folder with `make wheelhouse`"
        ) from None
    found = [_LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise WheelhouseError(f"{folder / LIST}: line {found.index(None) + 1} is not a hash, two blanks and a name")
    return {m[2]: m[1] for m in found if m is not None}


def check(folder: Path) -> int:
    """Compare every file with the list, and every pin with the files.

    Returns:
        The number of wheels.

    Raises:
        WheelhouseError: a wheel is missing, changed, not on the list, or of another version than the constraints name.
    """
    known = listed(folder)
    there = {path.name for path in folder.iterdir() if path.suffix == ".whl" or path.name == CONSTRAINTS}
    problems = [f"{folder / name}: is on the list and not here" for name in sorted(known.keys() - there)]
    problems += [f"{folder / name}: is not on the list" for name in sorted(there - known.keys())]
    both = sorted(there & known.keys())
    problems += [f"{folder / name}: was changed" for name in both if digest(folder / name) != known[name]]
    if CONSTRAINTS in there:
        have = wheels_of(folder)
        for name, version in pins(folder / CONSTRAINTS).items():
            versions = [v for v, _ in have.get(name, [])]
            if versions != [version]:
                problems.append(f"{folder}: {name} {version} is pinned, and here is {' and '.join(versions) or 'none'}")
    if problems:
        raise WheelhouseError(*problems)
    return len(known) - 1


def fill(folder: Path, python: str) -> None:
    """Fetch or build every pinned wheel and our own. What is there already is taken as it is; what is not pinned goes.

    Args:
        python: with what `constraints-build.txt` names installed: what is published as source only is built with it.

    Raises:
        WheelhouseError: pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIST).unlink(missing_ok=True)
    shutil.copyfile(ROOT / CONSTRAINTS, folder / CONSTRAINTS)
    own = [path for _, path in wheels_of(folder).get("oncofed", [])]
    wanted = pins(folder / CONSTRAINTS)
    stale = [p for name, each in wheels_of(folder).items() for version, p in each if wanted.get(name) != version]
    for path in {*own, *stale}:
        path.unlink()
    # No resolving: the pins are the answer, and a wheel that nobody pinned is not fetched.
    build = [
        python,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    build += ["--find-links", str(folder), "--wheel-dir", str(folder)]
    for words in (["--requirement", str(folder / CONSTRAINTS)], [str(ROOT)]):
        if subprocess.run([*build, *words], check=False).returncode:  # noqa: S603 - our own words
            raise WheelhouseError(f"{folder}: pip could not fetch or build {words[-1]}; what it said stands above")
    write_list(folder)


def try_out(folder: Path, python: str) -> None:
    """Install into a new environment, from this folder and nothing else, and run the commands there.

    Raises:
        WheelhouseError: something is missing, or a command does not run.
    """
    with tempfile.TemporaryDirectory(prefix="oncofed-wheelhouse-") as place:
        there = Path(place) / "bin"
        # Isolated: neither pip's settings nor its environment may name another place.
        pip = [str(there / "python"), "-m", "pip", "--isolated", "--disable-pip-version-check"]
        offline = ["--quiet", "--no-cache-dir", "--no-index", "--find-links", str(folder)]
        steps = [
            [python, "-m", "venv", place],
            [*pip, "install", *offline, "--constraint", str(folder / CONSTRAINTS), "oncofed"],
            [*pip, "check"],
            *([str(there / command), "--help"] for command in COMMANDS),
            [str(there / "oncofed-aggregator"), "plan-key", "--out", str(Path(place) / "plan.key")],
        ]
        for words in steps:
            _run(words, Path(place))


def _run(words: list[str], folder: Path) -> None:
    line = " ".join(words)
    try:
        ended = subprocess.run(words, check=False, capture_output=True, text=True, cwd=folder)  # noqa: S603 - our own words
    except OSError as error:
        raise WheelhouseError(f"{line}: {error.strerror}") from None
    if ended.returncode:
        raise WheelhouseError(f"{line}: ended with {ended.returncode}", ended.stderr.strip())


def main(words: list[str] | None = None) -> None:
    """Fill, check or try a wheelhouse."""
    parser = argparse.ArgumentParser(
        prog="wheelhouse", description="A folder to install oncofed from without a network."
    )
    parser.add_argument("what", choices=("fill", "check", "try"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args(words)
    folder = given.folder.absolute()
    try:
        if given.what == "fill":
            fill(folder, sys.executable)
        count = check(folder)
        if given.what == "try":
            try_out(folder, sys.executable)
    except WheelhouseError as error:
        sys.exit("\n".join(map(str, error.args)))
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    done = {"fill": "filled", "check": "sound", "try": "installed from without a network, and its commands run"}[
        given.what
    ]
    print(f"{given.folder}: {done}; {count} wheels, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
