"""Rehearsals and releases never mix: neither in a namespace nor in a repo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import ConflictError, UsageError
from hubpub.facts import dump
from hubpub.hub.client import Add, Client
from hubpub.localhub import LocalHub
from hubpub.release.connect import Destination
from hubpub.release.targets import check_targets, destination, rehearsal_owner
from hubpub.workspace import Workspace

from .conftest import release_facts


def put(client: Client, repo: str, text: str, tag: str | None = None, message: str = "") -> None:
    """Commit `text` as the facts.json of `repo`."""
    import hashlib

    if client.refs(repo) is None:
        client.create_repo(repo, private=False)
    data = text.encode()
    add = Add("facts.json", data, len(data), hashlib.sha256(data).hexdigest())
    sent = client.send(repo, "main", add)
    client.commit(repo, "main", [sent], title="Facts", message=message, parent=None, find_committed=lambda: None)
    if tag:
        refs = client.refs(repo)
        assert refs is not None
        client.create_tag(repo, tag, refs.branches["main"])


def test_a_rehearsal_never_goes_to_a_repo_that_holds_a_release(hub: LocalHub, client: Client, small: Project) -> None:
    to, card = Destination(client, hub.user), small.cards[0]
    check_targets(to, [card], rehearsal=True)
    put(client, to.repo_id(card), dump(release_facts(small, "v1.0.0", scale_model=False)), "v1.0.0")
    with pytest.raises(ConflictError, match="holds a real release"):
        check_targets(to, [card], rehearsal=True)
    with pytest.raises(ConflictError, match="holds a real release"):
        check_targets(replace(to, over_rehearsal=True), [card], rehearsal=True)
    check_targets(to, [card], rehearsal=False)
    # Even where main no longer shows it.
    put(client, to.repo_id(card), dump(release_facts(small, "v0.0.0-rehearsal.1", scale_model=True)))
    with pytest.raises(ConflictError, match=r"holds a real release \(v1\.0\.0\)"):
        check_targets(to, [card], rehearsal=True)


def test_a_release_goes_where_the_environment_says_and_a_rehearsal_to_the_local_hub(
    hub: LocalHub, small: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    workspace = Workspace(small, tmp_path / "work", rehearsal=False)
    with destination(workspace, None, None, None) as to:
        assert to.client.endpoint == hub.url
    with destination(workspace, "https://hub.example", None, None) as to:
        assert to.client.endpoint == "https://hub.example"
    with destination(replace(workspace, rehearsal=True), None, None, None) as to:
        assert to.client.endpoint != hub.url and to.store == workspace.hub


@pytest.mark.parametrize("unreadable", ['{"schema": 9}', "not JSON", "[]"])
def test_facts_that_nobody_can_read_are_taken_for_real(
    hub: LocalHub, client: Client, small: Project, unreadable: str
) -> None:
    to, card = Destination(client, hub.user), small.cards[0]
    put(client, to.repo_id(card), unreadable)
    with pytest.raises(ConflictError, match="holds a real release"):
        check_targets(to, [card], rehearsal=True)


def test_a_release_over_a_rehearsal_is_asked_for(hub: LocalHub, client: Client, small: Project) -> None:
    to, card = Destination(client, hub.user), small.cards[0]
    put(client, to.repo_id(card), dump(release_facts(small, "v0.0.0-rehearsal.1", scale_model=True)))
    with pytest.raises(ConflictError, match="holds a rehearsal") as caught:
        check_targets(to, [card], rehearsal=False)
    assert "--over-rehearsal" in str(caught.value.hint)
    check_targets(replace(to, over_rehearsal=True), [card], rehearsal=False)
    check_targets(to, [card], rehearsal=True)


def test_a_rehearsal_elsewhere_needs_a_namespace_of_its_own() -> None:
    hub = "https://hub.example"
    assert rehearsal_owner(hub, "acme", "acme-tries") == "acme-tries"
    assert rehearsal_owner(hub, None, "acme-tries") == "acme-tries"
    assert rehearsal_owner("local", None, None) is None
    assert rehearsal_owner("local", "acme", None) == "acme"
    for owner, own in (("acme", None), (None, None), ("acme", "")):
        with pytest.raises(UsageError, match="for rehearsals alone"):
            rehearsal_owner(hub, owner, own)
    with pytest.raises(UsageError, match="both go to acme"):
        rehearsal_owner(hub, "acme", "Acme")
