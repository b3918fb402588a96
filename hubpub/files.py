"""Files that are whole or absent, and locks between processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` under a temporary name, flush it to disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold the lock file `path` while the context is open; a second holder waits, and `waiting` is told once for whom.

    The system lets go of the lock when its process ends, however it ends: what a killed process leaves behind is an
    empty file that locks nobody out. Within one process the lock may be taken again by whoever holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    # Beside the lock and not in it: whoever tries to take a lock may empty its file.
    note = path.with_name(path.name + ".holder")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        waiting(_holder(note))
        lock.acquire()
    try:
        if lock.lock_counter == 1:
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
            since = time.strftime("%H:%M:%S")
            write_atomic(note, f"process {os.getpid()} ({command}), since {since}\n".encode())
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    """Who holds a lock, as that process noted it."""
    try:
        return note.read_text("utf-8").strip()
    except OSError:
        return "another process"
