"""The exported decoder, run eagerly: the same logits as the original, whatever the chunks, to the last position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hubpub.config import Project, Scheme
from hubpub.export.quantize import QuantizedEmbedding, WeightOnlyLinear, quantize, register_operators, symmetric
from hubpub.measure.model_facts import layers, parameters
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.decoder import CachedDecoder, cached_attention
from hubpub.model.families import family
from hubpub.model.loader import load
from hubpub.model.scale import build

CONTEXT = 80
FAMILY = family("gemma3n")


@pytest.fixture(scope="module")
def model(scale_cache: Path) -> Any:
    """A scale model of Gemma 3n E2B in float32."""
    return load(Checkpoint.open(build("gemma-3n-E2B-it", "gemma3n", scale_cache)), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    """As many tokens as the context holds, past the sliding window."""
    assert model.config.sliding_window < CONTEXT - 8
    generator = torch.Generator().manual_seed(7)
    return torch.randint(200, model.config.vocab_size, (1, CONTEXT), generator=generator)


@pytest.fixture(scope="module")
def wanted(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The original's logits at every position."""
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits[0]
    return logits


@pytest.fixture
def decoder(model: Any, wanted: torch.Tensor) -> Iterator[CachedDecoder]:
    """The model with an empty cache."""
    with cached_attention(model), torch.no_grad():
        yield CachedDecoder(model, FAMILY.shape(model.config), CONTEXT, torch.float32)


@pytest.mark.parametrize("chunk", [1, 7, 33, CONTEXT - 1])
def test_chunks_of_any_size_give_the_originals_logits(
    decoder: CachedDecoder, tokens: torch.Tensor, wanted: torch.Tensor, chunk: int
) -> None:
    for first in range(0, CONTEXT, chunk):
        end = min(first + chunk, CONTEXT)
        logits = decoder(tokens[:, first:end], torch.tensor([first]))[0]
        assert (logits - wanted[end - 1]).abs().max() < 1e-3


def test_only_layers_that_own_keys_have_buffers(decoder: CachedDecoder) -> None:
    counted = layers(decoder.shape)
    shared = counted.sliding_sharing_kv + counted.full_sharing_kv
    assert shared > 0
    assert len(list(decoder.buffers_.buffers())) == 2 * (counted.total - shared)


def test_the_original_attends_as_before_afterwards(model: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> None:
    with cached_attention(model):
        pass
    with torch.no_grad():
        assert torch.equal(model(tokens).logits[0], wanted)


def test_parameters_are_counted_once(model: Any) -> None:
    counted = parameters(model, FAMILY)
    assert counted.total == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    assert counted.total == counted.embedding + counted.per_layer_embedding + counted.other


@pytest.mark.parametrize(("name", "total"), [("E2B", 4_435_182_688), ("E4B", 6_835_235_568)])
def test_parameters_of_the_real_shapes(name: str, total: int) -> None:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    count = {"E2B": 30, "E4B": 35}[name]
    config = Gemma3nTextConfig(
        num_hidden_layers=count,
        intermediate_size=[8192 if name == "E2B" else 16384] * count,
        num_kv_shared_layers={"E2B": 10, "E4B": 15}[name],
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * (count - 10),
        layer_types=["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(count)],
    )
    with torch.device("meta"):
        counted = parameters(Gemma3nForCausalLM(config), FAMILY)
    assert counted.total == total


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (8, 32)])
def test_symmetric_integers_are_within_half_a_step(bits: int, group: int | None) -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(3))
    values, scales = symmetric(weight, bits, group)
    assert int(values.abs().max()) < 2 ** (bits - 1)
    restored = (values.reshape(48, -1, group or 96) * scales.unsqueeze(-1)).reshape(48, 96)
    steps = scales.repeat_interleave(group or 96, dim=1)
    assert ((restored - weight).abs() <= steps * 0.5001).all()


@pytest.mark.parametrize("scheme", [Scheme(weight="int8"), Scheme(weight="int4", group=32)])
def test_a_quantized_table_reads_the_rows_it_stores(scheme: Scheme) -> None:
    register_operators()
    table = torch.nn.Embedding(64, 96)
    bits = int(scheme.weight.removeprefix("int"))
    values, scales = symmetric(table.weight.detach(), bits, scheme.group)
    rows = (values.reshape(64, -1, scheme.group or 96) * scales.unsqueeze(-1)).reshape(64, 96)
    indices = torch.tensor([[0, 5, 63]])
    assert torch.allclose(QuantizedEmbedding.of(table, scheme)(indices), rows[indices], atol=1e-6)


def test_a_weight_only_layer_multiplies_by_what_it_stores() -> None:
    register_operators()
    linear = torch.nn.Linear(96, 48, bias=False)
    x = torch.randn(2, 3, 96)
    assert torch.allclose(WeightOnlyLinear.of(linear)(x), linear(x), atol=0.05)


def test_quantizing_unties_the_head(model: Any, scale_cache: Path) -> None:
    register_operators()
    recipe = Project.find().recipes["8da4w"]
    own = load(Checkpoint.open(build("gemma-3n-E2B-it", "gemma3n", scale_cache)), dtype=torch.float32)
    used = quantize(own, recipe, FAMILY)
    assert used["embedding int8 per channel"] == 2
    assert isinstance(own.model.embed_tokens, QuantizedEmbedding)
    # AltUp's coefficient layers are 4 wide: no group of 32 fits, so they stay as they are.
    assert type(own.model.layers[0].altup.prediction_coefs.weight.data) is torch.Tensor
    assert type(own.lm_head.weight.data) is not torch.Tensor
