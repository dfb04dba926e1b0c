"""`doctor` at the machine: disk, memory, versions, and what might talk to somebody else."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from oncofed_client.doctor_check import Check, ok, wrong

__all__ = ["LEAST_DISK", "LEAST_MEMORY", "disk_check", "memory_check", "phone_home_checks", "version_checks"]

LEAST_DISK, LEAST_MEMORY = 5 * 2**30, 3 * 2**30
"""Bytes: receipts, stored replies and prepared features; torch with a small network, beside Flower's processes."""
_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^;,*]+)")
"""Requirements of an extra have a marker behind a semicolon, and are not asked for."""
_FALLBACK = "the site's gate sets them itself"


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.1f} GiB"


def disk_check(state: Path, *, least: int = LEAST_DISK) -> Check:
    """Room where the state lies, or will lie."""
    place = state
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < least:
        return wrong("disk", f"{_size(free)} free at {place}", f"make room: at least {_size(least)}")
    return ok("disk", f"{_size(free)} free at {place}")


def memory_check(*, least: int = LEAST_MEMORY) -> Check:
    """Memory that processes could have now."""
    free = psutil.virtual_memory().available
    if free < least:
        return wrong("memory", f"{_size(free)} available", f"end other programs or add memory: at least {_size(least)}")
    return ok("memory", f"{_size(free)} available")


def version_checks(distribution: str = "oncofed") -> Iterator[Check]:
    """What is installed is what this version was tested with."""
    try:
        pins = requires(distribution) or []
        own = version(distribution)
    except PackageNotFoundError:
        yield wrong("versions", f"{distribution} is not installed as a package", "install it: see deploy/README.md")
        return
    problems = [line for pin in pins if (line := _differs(pin)) is not None]
    if problems:
        yield wrong(
            "versions",
            "; ".join(problems),
            f"install {distribution} {own} anew, with its constraints, into a fresh environment",
        )
        return
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("versions", f"{distribution} {own}, Python {python}, flwr {version('flwr')}, torch {version('torch')}")


def _differs(requirement: str) -> str | None:
    """In what an installed package differs from a pin; None where it does not, or where the requirement is no pin of ours."""
    pin = _PIN.fullmatch(requirement)
    if pin is None:
        return None
    try:
        found = version(pin["name"])
    except PackageNotFoundError:
        return f"{pin['name']}: is not installed"
    # A build for one kind of processor says so behind a plus sign.
    return None if found.split("+")[0] == pin["version"] else f"{pin['name']}: is {found}, expected {pin['version']}"


def phone_home_checks(environment: Mapping[str, str]) -> Iterator[Check]:
    """Nothing is set that would let Flower or Ray report home."""
    against = [f"{name}={environment[name]}" for name, off in _SWITCHES.items() if environment.get(name, off) != off]
    if against:
        off = " ".join(f"{name}={value}" for name, value in _SWITCHES.items())
        yield wrong("phone-home switches", f"set to report: {', '.join(against)}", f"set {off}")
    else:
        yield ok("phone-home switches", f"all off; {_FALLBACK}")
