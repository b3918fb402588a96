"""Facts on their way between machines."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError, SourceError, UsageError
from hubpub.facts import CellFacts, FileFact, OtherHost
from hubpub.release.handover import (
    hand_over,
    hand_over_beside,
    hand_over_host,
    handed_over,
    packed,
    stand_in_name,
    stand_in_of,
)

from .conftest import facts_of


def test_facts_are_found_wherever_they_lie(small: Project, tmp_path: Path) -> None:
    both = [facts_of(small, recipe) for recipe in ("8da4w", "8da8w")]
    hand_over(tmp_path / "a", both[:1])
    hand_over(tmp_path / "deep" / "b", both[1:])
    hand_over(tmp_path / "again", both)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"small-8da4w.pte.facts.json"}
    assert handed_over(tmp_path) == {facts.cell: facts for facts in both}


def test_two_measurements_of_one_cell_are_not_mixed(small: Project, tmp_path: Path) -> None:
    facts = facts_of(small, "8da4w")
    hand_over(tmp_path / "a", [facts])
    hand_over(tmp_path / "b", [facts.model_copy(update={"summary": "another"})])
    with pytest.raises(ConfigError, match="measured twice"):
        handed_over(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        handed_over(tmp_path / "none")


def test_what_another_machine_measured_joins_the_facts_of_the_very_file(small: Project, tmp_path: Path) -> None:
    facts, other = (facts_of(small, recipe) for recipe in ("8da4w", "8da8w"))
    hand_over(tmp_path, [facts, other])
    host = OtherHost(system="Linux aarch64", parity=facts.parity, speed=facts.speed, gates=facts.gates)
    hand_over_host(tmp_path / "arm", facts, host)
    stale = other.model_copy(update={"file": other.file.model_copy(update={"sha256": "0" * 64})})
    hand_over_host(tmp_path / "arm", stale, host)
    found = handed_over(tmp_path)
    assert found[facts.cell].hosts == (host,)
    assert found[other.cell].hosts == ()
    # Measured there again: the later one stands alone.
    again = host.model_copy(update={"gates": ()})
    hand_over_host(tmp_path / "arm", facts, again)
    assert handed_over(tmp_path)[facts.cell].hosts == (again,)


def made_of(facts: CellFacts, files: dict[str, bytes]) -> CellFacts:
    """`facts` of a cell whose source has these files."""
    listed = tuple(FileFact(name=n, bytes=len(d), sha256=hashlib.sha256(d).hexdigest()) for n, d in files.items())
    return facts.model_copy(update={"source": facts.source.model_copy(update={"files": listed})})


def test_a_stand_in_travels_with_the_facts_of_what_was_made_of_it(
    small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which has no safe way to unpack a whole archive before Python 3.11.4.
    monkeypatch.delattr(tarfile.TarFile, "extractall")
    source, facts = tmp_path / "source", tmp_path / "facts"
    source.mkdir()
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    for name, data in {**files, "model.safetensors.index.json": b"{}"}.items():
        (source / name).write_bytes(data)
    cell = made_of(facts_of(small, "8da4w"), files)
    hand_over(facts, [cell])
    hand_over_beside(facts, {stand_in_name(cell.file.name): packed(source)})
    # It is no fact, and every file of the folder that travels lies at its top.
    assert handed_over(facts).keys() == {cell.cell}
    assert all(path.is_file() for path in facts.iterdir())
    there = tmp_path / "there"
    there.mkdir()
    (there / "model-00002.safetensors").write_bytes(b"of another one")
    assert stand_in_of(facts, cell, there) == there
    assert {path.name for path in there.iterdir()} == {*files, "model.safetensors.index.json"}
    assert (there / "model.safetensors").read_bytes() == b"weights"
    other = facts_of(small, "8da8w")
    with pytest.raises(SourceError, match=f"{other.file.name} was made of is not here"):
        stand_in_of(facts, other, there)


def test_the_same_stand_in_is_the_same_bytes_and_says_nothing_of_who_packed_it(tmp_path: Path) -> None:
    for time, name in ((1, "a"), (2, "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (time, time))
    assert packed(tmp_path / "a") == packed(tmp_path / "b")
    with tarfile.open(fileobj=io.BytesIO(packed(tmp_path / "a"))) as held:
        assert {(one.uname, one.uid, one.mtime) for one in held} == {("", 0, 0)}


@pytest.mark.parametrize("change", ["another file", "one more", "one more below", "one less", "no archive"])
def test_another_stand_in_than_the_file_was_made_of_is_refused(change: str, small: Project, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    for name, data in files.items():
        (source / name).write_bytes(data)
    cell = made_of(facts_of(small, "8da4w"), files)
    if change == "another file":
        (source / "model.safetensors").write_bytes(b"planted")
    elif change == "one more":
        (source / "generation_config.json").write_text("{}")
    elif change == "one more below":
        (source / "below" / "config.json").write_text("{}")
    elif change == "one less":
        (source / "config.json").unlink()
    data = b"no archive" if change == "no archive" else packed(source)
    hand_over_beside(tmp_path, {stand_in_name(cell.file.name): data})
    with pytest.raises(SourceError, match=cell.file.name):
        stand_in_of(tmp_path, cell, tmp_path / "there")


@pytest.mark.parametrize("kind", ["a file above", "an absolute name", "a link"])
def test_what_would_be_unpacked_elsewhere_is_refused(kind: str, small: Project, tmp_path: Path) -> None:
    cell = facts_of(small, "8da4w")
    outside = tmp_path / "in" / "outside"
    member = tarfile.TarInfo({"a file above": "../outside", "an absolute name": str(outside), "a link": "a"}[kind])
    if kind == "a link":
        member.type, member.linkname = tarfile.SYMTYPE, ".."
    with tarfile.open(tmp_path / f"{cell.file.name}.stand-in.tar", "w") as archive:
        archive.addfile(member, io.BytesIO())
    with pytest.raises(SourceError, match="cannot be unpacked"):
        stand_in_of(tmp_path, cell, tmp_path / "in" / "here")
    assert not outside.exists()
