"""What activations carry and what weights do: the choice leaves less error, and is the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.config import Project, Recipe, Scheme
from hubpub.export import calibrate
from hubpub.export.balance import Cost, scales_for
from hubpub.export.calibrate import apply_recipe
from hubpub.export.quantize import DynamicLinear, symmetric, to_int8_and_back
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint

INT8 = Scheme(weight="int8", activation="int8")
INT4 = Scheme(weight="int4", group=32, activation="int8")


def outliers(width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [tokens, width] whose channels differ by a hundred, and weights [out, width] that know nothing of it."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(600, width, generator=generator) * torch.logspace(-1, 1, width)
    return x, torch.randn(96, width, generator=generator)


def error_of(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bits: int) -> float:
    """What rounding both really leaves, relative to each token's output."""
    values, steps = symmetric(weight * scales, bits, None if bits == 8 else 32)
    rounded = (values.unflatten(1, (steps.shape[1], -1)) * steps.unsqueeze(-1)).flatten(1)
    exact = x @ weight.T
    off = to_int8_and_back(x / scales) @ rounded.T - exact
    return float((off.square().sum(1) / exact.square().sum(1)).mean())


@pytest.mark.parametrize(("scheme", "share"), [(INT8, 0.5), (INT4, 0.95)])
def test_less_error_is_left(scheme: Scheme, share: float) -> None:
    x, weight = outliers()
    bits = int(scheme.weight.removeprefix("int"))
    scales = scales_for(x, [weight[:64], weight[64:]], [scheme, scheme])
    assert error_of(x, weight, scales, bits) < share * error_of(x, weight, torch.ones_like(scales), bits)


def test_what_is_expected_is_what_happens() -> None:
    x, weight = outliers()
    cost = Cost(x, [weight], [INT8])
    logarithms = [torch.zeros(128), scales_for(x, [weight], [INT8]).log()]
    expected = [cost(one)[0] for one in logarithms]
    real = [error_of(x, weight, one.exp(), 8) for one in logarithms]
    assert expected[1] / expected[0] == pytest.approx(real[1] / real[0], rel=0.25)


@pytest.mark.parametrize("scheme", [INT8, INT4])
def test_the_slopes_are_those_of_the_error(scheme: Scheme) -> None:
    x, weight = outliers()
    cost = Cost(x, [weight], [scheme])
    _, slopes = cost(torch.zeros(128))
    for channel in (0, 60, int(slopes.abs().argmax())):
        step = torch.zeros(128)
        step[channel] = 0.01
        numeric = (cost(step)[0] - cost(-step)[0]) / 0.02
        # A maximum passes from one value to another within the step: not smooth everywhere.
        assert float(slopes[channel]) == pytest.approx(numeric, rel=0.05)


def test_every_reader_of_a_key_head_has_its_scales() -> None:
    x, weight = outliers()
    assert scales_for(x, [weight], [INT8], heads=(2, 16)).shape == (32,)


def test_the_number_of_threads_changes_not_a_bit() -> None:
    x, weight = outliers(640)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(scales_for(x, [weight], [INT8]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def source(scale_cache: Path) -> Checkpoint:
    return Checkpoint.open(scale_model(OF_FAMILY["llama"], scale_cache))


def loud(source: Checkpoint) -> Any:
    """The mapped stand-in with what real models have and it lacks: channels fifty times as large as the others."""
    model = loader.load_mapped(source, dtype=torch.float32)
    for layer in model.model.layers:
        readers = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        scales = torch.ones(layer.input_layernorm.weight.shape)
        scales[::40] = 50
        norm = layer.input_layernorm
        norm.weight = torch.nn.Parameter(norm.weight.float() * scales, requires_grad=False)
        for reader in readers:
            reader.weight = torch.nn.Parameter(reader.weight.float() / scales, requires_grad=False)
    return model


def divergence(model: Any, wanted: torch.Tensor, tokens: torch.Tensor) -> float:
    got = model(input_ids=tokens).logits.log_softmax(-1)
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def test_a_balanced_model_is_nearer_to_its_original_and_is_kept(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "WINDOWS", 1)
    recipe = Project.find().recipes["8da8w"]
    tokens = torch.randint(0, 90, (1, 256), generator=torch.Generator().manual_seed(4))
    wanted = loader.load(source, dtype=torch.float32)(input_ids=tokens).logits.log_softmax(-1)
    found, made = [], []
    for balanced in (False, True):
        kept = tmp_path / f"{balanced}.safetensors"
        changed: Recipe = recipe.model_copy(update={"balanced": balanced})
        for model in (loud(source), loud(source)):
            apply_recipe(model, source, changed, kept=kept, keep=True)
            made.append(model(input_ids=tokens).logits)
        # The second was read from what the first left.
        assert torch.equal(*made[-2:])
        found.append(divergence(model, wanted, tokens))
        head, table = model.lm_head, model.model.embed_tokens
        assert isinstance(head, DynamicLinear) and head.values.data_ptr() == table.values.data_ptr()
    assert found[1] < 0.7 * found[0]
