"""What the Hub holds, against what a release says: equal files, and who changed what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubpub.errors import ConflictError
from hubpub.hub.client import Client, RemoteFile
from hubpub.hub.content import CARD, SUMS, LocalFile, RepoRelease
from hubpub.hub.hashing import git_blob_id, parse_sha256sums
from hubpub.hub.history import until, who


def is_same(client: Client, repo_id: str, revision: str, file: LocalFile, remote: RemoteFile | None) -> bool:
    """Whether the Hub holds exactly `file` at `revision`, by recorded hashes wherever there are any."""
    if remote is None or remote.bytes != file.bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    content = file.source.read_bytes() if isinstance(file.source, Path) else file.source
    if content is None:
        return client.sha256(repo_id, revision, file.path_in_repo) == file.sha256
    return git_blob_id(content) == remote.blob_id


def held_at(client: Client, repo_id: str, revision: str, files: Sequence[LocalFile]) -> dict[str, RemoteFile]:
    """Those of `files` that the Hub holds at `revision` with this very content."""
    found = client.files(repo_id, revision, [file.path_in_repo for file in files])
    return {
        file.path_in_repo: found[file.path_in_repo]
        for file in files
        if is_same(client, repo_id, revision, file, found.get(file.path_in_repo))
    }


def refuse_unless_same(
    client: Client, release: RepoRelease, commit: str, only: Sequence[LocalFile] | None = None
) -> tuple[LocalFile, ...]:
    """The files of the release if the tag's commit holds just these. Raises ConflictError where it does not."""
    files = tuple(only) if only is not None else release.complete(published_card(client, release.repo_id, commit))
    held = held_at(client, release.repo_id, commit, files)
    other = [file.path_in_repo for file in files if file.path_in_repo not in held]
    if other:
        raise ConflictError(
            f"{release.repo_id}: {release.version} exists (commit {commit[:12]}) with other content: {few(other)}",
            "a published version never changes: choose the next one",
        )
    return files


def refuse_foreign(client: Client, release: RepoRelease, base: str, head: str) -> None:
    """Raise ConflictError where main changed a file of this release after `base`, and say who did. Cards are merged."""
    repo_id = release.repo_id
    files = {file.path_in_repo: file for file in (*release.files, release.sums) if file.path_in_repo != CARD}
    before, after = client.files(repo_id, base, files), client.files(repo_id, head, files)
    touched = [
        path
        for path in sorted({*before, *after})
        if _blob(before.get(path)) != _blob(after.get(path))
        and not is_same(client, repo_id, head, files[path], after.get(path))
    ]
    if touched:
        since = until(client.commits(repo_id, head), base)[:5]
        whose = "; ".join(f"{commit.id[:12]} '{commit.title}' by {who(commit)}" for commit in since)
        raise ConflictError(
            f"{repo_id}: main changed since {release.version} was staged, in {few(touched)}: {whose}",
            "nothing was published; look at that change, then run again to publish over it",
        )


def published_card(client: Client, repo_id: str, revision: str) -> str | None:
    """The published card as text, or None. Raises ConflictError where it is not text."""
    content = client.read(repo_id, revision, CARD)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        raise ConflictError(f"{repo_id}: the published {CARD} is not UTF-8 text", "repair or remove it first") from None


def _blob(file: RemoteFile | None) -> str | None:
    return file.blob_id if file else None


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def listed_at(client: Client, repo_id: str, revision: str) -> dict[str, str]:
    """Path -> SHA-256 as the SHA256SUMS at `revision` lists them; empty where there is none that can be read."""
    try:
        return parse_sha256sums((client.read(repo_id, revision, SUMS) or b"").decode())
    except ValueError:
        return {}
