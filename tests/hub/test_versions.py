"""Older versions, dropped files, and what may go wrong once a release is out."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.errors import AccessError, ConflictError
from hubpub.hub.client import Client
from hubpub.hub.names import newest_above
from hubpub.hub.publish import preflight, promote, publish_all
from hubpub.hub.receipts import NoChanges, Planned, Published, TagOnly, load_receipt
from hubpub.localhub import Fault, LocalHub

from .conftest import FAST, Maker, sent_to
from .test_publish import by_hand, refs_of

IN_ORDER = [
    "v0.0.1", "v0.9.0", "v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-alpha.beta", "v1.0.0-beta", "v1.0.0-beta.2",
    "v1.0.0-beta.11", "v1.0.0-rc.1", "v1.0.0", "v1.0.1", "v1.2", "v1.10.0", "v2",
]  # fmt: skip


def test_versions_are_in_the_order_of_semver() -> None:
    for number, version in enumerate(IN_ORDER):
        for other in IN_ORDER[number + 1 :]:
            assert newest_above(version, [other]) == other and newest_above(other, [version]) is None
        assert newest_above(version, IN_ORDER) == (None if version == IN_ORDER[-1] else IN_ORDER[-1])
    assert newest_above("v1", ["v1.0.0", "1.0", "v1.0.0+build.7"]) is None and newest_above("v1.0.0", ["v1"]) is None
    assert newest_above("v0.0.0-rehearsal.0a", ["v1.0.0", "v0.0.0-rehearsal.ff"]) is None
    assert newest_above("v1.0.0", ["latest", "main", "v0.0.0-rehearsal.ff", "nightly-2"]) is None
    assert newest_above("nightly", ["v1.0.0"]) is None and newest_above("v1.0.0", []) is None


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
    with monkeypatch.context() as patch:
        patch.setattr(Client, "create_tag", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish_all(client, [make()], work)
    unfinished = refs_of(client, make.repo)[0]["main"]
    publish_all(client, [make("v1.1.0", seed=5)], work)
    newer = refs_of(client, make.repo)[0]["main"]
    assert preflight(client, [make.repo], version="v1.0.0")
    assert publish_all(client, [make(seed=0)], work, dry_run=True)[0].outcome == Planned(False, False, True)
    (receipt,) = publish_all(client, [make()], work)
    assert receipt.outcome == TagOnly(unfinished, "v1.0.0") and receipt.bytes_sent == 0
    assert refs_of(client, make.repo) == ({"main": newer}, {"v1.0.0": unfinished, "v1.1.0": newer})
    assert isinstance(publish_all(client, [make()], work)[0].outcome, NoChanges)
    with pytest.raises(ConflictError, match="with other content"):
        publish_all(client, [make(seed=8)], work)


def test_a_dropped_file_leaves_main_with_the_release_that_dropped_it(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    by_hand(client, make.repo, "images/photo.bin", b"\0\1\2")
    (make.folder / "model-int8.pte").unlink()
    (planned,) = publish_all(client, [make("v2")], work, dry_run=True)
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
