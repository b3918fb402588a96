"""A recipe applied to a model: every linear layer and table in the form that lowers and runs.

Weights are symmetric integers with one scale per output channel or per group along the input. The scale of an int4
group is the one of a few candidates that leaves the least squared error; of int8 rows it is max|w| / 127, of int16 rows
a power of two. They are rounded to nearest or, where the recipe is calibrated, before this (see
hubpub.export.calibrate). A module is read from the mapped checkpoint, quantized and released before the next: the model
is never held at full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hubpub.config import Recipe, Scheme
from hubpub.errors import ExportError
from hubpub.model.families import Family

EPS = 1e-10
# Weights that share a scale, in XNNPACK's kernels for int4.
SMALLEST_GROUP = 32


def quantize(model: Any, recipe: Recipe, family: Family, head_scales: torch.Tensor | None = None) -> dict[str, int]:
    """Replace the weights of `model` in place as `recipe` says. Returns how many modules each scheme was used for.

    The head is untied from the embedding first where the two are stored differently. Linear layers whose input width
    is not a multiple of 32 (the 4-wide AltUp coefficients of Gemma 3n) keep their floating-point weights.
    What is left in floating point becomes the recipe's dtype.

    Columns of the head are multiplied by `head_scales` [width], by which its input was divided. A table that is stored
    once with the head is multiplied too, and its rows are divided after they are read.
    """
    used: dict[str, int] = {}
    in_tables = tables(recipe, family)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.dtype]
    tied = model.lm_head.weight.data_ptr() == model.get_submodule(family.embedding).weight.data_ptr()
    if recipe.head is not None or recipe.embedding is not None:
        # The two shared one tensor; from here on each module replaces its own reference.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach(), requires_grad=False)
    of_head = _linear_scheme("lm_head", model.lm_head, recipe)
    once = tied and of_head is not None and of_head.holds_as_table(recipe.embedding)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            # Export only fuses a table without a padding row; at inference the row is read like any other.
            module.padding_idx = None
            if scheme := in_tables.get(name):
                if scheme.weight == "bf16":
                    replace(model, name, Bfloat16Embedding.of(module, dtype))
                else:
                    multiplied = head_scales if once and name == family.embedding else None
                    replace(model, name, QuantizedEmbedding.of(module, scheme, dtype, multiplied))
                used[f"embedding {scheme}"] = used.get(f"embedding {scheme}", 0) + 1
        elif isinstance(module, nn.Linear):
            scheme = _linear_scheme(name, module, recipe)
            if scheme is None:
                continue
            table = model.get_submodule(family.embedding)
            if name == "lm_head" and once and _of_rows(table):
                # The same integers: the file holds them once.
                replace(model, name, DynamicLinear(name, table.values, table.scales, table.bits, None))
            elif scheme.multiplies:
                multiplied = head_scales if name == "lm_head" else None
                replace(model, name, DynamicLinear.of(name, module, scheme, multiplied))
            elif scheme.weight == "int8" and not scheme.group:
                replace(model, name, WeightOnlyLinear.of(module))
            else:
                raise ExportError(f"{name}: weight-only {scheme} has no kernel", "use int8 per channel")
            used[f"linear {scheme}"] = used.get(f"linear {scheme}", 0) + 1
    for module in model.modules():
        if not isinstance(module, (QuantizedEmbedding, Bfloat16Embedding, DynamicLinear, WeightOnlyLinear)):
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.dtype != dtype:
                    module._parameters[key] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
            for key, buffer in module._buffers.items():
                # Those that are not stored were computed by the model's own code, in the precision it wants.
                if buffer is not None and key not in module._non_persistent_buffers_set:
                    module._buffers[key] = buffer.to(dtype)
    if recipe.head is None and recipe.embedding is None:
        model.tie_weights()
    return used


def tables(recipe: Recipe, family: Family) -> dict[str, Scheme]:
    """The tables that `recipe` stores in another form, by module path."""
    found = {family.embedding: recipe.embedding, family.per_layer_embedding: recipe.per_layer_embedding}
    return {name: scheme for name, scheme in found.items() if name is not None and scheme is not None}


def _of_rows(table: nn.Module) -> bool:
    """Whether `table` has one scale a row, as its scheme says, and not the groups of four bits it was trained for."""
    return isinstance(table, QuantizedEmbedding) and table.bits > 4 and table.scales.ndim == 1


def layer_schemes(model: Any, recipe: Recipe) -> dict[str, Scheme]:
    """The linear layers of the decoder that get integers with int8 activations, by module path; the head is none."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            scheme = _linear_scheme(name, module, recipe)
            if scheme is not None and scheme.activation:
                found[name] = scheme
    return found


