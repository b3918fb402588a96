"""Llama and what is built like it (SmolLM2): every layer attends to the whole context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubpub.model.families import Family

if TYPE_CHECKING:
    from hubpub.model.decoder import Shape
    from hubpub.model.patches import Patch


def _shape(config: Any) -> Shape:
    from hubpub.model.decoder import FULL, KVLayer, Shape

    layers = range(config.num_hidden_layers)
    owners = tuple(KVLayer(index, FULL, config.num_key_value_heads, config.head_dim) for index in layers)
    return Shape((FULL,) * len(owners), owners, None, config.vocab_size, config.max_position_embeddings)


def _patches() -> tuple[Patch, ...]:
    from hubpub.model.patches import sdpa_meta

    return (sdpa_meta.PATCH,)


# Many publish models of this architecture, each under a license of their own, and tokenizers with <bos> and without.
FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    text_class="LlamaForCausalLM",
    text_prefix="model.",
    shape=_shape,
    patches=_patches,
    license=None,
    begins_with_bos=None,
)
