"""Rounding for what a layer sees: better than to nearest where its inputs depend on one another, else the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubpub.config import Project, Scheme
from hubpub.export.calibrate import LENGTH, Factored, _Inputs, calibrate, gptq, hessian, readings
from hubpub.export.quantize import (
    DynamicLinear,
    QuantizedEmbedding,
    layer_schemes,
    quantize,
    register_operators,
    symmetric,
    unpack,
)
from hubpub.matrix import cells, select
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import build


@pytest.fixture(scope="module")
def source(project: Project, scale_cache: Path) -> Checkpoint:
    """The stand-in of the smallest model."""
    (cell,) = select(cells(project), ["SmolLM2-135M-Instruct/8da4w"])
    return Checkpoint.open(build(cell.variant, scale_cache))


def correlated(tokens: int, width: int) -> torch.Tensor:
    """Inputs [tokens, width] of few sources, some columns of which are much larger than others."""
    mixed = torch.randn(tokens, width // 4) @ torch.randn(width // 4, width) + 0.3 * torch.randn(tokens, width)
    return mixed * torch.logspace(-1, 1, width)


def test_the_output_is_nearer_than_with_weights_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    x, weight = correlated(2048, 128), torch.randn(64, 128)
    inputs = Factored.of(x.T @ x)
    scales = symmetric(weight, 4, 32, torch.bfloat16, inputs.diagonal)[1].float()
    spread = scales.repeat_interleave(32, 1)
    nearest = (weight / spread).round().clamp(-8, 7) * spread
    chosen = gptq(weight, inputs, scales, 4).float() * spread
    error = [float((x @ (weight - other).T).square().mean()) for other in (nearest, chosen)]
    assert error[1] < 0.35 * error[0]
    # Every integer is one of four bits, and the column order of the result is that of the weights.
    assert (chosen / spread).abs().max() <= 8
    assert (chosen - weight).abs().mean() < 3 * (nearest - weight).abs().mean()


def test_inputs_that_do_not_depend_on_one_another_leave_nothing_to_make_up_for() -> None:
    torch.manual_seed(0)
    weight, scales = torch.randn(8, 64), torch.full((8, 2), 0.25)
    values = gptq(weight, Factored.of(torch.diag(torch.rand(64) + 0.5)), scales, 4)
    assert torch.equal(values, (weight / 0.25).round().clamp(-8, 7).to(torch.int8))


def test_inputs_that_never_vary_are_rounded_all_the_same() -> None:
    weight = torch.randn(8, 64)
    values = gptq(weight, Factored.of(torch.zeros(64, 64)), torch.full((8, 1), 0.02), 8)
    assert torch.equal(values, (weight / 0.02).round().clamp(-128, 127).to(torch.int8))


def test_scales_weigh_the_columns_by_what_comes_into_them() -> None:
    weight = torch.full((1, 32), 0.4)
    weight[0, 0] = 1.0
    counts, not_counts = torch.ones(32), torch.ones(32)
    counts[0], not_counts[0] = 1000.0, 0.0
    wide, narrow = (
        symmetric(weight, 4, 32, torch.bfloat16, importance)[1].item() for importance in (counts, not_counts)
    )
    error = [abs(round(0.4 / scale) * scale - 0.4) for scale in (wide, narrow)]
    assert wide == pytest.approx(1 / 7, rel=0.01)
    assert narrow < wide and error[1] < error[0]


def test_the_text_is_read_as_the_model_is_spoken_to(source: Checkpoint) -> None:
    tokens = readings(source)
    assert tokens.shape[1] == LENGTH and len(tokens) > 1
    assert int(tokens.max()) < source.config["vocab_size"]
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(source.folder).decode(tokens.flatten())
    assert "<|im_start|>user\nWhat is the difference between a virus" in text
    assert "Der Zug nach München" in text


def test_a_calibrated_model_is_nearer_to_its_original(source: Checkpoint) -> None:
    recipe = Project.find().recipes["8da4w"]
    register_operators()
    reference = loader.load(source, dtype=torch.float32)
    # Not what it was calibrated on: the end of the text that stand-ins are trained with.
    from transformers import AutoTokenizer

    from hubpub.data import passage

    tokens = torch.tensor([AutoTokenizer.from_pretrained(source.folder)(passage()).input_ids[:512]])
    wanted = reference(input_ids=tokens).logits.log_softmax(-1)
    divergence = []
    for calibrated in (False, True):
        model = loader.load_mapped(source, dtype=torch.float32)
        schemes = layer_schemes(model, recipe)
        if calibrated:
            seen: list[float] = []
            calibrate(model, schemes, readings(source), lambda _, fraction, seen=seen: seen.append(fraction))
            assert seen == sorted(seen) and seen[-1] == 1.0
        quantize(model, recipe, source.family)
        assert all(isinstance(model.get_submodule(name), DynamicLinear) for name in schemes)
        got = model(input_ids=tokens).logits.log_softmax(-1)
        divergence.append(float((wanted.exp() * (wanted - got)).sum(-1).mean()))
    # A stand-in of two layers has few inputs that depend on one another; on real weights a third is left.
    assert divergence[1] < divergence[0]


def test_a_head_in_the_form_of_its_table_is_the_table(source: Checkpoint) -> None:
    register_operators()
    model = loader.load_mapped(source, dtype=torch.float32)
    quantize(model, Project.find().recipes["8da4w"], source.family)
    table, head = model.model.embed_tokens, model.lm_head
    assert isinstance(table, QuantizedEmbedding) and isinstance(head, DynamicLinear)
    assert head.values.data_ptr() == table.values.data_ptr() and head.bits == 8


def test_int4_values_are_packed_as_the_kernel_reads_them(source: Checkpoint) -> None:
    register_operators()
    model = loader.load_mapped(source, dtype=torch.float32)
    name = "model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight.float()
    calibrate(model, {name: Scheme(weight="int4", group=32, activation="int8")}, readings(source)[:1])
    made = model.get_submodule(name)
    values = unpack(made.values, low_first=True).float().unflatten(-1, (-1, 32))
    restored = (values * made.scales.float().unsqueeze(-1)).flatten(1)
    assert (restored - weight).abs().mean() < 0.2 * weight.abs().mean()


def test_layers_that_read_one_input_share_what_is_computed_of_it() -> None:
    inputs, text = _Inputs(), torch.randn(300, 64)
    first = inputs.of(text)
    assert inputs.of(text) is first
    # Another text is another Hessian, be it in the same place.
    other = inputs.of(text * 2)
    assert other is not first and torch.equal(other.factor, Factored.of(hessian(text * 2)).factor)


def test_the_number_of_threads_changes_not_a_bit() -> None:
    """As wide as a layer of a real model: on narrow ones no sum is ever divided."""
    generator = torch.Generator().manual_seed(9)
    text, weight = torch.randn(1200, 640, generator=generator), torch.randn(96, 640, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            sums = hessian(text)
            inputs = Factored.of(sums)
            scales = symmetric(weight, 4, 32, torch.bfloat16, inputs.diagonal)[1]
            found.append((sums, inputs.factor, scales, gptq(weight, inputs, scales.float(), 4)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_width_that_does_not_divide_into_groups_gets_the_smallest(source: Checkpoint) -> None:
    wide = Scheme(weight="int4", group=96, activation="int8")
    recipe = Project.find().recipes["8da4w"].model_copy(update={"linear": wide, "override": ()})
    model = loader.load_mapped(source, dtype=torch.float32)
    schemes = layer_schemes(model, recipe)
    for name, scheme in schemes.items():
        width = model.get_submodule(name).in_features
        assert scheme.group == (96 if width % 96 == 0 else 32)
    assert 32 in {scheme.group for scheme in schemes.values()}
