"""What was measured belongs to the bytes it was measured on, and to no other file of that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hubpub.facts import CellFacts, Parity, Speed, load, save
from hubpub.files import HashCache
from hubpub.make import cell as one_cell
from hubpub.make.cell import Job
from hubpub.make.existing import source_of
from make.conftest import Made

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On work this small, more threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quiet(stage: str, fraction: float) -> None: ...


@pytest.fixture
def job(made: Made, tmp_path: Path) -> Job:
    """The job of the made cell, over a copy of its folder."""
    folder = tmp_path / "cell"
    shutil.copytree(made.step.folder, folder)
    cell = made.step.cell
    return Job(
        cell=cell.id,
        variant=cell.variant,
        recipe=cell.recipe,
        context=cell.card.export.context,
        prefill=cell.card.export.prefill,
        fingerprint=made.step.fingerprint.value,
        checkpoint=source_of(cell.variant, made.workspace),
        references=made.workspace.references("tests"),
        hashes=tmp_path / "hashes.json",
        folder=folder,
        file=cell.file,
        scale_model=True,
    )


def test_a_finished_cell_is_read_and_not_made_again(made: Made, job: Job) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("[eps]*")}
    assert one_cell.make(job, quiet) == made.facts
    assert {path.name: path.stat().st_mtime_ns for path in job.folder.glob("[eps]*")} == before


def test_nothing_old_is_attached_to_a_new_file(made: Made, job: Job) -> None:
    """The file is gone, all that was measured of it is there, and what is made in its place is another file."""
    wrong = made.facts.parity.logits.model_copy(update={"perplexity": 12345.0})
    save(made.facts.parity.model_copy(update={"logits": wrong}), job.folder / "parity.json")
    save(made.facts.speed.model_copy(update={"load_seconds": 12345.0}), job.folder / "speed.json")
    job.pte.unlink()
    assert job.recipe.window is not None
    other = replace(job, recipe=job.recipe.model_copy(update={"window": job.recipe.window - 8}))
    facts = one_cell.make(other, quiet)
    assert facts.file.sha256 != made.facts.file.sha256
    assert facts.context.exported == job.recipe.window - 8
    assert facts.measured_as_now
    assert facts.parity.logits.perplexity != 12345.0 != facts.speed.load_seconds
    kept = {load(Parity, job.folder / "parity.json").sha256, load(Speed, job.folder / "speed.json").sha256}
    assert kept == {facts.file.sha256} == {HashCache(job.hashes).sha256(job.pte)}


def test_a_file_that_is_not_the_exported_one_is_exported_again(made: Made, job: Job) -> None:
    data = bytearray(job.pte.read_bytes())
    data[-1] ^= 1
    job.pte.write_bytes(data)
    assert one_cell.make(job, quiet).file.sha256 == made.facts.file.sha256 == HashCache(job.hashes).sha256(job.pte)


@pytest.mark.parametrize("what", ["parity", "speed"])
def test_facts_of_two_files_are_refused(made: Made, what: str) -> None:
    data = json.loads(made.facts.model_dump_json(by_alias=True))
    data[what]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=f"{what} was measured on another file"):
        CellFacts.model_validate(data)


def test_a_step_has_facts_of_the_very_file_alone(made: Made) -> None:
    assert made.step.facts() == made.facts
    data = made.step.pte.read_bytes()
    try:
        made.step.pte.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert made.step.facts() is None
    finally:
        made.step.pte.write_bytes(data)
    assert made.step.facts() == made.facts


def test_damaged_facts_are_put_together_again(made: Made, job: Job) -> None:
    """Nothing is exported, measured or timed for it."""
    kept = {path.name: path.stat().st_mtime_ns for path in job.folder.glob("[eps]*.*")}
    (job.folder / "facts.json").write_text("{}")
    assert one_cell.make(job, quiet) == made.facts == load(CellFacts, job.folder / "facts.json")
    assert {path.name: path.stat().st_mtime_ns for path in job.folder.glob("[eps]*.*")} == kept


def test_a_scale_model_is_timed_once_and_says_so(made: Made) -> None:
    speed = made.facts.speed
    assert (speed.runs, speed.representative) == (1, False)
    assert speed.reason == "a scale model, timed beside other work"
