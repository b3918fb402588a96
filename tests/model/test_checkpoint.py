"""A damaged or foreign checkpoint is told apart before anything heavy starts; a good one loads as text only."""

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
from hubpub.model.checkpoint import Checkpoint, digest
from hubpub.model.families import FAMILIES, family


@pytest.fixture(scope="module")
def good(scale_cache: Path) -> Path:
    """A scale model of Gemma 3n E2B."""
    return scale_model("gemma-3n-E2B-it", scale_cache)


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_a_good_checkpoint_knows_its_text_tensors(good: Path) -> None:
    checkpoint = Checkpoint.open(good)
    assert checkpoint.family.name == "gemma3n"
    assert "embed_tokens.weight" in checkpoint.text_tensors
    assert len(checkpoint.text_tensors) < len(checkpoint.tensors)
    assert digest(good / checkpoint.shards[0]) in checkpoint.files()


def test_a_truncated_shard_is_named(copy: Path) -> None:
    shard = copy / Checkpoint.open(copy).shards[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(SourceError, match=rf"{shard.name} is truncated"):
        Checkpoint.open(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard = copy / Checkpoint.open(copy).shards[-1]
    shard.unlink()
    with pytest.raises(SourceError, match=rf"{shard.name} is missing"):
        Checkpoint.open(copy)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    _edit(copy, lambda header: header.pop("model.language_model.norm.weight", None))
    with pytest.raises(SourceError, match=r"tensor model\.language_model\.norm\.weight is missing"):
        hubpub.load_text_decoder(copy)


def test_a_wrong_shape_is_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["laurel_rank"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"linear_left\.weight is \[\d+, \d+\] where config\.json asks for"):
        hubpub.load_text_decoder(copy)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"architectures": ["MistralForCausalLM"]}', r"MistralForCausalLM.*not one hubpub can export"),
        ("[]", "holds no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_foreign_architecture_is_refused(copy: Path, config: str, says: str) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(SourceError, match=says):
        Checkpoint.open(copy)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    architecture = family(FAMILIES[0]).architecture
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SourceError, match="no safetensors") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint is not None
    assert "pytorch_model.bin is a pickle" in caught.value.hint


def test_an_index_cannot_point_outside_its_folder(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] = dict.fromkeys(table["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(table))
    with pytest.raises(SourceError, match="not a safetensors file in the same folder"):
        Checkpoint.open(copy)


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


def _edit(folder: Path, change: object) -> None:
    """Apply `change` to the header of every shard, leaving the data where it is."""
    import struct

    assert callable(change)
    for shard in folder.glob("*.safetensors"):
        raw = shard.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        shard.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


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
