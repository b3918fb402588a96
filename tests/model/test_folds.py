"""A scale that moves from a layer to who reads it changes no output, in every family, wherever it may move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_FAMILY, scale_model

from hubpub.model.checkpoint import Checkpoint
from hubpub.model.folds import HEAD, Fold, divide, folds_of, heads_of, spread_heads, tie_heads
from hubpub.model.loader import load


def moved(model: Any, fold: Fold, offset: float, seed: int) -> None:
    """Divide and multiply by scales that differ by up to a hundred."""
    source, heads = model.get_submodule(fold.source), heads_of(model, fold)
    scales = torch.randn(len(source.weight), generator=torch.Generator().manual_seed(seed)).exp()
    divide(source, scales, offset)
    for name in fold.readers:
        reader = model.get_submodule(name)
        multiplied = reader.weight * spread_heads(scales, heads, reader.in_features)
        # A head is no longer the table.
        reader.weight = torch.nn.Parameter(multiplied, requires_grad=False)


def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(0, 90, (1, 48), generator=torch.Generator().manual_seed(2))
    result: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return result


@pytest.mark.parametrize("name", sorted(OF_FAMILY))
def test_no_output_changes(name: str, scale_cache: Path) -> None:
    source = Checkpoint.open(scale_model(OF_FAMILY[name], scale_cache))
    model = load(source, dtype=torch.float32)
    before = logits(model)
    folds = folds_of(model, source.family.folds)
    assert folds[-1] == HEAD
    for index in range(len(model.model.layers)):
        mine = [fold for fold in folds if fold.source.startswith(f"model.layers.{index}.")]
        assert {"mlp.down_proj", "mlp.gate_proj"} <= {
            reader.removeprefix(f"model.layers.{index}.") for fold in mine for reader in fold.readers
        }
    for number, fold in enumerate(folds):
        moved(model, fold, source.family.norm_offset, number)
    assert (logits(model) - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        # Laurel adds what the norm puts out to the residual stream.
        ("gemma3n", Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))),
        # A norm takes the scale off again.
        ("gemma4", Fold("self_attn.v_proj", ("self_attn.o_proj",))),
        # A router, say, that reads it too and was forgotten.
        ("llama", Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj"))),
    ],
)
def test_where_someone_else_reads_it_outputs_change(name: str, fold: Fold, scale_cache: Path) -> None:
    model = load(Checkpoint.open(scale_model(OF_FAMILY[name], scale_cache)), dtype=torch.float32)
    before = logits(model)
    found = folds_of(model, (fold,))[0]
    moved(model, found, 0.0, 3)
    assert (logits(model) - before).abs().max() > 0.01 * before.abs().max()


def test_heads_that_read_one_key_head_get_its_scales() -> None:
    heads = (2, 3)
    kept = torch.arange(6.0)
    spread = spread_heads(kept, heads, 12)
    # Two heads of the first key head, then two of the second.
    assert spread.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert torch.equal(tie_heads(spread, heads), kept)
