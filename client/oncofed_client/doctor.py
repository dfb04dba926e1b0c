"""Whether a site's machine is ready for its first study, thing by thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from oncofed_client.doctor_check import Check, Verdict, guarded, ok, skipped, wrong
from oncofed_client.doctor_machine import disk_check, memory_check, phone_home_checks, version_checks
from oncofed_client.doctor_network import network_checks
from oncofed_client.doctor_state import data_checks, enrolment_checks, key_checks, ledger_checks, socket_checks
from oncofed_client.enrol import installed
from oncofed_client.settings import SiteSettings
from oncofed_client.whereabouts import SitePlace
from oncofed_shared.enrolment import Enrolment
from oncofed_shared.errors import OncofedError

__all__ = ["examine", "is_sound"]


def examine(
    place: SitePlace,
    *,
    environment: Mapping[str, str],
    clock: Callable[[], float],
    socket: Path | None = None,
) -> Iterator[Check]:
    """Look at everything, one thing after the other; a thing that fails never hides the next.

    Args:
        place: the site.
        environment: of this process.
        clock: seconds since 1970.
        socket: the daemon's, where it does not lie in the state.
    """
    settings: SiteSettings | None = None
    if place.data is not None:
        try:
            settings = place.settings()
            yield ok("site.toml", f"site {settings.site.name}")
        except OncofedError as error:
            yield wrong("site.toml", "; ".join(error.problems), "mend it; `oncofed-site check` says more")
    else:
        yield skipped("site.toml", "only the state was named")
    yield from guarded("data folder", lambda: data_checks(place.data, settings))
    yield from guarded("keys", lambda: key_checks(place.state))
    yield from guarded("ledger", lambda: ledger_checks(place.state))
    enrolment: Enrolment | None = None
    try:
        enrolment = installed(place.state)
        yield from enrolment_checks(enrolment, clock())
    except OncofedError as error:
        yield wrong("enrolment", "; ".join(error.problems), "oncofed-site enrol install, with the answer once more")
    yield from network_checks(enrolment, environment, clock=clock)
    yield disk_check(place.state)
    yield memory_check()
    yield from version_checks()
    yield from phone_home_checks(environment)
    yield from guarded("daemon socket", lambda: socket_checks(place.state, socket))


def is_sound(checks: tuple[Check, ...]) -> bool:
    """Whether nothing is wrong; what could not be looked at yet is not."""
    return all(c.verdict is not Verdict.WRONG for c in checks)
