"""A slice of a checkpoint is the model it says it is, and is read without a copy of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import scale_model
from test_sizing import real_size

from hubpub.errors import SourceError
from hubpub.hub.text_decoder import load_text_decoder
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import load
from hubpub.model.slicing import parts, sliced_config
from hubpub.slices import Slice, Whole, published

pytestmark = pytest.mark.slow
PART = Slice(widths=(384, 192, 384, 192, 224), skip=(3,))


@pytest.fixture(scope="module")
def whole(scale_cache: Path) -> Checkpoint:
    return Checkpoint.open(scale_model("gemma-3n-E4B-it", scale_cache))


def test_the_slice_e2b_has_the_shapes_of_e2b_tensor_by_tensor() -> None:
    shapes = stored_shapes("gemma-3n-E4B")
    layers = Whole.of(real_size().text_config("gemma-3n-E4B"))
    part = published()["E2B"].slice
    made = {name: cut.of(shapes[old]) if cut else shapes[old] for name, cut, old in parts(part, layers, shapes)}
    assert made == stored_shapes("gemma-3n-E2B")
    assert sum(torch.Size(shape).numel() for shape in made.values()) == 4_456_156_768
    # And so has its config.
    text = sliced_config(part, layers, real_size().text_config("gemma-3n-E4B"))
    assert text == real_size().text_config("gemma-3n-E2B")


def test_a_slice_computes_what_the_whole_does_with_the_rest_taken_away(whole: Checkpoint) -> None:
    """Neurons that are not kept multiplied by nothing, a layer that is not kept passed by: in the whole model."""
    tokens = torch.arange(100, 140).unsqueeze(0)
    part = Slice(widths=(384, 384, 384, 192, 224), skip=(3,))  # sparse layers count their neurons: these stay whole
    model, full = load(whole.sliced(part), dtype=torch.float32), load(whole, dtype=torch.float32)
    kept = [layer for layer in range(6) if layer not in part.skip]
    for layer, width in zip(kept, part.widths, strict=True):
        full.model.layers[layer].mlp.down_proj.weight[:, width:] = 0
    full.model.layers[3].forward = lambda hidden, *_, **__: hidden
    with torch.no_grad():
        difference = (model(tokens).logits - full(tokens).logits).abs().max()
    assert difference < 1e-4
    assert model.config.intermediate_size == list(part.widths) and model.config.num_kv_shared_layers == 2


def test_rows_are_views_of_the_mapped_file_and_columns_lie_in_files_too(whole: Checkpoint) -> None:
    model = load(whole.sliced(PART))
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    # Address range, permissions, ..., file.
    ranges = [(range(*(int(end, 16) for end in line[0].split("-"))), line[5]) for line in mapped if len(line) > 5]
    for name, parameter in model.named_parameters():
        home = [file for addresses, file in ranges if parameter.data_ptr() in addresses]
        assert home, f"{name} lies in anonymous memory"
        gathered = ("down_proj" in name and "layers.0" not in name and "layers.2" not in name) or "per_layer" in name
        assert gathered or home[0].endswith(".safetensors"), name
        assert parameter.is_contiguous()
    assert model.dtype == torch.bfloat16


def test_the_values_are_those_of_the_whole(whole: Checkpoint) -> None:
    model, full = load(whole.sliced(PART)), load(whole)
    own, all_ = model.state_dict(), full.state_dict()
    assert torch.equal(own["model.layers.1.mlp.up_proj.weight"], all_["model.layers.1.mlp.up_proj.weight"][:192])
    assert torch.equal(own["model.layers.3.mlp.down_proj.weight"], all_["model.layers.4.mlp.down_proj.weight"][:, :192])
    table = all_["model.embed_tokens_per_layer.weight"].reshape(-1, 6, 32)[:, [0, 1, 2, 4, 5]]
    assert torch.equal(own["model.embed_tokens_per_layer.weight"].reshape(-1, 5, 32), table)
    projection = all_["model.per_layer_model_projection.weight"].reshape(6, 32, -1)[[0, 1, 2, 4, 5]]
    assert torch.equal(own["model.per_layer_model_projection.weight"].reshape(5, 32, -1), projection)


def test_the_loader_takes_a_slice(whole: Checkpoint) -> None:
    model = load_text_decoder(whole.folder, slice=PART)
    assert len(model.model.layers) == 5 and model.config.name_or_path == str(whole.folder)
    with pytest.raises(SourceError, match=r"there is no slice 'E5B'; published slices: E2B"):
        load_text_decoder(whole.folder, slice="E5B")
    with pytest.raises(SourceError, match=r"there is no layer 20"):
        load_text_decoder(whole.folder, slice="E2B")


def test_what_cannot_be_sliced_is_refused(whole: Checkpoint, scale_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="layer 2 must stay"):
        whole.sliced(Slice(widths=(384,) * 5, skip=(2,)))
    with pytest.raises(SourceError, match="only gemma3n has slices"):
        Checkpoint.open(scale_model("gemma-4-E2B-it", scale_cache), PART)
    for path in whole.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    config = {**whole.config, "text_config": {**whole.config["text_config"], "layer_types": None}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="layer_types is no list of one entry per layer"):
        Checkpoint.open(tmp_path, PART)


def stored_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Text tensors as the published checkpoint stores them: keys and values of every layer, used or not."""
    import transformers

    text = real_size().text_config(variant)
    config = transformers.CONFIG_MAPPING["gemma3n_text"].from_dict({**text, "num_kv_shared_layers": 0})
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(config)
    return {
        name.removeprefix("model."): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
