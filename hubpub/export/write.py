"""Writing a program so that a `.pte` under its own name is always whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from hubpub.errors import ToolchainError


def write(program: Any, path: Path) -> None:
    """Write an ExecuTorch program to `path` through a temporary name, flushed to disk, then renamed.

    Raises ToolchainError when the disk is full; what stood at `path` before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            program.write_to_file(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ToolchainError(
            f"no space left while writing {path}", "free some disk space, or point --work at another disk"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
