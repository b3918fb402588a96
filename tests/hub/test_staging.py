"""Staging: one commit a program, terms before weights, and what is refused before anything is sent."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from hubpub.errors import ConflictError, HubError, HubpubError
from hubpub.files import HashCache
from hubpub.hub.client import Client, Refs, RemoteFile, Retry
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.names import stage_branch
from hubpub.hub.publish import publish_all
from hubpub.hub.receipts import Published, Staged, receipt_path
from hubpub.hub.staging import by_program, stage, staged_versions, unstage
from hubpub.localhub import Fault, LocalHub, Options

from .conftest import FAST, SIZES, Maker, Seen, both, random_files, sent_to
from .test_publish import by_hand, history, refs_of


def test_a_commit_holds_a_program_and_what_is_named_after_it() -> None:
    names = ["LICENSE", "b.pte", "a.pte.facts.json", "a.pte", "tokenizer.json", "b.pte.facts.json"]
    files = [LocalFile.text(name, name) for name in names]
    groups = [[file.path_in_repo for file in group] for group in by_program(files)]
    assert groups == [["LICENSE", "tokenizer.json", "b.pte", "b.pte.facts.json"], ["a.pte.facts.json", "a.pte"]]
    assert by_program(files[:1]) == [files[:1]] and by_program([]) == []


@both
def test_each_program_is_one_commit_and_no_weights_lie_without_their_terms(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    with sent_to(hub) as sent:
        staged = stage(client, make(), work)
    assert sum("/commit/" in entry.path for entry in sent.entries) == 2
    branch = stage_branch("v1.0.0")
    for commit in client.commits(make.repo, branch)[:-1]:
        held = client.tree(make.repo, commit.id)
        assert "LICENSE" in held and "tokenizer.json" in held and any(path.endswith(".pte") for path in held)
    assert {file.path for file in staged.files} == {*SIZES, "LICENSE"}
    assert {file.location for file in staged.files} == {"staged"} and history(client, make.repo) == []
    assert (staged.base, staged.bytes_sent >= sum(SIZES.values())) == (refs_of(client, make.repo)[0]["main"], True)


def test_a_version_with_other_content_is_refused_before_a_byte_is_sent(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    with sent_to(hub) as sent, pytest.raises(ConflictError, match=r"v1\.0\.0 exists.*model-8da4w\.pte"):
        stage(client, make(seed=9), work)
    assert sent.content == 0 and refs_of(client, make.repo)[0].keys() == {"main"}


@both
@pytest.mark.parametrize("create_pr", [False, True])
def test_a_file_that_changes_while_it_is_sent(create_pr: bool, client: Client, make: Maker, work: Path) -> None:
    """What arrived is what was measured, and what lies here is not any more: nobody knows who is still writing."""
    publish_all(client, [make()], work)
    release = make("v2", seed=2)
    path = make.folder / "model-int8.pte"

    class Meddling(Seen):
        def update(self, name: str, stage: str, fraction: float) -> None:
            if stage == f"send {path.name}" and fraction == 1.0 and not self.stages:
                super().update(name, stage, fraction)
                path.write_bytes(path.read_bytes()[::-1])

    with pytest.raises(HubpubError, match=r"model-int8\.pte changed while it was sent"):
        publish_all(client, [release], work, display=Meddling(), create_pr=create_pr)
    assert history(client, make.repo) == ["Release v1.0.0"] and refs_of(client, make.repo)[1].keys() == {"v1.0.0"}


def test_what_staging_came_to_is_on_record(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    hub.arm(Fault(method="POST", path="/commit/hubpub-stage", status=503, delay=0.3))
    began, record = time.monotonic(), receipt_path(work, "v1.0.0", make.repo).with_suffix(".staged.json")
    staged = stage(client, make(), work)
    assert staged.retries == 1 and 0.3 < staged.seconds <= time.monotonic() - began + 0.001
    assert TypeAdapter(Staged).validate_json(record.read_bytes()) == staged
    seen = Seen()
    again = stage(client, make(), work, progress=partial(seen.update, "repo"))
    assert (again.retries, again.bytes_sent) == (0, 0)
    assert seen.stages == {("repo", f"send {file.path}"): [1.0] for file in again.files}
    assert unstage(client, make.repo, "v1.0.0") is True and unstage(client, make.repo, "v1.0.0") is False


def test_a_repo_without_main_is_refused(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_repo(make.repo)
    monkeypatch.setattr(Client, "refs", lambda *_: Refs({"other": "0" * 40}, {}, {}))
    with pytest.raises(HubError, match=f"{make.repo} has no branch main"):
        stage(client, make(), work)


def test_what_others_still_have_to_stage_is_told(client: Client, make: Maker, work: Path) -> None:
    release = make()
    away = tuple(replace(f, source=None) if f.path_in_repo == "model-int8.pte" else f for f in release.files)
    staged = stage(client, replace(release, files=away), work)
    assert {f.path: f.location for f in staged.files if f.location != "staged"} == {"model-int8.pte": "missing"}
    publish_all(client, [make()], work)
    again = stage(client, make("v2"), work)
    assert {file.location for file in again.files} == {"main"} and again.bytes_sent == 0


@both
def test_past_the_quota_of_commits_the_work_is_kept(make: Maker, work: Path, tmp_path: Path, hub: LocalHub) -> None:
    names = {f"{letter}.pte": 300_000 for letter in "abcd"}
    random_files(tmp_path / "cells", names)
    hashes = HashCache(work / "hashes.json")
    files = [LocalFile.of(path.name, path, hashes) for path in sorted((tmp_path / "cells").iterdir())]
    with LocalHub(tmp_path / "limited", options=Options(commits_per_hour=3)) as limited:
        client, port = Client(limited.url, limited.token, retry=FAST), int(limited.url.rpartition(":")[2])
        release = RepoRelease(f"{limited.user}/model", "v1.0.0", (*files, LocalFile.text("LICENSE", "Terms\n")), "m")
        with sent_to(limited) as first, pytest.raises(HubError, match=r"3 per hour.*asks to wait 3600 s") as caught:
            publish_all(client, [release], work)
        assert "run the same command again after " in str(caught.value.hint) and "kept" in str(caught.value.hint)
        assert sum(e.status == 429 for e in first.entries) == 1
        assert history(client, release.repo_id) == [] and 0 < first.content < sum(names.values()) * 1.1
    with LocalHub(tmp_path / "limited", port) as later:
        client = Client(later.url, later.token, retry=FAST)
        with sent_to(later) as rest:
            (receipt,) = publish_all(client, [release], work)
    assert isinstance(receipt.outcome, Published)
    # The fourth was in the Hub's storage and on no branch: not even that is sent again.
    assert rest.content < 60_000
    assert sum("/commit/" in entry.path for entry in rest.entries) == 2


def test_a_short_wait_is_waited_for(hub: LocalHub, make: Maker, work: Path) -> None:

    client = Client(hub.url, hub.token, retry=Retry(attempts=3, first=0.01, patience=5))
    hub.arm(Fault(path="/commit/", status=429, retry_after=1))
    (receipt,) = publish_all(client, [make()], work)
    assert isinstance(receipt.outcome, Published) and receipt.retries == 1


def test_who_may_see_and_read_stays_as_the_owner_set_it(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token=hub.token)
    client.create_repo(make.repo, private=True)
    api.update_repo_settings(make.repo, gated="manual")
    publish_all(client, [make()], work)
    info = api.model_info(make.repo)
    assert (info.private, info.gated) == (True, "manual")


def test_a_twin_that_is_out_between_two_looks_at_the_branch_is_told(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch was there when the refs were read, and is gone when its files are."""
    branch, files = stage_branch("v1.0.0"), Client.files

    def promoted_meanwhile(self: Client, repo_id: str, revision: str, paths: Iterable[str]) -> dict[str, RemoteFile]:
        if revision == branch:
            self.create_tag(repo_id, "v1.0.0", refs_of(self, repo_id)[0]["main"])
            self.delete_branch(repo_id, branch)
        return files(self, repo_id, revision, paths)

    monkeypatch.setattr(Client, "files", promoted_meanwhile)
    with pytest.raises(ConflictError, match=r"v1\.0\.0"):
        stage(client, make(), work)


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repo_is_as_visible_as_its_owner_has_new_repos_be(
    private: bool, make: Maker, work: Path, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi

    with LocalHub(tmp_path / "other", options=Options(private=private)) as hub:
        stage(Client(hub.url, hub.token, retry=FAST), make(), work)
        assert HfApi(endpoint=hub.url, token=hub.token).model_info(make.repo).private is private


def test_many_machines_stage_at_the_same_moment(hub: LocalHub, make: Maker, tmp_path: Path) -> None:
    """Each staging commit may meet another one; all of them end up on one branch."""
    from concurrent.futures import ThreadPoolExecutor

    from hubpub.hub.content import RepoRelease
    from hubpub.hub.staging import stage

    folder = tmp_path / "cells"
    random_files(folder, {f"{number}.pte": 50_000 + number for number in range(8)})

    def one(path: Path) -> int:
        work = tmp_path / f"work-{path.stem}"
        file = LocalFile.of(path.name, path, HashCache(work / "hashes.json"))
        shared = LocalFile.text("tokenizer_config.json", "{}\n")
        release = RepoRelease(make.repo, "v1", (file, shared), "m")
        return stage(Client(hub.url, hub.token, retry=FAST), release, work, small_too=True).bytes_sent

    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(one, sorted(folder.iterdir())))
    client = Client(hub.url, hub.token, retry=FAST)
    found = client.files(make.repo, "hubpub-stage/v1", [f"{n}.pte" for n in range(8)] + ["tokenizer_config.json"])
    assert len(found) == 9 and min(sent) > 0
    assert staged_versions(client, make.repo) == ("v1",)
    with pytest.raises(HubError, match="neither staged"):
        publish_all(client, [RepoRelease(make.repo, "v1", (LocalFile("x.pte", None, 1, "0" * 64),), "m")], tmp_path)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_twin_of_this_release_is_published_while_it_is_staged(
    when: str, same: bool, client: Client, make: Maker, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its staging branch, which is this one's too, is gone then: before our commit to it, or before our next look."""
    release = make()
    twin = release if same else replace(make, folder=tmp_path / "other")(seed=5)
    commit = Client.commit

    def meeting(self: Client, repo: str, branch: str, *args: object, **kwargs: object) -> object:
        made = commit(self, repo, branch, *args, **kwargs) if when == "after" else None  # type: ignore[arg-type]
        monkeypatch.setattr(Client, "commit", commit)
        publish_all(client, [twin], tmp_path / "twin")
        return made or commit(self, repo, branch, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "commit", meeting)
    if same:
        staged = stage(client, release, work)
        assert {file.path: file.location for file in staged.files} == dict.fromkeys([*SIZES, "LICENSE"], "staged")
        assert staged.bytes_sent > 0
        assert publish_all(client, [release], work)[0].outcome.kind == "no-changes"
    else:
        with pytest.raises(ConflictError, match=r"v1\.0\.0 exists .* with other content: model-8da4w\.pte"):
            stage(client, release, work)
    assert history(client, make.repo) == ["Release v1.0.0"]


def test_staging_gives_up_on_a_branch_that_others_never_leave_alone(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, waited = list[str](), list[float]()

    def always(self: Client, repo: str, branch: str, *args: object, **kwargs: object) -> object:
        tried.append(branch)
        raise ConflictError("somebody was first")

    monkeypatch.setattr(Client, "commit", always)
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(ConflictError, match="somebody was first"):
        stage(client, make(), work)
    assert tried == [stage_branch("v1.0.0")] * 8 and len(waited) == 7 and min(waited) > 0


def test_a_file_that_the_repo_hides_is_named(client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    by_hand(client, make.repo, ".gitignore", b"LICENSE\n")
    with pytest.raises(HubError, match=r"LICENSE is not on hubpub-stage/v1\.0\.0 although the Hub took it") as caught:
        stage(client, make(), work)
    assert ".gitignore" in str(caught.value.hint)


def test_what_waits_in_a_request_is_staged_all_the_same(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    release = make("v2")
    staged = stage(client, release, work)
    large = [file.path_in_repo for file in release.files if file.large]
    assert large and {file.location for file in staged.files if file.path in large} == {"staged"}
    # Somebody may close the request: what is promoted without one must not rest on it.
    assert client.files(make.repo, "hubpub-stage/v2", large).keys() == set(large)
