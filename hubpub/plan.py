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
from hubpub.files import HashCache, write_atomic
from hubpub.gates import with_current_gates
from hubpub.machine import versions
from hubpub.matrix import Cell
from hubpub.model.scale import scale_key, slice_of
from hubpub.workspace import Workspace

Action = Literal["export", "reuse", "skip"]
FORCED = "forced"


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
    """One cell of a plan: what would be done with it and why."""

    cell: Cell
    action: Action
    reason: str
    fingerprint: Fingerprint
    workspace: Workspace

    @property
    def forced(self) -> bool:
        """Whether the cell is made anew whatever is there."""
        return self.reason == FORCED

    @property
    def folder(self) -> Path:
        """Where the files of this cell lie that were made with this fingerprint."""
        return self.workspace.cells_of(self.cell.variant.name, self.cell.recipe.name) / self.fingerprint.value

    @property
    def pte(self) -> Path:
        return self.folder / self.cell.file

    def facts(self) -> CellFacts | None:
        """What was measured of the very file that is here, with the gates as they are now; None where nothing was.

        Reads the whole file where its hash is not on record.
        """
        path = self.folder / "facts.json"
        if not path.exists() or not self.pte.exists():
            return None
        found = load(CellFacts, path)
        if self.workspace.hashes.sha256(self.pte) != found.file.sha256:
            return None
        return with_current_gates(self.cell, found)

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


def plan(cells: Iterable[Cell], workspace: Workspace, *, force: bool = False) -> tuple[Step, ...]:
    """A step for every cell. Reads only small files of the work folder; needs neither torch nor a network."""
    hashes = workspace.hashes
    return tuple(_step(cell, workspace, hashes, force) for cell in cells)


def _step(cell: Cell, workspace: Workspace, hashes: HashCache, force: bool) -> Step:
    mark = fingerprint(cell, rehearsal=workspace.rehearsal)

    def step(action: Action, reason: str) -> Step:
        return Step(cell, action, reason, mark, workspace)

    if cell.excluded:
        return step("skip", f"excluded: {cell.excluded}")
    if not workspace.rehearsal and cell.variant.revision is None:
        return step("skip", f"its source is not pinned: run 'hubpub pin {cell.card.repo}'")
    if force:
        return step("export", FORCED)
    home = workspace.cells_of(cell.variant.name, cell.recipe.name)
    here = home / mark.value
    if (here / "facts.json").exists() and (here / cell.file).exists():
        return step(*_measured(here / "facts.json", hashes.known(here / cell.file)))
    if here.exists():
        return step("export", "not finished")
    older = _latest(home)
    if older is None:
        return step("export", "new")
    return step("export", "changed: " + ", ".join(mark.changes(older)))


def _measured(path: Path, sha256: str | None) -> tuple[Action, str]:
    """What is to be done with a cell whose facts are at `path` and whose file is known to hash to `sha256`."""
    again: tuple[Action, str] = ("reuse", "to be measured again")
    try:
        facts = json.loads(path.read_text("utf-8"))
        file, parity, speed = facts["file"]["sha256"], facts["parity"], facts["speed"]
        if sha256 not in (None, file):
            return "export", "the file is not the one that was measured"
        current = all(one["measuring"] == MEASURING and one["sha256"] == file for one in (parity, speed))
    except (ValueError, KeyError, TypeError):
        return again
    return ("reuse", "up to date") if current else again


def fingerprint(cell: Cell, *, rehearsal: bool) -> Fingerprint:
    """The fingerprint of a cell; in a rehearsal the source is the scale model that stands in for the variant."""
    variant = cell.variant
    source = f"scale-{scale_key(variant)}" if rehearsal else f"{variant.source}@{variant.revision}"
    if (part := slice_of(variant, rehearsal=rehearsal)) is not None:
        source += f"[{part.key}]"
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
    write_atomic(step.folder / "fingerprint.json", (json.dumps(asdict(step.fingerprint), indent=2) + "\n").encode())


def exporting_code() -> tuple[Path, ...]:
    """What decides the bytes of a `.pte`: the modules of export/ and model/, and the text that weights are rounded for.

    Scale models have a key of their own, which is part of the source.
    """
    found = [path for room in ("export", "model") for path in sorted((PACKAGE / room).rglob("*.py"))]
    found = [path for path in found if not path.relative_to(PACKAGE).parts[1].startswith("scale")]
    return (*found, PACKAGE / "data" / "calibration.txt")


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in exporting_code():
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
