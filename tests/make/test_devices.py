"""Speeds from other devices: of a cell that was made here, whether or not its card was ever recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from cards.sample import cell as sample_cell
from conftest import ROOT

from hubpub.config import Project
from hubpub.errors import UsageError
from hubpub.facts import CardFacts, load, save
from hubpub.make.devices import import_stats
from hubpub.matrix import cells, select
from hubpub.measure.bench import read_stats
from hubpub.plan import plan
from hubpub.workspace import Workspace

CELL, CARD = "gemma-3n-E2B-it/8da4w", "gemma-3n-E2B-it-pte"
STATS = {
    "prefill_token_per_sec": 64, "decode_token_per_sec": 8, "prompt_tokens": 128, "generated_tokens": 32,
    "model_load_start_ms": 1000, "model_load_end_ms": 4500, "inference_start_ms": 5000, "inference_end_ms": 11000,
    "prompt_eval_end_ms": 7000, "first_token_ms": 7010, "aggregate_sampling_time_ms": 0,
    "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project of one card that was never released, and nothing made."""
    shutil.copytree(ROOT / "cards" / CARD, tmp_path / "cards" / CARD)
    (tmp_path / "cards" / CARD / "facts.json").unlink()
    (tmp_path / "stats.json").write_text(json.dumps(STATS))
    return Workspace(Project.find(tmp_path), tmp_path / "work", rehearsal=False)


def made(workspace: Workspace) -> str:
    """Put the cell's file and facts where they would lie. Returns the SHA-256 of the file."""
    (step,) = plan(select(cells(workspace.project), [CELL]), workspace)
    step.folder.mkdir(parents=True)
    step.pte.write_bytes(b"program")
    sha256 = hashlib.sha256(b"program").hexdigest()
    facts = sample_cell(step.cell.card, "8da4w", "s")
    file = facts.file.model_copy(update={"name": step.cell.file, "bytes": 7, "sha256": sha256})
    save(facts.model_copy(update={"file": file}), step.folder / "facts.json")
    return sha256


def test_a_card_without_committed_facts(workspace: Workspace) -> None:
    stats = workspace.root.parent / "stats.json"
    with pytest.raises(UsageError, match="has not been made"):
        import_stats(workspace, CELL, read_stats(stats, "Pixel 9"))
    sha256 = made(workspace)
    path = import_stats(workspace, CELL, read_stats(stats, "Pixel 9"))
    (kept,) = json.loads(path.read_text())["measured"]
    assert (kept["cell"], kept["sha256"], kept["speed"]["device"]) == (CELL, sha256, "Pixel 9")
    assert not (workspace.project.cards[0].folder / "facts.json").exists()


def test_what_was_made_here_comes_before_what_was_recorded(workspace: Workspace) -> None:
    folder = workspace.project.cards[0].folder
    shutil.copy(ROOT / "cards" / CARD / "facts.json", folder)
    stats = workspace.root.parent / "stats.json"
    path = import_stats(workspace, CELL, read_stats(stats, "Pixel 9"))
    recorded = next(one for one in load(CardFacts, folder / "facts.json").cells if one.cell == CELL)
    assert [one["sha256"] for one in json.loads(path.read_text())["measured"]] == [recorded.file.sha256]
    sha256 = made(workspace)
    import_stats(workspace, CELL, read_stats(stats, "Pixel 9"))
    assert sha256 in [one["sha256"] for one in json.loads(path.read_text())["measured"]]
