"""Gemma 3n: one head size everywhere; the last layers read the keys and values of the last owner of their kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hubpub.model.families import Family

if TYPE_CHECKING:
    from hubpub.model.decoder import Shape
    from hubpub.model.patches import Patch


def _shape(config: Any) -> Shape:
    from hubpub.model.decoder import KVLayer, Shape

    owners = tuple(
        KVLayer(index, kind, config.num_key_value_heads, config.head_dim)
        for index, (kind, mode) in enumerate(zip(config.layer_types, config.kv_sharing_modes, strict=True))
        if mode != "reuse"
    )
    return Shape(
        tuple(config.layer_types), owners, config.sliding_window, config.vocab_size, config.max_position_embeddings
    )


def _patches() -> tuple[Patch, ...]:
    from hubpub.model.patches import gaussian_topk, sdpa_meta

    return (gaussian_topk.PATCH, sdpa_meta.PATCH)


@contextmanager
def _last_token_only(model: Any) -> Iterator[None]:
    """The last layers (10 of E2B's 30, 15 of E4B's 35) write no keys: of a prompt, only their last row is used."""

    def trim(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, (cos, sin), per_layer = args
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = None if mask is None else mask[:, :, -1:]
        return (hidden[:, :, -1:], (cos[:, -1:], sin[:, -1:]), per_layer[:, -1:]), kwargs

    sharing = [mode == "reuse" for mode in model.config.kv_sharing_modes]
    assert sharing == sorted(sharing)
    layers = [layer for layer, shares in zip(model.model.layers, sharing, strict=True) if shares]
    handles = [layer.register_forward_pre_hook(trim, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


FAMILY = Family(
    name="gemma3n",
    model_type="gemma3n",
    architecture="Gemma3nForConditionalGeneration",
    text_class="Gemma3nForCausalLM",
    text_prefix="model.language_model.",
    ignored=r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight",
    embedding="model.embed_tokens",
    per_layer_embedding="model.embed_tokens_per_layer",
    shape=_shape,
    patches=_patches,
    last_token_only=_last_token_only,
)
