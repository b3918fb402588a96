"""How far a slice is from the model it is a slice of: larger ones are nearer, and one of wrong weights is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, scale_model
from safetensors.torch import load_file, save_file

from hubpub import data
from hubpub.config import Project
from hubpub.measure.parity import SCALE_TOKENS, reference
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.reader import Reader
from hubpub.model.scale import slice_of
from hubpub.slices import Slice, named

pytestmark = pytest.mark.slow
LIMIT = Project.find(ROOT).recipes["8da4w"].gates.slice_kl_mean_max


@pytest.fixture(scope="module")
def whole(scale_cache: Path) -> Checkpoint:
    return Checkpoint.open(scale_model("gemma-3n-E4B-it", scale_cache))


def distance(checkpoint: Checkpoint, folder: Path) -> float:
    """KL in nats of the sliced `checkpoint` to its whole, over the text that files are compared on."""
    reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    found = reference(checkpoint, reader, (data.passage(), []), SCALE_TOKENS, folder, lambda *_: None).whole
    assert found is not None
    return found.kl_mean


def test_quality_grows_with_the_size_of_the_slice(whole: Checkpoint, project: Project, tmp_path: Path) -> None:
    card = next(card for card in project.cards if card.repo == "gemma-3n-E2.69B-it-pte")
    far = []
    for name in ("E1.96B", "E2.69B", "E3.39B"):
        part = slice_of(card.variant.model_copy(update={"slice": named(name)}), rehearsal=True)
        assert part is not None
        far.append(distance(whole.sliced(part), tmp_path))
    assert far == sorted(far, reverse=True) and far[0] < LIMIT


def test_a_slice_of_a_layer_less_than_was_trained_is_refused(whole: Checkpoint, tmp_path: Path) -> None:
    assert distance(whole.sliced(Slice(widths=(192,) * 4, skip=(3, 4))), tmp_path) > LIMIT


def test_rows_from_the_end_are_refused(whole: Checkpoint, tmp_path: Path) -> None:
    """The same model with its neurons in the other order: nothing changes in it but what its slices are made of."""
    copy = tmp_path / "turned"
    shutil.copytree(whole.folder, copy)
    for path in copy.glob("*.safetensors"):
        save_file({name: turned(name, tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    part = Slice(widths=(192,) * 6)
    assert distance(whole.sliced(part), tmp_path) < LIMIT < distance(Checkpoint.open(copy, part), tmp_path / "other")


def turned(name: str, tensor: Any) -> Any:
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        return tensor.flip(0).contiguous()
    return tensor.flip(1).contiguous() if name.endswith("down_proj.weight") else tensor
