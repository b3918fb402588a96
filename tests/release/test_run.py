"""What is said at plan time: what was not selected, what cannot be released, and errors that stand for many."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError, ExportError, GateError, UsageError
from hubpub.facts import save
from hubpub.plan import plan
from hubpub.release.run import planned, whole_repos, worst
from hubpub.release.version import checked_version
from hubpub.workspace import Workspace

from .conftest import facts_of, write_card


def made(workspace: Workspace, recipe: str) -> None:
    """Put a file and its facts where the cell of `recipe` would lie."""
    (step,) = [step for step in planned(workspace, ()) if step.cell.recipe.name == recipe]
    step.folder.mkdir(parents=True)
    step.pte.write_bytes(b"program")
    save(facts_of(workspace.project, recipe), step.folder / "facts.json")


def test_cells_that_were_not_selected_must_have_been_made(small: Project, tmp_path: Path) -> None:
    workspace = Workspace(small, tmp_path / "work", rehearsal=False)
    steps = planned(workspace, ("small/8da4w",))
    with pytest.raises(ConfigError, match="small/8da8w was not selected and has not been made"):
        whole_repos(steps)
    made(workspace, "8da8w")
    assert [step.cell.id for step in whole_repos(steps)] == ["small/8da4w", "small/8da8w"]
    # The whole of it is asked for: there is nothing to add.
    steps = planned(workspace, ())
    assert whole_repos(steps) == steps


def test_a_source_without_a_revision_is_left_out_with_its_reason(small: Project, tmp_path: Path) -> None:
    project = write_card(tmp_path, revision="", name="loose")
    workspace = Workspace(project, tmp_path / "work", rehearsal=False)
    steps = planned(workspace, ())
    assert {step.cell.card.repo: step.action for step in steps} == {"small-pte": "export", "loose-pte": "skip"}
    reason = next(step.reason for step in steps if step.action == "skip")
    assert reason == "its source is not pinned: run 'hubpub pin loose-pte'"
    assert {step.action for step in plan([step.cell for step in steps], Workspace(project, tmp_path, True))} == {
        "export"
    }
    with pytest.raises(ConfigError, match="nothing to release: loose/8da4w: its source is not pinned") as caught:
        planned(workspace, ("loose/*",))
    assert caught.value.line == 6 and str(caught.value.path).endswith("loose-pte/card.toml")


def test_the_worst_error_stands_for_all() -> None:
    assert worst([]) is None
    gate, broken = GateError("gate", "look"), ExportError("broken", "mend")
    assert str(worst([gate])) == "gate"
    found = worst([gate, broken, gate])
    assert isinstance(found, ExportError)
    assert (found.message, found.hint) == ("broken (2 more cells failed)", "mend")


def test_versions() -> None:
    for good in ("v1.0.0", "v0.0.0-rehearsal.0a1b2c3d", "v10.20.30-rc.1"):
        assert checked_version(good, "") == good
    for bad in ("1.0.0", "v1.0", "v1.0.0+x", "v1.0.0\n", "v1.0.0 --x"):
        with pytest.raises(UsageError, match="is not a version"):
            checked_version(bad, "")
    with pytest.raises(UsageError, match="no version") as caught:
        checked_version(None, "add one")
    assert caught.value.hint == "add one"
