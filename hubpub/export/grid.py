"""Weights that were trained for four bits: their integers and scales as training left them, and not rounded anew.

A checkpoint of quantization-aware training holds them as integers (see hubpub.model.packed), or as bfloat16 weights
that lie on a grid: in every 32 of a row, one scale (a bfloat16 number, of either sign) times an integer in -8..7,
rounded to bfloat16. The grid is found again, group by group: the largest weight is k scales for k in 8..1, and the
scale is right when every weight of the group is exactly what it makes of an integer.

XNNPACK multiplies with integers in -8..7 and positive scales, and refuses others. A group of a negative scale is that
of the positive one with its integers negated: -7..8. Where the 8 occurs, all integers of the group are stored one
lower, and what that takes off, its scale times the sum of its inputs, is added again by a product of 1/32 of the size.
The scales of that one are stored in two matrices of int8, high and low, which hold a bfloat16 scale exactly unless it
is less than about a hundredth of its row's largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from hubpub.config import Recipe
from hubpub.export.quantize import (
    EPS,
    DynamicLinear,
    QuantizedEmbedding,
    layer_schemes,
    pack,
    replace,
    symmetric,
    tables,
)
from hubpub.facts import GridFact, rounded
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import DTYPES
from hubpub.model.packed import GROUP, slices

# Groups at the start of a tensor that tell whether it lies on a grid, and the share of them that must.
_SAMPLE, _MOSTLY = 4096, 0.9
# Weights that are looked at together: they stay in the processor's cache.
_SLICE = 1 << 19
_TINY = 1e-30
# Of the low part of a scale, relative to the high one: a power of two, so that sums of both are exact.
_LOW = 128


@dataclass
class Found:
    """One matrix on its grid: integers int4 packed by two [rows, columns / 2] (see `pack`), scales bfloat16 [rows,
    groups], and scales [rows, groups] of the groups whose integers are one lower than they were, zero elsewhere.

    `exact` of its groups are as they were; the others were on no grid and are rounded to nearest.
    """

    values: torch.Tensor
    scales: torch.Tensor
    shifts: torch.Tensor
    exact: int = 0

    @classmethod
    def empty(cls, rows: int, columns: int) -> Found:
        return cls(
            torch.empty(rows, columns // 2, dtype=torch.uint8),
            torch.empty(rows, columns // GROUP, dtype=torch.bfloat16),
            torch.zeros(rows, columns // GROUP),
        )

    @property
    def groups(self) -> int:
        return int(self.scales.numel())

    @property
    def shifted(self) -> int:
        return int(self.shifts.count_nonzero())


def recover(weight: torch.Tensor, *, signed: bool = False) -> Found | None:
    """The grid of `weight` bfloat16 [rows, columns]; None where it lies on none.

    `signed`: for a table, whose kernel takes scales of either sign, and pairs the other half first.
    """
    rows, columns = weight.shape
    if columns % GROUP or weight.dtype != torch.bfloat16:
        return None
    sample = weight[: max(1, _SAMPLE * GROUP // columns)]
    if _fit(sample.reshape(-1, GROUP)).exact.float().mean() < _MOSTLY:
        return None
    found = Found.empty(rows, columns)
    step = max(1, _SLICE // columns)
    for first in range(0, rows, step):
        groups = weight[first : first + step].reshape(-1, GROUP)
        fit = _fit(groups)
        if not fit.exact.all():
            off = ~fit.exact
            values, scales = symmetric(groups[off], 4, None, torch.bfloat16)
            fit.integers[off], fit.scales[off], fit.high[off] = values.float(), scales.squeeze(-1).float(), False
        _store(found, first, fit, signed=signed)
    return found if found.exact >= _MOSTLY * found.groups else None


def stored(words: torch.Tensor, scales: torch.Tensor) -> Found:
    """The integers of a packed matrix (see hubpub.model.packed) as they are."""
    found = Found.empty(words.shape[0], words.shape[1] * 8)
    for first, values, own in slices(words, scales):
        integers, factors = values.unflatten(-1, (-1, GROUP)).flatten(0, 1).float(), own.flatten().float()
        # A zero times a scale of nothing, which no kernel takes.
        integers[factors == 0] = 0
        factors = torch.where(integers.any(-1), factors, EPS)
        integers[factors < 0] *= -1
        # A scale that is no bfloat16 number is rounded to one: such a group is not what it was.
        narrow = factors.abs().bfloat16().float()
        same = (narrow == factors.abs()) | ~integers.any(-1)
        _store(found, first, _Fit(integers, narrow, same, integers.amax(-1) == 8), signed=False)
    return found


@dataclass(frozen=True)
class _Fit:
    """Integers float32 [n, 32] in -8..8 and positive scales float32 [n] of n groups; whether they are exactly what they
    were, and whether they reach 8."""

    integers: torch.Tensor
    scales: torch.Tensor
    exact: torch.Tensor
    high: torch.Tensor


def _fit(groups: torch.Tensor) -> _Fit:
    """The integers and scales of `groups` bfloat16 [n, 32]; those of a group that does not fit say nothing."""
    lowest, highest = groups.amin(-1).float(), groups.amax(-1).float()
    largest = torch.maximum(highest, -lowest)
    scales = torch.where(largest > 0, largest / 8, EPS).bfloat16().float()
    integers, fits = _on(groups, scales)
    # Eight first: of signed scales the largest weight is always eight of them, and then there is no other candidate.
    for k, other in product(range(7, 0, -1), (0, 1, -1)):
        left = (~fits).nonzero().squeeze(-1)
        if not len(left):
            break
        near = ((largest[left] / k).bfloat16().view(torch.int16) + other).view(torch.bfloat16).float()
        values, good = _on(groups[left], near)
        hit = left[good]
        integers[hit], scales[hit], fits[hit] = values[good], near[good], True
    # Integers that are all even and reach 8 are half as large at twice the scale.
    even = (fits & (highest == 8 * scales)).nonzero().squeeze(-1)
    for columns in (slice(4), slice(None)) * 3:
        even = even[(integers[even, columns].remainder(2) == 0).all(-1)]
        if not len(even):
            break
        if columns.stop is None:
            integers[even], scales[even] = integers[even] / 2, scales[even] * 2
    high = (highest / scales).round() == 8
    # What reaches both ends has one integer more than four bits hold.
    return _Fit(integers, scales, fits & ~(high & ((lowest / scales).round() == -8)), high)


def _on(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers of `groups` [n, 32] at `scales` [n], and whether their products are exactly those weights."""
    factor = scales.unsqueeze(-1)
    integers = (groups / factor).round_()
    fits = ((integers * factor).bfloat16() == groups).all(-1)
    # A kernel takes no scale that is smaller than any normal number.
    return integers, fits & (scales > _TINY)


