"""Releases over HTTP, by the real client against the local Hub, in both transports."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hubpub.errors import AccessError, ConfigError, ConflictError, HubError, HubpubError
from hubpub.hub.client import Add, Client
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.hashing import parse_sha256sums
from hubpub.hub.maintenance import status, verify, yank
from hubpub.hub.names import stage_branch
from hubpub.hub.publish import plan_all, preflight, promote, publish_all
from hubpub.hub.receipts import NoChanges, Planned, Published, PullRequest, TagOnly, load_receipt
from hubpub.hub.staging import ensured_repo, stage, unstage
from hubpub.localhub import Fault, LocalHub

from .conftest import CARD, FAST, SIZES, Maker, Seen, both, killed_before_tagging, random_files, sent_to


def history(client: Client, repo: str, revision: str = "main") -> list[str]:
    """Titles of the commits, oldest first, without the one that made the repo."""
    return [commit.title for commit in reversed(client.commits(repo, revision))][1:]


def refs_of(client: Client, repo: str) -> tuple[dict[str, str], dict[str, str]]:
    refs = client.refs(repo)
    assert refs is not None
    return refs.branches, refs.tags


def by_hand(client: Client, repo: str, path: str, content: bytes, title: str = "By hand") -> str:
    """A commit that somebody else makes on main."""
    file = LocalFile.text(path, content)
    head = refs_of(client, repo)[0]["main"]
    add = Add(path, content, file.bytes, file.sha256)
    return client.commit(repo, "main", [add], title=title, parent=head, find_committed=lambda: None).commit


@both
def test_one_commit_and_one_tag_on_it(client: Client, make: Maker, work: Path) -> None:
    display = Seen()
    (receipt,) = publish_all(client, [make()], work, display=display)
    assert isinstance(receipt.outcome, Published)
    commit = receipt.outcome.commit
    assert refs_of(client, make.repo) == ({"main": commit}, {"v1.0.0": commit})
    assert history(client, make.repo) == ["Release v1.0.0"]
    paths = {file.path for file in receipt.files}
    assert paths == {*SIZES, "README.md", "SHA256SUMS", "config.json", "facts.json", "LICENSE"}
    sums = parse_sha256sums((client.read(make.repo, "v1.0.0", "SHA256SUMS") or b"").decode())
    assert sums.keys() == paths - {"README.md", "SHA256SUMS"}
    for name, size in SIZES.items():
        assert client.read(make.repo, "v1.0.0", name) == (make.folder / name).read_bytes()
        fractions = display.stages[make.repo, f"send {name}"]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0 and size > 0
    assert load_receipt(work, "v1.0.0", make.repo) == receipt
    assert sum(SIZES.values()) <= receipt.bytes_sent < sum(SIZES.values()) * 1.05


@both
def test_the_same_release_again_sends_nothing(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    (first,) = publish_all(client, [make()], work)
    with sent_to(hub) as sent:
        (again,) = publish_all(client, [make()], work)
    assert isinstance(again.outcome, NoChanges) and again.bytes_sent == 0
    assert sent.content == 0 and sent.bytes < 5_000
    assert history(client, make.repo) == ["Release v1.0.0"]
    assert load_receipt(work, "v1.0.0", make.repo) == first


@both
def test_a_new_card_sends_only_text(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    with sent_to(hub) as sent:
        (receipt,) = publish_all(client, [make("v1.0.1", card="two")], work)
    assert {file.path for file in receipt.files if file.changed} == {"README.md", "SHA256SUMS", "facts.json"}
    assert sent.content == 0 and sent.bytes < 100_000
    assert history(client, make.repo) == ["Release v1.0.0", "Release v1.0.1"]


@both
def test_one_changed_file_sends_that_file(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (make.folder / "model-int8.pte").write_bytes(b"\x07" * 10 + (make.folder / "model-int8.pte").read_bytes()[::-1])
    (receipt,) = publish_all(client, [make("v1.1.0")], work)
    large = {file.path: file.sent_bytes for file in receipt.files if file.path in SIZES}
    assert large["model-8da4w.pte"] == large["tokenizer.json"] == 0
    assert 0 < large["model-int8.pte"] < SIZES["model-int8.pte"] * 1.05


def test_a_dry_run_only_reads(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    (plan,) = plan_all(client, [make()])
    assert plan.outcome == Planned(create_repo=True, commit=True, tag=True)
    assert client.refs(make.repo) is None
    (real,) = publish_all(client, [make()], work)
    assert {f.path for f in plan.files if f.changed} == {f.path for f in real.files if f.changed}
    (plan,) = plan_all(client, [make("v2")])
    assert plan.outcome == Planned(create_repo=False, commit=True, tag=True)
    assert {f.path: f.sent_bytes for f in plan.files if f.path in SIZES} == dict.fromkeys(SIZES, 0)
    assert refs_of(client, make.repo)[1].keys() == {"v1.0.0"}


def test_staging_is_not_seen_on_main(client: Client, make: Maker, work: Path) -> None:
    staged = stage(client, make(), work)
    branches, tags = refs_of(client, make.repo)
    assert {file.location for file in staged.files} == {"staged"}
    assert branches.keys() == {"main", "hubpub-stage/v1.0.0"} and not tags
    assert history(client, make.repo) == []
    (found,) = status(client, [make.repo])
    assert found.staged[0].version == "v1.0.0" and found.staged[0].files == tuple(sorted([*SIZES, "LICENSE"]))
    assert stage(client, make(), work).bytes_sent == 0
    unstage(client, make.repo, "v1.0.0")
    assert refs_of(client, make.repo)[0].keys() == {"main"}


@both
def test_machines_stage_their_own_files_and_another_promotes(client: Client, make: Maker, tmp_path: Path) -> None:
    release = make()
    parts = [
        tuple(f for f in release.files if f.path_in_repo == name or (name == "tokenizer.json" and not f.large))
        for name in SIZES
    ]
    for number, files in enumerate(parts):
        stage(client, replace(release, files=files), tmp_path / f"machine{number}")
    remote = tuple(replace(file, source=None) if file.large else file for file in release.files)
    receipt = promote(client, replace(release, files=remote), tmp_path / "last")
    assert isinstance(receipt.outcome, Published) and receipt.bytes_sent < 10_000
    assert verify(client, make.repo, "v1.0.0").files and history(client, make.repo) == ["Release v1.0.0"]
    for name in SIZES:
        assert client.read(make.repo, "main", name) == (make.folder / name).read_bytes()


def test_what_was_never_staged_is_named(client: Client, make: Maker, work: Path) -> None:
    release = make()
    files = tuple(replace(f, source=None) if f.path_in_repo == "model-int8.pte" else f for f in release.files)
    with pytest.raises(HubError, match=r"model-int8\.pte is neither staged"):
        publish_all(client, [replace(release, files=files)], work)
    assert history(client, make.repo) == []


@both
def test_prose_and_files_of_others_stay(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    prose = CARD.replace("# Title\n", "# Our title\r\n\r\nWritten by hand \u00e4\u2028 with  spaces \n").encode()
    by_hand(client, make.repo, "README.md", prose)
    by_hand(client, make.repo, "images/photo.bin", b"\0\1\2")
    publish_all(client, [make("v2", card="two")], work)
    assert client.read(make.repo, "v2", "README.md") == prose.replace(b"one", b"two")
    assert client.read(make.repo, "v2", "images/photo.bin") == b"\0\1\2"


def test_a_card_that_is_no_text_is_not_overwritten(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    """The library refuses to commit such a card; git would not."""
    publish_all(client, [make()], work)
    content = {"path": "README.md", "encoding": "base64", "content": base64.b64encode(b"\xff\xfe broken").decode()}
    lines = [{"key": "header", "value": {"summary": "By git", "description": ""}}, {"key": "file", "value": content}]
    request = urllib.request.Request(
        f"{hub.url}/api/models/{make.repo}/commit/main",
        "\n".join(map(json.dumps, lines)).encode(),
        {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/x-ndjson"},
    )
    urllib.request.urlopen(request).close()
    with pytest.raises(ConflictError, match="UTF-8"):
        publish_all(client, [make("v2")], work)


def test_a_change_by_others_in_between(client: Client, make: Maker, work: Path) -> None:
    release = make()
    staged = stage(client, release, work)
    by_hand(client, make.repo, "notes.md", b"not ours")
    receipt = promote(client, release, work, staged=staged)
    assert isinstance(receipt.outcome, Published)
    staged = stage(client, make("v2", seed=2), work)
    by_hand(client, make.repo, "config.json", b'{"theirs": 1}', "Fix the config")
    with pytest.raises(ConflictError, match=r"config\.json.*'Fix the config' by \w+"):
        promote(client, make("v2"), work, staged=staged)
    assert history(client, make.repo)[-1] == "Fix the config"
    assert client.read(make.repo, "main", "config.json") == b'{"theirs": 1}'


@pytest.mark.parametrize("path", ["notes.md", "config.json"])
def test_a_change_at_the_very_last_moment(
    path: str, client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head moves after the plan was made: the guard of the commit finds out, and the plan is made once more."""
    publish_all(client, [make()], work)
    commit = Client.commit
    done: list[int] = []

    def late(self: Client, *args: object, **kwargs: object) -> object:
        if not done:
            done.append(1)
            by_hand(client, make.repo, path, b"{ }", "Too late")
        return commit(self, *args, **kwargs)  # type: ignore[arg-type]

    staged = stage(client, make("v2", seed=3), work)
    monkeypatch.setattr(Client, "commit", late)
    if path == "notes.md":
        assert isinstance(promote(client, make("v2"), work, staged=staged).outcome, Published)
        assert history(client, make.repo) == ["Release v1.0.0", "Too late", "Release v2"]
    else:
        with pytest.raises(ConflictError, match="Too late"):
            promote(client, make("v2"), work, staged=staged)
        assert history(client, make.repo) == ["Release v1.0.0", "Too late"]


