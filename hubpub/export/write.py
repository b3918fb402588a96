"""Writing a program: constants go from where they lie to the file, and a `.pte` under its own name is always whole.

ExecuTorch's emitter copies every constant into Python bytes before the first one is written, which for a model of
several gigabytes is a second model in memory. Inside `streaming`, large constants are noted by address instead, and
`write` sends them from there: for weights that were never changed that is the memory-mapped checkpoint itself.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubpub.errors import ToolchainError
from hubpub.facts import FileFact

SMALL = 1 << 16
CHUNK = 16 << 20


class Stored(bytes):
    """Stands for the `size` bytes at `address`, which `owner` keeps alive; its own content is only a unique mark."""

    size: int
    address: int
    owner: Any

    @classmethod
    def at(cls, address: int, size: int, owner: Any) -> Stored:
        self = cls(f"hubpub stored {address:x} {size:x}".encode())
        self.address, self.size, self.owner = address, size, owner
        return self

    def __len__(self) -> int:
        return self.size

    def __deepcopy__(self, memo: Any) -> Stored:
        return self

    def chunks(self) -> Iterator[memoryview]:
        """The bytes themselves, a few megabytes at a time."""
        for first in range(0, self.size, CHUNK):
            count = min(CHUNK, self.size - first)
            yield memoryview((ctypes.c_char * count).from_address(self.address + first)).cast("B")


def stored(tensor: Any) -> bytes:
    """The bytes of a contiguous tensor, by reference where it is large."""
    assert tensor.is_contiguous()
    if tensor.nbytes < SMALL:
        return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return Stored.at(tensor.data_ptr(), tensor.nbytes, tensor)


@contextmanager
def streaming() -> Iterator[None]:
    """Make the emitter note large constants by address for as long as the context is open."""
    from executorch.exir.emit import _emitter

    def noted(data: Any = b"") -> bytes:
        if isinstance(data, ctypes.Array) and len(data) >= SMALL:
            return Stored.at(ctypes.addressof(data), len(data), data)
        return bytes(data)

    # The emitter's module looks `bytes` up among its own names first.
    vars(_emitter)["bytes"] = noted
    try:
        yield
    finally:
        del vars(_emitter)["bytes"]


def write(program: Any, path: Path, told: Callable[[float], None] = lambda fraction: None) -> FileFact:
    """Write an ExecuTorch program to `path` through a temporary name, flushed to disk, then renamed.

    Returns its name, size and SHA-256, which is computed on the way. Raises ToolchainError when the disk is full; what
    stood at `path` before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    parts = program._pte_data._buffers
    total = sum(len(part) for part in parts)
    try:
        with temporary.open("wb") as file:
            for part in parts:
                for chunk in part.chunks() if isinstance(part, Stored) else (part,):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                told(done / total)
            file.flush()
            os.fsync(file.fileno())
        assert done == total
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ToolchainError(
            f"no space left while writing {path} ({total:,} bytes)",
            "free some disk space, or point --work at another disk",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return FileFact(name=path.name, bytes=total, sha256=digest.hexdigest())
