"""The tag of a release: made once, never moved, and read back with every hash below it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from hubpub.errors import ConflictError, HubError
from hubpub.hub.client import Client
from hubpub.hub.compare import few, held_at, refuse_unless_same
from hubpub.hub.content import CARD, LocalFile, RepoRelease


def make_tag(client: Client, release: RepoRelease, commit: str) -> str:
    """Create the tag, read it back, and return its commit. Raises ConflictError where it lies on other content."""
    repo_id, tag = release.repo_id, release.version
    with suppress(ConflictError):
        client.create_tag(repo_id, tag, commit)
    refs = client.refs(repo_id)
    found = refs.tags.get(tag) if refs else None
    if found is None:
        raise HubError(f"{repo_id}: the Hub does not show the tag {tag}", "run again: only the tag is missing")
    if found != commit:
        refuse_unless_same(client, release, found)
    return found


def read_back(
    client: Client, release: RepoRelease, commit: str, files: Sequence[LocalFile], *, card: bool
) -> tuple[str, ...]:
    """Read every recorded hash back. Raises HubError naming the files that are not what was sent.

    The tag is there by now: a Hub that does not answer is a note, and no reason to take the release for unpublished.
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
    return f"published, but could not be verified ({error.message}): run 'hubpub verify {repo_id}@{version}'"
