"""Layers that are worth eight bits: what four cost is measured by part, and a budget is spent where it buys most."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.config import Project, Scheme
from hubpub.errors import UsageError
from hubpub.measure.tune import Costs, Part, as_table, choose, costs
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint


def part(kind: str, first: int, last: int, size: int, kl: float) -> Part:
    return Part(kind, first, last, size, kl)


def test_a_budget_is_spent_where_a_byte_buys_most() -> None:
    dear, large, cheap = (part("v", 0, 1, 10, 1.0), part("down", 0, 1, 100, 5.0), part("o", 0, 1, 20, 0.2))
    found = Costs(1000, (dear, large, cheap))
    assert choose(found, 1110) == (dear, large)
    # What does not fit is passed over, and the next that does is taken.
    assert choose(found, 1040) == (dear, cheap)
    assert choose(found, 1000) == ()
    with pytest.raises(UsageError, match=r"1,000 bytes as they are, more than the 999"):
        choose(found, 999)


def test_blocks_that_meet_are_one_range() -> None:
    chosen = [part("down", 5, 9, 1, 1), part("down", 0, 4, 1, 1), part("v", 3, 3, 1, 1), part("v", 6, 7, 1, 1)]
    assert as_table(chosen) == {"down": ("0-9",), "v": ("3", "6-7")}


def test_what_four_bits_cost_is_measured_of_each_part_alone(scale_cache: Path) -> None:
    source = Checkpoint.open(scale_model(OF_FAMILY["llama"], scale_cache))
    recipe = Project.find().recipes["8da4w"]
    seen: list[float] = []
    found = costs(source, recipe, lambda _, fraction: seen.append(fraction), blocks=1)
    kinds = {one.kind for one in found.parts}
    # Keys and values have eight already.
    assert kinds == {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert all(one.kl > 0 for one in found.parts)
    assert [one.per_byte for one in found.parts] == sorted((one.per_byte for one in found.parts), reverse=True)
    assert seen == sorted(seen) and len(seen) == len(found.parts)
    down = next(one for one in found.parts if one.kind == "mlp.down_proj")
    model = loader.load_mapped(source, dtype=torch.float32)
    weights = [layer.mlp.down_proj.weight for layer in model.model.layers]
    # Half a byte for each weight, and scales: of two bytes for 32 weights before, of four for a row then.
    assert down.bytes == sum(w.numel() // 2 - w.numel() // 16 + 4 * len(w) for w in weights)
    assert (down.first, down.last) == (0, len(weights) - 1)


def test_a_recipe_without_four_bits_has_nothing_to_tune(scale_cache: Path) -> None:
    source = Checkpoint.open(scale_model(OF_FAMILY["llama"], scale_cache))
    recipe = Project.find().recipes["8da8w"]
    with pytest.raises(UsageError, match="8da8w stores no layer in int4"):
        costs(source, recipe, lambda *_: None)


def test_what_was_tuned_comes_before_what_the_recipe_says() -> None:
    recipe = Project.find().recipes["8da4w"].model_copy(update={"tuned": {"mlp.down_proj": ("0-1", "7")}})
    patterns = [one.pattern for one in recipe.overrides]
    assert patterns[:3] == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1, 7)]
    assert recipe.overrides[0].scheme == Scheme(weight="int8", activation="int8")
    assert recipe.overrides[3:] == recipe.override
