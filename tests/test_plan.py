"""Plans: what would run, and the reason a person is given."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.facts import MEASURING
from hubpub.matrix import Cell, cells
from hubpub.plan import Step, plan, remember
from hubpub.workspace import Workspace


@pytest.fixture
def cell(project: Project) -> Cell:
    """The first declared cell."""
    return cells(project)[0]


def one(cell: Cell, work: Path, *, rehearse: bool = True, force: bool = False) -> Step:
    (step,) = plan([cell], Workspace(Project(work, work), work, rehearse), force=force)
    return step


def finish(step: Step) -> None:
    """Lay down what a cell that was made leaves behind, as far as a plan looks at it."""
    remember(step)
    step.pte.write_bytes(b"program")
    sha256 = hashlib.sha256(b"program").hexdigest()
    step.workspace.hashes.record(step.pte, sha256)
    measured = {"measuring": MEASURING, "sha256": sha256}
    facts = {"file": {"sha256": sha256}, "parity": measured, "speed": measured}
    (step.folder / "facts.json").write_text(json.dumps(facts))


def test_a_cell_is_new_then_unfinished_then_up_to_date(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    assert (step.action, step.reason) == ("export", "new")
    remember(step)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("export", "not finished")
    finish(step)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "up to date")
    assert one(cell, tmp_path, force=True).reason == "forced"
    (step.folder / "facts.json").write_text("{}")
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "to be measured again")


def test_a_changed_recipe_is_named_and_its_gates_are_not_part_of_it(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    other = Cell(cell.card, cell.recipe.model_copy(update={"head": None}))
    assert one(other, tmp_path).reason == "changed: recipe"
    stricter = cell.recipe.gates.model_copy(update={"top1_min": 1.0})
    judged = Cell(cell.card, cell.recipe.model_copy(update={"gates": stricter}))
    assert one(judged, tmp_path).reason == "up to date"


def test_a_changed_context_is_named(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    export = cell.card.export.model_copy(update={"context": 64})
    assert (
        one(Cell(cell.card.model_copy(update={"export": export}), cell.recipe), tmp_path).reason == "changed: context"
    )


def test_a_rehearsal_and_a_release_never_share_files(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    assert one(cell, tmp_path, rehearse=False).reason == "new"


def test_a_pinned_revision_is_the_source(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path, rehearse=False))
    variant = cell.variant.model_copy(update={"revision": "0" * 40})
    moved = Cell(cell.card.model_copy(update={"variant": variant}), cell.recipe)
    assert one(moved, tmp_path, rehearse=False).reason == "changed: source"


def test_an_excluded_cell_is_skipped_with_its_reason(cell: Cell, tmp_path: Path) -> None:
    step = one(Cell(cell.card, cell.recipe, "too large"), tmp_path)
    assert (step.action, step.reason) == ("skip", "excluded: too large")


def test_another_file_than_was_measured_is_exported_again(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    finish(step)
    step.pte.write_bytes(b"another")
    # Nothing is known of it yet: whoever reads the facts hashes it first.
    assert one(cell, tmp_path).action == "reuse"
    step.workspace.hashes.sha256(step.pte)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == (
        "export",
        "the file is not the one that was measured",
    )


@pytest.mark.parametrize("stale", ["parity", "speed"])
def test_what_was_measured_on_another_file_is_measured_again(cell: Cell, tmp_path: Path, stale: str) -> None:
    step = one(cell, tmp_path)
    finish(step)
    path = step.folder / "facts.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, stale: {**facts[stale], "sha256": "0" * 64}}))
    assert one(cell, tmp_path).reason == "to be measured again"
    path.write_text(json.dumps({**facts, stale: {"measuring": MEASURING}}))
    assert one(cell, tmp_path).reason == "to be measured again"
