"""What verify complains about, and what it leaves to the owner of a repo."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubpub.hub.client import Client
from hubpub.hub.maintenance import _withdrawn, verify
from hubpub.hub.publish import publish_all

from .conftest import Maker
from .test_publish import by_hand


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
    assert any("SHA256SUMS" in one for one in found) and "a.pte is not in SHA256SUMS: nothing says what it is" in found


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
