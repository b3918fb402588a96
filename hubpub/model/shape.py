"""What the decoder needs to know of a text model: its kinds of layers, and which of them own keys and values."""

from __future__ import annotations

from dataclasses import dataclass

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class KVLayer:
    """A layer that owns keys and values: its index, kind of attention and the shape of one position's keys."""

    index: int
    kind: str
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Shape:
    """What the decoder needs to know of a text model; `owners` lists the layers with keys and values of their own.

    `sliding_window` is None where every layer attends to everything before it. Such a model takes one attention mask,
    the others one for each kind of layer.
    """

    layer_kinds: tuple[str, ...]
    owners: tuple[KVLayer, ...]
    sliding_window: int | None
    vocabulary: int
    max_context: int
