"""Gemma 3n: one head size everywhere; the last layers read the keys and values of the last owner of their kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hubpub.model.families import Family
from hubpub.model.folds import Fold
from hubpub.model.patches import gaussian_topk, layer_type_order, sdpa_meta
from hubpub.model.shape import KVLayer, Shape


def _shape(config: Any) -> Shape:
    owners = tuple(
        KVLayer(index, kind, config.num_key_value_heads, config.head_dim)
        for index, (kind, mode) in enumerate(zip(config.layer_types, config.kv_sharing_modes, strict=True))
        if mode != "reuse"
    )
    return Shape(
        tuple(config.layer_types), owners, config.sliding_window, config.vocab_size, config.max_position_embeddings
    )


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


@contextmanager
def _cheap_operators(model: Any) -> Iterator[None]:
    """AltUp mixes its streams as sums of rows. Upstream's product has the streams innermost, and moves every number
    three times per layer to have them there, which in the runtime costs more than the product.

    In lower precision than float32 upstream's form stays: its product rounds once, a sum after every addend.
    """
    import torch

    def predict(altup: Any, hidden: torch.Tensor) -> torch.Tensor:
        """[streams, 1, S, width] -> the same: every stream plus a sum of all, weighted per token."""
        streams = list(hidden)
        modalities = altup.compute_router_modalities(streams[altup.config.altup_active_idx])
        weights = iter(altup.prediction_coefs(modalities).split(1, -1))
        return torch.stack([sum((other * next(weights) for other in streams), stream) for stream in streams])

    def correct(altup: Any, predictions: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
        """[streams, 1, S, width] and [1, S, width] -> [streams, 1, S, width]."""
        streams = list(predictions)
        innovation = activated - streams[altup.config.altup_active_idx]
        weights = (altup.correction_coefs(altup.compute_router_modalities(activated)) + 1.0).split(1, -1)
        return torch.stack([stream + innovation * weight for stream, weight in zip(streams, weights, strict=True)])

    altups = [layer.altup for layer in model.model.layers] if model.dtype == torch.float32 else []
    for altup in altups:
        altup.predict, altup.correct = partial(predict, altup), partial(correct, altup)
    try:
        yield
    finally:
        for altup in altups:
            del altup.predict, altup.correct


FAMILY = Family(
    name="gemma3n",
    architecture="Gemma3nForConditionalGeneration",
    text_class="Gemma3nForCausalLM",
    text_prefix="model.language_model.",
    ignored=r"layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight",
    per_layer_embedding="model.embed_tokens_per_layer",
    shape=_shape,
    patches=(gaussian_topk.PATCH, layer_type_order.GEMMA3N, sdpa_meta.PATCH),
    license="gemma",
    begins_with_bos=True,
    # What the first norm puts out is added to the residual stream too, by laurel; values pass a norm of their own.
    folds=(
        Fold("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
    last_token_only=_last_token_only,
    cheap_operators=_cheap_operators,
)
