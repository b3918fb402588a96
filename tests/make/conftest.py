"""One cell, really made, that the tests of this room look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Silent

from hubpub.config import Project
from hubpub.facts import CellFacts
from hubpub.make.run import make
from hubpub.matrix import cells, select
from hubpub.plan import Step, plan
from hubpub.workspace import Workspace

# The cheapest to export, to measure and to time.
CELL = "gemma-4-E2B-it/bf16-window"


@dataclass(frozen=True)
class Made:
    """A cell that was made in the work folder of this test run."""

    workspace: Workspace
    step: Step
    facts: CellFacts


@pytest.fixture(scope="session")
def made(project: Project, work: Path) -> Made:
    workspace = Workspace(project, work, rehearsal=True)
    chosen = select(cells(project), [CELL])
    found = make(plan(chosen, workspace), workspace, Silent())
    assert found.failures == {}
    (step,) = plan(chosen, workspace)
    assert (step.action, step.reason) == ("reuse", "up to date")
    return Made(workspace, step, found.facts[CELL])
