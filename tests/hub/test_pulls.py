"""Pull requests that were closed, merged or are far from the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.errors import ConfigError, ConflictError, HubError
from hubpub.hub.client import Add, Client
from hubpub.hub.content import LocalFile
from hubpub.hub.publish import publish_all
from hubpub.hub.pulls import promote_pull
from hubpub.hub.receipts import NoChanges, Planned, Published, PullRequest, TagOnly, load_receipt
from hubpub.localhub import Fault, LocalHub

from .conftest import Maker, both, sent_to
from .test_publish import by_hand, history, refs_of


def close(hub: LocalHub, repo: str, number: int) -> None:
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url, token=hub.token).change_discussion_status(repo, number, "closed")


def others(client: Client, repo: str, many: int) -> None:
    """Pull requests of other people."""
    head = refs_of(client, repo)[0]["main"]
    for number in range(many):
        file = LocalFile.text(f"note-{number}.md", f"{number}\n")
        add = Add(file.path_in_repo, f"{number}\n".encode(), file.bytes, file.sha256)
        client.commit(repo, "main", [add], title="A note", parent=head, find_committed=lambda: None, pull=True)


def test_a_closed_request_is_not_the_release(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (first,) = publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    assert isinstance(first.outcome, PullRequest)
    close(hub, make.repo, first.outcome.number)
    assert [(pull.open, pull.merged) for pull in client.pulls(make.repo)] == [(False, False)]
    assert promote_pull(client, make.repo, "v2", work, dry_run=True) is None
    (second,) = publish_all(client, [make("v2")], work, create_pr=True)
    assert isinstance(second.outcome, PullRequest) and second.outcome.number == first.outcome.number + 1
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and isinstance(receipt.outcome, Published)
    assert [(pull.number, pull.status) for pull in client.pulls(make.repo)] == [(2, "merged"), (1, "closed")]


def test_the_request_is_found_behind_any_number_of_others(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (first,) = publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    others(client, make.repo, 60)
    assert len(client.pulls(make.repo)) == 61
    (again,) = publish_all(client, [make("v2")], work, create_pr=True)
    assert again.outcome == first.outcome
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and isinstance(receipt.outcome, Published) and "v2" in refs_of(client, make.repo)[1]


def test_a_request_with_other_files_is_another_one(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    (first,) = publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    (second,) = publish_all(client, [make("v2", seed=3)], work, create_pr=True)
    (third,) = publish_all(client, [make("v3")], work, create_pr=True)
    numbers = [getattr(one.outcome, "number", None) for one in (first, second, third)]
    assert numbers == [1, 2, 3] and history(client, make.repo) == ["Release v1.0.0"]


def test_a_version_that_is_out_with_other_content(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    client.create_tag(make.repo, "v2", refs_of(client, make.repo)[0]["main"])
    with sent_to(hub) as sent, pytest.raises(ConflictError, match=r"v2 exists.*with other content"):
        promote_pull(client, make.repo, "v2", work)
    assert not any("/merge" in entry.path for entry in sent.entries)


def test_a_request_merged_by_hand_is_tagged_whatever_came_after_it(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    client.merge(make.repo, 1, is_merged=lambda: False)
    merge = refs_of(client, make.repo)[0]["main"]
    by_hand(client, make.repo, "config.json", b'{"since": 1}')
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and receipt.outcome == TagOnly(merge, "v2")


def test_an_older_request_is_not_merged_over_a_newer_release(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v1.0.1", seed=2)], work, create_pr=True)
    publish_all(client, [make("v1.1.0", seed=3)], work)
    for dry_run in (True, False):
        with pytest.raises(ConflictError, match=r"back to the older v1\.0\.1"):
            promote_pull(client, make.repo, "v1.0.1", work, dry_run=dry_run)
    assert history(client, make.repo)[-1] == "Release v1.1.0"


def test_a_request_that_holds_no_release_is_refused(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    head = refs_of(client, make.repo)[0]["main"]
    broken = LocalFile.text("SHA256SUMS", "nothing\n")
    add = Add(broken.path_in_repo, b"nothing\n", broken.bytes, broken.sha256)
    client.commit(make.repo, "main", [add], title="Release v9", message="Hubpub-Release: v9", parent=head,
                  find_committed=lambda: None, pull=True)  # fmt: skip
    with pytest.raises(HubError, match="line 1 is not"):
        promote_pull(client, make.repo, "v9", work)
    assert promote_pull(client, make.repo, "v10", work) is None
    assert promote_pull(client, make.repo + "-not", "v9", work) is None


def test_what_came_of_a_request_is_on_record(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    with pytest.raises(ConfigError, match="cannot be a tag"):
        promote_pull(client, make.repo, "../v2", work)
    planned = promote_pull(client, make.repo, "v2", work, dry_run=True)
    assert planned and planned.outcome == Planned(False, True, True) and all(file.changed for file in planned.files)
    kept = load_receipt(work, "v2", make.repo)
    assert kept and kept.outcome.kind == "pull-request"
    # What had to be asked again before is not of this receipt.
    hub.arm(Fault(path="/refs", status=503))
    client.refs(make.repo)
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and load_receipt(work, "v2", make.repo) == receipt and all(file.changed for file in receipt.files)
    assert receipt.bytes_sent == 0 and {file.sent_bytes for file in receipt.files} == {0} and receipt.retries == 0
    assert "SHA256SUMS" in {file.path for file in receipt.files} and 0 <= receipt.seconds < 60
    publish_all(client, [make("v3", seed=3)], work, create_pr=True)
    client.merge(make.repo, 2, is_merged=lambda: False)
    planned = promote_pull(client, make.repo, "v3", work, dry_run=True)
    assert planned and planned.outcome == Planned(False, False, True)
    assert not any(file.changed for file in planned.files)


def test_a_request_that_lists_what_it_does_not_hold(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    head, text = refs_of(client, make.repo)[0]["main"], f"{'1' * 64}  absent.pte\n"
    file = LocalFile.text("SHA256SUMS", text)
    add = Add(file.path_in_repo, text.encode(), file.bytes, file.sha256)
    client.commit(make.repo, "main", [add], title="Release v9", message="Hubpub-Release: v9", parent=head,
                  find_committed=lambda: None, pull=True)  # fmt: skip
    with pytest.raises(HubError, match=r"is no release: absent\.pte is missing"):
        promote_pull(client, make.repo, "v9", work)


@both
def test_a_pull_request_is_merged_tagged_and_checked(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    by_hand(client, make.repo, "notes.md", b"not ours")
    with sent_to(hub) as sent:
        planned = promote_pull(client, make.repo, "v2", work, dry_run=True)
        assert planned and planned.outcome.kind == "planned"
        assert history(client, make.repo) == ["Release v1.0.0", "By hand"]
        receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and isinstance(receipt.outcome, Published) and sent.content == 0
    branches, tags = refs_of(client, make.repo)
    assert tags["v2"] == branches["main"] == receipt.outcome.commit
    for path in make.folder.iterdir():
        assert client.read(make.repo, "v2", path.name) == path.read_bytes()
    assert client.read(make.repo, "v2", "notes.md") == b"not ours"
    again = promote_pull(client, make.repo, "v2", work)
    assert again and isinstance(again.outcome, NoChanges)
    assert promote_pull(client, make.repo, "v3", work) is None


def test_a_pull_request_merged_by_hand_is_only_tagged(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    client.merge(make.repo, 1, is_merged=lambda: False)
    merge = refs_of(client, make.repo)[0]["main"]
    by_hand(client, make.repo, "notes.md", b"later")
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and receipt.outcome == TagOnly(merge, "v2")


def test_the_answer_to_a_merge_is_lost(hub: LocalHub, client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    hub.arm(Fault(path="/merge", cut="before-response"))
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and refs_of(client, make.repo)[1]["v2"] == refs_of(client, make.repo)[0]["main"]
    assert len(history(client, make.repo)) == 2


def test_a_merge_that_main_does_not_show_is_no_release(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    # The Hub says that it merged the request, and main stays as it was.
    monkeypatch.setattr(HfApi, "merge_pull_request", lambda *given, **named: None)
    with pytest.raises(HubError, match="main does not hold v2 although pull request #1 was merged"):
        promote_pull(client, make.repo, "v2", work)
    assert set(refs_of(client, make.repo)[1]) == {"v1.0.0"}


def test_a_request_that_the_hub_cannot_merge_is_left_to_a_person(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    hub.arm(Fault(method="POST", path="/merge", status=409, times=9))
    with pytest.raises(ConflictError) as caught:
        promote_pull(client, make.repo, "v2", work)
    hub.disarm()
    assert caught.value.hint == "resolve or close it on the Hub, then run again"
    assert set(refs_of(client, make.repo)[1]) == {"v1.0.0"}


def test_a_pull_request_does_not_overwrite_others(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    by_hand(client, make.repo, "facts.json", b"{}", "Theirs")
    with pytest.raises(ConflictError, match="'Theirs' by"):
        promote_pull(client, make.repo, "v2", work)
    assert history(client, make.repo)[-1] == "Theirs" and "v2" not in refs_of(client, make.repo)[1]


def test_a_request_that_somebody_added_to_is_merged_with_what_they_added(
    client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    publish_all(client, [make("v2", seed=2)], work, create_pr=True)
    file = LocalFile.text("notes.md", "theirs")
    add = Add(file.path_in_repo, b"theirs", file.bytes, file.sha256)
    client.commit(make.repo, "refs/pr/1", [add], title="A note", parent=None, find_committed=lambda: None)
    receipt = promote_pull(client, make.repo, "v2", work)
    assert receipt and isinstance(receipt.outcome, Published)
    assert client.read(make.repo, "v2", "notes.md") == b"theirs"
