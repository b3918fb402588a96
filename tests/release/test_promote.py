"""The one way to publish, in this process: what this machine made, what others staged, and what is kept back."""

from __future__ import annotations

import fcntl
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import AccessError, ConfigError, ConflictError, GateError, HubError
from hubpub.facts import CellFacts, FileFact, dump, save
from hubpub.hub.client import Add, Client
from hubpub.hub.maintenance import verify
from hubpub.hub.receipts import load_receipt
from hubpub.localhub import Fault, LocalHub
from hubpub.matrix import cells
from hubpub.plan import Step, plan
from hubpub.release.assemble import Ready, complete_card, sources_here
from hubpub.release.connect import Destination
from hubpub.release.handover import hand_over, handed_over
from hubpub.release.promote import promote, publish
from hubpub.release.run import check_sources, make_and_stage, planned, run
from hubpub.release.staging import stage
from hubpub.workspace import Workspace

from .conftest import CARD, facts_of, release_facts, silent_once_tagged, write_card
from .test_targets import put

TOKENIZER = {"tokenizer.json": b'{"tokens": 1}' * 4_000, "tokenizer_config.json": b"{}\n"}


class Quiet:
    """Nobody looks."""

    def update(self, name: str, stage: str, fraction: float) -> None:
        pass

    def finish(self, name: str, outcome: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


DISPLAY = Quiet()


@pytest.fixture
def world(hub: LocalHub, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A project whose source lies on the local Hub, and a work folder in which both of its cells were made."""
    from huggingface_hub import constants

    address = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + address)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    client.create_repo("local/source", private=False)
    for name, data in {**TOKENIZER, "config.json": b"{}"}.items():
        add = Add(name, data, len(data), hashlib.sha256(data).hexdigest())
        sent = client.send("local/source", "main", add)
        client.commit("local/source", "main", [sent], title=name, parent=None, find_committed=lambda: None)
    refs = client.refs("local/source")
    assert refs
    text = CARD.replace("google/small", f"{hub.user}/source")
    project = write_card(tmp_path, text, revision=f'revision = "{refs.branches["main"]}"')
    world = World(hub, client, Workspace(project, tmp_path / "work", rehearsal=False))
    for recipe in ("8da4w", "8da8w"):
        world.make(recipe)
    return world


class World:
    def __init__(self, hub: LocalHub, client: Client, workspace: Workspace) -> None:
        self.hub, self.client, self.workspace = hub, client, workspace
        self.to = Destination(client, hub.user)
        self.repo = f"{hub.user}/small-pte"

    @property
    def project(self) -> Project:
        return self.workspace.project

    def steps(self) -> tuple[Step, ...]:
        return plan(cells(self.project), self.workspace)

    def make(self, recipe: str, *, size: int = 300_000) -> CellFacts:
        (step,) = [step for step in self.steps() if step.cell.recipe.name == recipe]
        step.folder.mkdir(parents=True, exist_ok=True)
        step.pte.write_bytes(random.Random(recipe).randbytes(size))
        content = step.pte.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        facts = facts_of(self.project, recipe)
        tokens = tuple(
            FileFact(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in TOKENIZER.items()
        )
        file = FileFact(name=step.cell.file, bytes=len(content), sha256=sha256)
        of = {"sha256": sha256}
        facts = facts.model_copy(
            update={
                "file": file,
                "tokenizer": tokens,
                "parity": facts.parity.model_copy(update=of),
                "speed": facts.speed.model_copy(update=of),
            }
        )
        save(facts, step.folder / "facts.json")
        return facts

    def known(self) -> dict[str, CellFacts]:
        return {step.cell.id: facts for step in self.steps() if (facts := step.facts())}

    def ready(self, *, here: bool = True) -> Ready:
        card = self.project.cards[0]
        sources = sources_here(card, self.steps()) if here else {}
        return complete_card(self.project, card, self.known(), sources, rehearsal=False)

    def titles(self) -> list[str]:
        refs = self.client.refs(self.repo)
        found = self.client.commits(self.repo, "main") if refs else []
        return [commit.title for commit in found if commit.title.startswith("Release")]

    def tags(self) -> set[str]:
        refs = self.client.refs(self.repo)
        return set(refs.tags) if refs else set()


def test_a_release_that_was_made_before_is_read_and_published_whole(world: World) -> None:
    report = run(planned(world.workspace, ("small/8da4w",)), world.to, "v1.0.0", DISPLAY, keep=True)
    assert [step.cell.id for step in report.steps] == ["small/8da4w", "small/8da8w"]
    assert not report.failures and [one.outcome.kind for one in report.receipts] == ["published"]
    assert report.pages == (f"{world.hub.url}/{world.repo}",) and report.version == "v1.0.0"
    assert verify(world.client, world.repo, "v1.0.0", download=True).ok
    assert (world.project.cards[0].folder / "facts.json").exists()
    assert [one["sha256"] for one in report.as_json()["cells"]] == [f.file.sha256 for f in world.known().values()]
    again = run(planned(world.workspace, ("small/8da8w",)), world.to, "v1.0.0", DISPLAY)
    assert [one.outcome.kind for one in again.receipts] == ["no-changes"]
    with pytest.raises(ConflictError, match="a forced export would make other files"):
        run(planned(world.workspace, (), force=True), world.to, "v1.0.0", DISPLAY)


def test_staged_by_one_and_promoted_by_another(world: World, tmp_path: Path) -> None:
    report = make_and_stage(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    assert not report.failures and len(report.staged) == 1 and not report.receipts
    folder = world.workspace.receipts / "v1.0.0"
    assert handed_over(folder) == world.known()
    assert world.tags() == set() and world.titles() == []
    elsewhere = Workspace(world.project, tmp_path / "elsewhere", rehearsal=False)
    (dry,) = promote(elsewhere, world.to, (), "v1.0.0", DISPLAY, facts=folder, dry_run=True)
    assert dry.outcome.kind == "planned" and world.tags() == set()
    (done,) = promote(elsewhere, world.to, (), "v1.0.0", DISPLAY, facts=folder, keep=True)
    assert done.outcome.kind == "published" and world.tags() == {"v1.0.0"} and world.titles() == ["Release v1.0.0"]
    assert (world.project.cards[0].folder / "facts.json").exists()
    # From the machine that staged, its own folder says what was staged.
    (again,) = promote(world.workspace, world.to, (), "v1.0.0", DISPLAY)
    assert again.outcome.kind == "no-changes"


def test_only_what_was_given_is_staged(world: World) -> None:
    steps, known = world.steps(), world.known()
    (staged,) = stage(world.to, steps, {"small/8da8w": known["small/8da8w"]}, "v1.0.0", DISPLAY)
    names = {file.path for file in staged.files}
    assert {"small-8da8w.pte", "small-8da8w.pte.facts.json", "Notice", *TOKENIZER} == names
    assert stage(world.to, steps, {}, "v1.0.0", DISPLAY) == ()
    with pytest.raises(ConfigError, match="no facts of small/8da4w"):
        promote(world.workspace, world.to, (), "v1.0.0", DISPLAY)
    with pytest.raises(ConfigError, match="no facts of small/8da4w"):
        promote(world.workspace, world.to, (), "v1.0.0", DISPLAY, unstaged=True)
    # Made and not staged, on machines that are gone: what a dry run of a workflow sees.
    (dry,) = promote(world.workspace, world.to, (), "v1.0.0", DISPLAY, dry_run=True, unstaged=True)
    assert dry.outcome.kind == "planned"


def test_a_file_that_nobody_staged_stops_everything(world: World) -> None:
    make_and_stage(planned(world.workspace, ("small/8da4w",)), world.to, "v1.0.0", DISPLAY)
    with pytest.raises(HubError, match=r"small-8da8w\.pte is neither staged"):
        publish(world.workspace, world.to, [world.ready(here=False)], "v1.0.0", DISPLAY)
    assert world.tags() == set() and world.titles() == []


def test_what_got_worse_is_kept_back_alone(world: World, tmp_path: Path) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    worse = [one.model_copy(update={"file": one.file.model_copy(update={"bytes": 2 * one.file.bytes})}) for one in
             world.ready().cells]  # fmt: skip
    ready = replace(world.ready(), cells=tuple(worse))
    other = replace(world.ready(), card=world.project.cards[0].model_copy(update={"repo": "other-pte"}))
    done = publish(world.workspace, world.to, [ready, other], "v1.1.0", DISPLAY)
    assert list(done.kept_back) == ["small-pte"] and "worse than v1.0.0" in done.kept_back["small-pte"].message
    assert [one.repo_id for one in done.receipts] == [f"{world.hub.user}/other-pte"] and world.tags() == {"v1.0.0"}
    # The door from staged facts says so once everything else is out.
    notes: Sequence[CellFacts] = worse
    for one in notes:
        save(one, tmp_path / "notes" / f"{one.file.name}.facts.json")
    with pytest.raises(GateError, match=r"worse than v1\.0\.0"):
        promote(world.workspace, world.to, (), "v1.1.0", DISPLAY, facts=tmp_path / "notes")


def test_no_card_shows_figures_of_another_size_that_was_kept_back(world: World, tmp_path: Path) -> None:
    known, path = world.ready(), world.project.cards[0].folder / "card.toml"
    whole = path.read_text().replace('family = "gemma3n"', 'family = "gemma3n"\nsize = "E4B"')
    path.write_text(whole)
    part = tmp_path / "cards" / "part-pte" / "card.toml"
    part.parent.mkdir()
    part.write_text(whole.replace("small", "part").replace('"E4B"', '"E4B"\nslice = "E1.96B"'))
    project = Project.find(tmp_path)
    cards = {card.repo: card for card in project.cards}
    both = [replace(known, card=cards["small-pte"]), replace(known, card=cards["part-pte"])]
    workspace = replace(world.workspace, project=project)
    publish(workspace, world.to, both, "v1.0.0", DISPLAY)
    larger = [
        one.model_copy(update={"file": one.file.model_copy(update={"bytes": 777_000_000})}) for one in known.cells
    ]
    done = publish(workspace, world.to, [both[0], replace(both[1], cells=tuple(larger))], "v1.1.0", DISPLAY)
    assert list(done.kept_back) == ["part-pte"] and [one.repo_id for one in done.receipts] == [world.repo]
    card = world.client.read(world.repo, "v1.1.0", "README.md")
    assert card and b"E1.96B" in card and b"777 MB" not in card


def test_a_request_that_does_not_wait_any_more_is_told(world: World) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    with pytest.raises(ConflictError, match=r"small-pte: the pull request of v1\.1\.0, which .* is closed"):
        publish(world.workspace, world.to, [], "v1.1.0", DISPLAY, pulls=[world.project.cards[0]])


def test_a_pull_request_waits_and_is_merged_by_the_same_door(world: World) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    report = run(planned(world.workspace, ()), replace(world.to, create_pr=True), "v1.1.0", DISPLAY)
    assert [one.outcome.kind for one in report.receipts] == ["pull-request"] and world.tags() == {"v1.0.0"}
    (dry,) = promote(world.workspace, world.to, (), "v1.1.0", DISPLAY, dry_run=True)
    assert dry.outcome.kind == "planned" and world.tags() == {"v1.0.0"}
    (merged,) = promote(world.workspace, world.to, (), "v1.1.0", DISPLAY)
    assert merged.outcome.kind == "published" and world.tags() == {"v1.0.0", "v1.1.0"}


def test_a_request_that_waits_is_opened_again_and_not_merged_where_one_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    run(planned(world.workspace, ()), replace(world.to, create_pr=True), "v1.1.0", DISPLAY)
    hand_over(tmp_path / "notes", world.known().values())
    (again,) = promote(
        world.workspace, replace(world.to, create_pr=True), (), "v1.1.0", DISPLAY, facts=tmp_path / "notes"
    )
    assert again.outcome.kind == "pull-request" and world.tags() == {"v1.0.0"}


def test_no_request_is_merged_where_another_repo_cannot_be_published(world: World) -> None:
    other = replace(world.ready(), card=world.project.cards[0].model_copy(update={"repo": "other-pte"}))
    publish(world.workspace, world.to, [other], "v1.0.0", DISPLAY)
    publish(world.workspace, replace(world.to, create_pr=True), [other], "v1.1.0", DISPLAY)
    world.client.create_repo(world.repo, private=False)
    missing = world.ready(here=False)
    with pytest.raises(HubError, match="neither staged"):
        publish(world.workspace, world.to, [missing], "v1.1.0", DISPLAY, pulls=[other.card])
    refs = world.client.refs(f"{world.hub.user}/other-pte")
    assert refs and set(refs.tags) == {"v1.0.0"}


@pytest.mark.parametrize(("path", "answers"), [("/refs", 0), ("/refs", 1), ("/paths-info/", 0), ("/paths-info/", 1)])
def test_a_hub_that_falls_silent_once_the_tag_is_there_does_not_unpublish(
    world: World, path: str, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent when the tag is read back, when what it holds is, or when the whole release is verified."""
    silent_once_tagged(monkeypatch, world.hub, path=path, answers=answers)
    report = run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    world.hub.disarm()
    report.raise_for_failures()
    (receipt,) = report.receipts
    assert receipt.outcome.kind == "published" and world.tags() == {"v1.0.0"}
    (note,) = receipt.notes
    assert note.startswith("published, but could not be verified (") and "503" in note
    assert note.endswith(f"run 'hubpub verify {world.repo}@v1.0.0'")
    kept = load_receipt(world.workspace.root, "v1.0.0", world.repo)
    assert kept == receipt
    (again,) = run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY).receipts
    assert again.outcome.kind == "no-changes" and not again.notes


@pytest.mark.parametrize("path", ["/refs", "/paths-info/"])
def test_a_hub_that_answers_again_is_asked_again(world: World, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be looked at, and was a moment later, is no note."""
    silent_once_tagged(monkeypatch, world.hub, path=path, times=world.client.retry.attempts)
    (receipt,) = run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY).receipts
    assert receipt.outcome.kind == "published" and receipt.notes == ()
    assert receipt.retries == world.client.retry.attempts - 1
    assert load_receipt(world.workspace.root, "v1.0.0", world.repo) == receipt


def test_a_tag_that_others_made_while_the_hub_was_silent_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older release, so that all below it is intact."""
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    (first,) = [tag for refs in [world.client.refs(world.repo)] if refs for tag in refs.tags.values()]
    make_tag = Client.create_tag

    def late(self: Client, repo_id: str, tag: str, commit: str) -> None:
        make_tag(self, repo_id, tag, first)
        make_tag(self, repo_id, tag, commit)
        world.hub.arm(Fault(path="/refs", status=503, times=self.retry.attempts))

    monkeypatch.setattr(Client, "create_tag", late)
    with pytest.raises(HubError, match=rf"v1\.1\.0 is {first[:12]} now, and was published as"):
        publish(world.workspace, world.to, [world.ready()], "v1.1.0", DISPLAY)


def test_a_request_is_merged_by_a_hub_that_then_falls_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    run(planned(world.workspace, ()), replace(world.to, create_pr=True), "v1.1.0", DISPLAY)
    silent_once_tagged(monkeypatch, world.hub)
    (merged,) = promote(world.workspace, world.to, (), "v1.1.0", DISPLAY)
    world.hub.disarm()
    assert merged.outcome.kind == "published" and world.tags() == {"v1.0.0", "v1.1.0"}
    assert [note.partition(" (")[0] for note in merged.notes] == ["published, but could not be verified"]


@pytest.mark.parametrize("door", ["stage", "publish"])
def test_every_door_waits_for_the_process_that_has_the_work_folder(world: World, door: str) -> None:
    with (world.workspace.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = []

        class Waiting(Quiet):
            def note(self, text: str) -> None:
                if "waiting" in text:
                    said.append((text, world.client.refs(world.repo)))
                    fcntl.flock(lock, fcntl.LOCK_UN)

        if door == "stage":
            stage(world.to, world.steps(), world.known(), "v1.0.0", Waiting())
        else:
            publish(world.workspace, world.to, [world.ready()], "v1.0.0", Waiting())
    ((text, before),) = said
    assert "in use by another process: waiting" in text and before is None
    assert world.client.refs(world.repo)


def test_every_door_looks_at_what_lies_there(world: World) -> None:
    put(world.client, world.repo, dump(release_facts(world.project, "v0.0.0-rehearsal.1", scale_model=True)))
    steps = planned(world.workspace, ())
    doors: tuple[Callable[[], object], ...] = (
        lambda: run(steps, world.to, "v1.0.0", DISPLAY),
        lambda: make_and_stage(steps, world.to, "v1.0.0", DISPLAY),
        lambda: promote(world.workspace, world.to, (), "v1.0.0", DISPLAY),
    )
    for door in doors:
        with pytest.raises(ConflictError, match="holds a rehearsal"):
            door()
    make_and_stage(steps, replace(world.to, over_rehearsal=True), "v1.0.0", DISPLAY)
    promote(world.workspace, replace(world.to, over_rehearsal=True), (), "v1.0.0", DISPLAY)
    run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    assert world.tags() == {"v1.0.0"}


def test_a_source_that_may_not_be_read_stops_before_anything_is_made(world: World) -> None:
    for step in world.steps():
        (step.folder / "facts.json").unlink()
    world.hub.arm(Fault(path="/source/auth-check", status=403, times=3))
    with pytest.raises(AccessError, match="source local/source cannot be read"):
        run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    assert world.client.refs(world.repo) is None


def test_a_cell_that_does_not_pass_is_reported_and_keeps_its_repo_back(world: World) -> None:
    (step,) = [step for step in world.steps() if step.cell.recipe.name == "8da8w"]
    facts = step.facts()
    assert facts
    logits = facts.parity.logits.model_copy(update={"kl_mean": 9.0})
    worse = facts.model_copy(update={"parity": facts.parity.model_copy(update={"logits": logits})})
    save(worse, step.folder / "facts.json")
    report = run(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    assert list(report.failures) == ["small/8da8w"] and report.receipts == () and world.tags() == set()
    assert [cell["passed"] for cell in report.as_json()["cells"]] == [True, False]
    with pytest.raises(GateError, match="kl_mean 9"):
        report.raise_for_failures()
    staged = make_and_stage(planned(world.workspace, ()), world.to, "v1.0.0", DISPLAY)
    assert list(staged.failures) == ["small/8da8w"]
    assert "small-8da4w.pte" in {file.path for one in staged.staged for file in one.files}
    assert "small-8da8w.pte" not in {file.path for one in staged.staged for file in one.files}


def test_a_source_that_is_here_is_not_asked_for(world: World) -> None:
    world.ready()
    for step in world.steps():
        (step.folder / "facts.json").unlink()
    world.hub.arm(Fault(path="/source/auth-check", status=403, times=3))
    world.hub.clear_requests()
    check_sources(world.steps())
    assert not world.hub.requests


def test_what_people_wrote_into_a_generated_part_is_not_overwritten(world: World) -> None:
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    card = (world.client.read(world.repo, "main", "README.md") or b"").decode()
    edited = card.replace("small-8da4w.pte", "small-8da4w.pte (the best)", 1).encode()
    assert edited != card.encode()
    add = Add("README.md", edited, len(edited), hashlib.sha256(edited).hexdigest())
    sent = world.client.send(world.repo, "main", add)
    world.client.commit(world.repo, "main", [sent], title="By hand", parent=None, find_committed=lambda: None)
    with pytest.raises(ConflictError, match="edited by hand"):
        publish(world.workspace, world.to, [world.ready()], "v1.1.0", DISPLAY)
    assert world.tags() == {"v1.0.0"}


def test_what_was_published_is_verified(world: World) -> None:
    """A program that nobody vouches for lies beside it: whoever downloads the repo takes it for ours."""
    publish(world.workspace, world.to, [world.ready()], "v1.0.0", DISPLAY)
    add = Add("stray.pte", b"stray", 5, hashlib.sha256(b"stray").hexdigest())
    sent = world.client.send(world.repo, "main", add)
    world.client.commit(world.repo, "main", [sent], title="By hand", parent=None, find_committed=lambda: None)
    with pytest.raises(HubError, match=r"v1\.1\.0 is not intact: stray\.pte is not in SHA256SUMS"):
        publish(world.workspace, world.to, [world.ready()], "v1.1.0", DISPLAY)
    assert world.tags() == {"v1.0.0", "v1.1.0"}
    # A dry run has nothing to verify.
    publish(world.workspace, world.to, [world.ready()], "v1.2.0", DISPLAY, dry_run=True)
