"""Lowering: fewer walks over the graph give the very same program."""

from __future__ import annotations

import contextlib

import pytest
import torch
from executorch.exir import EdgeCompileConfig, to_edge

from hubpub.export import lower


class Mixed(torch.nn.Module):
    """Everything the stacked passes rewrite: views, transposes, scalars, symbols as tensors, mixed dtypes."""

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        scaled = (x.t() * 2.0 + count).reshape(-1) / size
        return torch.where(scaled > 0, scaled, 0.5) - torch.arange(size * 4) * 3 + count.to(torch.int32).unsqueeze(0)


@pytest.mark.parametrize("stacked", [True, False])
def test_one_retrace_gives_the_same_bytes(stacked: bool) -> None:
    dynamic: tuple[dict[int, object], ...] = ({0: torch.export.Dim("S", min=2, max=64)}, {})
    made = []
    for context in (lower.one_retrace if stacked else contextlib.nullcontext, contextlib.nullcontext):
        program = torch.export.export(
            Mixed(), (torch.randn(8, 4), torch.ones(1, dtype=torch.int64)), dynamic_shapes=dynamic
        )
        with context():
            edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True))
        made.append(edge.to_executorch().buffer)
    assert made[0] == made[1]


def test_the_passes_are_as_they_were_afterwards() -> None:
    from executorch.exir.program import _program

    before = _program._get_aten_to_edge_passes
    with lower.one_retrace():
        assert _program._get_aten_to_edge_passes is not before
        first, _ = _program._get_aten_to_edge_passes(EdgeCompileConfig())
        assert sum(type(one).__name__ == "OneRetrace" for one in first) == 1
    assert _program._get_aten_to_edge_passes is before
