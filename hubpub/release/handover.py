"""Facts of staged cells, on their way to whoever promotes: one file each, named after the file they are of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hubpub.errors import ConfigError, UsageError
from hubpub.facts import CellFacts, dump, load
from hubpub.files import write_atomic

NOTE = ".facts.json"


def note_of(file: str) -> str:
    """The name of the facts of `file` (a `.pte`): on the staging branch, in a job's artifact, in the work folder."""
    return file + NOTE


def hand_over(folder: Path, facts: Iterable[CellFacts]) -> None:
    """Write the facts of each cell below `folder`."""
    for one in facts:
        write_atomic(folder / note_of(one.file.name), dump(one).encode())


def handed_over(folder: Path) -> dict[str, CellFacts]:
    """The facts anywhere below `folder`, by cell. Raises ConfigError where a cell was measured twice, differently."""
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", f"name the folder that holds the *{NOTE} of every staged cell")
    found: dict[str, CellFacts] = {}
    for path in sorted(folder.rglob(f"*{NOTE}")):
        facts = load(CellFacts, path)
        if found.setdefault(facts.cell, facts) != facts:
            raise ConfigError(f"{path}: {facts.cell} was measured twice, with different results", "keep one of them")
    return found
