"""Weights that were trained for four bits come through bit for bit, from integers and from bfloat16 on a grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubpub.config import Project, Trained, Variant
from hubpub.export import lower
from hubpub.export.calibrate import apply_recipe
from hubpub.export.grid import Found, in_two, layer, recover, stored
from hubpub.export.quantize import DynamicLinear, QuantizedEmbedding, register_operators, to_int8_and_back, unpack
from hubpub.matrix import Cell, cells, select
from hubpub.measure.inspect import inspect
from hubpub.measure.runtime import Session
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import build
from hubpub.model.scale.on_grid import signed


def stands_for(found: Found, *, low_first: bool = True) -> torch.Tensor:
    """The weights float32 [rows, columns] of what was found, without any rounding."""
    integers = unpack(found.values, low_first=low_first).float().unflatten(-1, (-1, 32))
    return (integers * found.scales.float().unsqueeze(-1) + found.shifts.unsqueeze(-1)).flatten(-2)


@pytest.fixture
def weight() -> torch.Tensor:
    """Weights of q4_0: groups that reach -8 on either side, groups of nothing, scales that differ by a factor of 30."""
    torch.manual_seed(0)
    drawn = torch.randn(64, 256) * torch.logspace(-3, -1.5, 64).unsqueeze(-1)
    drawn[3, :64] = 0
    return signed(drawn)


def test_every_group_of_a_signed_grid_is_found_and_none_is_rounded(weight: torch.Tensor) -> None:
    found = recover(weight)
    assert found is not None and found.exact == found.groups == weight.numel() // 32
    # About half of the groups have their largest weight above zero, where four bits end at 7.
    assert 0.4 < found.shifted / found.groups < 0.6
    assert (found.scales > 0).all()
    assert torch.equal(stands_for(found).bfloat16(), weight)
    # The product of scale and integer was rounded to bfloat16 in the checkpoint: it is none of the file's.
    assert not torch.equal(stands_for(found), weight.float())


def test_a_table_takes_scales_of_either_sign(weight: torch.Tensor) -> None:
    found = recover(weight, signed=True)
    assert found is not None and found.exact == found.groups and not found.shifted
    assert (found.scales < 0).any()
    assert torch.equal(stands_for(found, low_first=False).bfloat16(), weight)


@pytest.mark.parametrize("largest", range(1, 9))
def test_a_grid_of_positive_scales_is_found_whatever_its_largest_integer(largest: int) -> None:
    torch.manual_seed(largest)
    integers = torch.randint(-largest, min(largest, 7) + 1, (64, 8, 32)).float()
    integers[..., 5] = -largest
    weight = (integers * (torch.rand(64, 8, 1) * 0.02 + 0.001).bfloat16()).bfloat16().flatten(1)
    found = recover(weight)
    assert found is not None and (found.exact, found.shifted) == (512, 0)
    assert torch.equal(stands_for(found).bfloat16(), weight)


def test_a_group_that_is_off_is_rounded_and_counted_and_the_others_stay(weight: torch.Tensor) -> None:
    off = weight.clone()
    off[5, 40] *= 1.03
    found = recover(off)
    assert found is not None and found.exact == found.groups - 1
    back = stands_for(found).bfloat16()
    same = (back == weight).unflatten(-1, (-1, 32)).all(-1)
    assert same.sum() >= found.groups - 1 and not torch.equal(back[5, 32:64], off[5, 32:64])
    assert (back[5, 32:64].float() - off[5, 32:64].float()).abs().max() < off[5, 32:64].float().abs().max() / 7


def test_a_group_that_reaches_both_ends_is_not_of_four_bits() -> None:
    torch.manual_seed(0)
    weight = signed(torch.randn(32, 64))
    weight[0, 0], weight[0, 1] = 8 * 0.125, -8 * 0.125
    weight[0, 2:32] = 0.125
    found = recover(weight)
    assert found is not None and found.exact == found.groups - 1


def test_weights_that_were_not_trained_for_four_bits_lie_on_no_grid() -> None:
    torch.manual_seed(0)
    plain = torch.randn(64, 256)
    assert recover(plain.bfloat16()) is None
    assert recover(signed(plain).float()) is None
    # Of half a matrix.
    assert recover(torch.cat([signed(plain), plain.bfloat16()])) is None
    assert recover(signed(plain)[:, :48]) is None


def test_integers_that_a_checkpoint_holds_are_stored_as_they_are() -> None:
    torch.manual_seed(0)
    integers = torch.randint(-8, 8, (16, 128))
    integers[0, :32] = 0
    words = torch.zeros(16, 16, dtype=torch.int32)
    for place in range(8):
        words |= (integers[:, place::8] + 8).int() << 4 * place
    scales = (torch.rand(16, 4) + 0.5).bfloat16()
    found = stored(words, scales)
    assert found.exact == found.groups and not found.shifted
    assert torch.equal(unpack(found.values, low_first=True).long(), integers)
    assert torch.equal(found.scales.flatten()[1:], scales.flatten()[1:])
    # Scales of nothing and of the other sign, which no kernel takes, and one that is no bfloat16 number.
    scales[1, 0], scales[2, 1] = 0, -scales[2, 1]
    odd = scales.float()
    odd[3, 3] = 0.3
    found = stored(words, odd)
    assert found.exact == found.groups - 1 and (found.scales > 0).all()
    wanted = (integers.unflatten(-1, (-1, 32)) * odd.unsqueeze(-1)).flatten(1)
    off = stands_for(found) != wanted
    assert off.any() and off[3, 96:].sum() == off.sum()


def test_scales_in_two_parts_are_exact() -> None:
    torch.manual_seed(0)
    shifts = (torch.rand(100, 48) * 60 + 1).bfloat16().float() * (torch.rand(100, 48) > 0.5)
    parts = in_two(shifts)
    assert all(values.dtype == torch.int8 for values, _ in parts)
    assert torch.equal(
        sum((values.float() * scales.unsqueeze(-1) for values, scales in parts), torch.zeros(())), shifts
    )


class Two(torch.nn.Module):
    """Two products of one input, with groups that reach 8."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for index, part in enumerate(weight.chunk(2)):
            found = recover(part)
            assert found is not None
            self.layers.append(layer(f"model.layers.{index}.up", found))
        self.register_buffer("positions", torch.arange(256).unsqueeze(0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = (ids % 13 - 4.0) * 0.3
        return torch.cat([one(x) for one in self.layers], -1).unsqueeze(0)


def test_the_runtime_multiplies_with_what_was_trained(weight: torch.Tensor, tmp_path: Path) -> None:
    register_operators()
    model, path = Two(weight), tmp_path / "two.pte"
    with path.open("wb") as file:
        lower.export(model, "8da4w", {}).program.write_to_file(file)
    # The sums of both are of one input, and computed once.
    kernels = inspect(path).operators.kernels
    assert sum(count for name, count in kernels.items() if name.startswith("aten::sum")) == 1
    ids = torch.arange(256).unsqueeze(0) * 5 % 11
    x = (ids % 13 - 4.0) * 0.3
    found = Session(path)._execute("two products", ids[0].tolist()).flatten()
    exact = (x @ weight.float().T).flatten()
    noise = (to_int8_and_back(x) @ weight.float().T - x @ weight.float().T).norm()
    # Off by what int8 activations cost: leaving out what the shifted groups need is off by far more.
    assert (found - exact).norm() < 2 * noise + 0.01 * exact.norm()
    without = torch.cat([DynamicLinear("", one.values, one.scales, 4, 32)(x) for one in model.layers], -1).flatten()
    assert (without - exact).norm() > 10 * (found - exact).norm()


def variant_of(form: str, cell: Cell) -> Variant:
    trained = Trained.model_validate({"form": form, "of": "google/gemma-4-E2B-it"})
    return Variant.model_validate({**cell.variant.model_dump(), "qat": trained})


@pytest.mark.parametrize("form", ["w4a16-ct", "q4_0"])
def test_a_model_keeps_what_it_was_trained_to_whatever_the_recipe_says_of_a_layer(
    form: str, project: Project, scale_cache: Path
) -> None:
    (cell,) = select(cells(project), ["gemma-4-E2B-it/8da4w"])
    checkpoint = Checkpoint.open(build(variant_of(form, cell), scale_cache))
    source = loader.load(checkpoint)
    model = loader.load_mapped(checkpoint, dtype=torch.float32)
    grid = apply_recipe(model, checkpoint, cell.recipe)
    assert grid is not None and grid.share == grid.weights_share == 1 and not grid.others
    assert grid.explicit == (form == "w4a16-ct") and bool(grid.shifted) == (form == "q4_0")
    layers = {one.name: one for one in model.modules() if isinstance(one, DynamicLinear) and one.name.count("layers.")}
    assert layers["model.layers.0.self_attn.k_proj"].bits == 4
    x = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(0))
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"):
        weight = source.get_submodule(name).weight.float()
        one = torch.eye(weight.shape[1]) * x
        assert torch.allclose(layers[name](one), one @ weight.T, rtol=0.02, atol=float(weight.abs().max() * 0.02))
    table = model.model.embed_tokens_per_layer
    assert isinstance(table, QuantizedEmbedding)
    rows = table.scales.float().repeat_interleave(32, 1) * unpack(table.values, low_first=False)
    same = torch.equal(rows.bfloat16(), source.model.embed_tokens_per_layer.weight.bfloat16())
    assert same == (form == "q4_0")
    # A recipe of eight bits has no use for it.
    (other,) = select(cells(project), ["gemma-4-E2B-it/8da8w"])
    assert apply_recipe(loader.load_mapped(checkpoint, dtype=torch.float32), checkpoint, other.recipe) is None


def test_a_layer_that_lies_on_no_grid_is_calibrated_as_ever_and_named(project: Project, scale_cache: Path) -> None:
    (cell,) = select(cells(project), ["gemma-4-E2B-it/8da4w"])
    checkpoint = Checkpoint.open(build(variant_of("q4_0", cell), scale_cache))
    model = loader.load_mapped(checkpoint, dtype=torch.float32)
    name = "model.layers.1.mlp.gate_proj"
    other = model.get_submodule(name)
    torch.manual_seed(0)
    other.weight = torch.nn.Parameter(other.weight * (1 + 0.1 * torch.rand_like(other.weight)), requires_grad=False)
    known = model.get_submodule("model.layers.1.mlp.up_proj").weight
    rows = other.weight.float()
    norm = model.get_submodule("model.layers.1.pre_feedforward_layernorm").weight.float().clone()
    grid = apply_recipe(model, checkpoint, cell.recipe)
    assert grid is not None and grid.others == (name,) and grid.share == 1 and 0.9 < grid.weights_share < 1
    made = model.get_submodule(name)
    assert isinstance(made, DynamicLinear) and made.bits == 4 and not made.beside
    # Nothing is folded out of a norm that a layer reads whose integers are known.
    assert torch.equal(model.get_submodule("model.layers.1.pre_feedforward_layernorm").weight, norm)
    # What came before and after it is as it was trained, and its own rounding is that of four bits.
    kept = recover(known)
    assert kept is not None and torch.equal(model.get_submodule("model.layers.1.mlp.up_proj").values, kept.values)
    back = unpack(made.values, low_first=True).float().unflatten(-1, (-1, 32)) * made.scales.float().unsqueeze(-1)
    assert 0.02 < (back.flatten(-2) - rows).norm() / rows.norm() < 0.2
