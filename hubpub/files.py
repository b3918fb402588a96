"""Files that are whole or absent, hashes of them that are taken once, and locks between processes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from hubpub.errors import HubpubError
from hubpub.redaction import redact


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
def locked(path: Path, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock file `path` while the context is open; a second holder waits, and `waiting` is told once for whom.

    The system lets go of the lock when its process ends, however it ends: what a killed process leaves behind is an
    empty file that locks nobody out. Within one process the lock may be taken again by whoever holds it.
    """

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
            # An address on the command line may hold a password.
            command = redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:200]
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


@dataclass
class HashCache:
    """SHA-256 of files, each content read once: recorded in the JSON file `path` with size, mtime and inode.

    A record that no longer fits its file is never used.
    """

    path: Path
    records: dict[str, list[int | str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.records.update(self._read())

    def sha256(self, file: Path) -> str:
        """SHA-256 (hex) of `file`, from the record when its size, mtime_ns and inode are as recorded.

        Raises HubpubError when the file is missing or changes while it is read.
        """
        if (known := self.known(file)) is not None:
            return known
        before = _stamp(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _stamp(file) != before:
            raise HubpubError(f"{file} changed while it was read", "wait until it is written, then run again")
        self.record(file, digest)
        return digest

    def known(self, file: Path) -> str | None:
        """The SHA-256 of `file` without reading it; None where there is no record of it as it is now."""
        record = self.records.get(str(file.resolve()))
        return str(record[3]) if record and record[:3] == _stamp(file) else None

    def record(self, file: Path, digest: str) -> None:
        """Note that `file`, as it is now, hashes to `digest`: for whoever hashed it while writing it."""
        # Another process may have added records since: theirs are kept.
        self.records = self._read() | self.records | {str(file.resolve()): [*_stamp(file), digest]}
        write_atomic(self.path, json.dumps(self.records, indent=1, sort_keys=True).encode())

    def _read(self) -> dict[str, list[int | str]]:
        try:
            data = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict):
            return {}
        return {key: value for key, value in data.items() if isinstance(value, list) and len(value) == 4}


def _stamp(file: Path) -> list[int | str]:
    try:
        stat = file.stat()
    except OSError as error:
        raise HubpubError(f"{file} cannot be read: {error.strerror}") from None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
