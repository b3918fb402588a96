"""Gemma 4: head size and number of key heads differ between sliding and full layers, as `per_layer_config` says."""

from __future__ import annotations

from typing import Any

from hubpub.model.families import Family
from hubpub.model.folds import Fold
from hubpub.model.patches import layer_type_order, sdpa_meta
from hubpub.model.shape import KVLayer, Shape


def _shape(config: Any) -> Shape:
    owners = tuple(
        KVLayer(
            index, kind, config.per_layer_config[index].num_key_value_heads, config.per_layer_config[index].head_dim
        )
        for index, (kind, mode) in enumerate(zip(config.layer_types, config.kv_sharing_modes, strict=True))
        if mode != "reuse"
    )
    return Shape(
        tuple(config.layer_types), owners, config.sliding_window, config.vocab_size, config.max_position_embeddings
    )


# Rows of a prompt that no shared layer needs are left out by the model itself when one row of logits is asked for.
FAMILY = Family(
    name="gemma4",
    architecture="Gemma4ForConditionalGeneration",
    text_class="Gemma4ForCausalLM",
    text_prefix="model.language_model.",
    ignored=r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight",
    per_layer_embedding="model.embed_tokens_per_layer",
    shape=_shape,
    patches=(layer_type_order.GEMMA4, sdpa_meta.PATCH),
    license="apache-2.0",
    begins_with_bos=True,
    # Values pass a norm of their own: a scale would not reach who reads them.
    folds=(
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
)
