"""Layers that are worth eight bits: what four cost is measured by part, and a budget is spent where it buys most."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.config import Project, Scheme
from hubpub.errors import UsageError
from hubpub.export.calibrate import calibrate, readings
from hubpub.export.quantize import layer_schemes
from hubpub.measure.reference_model import mapped
from hubpub.measure.tune import TOKENS, Costs, Part, as_table, choose, costs
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.widened import widen


def test_a_budget_is_spent_where_a_byte_buys_most() -> None:
    dear, large, cheap = (Part("v", 0, 10, 1.0), Part("down", 0, 100, 5.0), Part("o", 0, 20, 0.2))
    found = Costs(1000, (dear, large, cheap))
    assert choose(found, 1110) == (dear, large)
    # What does not fit is passed over, and the next that does is taken.
    assert choose(found, 1040) == (dear, cheap)
    assert choose(found, 1000) == ()


def test_layers_that_follow_one_another_are_one_range() -> None:
    chosen = [Part("down", layer, 1, 1) for layer in (3, 0, 1, 4)] + [Part("v", layer, 1, 1) for layer in (7, 9)]
    assert as_table(chosen) == {"down": ("0-1", "3-4"), "v": ("7", "9")}


def test_what_four_bits_cost_adds_up_to_what_a_model_in_four_bits_loses(scale_cache: Path) -> None:
    source = Checkpoint.open(scale_model(OF_FAMILY["llama"], scale_cache))
    recipe = Project.find().recipes["8da4w"]
    seen: list[float] = []
    found = costs(source, recipe, 10**9, lambda _, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 1.0
    model = mapped(source)
    tokens = readings(source)[:, :TOKENS]
    with torch.no_grad():
        wanted = [model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1) for row in tokens]
    calibrate(model, layer_schemes(model, recipe), readings(source))
    widen(model)
    lost = sum(
        float(
            (one.exp() * (one - model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1))).sum(-1).mean()
        )
        for one, row in zip(wanted, tokens, strict=True)
    ) / len(tokens)
    assert 0.5 < sum(part.kl for part in found.parts) / lost < 2.0
    # Keys and values have eight already.
    kinds = {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    layers = range(len(model.model.layers))
    assert {(part.kind, part.layer) for part in found.parts} == {(kind, layer) for kind in kinds for layer in layers}
    assert [part.per_byte for part in found.parts] == sorted((part.per_byte for part in found.parts), reverse=True)
    # Half a byte for each weight, and scales: of two bytes for 32 weights before, of four for a row then.
    down = next(part for part in found.parts if part.kind == "mlp.down_proj")
    rows, columns = model.model.layers[0].mlp.down_proj.values.shape[0], model.config.intermediate_size
    assert down.bytes == rows * (columns // 2 - columns // 16 + 4)


def test_slopes_are_those_of_the_widened_model() -> None:
    """What leaves widened weights behind on the way back is what autograd makes of the same weights in float32."""
    linear = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    x, pull = torch.randn(3, 64, requires_grad=True), torch.randn(3, 96)
    (wanted,) = torch.autograd.grad(torch.nn.functional.linear(x, linear.weight.detach().float()), x, pull)
    widen(linear)
    (got,) = torch.autograd.grad(linear(x), x, pull)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_recipe_without_four_bits_has_nothing_to_tune(scale_cache: Path) -> None:
    source = Checkpoint.open(scale_model(OF_FAMILY["llama"], scale_cache))
    recipe = Project.find().recipes["8da8w"]
    with pytest.raises(UsageError, match="8da8w stores no layer in int4"):
        costs(source, recipe, 10**9, lambda *_: None)


def test_what_was_tuned_comes_before_what_the_recipe_says() -> None:
    recipe = Project.find().recipes["8da4w"].model_copy(update={"tuned": {"mlp.down_proj": ("0-1", "7")}})
    patterns = [one.pattern for one in recipe.overrides]
    assert patterns[:3] == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1, 7)]
    assert recipe.overrides[0].scheme == Scheme(weight="int8", activation="int8")
    assert recipe.overrides[3:] == recipe.override
