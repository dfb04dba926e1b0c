"""Figures as files for the textfile collector of Prometheus' node exporter, which is what listens, on 127.0.0.1.

The daemon has no network and the gate must not learn what the daemon has spent, so neither serves figures: each writes a file of
its own into a folder that other users cannot enter (docs/adr/0022).
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from oncofed_client.log_lines import say
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.storage import write_whole

__all__ = ["EVERY_SECONDS", "ProgramFigures", "check_folder", "kept", "text_of", "write_figures"]

EVERY_SECONDS = 15.0
_GROUP_READS = 0o640


def check_folder(folder: Path) -> None:
    """See that figures may be written into a folder.

    Raises:
        ConfigError: it is not there, or others than its owner and its group may enter it: the gate's user is one of them.
    """
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise ConfigError(f"--metrics {folder}: cannot be entered ({error.strerror}); make the folder first") from None
    if not stat.S_ISDIR(mode) or mode & stat.S_IRWXO:
        raise ConfigError(
            f"--metrics {folder}: must be a folder that only its owner and the node exporter's group may enter: "
            f"chgrp GROUP {folder}; chmod 2750 {folder}"
        )


def text_of(collector: Collector) -> bytes:
    """A collector's figures in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def write_figures(path: Path, collector: Collector) -> None:
    """Write a file of figures, whole or not at all, readable by its owner and its group.

    Raises:
        StorageError: it cannot be written.
    """
    # The folder keeps others out from the first moment on.
    write_whole(path, text_of(collector), private=True, synced=False)
    path.chmod(_GROUP_READS)


@contextlib.contextmanager
def kept(path: Path, collector: Collector, *, every: float = EVERY_SECONDS) -> Iterator[None]:
    """Write figures now and again, for as long as it lasts, and once more at the end.

    Args:
        every: seconds between two times: figures change for others no oftener than that.

    Guarantees:
        - A figure that cannot be written or worked out ends nothing: there is a line in the log, and the next time.
    """
    stop = Event()

    def write() -> None:
        try:
            write_figures(path, collector)
        except OncofedError as error:
            say("metrics.failed", code=error.code, text="; ".join(error.problems))

    def run() -> None:
        while True:
            write()
            if stop.wait(every):
                return

    thread = Thread(target=run, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        write()


class ProgramFigures(Collector):
    """What keeps gate and daemon running tells of them: which runs, how often each was started. `note` is for `keeping.keep`."""

    def __init__(
        self, names: tuple[str, ...], *, say: Callable[..., None], clock: Callable[[], float] = time.time
    ) -> None:
        self._say, self._clock = say, clock
        self._up = dict.fromkeys(names, False)
        self._starts: Counter[str] = Counter(dict.fromkeys(names, 0))
        self._lock = Lock()

    def note(self, event: str, **facts: Any) -> None:
        """Take an event, and hand it on to the log."""
        if event in {"program.started", "program.ended"}:
            with self._lock:
                self._up[facts["program"]] = event == "program.started"
                self._starts[facts["program"]] += event == "program.started"
        self._say(event, **facts)

    def collect(self) -> Iterator[Metric]:
        """All figures as they are now."""
        up = GaugeMetricFamily("oncofed_site_program_up", "Whether a program runs.", labels=("program",))
        starts = CounterMetricFamily("oncofed_site_program_starts", "Starts; one is usual.", labels=("program",))
        written = GaugeMetricFamily("oncofed_site_gate_written_timestamp_seconds", "When this was written.")
        with self._lock:
            for name, runs in self._up.items():
                up.add_metric((name,), float(runs))
                starts.add_metric((name,), self._starts[name])
        written.add_metric((), float(round(self._clock())))
        yield from (up, starts, written)
