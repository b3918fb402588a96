"""Staging: what a release brings goes to a branch of its own, where `main` does not see it.

Each program is a commit, with the files that belong to it; the first commit carries everything else as well, so that
the terms of use are there when the first weights are. A run that was killed has lost the program it was sending.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hubpub.errors import ConflictError, HubError, HubpubError
from hubpub.files import HashCache, write_atomic
from hubpub.hub.client import Add, Client, Committed, NotFound, Refs, RemoteFile, Sent
from hubpub.hub.compare import few, held_at, refuse_unless_same
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.hashing import git_blob_id
from hubpub.hub.names import STAGE_PREFIX, stage_branch
from hubpub.hub.pulls import waiting_pull
from hubpub.hub.receipts import Staged, StagedFile, receipt_path
from hubpub.progress import Progress, unseen

# As many machines as a repo has recipes stage at the same moment; each conflict costs one small commit.
_STAGE_ATTEMPTS = 8


def stage(
    client: Client,
    release: RepoRelease,
    work: Path,
    *,
    progress: Progress = unseen,
    create_pr: bool = False,
    small_too: bool = False,
) -> Staged:
    """Bring the large files of `release` that the repo lacks to the Hub, and its terms of use; main does not change.

    `release` may hold just the files of this machine; with `small_too` all of them are staged, for a machine that will
    promote without having any. A file that is on main or staged already is neither read nor sent.
    For a pull request the content waits in storage instead of on a branch. Raises ConflictError where the version is
    taken by other content, HubpubError where a file is not what its recorded hash says.
    """
    began, retried = time.monotonic(), client.retries
    refs = ensured_repo(client, release)
    wanted = [file for file in release.files if small_too or file.large or (file.terms and not create_pr)]
    if release.version in refs.tags:
        refuse_unless_same(client, release, refs.tags[release.version], wanted)
    base = refs.branches["main"]
    on_main = held_at(client, release.repo_id, base, wanted)
    waiting = waiting_pull(client, release, wanted) if create_pr else None
    at = waiting.commit if waiting else refs.branches.get(stage_branch(release.version))
    on_branch = held_at(client, release.repo_id, at, wanted) if at else {}
    todo = [file for file in wanted if file.source is not None and file.path_in_repo not in {**on_main, **on_branch}]
    for file in wanted:
        if file.path_in_repo in {**on_main, **on_branch}:
            progress(f"send {file.path_in_repo}", 1.0)
    hashes, sent = HashCache(work / "hashes.json"), dict[str, int]()
    for group in [todo] if create_pr else by_program(todo):
        adds = [_ready(file, hashes) for file in group]
        if create_pr:
            for add in adds:
                sent[add.path] = client.send(release.repo_id, "main", add, progress=progress, pull=True).sent
        else:
            sent |= _stage_group(client, release, adds, base, progress)
        for file in group:
            if isinstance(file.source, Path) and hashes.sha256(file.source) != file.sha256:
                raise HubpubError(f"{file.source} changed while it was sent", "run again when nothing writes to it")
    done = []
    for file in wanted:
        path = file.path_in_repo
        staged_already = path in on_branch or path in sent
        location = "main" if path in on_main else "staged" if staged_already else "missing"
        done.append(StagedFile(path, file.bytes, file.sha256, location, sent.get(path, 0)))  # type: ignore[arg-type]
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


def by_program(files: Sequence[LocalFile]) -> list[list[LocalFile]]:
    """`files` by the commits that stage them: a program and what is named after it, the rest beside the first one."""
    programs = [file for file in files if file.program]
    groups = [[f for f in files if f is one or f.path_in_repo.startswith(f"{one.path_in_repo}.")] for one in programs]
    grouped = {id(file) for group in groups for file in group}
    rest = [file for file in files if id(file) not in grouped]
    if not groups:
        return [rest] if rest else []
    return [[*rest, *groups[0]], *groups[1:]]


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


def unstage_all(client: Client, repo_id: str, version: str | None) -> tuple[str, ...]:
    """Drop what was staged for `version`, or for every version where None. Returns the versions that were staged."""
    waiting = [version] if version else staged_versions(client, repo_id)
    return tuple(one for one in waiting if unstage(client, repo_id, one))


def ensured_repo(client: Client, release: RepoRelease) -> Refs:
    """The refs of the repo, made where there is none: as visible as its owner has new repos be."""
    refs = client.refs(release.repo_id)
    if refs is None:
        client.create_repo(release.repo_id)
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


def _stage_group(
    client: Client, release: RepoRelease, adds: Sequence[Add], base: str, progress: Progress
) -> dict[str, int]:
    """Send some files and commit them to the staging branch together. Returns the bytes that travelled, by path."""
    repo_id, branch = release.repo_id, stage_branch(release.version)

    def lacking() -> list[Add]:
        """Those that the branch does not hold, and where it ends."""
        held = client.files(repo_id, branch, [add.path for add in adds])
        return [add for add in adds if (held.get(add.path) is None) or not _is_held(held[add.path], add)]

    def find_committed() -> Committed | None:
        refs = client.refs(repo_id)
        at = refs.branches.get(branch) if refs else None
        try:
            return Committed(at) if at and not lacking() else None
        except NotFound:
            # A twin of this release was promoted between the two looks, and removed the branch.
            return None

    sent: list[Sent] = []
    for attempt in range(_STAGE_ATTEMPTS):
        client.create_branch(repo_id, branch, base)
        sent = []
        try:
            for add in adds:
                sent.append(client.send(repo_id, branch, add, progress=progress))
            what = adds[-1].path + (f" and {len(adds) - 1} more files" if len(adds) > 1 else "")
            title = f"Stage {what} for {release.version}"
            client.commit(repo_id, branch, sent, title=title, parent=None, find_committed=find_committed)
            break
        except (ConflictError, NotFound):
            # Another machine stages at the same moment, or a twin of this release has just been promoted and has
            # removed the branch.
            refs = client.refs(repo_id)
            if refs and release.version in refs.tags:
                _refuse_other_tag(client, release, refs)
                return {one.add.path: one.sent for one in sent}
            if attempt + 1 == _STAGE_ATTEMPTS:
                raise
            time.sleep(client.retry.wait(attempt, None))
    if find_committed() is None:
        _refuse_what_replaced(client, release, adds)
    return {one.add.path: one.sent for one in sent}


def _refuse_other_tag(client: Client, release: RepoRelease, refs: Refs) -> None:
    refuse_unless_same(client, release, refs.tags[release.version], [file for file in release.files if file.large])


def _refuse_what_replaced(client: Client, release: RepoRelease, adds: Sequence[Add]) -> None:
    """Say why files, which the Hub took a moment ago, are no longer staged. Passes where their release is out."""
    repo_id, branch = release.repo_id, stage_branch(release.version)
    refs = client.refs(repo_id)
    if refs and release.version in refs.tags:
        _refuse_other_tag(client, release, refs)
        return
    at = refs.branches.get(branch) if refs else None
    held = client.files(repo_id, at, [add.path for add in adds]) if at else {}
    replaced = [add.path for add in adds if at is None or (add.path in held and not _is_held(held[add.path], add))]
    if replaced:
        raise ConflictError(
            f"{repo_id}: another release of {release.version} replaced {few(replaced)} while it was being staged",
            "let one machine at a time release this version, then run this again",
        )
    hidden = [add.path for add in adds if add.path not in held]
    if hidden:
        raise HubError(
            f"{repo_id}: {few(hidden)} is not on {branch} although the Hub took it",
            "look for a .gitignore in the repo that hides it",
        )


def _is_held(held: RemoteFile, add: Add) -> bool:
    if held.sha256 is not None:
        return held.sha256 == add.sha256
    content = add.source.read_bytes() if isinstance(add.source, Path) else add.source
    return held.blob_id == git_blob_id(content)
