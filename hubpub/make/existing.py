"""Programs that exist, measured again: validate and bench."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub import data
from hubpub.config import Project, Recipe, Variant
from hubpub.errors import ConfigError, SourceError, UsageError
from hubpub.facts import CellFacts, Gate, OtherHost, Parity, Program, Speed
from hubpub.gates import evaluate_gates
from hubpub.hub.sources import download_source
from hubpub.machine import system
from hubpub.matrix import Cell, cells, select
from hubpub.measure.bench import RUNS, speed
from hubpub.measure.drift import locate_drift
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import SCALE_TOKENS, measure, text_length
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.reader import Reader
from hubpub.model.scale import build, slice_of
from hubpub.plan import Step, plan
from hubpub.progress import Progress
from hubpub.slices import Slice
from hubpub.workspace import Workspace, integers_of

if TYPE_CHECKING:
    from hubpub.measure.drift import Drift

DRIFT_TOKENS = 96


@dataclass(frozen=True)
class Target:
    """A program to measure, with the recipe it was made by and its source where they are known."""

    name: str
    pte: Path
    recipe: Recipe | None
    source: Path | None
    slice: Slice | None = None


@dataclass(frozen=True)
class Validation:
    """How one program compares with its reference model.

    `chosen_here`: the integers it was held to were chosen by a calibration on this machine, as those that it was made
    with are not beside it. Another kind of processor chooses others.
    """

    name: str
    parity: Parity
    gates: tuple[Gate, ...]
    drift: Drift | None
    chosen_here: bool

    @property
    def missed(self) -> list[str]:
        """The names of the gates that were not passed."""
        return [gate.name for gate in self.gates if not gate.passed]

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.name,
            "passed": not self.missed,
            "gates": [gate.model_dump(mode="json") for gate in self.gates],
            "parity": self.parity.model_dump(mode="json"),
            "drift": self.drift.as_json() if self.drift else None,
        }


def find(workspace: Workspace, given: str, *, source: Path | None, recipe: str | None) -> tuple[Target, ...]:
    """The program at the path `given`, or those of the cells it selects. Raises ConfigError or UsageError."""
    path = Path(given)
    if path.suffix == ".pte" or path.is_file():
        if not path.is_file():
            raise SourceError(f"no file at {path}", "give the path of a .pte, or the name of a cell")
        cell = _cell_of(workspace.project, path, recipe)
        part = slice_of(cell.variant, rehearsal=workspace.rehearsal) if cell and cell.file == path.name else None
        return (Target(path.name, path, cell.recipe if cell else None, source, part),)
    return tuple(
        Target(
            step.cell.id,
            step.pte,
            step.cell.recipe,
            source or source_of(step.cell.variant, workspace),
            slice_of(step.cell.variant, rehearsal=workspace.rehearsal),
        )
        for step in _made(workspace, given)
    )


def _cell_of(project: Project, path: Path, name: str | None) -> Cell | None:
    """The cell whose file has the name of `path`, else any of the recipe `name`."""
    declared = sorted(cells(project), key=lambda cell: cell.file != path.name)
    for cell in declared:
        if cell.recipe.name == name if name else cell.file == path.name:
            return cell
    if name:
        known = ", ".join(dict.fromkeys(cell.recipe.name for cell in declared))
        raise ConfigError(f"unknown recipe '{name}'", f"known recipes: {known}")
    return None


def _made(workspace: Workspace, selector: str) -> list[Step]:
    steps = [step for step in plan(select(cells(workspace.project), [selector]), workspace) if step.action != "skip"]
    made = [step for step in steps if step.pte.exists()]
    if not made:
        flag = " --rehearse" if workspace.rehearsal else " --version vX.Y.Z --dry-run"
        raise UsageError(
            f"no program of '{selector}' is in {workspace.root}",
            f"make it with 'hubpub release {selector}{flag}', or give the path of a .pte"
            + ("" if workspace.rehearsal else "; a rehearsal's programs need --rehearse"),
        )
    return made


def source_of(variant: Variant, workspace: Workspace) -> Path:
    """The checkpoint folder of `variant`: the scale model that stands in for it in a rehearsal, else a download."""
    if workspace.rehearsal:
        return build(variant, workspace.scale_models)

    return download_source(variant.source, revision=variant.revision)


def validate(target: Target, workspace: Workspace, progress: Progress, *, with_drift: bool) -> Validation:
    """Compare the program with its source and evaluate its recipe's gates; `with_drift` also says which
    layer drifts first and which weights are wrong."""
    from hubpub.model.loader import text_config

    recipe, checkpoint = _reference(target)
    program = inspect(target.pte)
    vocabulary = int(checkpoint.family.shape(text_config(checkpoint)).vocabulary)
    chosen_here = recipe.calibrated and not integers_of(target.pte).exists()
    parity = _parity(target, recipe, checkpoint, program, workspace, progress)
    drift = None
    if with_drift:
        progress("locate drift", 0.0)
        reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
        drift = locate_drift(target.pte, checkpoint, recipe, reader.encode(data.passage())[:DRIFT_TOKENS])
    gates = evaluate_gates(recipe.gates, parity, program, vocabulary)
    return Validation(target.name, parity, gates, drift, chosen_here)


def _reference(target: Target) -> tuple[Recipe, Checkpoint]:
    """The recipe of a program and the checkpoint it is compared with. Raises UsageError where one is not known."""
    if target.recipe is None:
        raise UsageError(f"{target.name} does not say which recipe it was made by", "add --recipe NAME, e.g. 8da4w")
    if target.source is None:
        raise UsageError(f"{target.name}: no reference model to compare with", "add --source DIR, its checkpoint")
    return target.recipe, Checkpoint.open(target.source, target.slice)


def _parity(
    target: Target, recipe: Recipe, checkpoint: Checkpoint, program: Program, workspace: Workspace, progress: Progress
) -> Parity:
    """What comparing the program with `checkpoint` came to."""
    length = program.context
    if length is None:
        raise UsageError(f"{target.name} does not say how long its context is", "export it with hubpub")
    # Of a large model that takes half a minute.
    progress("hashing the source", 0.0)
    files = "".join(file.sha256 for file in checkpoint.files())
    references = workspace.references(hashlib.sha256(files.encode()).hexdigest()[:12])
    window = recipe.window
    tokens = SCALE_TOKENS if window else text_length(length, scale_model=workspace.rehearsal)
    parity = measure(target.pte, checkpoint, recipe, tokens, references, progress)
    return parity.model_copy(update={"sha256": workspace.hashes.sha256(target.pte)})


def on_this_host(target: Target, workspace: Workspace, facts: CellFacts, progress: Progress) -> OtherHost:
    """What `facts` say of another machine, measured on this one: the same file, original and gates."""
    recipe, checkpoint = _reference(target)
    parity = _parity(target, recipe, checkpoint, inspect(target.pte), workspace, progress)
    progress("bench", 0.0)
    speed_here = bench(target, None, RUNS).model_copy(update={"sha256": parity.sha256})
    gates = evaluate_gates(
        recipe.gates,
        parity,
        facts.program,
        facts.vocabulary,
        speed_here.memory,
        facts.parameters.total,
        trained=facts.source.qat_of is not None and recipe.in_four_bits,
    )
    return OtherHost(system=system(), parity=parity, speed=speed_here, gates=gates)


def bench(target: Target, tokenizer: Path | None, runs: int) -> Speed:
    """Speed and memory of the program, through the LLM runner where there is a tokenizer for it."""

    program = inspect(target.pte)
    length = program.context
    if length is None:
        raise UsageError(f"{target.name} does not say how long its context is", "export it with get_max_context_len")
    beside = target.pte.with_name("tokenizer.json")
    own = target.source / "tokenizer.json" if target.source else None
    found = tokenizer or next((path for path in (beside, own) if path and path.is_file()), None)
    return speed(target.pte, length, found if program.metadata.get("use_kv_cache", True) else None, runs=runs)
