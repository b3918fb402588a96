"""What is published, whether it is intact, and how a bad version is withdrawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from release.conftest import facts_of, write_card

from hubpub.errors import ConfigError, ConflictError, HubError
from hubpub.facts import CardFacts, FileFact, dump
from hubpub.hub.client import Client, Delete, HeadMoved
from hubpub.hub.maintenance import (
    CheckedFile,
    StagedVersion,
    _amended,
    _disagreements,
    _withdrawn,
    amend_card,
    status,
    verify,
    yank,
)
from hubpub.hub.publish import publish_all
from hubpub.hub.receipts import Outcome, Published, PullRequest, Receipt
from hubpub.hub.staging import stage
from hubpub.localhub import Fault, LocalHub

from .conftest import CARD, Maker
from .test_publish import by_hand, history, refs_of


def complaints(client: Client, repo: str, revision: str = "main") -> tuple[str, ...]:
    """Without those about facts.json, which these releases do not have."""
    return tuple(one for one in verify(client, repo, revision).problems if not one.startswith("facts.json"))


def test_files_that_nobody_vouches_for(client: Client, make: Maker, work: Path) -> None:
    publish_all(client, [make(seed=0, **{"extra.json": "{}"})], work)
    publish_all(client, [make("v2")], work)
    for name in ("images/photo.png", "docs/notes.md", "examples/app.py", ".gitignore"):
        by_hand(client, make.repo, name, b"\0\1\2")
    assert complaints(client, make.repo) == complaints(client, make.repo, "v2") == ()
    by_hand(client, make.repo, "extra.json", b"{}")
    assert complaints(client, make.repo) == ("extra.json is not in SHA256SUMS: it is a leftover of v1.0.0",)
    by_hand(client, make.repo, "old/other.pte", b"\0" * 10)
    assert complaints(client, make.repo)[1:] == ("old/other.pte is not in SHA256SUMS: nothing says what it is",)
    assert complaints(client, make.repo, "v1.0.0") == complaints(client, make.repo, "v2") == ()


@pytest.mark.parametrize("content", [b"no sums\n", None])
def test_a_release_without_sums(content: bytes | None, client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    by_hand(client, make.repo, "a.pte", b"a")
    if content:
        by_hand(client, make.repo, "SHA256SUMS", content)
    found = complaints(client, make.repo)
    said = "SHA256SUMS: line 1 is not 'sha256  path'" if content else "SHA256SUMS is missing"
    assert said in found and "a.pte is not in SHA256SUMS: nothing says what it is" in found


def promise(root: Path, files: dict[str, bytes], *, bytes_more: int = 0) -> str:
    """facts.json of a release of `files`, all of which are its cell's."""
    facts = [
        FileFact(name=name, bytes=len(content) + bytes_more, sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    ]
    cell = facts_of(write_card(root), "8da4w")
    of = {"sha256": facts[0].sha256}
    parity, speed = cell.parity.model_copy(update=of), cell.speed.model_copy(update=of)
    cell = cell.model_copy(update={"file": facts[0], "tokenizer": tuple(facts[1:]), "parity": parity, "speed": speed})
    return dump(CardFacts(repo="local/small-pte", version="v1.0.0", variant="small", cells=(cell,)))


FILES = {"a.pte": b"program", "tokenizer.json": b"tokens"}


def lay(client: Client, repo: str, files: dict[str, bytes], facts: str | None, sums: str | None) -> None:
    """A repo as somebody may have made it by hand."""
    client.create_repo(repo)
    given = {**files, "facts.json": facts, "SHA256SUMS": sums, "README.md": "# Card\n"}
    for name, content in given.items():
        if content is not None:
            by_hand(client, repo, name, content if isinstance(content, bytes) else content.encode())


def sums_of(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())


def test_each_file_is_held_to_the_sums_and_to_the_facts(client: Client, make: Maker, tmp_path: Path) -> None:
    facts = promise(tmp_path, FILES)
    lay(client, make.repo, FILES, facts, sums_of({**FILES, "facts.json": facts.encode()}))
    head = refs_of(client, make.repo)[0]["main"]
    found = verify(client, make.repo)
    assert found.ok and found.problems == () and (found.repo, found.revision, found.commit) == (make.repo, "main", head)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert found.files[0] == CheckedFile("a.pte", 7, digests["a.pte"], digests["a.pte"], "recorded")
    assert found.files[2] == CheckedFile(
        "tokenizer.json", 6, digests["tokenizer.json"], digests["tokenizer.json"], "downloaded"
    )
    assert [file.ok for file in found.files] == [True] * 3
    assert {file.how for file in verify(client, make.repo, download=True).files} == {"downloaded"}
    client.create_tag(make.repo, "v1.0.0", head)
    by_hand(client, make.repo, "a.pte", b"other program")
    assert verify(client, make.repo, "v1.0.0").ok and verify(client, make.repo, "v1.0.0").commit == head
    assert verify(client, make.repo, head).ok
    broken = verify(client, make.repo)
    other = hashlib.sha256(b"other program").hexdigest()
    assert not broken.ok and not broken.files[0].ok and broken.problems == (
        "a.pte: 13 bytes, facts.json says 7", f"a.pte: sha256 {other[:12]} instead of {digests['a.pte'][:12]}",
    )  # fmt: skip


def test_facts_and_sums_that_promise_different_things(client: Client, make: Maker, tmp_path: Path) -> None:
    facts = promise(tmp_path, {**FILES, "a.pte": b"PROGRAM"}, bytes_more=1)
    lay(client, make.repo, FILES, facts, sums_of({**FILES, "facts.json": facts.encode()}))
    assert verify(client, make.repo).problems == (
        "a.pte: SHA256SUMS and facts.json promise different content",
        "a.pte: 7 bytes, facts.json says 8",
        "tokenizer.json: 6 bytes, facts.json says 7",
    )


def test_what_is_not_there_is_named_and_all_else_is_looked_at(client: Client, make: Maker, tmp_path: Path) -> None:
    lay(
        client,
        make.repo,
        {"z.pte": b"z"},
        None,
        sums_of({"b.bin": b"", "a.pte": b"", "z.pte": b"y"}) + f"{'0' * 64}  ../c\n",
    )
    client.commit(make.repo, "main", [Delete("README.md")], title="No card", parent=None, find_committed=lambda: None)
    found = verify(client, make.repo)
    assert [file.how for file in found.files] == ["missing", "missing", "recorded"]
    assert found.files[0] == CheckedFile("a.pte", None, hashlib.sha256(b"").hexdigest(), None, "missing")
    assert found.problems[:5] == (
        "facts.json is missing",
        "SHA256SUMS: file name '../c' cannot be published",
        "README.md is missing",
        "a.pte is missing",
        "b.bin is missing",
    )
    assert found.problems[5].startswith("z.pte: sha256 ") and len(found.problems) == 6


def test_facts_alone_promise_as_well(client: Client, make: Maker, tmp_path: Path) -> None:
    lay(client, make.repo, {**FILES, "x.ptd": b"x", "y.txt": b"y"}, promise(tmp_path, FILES), None)
    assert verify(client, make.repo).problems == (
        "SHA256SUMS is missing",
        "x.ptd is not in SHA256SUMS: nothing says what it is",
    )
    by_hand(client, make.repo, "facts.json", b"{}")
    assert verify(client, make.repo).problems[1] == "facts.json: Field required"
    assert verify(client, make.repo).files == ()


def test_a_repo_that_nobody_sees(client: Client, make: Maker) -> None:
    with pytest.raises(HubError, match=f"{make.repo} does not exist on {client.endpoint}") as caught:
        verify(client, make.repo)
    assert "the token may see it" in str(caught.value.hint)
    with pytest.raises(HubError, match=f"{make.repo} does not exist"):
        amend_card(client, make.repo, lambda card: card or "", "Amend")
    with pytest.raises(ConfigError):
        status(client, ["no-owner"])


def receipt(outcome: Outcome, version: str = "v1", endpoint: str = "https://hub", finished: str = "2026") -> Receipt:
    return Receipt("local/model", version, endpoint, "local", outcome, (), 0, 0, 0.0, finished)


PUBLISHED, REQUEST = Published("a" * 40, "v1"), PullRequest(3, "b" * 40)


@pytest.mark.parametrize(
    ("published", "tags", "staged", "receipts", "notes"),
    [
        (None, {}, [], [], ()),
        ("v1", {"v1": "a" * 40}, [], [receipt(PUBLISHED)], ()),
        ("v1", {}, [], [], ("v1 is on main without its tag: run that release again",)),
        (None, {}, ["v1"], [], ("v1 is staged and not published: 'hubpub promote' publishes it",)),
        (
            "v1", {"v1": "a" * 40}, ["v1"], [],
            ("v1 is published and still staged: 'hubpub unstage' drops the rest",),
        ),
        (None, {}, [], [receipt(REQUEST)], ("v1 waits in pull request #3",)),
        (None, {"v1": "c" * 40}, [], [receipt(REQUEST)], ()),
        (None, {}, [], [receipt(PUBLISHED)], ("v1 was released from here, and its tag is gone",)),
        (
            "v1", {"v1": "c" * 40}, [], [receipt(PUBLISHED)],
            (f"v1 was released from here as {'a' * 12}, and its tag is elsewhere",),
        ),
        (
            "v2", {"v1": "a" * 40, "v2": "d" * 40}, [], [receipt(PUBLISHED)],
            ("the last release from here is v1, main holds v2",),
        ),
        ("v2", {"v1": "a" * 40, "v2": "d" * 40}, [], [], ()),
        (
            "v2", {"v2": "d" * 40}, [], [receipt(PUBLISHED)],
            ("v1 was released from here, and its tag is gone",),
        ),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_noted(
    published: str | None, tags: dict[str, str], staged: list[str], receipts: list[Receipt], notes: tuple[str, ...]
) -> None:
    waiting = [StagedVersion(version, ()) for version in staged]
    assert _disagreements(published, tags, waiting, receipts) == notes


def test_what_a_hub_holds_and_what_was_released_from_here(client: Client, make: Maker, work: Path) -> None:
    other = make.repo + "-other"
    (absent,) = status(client, [other], work)
    assert (absent.repo, absent.exists, absent.head, absent.published) == (other, False, None, None)
    assert (absent.tags, absent.staged, absent.receipts, absent.notes) == ((), (), (), ())
    publish_all(client, [make()], work)
    (second,) = publish_all(client, [make("v1.1.0", seed=1)], work)
    stage(client, make("v1.2.0", seed=2), work)
    (found,) = status(client, [make.repo], work)
    branches, tags = refs_of(client, make.repo)
    assert (found.repo, found.exists, found.head, found.published) == (make.repo, True, branches["main"], "v1.1.0")
    assert found.tags == (("v1.0.0", tags["v1.0.0"]), ("v1.1.0", tags["v1.1.0"]))
    assert found.staged == (StagedVersion("v1.2.0", ("model-8da4w.pte", "model-int8.pte", "tokenizer.json")),)
    assert [one.version for one in found.receipts] == ["v1.0.0", "v1.1.0"] and found.receipts[1] == second
    assert found.notes == ("v1.2.0 is staged and not published: 'hubpub promote' publishes it",)
    # The order is that of time, and another Hub's receipts are not of this one; a local one's port is by chance.
    replace(second, version="v0.9.0", finished="2099", endpoint="http://localhost:1").save(work)
    replace(second, version="v0.8.0", finished="2098", endpoint="https://huggingface.co").save(work)
    (found,) = status(client, [make.repo], work)
    assert [one.version for one in found.receipts] == ["v1.0.0", "v1.1.0", "v0.9.0"]
    (found,) = status(client, [make.repo])
    assert found.receipts == ()
    by_hand(client, make.repo, "facts.json", b"[]")
    assert status(client, [make.repo])[0].published is None
    # The repo of an older release is gone.
    replace(second, repo_id=other).save(work)
    (absent,) = status(client, [other], work)
    assert absent.notes == ("released from here as v1.1.0, and not on the Hub",) and len(absent.receipts) == 1


def test_a_card_is_merged_again_when_somebody_writes_meanwhile(
    client: Client, make: Maker, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all(client, [make()], work)
    commit, tries, seen = Client.commit, [0], list[str | None]()

    def merge(card: str | None) -> str:
        seen.append(card)
        return (card or "") + "mine\n"

    def late(times: int) -> Callable[..., object]:
        def late_commit(self: Client, *args: object, **kwargs: object) -> object:
            tries[0] += 1
            if tries[0] <= times:
                with monkeypatch.context() as patch:
                    patch.setattr(Client, "commit", commit)
                    by_hand(client, make.repo, "README.md", f"theirs {tries[0]}\n".encode())
            return commit(self, *args, **kwargs)  # type: ignore[arg-type]

        return late_commit

    with monkeypatch.context() as patch:
        patch.setattr(Client, "commit", late(2))
        made = amend_card(client, make.repo, merge, "Amend the card\nBecause.")
    assert seen[1:] == ["theirs 1\n", "theirs 2\n"] and refs_of(client, make.repo)[0]["main"] == made
    assert client.read(make.repo, "main", "README.md") == b"theirs 2\nmine\n"
    newest = client.commits(make.repo, "main")[0]
    assert (newest.title, newest.message.strip()) == ("Amend the card", "Because.")
    assert amend_card(client, make.repo, lambda card: card or "", "Nothing") is None
    tries[0] = 0
    with monkeypatch.context() as patch:
        patch.setattr(Client, "commit", late(99))
        with pytest.raises(HeadMoved):
            amend_card(client, make.repo, merge, "Amend")
    assert tries[0] == 3 and client.read(make.repo, "main", "README.md") == b"theirs 3\n"


def test_an_amended_card_whose_answer_is_lost_is_one_commit(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    before = history(client, make.repo)
    hub.arm(Fault(method="POST", path="/commit/main", cut="before-response"))
    made = amend_card(client, make.repo, lambda card: f"{card}more\n", "Amend the card")
    assert history(client, make.repo) == [*before, "Amend the card"] and made == refs_of(client, make.repo)[0]["main"]
    assert client.read(make.repo, "main", "README.md") == CARD.encode() + b"more\n"


def test_a_card_that_was_amended_before_is_not_this_commit(
    hub: LocalHub, client: Client, make: Maker, work: Path
) -> None:
    """The same title and text lie in the history; and somebody else's commit of that title on top, with other text."""
    publish_all(client, [make()], work)
    text = CARD + "more\n"
    amend_card(client, make.repo, lambda _: text, "Amend the card")
    by_hand(client, make.repo, "README.md", CARD.encode(), "Back")
    hub.arm(Fault(method="POST", path="/commit/main", status=503))
    again = amend_card(client, make.repo, lambda _: text, "Amend the card")
    assert history(client, make.repo)[1:] == ["Amend the card", "Back", "Amend the card"]
    assert again == refs_of(client, make.repo)[0]["main"]


@pytest.mark.parametrize(
    ("title", "card"), [("Amend the card", "theirs\n"), ("Theirs", "mine\n"), ("Theirs", "theirs\n")]
)
def test_what_somebody_commits_while_an_answer_is_awaited_is_not_taken_for_ours(
    title: str, card: str, client: Client, make: Maker, work: Path
) -> None:
    publish_all(client, [make()], work)
    head = refs_of(client, make.repo)[0]["main"]
    assert _amended(client, make.repo, head, "Amend the card", b"mine\n") is None
    by_hand(client, make.repo, "README.md", card.encode(), title)
    assert _amended(client, make.repo, head, "Amend the card", b"mine\n") is None
    ours = by_hand(client, make.repo, "README.md", b"mine\n\n", "Amend the card")
    found = _amended(client, make.repo, head, "Amend the card", b"mine\n\n")
    assert found and found.commit == ours
    # What was there before, and a commit that is not in the history: neither is on top of it.
    assert _amended(client, make.repo, ours, "Amend the card", b"mine\n\n") is None
    assert _amended(client, make.repo, "0" * 40, "Amend the card", b"mine\n\n") is None


def test_a_repo_without_a_card_gets_one_and_one_that_is_no_text_stays(
    client: Client, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_repo(make.repo)
    given = list[str | None]()
    assert amend_card(client, make.repo, lambda card: given.append(card) or "new\n", "Write a card")  # type: ignore[func-returns-value]
    assert given == [None] and client.read(make.repo, "main", "README.md") == b"new\n"
    # The library would not send such a card; the Hub of somebody who uses git holds it.
    read = Client.read
    monkeypatch.setattr(
        Client, "read", lambda self, repo, at, path: b"\xff" if path == "README.md" else read(self, repo, at, path)
    )
    with pytest.raises(ConflictError, match=r"README\.md is not UTF-8 text"):
        amend_card(client, make.repo, lambda card: card or "", "Amend")


def test_a_version_is_withdrawn_for_a_reason(client: Client, make: Maker, work: Path) -> None:
    with pytest.raises(HubError, match=r"has no version v1\.0\.0") as caught:
        yank(client, make.repo, "v1.0.0", "x")
    assert "check its name" in str(caught.value.hint)
    publish_all(client, [make()], work)
    publish_all(client, [make("v1.1.0", card="two")], work)
    with pytest.raises(HubError, match="has no version v9") as caught:
        yank(client, make.repo, "v9", "x")
    assert caught.value.hint == "versions: v1.0.0, v1.1.0"
    before = history(client, make.repo)
    for reason in ("", " \n", "a --> b", "<!-- c"):
        with pytest.raises(ConfigError, match="for a reason"):
            yank(client, make.repo, "v1.0.0", reason)
    for tag, successor in (("v1/..", None), ("v1.0.0", "no-owner")):
        with pytest.raises(ConfigError):
            yank(client, make.repo, tag, "x", new_version=successor)
    with pytest.raises(ConfigError):
        yank(client, "no-owner", "v1.0.0", "x")
    assert history(client, make.repo) == before
    assert yank(client, make.repo, "v1.0.0", "Two\n  lines.") == refs_of(client, make.repo)[0]["main"]
    assert history(client, make.repo) == [*before, "Withdraw v1.0.0"]
    client.commit(make.repo, "main", [Delete("README.md")], title="No card", parent=None, find_committed=lambda: None)
    assert yank(client, make.repo, "v1.0.0", "Two\n  lines.")
    assert (client.read(make.repo, "main", "README.md") or b"").startswith(b"<!-- hubpub:withdrawn v1.0.0 -->")
    assert b"> **v1.0.0 was withdrawn:** Two lines.\n" in (client.read(make.repo, "main", "README.md") or b"")


@pytest.mark.parametrize(
    ("card", "successor", "text"),
    [
        ("", None, "{}"),
        ("# T\n", None, "{}# T\n"),
        ("---\na: b\n---\n# T\n", None, "---\na: b\n---\n\n{}# T\n"),
        ("---\r\na: b\r\n---\r\n# T\n", None, "---\r\na: b\r\n---\r\n\n{}# T\n"),
        ("---\na: b\n---", "c/d", "---\na: b\nnew_version: c/d\n---\n\n{}"),
        ("# T\n", "c/d", "---\nnew_version: c/d\n---\n\n{}# T\n"),
        ("---\na: b\n---\n# T\n---\n", "c/d", "---\na: b\nnew_version: c/d\n---\n\n{}# T\n---\n"),
        (
            "---\nnew_version: x/y\na: b\n---\nnew_version: z\n", "c/d",
            "---\nnew_version: c/d\na: b\n---\n\n{}new_version: z\n",
        ),
    ],
)  # fmt: skip
def test_the_notice_stands_above_the_text(card: str, successor: str | None, text: str) -> None:
    notice = (
        "<!-- hubpub:withdrawn v1.0 -->\n> [!WARNING]\n> **v1.0 was withdrawn:** scales\n"
        "<!-- /hubpub:withdrawn v1.0 -->\n"
    )
    once = _withdrawn(card, "v1.0", "scales", successor)
    assert once == text.format(notice) and _withdrawn(once, "v1.0", "scales", successor) == once
    # Another reason takes the place of the first, over as many lines as it has; another version's stays.
    assert _withdrawn(once, "v1.0", "other", successor).count("scales") == 0
    assert _withdrawn(once, "v1x0", "other", successor).count("scales") == 1


@pytest.mark.parametrize(
    "card", ["---\nlicense: x\n---\n# T\n", "---\nnew_version: a/b\n---\n# T\n", "# T\n", "", "---\nbroken\n# T\n"]
)
@pytest.mark.parametrize("successor", [None, "c/d"])
def test_withdrawing_twice_says_it_once(card: str, successor: str | None) -> None:
    once = _withdrawn(card, "v1", "wrong scale", successor)
    assert once.count("wrong scale") == 1
    assert _withdrawn(once, "v1", "wrong scale", successor) == once
    assert (successor is None) or once.count("new_version: c/d") == 1
    both = _withdrawn(once, "v2", "also", successor)
    assert "wrong scale" in both and "also" in both
