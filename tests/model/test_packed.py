"""Checkpoints that hold integers of four bits are read as what they stand for; other forms are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scale_model
from safetensors.torch import load_file, save_file

import hubpub
from hubpub.errors import SourceError
from hubpub.hub.source_sizes import size_of
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import family
from hubpub.model.scale.on_grid import put_on_grid

NAME = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(scale_cache: Path) -> Path:
    """A scale model of SmolLM2, in bf16."""
    return scale_model("SmolLM2-135M-Instruct", scale_cache)


@pytest.fixture
def packed(plain: Path, tmp_path: Path) -> Path:
    """The same in four bits."""
    folder = tmp_path / "packed"
    folder.mkdir()
    put_on_grid(plain, folder, family("llama"), "w4a16-ct")
    return folder


def changed(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    for key, value in values.items():
        (weights if key in weights else config["quantization_config"])[key] = value
    path.write_text(json.dumps(config))


def test_integers_are_read_as_what_they_stand_for(packed: Path, plain: Path) -> None:
    held = load_file(packed / "model.safetensors")
    words, scales = held[f"{NAME}.weight_packed"], held[f"{NAME}.weight_scale"]
    integers = torch.stack([(words >> 4 * place & 15) - 8 for place in range(8)], -1).flatten(-2)
    assert integers.min() == -8 and integers.max() <= 7
    wanted = (integers.unflatten(-1, (-1, 32)) * scales.unsqueeze(-1)).flatten(-2)
    assert wanted.dtype == torch.bfloat16
    model = hubpub.load_text_decoder(packed)
    assert torch.equal(model.get_submodule(NAME).weight, wanted)
    assert not hasattr(model.config, "quantization_config")
    # What is not packed is as it was.
    assert torch.equal(
        model.model.embed_tokens.weight, load_file(plain / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_it_is_counted_by_its_weights_and_downloaded_by_its_bytes(packed: Path, plain: Path) -> None:
    def size(folder: Path) -> Any:
        return size_of({k: (v.dtype, v.shape) for k, v in Checkpoint.open(folder).headers.items()}, "llama")

    small, large = size(packed), size(plain)
    assert small.matrices == large.matrices
    assert small.checkpoint < 0.75 * large.checkpoint


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq'"),
        ({"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
        ({"num_bits": 8}, "weights.num_bits is 8 where 4 is read"),
        ({"symmetric": False}, "weights.symmetric is False"),
        ({"group_size": 128}, "weights.group_size is 128"),
        ({"actorder": "group"}, "weights.actorder is set"),
        ({"config_groups": {"group_0": {}}}, "weights.num_bits is None"),
    ],
)
def test_another_form_is_refused_and_says_what_of_it(packed: Path, values: dict[str, Any], said: str) -> None:
    changed(packed, **values)
    with pytest.raises(SourceError, match=said) as caught:
        Checkpoint.open(packed)
    assert "pack-quantized" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("gone", "more", "said"),
    [
        (f"{NAME}.weight_scale", {}, "weight_scale is missing"),
        (None, {f"{NAME}.weight_zero_point": torch.zeros(1)}, "only symmetric integers"),
        (None, {f"{NAME}.weight_scale": torch.ones(3, 4).bfloat16()}, "have one scale for 32"),
        (None, {f"{NAME}.weight_packed": torch.ones(8, 16)}, "weight_packed is F32"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    packed: Path, gone: str | None, more: dict[str, torch.Tensor], said: str
) -> None:
    held = {name: one for name, one in load_file(packed / "model.safetensors").items() if name != gone}
    copy = packed.with_name("damaged")
    shutil.copytree(packed, copy)
    save_file({**held, **more}, copy / "model.safetensors")
    with pytest.raises(SourceError, match=said):
        Checkpoint.open(copy)
