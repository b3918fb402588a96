"""The values of publishing: what one repo is to get, and what came of it. All of them are JSON files too."""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hubpub.errors import ConfigError, HubpubError
from hubpub.files import write_atomic
from hubpub.hub.hashing import HashCache, sha256sums
from hubpub.hub.names import check_paths, check_repo_id, check_version

CARD, SUMS = "README.md", "SHA256SUMS"
CardMerge = Callable[[str | None], str]
"""The card to publish, given the text that is published now (None: none). Merging twice must change nothing more."""
Progress = Callable[[str, str, int, int], None]
"""Told (repo id, path, bytes sent so far, bytes in all) while files travel."""


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
    def large(self) -> bool:
        """Whether the file is staged ahead of the commit rather than carried by it."""
        return self.bytes >= 256 << 10 or self.path_in_repo.endswith(".pte")


@dataclass(frozen=True)
class RepoRelease:
    """One version of one repo. `version` is the tag. `retire` names files of earlier versions to remove from main.

    SHA256SUMS is written here where `files` does not bring one. With `card_merge` the card is made from the text that
    is published at that moment, so that what people wrote there stays.
    """

    repo_id: str
    version: str
    files: tuple[LocalFile, ...]
    message: str
    card_merge: CardMerge | None = field(default=None, repr=False)
    retire: tuple[str, ...] = ()
    private: bool = False

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        check_version(self.version)
        paths = [file.path_in_repo for file in self.files]
        check_paths([*paths, *self.retire])
        if CARD in paths and self.card_merge:
            raise ConfigError(f"{self.repo_id}: the card is given both as a file and as a merge")
        for file in self.files:
            if len(file.sha256) != 64 or set(file.sha256) - set("0123456789abcdef") or file.bytes < 0:
                raise ConfigError(f"{self.repo_id}: {file.path_in_repo} has no valid SHA-256 and size")

    def complete(self, published_card: str | None) -> tuple[LocalFile, ...]:
        """Every file of the commit, given the card that is published now; SHA256SUMS covers all but the card."""
        files = list(self.files)
        if self.card_merge:
            files.append(LocalFile.text(CARD, self.card_merge(published_card)))
        if not any(file.path_in_repo == SUMS for file in files):
            listed = [(f.path_in_repo, f.sha256) for f in files if f.path_in_repo != CARD]
            files.append(LocalFile.text(SUMS, sha256sums(listed)))
        return tuple(sorted(files, key=lambda f: f.path_in_repo))


@dataclass(frozen=True)
class StagedFile:
    """Where a large file is: on `main` already, on the staging branch, or still to be staged by another machine."""

    path: str
    bytes: int
    sha256: str
    where: Literal["main", "staged", "missing"]
    sent_bytes: int = 0


@dataclass(frozen=True)
class Staged:
    """What `stage` did for one repo. `base` is the commit of main that the release was compared with."""

    repo_id: str
    version: str
    base: str
    files: tuple[StagedFile, ...]
    bytes_sent: int
    retries: int
    seconds: float

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{len(self.files)} files staged for {self.version}, {self.bytes_sent / 1e6:.1f} MB sent"


@dataclass(frozen=True)
class NoChanges:
    """The tag is there and holds this very release: nothing was sent."""

    commit: str
    tag: str
    kind: Literal["no-changes"] = "no-changes"


@dataclass(frozen=True)
class Published:
    """One commit was made and tagged."""

    commit: str
    tag: str
    kind: Literal["published"] = "published"


@dataclass(frozen=True)
class TagOnly:
    """`commit` held the release already; only the tag was missing."""

    commit: str
    tag: str
    kind: Literal["tag-only"] = "tag-only"


@dataclass(frozen=True)
class PullRequest:
    """The release waits in pull request `number`; there is no tag before it is merged and promoted."""

    number: int
    commit: str
    kind: Literal["pull-request"] = "pull-request"


@dataclass(frozen=True)
class Planned:
    """A dry run: what a run would do, file by file in the receipt. Nothing was changed."""

    create_repo: bool
    commit: bool
    tag: bool
    kind: Literal["planned"] = "planned"


Outcome = NoChanges | Published | TagOnly | PullRequest | Planned
_OUTCOMES: dict[str, type[Outcome]] = {
    "no-changes": NoChanges,
    "published": Published,
    "tag-only": TagOnly,
    "pull-request": PullRequest,
    "planned": Planned,
}


@dataclass(frozen=True)
class FileReceipt:
    """A file of the release: `changed` where the commit wrote it, `sent_bytes` what of it travelled in this run."""

    path: str
    bytes: int
    sha256: str
    changed: bool
    sent_bytes: int


@dataclass(frozen=True)
class Receipt:
    """What the Hub holds after a release, as read back from it. Times in seconds, `finished` in UTC."""

    repo_id: str
    version: str
    endpoint: str
    user: str
    outcome: Outcome
    files: tuple[FileReceipt, ...]
    bytes_sent: int
    retries: int
    seconds: float
    finished: str

    @property
    def summary(self) -> str:
        """One line for people."""
        sent = f"{self.bytes_sent / 1e6:.1f} MB"
        match self.outcome:
            case NoChanges(commit, tag):
                return f"{tag} is published already (commit {commit[:12]}), nothing sent"
            case Published(commit, tag):
                return f"{tag} published as commit {commit[:12]}, {sent} sent"
            case TagOnly(commit, tag):
                return f"tagged commit {commit[:12]} as {tag}, {sent} sent"
            case PullRequest(number, _):
                return f"pull request #{number}, {sent} sent"
            case Planned(create, commit, _):
                changed = sum(file.changed for file in self.files)
                todo = f"would change {changed} files in one commit, " if commit else "would only tag, "
                return ("would create the repo, " if create else "") + todo + f"sending {sent}"

    def as_json(self) -> dict[str, Any]:
        """The receipt as plain values."""
        return asdict(self)

    def save(self, work: Path) -> None:
        """Write the receipt below `work`, where later runs find it.

        A run that found everything done leaves the receipt of the run that did it.
        """
        path = receipt_path(work, self.version, self.repo_id)
        if isinstance(self.outcome, NoChanges):
            try:
                earlier = load_receipt(work, self.version, self.repo_id)
            except HubpubError:
                earlier = None
            known = getattr(earlier.outcome, "commit", None) if earlier and earlier.endpoint == self.endpoint else None
            if known == self.outcome.commit:
                return
        write_atomic(path, (json.dumps(self.as_json(), indent=2) + "\n").encode())


def receipt_path(work: Path, version: str, repo_id: str) -> Path:
    """Where the receipt of a release lies: a repo name cannot hold '--', so no two repos share a file."""
    return work / "releases" / check_version(version) / f"{check_repo_id(repo_id).replace('/', '--')}.json"


def load_receipt(work: Path, version: str, repo_id: str) -> Receipt | None:
    """The receipt of an earlier run, or None. Raises HubpubError where the file is damaged."""
    path = receipt_path(work, version, repo_id)
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        outcome = _OUTCOMES[data["outcome"]["kind"]](**data["outcome"])
        files = tuple(FileReceipt(**file) for file in data["files"])
        return Receipt(**{**data, "outcome": outcome, "files": files})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HubpubError(f"{path} is damaged ({type(error).__name__})", "delete it; the Hub knows the truth") from None
