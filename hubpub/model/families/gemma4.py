"""Gemma 4: head size and number of key heads differ between sliding and full layers, as `per_layer_config` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubpub.model.families import Family

if TYPE_CHECKING:
    from hubpub.model.decoder import Shape
    from hubpub.model.patches import Patch


def _shape(config: Any) -> Shape:
    from hubpub.model.decoder import KVLayer, Shape

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


def _patches() -> tuple[Patch, ...]:
    from hubpub.model.patches import layer_type_order, sdpa_meta

    return (layer_type_order.GEMMA4, sdpa_meta.PATCH)


# Rows of a prompt that no shared layer needs are left out by the model itself when one row of logits is asked for.
FAMILY = Family(
    name="gemma4",
    architecture="Gemma4ForConditionalGeneration",
    text_class="Gemma4ForCausalLM",
    text_prefix="model.language_model.",
    ignored=r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight",
    per_layer_embedding="model.embed_tokens_per_layer",
    shape=_shape,
    patches=_patches,
    license="apache-2.0",
    begins_with_bos=True,
)
