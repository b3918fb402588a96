"""Going on where an earlier attempt stopped: what on the Hub counts as made, and what is made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from release.conftest import client, hub, silent_once_tagged
from release.test_promote import DISPLAY, TOKENIZER, World, world

from hubpub.ci import jobs
from hubpub.errors import ConflictError, ExportError, GateError, SourceError, UsageError
from hubpub.facts import CellFacts, OtherHost, save
from hubpub.hub.client import Add, Delete
from hubpub.machine import system
from hubpub.model.checkpoint import digest
from hubpub.model.scale import scale_key, stand_in
from hubpub.release.handover import (
    calibration_name,
    hand_over,
    hand_over_host,
    handed_over,
    packed,
    stand_in_name,
    stand_in_of,
)
from hubpub.release.promote import publish
from hubpub.release.staging import stage

__all__ = ["client", "hub", "world"]
CELL = "small/8da4w"


@pytest.fixture
def job(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> jobs.Job:
    """A job of the workflow, beside a `gh` that vouches for the bytes listed in the file "attested"."""
    tool = tmp_path / "tools" / "gh"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nsum=$(sha256sum "$3")\ngrep -qsx "${{sum%% *}}" "{tmp_path}/attested"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    for name, value in {
        "HF_ENDPOINT": world.hub.url, "GITHUB_REPOSITORY": "a/b", "HUBPUB_SIGNER": "m/h/w.yml@refs/tags/v1",
        "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return jobs.Job(
        workspace=world.workspace,
        version="v1.0.0",
        namespace=world.hub.user,
        for_rehearsals=None,
        dry_run=False,
        over_rehearsal=False,
        facts=tmp_path / "facts",
        receipts=tmp_path / "receipts",
    )


def staged(world: World, change: Callable[[CellFacts], CellFacts] = lambda facts: facts) -> CellFacts:
    """Stage the cell, with facts that are of what it is now, but for `change`."""
    (step,) = [step for step in world.steps() if step.cell.id == CELL]
    facts = world.known()[CELL].model_copy(update={"fingerprint": step.fingerprint.value})
    beside = {calibration_name("small-8da4w.pte"): b"chosen"}
    stage(world.to, world.steps(), {CELL: change(facts)}, "v1.0.0", DISPLAY, beside=beside)
    return facts


def attest(job: jobs.Job) -> None:
    """Sign every note that is on the staging branch."""

    to = job.destination(job.workspace.project.cards[0])
    data = to.client.read(f"{job.owner}/small-pte", "hubpub-stage/v1.0.0", "small-8da4w.pte.facts.json")
    assert data
    with (job.facts.parent / "attested").open("a") as file:
        file.write(hashlib.sha256(data).hexdigest() + "\n")


def test_what_is_staged_counts_once_it_is_attested(world: World, job: jobs.Job) -> None:
    assert not jobs.resume(job, CELL)
    facts = staged(world)
    assert not jobs.resume(job, CELL) and not job.facts.exists()
    attest(job)
    assert jobs.resume(job, CELL)
    assert handed_over(job.facts) == {CELL: facts}
    assert (job.facts.parent / "output").read_text().splitlines() == ["done=false", "done=false", "done=true"]
    # It was attested where it was made: this run attests nothing.
    assert jobs.sums(job).read_text() == ""
    assert (job.facts.parent / "output").read_text().splitlines()[-1] == "made=false"


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.model_copy(update={"fingerprint": "0" * 12}),
        lambda facts: facts.model_copy(update={"cell": "small/8da8w"}),
        lambda facts: facts.model_copy(update={"speed": facts.speed.model_copy(update={"measuring": 1})}),
    ],
    ids=["made from something else", "of another cell", "measured in another way"],
)
def test_what_is_attested_and_of_something_else_does_not_count(
    world: World, job: jobs.Job, change: Callable[[CellFacts], CellFacts]
) -> None:
    staged(world, change)
    attest(job)
    assert not jobs.resume(job, CELL)


def test_gates_are_those_of_now(world: World, job: jobs.Job) -> None:
    def bad(facts: CellFacts) -> CellFacts:
        logits = facts.parity.logits.model_copy(update={"kl_mean": 9.0})
        return facts.model_copy(update={"parity": facts.parity.model_copy(update={"logits": logits})})

    staged(world, bad)
    attest(job)
    with pytest.raises(GateError, match="kl_mean") as caught:
        jobs.resume(job, CELL)
    assert str(caught.value.path).endswith("small-pte/card.toml") and caught.value.line


def test_a_published_version_counts_or_is_a_conflict(world: World, job: jobs.Job) -> None:
    known = world.known()
    (step,) = [step for step in world.steps() if step.cell.id == CELL]
    same = known[CELL].model_copy(update={"fingerprint": step.fingerprint.value})
    (step.folder / "facts.json").write_text(same.model_dump_json(by_alias=True))
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    assert jobs.resume(job, CELL)
    with pytest.raises(ConflictError, match="was made from something else than small/8da8w is now"):
        jobs.resume(job, "small/8da8w")


def test_what_a_job_makes_is_staged_and_listed_for_the_attestation(world: World, job: jobs.Job) -> None:
    facts = jobs.stage(job, CELL, DISPLAY)
    text = jobs.sums(job).read_text()
    assert f"{facts.file.sha256}  small-8da4w.pte\n" in text and "small-8da4w.pte.facts.json\n" in text
    assert (job.facts.parent / "output").read_text().splitlines()[-1] == "made=true"
    assert json.loads((job.facts / "small-8da4w.pte.facts.json").read_text())["cell"] == CELL
    jobs.stage(job, "small/8da8w", DISPLAY)
    receipt = jobs.promote(job, "small-pte", DISPLAY)
    assert receipt["outcome"]["kind"] == "published" and (job.receipts / "small-pte.json").exists()


def test_what_could_not_be_verified_is_a_warning_on_a_green_job(
    world: World, job: jobs.Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cell in (CELL, "small/8da8w"):
        jobs.stage(job, cell, DISPLAY)
    silent_once_tagged(monkeypatch, world.hub, status=400)
    receipt = jobs.promote(job, "small-pte", DISPLAY)
    world.hub.disarm()
    assert receipt["outcome"]["kind"] == "published" and len(receipt["notes"]) == 1
    warned = f"::warning title=hubpub::{world.repo}: published, but could not be verified"
    assert warned in capsys.readouterr().out
    assert "> published, but could not be verified" in (job.facts.parent / "summary").read_text()


@pytest.fixture
def rehearsed(world: World, job: jobs.Job) -> jobs.Job:
    """As a rehearsal, on the machine that made the cell: its stand-in is there, with its facts and its file."""
    workspace = replace(world.workspace, rehearsal=True)
    job = replace(job, workspace=workspace, namespace=None, for_rehearsals=world.hub.user)
    variant = job.cell(CELL).variant
    plan = stand_in(variant.family, variant.size, chat=variant.chat)
    folder = workspace.scale_models / f"{plan.name}{'-chat' if variant.chat else ''}-{scale_key(variant)}"
    folder.mkdir(parents=True)
    for name, data in {**TOKENIZER, "config.json": b"{}", "model.safetensors": b"weights"}.items():
        (folder / name).write_bytes(data)
    facts = World(world.hub, world.client, workspace).make("8da4w")
    step = job.step(job.cell(CELL))
    source = facts.source.model_copy(update={"files": tuple(map(digest, sorted(folder.iterdir())))})
    save(facts.model_copy(update={"fingerprint": step.fingerprint.value, "source": source}), step.folder / "facts.json")
    return job


def elsewhere(job: jobs.Job, folder: Path) -> jobs.Job:
    """The same job on another machine, where nothing is."""
    return replace(job, workspace=replace(job.workspace, root=folder / "work"), facts=folder / "facts")


def test_a_rehearsal_goes_on_elsewhere_with_the_stand_in_it_was_made_of(rehearsed: jobs.Job, tmp_path: Path) -> None:
    made = jobs.stage(rehearsed, CELL, DISPLAY)
    attest(rehearsed)
    other = elsewhere(rehearsed, tmp_path / "other")
    assert jobs.resume(other, CELL)
    given = stand_in_of(other.facts, made, tmp_path / "given")
    assert (given / "model.safetensors").read_bytes() == b"weights"
    # What lies beside the facts is the very archive that the first machine handed over.
    name = stand_in_name(made.file.name)
    assert (other.facts / name).read_bytes() == (rehearsed.facts / name).read_bytes()


def test_a_rehearsal_does_not_go_on_with_another_stand_in(
    world: World, rehearsed: jobs.Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = jobs.stage(rehearsed, CELL, DISPLAY)
    attest(rehearsed)
    name, branch = stand_in_name(made.file.name), "hubpub-stage/v1.0.0"
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "model.safetensors").write_bytes(b"planted")
    data = packed(tmp_path / "planted")
    add = Add(name, data, len(data), hashlib.sha256(data).hexdigest())
    sent = world.client.send(world.repo, branch, add)
    world.client.commit(world.repo, branch, [sent], title="planted", parent=None, find_committed=lambda: None)
    other = elsewhere(rehearsed, tmp_path / "other")
    assert not jobs.resume(other, CELL)
    assert "is not the scale model that small-8da4w.pte was made of: exported again" in capsys.readouterr().out
    assert not (other.facts / name).exists()


def test_a_rehearsal_is_measured_against_no_stand_in_but_its_own(rehearsed: jobs.Job, tmp_path: Path) -> None:
    made = jobs.stage(rehearsed, CELL, DISPLAY)
    other = elsewhere(rehearsed, tmp_path / "other")
    hand_over(other.facts, [made])
    chosen = calibration_name(made.file.name)
    shutil.copy(rehearsed.facts / chosen, other.facts / chosen)
    assert not jobs.collect(other, CELL)
    with pytest.raises(SourceError, match="was made of is not here"):
        jobs.measure(other, CELL, DISPLAY)
    # None was trained in its place.
    assert not other.workspace.scale_models.exists()


def test_a_cell_goes_on_elsewhere_with_what_its_calibration_chose(
    world: World, job: jobs.Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = job.step(job.cell(CELL))
    known = world.known()[CELL].model_copy(update={"fingerprint": step.fingerprint.value})
    save(known, step.folder / "facts.json")
    made = jobs.stage(job, CELL, DISPLAY)
    attest(job)
    name = calibration_name(made.file.name)
    other = elsewhere(job, tmp_path / "other")
    assert jobs.resume(other, CELL)
    assert (other.facts / name).read_bytes() == (job.facts / name).read_bytes()
    assert not jobs.collect(other, CELL)
    # A branch that an older version of this program staged to.
    client, branch = world.client, "hubpub-stage/v1.0.0"
    client.commit(world.repo, branch, [Delete(name)], title="without", parent=None, find_committed=lambda: None)
    assert not jobs.resume(elsewhere(job, tmp_path / "third"), CELL)
    assert "not what its calibration chose: exported again" in capsys.readouterr().out
    (other.facts / name).unlink()
    with pytest.raises(SourceError, match=f"chose for {made.file.name} is not here"):
        jobs.measure(other, CELL, DISPLAY)


def test_nothing_to_attest_is_an_error(job: jobs.Job) -> None:
    job.facts.mkdir()
    with pytest.raises(ExportError, match="nothing to attest"):
        jobs.sums(job)


def test_a_namespace_for_releases_is_none_for_rehearsals(job: jobs.Job) -> None:
    assert job.owner == job.namespace
    with pytest.raises(UsageError, match="no namespace"):
        _ = replace(job, namespace=None, for_rehearsals="tries").owner
    rehearsal = replace(job, workspace=replace(job.workspace, rehearsal=True))
    with pytest.raises(UsageError, match="for rehearsals alone"):
        _ = rehearsal.owner
    assert replace(rehearsal, for_rehearsals="tries").owner == "tries"


def test_a_staged_file_is_collected_by_another_machine(
    world: World, job: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = jobs.stage(job, CELL, DISPLAY)
    with pytest.raises(ExportError, match="no facts of small/8da8w"):
        jobs.collect(job, "small/8da8w")
    # Whoever made the file has it; the other machine takes it from the Hub.
    assert not jobs.collect(job, CELL)
    pte = job.workspace.root / "collected" / facts.file.name
    assert hashlib.sha256(pte.read_bytes()).hexdigest() == facts.file.sha256
    # A cell of a release that wants both machines waits for the second.
    wanted = {"include": [{"cell": CELL}]}
    monkeypatch.setenv("HUBPUB_ARM", json.dumps(wanted))
    jobs.stage(job, "small/8da8w", DISPLAY)
    with pytest.raises(GateError, match="small/8da4w was not measured on ARM"):
        jobs.promote(job, "small-pte", DISPLAY)
    host = OtherHost(system=system(), parity=facts.parity, speed=facts.speed, gates=facts.gates)
    hand_over_host(job.facts, facts, host)
    assert jobs.collect(job, CELL)
    assert (job.facts.parent / "output").read_text().splitlines()[-1] == "done=true"
    receipt = jobs.promote(job, "small-pte", DISPLAY)
    assert receipt["outcome"]["kind"] == "published"


def test_a_gate_missed_on_the_other_machine_keeps_the_repo_back(world: World, job: jobs.Job) -> None:
    facts = jobs.stage(job, CELL, DISPLAY)
    jobs.stage(job, "small/8da8w", DISPLAY)
    logits = facts.parity.logits.model_copy(update={"kl_mean": 9.0})
    parity = facts.parity.model_copy(update={"logits": logits})
    host = OtherHost(system="Linux aarch64", parity=parity, speed=facts.speed, gates=())
    hand_over_host(job.facts, facts, host)
    with pytest.raises(GateError, match="kl_mean on Linux aarch64 9"):
        jobs.promote(job, "small-pte", DISPLAY)
