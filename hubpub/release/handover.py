"""Facts of staged cells, on their way to whoever promotes: one file each, named after the file they are of."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from hubpub.errors import ConfigError, SourceError, UsageError
from hubpub.facts import CellFacts, Fact, OtherHost, dump, load
from hubpub.files import write_atomic
from hubpub.model.checkpoint import digest

NOTE = ".facts.json"
HOST_NOTE = ".host.json"
_STAND_IN = ".stand-in.tar"
_CALIBRATION = ".calibration.safetensors"
# Where weights are split, it says in which shard each is: each shard says that itself, and facts do not list it.
_INDEX = "model.safetensors.index.json"
_ANEW = "rehearse as another version, from its start"


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


def stand_in_name(file: str) -> str:
    """The name of the scale model that `file` was made of: beside its facts, wherever they are."""
    return file + _STAND_IN


def calibration_name(file: str) -> str:
    """The name of what a calibration chose for `file` and `file` itself does not hold: beside its facts as well."""
    return file + _CALIBRATION


def packed(source: Path) -> bytes:
    """The files of a scale model in one: the same files are the same bytes, whoever packs them when."""

    def of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(source, ".", filter=of_nobody)
    return out.getvalue()


def hand_over_beside(folder: Path, beside: Mapping[str, bytes]) -> None:
    """Put what a file was made of beside its facts, by name: its scale model, `packed`, and what a calibration chose.

    Made again on another machine it would be something else, to which the file is not to be compared.
    """
    for name, data in beside.items():
        write_atomic(folder / name, data)


def stand_in_of(folder: Path, facts: CellFacts, into: Path) -> Path:
    """The scale model that came with `facts`, unpacked in the folder `into`; whatever was there is gone.

    Raises SourceError where none came, or another one than the file was made of.
    """
    name = stand_in_name(facts.file.name)
    shutil.rmtree(into, ignore_errors=True)
    try:
        with tarfile.open(folder / name, "r:") as held:
            _unpack(held, into)
    except FileNotFoundError:
        raise SourceError(
            f"the scale model that {facts.file.name} was made of is not here: no other one can stand in for it",
            _ANEW,
        ) from None
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{name} cannot be unpacked: {error}", _ANEW) from None
    there = {path.relative_to(into).as_posix(): path for path in into.rglob("*") if path.is_file()}
    there.pop(_INDEX, None)
    made_of = {file.name: file.sha256 for file in facts.source.files}
    if {path: digest(found).sha256 for path, found in there.items()} != made_of:
        raise SourceError(f"{name} is not the scale model that {facts.file.name} was made of", _ANEW)
    return into


def _unpack(archive: tarfile.TarFile, into: Path) -> None:
    """Write the files of `archive` below `into`. Raises TarError at a link, a device, or a name that leads elsewhere.

    Python has this as a filter from 3.11.4 on; Debian 12 has 3.11.2.
    """
    for member in archive:
        path = (into / member.name).resolve()
        if not path.is_relative_to(into.resolve()) or not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"'{member.name}' is no file of a model")
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
        elif (held := archive.extractfile(member)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(held, file)


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
