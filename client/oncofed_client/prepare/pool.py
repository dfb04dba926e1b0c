"""Cases in parallel processes: as many in flight as there are processes, and one that dies takes nobody with it.

A process gets what a case needs to be read, not the volume itself, so memory is bounded by the cases in flight. Processes are
forked from a clean server that has imported everything once; each has one thread, or they would wait for each other.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from typing import Generic, TypeVar

import SimpleITK as sitk

from oncofed_shared.errors import OncofedError

__all__ = ["Outcome", "outcomes"]

T = TypeVar("T")
R = TypeVar("R")

_RUN_OUT = 75
"""Exit code of a process whose parent is gone."""
_DIED = (
    "its process died, most likely for want of memory; use fewer --jobs, or look at its files with `oncofed-site check`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Generic[T, R]):
    """What became of a case: a result, or why there is none."""

    case: T
    result: R | None
    problems: tuple[str, ...] = ()


def _start() -> None:
    """Set up a process: one thread, and an end when the parent's comes, however that came."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    # Ctrl-C reaches the whole group; the parent decides, and waits for the cases in flight.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(_RUN_OUT)


def _guarded(work: Callable[[T], R], case: T) -> Outcome[T, R]:
    """Do one case; whatever goes wrong in it is its own outcome and not the run's end."""
    try:
        return Outcome(case=case, result=work(case))
    except OncofedError as error:
        return Outcome(case=case, result=None, problems=error.problems)
    except MemoryError:
        return Outcome(case=case, result=None, problems=("it needs more memory than there is; use fewer --jobs",))
    except Exception as error:  # noqa: BLE001 - a library's surprise at one file must not end the others
        # Its text may hold values of the file.
        return Outcome(case=case, result=None, problems=(f"it could not be read: {type(error).__name__} in a library",))


def _process() -> ProcessPoolExecutor:
    """One process.

    Executors of several are not used: one that breaks while another process of it starts waits for ever (CPython 3.11), and it
    takes the cases of all its processes with it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["oncofed_client.prepare.pool", "oncofed_client.prepare.cases"])
    return ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_start)


def outcomes(cases: Iterable[T], work: Callable[[T], R], jobs: int) -> Iterator[Outcome[T, R]]:
    """Do cases in `jobs` processes and give each outcome as soon as it is there.

    Args:
        cases: picklable; taken one by one, when a process is free.
        work: a function at the top level of a module, not of the script that was started.
        jobs: processes.

    Guarantees:
        - No more than `jobs` + 1 cases are taken from `cases` and not yet given back, but for those whose process died.
        - A case whose process dies is done once more at the end, with nothing beside it, and no other is done twice.
    """
    waiting = iter(cases)
    flying: dict[Future[Outcome[T, R]], tuple[ProcessPoolExecutor, T]] = {}
    processes = [_process() for _ in range(jobs)]
    died: list[T] = []

    def follow(process: ProcessPoolExecutor) -> None:
        for case in itertools.islice(waiting, 1):
            flying[_submitted(process, work, case)] = (process, case)

    try:
        for process in processes:
            follow(process)
        while flying:
            done = next(iter(wait(flying, return_when=FIRST_COMPLETED).done))
            process, case = flying.pop(done)
            if done.exception() is None:
                follow(process)
                yield done.result()
            else:
                died.append(case)
                process.shutdown()
                processes[processes.index(process)] = fresh = _process()
                follow(fresh)
        yield from _one_by_one(died, work)
    finally:
        for process in processes:
            process.shutdown(cancel_futures=True)


@contextmanager
def _without_script() -> Iterator[None]:
    """Keep a new process from running the script that started this one: it would import all of that once more.

    multiprocessing has no setting for it and asks these two names of the main module.
    """
    script = sys.modules["__main__"]
    before = {name: getattr(script, name, None) for name in ("__spec__", "__file__")}
    try:
        for name in before:
            setattr(script, name, None)
        yield
    finally:
        for name, value in before.items():
            setattr(script, name, value)


def _submitted(process: ProcessPoolExecutor, work: Callable[[T], R], case: T) -> Future[Outcome[T, R]]:
    """Give a case to a process; where that has died already, a future that says so."""
    try:
        with _without_script():
            return process.submit(_guarded, work, case)
    except BrokenProcessPool as error:
        failed: Future[Outcome[T, R]] = Future()
        failed.set_exception(error)
        return failed


def _one_by_one(cases: Iterable[T], work: Callable[[T], R]) -> Iterator[Outcome[T, R]]:
    """Do cases whose process died once more, each in a process of its own: they may only have wanted memory."""
    for case in cases:
        with _process() as process:
            try:
                yield _submitted(process, work, case).result()
            except BrokenProcessPool:
                yield Outcome(case=case, result=None, problems=(_DIED,))
