"""Staging: the large files of a release go to a branch of their own, where `main` does not see them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hubpub.errors import ConflictError, HubError, HubpubError
from hubpub.files import HashCache, write_atomic
from hubpub.hub.client import Add, Client, Landed, NotFound, Refs, RemoteFile
from hubpub.hub.compare import held_at, refuse_unless_same
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.hashing import git_blob_id
from hubpub.hub.names import STAGE_PREFIX, stage_branch
from hubpub.hub.pulls import waiting_pull
from hubpub.hub.receipts import Progress, Staged, StagedFile, receipt_path

STAGE_TITLE = "Stage "
# As many machines as a repo has recipes stage at the same moment; each conflict costs one small commit.
_STAGE_ATTEMPTS = 8


def stage(
    client: Client,
    release: RepoRelease,
    work: Path,
    *,
    progress: Progress | None = None,
    create_pr: bool = False,
    small_too: bool = False,
) -> Staged:
    """Bring every large file of `release` that the repo lacks to the Hub, one by one; main does not change.

    `release` may hold just the files of this machine; with `small_too` all of them are staged, for a machine that will
    promote without having any. A file that is on main or staged already is neither read nor sent.
    For a pull request the content waits in storage instead of on a branch. Raises ConflictError where the version is
    taken by other content, HubpubError where a file is not what its recorded hash says.
    """
    began, retried = time.monotonic(), client.retries
    refs = ensured_repo(client, release)
    large = [file for file in release.files if small_too or file.large]
    if release.version in refs.tags:
        refuse_unless_same(client, release, refs.tags[release.version], large)
    base = refs.branches["main"]
    branch = stage_branch(release.version)
    hashes = HashCache(work / "hashes.json")
    on_main = held_at(client, release.repo_id, base, large)
    waiting = waiting_pull(client, release, large) if create_pr else None
    at = waiting.commit if waiting else refs.branches.get(branch)
    on_branch = held_at(client, release.repo_id, at, large) if at else {}
    done: list[StagedFile] = []
    for file in large:
        path = file.path_in_repo
        told = partial(progress, release.repo_id, path) if progress else None
        sent = 0
        if path in on_main or path in on_branch:
            if told:
                told(file.bytes, file.bytes)
        elif file.source is not None:
            add = _ready(file, hashes)
            if create_pr:
                sent = client.send(release.repo_id, "main", add, told=told, pull=True).sent
            else:
                sent = _stage_one(client, release, add, base, told)
            if isinstance(file.source, Path) and hashes.sha256(file.source) != file.sha256:
                raise HubpubError(f"{file.source} changed while it was sent", "run again when nothing writes to it")
        where = "main" if path in on_main else "missing" if file.source is None and path not in on_branch else "staged"
        done.append(StagedFile(path, file.bytes, file.sha256, where, sent))  # type: ignore[arg-type]
    staged = Staged(
        release.repo_id,
        release.version,
        base,
        tuple(done),
        sum(file.sent_bytes for file in done),
        client.retries - retried,
        round(time.monotonic() - began, 3),
    )
    record = receipt_path(work, release.version, release.repo_id).with_suffix(".staged.json")
    write_atomic(record, (json.dumps(asdict(staged), indent=2) + "\n").encode())
    return staged


def staged_versions(client: Client, repo_id: str) -> tuple[str, ...]:
    """Versions of `repo_id` that have a staging branch."""
    refs = client.refs(repo_id)
    branches = sorted(refs.branches) if refs else []
    return tuple(name.removeprefix(STAGE_PREFIX) for name in branches if name.startswith(STAGE_PREFIX))


def unstage(client: Client, repo_id: str, version: str) -> bool:
    """Drop what was staged for `version`; main and tags stay as they are. Returns whether anything was staged."""
    if version not in staged_versions(client, repo_id):
        return False
    client.delete_branch(repo_id, stage_branch(version))
    return True


def ensured_repo(client: Client, release: RepoRelease) -> Refs:
    refs = client.refs(release.repo_id)
    if refs is None:
        client.create_repo(release.repo_id, private=release.private)
        refs = client.refs(release.repo_id)
    if refs is None or "main" not in refs.branches:
        raise HubError(f"{release.repo_id} has no branch main", "create the repo with at least one commit")
    return refs


def _ready(file: LocalFile, hashes: HashCache) -> Add:
    """`file` as something to send, once its content is known to be what was recorded."""
    assert file.source is not None
    if isinstance(file.source, Path):
        size = file.source.stat().st_size if file.source.is_file() else -1
        if size != file.bytes or hashes.sha256(file.source) != file.sha256:
            raise HubpubError(
                f"{file.source} is not the file that was measured: its size or SHA-256 differs",
                "export and measure it again",
            )
    return Add(file.path_in_repo, file.source, file.bytes, file.sha256)


def _stage_one(client: Client, release: RepoRelease, add: Add, base: str, told: partial[None] | None) -> int:
    """Send one file and commit it to the staging branch. Returns the bytes that travelled."""
    repo_id, branch = release.repo_id, stage_branch(release.version)

    def landed() -> Landed | None:
        refs = client.refs(repo_id)
        at = refs.branches.get(branch) if refs else None
        held = client.files(repo_id, at, [add.path]).get(add.path) if at else None
        same = held is not None and (held.sha256 or _sha256_of_blob(held, add)) == add.sha256
        return Landed(at) if at and same else None

    for attempt in range(_STAGE_ATTEMPTS):
        client.create_branch(repo_id, branch, base)
        sent = None
        try:
            sent = client.send(repo_id, branch, add, told=told)
            title = f"{STAGE_TITLE}{add.path} for {release.version}"
            client.commit(repo_id, branch, [sent], title=title, parent=None, landed=landed)
            break
        except (ConflictError, NotFound):
            # Another machine stages at the same moment, or a twin of this release has just been promoted and has
            # removed the branch.
            refs = client.refs(repo_id)
            if refs and release.version in refs.tags:
                large = [file for file in release.files if file.large]
                refuse_unless_same(client, release, refs.tags[release.version], large)
                return sent.sent if sent else 0
            if attempt + 1 == _STAGE_ATTEMPTS:
                raise
            time.sleep(client.retry.wait(attempt, None))
    if landed() is None:
        _refuse_what_replaced(client, release, add)
    return sent.sent if sent else 0


def _refuse_what_replaced(client: Client, release: RepoRelease, add: Add) -> None:
    """Say why `add`, which the Hub took a moment ago, is no longer staged. Passes where its release is out already."""
    repo_id, branch = release.repo_id, stage_branch(release.version)
    refs = client.refs(repo_id)
    if refs and release.version in refs.tags:
        refuse_unless_same(client, release, refs.tags[release.version], [f for f in release.files if f.large])
        return
    at = refs.branches.get(branch) if refs else None
    if at is None or client.files(repo_id, at, [add.path]):
        raise ConflictError(
            f"{repo_id}: another release of {release.version} replaced {add.path} while it was being staged",
            "let one machine at a time release this version, then run this again",
        )
    raise HubError(
        f"{repo_id}: {add.path} is not on {branch} although the Hub took it",
        "look for a .gitignore in the repo that hides it",
    )


def _sha256_of_blob(held: RemoteFile, add: Add) -> str | None:
    content = add.source.read_bytes() if isinstance(add.source, Path) else add.source
    return add.sha256 if held.blob_id == git_blob_id(content) else None
