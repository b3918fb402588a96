"""What came of staging and publishing, as the Hub answered; kept as JSON in the work folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hubpub.errors import HubpubError
from hubpub.files import write_atomic
from hubpub.hub.names import check_repo_id, check_version

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class StagedFile:
    """Where a large file is: on `main` already, on the staging branch, or still to be staged by another machine."""

    path: str
    bytes: int
    sha256: str
    location: Literal["main", "staged", "missing"]
    sent_bytes: int = 0


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class NoChanges:
    """The tag is there and holds this very release: nothing was sent."""

    commit: str
    tag: str
    kind: Literal["no-changes"] = "no-changes"


@dataclass(frozen=True, config=_STRICT)
class Published:
    """One commit was made and tagged."""

    commit: str
    tag: str
    kind: Literal["published"] = "published"


@dataclass(frozen=True, config=_STRICT)
class TagOnly:
    """`commit` held the release already; only the tag was missing."""

    commit: str
    tag: str
    kind: Literal["tag-only"] = "tag-only"


@dataclass(frozen=True, config=_STRICT)
class PullRequest:
    """The release waits in pull request `number`; there is no tag before it is merged and promoted."""

    number: int
    commit: str
    kind: Literal["pull-request"] = "pull-request"


@dataclass(frozen=True, config=_STRICT)
class Planned:
    """A dry run: what a run would do, file by file in the receipt. Nothing was changed."""

    create_repo: bool
    commit: bool
    tag: bool
    kind: Literal["planned"] = "planned"


Outcome = NoChanges | Published | TagOnly | PullRequest | Planned


@dataclass(frozen=True, config=_STRICT)
class FileReceipt:
    """A file of the release: `changed` where the commit wrote it, `sent_bytes` what of it travelled in this run."""

    path: str
    bytes: int
    sha256: str
    changed: bool
    sent_bytes: int


@dataclass(frozen=True, config=_STRICT)
class Receipt:
    """What the Hub holds after a release, as read back from it. Times in seconds, `finished` in UTC."""

    repo_id: str
    version: str
    endpoint: str
    user: str
    outcome: Annotated[Outcome, Discriminator("kind")]
    files: tuple[FileReceipt, ...]
    bytes_sent: int
    retries: int
    seconds: float
    finished: str
    retired: tuple[str, ...] = ()
    """Files of the release before that this one does not have: the commit removed them from main."""
    notes: tuple[str, ...] = ()
    """What did not work after the release was published and checked, and how to put it right."""

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
                gone = f" and remove {', '.join(self.retired)}" if self.retired else ""
                todo = f"would change {changed} files{gone} in one commit, " if commit else "would only tag, "
                return ("would create the repo, " if create else "") + todo + f"sending {sent}"

    def as_json(self) -> dict[str, Any]:
        """The receipt as plain values."""
        return asdict(self)

    def kept(self, work: Path) -> Receipt:
        """The receipt, saved below `work`; that it could not be is a note on it: what is published is published."""
        try:
            self.save(work)
        except OSError as error:
            note = f"the receipt could not be written below {work}: {error.strerror or error}"
            return replace(self, notes=(*self.notes, note))
        return self

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
        return TypeAdapter(Receipt).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise HubpubError(f"{path} is damaged ({type(error).__name__})", "delete it; the Hub knows the truth") from None
