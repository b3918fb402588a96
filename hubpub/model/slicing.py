"""A slice of a checkpoint, tensor by tensor: what each of its tensors is in the whole, and how it is read from there.

Rows that follow one another are a view of the mapped file. Columns are none that kernels could read: a tensor that
loses columns, or rows in its middle, is gathered, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hubpub.slices import Slice, Whole

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_AXES = {"mlp.gate_proj.weight": 0, "mlp.up_proj.weight": 0, "mlp.down_proj.weight": 1}
# One entry of so many numbers per layer, side by side.
_TABLES = {"per_layer_model_projection.weight": 0, "embed_tokens_per_layer.weight": 1}


@dataclass(frozen=True)
class Part:
    """What a slice keeps of the tensor that the whole calls `name`: the `ranges` (first, end) along `axis`."""

    name: str
    axis: int
    ranges: tuple[tuple[int, int], ...]

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that is left of `shape`."""
        kept = sum(end - first for first, end in self.ranges)
        return (*shape[: self.axis], kept, *shape[self.axis + 1 :])


def sliced_config(part: Slice, whole: Whole, text: Mapping[str, Any]) -> dict[str, Any]:
    """The text part of the slice's config.json, given that of the whole."""
    kept = whole.kept(part)
    made = {**text, "num_hidden_layers": len(kept), "intermediate_size": list(part.widths)}
    made["num_kv_shared_layers"] = sum(layer >= len(whole.kinds) - whole.shared for layer in kept)
    for key in ("layer_types", "activation_sparsity_pattern"):
        # Sparse layers stay sparse, and each layer stays of its kind. A pattern of one number is for every layer.
        if isinstance(text.get(key), list):
            made[key] = [text[key][layer] for layer in kept]
    return made


def parts(part: Slice, whole: Whole, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Part | None, str]]:
    """Names in the slice, what is kept of each tensor (None: all of it), and its name in the whole.

    `shapes` are those of the text tensors of the whole, by their name below the text model. Raises ValueError for a
    table whose width does not divide into layers.
    """
    kept = whole.kept(part)
    number = {layer: index for index, layer in enumerate(kept)}
    for name, shape in shapes.items():
        if (match := _LAYER.fullmatch(name)) is not None:
            layer, rest = int(match[1]), match[2]
            if layer not in number:
                continue
            new, axis = f"layers.{number[layer]}.{rest}", _AXES.get(rest)
            width = part.widths[number[layer]]
            narrow = axis is not None and width < whole.widths[layer]
            yield new, Part(name, axis or 0, ((0, width),)) if narrow else None, name
        elif name in _TABLES and part.skip:
            axis, layers = _TABLES[name], len(whole.kinds)
            if len(shape) != 2 or shape[axis] % layers:
                raise ValueError(f"tensor {name} of shape {list(shape)} does not divide into {layers} layers")
            yield name, Part(name, axis, _runs(kept, shape[axis] // layers)), name
        else:
            yield name, None, name


def _runs(kept: list[int], each: int) -> tuple[tuple[int, int], ...]:
    """Ranges of the `each` entries of every layer in `kept`, those that touch joined."""
    runs: list[list[int]] = []
    for layer in kept:
        if runs and runs[-1][1] == layer * each:
            runs[-1][1] += each
        else:
            runs.append([layer * each, (layer + 1) * each])
    return tuple((first, end) for first, end in runs)


def take(tensor: Any, part: Part, make: Any) -> Any:
    """The `part` of a mapped `tensor`: a view where it is rows that follow one another, else gathered.

    `make(shape, dtype)` gives the tensor that is filled, some rows at a time.
    """
    if part.axis == 0 and len(part.ranges) == 1:
        first, end = part.ranges[0]
        return tensor[first:end]
    out = make(part.of(tuple(tensor.shape)), tensor.dtype)
    done = 0
    for first, end in part.ranges:
        out.narrow(part.axis, done, end - first).copy_(tensor.narrow(part.axis, first, end - first))
        done += end - first
    return out
