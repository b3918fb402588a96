"""Writing a program: constants go from where they lie to the file, and a `.pte` under its own name is always whole.

Large constants are noted by address (see hubpub.model.patches.emitted_constants) and sent from there: for weights that
were never changed that is the memory-mapped checkpoint itself. What two places of a program name by the same address,
the token table and the head that is tied to it, is written once: segments are ranges of the file, and may be the same.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hubpub.errors import ToolchainError
from hubpub.facts import FileFact
from hubpub.model.patches.emitted_constants import SMALL, Stored
from hubpub.progress import Progress, unseen


def stored(tensor: Any) -> bytes:
    """The bytes of a contiguous tensor, by reference where it is large."""
    assert tensor.is_contiguous()
    if tensor.nbytes < SMALL:
        return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return Stored.at(tensor.data_ptr(), tensor.nbytes, tensor)


# Of a segment's start, as `to_executorch` aligns it when it is not told otherwise.
SEGMENT_ALIGNMENT = 128
# In the extended header, which follows a flatbuffer's first eight bytes: where segments begin, and their bytes in all.
_HEADER = struct.Struct("<4sIQQQ")


def once(parts: Sequence[bytes]) -> list[bytes]:
    """The parts of a `.pte` with every segment left out that repeats what a part before it holds.

    The program, `parts[0]`, then gives the range of the first for both. Only contents that are `Stored` are compared,
    by address: nothing is read.
    """
    program = bytearray(parts[0])
    magic, length, size, base, _ = _HEADER.unpack_from(program, 8)
    if magic != b"eh00" or size != len(program):
        return list(parts)
    made: list[bytes] = []
    homes: dict[tuple[int, int], int] = {}
    end = base
    for place, segment in _segments(program, parts, base):
        mark = (segment[0].address, segment[0].size) if len(segment) == 1 and isinstance(segment[0], Stored) else None
        if mark in homes and place is not None:
            struct.pack_into("<Q", program, place, homes[mark] - base)
            continue
        padding = -(end - base) % SEGMENT_ALIGNMENT
        made.append(bytes(padding))
        end += padding
        if place is not None:
            struct.pack_into("<Q", program, place, end - base)
        for part in segment:
            if isinstance(part, Stored):
                homes.setdefault((part.address, part.size), end)
            made.append(part)
            end += len(part)
    _HEADER.pack_into(program, 8, magic, length, size, base, end - base)
    return [bytes(program), bytes(base - size), *made]


def _segments(program: bytearray, parts: Sequence[bytes], base: int) -> Iterator[tuple[int | None, list[Any]]]:
    """The segments of a program in the order of the file: where the program says their offset, and their parts.

    The first begins at 0, which a flatbuffer does not write down: its place is None.
    """
    from flatbuffers.number_types import UOffsetTFlags
    from flatbuffers.table import Table

    root = Table(program, struct.unpack_from("<I", program)[0])
    # Fields of Program and of DataSegment in the runtime's schema/program.fbs.
    field = 4 + 2 * 4
    vector = root.Offset(field)
    starts = {}
    place = 0
    for part in parts:
        starts[place] = part
        place += len(part)
    places = sorted(starts)
    for index in range(root.VectorLen(vector) if vector else 0):
        table = Table(program, root.Indirect(root.Vector(vector) + index * UOffsetTFlags.bytewidth))
        at, counted = table.Offset(4), table.Offset(6)
        offset = struct.unpack_from("<Q", program, table.Pos + at)[0] if at else 0
        count = struct.unpack_from("<Q", program, table.Pos + counted)[0] if counted else 0
        inside = places[bisect_left(places, base + offset) : bisect_left(places, base + offset + count)]
        found = [starts[one] for one in inside]
        assert sum(map(len, found)) == count, "a segment is made of whole parts"
        yield (table.Pos + at if at else None), found


def write(program: Any, path: Path, progress: Progress = unseen) -> FileFact:
    """Write an ExecuTorch program to `path` through a temporary name, flushed to disk, then renamed.

    Returns its name, size and SHA-256, which is computed on the way. Raises ToolchainError when the disk is full; what
    stood at `path` before is untouched then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    parts = once(program._pte_data._buffers)
    total = sum(len(part) for part in parts)
    try:
        with temporary.open("wb") as file:
            for part in parts:
                for chunk in part.chunks() if isinstance(part, Stored) else (part,):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                progress("write", done / total)
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
