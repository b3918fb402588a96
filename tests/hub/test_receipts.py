"""What is kept of a release, and what a person is told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubpub.errors import HubpubError
from hubpub.hub.receipts import (
    FileReceipt,
    NoChanges,
    Outcome,
    Planned,
    Published,
    PullRequest,
    Receipt,
    Staged,
    StagedFile,
    TagOnly,
    load_receipt,
    receipt_path,
)

COMMIT = "0123456789abcdef" * 2
HUB = "http://localhost:1"


def receipt(outcome: Outcome, *, changed: int = 1, **more: object) -> Receipt:
    files = tuple(FileReceipt(f"{n}.pte", 9, "0" * 64, n < changed, 5) for n in range(3))
    made = Receipt("a/b", "v1", HUB, "me", outcome, files, 1_260_000, 0, 0.5, "2026-01-01T00:00:00+00:00")
    return replace(made, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (NoChanges(COMMIT, "v1"), "v1 is published already (commit 0123456789ab), nothing sent"),
        (Published(COMMIT, "v1"), "v1 published as commit 0123456789ab, 1.3 MB sent"),
        (TagOnly(COMMIT, "v1"), "tagged commit 0123456789ab as v1, 1.3 MB sent"),
        (PullRequest(7, COMMIT), "pull request #7, 1.3 MB sent"),
        (Planned(True, True, True), "would create the repo, would change 1 files in one commit, sending 1.3 MB"),
        (Planned(False, True, True), "would change 1 files in one commit, sending 1.3 MB"),
        (Planned(False, False, True), "would only tag, sending 1.3 MB"),
    ],
)
def test_a_line_says_what_came_of_it(outcome: Outcome, said: str) -> None:
    assert receipt(outcome).summary == said


def test_a_plan_names_what_it_would_remove() -> None:
    planned = receipt(Planned(False, True, True), changed=2, retired=("old.pte", "older.pte"))
    assert planned.summary.startswith("would change 2 files and remove old.pte, older.pte in one commit, ")


def test_staging_says_how_much_was_sent() -> None:
    files = (StagedFile("a.pte", 9, "0" * 64, "staged", 9), StagedFile("b.pte", 9, "0" * 64, "main"))
    assert files[1].sent_bytes == 0
    staged = Staged("a/b", "v1", COMMIT, files, 2_340_000, 0, 0.1)
    assert staged.summary == "2 files staged for v1, 2.3 MB sent"


@pytest.mark.parametrize(
    ("outcome", "endpoint", "kept"),
    [
        (NoChanges(COMMIT, "v1"), HUB, False),
        (NoChanges("f" * 32, "v1"), HUB, True),
        (NoChanges(COMMIT, "v1"), "http://localhost:2", True),
        (TagOnly(COMMIT, "v1"), HUB, True),
    ],
    ids=["nothing new", "another commit", "another Hub", "not the same outcome"],
)
def test_a_run_that_found_everything_done_leaves_the_receipt_of_the_one_that_did_it(
    outcome: Outcome, endpoint: str, kept: bool, tmp_path: Path
) -> None:
    first = receipt(Published(COMMIT, "v1")).kept(tmp_path)
    assert load_receipt(tmp_path, "v1", "a/b") == first and not first.notes
    later = receipt(outcome, endpoint=endpoint, notes=("later",)).kept(tmp_path)
    assert load_receipt(tmp_path, "v1", "a/b") == (later if kept else first)


def test_a_damaged_receipt_is_named_and_written_anew(tmp_path: Path) -> None:
    assert load_receipt(tmp_path, "v1", "a/b") is None
    path = receipt_path(tmp_path, "v1", "a/b")
    assert path == tmp_path / "releases/v1/a--b.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(HubpubError, match=r"a--b\.json is damaged") as caught:
        load_receipt(tmp_path, "v1", "a/b")
    assert "delete it" in str(caught.value.hint)
    again = receipt(NoChanges(COMMIT, "v1")).kept(tmp_path)
    assert load_receipt(tmp_path, "v1", "a/b") == again
