"""A recipe applied to a model: every linear layer and table in the form that lowers and runs.

Weights are symmetric integers with one scale per output channel or per group along the input (round to nearest).
Layers for XNNPACK are quantized by torchao; tables and weight-only layers here, with scale = max|w| / (2^(bits-1) - 1).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hubpub.config import Recipe, Scheme
from hubpub.errors import ExportError
from hubpub.model.families import Family

EPS = 1e-10


def quantize(model: Any, recipe: Recipe, family: Family) -> dict[str, int]:
    """Replace the weights of `model` in place as `recipe` says. Returns how many modules each scheme was used for.

    The head is untied from the embedding first where the two are stored differently. Linear layers whose input width
    is not a multiple of the group size (the 4-wide AltUp coefficients of Gemma 3n) keep their floating-point weights.
    """
    used: dict[str, int] = {}
    tables = {
        family.embedding: recipe.embedding,
        family.per_layer_embedding: recipe.per_layer_embedding,
    }
    if recipe.head is not None or recipe.embedding is not None:
        # The two shared one tensor; from here on each module replaces its own reference.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach(), requires_grad=False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            # Export only fuses a table without a padding row; at inference the row is read like any other.
            module.padding_idx = None
            if scheme := tables.get(name):
                _replace(model, name, QuantizedEmbedding.of(module, scheme))
                used[f"embedding {scheme}"] = used.get(f"embedding {scheme}", 0) + 1
        elif isinstance(module, nn.Linear):
            scheme = _linear_scheme(name, recipe)
            if scheme is None or module.in_features % (scheme.group or 32):
                continue
            if scheme.activation is None:
                if scheme.weight != "int8" or scheme.group:
                    raise ExportError(f"{name}: weight-only {scheme} has no kernel", "use int8 per channel")
                _replace(model, name, WeightOnlyLinear.of(module))
            else:
                _dynamic(module, scheme)
            used[f"linear {scheme}"] = used.get(f"linear {scheme}", 0) + 1
    return used


def _linear_scheme(name: str, recipe: Recipe) -> Scheme | None:
    if name == "lm_head":
        return recipe.head
    for override in recipe.override:
        if fnmatchcase(name, override.pattern):
            return override.scheme
    return recipe.linear


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _dynamic(linear: nn.Linear, scheme: Scheme) -> None:
    """Integer weights with activations quantized per token at run time: the form XNNPACK has kernels for."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4 if scheme.weight == "int4" else torch.int8,
        weight_granularity=PerGroup(scheme.group) if scheme.group else PerAxis(0),
    )
    quantize_(linear, config, filter_fn=lambda module, _: module is linear)


def symmetric(weight: torch.Tensor, bits: int, group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (int8) like `weight` [rows, columns] and float32 scales [rows, groups]; one group where None."""
    rows, columns = weight.shape
    size = group or columns
    if columns % size:
        raise ExportError(f"rows of {columns} weights do not divide into groups of {size}")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // size, dtype=torch.float32)
    # A slice at a time: a table of two billion weights is never held in float32.
    step = max(1, (64 << 20) // (columns * 4))
    for first in range(0, rows, step):
        part = weight[first : first + step].float().reshape(-1, columns // size, size)
        scale = (part.abs().amax(-1, keepdim=True) / high).clamp(min=EPS)
        values[first : first + step] = (part / scale).round().clamp(low, high).to(torch.int8).reshape(-1, columns)
        scales[first : first + step] = scale.squeeze(-1)
    return values, scales


class QuantizedEmbedding(nn.Module):
    """A table of int8 or packed int4 rows that are dequantized as they are looked up, then scaled."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bits: int, factor: float, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.bits, self.factor, self.dtype = bits, factor, dtype

    @classmethod
    def of(cls, table: nn.Embedding, scheme: Scheme) -> QuantizedEmbedding:
        bits = int(scheme.weight.removeprefix("int"))
        values, scales = symmetric(table.weight, bits, scheme.group)
        if bits == 4:
            packed = torch.empty(values.shape[0], values.shape[1] // 2, dtype=torch.uint8)
            step = max(1, (64 << 20) // values.shape[1])
            for first in range(0, values.shape[0], step):
                pairs = (values[first : first + step] + 8).to(torch.uint8).reshape(-1, values.shape[1] // 2, 2)
                # The kernel reads the even column from the high half.
                packed[first : first + step] = pairs[..., 0] << 4 | pairs[..., 1]
            values = packed
        # The factor the original applies, rounded as the original rounds it.
        factor = getattr(table, "embed_scale", None)
        rounded = 1.0 if factor is None else factor.to(table.weight.dtype).item()
        return cls(values, scales.squeeze(-1), bits, rounded, table.weight.dtype)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of int64 `indices` [...]; returns [..., width]."""
        ops = torch.ops.quantized_decomposed
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        look_up = ops.embedding_byte if self.bits == 8 else ops.embedding_4bit
        rows = look_up.dtype(self.values, self.scales, None, low, high, indices, dtype=self.dtype)
        return rows * self.factor


class WeightOnlyLinear(nn.Module):
    """A linear layer with int8 weights per output channel and floating-point activations."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, linear: nn.Linear) -> WeightOnlyLinear:
        if linear.bias is not None:
            raise ExportError("a weight-only linear layer with a bias has no kernel")
        values, scales = symmetric(linear.weight, 8, None)
        return cls(values, scales.squeeze(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        out = torch.ops.quantized_decomposed.mixed_linear(flat, self.values, self.scales, None, None)
        return out.reshape(*x.shape[:-1], self.values.shape[0])


def register_operators() -> None:
    """Load the operators the quantized modules call, and give `mixed_linear` the eager form it lacks."""
    for name in ("executorch.kernels.quantized", "executorch.exir.passes._quant_patterns_and_replacements"):
        import_module(name)

    if torch._C._dispatch_has_kernel_for_dispatch_key(
        "quantized_decomposed::mixed_linear", "CompositeExplicitAutograd"
    ):
        return

    def mixed_linear(
        x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, zero_points: Any = None, dtype: Any = None
    ) -> torch.Tensor:
        assert zero_points is None
        assert dtype is None
        return nn.functional.linear(x, weight.to(x.dtype) * scales.to(x.dtype).reshape(-1, 1))

    library = torch.library.Library("quantized_decomposed", "IMPL")
    library.impl("mixed_linear", mixed_linear, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []
