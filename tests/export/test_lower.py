"""Lowering: fewer walks over the graph give the very same program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubpub.config import Scheme
from hubpub.export import lower
from hubpub.export.quantize import DynamicLinear, register_operators
from hubpub.measure.inspect import inspect
from hubpub.measure.runtime import Session
from hubpub.model.patches import Patch, applied, edge_passes, graph_modules, symbolic_sizes


class Mixed(torch.nn.Module):
    """Everything the stacked passes rewrite: views, transposes, scalars, symbols as tensors, mixed dtypes."""

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        scaled = (x.t() * 2.0 + count).reshape(-1) / size
        return torch.where(scaled > 0, scaled, 0.5) - torch.arange(size * 4) * 3 + count.to(torch.int32).unsqueeze(0)


QUICK = (edge_passes.PATCH, graph_modules.PATCH, symbolic_sizes.PATCH)


@pytest.mark.slow
@pytest.mark.parametrize("patch", QUICK, ids=lambda patch: patch.name)
def test_what_makes_lowering_quick_gives_the_same_bytes(patch: Patch) -> None:
    # Not at the top: every process would import it, to find tests, for seconds.
    from executorch.exir import EdgeCompileConfig, to_edge

    dynamic: tuple[dict[int, object], ...] = ({0: torch.export.Dim("S", min=2, max=64)}, {})
    made = []
    for patches in ([patch], []):
        with applied(patches):
            program = torch.export.export(
                Mixed(), (torch.randn(8, 4), torch.ones(1, dtype=torch.int64)), dynamic_shapes=dynamic
            )
            edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True))
            made.append(edge.to_executorch().buffer)
    assert made[0] == made[1]


def test_the_passes_are_as_they_were_afterwards() -> None:
    from executorch.exir import EdgeCompileConfig
    from executorch.exir.program import _program

    before = _program._get_aten_to_edge_passes
    with applied([edge_passes.PATCH]):
        assert _program._get_aten_to_edge_passes is not before
        first, _ = _program._get_aten_to_edge_passes(EdgeCompileConfig())
        names = [getattr(one, "__name__", type(one).__name__) for one in first]
        assert names.count("OneRetrace") == 1 and len(names) == len(before(EdgeCompileConfig())[0]) - 3
        assert not {"NormalizeTransposePass", "SymToTensorPass"} & {*names}
    assert _program._get_aten_to_edge_passes is before


class Capped(torch.nn.Module):
    """A head with a softcap as the decoders have it, or with another number behind it."""

    def __init__(self, outer: float, scheme: Scheme) -> None:
        super().__init__()
        self.outer = outer
        self.head = DynamicLinear.of("head", torch.nn.Linear(64, 96, bias=False), scheme)
        self.register_buffer("positions", torch.arange(64).unsqueeze(0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        capped: torch.Tensor = torch.tanh(self.head((ids % 7 - 3.0) * 4.0) / 3.0) * self.outer
        return capped.unsqueeze(0)


EIGHT = Scheme(weight="int8", activation="int8")


@pytest.mark.parametrize(
    ("outer", "inside", "scheme", "near"),
    [(3.0, True, EIGHT, 0.02), (2.0, False, EIGHT, 0.02), (3.0, True, Scheme(weight="int16"), 1e-5)],
)
def test_a_softcap_is_part_of_its_heads_delegate(
    outer: float, inside: bool, scheme: Scheme, near: float, tmp_path: Path
) -> None:
    register_operators()
    model, path = Capped(outer, scheme), tmp_path / "capped.pte"
    with path.open("wb") as file:
        lower.export(model, "8da8w", {}).program.write_to_file(file)
    ids = torch.arange(64).unsqueeze(0) * 5 % 11
    found = Session(path)._execute("the head", ids[0].tolist())
    assert (found - model(ids)).abs().max() < near
    assert found.abs().max() <= outer + 1e-6
    program = inspect(path)
    assert ("XNNTanh" in program.operators.delegated) == inside
    assert program.unpacked_constants == 0


class Side(torch.nn.Module):
    """Two layers that read one input, in the form that is given for each."""

    def __init__(self, first: Scheme, second: Scheme) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            DynamicLinear.of(str(number), torch.nn.Linear(64, 32, bias=False), scheme)
            for number, scheme in enumerate((first, second))
        )
        self.register_buffer("positions", torch.arange(64).unsqueeze(0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.sin(ids * 0.7) * 4.0
        return torch.cat([layer(x) for layer in self.layers], -1).unsqueeze(0)


@pytest.mark.parametrize("second", [Scheme(weight="int16"), EIGHT])
def test_products_of_one_input_share_a_delegate_whatever_their_bits(second: Scheme, tmp_path: Path) -> None:
    register_operators()
    model, path = Side(Scheme(weight="int16"), second), tmp_path / "side.pte"
    with path.open("wb") as file:
        lower.export(model, "bf16", {}).program.write_to_file(file)
    ids = torch.arange(64).unsqueeze(0) * 5 % 11
    near = (Session(path)._execute("side by side", ids[0].tolist()) - model(ids)).abs()[0, 0]
    assert near[:32].max() < 1e-5 and near[32:].max() < (0.02 if second == EIGHT else 1e-5)
    operators = inspect(path).operators.delegated
    assert {name: operators[name] for name in ("XNNConcatenate2", "XNNMultiply", "XNNFullyConnected")} == {
        "XNNConcatenate2": 1,
        "XNNMultiply": 1,
        "XNNFullyConnected": 2,
    }
