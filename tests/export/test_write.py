"""Writing: constants are read where they lie, a file is whole or absent, and a full disk is said so."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubpub.errors import ToolchainError
from hubpub.export.write import stored, write
from hubpub.model.patches import applied
from hubpub.model.patches.emitted_constants import PATCH, SMALL, Stored


class Table(torch.nn.Module):
    """A constant large enough to be streamed, one that is not, and one that is stored twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("large", torch.randn(512, 128))
        self.register_buffer("small", torch.randn(128))
        self.register_buffer("again", self.large)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.large.T @ self.again + self.small


@pytest.fixture(scope="module")
def programs() -> tuple[Any, Any, Table]:
    """The same program emitted with and without streaming."""
    from executorch.exir import to_edge

    table = Table()
    edge = [to_edge(torch.export.export(table, (torch.ones(1, 128),))) for _ in range(2)]
    with applied([PATCH]):
        streamed = edge[0].to_executorch()
    return streamed, edge[1].to_executorch(), table


def test_a_streamed_file_is_byte_for_byte_the_emitted_one(programs: tuple[Any, Any, Table], tmp_path: Path) -> None:
    streamed, plain, _ = programs
    assert any(isinstance(part, Stored) for part in streamed._pte_data._buffers)
    fact = write(streamed, tmp_path / "a.pte")
    data = (tmp_path / "a.pte").read_bytes()
    assert data == plain.buffer
    assert (fact.bytes, fact.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_what_was_streamed_runs(programs: tuple[Any, Any, Table], tmp_path: Path) -> None:
    streamed, _, table = programs
    write(streamed, tmp_path / "a.pte")
    x = torch.randn(1, 128)
    from executorch.runtime import Runtime

    (out,) = Runtime.get().load_program(tmp_path / "a.pte").load_method("forward").execute([x])
    assert torch.allclose(out, table(x), atol=1e-3)


def test_large_constants_are_read_where_they_lie_and_small_ones_are_copied() -> None:
    tensor = torch.arange(SMALL, dtype=torch.uint8)
    held = stored(tensor)
    assert isinstance(held, Stored)
    assert len(held) == SMALL
    tensor[0] = 77
    assert next(held.chunks())[0] == 77
    assert stored(tensor[:8].clone()) == bytes([77, 1, 2, 3, 4, 5, 6, 7])


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pte"
    path.write_bytes(b"before")
    program = SimpleNamespace(_pte_data=SimpleNamespace(_buffers=[b"x" * (1 << 20)]))
    # A limit on the size of files ends a write the way a full disk does.
    import signal

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    try:
        with pytest.raises(ToolchainError, match=r"no space left while writing .*a\.pte \(1,048,576 bytes\)"):
            write(program, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pte"]
