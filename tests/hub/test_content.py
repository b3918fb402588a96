"""What a release is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hubpub.errors import ConfigError
from hubpub.files import HashCache
from hubpub.hub.content import LocalFile, RepoRelease


def test_a_release_checks_what_it_is_made_of() -> None:
    file = LocalFile.text("README.md", "x")
    for repo, version in (("a", "v1"), ("a/b", "v 1")):
        with pytest.raises(ConfigError):
            RepoRelease(repo, version, (file,), "m")
    with pytest.raises(ConfigError, match="both as a file and as a merge"):
        RepoRelease("a/b", "v1", (file,), "m", card_merge=lambda card: card or "")
    for other in ("../README.md", ".gitattributes", "readme.md"):
        with pytest.raises(ConfigError):
            RepoRelease("a/b", "v1", (file, LocalFile.text(other, "x")), "m")
    assert LocalFile("a.bin", None, 256 << 10, "0" * 64).large and LocalFile("a.pte", None, 1, "0" * 64).large
    assert not LocalFile("a.bin", None, (256 << 10) - 1, "0" * 64).large


SHA = "0" * 64


@pytest.mark.parametrize(("digest", "size"), [("0" * 63, 1), ("0" * 65, 1), ("g" + "0" * 63, 1), (SHA, -1)])
def test_a_file_has_a_hash_and_a_size(digest: str, size: int) -> None:
    with pytest.raises(ConfigError, match=r"x\.bin has no valid SHA-256 and size"):
        RepoRelease("a/b", "v1", (LocalFile("x.bin", None, size, digest),), "m")
    assert RepoRelease("a/b", "v1", (LocalFile("x.bin", None, 0, SHA),), "m").files[0].bytes == 0


@pytest.mark.parametrize("name", ["LICENSE", "license.txt", "LICENCE.md", "Notice", "COPYING"])
def test_terms_of_use_are_known_by_their_name(name: str) -> None:
    assert LocalFile.text(name, "x").terms and not LocalFile.text("a.pte", "x").terms
    assert not LocalFile.text(f"my-{name}", "x").terms


def test_the_card_comes_from_what_is_published_and_sums_of_all_else(tmp_path: Path) -> None:
    program = tmp_path / "x.pte"
    program.write_bytes(b"abc")
    files = (LocalFile.of("x.pte", program, HashCache(tmp_path / "hashes")), LocalFile.text("a.txt", b"a"))
    assert (files[0].bytes, files[0].source) == (3, program) and files[0].program and not files[1].program
    assert files[0].sha256 == hashlib.sha256(b"abc").hexdigest()
    release = RepoRelease("a/b", "v1", files, "m", card_merge=lambda card: f"{card} and more")
    whole = release.complete("before")
    assert [file.path_in_repo for file in whole] == ["README.md", "SHA256SUMS", "a.txt", "x.pte"]
    assert whole[0].source == b"before and more" and whole[1] == release.sums
    assert (release.sums.source or b"") == "".join(
        f"{file.sha256}  {file.path_in_repo}\n" for file in sorted(files, key=lambda f: f.path_in_repo)
    ).encode()
    # SHA256SUMS never covers the card, and one that is given is taken.
    carded = RepoRelease("a/b", "v1", (*files, LocalFile.text("README.md", "c")), "m")
    assert carded.sums == release.sums and [f.path_in_repo for f in carded.complete(None)].count("README.md") == 1
    given = LocalFile.text("SHA256SUMS", "mine")
    assert RepoRelease("a/b", "v1", (*files, given), "m").complete(None).count(given) == 1
    # What is shown of a release is what it is made of, and not its content.
    assert "mine" not in repr(given) and "function" not in repr(release)
