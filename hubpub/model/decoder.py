"""The decoders that are exported: a Hugging Face text model, in most layouts around a cache of its own.

`forward(tokens [1, S] int64, input_pos [1] int64) -> logits [1, vocabulary]` of the last token: the interface of the
ExecuTorch LLM runner. S is 1 for decode and up to `prefill` for a piece of a prompt. The model's own modules do
all of the arithmetic; only the cache and the attention product are ours:

- a layer that owns keys and values has buffers of them, a layer that shares them reads its owner's and has none;
- full attention writes buffers [1, context, kv_heads, head_dim] with `llama::update_cache` and is
  `llama::custom_sdpa` in its causal form: no mask, nothing read beyond the current position;
- sliding attention writes rings [1, window + prefill - 1, kv_heads, head_dim], where a position lies in the slot that
  is its remainder. That is the fewest slots in which a piece of a prompt finds every key its first token may see. A
  mask says what each slot holds, so that memory and time of such a layer do not grow with the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from hubpub.model.shape import FULL, SLIDING, KVLayer, Shape

ATTENTION = "hubpub_cached"


class KVBuffers(nn.Module):
    """Zeroed key and value buffers [1, positions, heads, head_dim], for the layers that own them."""

    def __init__(self, owners: Sequence[KVLayer], positions: dict[str, int], dtype: torch.dtype) -> None:
        """`positions` is how many each kind of layer keeps."""
        super().__init__()
        for owner in owners:
            for kind in ("keys", "values"):
                shape = (1, positions[owner.kind], owner.heads, owner.head_dim)
                self.register_buffer(f"{kind}_{owner.index}", torch.zeros(shape, dtype=dtype), persistent=False)


class _Step:
    """The cache object of one forward call: stores the new positions and returns what a layer attends to.

    `slots` [1, S] are the places in the rings of sliding layers, None where there are no rings.
    """

    def __init__(self, buffers: KVBuffers, owners: dict[int, KVLayer], start: Any, slots: torch.Tensor | None) -> None:
        self.buffers, self.owners, self.start, self.slots = buffers, owners, start, slots

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [1, heads, S, head_dim]; return the layer's buffers [1, T, heads, head_dim]."""
        buffers = (getattr(self.buffers, f"keys_{layer}"), getattr(self.buffers, f"values_{layer}"))
        for buffer, computed in zip(buffers, (keys, values), strict=True):
            new = computed.transpose(1, 2).contiguous()
            if self.slots is not None and self.owners[layer].kind == SLIDING:
                torch.ops.llama.update_cache_with_indices(new, buffer, 0, self.slots)
            else:
                torch.ops.llama.update_cache(new, buffer, self.start)
        return buffers


def attend(
    _: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    end_pos: Any = None,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [1, heads, S, D] over keys and values [1, T, kv_heads, D] as `_Step.update` returns them.

    Without a mask the keys lie in order of position, and the queries are those of the last S before `end_pos`. A mask
    [1, 1, S, T] says for every key who sees it. Returns [1, S, heads, D].
    """
    # The kernel writes a contiguous result whatever the strides of the query: hand it a contiguous one.
    query = query.transpose(1, 2).contiguous()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None:
        start = end_pos - query.shape[1]
        out = torch.ops.llama.custom_sdpa(query, key, value, start, None, 0.0, True, scale)
    else:
        past = key.shape[1] - query.shape[1]
        out = torch.ops.llama.custom_sdpa(query, key, value, past, attention_mask[0, 0], 0.0, False, scale)
    return out, None


class CachedDecoder(nn.Module):
    """`model` (a Hugging Face text model with a language-modelling head) with its cache inside, ready for export."""

    def __init__(self, model: nn.Module, shape: Shape, context: int, prefill: int, cache_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.shape = shape
        self.context = context
        self.prefill = prefill
        self.owners = {owner.index: owner for owner in shape.owners}
        # A window as long as the context never hides anything: such layers are plain causal ones.
        window = shape.sliding_window
        self.windowed = window is not None and SLIDING in shape.layer_kinds and window < context
        self.ring = min(window + prefill - 1, context) if window is not None and self.windowed else context
        self.buffers_ = KVBuffers(shape.owners, {FULL: context, SLIDING: self.ring}, cache_dtype)

    def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start < self.context)
        torch._check(start + length <= self.context)
        positions = input_pos + torch.arange(length)
        mask, slots = None, None
        if self.windowed:
            mask, slots = self._mask(positions), (positions % self.ring).unsqueeze(0)
        logits = self.model(
            input_ids=tokens,
            position_ids=positions.unsqueeze(0),
            attention_mask=None if self.shape.sliding_window is None else {FULL: None, SLIDING: mask},
            past_key_values=_Step(self.buffers_, self.owners, start, slots),
            use_cache=False,
            logits_to_keep=1,
            end_pos=start + length,
        ).logits
        return logits[:, -1, :]

    def _mask(self, positions: torch.Tensor) -> torch.Tensor:
        """The additive mask [1, 1, S, ring] of sliding layers: 0 where a query may see what a slot holds, else -inf."""
        assert self.shape.sliding_window is not None
        last = positions[-1:]
        # The newest position of each slot. A slot that nothing was written to yet gets a negative one.
        held = last - (last - torch.arange(self.ring)) % self.ring
        distance = positions.unsqueeze(1) - held.unsqueeze(0)
        unseen = torch.logical_or(distance < 0, distance >= self.shape.sliding_window)
        return torch.where(torch.logical_or(unseen, held < 0), float("-inf"), 0.0)[None, None]


class WindowDecoder(nn.Module):
    """`model` over a fixed number of tokens without a cache: `forward(input_ids [1, W] int64) -> logits [1, W, V]`.

    Every position is scored at once; to generate with it, the whole window is computed for each new token.
    """

    def __init__(self, model: nn.Module, shape: Shape, window: int) -> None:
        super().__init__()
        self.model = model
        places = torch.arange(window)
        distance = places.unsqueeze(1) - places.unsqueeze(0)
        hidden = {FULL: distance < 0}
        if shape.sliding_window is not None:
            hidden[SLIDING] = torch.logical_or(distance < 0, distance >= shape.sliding_window)
        for kind, unseen in hidden.items():
            mask = torch.zeros(1, 1, window, window).masked_fill(unseen, float("-inf"))
            self.register_buffer(kind, mask.to(next(model.parameters()).dtype), persistent=False)
        self.kinds = tuple(hidden)
        self.register_buffer("positions", places.unsqueeze(0), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        masks = {kind: self.get_buffer(kind) for kind in self.kinds}
        logits: torch.Tensor = self.model(
            input_ids=input_ids,
            position_ids=self.positions,
            attention_mask=masks if SLIDING in masks else masks[FULL],
            use_cache=False,
        ).logits
        return logits


@contextmanager
def cached_attention(model: nn.Module) -> Iterator[None]:
    """Make `model` attend through `attend` for as long as the context is open."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    import_module("executorch.extension.llm.custom_ops.custom_ops")  # registers the llama:: operators
    config: Any = model.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
