"""Writing a program: constants go from where they lie to the file, and a `.pte` under its own name is always whole.

Large constants are noted by address (see hubpub.model.patches.emitted_constants) and sent from there: for weights that
were never changed that is the memory-mapped checkpoint itself.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubpub.errors import ToolchainError
from hubpub.facts import FileFact
from hubpub.model.patches.emitted_constants import SMALL, Stored


def stored(tensor: Any) -> bytes:
    """The bytes of a contiguous tensor, by reference where it is large."""
    assert tensor.is_contiguous()
    if tensor.nbytes < SMALL:
        return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return Stored.at(tensor.data_ptr(), tensor.nbytes, tensor)


def write(program: Any, path: Path, progress: Callable[[float], None] = lambda _: None) -> FileFact:
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
                progress(done / total)
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
