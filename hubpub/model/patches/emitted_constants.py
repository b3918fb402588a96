"""ExecuTorch's emitter copies every constant into Python bytes before the first one is written.

For a model of several gigabytes that is a second model in memory. Large constants are noted by address instead, and
whoever writes the program reads them from there: for weights that were never changed that is the mapped checkpoint.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from hubpub.model.patches import Patch, expect, replaced

NAME = "emitted-constants"
# Bytes: what is smaller is copied, so that equal constants are found and stored once.
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


def _defective() -> bool:
    from executorch.exir.emit._emitter import _Emitter

    expect(
        NAME,
        _Emitter._tensor_spec_to_evalue,
        parameters=["self", "spec", "constant_tag"],
        source=["bytes(", "ctypes.c_char * typing.cast(torch.UntypedStorage, spec.storage).nbytes()", ").contents"],
    )
    return True


def _noted(data: Any = b"") -> bytes:
    if isinstance(data, ctypes.Array) and len(data) >= SMALL:
        return Stored.at(ctypes.addressof(data), len(data), data)
    return bytes(data)


def _apply() -> AbstractContextManager[None]:
    from executorch.exir.emit import _emitter

    # The emitter's module looks `bytes` up among its own names first.
    return replaced(_emitter, "bytes", _noted)


PATCH = Patch(
    name=NAME,
    defect="the emitter copies every constant before it writes the first: a second model in memory",
    url="https://github.com/pytorch/executorch/blob/v1.4.1/exir/emit/_emitter.py",
    package="executorch",
    versions=">=1.4,<1.5",
    defective=_defective,
    apply=_apply,
)
