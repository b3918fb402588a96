"""Facts of staged cells, on their way to whoever promotes: one file each, named after the file they are of."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path

from hubpub.errors import ConfigError, UsageError
from hubpub.facts import CellFacts, Fact, OtherHost, dump, load
from hubpub.files import write_atomic

NOTE = ".facts.json"
HOST_NOTE = ".host.json"
_STAND_IN = ".stand-in.tar"


class HostNote(Fact):
    """What another machine measured of the file of a cell, on its way to those facts."""

    cell: str
    sha256: str
    host: OtherHost


def note_of(file: str) -> str:
    """The name of the facts of `file` (a `.pte`): on the staging branch, in a job's artifact, in the work folder."""
    return file + NOTE


def hand_over(folder: Path, facts: Iterable[CellFacts]) -> None:
    """Write the facts of each cell below `folder`."""
    for one in facts:
        write_atomic(folder / note_of(one.file.name), dump(one).encode())


def hand_over_host(folder: Path, facts: CellFacts, host: OtherHost) -> None:
    """Write what another machine measured of a cell's file below `folder`."""
    note = HostNote(cell=facts.cell, sha256=facts.file.sha256, host=host)
    name = facts.file.name + "." + host.system.replace(" ", "-") + HOST_NOTE
    write_atomic(folder / name, dump(note).encode())


def hand_over_stand_in(folder: Path, file: str, source: Path) -> None:
    """Put the scale model that `file` was made of beside its facts.

    Trained on another machine it would be another model, to which the file is not to be compared.
    """
    with tarfile.open(folder / (file + _STAND_IN), "w") as packed:
        packed.add(source, ".")


def stand_in_of(folder: Path, file: str, into: Path) -> Path | None:
    """The scale model that came with the facts of `file`, unpacked in the folder `into`; None where none came."""
    packed = folder / (file + _STAND_IN)
    if not packed.is_file():
        return None
    with tarfile.open(packed) as held:
        held.extractall(into, filter="data")
    return into


def handed_over(folder: Path) -> dict[str, CellFacts]:
    """The facts anywhere below `folder`, by cell, with what other machines measured.

    Raises ConfigError where a cell was measured twice, differently.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", f"name the folder that holds the *{NOTE} of every staged cell")
    found: dict[str, CellFacts] = {}
    for path in sorted(folder.rglob(f"*{NOTE}")):
        facts = load(CellFacts, path)
        if found.setdefault(facts.cell, facts) != facts:
            raise ConfigError(f"{path}: {facts.cell} was measured twice, with different results", "keep one of them")
    for path in sorted(folder.rglob(f"*{HOST_NOTE}")):
        note = load(HostNote, path)
        known = found.get(note.cell)
        # Of a file that was made again since, it says nothing.
        if known is not None and known.file.sha256 == note.sha256:
            others = tuple(one for one in known.hosts if one.system != note.host.system)
            found[note.cell] = known.model_copy(update={"hosts": (*others, note.host)})
    return found
