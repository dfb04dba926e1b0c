"""What Prometheus is told of an aggregator, on 127.0.0.1 alone: what `status` shows a person, as numbers (docs/adr/0022).

Everything is read from the aggregator's own files when somebody asks, so nothing is counted that a restart could lose. What sites
have sent of their patients is in none of it: no sum, no loss, no number of patients. Times of sites are in whole minutes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oncofed_server.service.authority import ends_at
from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import newest_roster
from oncofed_server.service.running import read_service
from oncofed_server.service.status import status_of
from oncofed_server.service.studies import all_studies
from oncofed_shared.errors import ConfigError, OncofedError

__all__ = ["AggregatorFigures", "figures_text", "served"]

MINUTE = 60
PHASES = (
    "submitted", "counting", "prepared", "waiting", "running", "delivering", "ending", "paused",
    "stuck", "failed", "cancelled", "done",
)  # fmt: skip


def _gauge(name: str, what: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"oncofed_{name}", what, labels=labels)


class AggregatorFigures(Collector):
    """One aggregator's figures.

    Args:
        clock: seconds since 1970.

    Guarantees:
        - A figure is one of `status --json`, of a study's `spending.json`, of a certificate, or of the roster's head.
        - When a site was last seen is told in whole minutes.
        - Files that cannot be read are one figure, `oncofed_readable 0`, and no error of the server.
    """

    def __init__(self, folder: Folder, *, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        readable = _gauge("readable", "Whether the aggregator's files could be read.")
        try:
            found = [*self._service(), *self._whole()]
        except OncofedError:
            found = []
        readable.add_metric((), float(bool(found)))
        yield from (readable, *found)

    def _service(self) -> Iterator[Metric]:
        service = read_service(self._folder)
        up = _gauge("service_up", "Whether `oncofed-aggregator start` runs.")
        up.add_metric((), float(service is not None and service.runs))
        starts = CounterMetricFamily(
            "oncofed_program_starts", "Starts of a program by the service that runs; one is usual.", labels=("program",)
        )
        for name, count in sorted(service.started.items() if service else ()):
            starts.add_metric((name,), count)
        yield from (up, starts)

    def _whole(self) -> Iterator[Metric]:
        status = status_of(self._folder, now=self._clock())
        yield from self._sites(status)
        yield from self._papers(status)
        yield from self._studies(status)

    def _sites(self, status: dict[str, Any]) -> Iterator[Metric]:
        enrolled = _gauge("sites_enrolled", "Sites whose key is not revoked.")
        online = _gauge("sites_online", "Sites whose gate is connected, as far as is known.")
        each = _gauge("site_online", "Whether a site's gate is connected.", ("site",))
        seen = _gauge("site_last_seen_timestamp_seconds", "When a gate was last connected, whole minutes.", ("site",))
        sites = {s: f for s, f in status["sites"].items() if f["standing"] != "revoked"}
        enrolled.add_metric((), len(sites))
        online.add_metric((), sum(bool(f["online"]) for f in sites.values()))
        for site, facts in sites.items():
            if facts["online"] is not None:
                each.add_metric((site,), float(facts["online"]))
                seen.add_metric((site,), facts["seen"] // MINUTE * MINUTE)
        yield from (enrolled, online, each, seen)

    def _papers(self, status: dict[str, Any]) -> Iterator[Metric]:
        ends = _gauge("certificate_ends_timestamp_seconds", "When a certificate ends.", ("certificate",))
        for name in ("server", "loopback", "ca"):
            ends.add_metric((name,), ends_at(self._folder.keys / f"{name}.crt"))
        yield ends
        epoch = newest_roster(self._folder)
        if epoch is not None:
            number = _gauge("roster_epoch", "Number of the newest roster epoch.")
            issued = _gauge("roster_issued_timestamp_seconds", "When it was signed.")
            number.add_metric((), epoch.number)
            issued.add_metric((), epoch.issued)
            yield from (number, issued)
        warnings = _gauge("warnings", "Warnings that `status` shows.")
        warnings.add_metric((), len(status["warnings"]))
        yield warnings

    def _studies(self, status: dict[str, Any]) -> Iterator[Metric]:
        labels = ("study", "name")
        phase = _gauge("study_phase", "1 for the phase in which a study is.", (*labels, "phase"))
        numbers: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "round": _gauge("study_round", "Finished rounds.", labels),
            "rounds": _gauge("study_rounds", "Rounds of the plan.", labels),
            "step": CounterMetricFamily(
                "oncofed_study_exchanges", "Exchanges with the sites that were begun.", labels=labels
            ),
        }
        moved = CounterMetricFamily("oncofed_study_bytes", "Bytes from and to sites.", labels=(*labels, "direction"))
        sites = _gauge("study_sites", "Sites of a study: all, asked and awaited in this step, out.", (*labels, "which"))
        ends = _gauge("study_expires_timestamp_seconds", "When a study expires.", labels)
        epsilon = _gauge(
            "study_epsilon", "What a whole study costs a patient of a site, as its report says.", (*labels, "site")
        )
        for row, place in zip(status["studies"], all_studies(self._folder), strict=True):
            own = (row["id"][:12], row["name"])
            for each in PHASES:
                phase.add_metric((*own, each), float(row["phase"] == each))
            for key, family in numbers.items():
                family.add_metric(own, row[key] or 0)
            moved.add_metric((*own, "in"), row["bytes_up"] or 0)
            moved.add_metric((*own, "out"), row["bytes_down"] or 0)
            for which, names in (
                ("all", row["sites"]), ("asked", row["asked"]), ("awaited", row["waiting"]), ("out", row["excluded"]),
            ):  # fmt: skip
                sites.add_metric((*own, which), len(names or ()))
            ends.add_metric(own, place.study.expires)
            for site, spent in place.spending.items():
                epsilon.add_metric((*own, site), spent)
        yield from (phase, *numbers.values(), moved, sites, ends, epsilon)


def _registry(folder: Folder, clock: Callable[[], float]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(AggregatorFigures(folder, clock=clock))
    return registry


def figures_text(folder: Folder, *, clock: Callable[[], float]) -> str:
    """All figures in Prometheus' text form."""
    return generate_latest(_registry(folder, clock)).decode()


@contextlib.contextmanager
def served(folder: Folder, port: int, *, clock: Callable[[], float]) -> Iterator[None]:
    """Answer on 127.0.0.1 alone for as long as it lasts.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=_registry(folder, clock))
    except OSError as error:
        raise ConfigError(
            f"--metrics {port}: 127.0.0.1:{port} cannot be had ({error.strerror}); choose another"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
