"""Files that are whole or not there: everything is written beside its place, flushed, and renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from hubpub.errors import HubError

BLOCK = 1 << 20


class Spool:
    """A new file being written: counts its bytes and hashes them, and can be renamed to its place once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._file: IO[bytes] = path.open("xb")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def flush(self) -> None:
        self._file.flush()

    def move(self, place: Path) -> None:
        """Flush to disk and rename to `place`, replacing what is there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        place.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(place)
        sync_folder(place.parent)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Disk:
    """The folder that one server owns: a place for unfinished files and the rule how files get written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unfinished = root / "unfinished"

    @contextmanager
    def spool(self) -> Iterator[Spool]:
        """A file to write and then `move`; it is gone afterwards if it was not moved."""
        spool = Spool(self.unfinished / secrets.token_hex(12))
        try:
            yield spool
        finally:
            spool.discard()

    def write(self, place: Path, data: bytes, mode: int | None = None) -> None:
        """Put `data` at `place` in one step, readable by its owner alone where `mode` says so."""
        with self.spool() as spool:
            if mode is not None:
                spool.path.chmod(mode)
            spool.write(data)
            spool.move(place)

    def write_json(self, place: Path, value: Any, mode: int | None = None) -> None:
        self.write(place, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), mode)

    def blank(self) -> Path:
        """A new path for something unfinished."""
        return self.unfinished / secrets.token_hex(12)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can do that."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def concatenate(spool: Spool, paths: Iterable[Path]) -> None:
    """Append whole files to `spool`."""
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                spool.write(block)


class FolderLock:
    """Held by the one process that serves a folder; the system lets go of it when that process dies."""

    def __init__(self, root: Path) -> None:
        """Raises HubError where another one holds it, OSError where the folder cannot be written."""
        self._lock = FileLock(root / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise HubError(
                f"another local Hub is serving {root}", "stop it, or give this one a folder of its own"
            ) from None

    def release(self) -> None:
        self._lock.release()
