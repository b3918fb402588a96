"""What a release is made of."""

from __future__ import annotations

import pytest

from hubpub.errors import ConfigError
from hubpub.hub.content import LocalFile, RepoRelease


def test_a_release_checks_what_it_is_made_of() -> None:
    file = LocalFile.text("README.md", "x")
    for repo, version in (("a", "v1"), ("a/b", "v 1")):
        with pytest.raises(ConfigError):
            RepoRelease(repo, version, (file,), "m")
    with pytest.raises(ConfigError, match="both as a file and as a merge"):
        RepoRelease("a/b", "v1", (file,), "m", card_merge=lambda card: card or "")
    assert LocalFile("a.bin", None, 256 << 10, "0" * 64).large and LocalFile("a.pte", None, 1, "0" * 64).large
    assert not LocalFile("a.bin", None, (256 << 10) - 1, "0" * 64).large
