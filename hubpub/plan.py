"""What would run and why: pure decisions over declarations and over what lies in the work folder.

A cell's fingerprint names everything its file depends on. A fingerprint that was measured before is never exported
again, whoever asks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hubpub.config import PACKAGE
from hubpub.facts import MEASURING, CellFacts, load
from hubpub.machine import versions
from hubpub.matrix import Cell

Action = Literal["export", "reuse", "skip"]


@dataclass(frozen=True)
class Fingerprint:
    """Hashes (12 hex digits) of the parts a `.pte` depends on; `value` is the hash of them all."""

    source: str
    recipe: str
    context: str
    versions: str
    code: str

    @property
    def value(self) -> str:
        return _hash(json.dumps(asdict(self)))

    def changes(self, older: Fingerprint) -> list[str]:
        """Names of the parts that differ from `older`."""
        mine, theirs = asdict(self), asdict(older)
        return [name for name in mine if mine[name] != theirs[name]]


@dataclass(frozen=True)
class Step:
    """One cell of a plan: what would be done with it and why. `folder` is where its files lie."""

    cell: Cell
    action: Action
    reason: str
    fingerprint: Fingerprint
    folder: Path

    @property
    def pte(self) -> Path:
        return self.folder / self.cell.file

    def facts(self) -> CellFacts | None:
        """What was measured of this very fingerprint, or None where that was not finished."""
        path = self.folder / "facts.json"
        return load(CellFacts, path) if path.exists() and self.pte.exists() else None

    def as_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell.id,
            "repo": self.cell.card.repo,
            "file": self.cell.file,
            "recipe": self.cell.recipe.summary,
            "action": self.action,
            "reason": self.reason,
            "fingerprint": self.fingerprint.value,
        }


def plan(cells: Iterable[Cell], work: Path, *, rehearse: bool, force: bool = False) -> tuple[Step, ...]:
    """A step for every cell. Reads only small files under `work`; needs neither torch nor a network."""
    return tuple(_step(cell, work, rehearse, force) for cell in cells)


def _step(cell: Cell, work: Path, rehearse: bool, force: bool) -> Step:
    mark = fingerprint(cell, rehearse=rehearse)
    home = work / "cells" / ("rehearsal" if rehearse else "release") / cell.variant.name / cell.recipe.name
    folder = home / mark.value

    def step(action: Action, reason: str) -> Step:
        return Step(cell, action, reason, mark, folder)

    if cell.excluded:
        return step("skip", f"excluded: {cell.excluded}")
    if force:
        return step("export", "forced")
    if (folder / "facts.json").exists() and (folder / cell.file).exists():
        return step("reuse", "up to date" if _measured_as_now(folder / "facts.json") else "to be measured again")
    if folder.exists():
        return step("export", "not finished")
    older = _latest(home)
    if older is None:
        return step("export", "new")
    return step("export", "changed: " + ", ".join(mark.changes(older)))


def _measured_as_now(path: Path) -> bool:
    try:
        facts = json.loads(path.read_text("utf-8"))
        return bool(facts["parity"]["measuring"] == facts["speed"]["measuring"] == MEASURING)
    except (ValueError, KeyError, TypeError):
        return False


def fingerprint(cell: Cell, *, rehearse: bool) -> Fingerprint:
    """The fingerprint of a cell; in a rehearsal the source is the scale model that stands in for the variant."""
    if rehearse:
        from hubpub.model.scale import scale_key

        source = "scale-" + scale_key(cell.variant.name, cell.variant.family)
    else:
        source = f"{cell.variant.source}@{cell.variant.revision}"
    recipe = cell.recipe.model_dump_json(exclude={"gates", "summary"})
    return Fingerprint(
        source=_hash(source),
        recipe=_hash(recipe),
        context=_hash(f"{cell.card.export.context}/{cell.card.export.prefill}"),
        versions=_hash(json.dumps(versions())),
        code=_code(),
    )


def remember(step: Step) -> None:
    """Note beside a cell's files what its fingerprint is made of, so that a later plan can say what changed."""
    step.folder.mkdir(parents=True, exist_ok=True)
    (step.folder / "fingerprint.json").write_text(json.dumps(asdict(step.fingerprint), indent=2) + "\n")


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for room in ("export", "model"):
        for path in sorted((PACKAGE / room).rglob("*.py")):
            # Scale models have a key of their own, which is part of the source.
            if not path.name.startswith("scale"):
                digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _latest(home: Path) -> Fingerprint | None:
    notes = sorted(home.glob("*/fingerprint.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(notes):
        try:
            return Fingerprint(**json.loads(path.read_text()))
        except (ValueError, TypeError):
            continue
    return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
