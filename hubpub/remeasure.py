"""Programs that exist, measured again: validate, bench, and speeds that were taken on another device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.config import Card, Project, Recipe
from hubpub.errors import ConfigError, SourceError, UsageError
from hubpub.facts import CardFacts, CellFacts, DeviceSpeed, Fact, Gate, Parity, Speed, load, save
from hubpub.gates import evaluate_gates
from hubpub.matrix import Cell, cells, select
from hubpub.plan import Step, plan

if TYPE_CHECKING:
    from hubpub.measure.where import Drift

Told = Callable[[str, float], None]
DEVICES = "devices.json"
WHERE_TOKENS = 96


@dataclass(frozen=True)
class Target:
    """A program to measure, with the recipe it was made by and its source where they are known."""

    name: str
    pte: Path
    recipe: Recipe | None
    source: Path | None


@dataclass(frozen=True)
class Validation:
    """What holding one program against its source showed."""

    name: str
    parity: Parity
    gates: tuple[Gate, ...]
    drift: Drift | None

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
            "where": self.drift.as_json() if self.drift else None,
        }


class DeviceRecord(Fact):
    """A speed from another device, and the SHA-256 of the very `.pte` it was measured on."""

    cell: str
    sha256: str
    speed: DeviceSpeed


class Devices(Fact):
    """devices.json beside a card.toml: what `hubpub bench --import` kept, for the releases of these files to show."""

    measured: tuple[DeviceRecord, ...] = ()


def find(
    project: Project, given: str, work: Path, *, rehearse: bool, source: Path | None, recipe: str | None
) -> tuple[Target, ...]:
    """The program at the path `given`, or those of the cells it selects. Raises ConfigError or UsageError."""
    path = Path(given)
    if path.suffix == ".pte" or path.is_file():
        if not path.is_file():
            raise SourceError(f"no file at {path}", "give the path of a .pte, or the name of a cell")
        return (Target(path.name, path, _recipe_of(project, path, recipe), source),)
    found = []
    for step in _made(project, given, work, rehearse=rehearse):
        found.append(Target(step.cell.id, step.pte, step.cell.recipe, source or _source(step.cell, work, rehearse)))
    return tuple(found)


def _recipe_of(project: Project, path: Path, name: str | None) -> Recipe | None:
    declared = cells(project)
    for cell in declared:
        if cell.recipe.name == name if name else cell.file == path.name:
            return cell.recipe
    if name:
        known = ", ".join(dict.fromkeys(cell.recipe.name for cell in declared))
        raise ConfigError(f"unknown recipe '{name}'", f"known recipes: {known}")
    return None


def _made(project: Project, selector: str, work: Path, *, rehearse: bool) -> list[Step]:
    chosen = select(cells(project), [selector])
    steps = [step for step in plan(chosen, work, rehearse=rehearse) if step.action != "skip"]
    made = [step for step in steps if step.pte.exists()]
    if not made:
        flag = " --rehearse" if rehearse else " --version vX.Y.Z --dry-run"
        raise UsageError(
            f"no program of '{selector}' is in {work}",
            f"make it with 'hubpub release {selector}{flag}', or give the path of a .pte"
            + ("" if rehearse else "; a rehearsal's programs need --rehearse"),
        )
    return made


def _source(cell: Cell, work: Path, rehearse: bool) -> Path:
    if rehearse:
        from hubpub.model.scale import build

        return build(cell.variant.name, cell.variant.family, work / "scale")
    from hubpub.hub.sources import download_source

    return download_source(cell.variant.source, revision=cell.variant.revision)


def validate(target: Target, work: Path, told: Told, *, scale_model: bool, where: bool) -> Validation:
    """Hold the program against its source and judge it by its recipe's gates; with `where`, look for what broke."""
    from transformers import AutoTokenizer

    from hubpub import data
    from hubpub.measure.inspect import inspect
    from hubpub.measure.parity import SCALE_TOKENS, measure, text_length
    from hubpub.model.checkpoint import Checkpoint

    recipe = target.recipe
    if recipe is None:
        raise UsageError(f"{target.name} does not say which recipe it was made by", "add --recipe NAME, e.g. 8da4w")
    if target.source is None:
        raise UsageError(f"{target.name}: what should it agree with?", "add --source DIR, the original's checkpoint")
    checkpoint = Checkpoint.open(target.source)
    program = inspect(target.pte)
    vocabulary = int(checkpoint.family.shape(_text_config(checkpoint)).vocabulary)
    length = program.metadata.get("get_max_context_len", program.metadata.get("get_max_seq_len"))
    if not isinstance(length, int):
        raise UsageError(f"{target.name} does not say how long its context is", "export it with hubpub")
    files = "".join(file.sha256 for file in checkpoint.files())
    references = work / "references" / hashlib.sha256(files.encode()).hexdigest()[:12]
    window = recipe.window
    tokens = SCALE_TOKENS if window else text_length(length, scale_model=scale_model)
    parity = measure(target.pte, checkpoint, recipe, tokens, references, told)
    drift = None
    if where:
        from hubpub.measure.where import where as look

        told("where", 0.0)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
        drift = look(target.pte, checkpoint, recipe, tokenizer.encode(data.passage())[:WHERE_TOKENS])
    return Validation(target.name, parity, evaluate_gates(recipe.gates, parity, program, vocabulary), drift)


