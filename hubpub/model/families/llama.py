"""Llama and what is built like it (SmolLM2): every layer attends to the whole context."""

from __future__ import annotations

from typing import Any

from hubpub.model.families import Family
from hubpub.model.folds import Fold
from hubpub.model.patches import sdpa_meta
from hubpub.model.shape import FULL, KVLayer, Shape


def _shape(config: Any) -> Shape:
    layers = range(config.num_hidden_layers)
    owners = tuple(KVLayer(index, FULL, config.num_key_value_heads, config.head_dim) for index in layers)
    return Shape((FULL,) * len(owners), owners, None, config.vocab_size, config.max_position_embeddings)


# Many publish models of this architecture, each under a license of their own, and tokenizers with <bos> and without.
FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    text_class="LlamaForCausalLM",
    text_prefix="model.",
    shape=_shape,
    patches=(sdpa_meta.PATCH,),
    license=None,
    begins_with_bos=None,
    folds=(
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("self_attn.v_proj", ("self_attn.o_proj",)),
        Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
)