def _store(found: Found, first: int, fit: _Fit, *, signed: bool) -> None:
    """Put groups into the rows of `found` from `first` on."""
    groups = found.scales.shape[1]
    integers, scales, exact, high = fit.integers, fit.scales, fit.exact, fit.high
    rows = slice(first, first + len(scales) // groups)
    if signed:
        integers = torch.where(high.unsqueeze(-1), -integers, integers)
        scales = torch.where(high, -scales, scales)
        # The kernel of a table reads float16.
        exact = exact & ((scales.half().float() == scales) | ~integers.any(-1))
    else:
        integers = integers - high.unsqueeze(-1).float()
        shifts = (scales * high).reshape(-1, groups)
        found.shifts[rows] = shifts
        kept = sum(part.float() * own.unsqueeze(-1) for part, own in in_two(shifts))
        exact = exact & (kept == shifts).flatten()
    found.exact += int(exact.sum())
    found.scales[rows] = scales.reshape(-1, groups).bfloat16()
    found.values[rows] = pack(integers.reshape(-1, groups * GROUP).to(torch.int8), low_first=not signed)


def in_two(shifts: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """`shifts` [rows, groups] as a high and a low matrix of int8, each with its scales float32 [rows]."""
    # Powers of two, so that the sum of both is exact.
    scales = torch.ldexp(torch.ones(len(shifts)), torch.frexp(shifts.amax(-1) / 127)[1])
    high = (shifts / scales.unsqueeze(-1)).round()
    low = ((shifts / scales.unsqueeze(-1) - high) * _LOW).round()
    return (high.to(torch.int8), scales), (low.to(torch.int8), scales / _LOW)


def layer(name: str, found: Found) -> DynamicLinear:
    """The linear layer `name` with the integers that were found."""
    parts: tuple[DynamicLinear, ...] = ()
    if found.shifts.any():
        parts = tuple(
            DynamicLinear(f"{name}.{which}", values, scales, 8, None)
            for which, (values, scales) in zip(("high", "low"), in_two(found.shifts), strict=True)
            if values.any()
        )
    return DynamicLinear(name, found.values, found.scales, 4, GROUP, parts)


def keep_grids(model: Any, checkpoint: Checkpoint, recipe: Recipe) -> GridFact | None:
    """Replace what lies on a four-bit grid in the mapped `model` by its own integers, where `recipe` has four bits.

    That holds for layers, too, to which the recipe would give eight: they are exact in four. Returns what was found;
    None where nothing was, or the recipe has no four bits.
    """
    if not recipe.in_four_bits:
        return None
    packed = checkpoint.packed
    kept: list[Found] = []
    others: list[str] = []
    weights = on_grid = 0
    for name in layer_schemes(model, recipe):
        linear = model.get_submodule(name)
        weights += linear.weight.numel()
        at = packed.get(f"{name.removeprefix('model.')}.weight")
        found = recover(linear.weight) if at is None else stored(*at.read(checkpoint.folder))
        if found is None or linear.bias is not None:
            others.append(name)
            continue
        on_grid += linear.weight.numel()
        kept.append(found)
        replace(model, name, layer(name, found))
    if not kept:
        return None
    for name, scheme in tables(recipe, checkpoint.family).items():
        table = model.get_submodule(name)
        if scheme.weight == "int4" and scheme.group == GROUP and (found := recover(table.weight, signed=True)):
            kept.append(found)
            replace(model, name, QuantizedEmbedding.packed(table, found.values, found.scales, DTYPES[recipe.dtype]))
    return GridFact(
        explicit=bool(packed),
        matrices=len(kept),
        groups=sum(found.groups for found in kept),
        exact=sum(found.exact for found in kept),
        shifted=sum(found.shifted for found in kept),
        weights_share=rounded(on_grid / weights),
        others=tuple(others[:20]),
    )
