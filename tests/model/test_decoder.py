"""The exported decoder, run eagerly: the the logits of the reference model, whatever the chunks, to the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.model.checkpoint import Checkpoint
from hubpub.model.counts import layers, parameters
from hubpub.model.decoder import CachedDecoder, WindowDecoder, cached_attention
from hubpub.model.families import FAMILIES, Family, family
from hubpub.model.loader import load

CONTEXT = 80


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, scale_cache: Path) -> Any:
    """A scale model of each family in float32."""
    made = scale_model(OF_FAMILY[request.param], scale_cache)
    return load(Checkpoint.open(made), dtype=torch.float32)


def of(model: Any) -> Family:
    """The family of a loaded model."""
    return family(model.config.model_type.removesuffix("_text"))


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    """As many tokens as the context holds, past the sliding window where there is one."""
    assert (getattr(model.config, "sliding_window", None) or 0) < CONTEXT - 8
    generator = torch.Generator().manual_seed(7)
    return torch.randint(200, model.config.vocab_size, (1, CONTEXT), generator=generator)


@pytest.fixture(scope="module")
def wanted(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The reference model's logits at every position."""
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits[0]
    return logits


@pytest.fixture
def decoder(request: pytest.FixtureRequest, model: Any, wanted: torch.Tensor) -> Iterator[CachedDecoder]:
    """The model with an empty cache; it takes pieces of up to 9 tokens, or as the test says."""
    prefill = getattr(request, "param", 9)
    with cached_attention(model), of(model).last_token_only(model), of(model).cheap_operators(model), torch.no_grad():
        yield CachedDecoder(model, of(model).shape(model.config), CONTEXT, prefill, torch.float32)


@pytest.mark.parametrize(
    ("decoder", "chunk"),
    [(CONTEXT - 1, 1), (CONTEXT - 1, CONTEXT - 1), (33, 33), (9, 1), (9, 7), (9, 9)],
    indirect=["decoder"],
)
def test_chunks_of_any_size_give_the_logits_of_the_reference(
    decoder: CachedDecoder, tokens: torch.Tensor, wanted: torch.Tensor, chunk: int
) -> None:
    for first in range(0, CONTEXT, chunk):
        end = min(first + chunk, CONTEXT)
        logits = decoder(tokens[:, first:end], torch.tensor([first]))[0]
        assert (logits - wanted[end - 1]).abs().max() < 1e-3


def test_only_layers_that_own_keys_have_buffers_and_sliding_ones_small_ones(decoder: CachedDecoder) -> None:
    counted = layers(decoder.shape)
    shared = counted.sliding_sharing_kv + counted.full_sharing_kv
    assert len(list(decoder.buffers_.buffers())) == 2 * (counted.total - shared)
    ring = (decoder.shape.sliding_window or 0) + 9 - 1
    assert ring < CONTEXT
    for owner in decoder.shape.owners:
        positions = ring if owner.kind == "sliding_attention" else CONTEXT
        assert decoder.buffers_.get_buffer(f"keys_{owner.index}").shape[1] == positions


def test_cheap_operators_compute_the_same(model: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> None:
    with of(model).cheap_operators(model), torch.no_grad():
        logits = model(tokens).logits[0]
    assert (logits - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("decoder", [9], indirect=True)
def test_what_an_earlier_text_left_in_the_cache_is_never_seen(
    decoder: CachedDecoder, tokens: torch.Tensor, wanted: torch.Tensor
) -> None:
    for buffer in decoder.buffers_.buffers():
        buffer.fill_(1e4)
    for first in range(0, CONTEXT, 9):
        end = min(first + 9, CONTEXT)
        logits = decoder(tokens[:, first:end], torch.tensor([first]))[0]
        assert (logits - wanted[end - 1]).abs().max() < 1e-3


def test_the_reference_model_attends_as_before_afterwards(
    model: Any, tokens: torch.Tensor, wanted: torch.Tensor
) -> None:
    with cached_attention(model), of(model).last_token_only(model), of(model).cheap_operators(model):
        pass
    with torch.no_grad():
        assert torch.equal(model(tokens).logits[0], wanted)


def test_parameters_are_counted_once(model: Any) -> None:
    counted = parameters(model, of(model))
    assert counted.total == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    assert counted.total == counted.embedding + counted.per_layer_embedding + counted.other


@pytest.mark.parametrize("window", [32, 48])
def test_the_window_decoder_scores_every_position(
    model: Any, tokens: torch.Tensor, wanted: torch.Tensor, window: int
) -> None:
    with torch.no_grad():
        logits = WindowDecoder(model, of(model).shape(model.config), window)(tokens[:, :window])[0]
    assert (logits - wanted[:window]).abs().max() < 1e-3
