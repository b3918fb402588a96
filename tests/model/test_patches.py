"""Patches: the defect is there without them, gone with them, and an upstream change is refused."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubpub.errors import ToolchainError
from hubpub.model.patches import (
    Patch,
    applied,
    edge_passes,
    emitted_constants,
    gaussian_topk,
    graph_modules,
    layer_type_order,
    replaced,
    sdpa_meta,
    symbolic_sizes,
)


def upstream() -> Any:
    """Transformers' class. Not imported with this file, as every process of a test run is: it takes two seconds."""
    return import_module("transformers.models.gemma3n.modeling_gemma3n").Gemma3nTextMLP


class Sparse(torch.nn.Module):
    activation_sparsity = 0.95

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        topk: torch.Tensor = upstream()._gaussian_topk(self, x)
        return topk


def operators(module: torch.nn.Module) -> set[str]:
    graph = torch.export.export(module, (torch.randn(1, 4, 64),)).run_decompositions().graph
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def test_gaussian_topk_leaves_erfinv_unless_patched() -> None:
    assert any("erfinv" in name for name in operators(Sparse()))
    with applied([gaussian_topk.PATCH]) as facts:
        assert facts[0].applied
        assert not any("erfinv" in name for name in operators(Sparse()))
    assert any("erfinv" in name for name in operators(Sparse()))


def test_gaussian_topk_computes_what_the_original_computes() -> None:
    x = torch.randn(2, 8, 512, generator=torch.Generator().manual_seed(1))
    wanted = Sparse()(x)
    with applied([gaussian_topk.PATCH]):
        assert torch.allclose(Sparse()(x), wanted, atol=1e-6)


def test_sdpa_meta_tells_the_layout_of_the_kernel() -> None:
    query = torch.empty(1, 2, 3, 4, device="meta").transpose(1, 2)
    cache = torch.empty(1, 8, 2, 4, device="meta")
    with applied([sdpa_meta.PATCH]) as facts:
        assert facts[0].applied
        assert torch.ops.llama.custom_sdpa(query, cache, cache, 0).is_contiguous()
    assert not torch.ops.llama.custom_sdpa(query, cache, cache, 0).is_contiguous()


def test_a_target_that_changed_upstream_is_refused() -> None:
    def changed(self: object, inputs: torch.Tensor, cutoff: float) -> torch.Tensor:
        return inputs

    with (
        replaced(upstream(), "_gaussian_topk", changed),
        pytest.raises(ToolchainError, match=r"changed upstream \(parameters"),
        applied([gaussian_topk.PATCH]),
    ):
        pass


def test_a_defect_mended_upstream_makes_the_patch_do_nothing() -> None:
    def mended(self: object, inputs: torch.Tensor) -> torch.Tensor:
        cutoff_x = inputs.mean() * self.activation_sparsity  # type: ignore[attr-defined]
        return torch.nn.functional.relu(inputs - cutoff_x)

    with replaced(upstream(), "_gaussian_topk", mended), applied([gaussian_topk.PATCH]) as facts:
        assert not facts[0].applied
        assert upstream()._gaussian_topk is mended


def test_a_version_outside_of_the_range_is_refused() -> None:
    with (
        pytest.raises(ToolchainError, match=r"holds for transformers>=9, but 5\."),
        applied([replace(gaussian_topk.PATCH, versions=">=9")]),
    ):
        pass


MODELS = [
    (layer_type_order.GEMMA3, "gemma3", "Gemma3TextModel"),
    (layer_type_order.GEMMA3N, "gemma3n", "Gemma3nTextModel"),
    (layer_type_order.GEMMA4, "gemma4", "Gemma4TextModel"),
]


@pytest.mark.parametrize(("patch", "model", "name"), MODELS, ids=[model for _, model, _ in MODELS])
def test_layer_types_are_walked_over_in_order(patch: Patch, model: str, name: str) -> None:
    module = import_module(f"transformers.models.{model}.modeling_{model}")
    before = dict(vars(module)), dict(vars(getattr(module, name)))
    with applied([patch]) as facts:
        assert facts[0].applied
        if model == "gemma4":
            text_model = SimpleNamespace(config=SimpleNamespace(layer_types=["b", "a", "b"]))
            walked = getattr(module, name).unique_layer_types.fget(text_model)
        else:
            walked = module.set(["b", "a", "b"])
        assert list(walked) == ["a", "b"]
    assert (dict(vars(module)), dict(vars(getattr(module, name)))) == before


