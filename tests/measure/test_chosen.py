"""What a calibration chose, on a machine that would choose something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import scale_model
from safetensors.torch import load_file

from hubpub.config import Project
from hubpub.errors import SourceError
from hubpub.export import calibrate
from hubpub.export.calibrate import apply_recipe
from hubpub.facts import StoredWeights
from hubpub.measure.chosen import with_integers, without_integers
from hubpub.measure.weights import check_weights
from hubpub.model import loader
from hubpub.model.checkpoint import Checkpoint
from hubpub.workspace import integers_of


def test_what_was_chosen_is_made_of_the_program_and_a_little_more(program: Path, tmp_path: Path) -> None:
    rest, into = tmp_path / "rest", tmp_path / "into"
    rest.write_bytes(without_integers(integers_of(program)))
    with_integers(rest, program, into)
    made, kept = load_file(into), load_file(integers_of(program))
    assert made.keys() == kept.keys() and all(torch.equal(made[name], kept[name]) for name in kept)
    # Norms and the scales of the head alone: not the weights.
    norms = [one.nbytes for name, one in kept.items() if name.endswith("norm.weight") or name == "head.scales"]
    assert load_file(rest).keys() < kept.keys() and sum(one.nbytes for one in load_file(rest).values()) == sum(norms)


def test_a_program_is_held_to_what_was_chosen_where_something_else_would_be(
    program: Path, project: Project, scale_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(scale_model("SmolLM2-135M-Instruct", scale_cache))
    # As on another kind of processor, which rounds sums in another order; much more of it, for a model this small.
    monkeypatch.setattr(calibrate, "DAMPING", 0.02)
    monkeypatch.setattr(calibrate, "WINDOWS", 2)

    def stored(kept: Path) -> StoredWeights:
        model = loader.load_mapped(checkpoint, dtype=torch.float32)
        apply_recipe(model, checkpoint, project.recipes["8da8w"], kept=kept)
        return check_weights(program, model)

    assert stored(tmp_path / "nothing").wrong
    rest, into = tmp_path / "rest", tmp_path / "into"
    rest.write_bytes(without_integers(integers_of(program)))
    with_integers(rest, program, into)
    assert stored(into).wrong == ()


def test_what_was_chosen_for_nothing_and_for_another_program(program: Path, tmp_path: Path) -> None:
    rest, into = tmp_path / "rest", tmp_path / "into"
    rest.write_bytes(without_integers(tmp_path / "none"))
    with_integers(rest, program, into)
    assert not into.exists()
    rest.write_bytes(without_integers(integers_of(program)).replace(b"layers.0.", b"layers.7."))
    with pytest.raises(SourceError, match=r"of another program than model.pte: it has no model.layers.7"):
        with_integers(rest, program, into)
    rest.write_bytes(b"")
    with pytest.raises(SourceError, match=r"chose for model.pte is not here"):
        with_integers(rest, program, into)
