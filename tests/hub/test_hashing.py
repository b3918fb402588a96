"""Ids of content."""

from __future__ import annotations

import pytest

from hubpub.hub.hashing import git_blob_id, parse_sha256sums, sha256sums


def test_git_blob_id_is_gits() -> None:
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_sums_go_round_and_are_sorted() -> None:
    one, two = "1" * 64, "2" * 64
    text = sha256sums([("b", two), ("a", one)])
    assert text == f"{one}  a\n{two}  b\n".encode()
    assert parse_sha256sums(text.decode()) == {"a": one, "b": two}
    with pytest.raises(ValueError, match="line 2"):
        parse_sha256sums(f"{one}  a\nnonsense\n")
    for line in (f"{one[1:]}  a", f"{one[1:]}G  a", f"{one[1:]}A  a", f"{one}  ", f"{one} a", f"{one}1  a", "  a"):
        with pytest.raises(ValueError, match="line 1 is not"):
            parse_sha256sums(line)
    assert parse_sha256sums("") == {}
