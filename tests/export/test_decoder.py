"""The exported decoder, run eagerly: the same logits as the original, whatever the chunks, to the last position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.config import Override, Project, Scheme
from hubpub.export.quantize import (
    DynamicLinear,
    QuantizedEmbedding,
    WeightOnlyLinear,
    pack,
    quantize,
    register_operators,
    symmetric,
    symmetric_int4,
    unpack,
)
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.counts import layers, parameters
from hubpub.model.decoder import CachedDecoder, WindowDecoder, cached_attention
from hubpub.model.families import FAMILIES, Family, family
from hubpub.model.loader import load, load_mapped

CONTEXT = 80
FAMILY = family("gemma3n")


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
    """The original's logits at every position."""
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits[0]
    return logits


@pytest.fixture
def decoder(request: pytest.FixtureRequest, model: Any, wanted: torch.Tensor) -> Iterator[CachedDecoder]:
    """The model with an empty cache; it takes pieces of up to 9 tokens, or as the test says."""
    prefill = getattr(request, "param", 9)
    with cached_attention(model), of(model).last_token_only(model), of(model).cheaper(model), torch.no_grad():
        yield CachedDecoder(model, of(model).shape(model.config), CONTEXT, prefill, torch.float32)


@pytest.mark.parametrize(
    ("decoder", "chunk"),
    [(CONTEXT - 1, 1), (CONTEXT - 1, CONTEXT - 1), (33, 33), (9, 1), (9, 7), (9, 9)],
    indirect=["decoder"],
)
def test_chunks_of_any_size_give_the_originals_logits(
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


def test_cheaper_is_the_same(model: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> None:
    with of(model).cheaper(model), torch.no_grad():
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


def test_the_original_attends_as_before_afterwards(model: Any, tokens: torch.Tensor, wanted: torch.Tensor) -> None:
    with cached_attention(model), of(model).last_token_only(model), of(model).cheaper(model):
        pass
    with torch.no_grad():
        assert torch.equal(model(tokens).logits[0], wanted)


def test_parameters_are_counted_once(model: Any) -> None:
    counted = parameters(model, of(model))
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


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 32)])
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
    values, scales = symmetric(
        table.weight.detach(), bits, scheme.group, torch.bfloat16 if bits == 4 else torch.float32
    )
    rows = (values.reshape(64, -1, scheme.group or 96) * scales.float().unsqueeze(-1)).reshape(64, 96)
    indices = torch.tensor([[0, 5, 63]])
    assert torch.allclose(QuantizedEmbedding.of(table, scheme, torch.float32)(indices), rows[indices], atol=1e-6)


def test_a_weight_only_layer_multiplies_by_what_it_stores() -> None:
    register_operators()
    linear = torch.nn.Linear(96, 48, bias=False)
    x = torch.randn(2, 3, 96)
    assert torch.allclose(WeightOnlyLinear.of(linear)(x), linear(x), atol=0.05)


@pytest.mark.parametrize(
    "scheme", [Scheme(weight="int8", activation="int8"), Scheme(weight="int4", group=32, activation="int8")]
)
def test_a_dynamic_layer_multiplies_by_what_it_stores(scheme: Scheme) -> None:
    linear = torch.nn.Linear(96, 48, bias=False)
    x = torch.randn(2, 3, 96)
    layer = DynamicLinear.of("one", linear, scheme)
    error = (layer(x) - linear(x)).abs().max()
    assert 0 < error < (0.03 if scheme.weight == "int8" else 0.3)


@pytest.mark.parametrize("low_first", [True, False])
def test_packing_two_integers_to_a_byte_loses_nothing(low_first: bool) -> None:
    values = torch.randint(-8, 8, (6, 64), dtype=torch.int8)
    assert torch.equal(unpack(pack(values, low_first=low_first), low_first=low_first), values)


