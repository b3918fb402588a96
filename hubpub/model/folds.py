"""Scales that move between layers: a channel divided where it is computed, and multiplied back by all who read it.

The model computes what it did, and at run time nothing more: the division lies in the weight of a norm, in the rows of
a linear layer, or in the factor of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Fold:
    """`source` is a norm or a linear layer, `readers` all linear layers that read its output: paths of modules.

    What lies between the two passes a scale per channel on: nothing, a product with something else, or attention, where
    each key head is read by several heads in turn.
    """

    source: str
    readers: tuple[str, ...]


HEAD = Fold("model.norm", ("lm_head",))


def folds_of(model: Any, folds: tuple[Fold, ...]) -> list[Fold]:
    """`folds` of a layer, given by paths below it, in every layer of `model`, and that before the head.

    Readers that a layer lacks are left out (one that shares keys has no projection to them), and so are folds whose
    source or whose every reader is missing.
    """
    found = []
    for index, layer in enumerate(model.model.layers):
        names = {name for name, _ in layer.named_modules()}
        for fold in folds:
            readers = tuple(f"model.layers.{index}.{name}" for name in fold.readers if name in names)
            if fold.source in names and readers:
                found.append(Fold(f"model.layers.{index}.{fold.source}", readers))
    return [*found, HEAD]


def heads_of(model: Any, fold: Fold) -> tuple[int, int] | None:
    """Key heads and size of each where attention lies between source and reader, else None."""
    if not fold.source.endswith(".v_proj"):
        return None
    attention = model.get_submodule(fold.source.rpartition(".")[0])
    size = int(attention.head_dim)
    return model.get_submodule(fold.source).out_features // size, size


def tie_heads(values: torch.Tensor, heads: tuple[int, int] | None) -> torch.Tensor:
    """The mean of `values` [heads * size] over the heads that read one key head: [key heads * size]."""
    if heads is None:
        return values
    count, size = heads
    return values.reshape(count, -1, size).mean(1).reshape(-1)


def spread_heads(values: torch.Tensor, heads: tuple[int, int] | None, width: int) -> torch.Tensor:
    """`values` [key heads * size] as each of the heads that read them sees them: [width]."""
    if heads is None:
        return values
    count, size = heads
    return values.reshape(count, 1, size).expand(count, width // (count * size), size).reshape(-1)


def divide(source: nn.Module, scales: torch.Tensor, norm_offset: float) -> None:
    """Divide the output of a norm, or of a linear layer whose weights are floating point, by `scales` [channels]."""
    from torch.nn import Parameter

    weight: Any = source.weight
    stored = weight.detach().float()
    divided = stored / scales.unsqueeze(1) if stored.ndim == 2 else (stored + norm_offset) / scales - norm_offset
    source.weight = Parameter(divided, requires_grad=False)
