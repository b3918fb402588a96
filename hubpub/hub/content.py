"""What one repo is to get: the files of a release, with their hashes, and how its card is made."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hubpub.errors import ConfigError
from hubpub.files import HashCache
from hubpub.hub.hashing import sha256sums
from hubpub.hub.names import check_paths, check_repo_id, check_version

CARD, SUMS = "README.md", "SHA256SUMS"
CardMerge = Callable[[str | None], str]
"""The card to publish, given the text that is published now (None: none). Merging twice must change nothing more."""


@dataclass(frozen=True)
class LocalFile:
    """A file of a release. `source` is None where another machine staged it: then `sha256` says what must be there."""

    path_in_repo: str
    source: Path | bytes | None = field(repr=False)
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path_in_repo: str, source: Path, hashes: HashCache) -> LocalFile:
        """The file at `source`, hashed once. Raises HubpubError where it cannot be read."""
        digest = hashes.sha256(source)
        return cls(path_in_repo, source, source.stat().st_size, digest)

    @classmethod
    def text(cls, path_in_repo: str, content: str | builtins.bytes) -> LocalFile:
        """A small file that exists in memory alone."""
        data = content.encode() if isinstance(content, str) else content
        return cls(path_in_repo, data, len(data), hashlib.sha256(data).hexdigest())

    @property
    def program(self) -> bool:
        """Whether it is one of the programs that a release is about."""
        return self.path_in_repo.endswith(".pte")

    @property
    def terms(self) -> bool:
        """Whether it says under which terms the others may be used: no weights are seen anywhere without it."""
        return self.path_in_repo.partition(".")[0].lower() in {"license", "licence", "notice", "copying"}

    @property
    def large(self) -> bool:
        """Whether the file is staged ahead of the commit rather than carried by it."""
        return self.bytes >= 256 << 10 or self.program


@dataclass(frozen=True)
class RepoRelease:
    """One version of one repo. `version` is the tag.

    SHA256SUMS is written here where `files` does not bring one. With `card_merge` the card is made from the text that
    is published at that moment, so that what people wrote there stays.
    """

    repo_id: str
    version: str
    files: tuple[LocalFile, ...]
    message: str
    card_merge: CardMerge | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        check_version(self.version)
        paths = [file.path_in_repo for file in self.files]
        check_paths(paths)
        if CARD in paths and self.card_merge:
            raise ConfigError(f"{self.repo_id}: the card is given both as a file and as a merge")
        for file in self.files:
            if len(file.sha256) != 64 or set(file.sha256) - set("0123456789abcdef") or file.bytes < 0:
                raise ConfigError(f"{self.repo_id}: {file.path_in_repo} has no valid SHA-256 and size")

    @property
    def sums(self) -> LocalFile:
        """SHA256SUMS, as `files` brings it or else of all of them; it never covers the card."""
        for file in self.files:
            if file.path_in_repo == SUMS:
                return file
        listed = [(file.path_in_repo, file.sha256) for file in self.files if file.path_in_repo != CARD]
        return LocalFile.text(SUMS, sha256sums(listed))

    def complete(self, published_card: str | None) -> tuple[LocalFile, ...]:
        """Every file of the commit, given the card that is published now."""
        files = [*(file for file in self.files if file.path_in_repo != SUMS), self.sums]
        if self.card_merge:
            files.append(LocalFile.text(CARD, self.card_merge(published_card)))
        return tuple(sorted(files, key=lambda f: f.path_in_repo))
