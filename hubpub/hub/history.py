"""What the history of a repo says about its releases: every release commit names its version and its content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from hubpub.errors import ConflictError
from hubpub.hub.client import Client, Commit, Refs
from hubpub.hub.content import CARD, LocalFile, RepoRelease
from hubpub.hub.names import stage_branch

RELEASE, MANIFEST = "Hubpub-Release: ", "Hubpub-Manifest: "


def manifest_of(files: Iterable[LocalFile]) -> str:
    """One hash for the content of a release. The card is left out: its text depends on what people wrote."""
    lines = (f"{f.sha256} {f.path_in_repo}\n" for f in files if f.path_in_repo != CARD)
    return sha256("".join(sorted(lines)).encode()).hexdigest()


def until(history: list[Commit], end: str) -> list[Commit]:
    """The commits of `history` (newest first) that came after `end`."""
    ids = [commit.id for commit in history]
    return history[: ids.index(end)] if end in ids else history


def release_commit(client: Client, release: RepoRelease, files: Sequence[LocalFile], head: str) -> str:
    """The commit that made main what it is: this release's own where the history has it, else the head."""
    manifest = MANIFEST + manifest_of(files)
    history = client.commits(release.repo_id, head)
    marks = (RELEASE + release.version, manifest)
    return next((c.id for c in history if all(mark in c.message.split("\n") for mark in marks)), head)


def refuse_unfinished(client: Client, release: RepoRelease, files: Sequence[LocalFile]) -> None:
    """Raise ConflictError where main has a commit of this version with other content that was never tagged."""
    for commit in client.commits(release.repo_id, "main"):
        lines = commit.message.split("\n")
        if RELEASE + release.version in lines and MANIFEST + manifest_of(files) not in lines:
            raise ConflictError(
                f"{release.repo_id}: {release.version} was committed with other content by {who(commit)} as "
                f"{commit.id[:12]} and is not tagged yet",
                "let that release finish, or run it again from where its files are; else choose the next version",
            )


def stage_base(client: Client, release: RepoRelease, refs: Refs) -> str:
    """The commit of main that the staging branch of this version began at; main's own where there is none."""
    head, branch = refs.branches["main"], stage_branch(release.version)
    if branch not in refs.branches:
        return head
    ours = {commit.id for commit in client.commits(release.repo_id, head)}
    return next((c.id for c in client.commits(release.repo_id, refs.branches[branch]) if c.id in ours), head)


def who(commit: Commit) -> str:
    return ", ".join(commit.authors) or "unknown"
