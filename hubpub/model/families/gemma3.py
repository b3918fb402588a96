"""Gemma 3 in its text-only sizes, 270M and 1B: every layer has keys and values of its own, all of one head size."""

from __future__ import annotations

from typing import Any

from hubpub.model.families import Family
from hubpub.model.folds import Fold
from hubpub.model.patches import layer_type_order, sdpa_meta
from hubpub.model.shape import KVLayer, Shape


def _shape(config: Any) -> Shape:
    kinds = tuple(config.layer_types)
    owners = tuple(
        KVLayer(index, kind, config.num_key_value_heads, config.head_dim) for index, kind in enumerate(kinds)
    )
    return Shape(kinds, owners, config.sliding_window, config.vocab_size, config.max_position_embeddings)


FAMILY = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    text_class="Gemma3ForCausalLM",
    text_prefix="model.",
    shape=_shape,
    patches=(layer_type_order.GEMMA3, sdpa_meta.PATCH),
    license="gemma",
    begins_with_bos=True,
    folds=(
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("self_attn.v_proj", ("self_attn.o_proj",)),
        Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
    norm_offset=1.0,
)