def test_packed_slice_by_slice_is_packed_at_once() -> None:
    weight = torch.randn(2500, 4096, generator=torch.Generator().manual_seed(6))
    values, scales = symmetric(weight, 4, 32, torch.bfloat16)
    packed, found = symmetric_int4(weight, 32, low_first=True)
    assert torch.equal(packed, pack(values, low_first=True)) and torch.equal(found, scales)


def test_the_scale_of_a_group_is_the_best_of_those_tried() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    values, scales = symmetric(weight, 4, 32, torch.bfloat16)

    def error(integers: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        return (integers.reshape(64, 8, 32) * steps.float().unsqueeze(-1) - weight.reshape(64, 8, 32)).square().sum(-1)

    widest = (weight.reshape(64, 8, 32).abs().amax(-1) / 7).bfloat16()
    rounded = (weight.reshape(64, 8, 32) / widest.float().unsqueeze(-1)).round().clamp(-8, 7)
    ours, plain = error(values, scales), error(rounded, widest)
    assert (ours <= plain).all()
    assert ours.sum() < 0.9 * plain.sum()


def test_quantizing_unties_the_head(scale_cache: Path) -> None:
    register_operators()
    recipe = Project.find().recipes["8da4w"]
    own = load_mapped(Checkpoint.open(scale_model("gemma-3n-E2B-it", scale_cache)), dtype=torch.float32)
    used = quantize(own, recipe, FAMILY)
    assert {scheme: count for scheme, count in used.items() if scheme.startswith("embedding")} == {
        f"embedding {recipe.embedding}": 1,
        f"embedding {recipe.per_layer_embedding}": 1,
    }
    assert isinstance(own.model.embed_tokens, QuantizedEmbedding)
    assert isinstance(own.lm_head, DynamicLinear)
    # AltUp's coefficient layers are 4 wide: no group of 32 fits, so they stay as they are, in the recipe's dtype.
    assert isinstance(own.model.layers[0].altup.prediction_coefs, torch.nn.Linear)
    assert {p.dtype for p in own.parameters()} == {torch.float32}


def test_an_override_gives_the_layers_it_names_another_scheme(scale_cache: Path) -> None:
    register_operators()
    eight = Scheme(weight="int8", activation="int8")
    recipe = (
        Project.find()
        .recipes["8da4w"]
        .model_copy(
            update={"override": (Override(pattern="model.layers.0.*", scheme=eight), Override(pattern="lm_head"))}
        )
    )
    own = load_mapped(Checkpoint.open(scale_model("gemma-4-E2B-it", scale_cache)), dtype=torch.float32)
    quantize(own, recipe, family("gemma4"))
    bits = {name: module.bits for name, module in own.named_modules() if isinstance(module, DynamicLinear)}
    assert {bits[name] for name in bits if name.startswith("model.layers.0.")} == {8}
    assert {bits[name] for name in bits if not name.startswith("model.layers.0.")} == {4}
    assert isinstance(own.lm_head, torch.nn.Linear)


def test_weights_stay_mapped_and_buffers_are_those_of_the_dtype_asked_for(scale_cache: Path) -> None:
    checkpoint = Checkpoint.open(scale_model("gemma-3n-E2B-it", scale_cache))
    mapped, converted = load_mapped(checkpoint, dtype=torch.float32), load(checkpoint, dtype=torch.float32)
    assert {p.dtype for p in mapped.parameters()} == {torch.bfloat16}
    for name, buffer in converted.named_buffers():
        assert torch.equal(mapped.get_buffer(name), buffer), name


@pytest.mark.parametrize("window", [32, 48])
def test_the_window_decoder_scores_every_position(
    model: Any, tokens: torch.Tensor, wanted: torch.Tensor, window: int
) -> None:
    with torch.no_grad():
        logits = WindowDecoder(model, of(model).shape(model.config), window)(tokens[:, :window])[0]
    assert (logits - wanted[:window]).abs().max() < 1e-3
