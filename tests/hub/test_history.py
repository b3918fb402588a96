"""What the history of main says: which commits are releases, what came after one, and who made it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hubpub.errors import ConflictError
from hubpub.hub.client import Client, Commit, Refs
from hubpub.hub.history import (
    commit_of,
    last_release,
    own_commit,
    refuse_unfinished,
    stage_base,
    until,
    who,
)
from hubpub.hub.publish import plan_all, preflight, promote, publish_all
from hubpub.hub.receipts import NoChanges, Planned, TagOnly
from hubpub.hub.staging import stage
from hubpub.localhub import LocalHub

from .conftest import Maker, killed_before_tagging, sent_to
from .test_publish import by_hand, refs_of


def refs(client: Client, repo: str) -> Refs:
    found = client.refs(repo)
    assert found is not None
    return found


def test_the_newest_release_on_main_is_told_by_its_commit_or_its_tag(client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    by_hand(client, make.repo, "notes.md", b"notes")
    assert last_release(client, make.repo, refs(client, make.repo)) is None
    publish_all(client, [make()], work)
    released = refs_of(client, make.repo)[0]["main"]
    by_hand(client, make.repo, "notes.md", b"more")
    now = refs(client, make.repo)
    assert last_release(client, make.repo, now) == last_release(client, make.repo, replace(now, tags={})) == released
    tagged = by_hand(client, make.repo, "notes.md", b"and more")
    assert last_release(client, make.repo, replace(now, branches={"main": tagged}, tags={"v9": tagged})) == tagged


def test_a_release_is_found_by_its_version_and_its_content(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    first = refs_of(client, make.repo)[0]["main"]
    head = by_hand(client, make.repo, "notes.md", b"later")
    found = commit_of(client, make.repo, "v1.0.0", head)
    assert found and found.id == first and commit_of(client, make.repo, "v1.0", head) is None
    assert own_commit(client, make(), head) == first
    refuse_unfinished(client, make(), head)
    refuse_unfinished(client, make("v2", seed=2), head)
    other = make(seed=2)
    assert own_commit(client, other, head) is None
    with pytest.raises(ConflictError, match=rf"with other content by local as {first[:12]} and is not tagged yet"):
        refuse_unfinished(client, other, head)


def test_a_staging_branch_remembers_where_main_was(client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    release = make()
    began = refs_of(client, make.repo)[0]["main"]
    assert stage_base(client, release, refs(client, make.repo)) == began
    stage(client, release, work)
    head = by_hand(client, make.repo, "notes.md", b"later")
    now = refs(client, make.repo)
    assert (stage_base(client, release, now), stage_base(client, make("v2"), now)) == (began, head)


def test_what_came_after_a_commit() -> None:
    history = [Commit(name, name, "", ("a", "b") if name == "c" else (), datetime.now(UTC)) for name in "cba"]
    assert [commit.id for commit in until(history, "a")] == ["c", "b"] and until(history, "c") == []
    assert until(history, "elsewhere") == history
    assert who(history[0]) == "a, b" and who(history[1]) == "unknown"


@pytest.mark.parametrize("create_pr", [False, True])
def test_an_older_version_does_not_move_main_back(
    create_pr: bool, hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make("v1.1.0")], work)
    before = refs_of(client, make.repo)
    with sent_to(hub) as sent, pytest.raises(ConflictError, match=r"v1\.1\.0 is published.*back to the older v1\.0\.1"):
        publish_all(client, [make("v1.0.1", seed=3)], work, create_pr=create_pr)
    assert sent.content == 0 and refs_of(client, make.repo) == before
    with pytest.raises(ConflictError, match="older") as caught:
        preflight(client, [make.repo], version="v1.0.1", create_pr=create_pr)
    assert "above v1.1.0" in str(caught.value.hint)
    assert preflight(client, [make.repo], version="v1.1.0") and preflight(client, [make.repo], version="v1.2.0")
    with pytest.raises(ConflictError, match="older"):
        promote(client, make("v1.0.1"), work)
    assert refs_of(client, make.repo)[1] == before[1]


def test_an_older_release_that_was_never_tagged_is_finished(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between its commit and its tag, and a newer one came out meanwhile."""
    killed_before_tagging(monkeypatch, lambda: publish_all(client, [make()], work))
    unfinished = refs_of(client, make.repo)[0]["main"]
    publish_all(client, [make("v1.1.0", seed=5)], work)
    newer = refs_of(client, make.repo)[0]["main"]
    assert preflight(client, [make.repo], version="v1.0.0")
    assert plan_all(client, [make(seed=0)])[0].outcome == Planned(False, False, True)
    (receipt,) = publish_all(client, [make()], work)
    assert receipt.outcome == TagOnly(unfinished, "v1.0.0") and receipt.bytes_sent == 0
    assert refs_of(client, make.repo) == ({"main": newer}, {"v1.0.0": unfinished, "v1.1.0": newer})
    assert isinstance(publish_all(client, [make()], work)[0].outcome, NoChanges)
    with pytest.raises(ConflictError, match="with other content"):
        publish_all(client, [make(seed=8)], work)
