"""Four-bit integers that a checkpoint holds as such: the "pack-quantized" form of compressed-tensors.

A matrix [rows, columns] is stored as `weight_packed`, int32 [rows, columns / 8], whose lowest four bits are the first
column plus 8; `weight_scale` [rows, columns / 32]; and `weight_shape`. It stands for the products of integers and
scales, in the dtype of the scales. Only what Gemma is published in is read: four bits, symmetric, groups of 32.
Source of the form: https://github.com/vllm-project/compressed-tensors (compressors/pack_quantized).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

GROUP = 32
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
_IN_WORD = 8
_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
_STRANGE = (".weight_zero_point", ".weight_g_idx")
# Integers that are unpacked at a time.
_SLICE = 1 << 22


class Entry(Protocol):
    """What a header says of one tensor (see hubpub.model.checkpoint.Stored)."""

    @property
    def shard(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=Entry)


@dataclass(frozen=True)
class Packed:
    """Where the integers and scales of one matrix lie: the shards of either, and the name of the matrix in them."""

    name: str
    integers: str
    scales: str

    def read(self, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """The mapped words int32 [rows, columns / 8] and scales [rows, columns / 32]."""
        from safetensors import safe_open

        with safe_open(folder / self.integers, "pt") as file:
            words: torch.Tensor = file.get_tensor(self.name + _PACKED)
        with safe_open(folder / self.scales, "pt") as file:
            scales: torch.Tensor = file.get_tensor(self.name + _SCALE)
        return words, scales


def form_error(config: Mapping[str, Any]) -> str | None:
    """What of a config.json's `quantization_config` is not as it is read here; None where all is, or there is none."""
    found = config.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        return "quantization_config is no table"
    if found.get("quant_method") != METHOD:
        return f"quant_method is {found.get('quant_method')!r}"
    if found.get("format") != FORMAT:
        return f"format is {found.get('format')!r}"
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        asked = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
        for key, value in asked.items():
            if not isinstance(weights, dict) or weights.get(key) != value:
                said = weights.get(key) if isinstance(weights, dict) else None
                return f"weights.{key} is {said!r} where {value!r} is read"
        if weights and weights.get("actorder"):
            return "weights.actorder is set"
    return None


def unpacked(tensors: Mapping[str, T], make: Callable[[T, tuple[int, ...], str, Packed], T]) -> dict[str, T]:
    """`tensors` with one `weight` for the three that hold a packed matrix; `make` gives it, from the packed one, its
    shape and its dtype.

    Raises ValueError for a matrix that lacks its scales, or whose parts do not fit together.
    """
    found = {}
    for name, one in tensors.items():
        if name.endswith(_STRANGE):
            raise ValueError(f"tensor {name}: only symmetric integers in their own order are read")
        if name.endswith((_SCALE, _SHAPE)) and name.rpartition(".")[0] + _PACKED in tensors:
            continue
        if not name.endswith(_PACKED):
            found[name] = one
            continue
        matrix = name.removesuffix(_PACKED)
        scale = tensors.get(matrix + _SCALE)
        if scale is None:
            raise ValueError(f"tensor {matrix + _SCALE} is missing")
        if one.dtype != "I32" or scale.dtype not in ("BF16", "F16", "F32") or len(one.shape) != 2:
            raise ValueError(f"tensor {name} is {one.dtype} {list(one.shape)} with scales of {scale.dtype}")
        rows, columns = one.shape[0], one.shape[1] * _IN_WORD
        if columns % GROUP or scale.shape != (rows, columns // GROUP):
            raise ValueError(
                f"tensor {matrix + _SCALE} is {list(scale.shape)} where {rows} x {columns} integers have one scale "
                f"for {GROUP}"
            )
        found[matrix + ".weight"] = make(one, (rows, columns), scale.dtype, Packed(matrix, one.shard, scale.shard))
    return found


def integers(words: torch.Tensor) -> torch.Tensor:
    """Int8 [rows, columns] in -8..7 of `words` int32 [rows, columns / 8]."""
    import torch

    data = words.contiguous().view(torch.uint8)
    # Little-endian: the byte that comes first holds the first two columns, the even one in its lower half.
    return (torch.stack((data & 15, data >> 4), -1).flatten(-2).view(torch.int8)) - 8


def slices(words: torch.Tensor, scales: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """First row, integers int8 [some, columns] and scales [some, groups] of a matrix, some rows at a time."""
    step = max(1, _SLICE // (words.shape[1] * _IN_WORD))
    for first in range(0, words.shape[0], step):
        yield first, integers(words[first : first + step]), scales[first : first + step]


def fill(out: torch.Tensor, words: torch.Tensor, scales: torch.Tensor) -> None:
    """Write what a packed matrix stands for to `out` [rows, columns], in the dtype of its scales."""
    for first, values, own in slices(words, scales):
        grouped = values.unflatten(-1, (-1, GROUP)).to(own.dtype) * own.unsqueeze(-1)
        out[first : first + values.shape[0]] = grouped.flatten(-2)