def _linear_scheme(name: str, linear: nn.Linear, recipe: Recipe) -> Scheme | None:
    """How the weights of a linear layer are stored; None where they stay as they are.

    A width that does not divide into the recipe's groups gets the smallest there are.
    """
    overrides = (override.scheme for override in recipe.overrides if fnmatchcase(name, override.pattern))
    scheme = next(overrides, recipe.head if name == "lm_head" else recipe.linear)
    if scheme is None or linear.in_features % SMALLEST_GROUP:
        return None
    if scheme.group and linear.in_features % scheme.group:
        return scheme.model_copy(update={"group": SMALLEST_GROUP})
    return scheme


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


# Shares of the largest weight of a group that may be mapped to the outermost integer, -8 or 7. On normally distributed
# weights the best of these four leaves 19 % (groups of 32) to 21 % (of 64) less squared error than the largest weight
# alone; forty shares down to 0.6 leave another 3 % less, and take ten times as long.
_CLIPS = (1.0, 0.94, 0.88, 0.82)


def symmetric(
    weight: torch.Tensor,
    bits: int,
    group: int | None,
    scale_dtype: torch.dtype = torch.float32,
    importance: torch.Tensor | None = None,
    multiplied: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (int8) like `weight` [rows, columns] and scales [rows, groups]; one group where None.

    Integers are chosen for the scales as they are stored, so that their rounding to `scale_dtype` costs nothing twice.
    `importance` [columns] weighs the squared errors by which the scale of an int4 group is chosen. Columns are
    multiplied by `multiplied` [columns] first.
    """
    rows, columns = weight.shape
    size = group or columns
    if columns % size:
        raise ExportError(f"rows of {columns} weights do not divide into groups of {size}")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, columns // size, dtype=scale_dtype)
    weights = None if importance is None else importance.reshape(-1, size)
    # A slice at a time, small enough for the processor's cache: a table of two billion weights is never float32.
    step = max(1, (4 << 20) // (columns * 4))
    for first in range(0, rows, step):
        part = weight[first : first + step].float()
        part = (part if multiplied is None else part * multiplied).reshape(-1, columns // size, size)
        limit = part.abs().amax(-1, keepdim=True)
        best = best_error = None
        for clip in _CLIPS if bits == 4 else (1.0,):
            scale = (limit * (clip / high)).clamp(min=EPS).to(scale_dtype).float()
            rounded = (part / scale).round_().clamp_(low, high)
            if bits != 4:
                best = (scale, rounded)
                break
            error = torch.addcmul(part, rounded, scale, value=-1).square_()
            if weights is not None:
                error *= weights
            error = error.sum(-1, keepdim=True)
            if best is None:
                best, best_error = (scale, rounded), error
            else:
                better = error < best_error
                best = (torch.where(better, scale, best[0]), torch.where(better, rounded, best[1]))
                best_error = torch.minimum(error, best_error)
        assert best is not None
        values[first : first + step] = best[1].to(torch.int8).reshape(-1, columns)
        scales[first : first + step] = best[0].squeeze(-1).to(scale_dtype)
    return values, scales


def symmetric_int4(
    weight: torch.Tensor, group: int | None, *, low_first: bool, multiplied: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`symmetric` in four bits with bfloat16 scales, packed: never more than a slice of it takes a byte per weight."""
    rows, columns = weight.shape
    values = torch.empty(rows, columns // 2, dtype=torch.uint8)
    scales = torch.empty(rows, columns // (group or columns), dtype=torch.bfloat16)
    step = max(1, (4 << 20) // columns)
    for first in range(0, rows, step):
        rows_ = weight[first : first + step]
        part, scales[first : first + step] = symmetric(rows_, 4, group, torch.bfloat16, multiplied=multiplied)
        values[first : first + step] = pack(part, low_first=low_first)
    return values, scales


# Of the integers of 16 bits that `int16` stores, the largest whose high byte fits after the low one is rounded off.
_LARGEST = 127 * 256 + 127
# What the high byte of such an integer counts.
HIGH = 256.0


def int16(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of 16 bits for `weight` [rows, columns], and scales float32 [rows] that are powers of two.

    They are stored as int8 [rows, 2 * columns], the high bytes of a row before its low ones, both signed: XNNPACK has
    fast kernels on every processor for float32 times int8, and for bfloat16 on few. A bfloat16 has eight significant
    bits, so that it is kept exactly from 1/128 of its row's largest weight on; what is smaller is off by half a scale.
    """
    rows, columns = weight.shape
    values = torch.empty(rows, 2 * columns, dtype=torch.int8)
    scales = torch.empty(rows)
    step = max(1, (4 << 20) // (columns * 4))
    for first in range(0, rows, step):
        part = weight[first : first + step].float()
        fraction, exponent = torch.frexp(part.abs().amax(-1) / _LARGEST)
        # A power of two itself needs no larger one; a smaller scale than the last would not be a normal number.
        scale = torch.ldexp(torch.ones_like(fraction), (exponent - (fraction == 0.5).int()).clamp(min=-126))
        integers = (part / scale.unsqueeze(-1)).round_().int()
        high = (integers + 128) >> 8
        values[first : first + step, :columns] = high
        values[first : first + step, columns:] = integers - (high << 8)
        scales[first : first + step] = scale
    return values, scales


def pack(values: torch.Tensor, *, low_first: bool) -> torch.Tensor:
    """Two int4 values of [rows, columns] int8 to a byte (uint8), each plus 8; `low_first`: the even column lies low."""
    pairs = (values + 8).view(torch.uint8).unflatten(-1, (-1, 2))
    low, high = (pairs[..., 0], pairs[..., 1]) if low_first else (pairs[..., 1], pairs[..., 0])
    return high << 4 | low


def unpack(packed: torch.Tensor, *, low_first: bool) -> torch.Tensor:
    """What `pack` packed: int8 [rows, columns]."""
    low, high = (packed & 15).view(torch.int8) - 8, (packed >> 4).view(torch.int8) - 8
    return torch.stack((low, high) if low_first else (high, low), -1).flatten(-2)


def to_int8_and_back(x: torch.Tensor) -> torch.Tensor:
    """x [..., in] float32 as XNNPACK's kernels see it: int8 with one scale and zero point per row."""
    lowest, highest = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = ((highest - lowest) / 255).clamp(min=EPS)
    zero = (-128 - lowest / step).round().clamp(-128, 127)
    return (((x / step).round() + zero).clamp(-128, 127) - zero) * step


class DynamicLinear(nn.Module):
    """Integer weights in a form that XNNPACK has kernels for.

    Activations are quantized per token at run time, or stay float32 where weights have 16 bits. While exporting it is
    one call of `hubpub::dynamic_linear`, which carries the layer's name and not its weights; run eagerly it does in
    floating point what the kernel does in integers. `beside` are products with the sums of each group of the input,
    which are added (see hubpub.export.grid).
    """

    def __init__(
        self,
        name: str,
        values: torch.Tensor,
        scales: torch.Tensor,
        bits: int,
        group: int | None,
        beside: Sequence[DynamicLinear] = (),
    ) -> None:
        super().__init__()
        self.beside = nn.ModuleList(beside)
        self.name, self.bits, self.group = name, bits, group
        # Plain attributes: a buffer would be emitted as a constant of the program beside the delegate's.
        self.values, self.scales = values, scales
        self.out_features = values.shape[0]
        self.in_features = values.shape[1] * 8 // bits

    @classmethod
    def of(cls, name: str, linear: nn.Linear, scheme: Scheme, multiplied: torch.Tensor | None = None) -> DynamicLinear:
        """`multiplied` [in] is what columns are stored times."""
        if linear.bias is not None:
            raise ExportError(f"{name}: a quantized layer with a bias is not supported")
        if scheme.weight == "int4":
            values, scales = symmetric_int4(linear.weight, scheme.group, low_first=True, multiplied=multiplied)
            return cls(name, values, scales, 4, scheme.group)
        if scheme.weight == "int16":
            return cls(name, *int16(linear.weight), 16, None)
        values, scales = symmetric(linear.weight, 8, None, multiplied=multiplied)
        return cls(name, values, scales.squeeze(-1), 8, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] float32 -> [..., out]."""
        out = self._product(x)
        if self.beside:
            sums = x.unflatten(-1, (-1, self.group)).sum(-1)
            for part in self.beside:
                out = out + part(sums)
        return out

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            result: torch.Tensor = torch.ops.hubpub.dynamic_linear(x, self.name, self.out_features)
            return result
        rounded = x if self.bits == 16 else to_int8_and_back(x)
        parts = []
        rows = max(1, (16 << 20) // self.in_features)
        for first in range(0, self.out_features, rows):
            values, scales = self.values[first : first + rows], self.scales[first : first + rows].float()
            if self.bits == 4:
                values = unpack(values, low_first=True)
            weight = values.float()
            if self.bits == 16:
                weight = joined(weight)
            weight = weight.reshape(values.shape[0], -1, self.group or self.in_features)
            # In place: new memory for each of these takes longer than the product.
            weight = weight.mul_(scales.reshape(values.shape[0], -1, 1)).flatten(1)
            parts.append(nn.functional.linear(rounded, weight))
        return torch.cat(parts, -1)


class QuantizedEmbedding(nn.Module):
    """A table of int8, int16 or packed int4 rows that are dequantized as they are looked up, then scaled."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bits: int, factor: Any, dtype: torch.dtype):
        """`factor` is what rows are multiplied by: a number, or a tensor with one for each column."""
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.bits, self.dtype = bits, dtype
        if isinstance(factor, torch.Tensor):
            self.register_buffer("factor", factor)
        else:
            self.factor = factor

    @classmethod
    def of(
        cls, table: nn.Embedding, scheme: Scheme, dtype: torch.dtype, multiplied: torch.Tensor | None = None
    ) -> QuantizedEmbedding:
        """`multiplied` [width] is what int8 columns are stored times, and rows divided by when they are read."""
        bits = int(scheme.weight.removeprefix("int"))
        if bits == 4:
            return cls.packed(table, *symmetric_int4(table.weight, scheme.group, low_first=False), dtype)
        if bits == 16:
            return cls(*int16(table.weight), bits, _factor(table, dtype), dtype)
        values, scales = symmetric(table.weight, bits, scheme.group, multiplied=multiplied)
        factor: Any = _factor(table, dtype)
        if multiplied is not None:
            factor = (factor / multiplied).to(dtype)
        return cls(values, scales.squeeze(-1), bits, factor, dtype)

    @classmethod
    def packed(
        cls, table: nn.Embedding, values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
    ) -> QuantizedEmbedding:
        """`table` in int4 `values`, the odd column first, with bfloat16 `scales` [rows, groups]."""
        # The kernel reads float16, not bfloat16. Eight bits of a scale times an int4 are exact in either.
        return cls(values, scales.half().squeeze(-1), 4, _factor(table, dtype), dtype)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of int64 `indices` [...]; returns [..., width]."""
        ops = torch.ops.quantized_decomposed
        low, high = (-8, 7) if self.bits == 4 else (-128, 127)
        look_up = ops.embedding_4bit if self.bits == 4 else ops.embedding_byte
        values, scales = self.values, self.scales
        if not torch.compiler.is_exporting():
            # Run eagerly, the operator widens all of its table, which is gigabytes, whatever is looked up.
            needed, indices = indices.unique(return_inverse=True)
            values, scales = values[needed], scales[needed]
        rows = look_up.dtype(values, scales, None, low, high, indices, dtype=self.dtype)
        if self.bits == 16:
            rows = joined(rows)
        return rows * self.factor


class Bfloat16Embedding(nn.Module):
    """A table as it is published, whose rows are widened as they are looked up, then scaled."""

    def __init__(self, weight: torch.Tensor, factor: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.factor, self.dtype = factor, dtype

    @classmethod
    def of(cls, table: nn.Embedding, dtype: torch.dtype) -> Bfloat16Embedding:
        # No copy where it is bfloat16: it is sent from the mapped checkpoint to the file.
        return cls(table.weight.detach().bfloat16(), _factor(table, dtype), dtype)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of int64 `indices` [...]; returns [..., width]."""
        return nn.functional.embedding(indices, self.weight).to(self.dtype) * self.factor


def joined(halves: torch.Tensor) -> torch.Tensor:
    """Numbers [..., n] of their high parts and their low ones, which lie behind each other in [..., 2 * n]."""
    high, low = halves.chunk(2, -1)
    return high * HIGH + low


def _factor(table: nn.Embedding, dtype: torch.dtype) -> float:
    """What the original multiplies the rows of `table` with, rounded as the original rounds it."""
    factor = getattr(table, "embed_scale", None)
    return 1.0 if factor is None else float(factor.to(dtype).item())


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

    if not hasattr(torch.ops.hubpub, "dynamic_linear"):
        own = torch.library.Library("hubpub", "DEF")
        own.define("dynamic_linear(Tensor x, str name, int rows) -> Tensor")
        own.impl("dynamic_linear", lambda x, _, rows: x.new_empty(*x.shape[:-1], rows), "Meta")
        _LIBRARIES.append(own)

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
