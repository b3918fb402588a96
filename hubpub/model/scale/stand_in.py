"""What describes one scale checkpoint: plain values, of which each changes its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hubpub.model.scale.byte_tokenizer import ByteTokenizer
from hubpub.model.scale.gemma_tokenizer import GemmaTokenizer

CONTEXT = 4096


@dataclass(frozen=True)
class Training:
    """How a scale model is trained: `batch` readings of `length` tokens a step.

    A `nested` one is trained so that its slices work, each step another: feed-forwards keep `narrowest` of their
    neurons or more, and the layers that `nested` names may be left out.
    """

    steps: int
    batch: int = 8
    length: int = 128
    rate: float = 8e-3
    decay: float = 0.5
    nested: tuple[int, ...] | None = None
    narrowest: float = 0.5


@dataclass(frozen=True)
class StandIn:
    """One checkpoint that stands in for a real one, tuned for chat where it has a `chat_template`.

    `config` and `generation` are its config.json and generation_config.json. A text begins with the ids of `begin`
    whether or not the tokenizer puts them there. Weights of norms are drawn around `norm`; those of queries and keys
    around a value that grows with the head size where attention is not scaled by it (`scaled` is false). `unused` maps
    stored tensors that the text decoder does not read to their shapes.
    """

    name: str
    family: str
    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: GemmaTokenizer | ByteTokenizer
    chat_template: str | None
    training: Training
    begin: tuple[int, ...]
    norm: float
    scaled: bool
    shards: int = 1
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        """Whether the checkpoint is tuned for chat."""
        return self.chat_template is not None
