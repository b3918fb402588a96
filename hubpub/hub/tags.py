"""The tag of a release: made once, never moved, and read back with every hash below it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from hubpub.errors import ConflictError, HubError
from hubpub.hub.client import Client
from hubpub.hub.compare import few, held_at, refuse_unless_same
from hubpub.hub.content import CARD, LocalFile, RepoRelease

UNVERIFIED = "published, but could not be verified"
"""How a note begins that says so of a release."""


def tag_and_check(
    client: Client, release: RepoRelease, commit: str, files: Sequence[LocalFile], *, card: bool
) -> tuple[str, tuple[str, ...]]:
    """Create the tag and read it back, with the hash of every file below it. Returns its commit, and notes.

    Raises ConflictError where the tag lies on other content, and HubError where the Hub does not show it or a file is
    not what was sent. Once the Hub took the tag, one that does not answer is a note, and no reason to take the release
    for unpublished.
    """
    repo_id, tag = release.repo_id, release.version
    taken, notes = False, tuple[str, ...]()
    with suppress(ConflictError):
        client.create_tag(repo_id, tag, commit)
        taken = True
    try:
        refs = client.refs(repo_id)
    except HubError as error:
        if not taken:
            raise
        found, notes = commit, (unverified(repo_id, tag, error),)
    else:
        at = refs.tags.get(tag) if refs else None
        if at is None:
            raise HubError(f"{repo_id}: the Hub does not show the tag {tag}", "run again: only the tag is missing")
        found = at
    if found != commit:
        refuse_unless_same(client, release, found)
    return found, _read_back(client, release, found, files, card=card) or notes


def _read_back(
    client: Client, release: RepoRelease, commit: str, files: Sequence[LocalFile], *, card: bool
) -> tuple[str, ...]:
    """Read every recorded hash back; a note where the Hub does not answer.

    Raises HubError naming the files that are not what was sent.
    """
    wanted = [file for file in files if card or file.path_in_repo != CARD]
    try:
        held = held_at(client, release.repo_id, commit, wanted)
    except HubError as error:
        return (unverified(release.repo_id, release.version, error),)
    wrong = [file.path_in_repo for file in wanted if file.path_in_repo not in held]
    if wrong:
        raise HubError(
            f"{release.repo_id}@{release.version}: the Hub records something else for {few(wrong)}",
            "do not point anybody at this version; look for a .gitignore in the repo, then release the next version",
        )
    return ()


def unverified(repo_id: str, version: str, error: HubError) -> str:
    """What is said of a release that is out and could not be looked at."""
    return f"{UNVERIFIED} ({error.message}): run 'hubpub verify {repo_id}@{version}'"
