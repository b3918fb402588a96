"""The text decoder alone, whatever else is in its checkpoint, with the very weights that are stored."""

from __future__ import annotations

import json
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import OF_FAMILY, scale_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hubpub
from hubpub.errors import SourceError
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import FAMILIES
from hubpub.model.loader import load, load_mapped


@pytest.fixture(scope="module", params=FAMILIES)
def of_family(request: pytest.FixtureRequest, scale_cache: Path) -> Path:
    """A scale model of each family."""
    return scale_model(OF_FAMILY[request.param], scale_cache)


def test_the_text_decoder_is_a_plain_model_whose_layers_can_be_hooked(of_family: Path) -> None:
    model = hubpub.load_text_decoder(of_family, dtype=torch.float32)
    assert type(model).__name__ == Checkpoint.open(of_family).family.text_class
    assert not {"timm", "torchvision"} & set(sys.modules)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.tensor([[2, 300, 301]]))
    assert len(seen) == model.config.num_hidden_layers
    assert all(stream.shape[-2:] == (3, model.config.hidden_size) for stream in seen)
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


def test_every_weight_is_the_stored_one(of_family: Path) -> None:
    checkpoint = Checkpoint.open(of_family)
    model = hubpub.load_text_decoder(of_family)
    values = model.state_dict()
    for name, stored in checkpoint.text_tensors.items():
        if not re.fullmatch(checkpoint.family.ignored, name) or f"model.{name}" in values:
            with safe_open(of_family / stored.shard, "pt") as shard:
                tensor = shard.get_tensor(checkpoint.family.text_prefix + name)
            assert torch.equal(values[f"model.{name}"], tensor), name


def test_a_head_of_its_own_must_be_stored_and_is_read(scale_cache: Path, tmp_path: Path) -> None:
    """A model without one would get random numbers in its place."""
    folder = Path(shutil.copytree(scale_model(OF_FAMILY["llama"], scale_cache), tmp_path / "untied"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(SourceError, match=r"tensor lm_head\.weight is missing"):
        hubpub.load_text_decoder(folder)
    head = torch.arange(config["vocab_size"] * config["hidden_size"], dtype=torch.float32)
    head = head.reshape(config["vocab_size"], config["hidden_size"]).bfloat16()
    save_file({**load_file(folder / "model.safetensors"), "lm_head.weight": head}, folder / "model.safetensors")
    assert torch.equal(hubpub.load_text_decoder(folder).lm_head.weight, head)


def test_weights_stay_mapped_and_buffers_are_those_of_the_dtype_asked_for(scale_cache: Path) -> None:
    checkpoint = Checkpoint.open(scale_model("gemma-3n-E2B-it", scale_cache))
    mapped, converted = load_mapped(checkpoint, dtype=torch.float32), load(checkpoint, dtype=torch.float32)
    assert {p.dtype for p in mapped.parameters()} == {torch.bfloat16}
    for name, buffer in converted.named_buffers():
        assert torch.equal(mapped.get_buffer(name), buffer), name
