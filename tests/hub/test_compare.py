"""Equal files by recorded hashes, and what is said of those that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubpub.errors import ConflictError
from hubpub.hub.client import Client
from hubpub.hub.compare import few, is_same, listed_at, refuse_foreign, refuse_unless_same
from hubpub.hub.publish import publish_all

from .conftest import Maker
from .test_publish import by_hand, refs_of


def test_a_file_is_the_same_by_whatever_is_recorded_of_it(client: Client, make: Maker, work: Path) -> None:
    release = make()
    publish_all(client, [release], work)
    held = client.tree(make.repo, "v1.0.0")
    for file in release.files:
        away, other = replace(file, source=None), replace(file, sha256="0" * 64)
        assert is_same(client, make.repo, "v1.0.0", file, held[file.path_in_repo]) is True
        assert is_same(client, make.repo, "v1.0.0", away, held[file.path_in_repo]) is True
        assert is_same(client, make.repo, "v1.0.0", replace(other, source=None), held[file.path_in_repo]) is False
        assert is_same(client, make.repo, "v1.0.0", file, None) is False
        longer = replace(held[file.path_in_repo], bytes=file.bytes + 1)
        assert is_same(client, make.repo, "v1.0.0", file, longer) is False
    small = next(file for file in release.files if file.path_in_repo == "LICENSE")
    assert is_same(client, make.repo, "v1.0.0", replace(small, source=b"terms\n"), held["LICENSE"]) is False
    assert refuse_unless_same(client, release, "v1.0.0", release.files) == release.files
    assert {file.path_in_repo for file in refuse_unless_same(client, release, "v1.0.0")} == held.keys() - {
        ".gitattributes"
    }


def test_others_are_named_and_their_commits_up_to_five(client: Client, make: Maker, work: Path) -> None:
    release = make()
    publish_all(client, [release], work)
    base = refs_of(client, make.repo)[0]["main"]
    notes = by_hand(client, make.repo, "notes.md", b"not ours")
    # What differs between the two releases was changed by nobody meanwhile.
    refuse_foreign(client, make("v2", seed=2), base, notes)
    with pytest.raises(ConflictError, match=r"v2 exists .* content: SHA256SUMS, facts\.json, model-8da4w"):
        refuse_unless_same(client, make("v2"), notes)
    for number in range(6):
        by_hand(client, make.repo, "config.json", b"%d" % number, f"Change {number}")
    with pytest.raises(ConflictError, match=r"in config\.json: ") as caught:
        refuse_foreign(client, release, base, refs_of(client, make.repo)[0]["main"])
    assert "'Change 5' by" in caught.value.message and "'Change 1'" in caught.value.message
    assert "'Change 0'" not in caught.value.message
    by_hand(client, make.repo, "config.json", b"{}\n", "As it was")
    by_hand(client, make.repo, "README.md", b"---\nlicense: mit\n---\n# Theirs\n", "A card")
    refuse_foreign(client, release, base, refs_of(client, make.repo)[0]["main"])


def test_five_names_are_enough() -> None:
    assert few(["a"]) == "a" and few(list("abcde")) == "a, b, c, d, e"
    assert few(list("abcdef")) == "a, b, c, d, e and 1 more" and few(list("abcdefg")).endswith("e and 2 more")


def test_sums_that_cannot_be_read_list_nothing(client: Client, make: Maker, work: Path) -> None:
    client.create_repo(make.repo)
    assert listed_at(client, make.repo, "main") == {}
    by_hand(client, make.repo, "SHA256SUMS", b"nonsense\n")
    assert listed_at(client, make.repo, "main") == {}
    by_hand(client, make.repo, "SHA256SUMS", b"%s  a.pte\n" % (b"1" * 64))
    assert listed_at(client, make.repo, "main") == {"a.pte": "1" * 64}
