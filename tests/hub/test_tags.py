"""The tag: where it lies, and that everything below it is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.errors import ConflictError, HubError
from hubpub.hub.client import Client
from hubpub.hub.publish import publish_all
from hubpub.hub.receipts import NoChanges, Published
from hubpub.localhub import Fault, LocalHub

from .conftest import Maker, killed_before_tagging
from .test_publish import by_hand, history, refs_of


def test_what_the_hub_did_not_take_is_found_when_the_tag_is_read_back(client: Client, make: Maker, work: Path) -> None:
    """A .gitignore of the repo's owner makes the Hub's own library leave a file out, and say nothing."""
    client.create_repo(make.repo)
    by_hand(client, make.repo, ".gitignore", b"config.json\n")
    with pytest.raises(HubError, match=r"v1\.0\.0: the Hub records something else for config\.json") as caught:
        publish_all(client, [make()], work)
    assert ".gitignore" in str(caught.value.hint)
    assert not list((work / "releases").rglob("model.json"))


def test_a_card_that_was_not_taken_is_found_too(client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    by_hand(client, make.repo, ".gitignore", b"README.md\n")
    with pytest.raises(HubError, match=r"something else for README\.md"):
        publish_all(client, [make()], work)


@pytest.mark.parametrize("same", [False, True])
def test_somebody_else_makes_the_tag_first(
    same: bool, client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_tag = Client.create_tag

    def late(self: Client, repo_id: str, tag: str, commit: str) -> None:
        head = by_hand(client, repo_id, "notes.md", b"later")
        base = client.commits(repo_id, commit)[1].id
        create_tag(self, repo_id, tag, head if same else base)
        create_tag(self, repo_id, tag, commit)

    monkeypatch.setattr(Client, "create_tag", late)
    if same:
        (receipt,) = publish_all(client, [make()], work)
        assert refs_of(client, make.repo)[1]["v1.0.0"] == getattr(receipt.outcome, "commit", None)
    else:
        with pytest.raises(ConflictError, match=r"v1\.0\.0 exists.*with other content"):
            publish_all(client, [make()], work)


def test_a_tag_that_does_not_show(client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Client, "create_tag", lambda *_: None)
        with pytest.raises(HubError, match=r"does not show the tag v1\.0\.0") as caught:
            publish_all(client, [make()], work)
        assert "only the tag is missing" in str(caught.value.hint)
    (receipt,) = publish_all(client, [make()], work)
    assert receipt.outcome.kind == "tag-only" and history(client, make.repo) == ["Release v1.0.0"]
    assert isinstance(publish_all(client, [make()], work)[0].outcome, NoChanges)


def test_a_tag_that_the_hub_refused_and_does_not_show_is_no_release(
    hub: LocalHub, client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of a tag that the Hub took is its silence a note."""

    def refused(self: Client, repo_id: str, tag: str, commit: str) -> None:
        hub.arm(Fault(path="/refs", status=503, times=100))
        raise ConflictError("another tag is made at this moment")

    with monkeypatch.context() as patch:
        patch.setattr(Client, "create_tag", refused)
        with pytest.raises(HubError, match="503"):
            publish_all(client, [make()], work)
    hub.disarm()
    assert publish_all(client, [make()], work)[0].outcome.kind == "tag-only"


@pytest.mark.parametrize("call", ["/refs", "/paths-info/"])
def test_a_hub_that_is_silent_once_it_took_the_tag_leaves_a_note(
    call: str, hub: LocalHub, client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_tag = Client.create_tag

    def then_silent(self: Client, repo_id: str, tag: str, commit: str) -> None:
        create_tag(self, repo_id, tag, commit)
        hub.arm(Fault(path=call, status=503, times=self.retry.attempts))

    monkeypatch.setattr(Client, "create_tag", then_silent)
    (receipt,) = publish_all(client, [make()], work)
    assert isinstance(receipt.outcome, Published)
    assert refs_of(client, make.repo)[1] == {"v1.0.0": receipt.outcome.commit}
    (note,) = receipt.notes
    assert note.startswith("published, but could not be verified (") and "503" in note


def test_a_release_that_is_only_tagged_is_read_back_as_well(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_repo(make.repo)
    by_hand(client, make.repo, ".gitignore", b"config.json\n")
    killed_before_tagging(monkeypatch, lambda: publish_all(client, [make()], work))
    with pytest.raises(HubError, match=r"something else for config\.json"):
        publish_all(client, [make()], work)
