"""Weights as integers: what is stored is what is multiplied by, and an override names its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scale_model
from torch.utils._python_dispatch import TorchDispatchMode

from hubpub.config import Override, Project, Scheme
from hubpub.export.quantize import (
    Bfloat16Embedding,
    DynamicLinear,
    QuantizedEmbedding,
    WeightOnlyLinear,
    int16,
    joined,
    pack,
    quantize,
    register_operators,
    symmetric,
    symmetric_int4,
    unpack,
)
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import family
from hubpub.model.loader import load_mapped


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


@pytest.mark.parametrize("scheme", [Scheme(weight="int8"), Scheme(weight="int4", group=32)])
def test_run_eagerly_a_table_widens_the_rows_it_is_asked_for_and_no_others(scheme: Scheme) -> None:
    """All of a table of two billion weights would be many gigabytes."""
    register_operators()
    read: list[int] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "quantized_decomposed" in str(function):
                read.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    table = QuantizedEmbedding.of(torch.nn.Embedding(500, 64), scheme, torch.float32)
    with Recorded(), torch.no_grad():
        assert table(torch.tensor([[7, 3, 7, 499]])).shape == (1, 4, 64)
    assert read == [3]


def test_sixteen_bits_hold_a_bfloat16_that_is_not_tiny_in_its_row() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    # The outermost on either side, a power of two, a row of nothing, one of the smallest numbers there are.
    weight[0, 0], weight[1, 0], weight[2] = -3.984375, 4.0, weight[2] * 2**-60
    weight[3], weight[4] = 0.0, torch.finfo(torch.bfloat16).tiny
    values, scales = int16(weight)
    assert values.dtype == torch.int8 and values.shape == (64, 512)
    assert torch.equal(torch.frexp(scales)[0], torch.full((64,), 0.5))
    restored = joined(values.float()) * scales.unsqueeze(-1)
    exact = restored == weight.float()
    assert exact[weight.float().abs() >= weight.float().abs().amax(-1, keepdim=True) / 128].all()
    assert exact[3:5].all() and 0.9 < exact.float().mean() < 1
    assert ((restored - weight.float()).abs() <= scales.unsqueeze(-1) / 2).all()


def test_a_table_of_sixteen_bits_reads_what_a_layer_of_them_multiplies_by() -> None:
    register_operators()
    table = torch.nn.Embedding(64, 96)
    # A weight past 4 would have a step twice as large, and such a one of 6,144 there is by chance once in fifty runs.
    table.weight.data = (
        torch.randn(64, 96, generator=torch.Generator().manual_seed(2)).clamp(-3.9, 3.9).bfloat16().float()
    )
    table.embed_scale = torch.tensor(3.0)
    rows, indices = table.weight.detach() * 3, torch.tensor([[0, 5, 63]])
    read = QuantizedEmbedding.of(table, Scheme(weight="int16"), torch.float32)
    assert torch.allclose(read(indices), rows[indices], atol=3e-4)
    layer = DynamicLinear("head", read.values, read.scales, 16, None)
    assert layer.in_features == 96
    x = torch.randn(2, 3, 96)
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, table.weight), atol=1e-3)


def test_a_table_that_stays_bfloat16_is_not_copied() -> None:
    table = torch.nn.Embedding(64, 96, dtype=torch.bfloat16)
    read = Bfloat16Embedding.of(table, torch.float32)
    assert read.weight.data_ptr() == table.weight.data_ptr()
    found = read(torch.tensor([[0, 63]]))
    assert found.dtype == torch.float32 and torch.equal(found[0], table.weight[[0, 63]].float())


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


@pytest.mark.slow
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
    used = quantize(own, recipe, family("gemma3n"))
    assert {scheme: count for scheme, count in used.items() if scheme.startswith("embedding")} == {
        f"embedding {recipe.embedding}": 1,
        f"embedding {recipe.per_layer_embedding}": 1,
    }
    assert isinstance(own.model.embed_tokens, QuantizedEmbedding)
    assert isinstance(own.lm_head, DynamicLinear)
    # AltUp's coefficient layers are 4 wide: no group of 32 fits, so they stay as they are, in the recipe's dtype.
    assert isinstance(own.model.layers[0].altup.prediction_coefs, torch.nn.Linear)
    assert {p.dtype for p in own.parameters()} == {torch.float32}


def test_a_tied_head_of_sixteen_bits_is_its_table_and_the_table_per_layer_stays_mapped(scale_cache: Path) -> None:
    register_operators()
    own = load_mapped(Checkpoint.open(scale_model("gemma-3n-E2B-it", scale_cache)), dtype=torch.float32)
    mapped = own.model.embed_tokens_per_layer.weight
    quantize(own, Project.find().recipes["bf16"], family("gemma3n"))
    table, head = own.model.embed_tokens, own.lm_head
    assert isinstance(table, QuantizedEmbedding) and isinstance(head, DynamicLinear) and head.bits == 16
    assert head.values.data_ptr() == table.values.data_ptr()
    per_layer = own.model.embed_tokens_per_layer
    assert isinstance(per_layer, Bfloat16Embedding) and per_layer.weight.data_ptr() == mapped.data_ptr()


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