def _text_config(checkpoint: Any) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True).get_text_config()


def bench(target: Target, tokenizer: Path | None, runs: int) -> Speed:
    """Speed and memory of the program, through the LLM runner where there is a tokenizer for it."""
    from hubpub.measure.bench import speed
    from hubpub.measure.inspect import inspect

    program = inspect(target.pte)
    length = program.metadata.get("get_max_context_len", program.metadata.get("get_max_seq_len"))
    if not isinstance(length, int):
        raise UsageError(f"{target.name} does not say how long its context is", "export it with get_max_context_len")
    beside = target.pte.with_name("tokenizer.json")
    own = target.source / "tokenizer.json" if target.source else None
    found = tokenizer or next((path for path in (beside, own) if path and path.is_file()), None)
    return speed(target.pte, length, found if program.metadata.get("use_kv_cache", True) else None, runs=runs)


def import_stats(project: Project, selector: str, stats: Path, device: str, work: Path, *, rehearse: bool) -> Path:
    """Keep what the C++ runner measured on `device` beside the card of the one cell `selector` names.

    The figures are bound to the bytes of its file, from the work folder or else the last recorded release: a release
    of another file does not show them. Returns the file they were written to; the card's committed facts, where they
    are of the same file, are brought up to date too.
    """
    from hubpub.measure.bench import read_stats

    chosen = select(cells(project), [selector])
    if len(chosen) != 1:
        names = ", ".join(cell.id for cell in chosen[:4])
        raise UsageError(f"'{selector}' is {len(chosen)} cells: {names}", "name the one the device ran")
    cell = chosen[0]
    recorded = cell.card.folder / "facts.json"
    committed = load(CardFacts, recorded) if recorded.exists() else None
    (step,) = plan(chosen, work, rehearse=rehearse)
    facts = step.facts() or next((one for one in committed.cells if one.cell == cell.id), None) if committed else None
    if facts is None:
        raise UsageError(f"{cell.id} has not been made", "release it first: figures belong to one file")
    record = DeviceRecord(cell=cell.id, sha256=facts.file.sha256, speed=read_stats(stats, device))
    path = cell.card.folder / DEVICES
    kept = load(Devices, path).measured if path.exists() else ()
    same = (record.cell, record.sha256, record.speed.device)
    others = tuple(one for one in kept if (one.cell, one.sha256, one.speed.device) != same)
    save(Devices(measured=tuple(sorted((*others, record), key=lambda one: (one.cell, one.speed.device)))), path)
    if committed is not None:
        save(with_devices(committed, cell.card), recorded)
    return path


def with_devices(facts: CardFacts, card: Card) -> CardFacts:
    """`facts` with what was measured elsewhere on the very files they are of."""
    path = card.folder / DEVICES
    kept = load(Devices, path).measured if path.exists() else ()

    def own(cell: CellFacts) -> CellFacts:
        found = tuple(one.speed for one in kept if (one.cell, one.sha256) == (cell.cell, cell.file.sha256))
        return cell.model_copy(update={"devices": found})

    return facts.model_copy(update={"cells": tuple(map(own, facts.cells))})