@pytest.mark.parametrize(("patch", "model", "name"), MODELS, ids=[model for _, model, _ in MODELS])
def test_layer_types_in_order_upstream_need_no_patch(patch: Patch, model: str, name: str) -> None:
    text_model = getattr(import_module(f"transformers.models.{model}.modeling_{model}"), name)

    def mended(self: Any, position_embeddings: dict[str, Any], hidden: Any, positions: Any) -> None:
        for layer_type in sorted(self.layer_types):
            position_embeddings[layer_type] = self.rotary_emb(hidden, positions, layer_type)

    with replaced(text_model, "forward", mended), applied([patch]) as facts:
        assert not facts[0].applied

    def other(self: Any) -> None: ...

    with (
        replaced(text_model, "forward", other),
        pytest.raises(ToolchainError, match="changed upstream"),
        applied([patch]),
    ):
        pass


def test_other_passes_upstream_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.exir.program import _program

    passes = list(_program.base_pre_op_replace_passes)
    monkeypatch.setattr(_program, "base_pre_op_replace_passes", passes[:1] + passes[2:])
    with pytest.raises(ToolchainError, match="to_edge runs other passes"), applied([edge_passes.PATCH]):
        pass


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_module_is_compiled_when_it_is_called() -> None:
    with applied([graph_modules.PATCH]):
        module = torch.fx.symbolic_trace(Twice())
        assert "mul" not in module.code
        product = next(node for node in module.graph.nodes if node.op == "call_function")
        product.args = (product.args[0], 3)
        module.recompile()
        assert module(torch.ones(2)).tolist() == [3, 3]
        product.args = (product.args[0], 4)
        module.recompile()
        assert module(torch.ones(2)).tolist() == [4, 4]
        later = torch.fx.symbolic_trace(Twice())
    # One that was made within is as good afterwards, and what is made then is compiled at once.
    assert later(torch.ones(2)).tolist() == [2, 2]
    assert "mul" in torch.fx.symbolic_trace(Twice()).code


def test_a_graph_module_that_changed_is_refused() -> None:
    def other(self: object) -> None: ...

    with (
        replaced(torch.fx.GraphModule, "recompile", other),
        pytest.raises(ToolchainError, match="no longer contains"),
        applied([graph_modules.PATCH]),
    ):
        pass


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x])


def sizes(module: torch.nn.Module) -> list[str]:
    from torch.export import Dim, export

    shapes = ({0: Dim("S", min=2, max=64)},)
    graph = export(module, (torch.ones(4, 3),), dynamic_shapes=shapes).graph
    return [str(tuple(node.meta["val"].shape)) for node in graph.nodes if "val" in node.meta]


def test_a_size_is_what_it_is_without_being_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental.sym_node import SymNode

    product, asked = SymNode._mul, []

    @functools.wraps(product)
    def counted(*two: Any) -> Any:
        asked.append(two)
        return product(*two)

    monkeypatch.setattr(SymNode, "_mul", counted)
    wanted, every = sizes(Doubled()), len(asked)
    asked.clear()
    with applied([symbolic_sizes.PATCH]):
        assert sizes(Doubled()) == wanted and len(asked) < every / 2
        # Other symbols of another graph have sizes of their own.
        assert sizes(Doubled()) == wanted


def test_a_size_whose_arithmetic_changed_is_refused() -> None:
    from torch.fx.experimental.sym_node import SymNode

    def other(self: object, other: object) -> None: ...

    with (
        replaced(SymNode, "_mul", other),
        pytest.raises(ToolchainError, match="no longer contains"),
        applied([symbolic_sizes.PATCH]),
    ):
        pass


def test_an_emitter_that_changed_is_refused() -> None:
    from executorch.exir.emit import _emitter

    def other(self: object, spec: object, constant_tag: object = None) -> None: ...

    with (
        replaced(_emitter._Emitter, "_tensor_spec_to_evalue", other),
        pytest.raises(ToolchainError, match="no longer contains 'bytes\\("),
        applied([emitted_constants.PATCH]),
    ):
        pass
    assert "bytes" not in vars(_emitter)