def test_a_version_is_never_given_other_content(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    before = refs_of(client, make.repo)
    with sent_to(hub) as sent, pytest.raises(ConflictError, match=r"v1\.0\.0 exists.*model-8da4w\.pte"):
        publish_all(client, [make(seed=9)], work)
    assert sent.content == 0 and refs_of(client, make.repo) == before
    with pytest.raises(ConflictError, match=r"README\.md"):
        publish_all(client, [make(seed=0, card="other")], work)


def test_nothing_is_staged_when_one_of_two_repos_cannot_be_published(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    good = replace(make(), repo_id=f"{hub.user}/other")
    bad = make(seed=5)
    with pytest.raises(ConflictError):
        publish_all(client, [good, bad], work)
    assert client.refs(good.repo_id) is None


@both
def test_two_repos_are_staged_before_the_first_is_promoted(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    two = [make(), replace(make(), repo_id=f"{hub.user}/other")]
    assert [receipt.outcome.kind for receipt in publish_all(client, two, work)] == ["published"] * 2
    commits = [entry.path for entry in hub.requests if "/commit/" in entry.path]
    assert ["main" in path for path in commits] == [False] * 4 + [True] * 2


@both
def test_only_the_tag_is_missing(client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between commit and tag: the next run tags that commit, although others have committed since."""
    killed_before_tagging(monkeypatch, lambda: publish_all(client, [make()], work))
    head = refs_of(client, make.repo)[0]["main"]
    by_hand(client, make.repo, "notes.md", b"later")
    (receipt,) = publish_all(client, [make()], work)
    assert receipt.outcome == TagOnly(head, "v1.0.0")
    assert history(client, make.repo) == ["Release v1.0.0", "notes.md"] or len(history(client, make.repo)) == 2
    assert refs_of(client, make.repo)[0].keys() == {"main"}


def test_other_content_for_a_version_that_is_being_published(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_tagging(monkeypatch, lambda: publish_all(client, [make()], work))
    with pytest.raises(ConflictError, match="is not tagged yet"):
        publish_all(client, [make(seed=4)], work)
    assert history(client, make.repo) == ["Release v1.0.0"]


@both
def test_a_pull_request_is_made_once(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (receipt,) = publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    assert isinstance(receipt.outcome, PullRequest)
    with sent_to(hub) as sent:
        (again,) = publish_all(client, [make("v2")], work, create_pr=True)
    assert again.outcome == receipt.outcome and sent.content == 0
    assert not any("/preupload/" in entry.path for entry in sent.entries)
    branches, tags = refs_of(client, make.repo)
    assert branches.keys() == {"main"} and tags.keys() == {"v1.0.0"}
    assert history(client, make.repo) == ["Release v1.0.0"]


def test_a_file_that_changed_since_it_was_measured_is_not_sent(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    release = make()
    path = make.folder / "model-int8.pte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(HubpubError, match="not the file that was measured"):
        publish_all(client, [release], work)
    path.unlink()
    with pytest.raises(HubpubError, match="not the file that was measured"):
        publish_all(client, [release], work)


def test_tokens(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    repo = make.repo
    publish_all(client, [make()], work)
    cases = {
        "no token": Client(hub.url, None, retry=FAST),
        "does not accept": Client(hub.url, "hf_" + "x" * 34, retry=FAST),
        "may only read": Client(hub.url, hub.add_token(hub.user, "read"), retry=FAST),
        "no write access": Client(hub.url, hub.add_token(hub.user, "write", repos=[f"{hub.user}/else"]), retry=FAST),
        "no member": Client(hub.url, hub.add_token("stranger", "write"), retry=FAST),
    }
    for message, other in cases.items():
        with sent_to(hub) as sent, pytest.raises(AccessError, match=message) as caught:
            preflight(other, [repo])
        assert caught.value.hint and sent.content == 0 and sent.bytes == 0
        with pytest.raises(AccessError):
            publish_all(other, [make("v2", seed=1)], work)
    allowed = Client(hub.url, hub.add_token(hub.user, "write", repos=[repo]), retry=FAST)
    assert preflight(allowed, [repo])[0].tags.keys() == {"v1.0.0"}


def test_no_token_in_any_text(
    hub: LocalHub, make: Maker, work: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client = Client(hub.url, hub.token, retry=replace(FAST, attempts=2))
    publish_all(client, [make()], work)
    hub.arm(Fault(path=r"/api/", status=503, times=5))
    with pytest.raises(HubError) as caught:
        publish_all(client, [make("v2", seed=3)], work)
    hub.disarm()
    text = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    text += "".join(path.read_text() for path in work.rglob("*.json"))
    assert hub.token not in text and "Bearer" not in text
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, HubpubError)


@both
def test_the_library_prints_nothing(client: Client, make: Maker, work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    publish_all(client, [make()], work)
    (make.folder / "small.bin").write_bytes(bytes(range(256)) * 400)
    publish_all(client, [make("v2", seed=1)], work)
    publish_all(client, [make("v3", seed=2)], work, create_pr=True)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_verify_and_yank(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    report = verify(client, make.repo, "v1.0.0")
    assert {file.path: file.how for file in report.files}["model-int8.pte"] == "recorded"
    assert all(file.ok for file in report.files)
    assert all(file.how == "downloaded" for file in verify(client, make.repo, "v1.0.0", download=True).files)
    tagged = refs_of(client, make.repo)[1]
    assert yank(client, make.repo, "v1.0.0", "The scales are wrong.", new_version=f"{make.repo}-2")
    assert yank(client, make.repo, "v1.0.0", "The scales are wrong.", new_version=f"{make.repo}-2") is None
    card = (client.read(make.repo, "main", "README.md") or b"").decode()
    assert "v1.0.0 was withdrawn:** The scales are wrong." in card and f"new_version: {make.repo}-2" in card
    assert refs_of(client, make.repo)[1] == tagged
    with pytest.raises(HubError, match="no version v7"):
        yank(client, make.repo, "v7", "typo")
    by_hand(client, make.repo, "model-int8.pte", b"tampered")
    assert any("model-int8.pte" in problem for problem in verify(client, make.repo, "main").problems)
    assert isinstance(publish_all(client, [make()], work)[0].outcome, NoChanges)


def test_status_knows_receipts(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (found,) = status(client, [make.repo], work)
    assert found.published == "v1.0.0" and found.receipts[0].version == "v1.0.0" and not found.staged
    (absent,) = status(client, [make.repo + "-not"], work)
    assert not absent.exists


@both
def test_two_releases_at_once(hub: LocalHub, client: Client, make: Maker, tmp_path: Path, transport: str) -> None:
    """Two machines publish other files under one version: one wins and the other one says why it stopped."""
    make()
    random_files(tmp_path / "files2", SIZES, seed=77)
    running = [
        subprocess.Popen(
            [*_command(hub, make.repo, folder, tmp_path / f"work-{folder.name}")],
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(transport, tmp_path),
        )
        for folder in (make.folder, tmp_path / "files2")
    ]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    failed = [answer for answer in answers if isinstance(answer, dict)]
    assert len(failed) == 1 and failed[0]["exit"] == ConflictError.exit_code, answers
    (won,) = [answer for answer in answers if isinstance(answer, list)]
    assert refs_of(client, make.repo)[1] == {"v1": won[0]["outcome"]["commit"]}
    assert history(client, make.repo) == ["Release v1"]


@pytest.mark.slow
def test_what_another_machine_replaced_while_it_was_staged_is_not_promoted(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    """The other one writes between our commit to the staging branch and our look at what it holds."""
    release = make()
    mine = next(file for file in release.files if file.path_in_repo == "model-8da4w.pte")
    branch, other = stage_branch("v1.0.0"), b"of another export" * 1000

    def meddle() -> None:
        for _ in range(600):
            with suppress(HubpubError):
                held = client.files(make.repo, branch, [mine.path_in_repo]).get(mine.path_in_repo)
                if held and held.sha256 == mine.sha256:
                    file = LocalFile.text(mine.path_in_repo, other)
                    add = client.send(make.repo, branch, Add(file.path_in_repo, other, file.bytes, file.sha256))
                    client.commit(make.repo, branch, [add], title="Other", parent=None, find_committed=lambda: None)
                    return
            time.sleep(0.02)

    hub.arm(Fault(method="GET", path="/refs", delay=0.5, times=1000))
    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        with pytest.raises(ConflictError, match=r"replaced model-8da4w\.pte while it was being staged"):
            publish_all(client, [release], work)
    finally:
        meddler.join()
    hub.disarm()
    assert not refs_of(client, make.repo)[1] and not history(client, make.repo)


def _command(hub: LocalHub, repo: str, folder: Path, work: Path) -> list[str]:
    script = str(Path(__file__).with_name("one_release.py"))
    return [sys.executable, script, hub.url, hub.token, repo, "v1", str(folder), str(work)]


def _environment(transport: str, tmp_path: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    off = {"HF_HUB_DISABLE_XET": "1"} if transport == "lfs" else {}
    return {**os.environ, "PYTHONPATH": root, "HF_XET_CACHE": str(tmp_path / "xet"), **off}


def test_a_dropped_file_leaves_main_with_the_release_that_dropped_it(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    by_hand(client, make.repo, "images/photo.bin", b"\0\1\2")
    (make.folder / "model-int8.pte").unlink()
    (planned,) = plan_all(client, [make("v2")])
    assert planned.retired == ("model-int8.pte",) and "remove model-int8.pte" in planned.summary
    (receipt,) = publish_all(client, [make("v2")], work)
    assert receipt.retired == ("model-int8.pte",) and load_receipt(work, "v2", make.repo) == receipt
    held = client.tree(make.repo, "v2")
    assert "model-int8.pte" not in held and {"model-8da4w.pte", "images/photo.bin", ".gitattributes"} <= held.keys()
    assert "model-int8.pte" in client.tree(make.repo, "v1.0.0")
    newest = client.commits(make.repo, "main")[0]
    assert "Removed: model-int8.pte is not part of this version." in newest.message
    assert isinstance(publish_all(client, [make("v2")], work)[0].outcome, NoChanges)


def test_nothing_of_an_owner_is_removed(client: Client, make: Maker, work: Path) -> None:
    """Neither what somebody changed since, nor what a list speaks of that no release wrote."""
    client.create_repo(make.repo)
    by_hand(client, make.repo, "notes.md", b"notes")
    by_hand(client, make.repo, "SHA256SUMS", b"%s  notes.md\n" % (b"0" * 64))
    publish_all(client, [make(seed=0, **{"extra.json": "{}"})], work)
    by_hand(client, make.repo, "extra.json", b'{"theirs": 1}')
    (receipt,) = publish_all(client, [make("v2")], work)
    assert receipt.retired == ()
    assert client.read(make.repo, "v2", "extra.json") == b'{"theirs": 1}'
    assert client.read(make.repo, "v2", "notes.md") == b"notes"


def test_only_files_that_left_are_a_release_too(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make(seed=0, **{"extra.json": "{}"})], work)
    (receipt,) = publish_all(client, [make("v2")], work, create_pr=True)
    assert receipt.outcome.kind == "pull-request" and receipt.retired == ("extra.json",)
    assert "extra.json" in client.tree(make.repo, "main")


def test_whose_token_it_is_is_asked_before_anything_is_made(hub: LocalHub, make: Maker, work: Path) -> None:
    client = Client(hub.url, hub.token, retry=FAST)
    publish_all(client, [make()], work)
    before = refs_of(client, make.repo)
    fresh = Client(hub.url, hub.token, retry=FAST)
    hub.arm(Fault(path="/whoami", status=401, times=100))
    with pytest.raises(AccessError):
        promote(fresh, make("v2", card="two"), work)
    hub.disarm()
    assert refs_of(client, make.repo) == before


def test_what_fails_after_the_release_was_checked_is_a_note(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    (work / "releases/v1.0.0/local--model.json").mkdir(parents=True)
    hub.arm(Fault(method="DELETE", path="/branch/", status=403, times=100))
    (receipt,) = publish_all(client, [make()], work)
    hub.disarm()
    assert isinstance(receipt.outcome, Published) and refs_of(client, make.repo)[1]["v1.0.0"] == receipt.outcome.commit
    assert (
        len(receipt.notes) == 2 and "hubpub unstage" in receipt.notes[0] and "could not be written" in receipt.notes[1]
    )


def test_a_dry_run_counts_on_files_that_others_have_yet_to_stage(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    release = make("v2", seed=2)
    away = tuple(LocalFile(f.path_in_repo, None, f.bytes, f.sha256) if f.large else f for f in release.files)
    elsewhere = replace(release, files=away)
    with pytest.raises(HubError, match="neither staged"):
        plan_all(client, [elsewhere])
    (planned,) = plan_all(client, [elsewhere], unstaged=True)
    assert planned.outcome.kind == "planned" and planned.bytes_sent > sum(f.bytes for f in away if f.large)
    with pytest.raises(HubError, match="neither staged"):
        publish_all(client, [elsewhere], work)
    assert history(client, make.repo) == ["Release v1.0.0"]


def test_what_is_looked_at_before_anything_is_built(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    new = f"{hub.user}/new"
    alone = Client(hub.url, hub.add_token(hub.user, "write", repos=[new]), retry=FAST)
    with pytest.raises(AccessError, match=f"{new} does not exist .* made for that repo alone"):
        preflight(alone, [new])
    with pytest.raises(HubError, match=f"{new} does not exist: there is nothing to open a pull request against"):
        preflight(client, [new], create_pr=True)
    reader = Client(hub.url, hub.add_token(hub.user, "read"), retry=FAST)
    with pytest.raises(AccessError, match=f"no pull request to {new}: the token may only read"):
        preflight(reader, [new], create_pr=True)
    publish_all(client, [make()], work)
    absent, there = preflight(client, [new, make.repo])
    assert (absent.exists, absent.head, absent.tags) == (False, None, {})
    branches, tags = refs_of(client, make.repo)
    assert (there.exists, there.head, there.tags) == (True, branches["main"], tags)
    # The Hub is asked about a repo that is there, whatever the token says of itself.
    hub.arm(Fault(path="/auth-check", status=403, times=1))
    with pytest.raises(AccessError, match="the Hub refuses"):
        preflight(client, [make.repo])


def test_a_repo_is_named_once(client: Client, make: Maker, work: Path) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        publish_all(client, [make(), replace(make(), repo_id=make.repo.upper().replace("LOCAL", "local"))], work)
    assert client.refs(make.repo) is None


def elsewhere(release: RepoRelease) -> RepoRelease:
    """The same release on a machine that has none of its large files."""
    files = [LocalFile(f.path_in_repo, None, f.bytes, f.sha256) if f.large else f for f in release.files]
    return replace(release, files=tuple(files))


def test_what_changed_since_others_staged_is_not_published_over(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    stage(client, make("v2", seed=2), work)
    by_hand(client, make.repo, "config.json", b'{"theirs": 1}', "Fix the config")
    with pytest.raises(ConflictError, match="'Fix the config'"):
        publish_all(client, [elsewhere(make("v2"))], work)
    assert history(client, make.repo) == ["Release v1.0.0", "Fix the config"]


def test_the_receipt_counts_what_was_sent_how_long_it_took_and_what_was_repeated(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    hub.arm(Fault(method="POST", path="/commit/hubpub-stage", status=503, delay=0.5))
    hub.arm(Fault(method="POST", path="/commit/main", status=503))
    began = time.monotonic()
    (receipt,) = publish_all(client, [make()], work)
    assert receipt.retries == 2 and 0.5 < receipt.seconds <= time.monotonic() - began + 0.01
    began = time.monotonic()
    (again,) = publish_all(client, [make()], work)
    assert again.outcome.kind == "no-changes" and again.retries == 0 and again.bytes_sent == 0
    assert {file.sent_bytes for file in again.files} == {0} and not any(file.changed for file in again.files)
    assert 0 <= again.seconds <= time.monotonic() - began + 0.01
    began = time.monotonic()
    (planned,) = plan_all(client, [make("v2", seed=2)])
    assert planned.retries == 0 and 0 <= planned.seconds <= time.monotonic() - began + 0.01


def test_what_was_staged_before_is_copied_and_not_sent_again(client: Client, make: Maker, work: Path) -> None:
    release = make()
    stage(client, release, work)
    receipt = promote(client, release, work)
    sent = {file.path: file.sent_bytes for file in receipt.files}
    assert all(sent[name] == 0 for name in SIZES) and sent["config.json"] == 3


def test_a_dry_run_says_what_this_machine_would_send(client: Client, make: Maker, work: Path) -> None:
    """Of a repo that is not there yet, and of a new version of one that is."""
    for version, seed in (("v1.0.0", None), ("v2", 2)):
        release = make(version, seed=seed)
        (whole,) = plan_all(client, [release])
        (here,) = plan_all(client, [elsewhere(release)], unstaged=True)
        assert whole.bytes_sent == here.bytes_sent == sum(file.sent_bytes for file in whole.files)
        assert {f.path: f.sent_bytes for f in whole.files} == {f.path: f.sent_bytes for f in here.files}
        changed = {file.path for file in whole.files if file.changed}
        assert {file.path for file in whole.files if file.sent_bytes} == changed and changed >= SIZES.keys()
        if version == "v1.0.0":
            (staged,) = plan_all(client, [elsewhere(release)])
            assert staged.bytes_sent == whole.bytes_sent - sum(SIZES.values())
            assert {file.sent_bytes for file in staged.files if file.path in SIZES} == {0}
            publish_all(client, [release], work)


def test_a_request_leaves_what_was_staged_for_a_release(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    release = make("v2", seed=2)
    stage(client, release, work)
    (receipt,) = publish_all(client, [release], work, create_pr=True)
    assert receipt.outcome.kind == "pull-request" and stage_branch("v2") in refs_of(client, make.repo)[0]


def test_somebody_who_always_commits_first_wins(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all(client, [make()], work)
    staged, commit, times = stage(client, make("v2", seed=3), work), Client.commit, []

    def late(self: Client, repo: str, branch: str, *args: object, **kwargs: object) -> object:
        if branch == "main" and kwargs["title"] == "Release v2":
            times.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(Client, "commit", commit)
                by_hand(client, repo, "notes.md", str(len(times)).encode())
        return commit(self, repo, branch, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "commit", late)
    with pytest.raises(ConflictError):
        promote(client, make("v2"), work, staged=staged)
    assert len(times) == 2 and "Release v2" not in history(client, make.repo)


def test_a_version_of_what_main_holds_is_a_tag_and_no_commit(client: Client, make: Maker, work: Path) -> None:
    release = make()
    (first,) = publish_all(client, [release], work)
    (second,) = publish_all(client, [replace(release, version="v1.0.1")], work)
    assert isinstance(first.outcome, Published) and second.outcome == TagOnly(first.outcome.commit, "v1.0.1")
    assert history(client, make.repo) == ["Release v1.0.0"] and len(refs_of(client, make.repo)[1]) == 2
    assert {file.path for file in second.files} == {file.path for file in first.files}


def test_a_twin_that_finishes_between_two_looks(
    client: Client, make: Maker, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make()
    staged, looks = stage(client, release, work), []

    def look(*arguments: object) -> object:
        looks.append(1)
        if len(looks) == 2:
            publish_all(client, [release], tmp_path / "twin")
        return ensured_repo(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("hubpub.hub.publish.ensured_repo", look)
    receipt = promote(client, release, work, staged=staged)
    assert receipt.outcome == TagOnly(refs_of(client, make.repo)[1]["v1.0.0"], "v1.0.0")
    assert history(client, make.repo) == ["Release v1.0.0"]


@pytest.mark.parametrize("door", ["dry run", "promote"])
def test_a_version_that_was_committed_and_not_tagged_is_finished_by_nobody_else(
    door: str, client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_tagging(monkeypatch, lambda: publish_all(client, [make()], work))
    other = make(seed=7)
    with pytest.raises(ConflictError, match=r"v1\.0\.0 was committed with other content .* is not tagged yet"):
        if door == "promote":
            promote(client, other, work, staged=stage(client, other, work))
        else:
            plan_all(client, [other])
    assert history(client, make.repo) == ["Release v1.0.0"] and not refs_of(client, make.repo)[1]
