"""Facts on their way between machines."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConfigError, UsageError
from hubpub.facts import OtherHost
from hubpub.release.handover import hand_over, hand_over_host, hand_over_stand_in, handed_over, stand_in_of

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


def test_a_stand_in_travels_with_the_facts_of_what_was_made_of_it(small: Project, tmp_path: Path) -> None:
    source, facts = tmp_path / "source", tmp_path / "facts"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep" / "model.safetensors").write_bytes(b"weights")
    cell = facts_of(small, "8da4w")
    hand_over(facts, [cell])
    hand_over_stand_in(facts, cell.file.name, source)
    # It is no fact, and every file of the folder that travels lies at its top.
    assert handed_over(facts).keys() == {cell.cell}
    assert all(path.is_file() for path in facts.iterdir())
    found = stand_in_of(facts, cell.file.name, tmp_path / "there")
    assert found is not None
    assert (found / "deep" / "model.safetensors").read_bytes() == b"weights"
    assert stand_in_of(facts, "another.pte", tmp_path / "there") is None


def test_what_would_be_unpacked_elsewhere_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pte.stand-in.tar", "w") as packed:
        (tmp_path / "x").write_text("x")
        packed.add(tmp_path / "x", "../outside")
    with pytest.raises(tarfile.OutsideDestinationError):
        stand_in_of(tmp_path, "a.pte", tmp_path / "in" / "here")
    assert not (tmp_path / "in" / "outside").exists()
