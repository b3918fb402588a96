"""What the history of a repo says about its releases: every release commit names its version and its content."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from hubpub.errors import ConflictError
from hubpub.hub.client import Client, Commit, Refs
from hubpub.hub.content import CARD, LocalFile, RepoRelease
from hubpub.hub.names import newest_above, stage_branch

RELEASE, MANIFEST = "Hubpub-Release: ", "Hubpub-Manifest: "


def manifest_of(files: Iterable[LocalFile]) -> str:
    """One hash for the content of a release. The card is left out: its text depends on what people wrote."""
    lines = {f"{f.sha256} {f.path_in_repo}\n" for f in files if f.path_in_repo != CARD}
    return sha256("".join(sorted(lines)).encode()).hexdigest()


def until(history: list[Commit], end: str) -> list[Commit]:
    """The commits of `history` (newest first) that came after `end`."""
    ids = [commit.id for commit in history]
    return history[: ids.index(end)] if end in ids else history


def commit_of(client: Client, repo_id: str, version: str, head: str) -> Commit | None:
    """The commit up to `head` that was made for `version`, tagged or not; None where there is none."""
    mark = RELEASE + version
    return next((c for c in client.commits(repo_id, head) if mark in c.message.split("\n")), None)


def own_commit(client: Client, release: RepoRelease, head: str) -> str | None:
    """The commit up to `head` that holds this very release: all that can be missing of it is the tag."""
    made = commit_of(client, release.repo_id, release.version, head)
    manifest = MANIFEST + manifest_of((*release.files, release.sums))
    return made.id if made and manifest in made.message.split("\n") else None


def last_release(client: Client, repo_id: str, refs: Refs) -> str | None:
    """The newest commit of main that a release made or a tag of one names; None where nothing was released yet."""
    tagged = set(refs.tags.values())
    history = client.commits(repo_id, refs.branches["main"])
    return next((c.id for c in history if c.id in tagged or f"\n{RELEASE}" in f"\n{c.message}"), None)


def refuse_older(client: Client, repo_id: str, version: str, refs: Refs) -> None:
    """Raise ConflictError where a newer version than `version` is out: main would go back to the older one.

    A release that was committed and not tagged when the newer one came out may still be finished.
    """
    newer = newest_above(version, refs.tags)
    if newer is None or version in refs.tags or commit_of(client, repo_id, version, refs.branches["main"]):
        return
    raise ConflictError(
        f"{repo_id}: {newer} is published, and main would go back to the older {version}",
        f"publish it as a version above {newer}; who needs what {newer} replaced takes it by its tag",
    )


def refuse_unfinished(client: Client, release: RepoRelease, head: str) -> None:
    """Raise ConflictError where main has a commit of this version with other content that was never tagged."""
    commit = commit_of(client, release.repo_id, release.version, head)
    if commit is not None and MANIFEST + manifest_of((*release.files, release.sums)) not in commit.message.split("\n"):
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
