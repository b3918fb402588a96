"""Cells in parallel processes, each with its share of the processor, reporting what it is at.

Workers are new interpreters that begin with an environment of their own.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import hubpub.errors
from hubpub.errors import HubpubError, place
from hubpub.machine import export_environment

T = TypeVar("T")
if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    # What tasks are at: (name, stage, fraction); None ends whoever listens.
    Events = Queue[tuple[str, str, float] | None]
Report = Callable[[str, str, float], None]


@dataclass(frozen=True)
class Done(Generic[T]):
    """What became of one task: its value, or the error that ended it."""

    name: str
    value: T | None
    error: HubpubError | None


Task = tuple[str, Callable[..., T], tuple[Any, ...]]


def run_all(tasks: Sequence[Task[T]], jobs: int, report: Report) -> Iterator[Done[T]]:
    """Run (name, function, arguments) in `jobs` processes and yield each result as it is done.

    See `Workers` for how functions are called. Stopping the iteration, or Ctrl-C, ends the workers.
    """
    with Workers(jobs, report) as workers:
        for name, function, arguments in tasks:
            workers.submit(name, function, arguments)
        yield from workers.finished()


class Workers:
    """`jobs` processes that take one task after the other; leaving the context ends them.

    Every function is called with `progress(stage, fraction)` as its last argument; `report` gets (name, stage,
    fraction).
    """

    def __init__(self, jobs: int, report: Report) -> None:
        context = multiprocessing.get_context("spawn")
        self._events: Events = context.Queue()
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(self._events,))
        self._listener = threading.Thread(target=_listen, args=(self._events, report), daemon=True)
        self._pending: dict[Future[Any], str] = {}

    def __enter__(self) -> Workers:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        workers = list((self._pool._processes or {}).values())
        unfinished = any(not future.done() for future in self._pending)
        self._pool.shutdown(wait=not unfinished, cancel_futures=True)
        if unfinished:
            for worker in workers:
                worker.terminate()
        self._events.put(None)
        self._listener.join(timeout=5)

    def submit(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Have `function` called when a process is free; where one has vanished, the task ends with that error."""
        # Workers are started as tasks come, and read their environment then.
        with _environment(self._threads):
            try:
                future = self._pool.submit(_call, name, function, arguments)
            except BrokenProcessPool as error:
                future = Future()
                future.set_exception(error)
        self._pending[future] = name

    def finished(self) -> Iterator[Done[Any]]:
        """Each result as it is done, those of tasks that are submitted meanwhile too, until nothing is left to do."""
        while self._pending:
            for future in wait(self._pending, return_when=FIRST_COMPLETED).done:
                yield _result(self._pending.pop(future), future)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What the processes find that are started while the context is open."""
    own = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait take the processor from the other workers.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        **export_environment(),
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _result(name: str, future: Future[Any]) -> Done[Any]:
    try:
        kind, payload = future.result()
    except Exception as error:
        return Done(name, None, HubpubError(f"{name}: its process ended: {error}", "is there enough memory?"))
    if kind == "value":
        return Done(name, payload, None)
    family, message, hint = payload
    return Done(name, None, getattr(hubpub.errors, family, HubpubError)(message, hint))


_events: Events | None = None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # Nobody is left to hand a result to: a process that was killed must not go on computing.
    os._exit(1)


def _start(events: Events) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _events  # noqa: PLW0603  (the one value a worker process keeps)
    _events = events
    # The parent decides when to stop; Ctrl-C reaches every process of a terminal at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the export stack says to its own developers; errors still come through.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _call(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    def progress(stage: str, fraction: float) -> None:
        assert _events is not None
        _events.put((name, stage, fraction))

    try:
        return "value", function(*arguments, progress)
    except HubpubError as error:
        return "error", (type(error).__name__, error.message, error.hint)
    except Exception as error:
        where = place(error)
        return "error", ("HubpubError", f"{name}: {type(error).__name__}: {error} ({where})", None)


def _listen(events: Events, report: Report) -> None:
    while True:
        try:
            event = events.get(timeout=1)
        except queue.Empty:
            continue
        except (EOFError, OSError):
            return
        if event is None:
            return
        with contextlib.suppress(ValueError):
            report(*event)
