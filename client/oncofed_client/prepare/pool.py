"""Cases in parallel processes: as many in flight as there are processes, and one that dies takes nobody with it.

A process gets what a case needs to be read, not the volume itself, so memory is bounded by the cases in flight. Processes are
forked from a clean server that has imported everything once; each has one thread, or they would wait for each other.
"""

from __future__ import annotations

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


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["oncofed_client.prepare.pool", "oncofed_client.prepare.cases"])
    return ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_start)


def outcomes(cases: Iterable[T], work: Callable[[T], R], jobs: int) -> Iterator[Outcome[T, R]]:
    """Do cases in `jobs` processes and give each outcome as soon as it is there.

    Args:
        cases: picklable; taken one by one, when a process is about to be free.
        work: a function at the top level of a module, not of the script that was started.
        jobs: processes.

    Guarantees:
        - No more than `jobs` + 1 cases are taken from `cases` and not yet given back.
        - A case whose process dies is an outcome like others; cases beside it are done again, and no other is.
    """
    waiting = iter(cases)
    flying: dict[Future[Outcome[T, R]], T] = {}
    pool = _pool(jobs)
    try:
        while True:
            while len(flying) <= jobs and (case := next(waiting, None)) is not None:
                flying[_submitted(pool, work, case)] = case
            if not flying:
                break
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            if any(f.exception() is not None for f in done):
                # The pool is broken and gives nothing more: whoever was in it is a suspect.
                wait(flying)
                pool.shutdown(wait=True)
                suspects = [case for future, case in flying.items() if future.exception() is not None]
                finished = [future.result() for future in flying if future.exception() is None]
                flying = {}
                yield from finished
                yield from _one_by_one(suspects, work)
                pool = _pool(jobs)
                continue
            for future in done:
                del flying[future]
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


def _submitted(pool: ProcessPoolExecutor, work: Callable[[T], R], case: T) -> Future[Outcome[T, R]]:
    """Give a case to the pool; where that is already broken, a future that says so."""
    try:
        with _without_script():
            return pool.submit(_guarded, work, case)
    except BrokenProcessPool as error:
        failed: Future[Outcome[T, R]] = Future()
        failed.set_exception(error)
        return failed


def _one_by_one(cases: Iterable[T], work: Callable[[T], R]) -> Iterator[Outcome[T, R]]:
    """Do cases that were in flight when a process died, each in a process of its own, to tell the one that kills."""
    for case in cases:
        pool = _pool(1)
        try:
            yield _submitted(pool, work, case).result()
        except BrokenProcessPool:
            yield Outcome(case=case, result=None, problems=(_DIED,))
        finally:
            pool.shutdown(wait=True)
