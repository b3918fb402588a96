"""Benchmarks of our files: run over the programs themselves, kept beside the card, shown by releases of those files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hubpub.config import Card
from hubpub.errors import ToolchainError, UsageError
from hubpub.facts import CardFacts, CellFacts, Evaluation, Fact, load, save
from hubpub.matrix import Cell
from hubpub.measure.chat import reader_beside
from hubpub.measure.inspect import inspect
from hubpub.progress import Progress
from hubpub.workspace import Workspace

if TYPE_CHECKING:
    from hubpub.measure.harness import Asked

EVALUATIONS = "evaluations.json"


class EvaluationRecord(Fact):
    """What a task said of the file of a cell; the evaluation names its SHA-256."""

    cell: str
    evaluation: Evaluation


class Evaluations(Fact):
    """evaluations.json beside a card.toml: what `hubpub eval` kept, for the releases of these files to show."""

    measured: tuple[EvaluationRecord, ...] = ()


def evaluate(
    workspace: Workspace, pte: Path, tokenizer: Path | None, asked: Asked, progress: Progress
) -> tuple[Evaluation, ...]:
    """Put the program at `pte` through the tasks `asked`; what it answered is kept in the work folder by its hash.

    Raises ToolchainError where the harness is not installed, and what `hubpub.measure.harness.evaluate` raises.
    """
    require_harness()
    from hubpub.measure.harness import evaluate as run

    sha256 = workspace.hashes.sha256(pte)
    reader, stop = reader_beside(pte, tokenizer), inspect(pte).eos_ids
    if not stop:
        raise UsageError(f"{pte.name} does not say which tokens end an answer", "export it with hubpub")
    return run(pte, sha256, reader, tuple(map(int, stop)), asked, workspace.answers(sha256), progress)


def require_harness() -> None:
    """Raise ToolchainError where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        raise ToolchainError("lm-evaluation-harness is not installed", "pip install 'hubpub[eval]'")


def keep(cell: Cell, found: tuple[Evaluation, ...]) -> Path:
    """Keep what was found of the file of `cell` beside its card, in place of the same task asked the same way before.

    A run over fewer items does not take the place of one over more. Returns the file they were written to; the card's
    committed facts, where they are of the same file, are brought up to date too.
    """

    def same(one: EvaluationRecord) -> tuple[object, ...]:
        asked = one.evaluation
        return one.cell, asked.sha256, asked.task, asked.shots, asked.chat

    path = cell.card.folder / EVALUATIONS
    kept = {same(one): one for one in (load(Evaluations, path).measured if path.exists() else ())}
    for record in (EvaluationRecord(cell=cell.id, evaluation=one) for one in found):
        before = kept.get(same(record))
        if before is None or before.evaluation.items <= record.evaluation.items:
            kept[same(record)] = record
    ordered = sorted(kept.values(), key=lambda one: (one.cell, one.evaluation.task, one.evaluation.shots))
    save(Evaluations(measured=tuple(ordered)), path)
    recorded = cell.card.folder / "facts.json"
    if recorded.exists():
        save(with_evaluations(load(CardFacts, recorded), cell.card), recorded)
    return path


def with_evaluations(facts: CardFacts, card: Card) -> CardFacts:
    """`facts` with the benchmarks of the very files they are of."""
    path = card.folder / EVALUATIONS
    kept = load(Evaluations, path).measured if path.exists() else ()

    def own(cell: CellFacts) -> CellFacts:
        found = (one.evaluation for one in kept if (one.cell, one.evaluation.sha256) == (cell.cell, cell.file.sha256))
        return cell.model_copy(update={"evaluations": tuple(found)})

    return facts.model_copy(update={"cells": tuple(map(own, facts.cells))})
