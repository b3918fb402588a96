"""The Hub as this package sees it: a handful of calls, one family of errors, no token in any text.

This is the only module that imports huggingface_hub, and it does so at the first call. Reads and ref changes are
retried here; a commit whose answer was lost is looked for before it is sent again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from hubpub.errors import AccessError, ConflictError, HubError
from hubpub.hub.names import check_path, check_repo_id, check_revision
from hubpub.progress import Progress, unseen
from hubpub.redaction import keep_secret, redact

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

T = TypeVar("T")

log = logging.getLogger(__name__)

_QUOTA = re.compile(r"(?i)retry this action in (?:about )?(an?|\d+) (second|minute|hour)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_counts = threading.local()


class HeadMoved(ConflictError):
    """The branch is no longer where it was when the commit was planned; nothing was changed."""


@dataclass(frozen=True)
class Retry:
    """How often and how long (seconds) a call is tried again; `patience` bounds what a Retry-After may ask for."""

    attempts: int = 6
    first: float = 1.0
    longest: float = 30.0
    patience: float = 300.0

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the failed `attempt` (from 0)."""
        if asked is not None:
            return asked
        return min(self.longest, self.first * 2.0**attempt) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Identity:
    """Whose token it is and what it may do; `scopes` are (kind, name, permissions) of a fine-grained token."""

    user: str
    role: Literal["read", "write", "fine-grained", "unknown"]
    orgs: dict[str, str]
    scopes: tuple[tuple[str, str, frozenset[str]], ...] = ()

    def only(self, repo_id: str) -> bool:
        """Whether the token's right to write is one to this repo alone, not to its owner's repos."""
        rights = [name.lower() for _, name, permissions in self.scopes if "repo.write" in permissions]
        return self.role == "fine-grained" and repo_id.partition("/")[0].lower() not in rights

    def refusal(self, repo_id: str) -> str | None:
        """Why this token cannot write to `repo_id`, or None where nothing says so."""
        owner = repo_id.partition("/")[0]
        if self.role == "read":
            return "the token may only read"
        if self.role == "fine-grained":
            for kind, name, permissions in self.scopes:
                fits = name.lower() == repo_id.lower() if "/" in name else name.lower() == owner.lower()
                if fits and "repo.write" in permissions and kind in {"user", "org", "model", "repo"}:
                    return None
            return "the token was made for other repos or lacks 'Write access to contents'"
        if self.role == "write" and owner.lower() != self.user.lower():
            roles = {name.lower(): role for name, role in self.orgs.items()}
            role = roles.get(owner.lower())
            if role is None:
                return f"the token is {self.user}'s, who is no member of {owner}"
            if role == "read":
                return f"{self.user} may only read in {owner}"
        return None


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub records it: `sha256` only where it lies in large-file storage, `blob_id` is git's."""

    path: str
    bytes: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Refs:
    """Branches, tags and pull requests (by number) with the commit each points at."""

    branches: dict[str, str]
    tags: dict[str, str]
    pulls: dict[int, str]


@dataclass(frozen=True)
class Pull:
    """A pull request: its number, what became of it, and the commit it would bring."""

    number: int
    status: str
    commit: str

    @property
    def open(self) -> bool:
        return self.status in {"open", "draft"}

    @property
    def merged(self) -> bool:
        return self.status == "merged"


@dataclass(frozen=True)
class CollectionItem:
    """A repo in a collection; `key` is what the Hub calls its place there."""

    key: str
    repo_id: str
    note: str | None


@dataclass(frozen=True)
class Collection:
    """A named list of repos, in its order."""

    slug: str
    url: str
    items: tuple[CollectionItem, ...]


@dataclass(frozen=True)
class Commit:
    """One commit of a history."""

    id: str
    title: str
    message: str
    authors: tuple[str, ...]
    date: datetime


@dataclass(frozen=True)
class Add:
    """A file to be written: its content, size and SHA-256 are known beforehand."""

    path: str
    source: Path | bytes = field(repr=False)
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Copy:
    """A large file that the repo already holds under the same path at another revision."""

    path: str
    revision: str


@dataclass(frozen=True)
class Delete:
    path: str


Change = Add | Copy | Delete


@dataclass(frozen=True)
class Committed:
    """A commit that is on the Hub; `pull` is the number of the pull request it made, if any."""

    commit: str
    pull: int | None = None


class Client:
    """One Hub and one token. Safe to print: the token is in no text that this class makes."""

    def __init__(self, endpoint: str, token: str | None, *, retry: Retry | None = None) -> None:
        """Raises HubError for an endpoint that is no http(s) address or would carry the token in clear."""
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise HubError(f"'{endpoint}' is not the address of a Hub", "for example https://huggingface.co")
        local = parts.hostname in {"localhost", "::1"} or parts.hostname.startswith("127.")
        if token and parts.scheme == "http" and not local:
            raise HubError(f"{endpoint} is not https: the token would travel in clear", "use an https address")
        self.endpoint = endpoint.rstrip("/")
        self.retry = retry or Retry()
        self._given = token.strip() if token else None
        keep_secret(self._given)
        self._renew: Callable[[], str | None] | None = None
        self._identity: Identity | None = None

    @classmethod
    def from_environment(cls, endpoint: str | None = None) -> Client:
        """The Hub of HF_ENDPOINT with the token of a trusted publisher, HF_TOKEN or `hf auth login`, in this order."""
        _hub()
        from huggingface_hub import constants, get_token

        resource = os.environ.get("HF_OIDC_RESOURCE")
        try:
            token = _translated("reading the token", get_token)
        except _Passing:
            raise
        except HubError as error:
            if not resource:
                raise
            raise AccessError(
                f"no token for {resource}: {error.message}",
                f"in the settings of {resource} on the Hub, trust this repository and workflow; or set HF_TOKEN",
            ) from None
        client = cls(endpoint or constants.ENDPOINT, token)
        # A trusted publisher's token ends after an hour; the library exchanges it in time if it is asked again.
        client._renew = get_token if client._given and os.environ.get("HF_OIDC_RESOURCE") else None
        return client

    def __repr__(self) -> str:
        return f"Client({self.endpoint!r}, token={'set' if self._given else 'none'})"

    @property
    def _token(self) -> str | None:
        if self._renew and (fresh := _translated("renewing the token", self._renew)) and fresh != self._given:
            keep_secret(fresh)
            self._given = fresh
        return self._given

    @property
    def _api(self) -> HfApi:
        # False, not None: without a token of ours the library must not go and find another one.
        api: HfApi = _hub().HfApi(endpoint=self.endpoint, token=self._token or False, library_name="hubpub")
        return api

    @property
    def retries(self) -> int:
        """How often a call of this thread had to be repeated so far, here or inside the library."""
        return getattr(_counts, "retries", 0)

    def whoami(self) -> Identity:
        """Whose token this is. Raises AccessError where there is none or the Hub does not know it."""
        if self._token is None:
            raise AccessError(
                f"no token for {self.endpoint}",
                "set HF_TOKEN to a token with write access, or run: hf auth login",
            )
        if self._identity is None:
            try:
                self._identity = _identity(self._call("asking whose token this is", self._api.whoami))
            except AccessError:
                # A token that was made for one repo need not be anybody's: what it is for is known all the same.
                resource = os.environ.get("HF_OIDC_RESOURCE", "")
                if self._renew is None or "/" not in resource:
                    raise
                scope = ("model", resource, frozenset({"repo.write"}))
                self._identity = Identity(resource.partition("/")[0], "fine-grained", {}, (scope,))
        return self._identity

    @property
    def namespace(self) -> str:
        """The owner that repos without one belong to: the user of the token."""
        return self.whoami().user

    def check_write(self, repo_id: str, *, exists: bool) -> None:
        """Raise AccessError where the token is known to lack the right to write to `repo_id`."""
        refusal = self.whoami().refusal(check_repo_id(repo_id))
        if refusal is None and exists:
            try:
                self._call(f"asking for write access to {repo_id}", self._api.auth_check, repo_id, write=True)
            except AccessError:
                refusal = f"the Hub refuses {self.whoami().user} write access"
            except HubError as error:
                # A Hub without this question answers 404; then what the token says about itself has to do.
                if not isinstance(error, NotFound):
                    raise
        if refusal:
            raise AccessError(
                f"no write access to {repo_id} on {self.endpoint}: {refusal}",
                f"make a token with write access to {repo_id} at {self.endpoint}/settings/tokens",
            )

    def check_read(self, repo_id: str) -> None:
        """Raise AccessError where this token may not read `repo_id` (its terms, say), NotFound where none shows."""
        self._call(f"asking for access to {repo_id}", self._api.auth_check, check_repo_id(repo_id))

    def snapshot(self, repo_id: str, revision: str, patterns: Sequence[str]) -> Path:
        """Download the files of `repo_id` that match `patterns`, but those the local cache holds; their folder."""
        fetch = partial(
            _hub().snapshot_download,
            check_repo_id(repo_id),
            revision=check_revision(revision),
            endpoint=self.endpoint,
            token=self._token or False,
            allow_patterns=list(patterns),
            library_name="hubpub",
        )
        # Gigabytes: whoever watches wants to see them come.
        with _bars() if sys.stderr.isatty() else nullcontext():
            return Path(self._call(f"downloading {repo_id}", fetch))

    def refs(self, repo_id: str, *, pulls: bool = False) -> Refs | None:
        """Branches and tags of `repo_id`, or None where there is no such repo (or it is hidden from this token)."""
        try:
            found = self._call(
                f"listing the refs of {repo_id}",
                self._api.list_repo_refs,
                check_repo_id(repo_id),
                include_pull_requests=pulls,
            )
        except NotFound:
            return None
        numbers = {ref.ref.rpartition("/")[2]: ref.target_commit for ref in found.pull_requests or ()}
        return Refs(
            branches={ref.name: ref.target_commit for ref in found.branches},
            tags={ref.name: ref.target_commit for ref in found.tags},
            pulls={int(number): commit for number, commit in numbers.items() if number.isdigit()},
        )

    def create_repo(self, repo_id: str, *, private: bool | None = None) -> None:
        """Make the repo, by default as visible as its owner has new repos be; one that is there stays as it is."""
        self._call(f"creating {repo_id}", self._api.create_repo, check_repo_id(repo_id), private=private, exist_ok=True)

    def files(self, repo_id: str, revision: str, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """What the Hub records about those of `paths` that exist at `revision`, without downloading them."""
        found: dict[str, RemoteFile] = {}
        waiting = iter(sorted({check_path(path) for path in paths}))
        while batch := list(islice(waiting, 500)):
            answer = self._call(
                f"reading {repo_id}@{revision}",
                self._api.get_paths_info,
                check_repo_id(repo_id),
                batch,
                revision=check_revision(revision),
            )
            for item in answer:
                if isinstance(item, _hub().RepoFile):
                    found[item.path] = _remote(item)
        return found

    def tree(self, repo_id: str, revision: str) -> dict[str, RemoteFile]:
        """Every file at `revision`, by path."""

        def listed() -> list[Any]:
            return list(
                self._api.list_repo_tree(check_repo_id(repo_id), revision=check_revision(revision), recursive=True)
            )

        found = self._call(f"listing {repo_id}@{revision}", listed)
        return {item.path: _remote(item) for item in found if isinstance(item, _hub().RepoFile)}

    def pulls(self, repo_id: str) -> list[Pull]:
        """Every pull request of `repo_id`, open or not, the newest first."""

        def listed() -> list[Any]:
            return list(self._api.get_repo_discussions(check_repo_id(repo_id), discussion_type="pull_request"))

        refs = self.refs(repo_id, pulls=True)
        tips = refs.pulls if refs else {}
        found = self._call(f"listing the pull requests of {repo_id}", listed)
        pulls = [Pull(one.num, str(one.status), tips[one.num]) for one in found if one.num in tips]
        return sorted(pulls, key=lambda pull: pull.number, reverse=True)

    def commits(self, repo_id: str, revision: str) -> list[Commit]:
        """The history of `revision`, newest first."""
        found = self._call(
            f"reading the history of {repo_id}@{revision}",
            self._api.list_repo_commits,
            check_repo_id(repo_id),
            revision=check_revision(revision),
        )
        return [Commit(c.commit_id, c.title, c.message or "", tuple(c.authors), c.created_at) for c in found]

    def read(self, repo_id: str, revision: str, path: str, *, limit: int = 32 << 20) -> bytes | None:
        """Content of a small file, or None where it does not exist. Raises HubError past `limit` bytes."""
        parts: list[bytes] = []
        try:
            for block in self._stream(repo_id, revision, path):
                parts.append(block)
                if sum(map(len, parts)) > limit:
                    raise HubError(f"{repo_id}@{revision}: {path} is larger than {limit} bytes")
        except NotFound:
            return None
        return b"".join(parts)

    def sha256(self, repo_id: str, revision: str, path: str) -> str | None:
        """SHA-256 of a file, downloaded block by block and not stored; None where it does not exist."""

        def digest() -> str:
            hasher = hashlib.sha256()
            for block in self._stream(repo_id, revision, path):
                hasher.update(block)
            return hasher.hexdigest()

        try:
            return digest()
        except NotFound:
            return None

    def collection(self, owner: str, title: str) -> Collection | None:
        """The collection of that very title, with all of its items; None where `owner` has none."""

        def found() -> Any:
            alike = (one for one in self._api.list_collections(owner=owner) if one.title == title)
            first = next(alike, None)
            # A list shows the first items of each.
            return self._api.get_collection(first.slug) if first else None

        answer = self._call(f"looking for the collection '{title}' of {owner}", found)
        return _collection(answer) if answer else None

    def create_collection(self, owner: str, title: str, description: str, *, private: bool = False) -> Collection:
        """A new collection; the one that has this title already, where there is one."""
        answer = self._call(
            f"making the collection '{title}' of {owner}",
            self._api.create_collection,
            title,
            namespace=owner,
            description=description,
            private=private,
            exists_ok=True,
        )
        return _collection(answer)

    def add_to_collection(self, slug: str, repo_id: str, note: str) -> None:
        """Put a repo at the end of a collection; one that is there stays where it is."""
        doing = f"adding {repo_id} to a collection"
        add = self._api.add_collection_item
        self._call(doing, add, slug, check_repo_id(repo_id), "model", note=note, exists_ok=True)

    def change_in_collection(
        self, slug: str, item: CollectionItem, *, note: str | None = None, position: int | None = None
    ) -> None:
        """Give an item of a collection another note, or another place (from 0)."""
        doing = f"putting {item.repo_id} in its place in a collection"
        self._call(doing, self._api.update_collection_item, slug, item.key, note=note, position=position)

    def card_problem(self, text: str) -> str | None:
        """Why this Hub would refuse `text` as a card, in its own words; None where it would take it."""
        _hub()
        from huggingface_hub import get_session
        from huggingface_hub.utils._http import hf_raise_for_status

        def asked() -> str | None:
            body = {"repoType": "model", "content": text}
            response = get_session().post(
                f"{self.endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"}
            )
            if response.status_code == 400:
                return redact(response.text.strip())[:2000]
            hf_raise_for_status(response)
            return None

        return self._call("asking the Hub to check a card", asked)

    def _stream(self, repo_id: str, revision: str, path: str) -> Iterator[bytes]:
        _hub()
        from huggingface_hub import get_session
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        url = (
            f"{self.endpoint}/{check_repo_id(repo_id)}/resolve/"
            f"{quote(check_revision(revision), safe='')}/{quote(check_path(path))}"
        )
        headers = build_hf_headers(token=self._token or False, library_name="hubpub")

        def opened() -> Any:
            session = get_session()
            response = session.send(session.build_request("GET", url, headers=headers), stream=True)
            try:
                hf_raise_for_status(response)
            except BaseException:
                response.close()
                raise
            return response

        doing = f"downloading {repo_id}@{revision}: {path}"
        response = self._call(doing, opened)
        try:
            blocks = response.iter_bytes(1 << 20)
            while block := _translated(doing, lambda: next(blocks, b"")):
                yield block
        finally:
            response.close()

    def stored_tensors(self, repo_id: str, revision: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every tensor in a repo's safetensors files, from their headers alone."""
        found = self._call(
            f"reading the headers of {repo_id}",
            self._api.get_safetensors_metadata,
            check_repo_id(repo_id),
            revision=check_revision(revision),
        )
        return {
            name: (str(tensor.dtype), tuple(tensor.shape))
            for file in found.files_metadata.values()
            for name, tensor in file.tensors.items()
        }

    def exchange(self, resource: str) -> float:
        """Exchange this job's identity for a token of `resource` (a repo, or a user for gated sources).

        Returns the seconds it holds. Raises AccessError where there is no identity to show or nobody trusts it.
        """
        _hub()
        from huggingface_hub._oidc import oidc_login

        answer = self._call(f"asking for a token for {resource}", oidc_login, resource=resource, endpoint=self.endpoint)
        keep_secret(str(answer["access_token"]))
        return float(answer.get("expires_in", 3600))

    def create_branch(self, repo_id: str, branch: str, commit: str) -> None:
        """Make `branch` at `commit`; one that is there already is left as it is."""
        self._call(
            f"creating the branch {branch} of {repo_id}",
            self._api.create_branch,
            check_repo_id(repo_id),
            branch=check_revision(branch),
            revision=check_revision(commit),
            exist_ok=True,
        )

    def delete_branch(self, repo_id: str, branch: str) -> None:
        """Remove `branch`; one that is gone already is fine."""
        with suppress(NotFound):
            self._call(
                f"deleting the branch {branch} of {repo_id}",
                self._api.delete_branch,
                check_repo_id(repo_id),
                branch=check_revision(branch),
            )

    def create_tag(self, repo_id: str, tag: str, commit: str) -> None:
        """Make `tag` on `commit`. One that exists is left where it is: read the refs back and compare."""
        self._call(
            f"tagging {repo_id} as {tag}",
            self._api.create_tag,
            check_repo_id(repo_id),
            tag=check_revision(tag),
            revision=check_revision(commit),
            exist_ok=True,
        )

    def merge(self, repo_id: str, number: int, *, is_merged: Callable[[], bool]) -> None:
        """Merge pull request `number`; `is_merged` looks whether it was, although the answer says otherwise."""
        doing = f"merging pull request #{number} of {repo_id}"
        for attempt in range(self.retry.attempts):
            try:
                _translated(doing, lambda: self._api.merge_pull_request(check_repo_id(repo_id), number))
            except HubError as error:
                failure = error
            else:
                return
            if is_merged():
                return
            self._pause(failure, attempt)
        raise failure

    def send(self, repo_id: str, branch: str, add: Add, *, progress: Progress = unseen, pull: bool = False) -> Sent:
        """Upload the content of `add` into the repo's storage; it shows nowhere until it is committed.

        What the storage already holds is not sent again. With `pull` it is meant for a pull request to `branch`.
        """
        sent = _translated(f"preparing {add.path}", lambda: Sent(add))

        def upload() -> None:
            with sent.watched(progress):
                self._api.preupload_lfs_files(
                    check_repo_id(repo_id),
                    [sent.operation],
                    revision=check_revision(branch),
                    create_pr=pull,
                    free_memory=False,
                    num_threads=1,
                )

        self._call(f"uploading {add.path} to {repo_id}", upload)
        return sent

    def commit(
        self,
        repo_id: str,
        branch: str,
        changes: Sequence[Change | Sent],
        *,
        title: str,
        message: str = "",
        parent: str | None,
        find_committed: Callable[[], Committed | None],
        pull: bool = False,
    ) -> Committed:
        """Make one commit of `changes` on `branch`, or a pull request to it.

        `find_committed` looks whether this very commit is on the Hub: it is asked whenever an answer was lost or
        doubtful, so that no commit is made twice. Raises HeadMoved where `branch` is not at `parent` any more.
        """
        doing = f"committing to {repo_id}@{branch}"
        failure: HubError

        def make() -> Committed:
            answer = self._api.create_commit(
                check_repo_id(repo_id),
                [_operation(change) for change in changes],
                commit_message=title,
                commit_description=message,
                revision=check_revision(branch),
                parent_commit=parent,
                create_pr=pull,
                num_threads=1,
            )
            return Committed(answer.oid, int(answer.pr_num) if pull and answer.pr_num else None)

        for attempt in range(self.retry.attempts):
            if attempt and (found := find_committed()):
                log.info("%s: the answer was lost, the commit was not", doing)
                return found
            try:
                return _translated(doing, make)
            except HubError as error:
                failure = error
            if isinstance(failure, ConflictError | NotFound):
                if attempt and (found := find_committed()):
                    return found
                raise HeadMoved(failure.message, failure.hint)
            self._pause(failure, attempt)
        if found := find_committed():
            return found
        raise failure

    def _call(self, doing: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`function(...)`, repeated while the failure is one that passes. Raises only errors of this package."""
        for attempt in range(self.retry.attempts):
            try:
                return _translated(doing, lambda: function(*args, **kwargs))
            except HubError as error:
                failure = error
            if attempt + 1 == self.retry.attempts:
                break
            self._pause(failure, attempt)
        raise failure

    def _pause(self, failure: HubError, attempt: int) -> None:
        """Wait before the next attempt, or raise `failure` where another one would be no use."""
        if not isinstance(failure, _Passing):
            raise failure
        wait = self.retry.wait(attempt, failure.retry_after)
        if wait > self.retry.patience:
            raise HubError(f"{failure.message} (it asks to wait {wait:.0f} s)", failure.hint)
        _counts.retries = getattr(_counts, "retries", 0) + 1
        if attempt + 1 < self.retry.attempts:
            log.info("%s: again in %.1f s", failure.message, wait)
            time.sleep(wait)


class Sent:
    """A file whose content is in the repo's storage, ready to be committed. `sent` counts bytes that left."""

    def __init__(self, add: Add) -> None:
        hub = _hub()
        source = str(add.source) if isinstance(add.source, Path) else add.source
        self.operation: CommitOperationAdd = hub.CommitOperationAdd(add.path, source)
        # The hash is known: without it the library would read the whole file once more.
        self.operation.upload_info.sha256 = bytes.fromhex(add.sha256)
        self.add = add
        self.sent = 0

    @contextmanager
    def watched(self, progress: Progress) -> Iterator[None]:
        """Count what is sent while the upload runs, in either transport."""
        from huggingface_hub import constants
        from huggingface_hub.utils import _xet_progress_reporting as reporting

        def tell(done: int) -> None:
            progress(f"send {self.add.path}", min(1.0, done / self.add.bytes) if self.add.bytes else 1.0)

        if not isinstance(self.add.source, Path):
            yield
            self.sent += self.add.bytes
        elif constants.HF_HUB_DISABLE_XET:
            with _CountedFile(self.add.source, tell) as stream:
                self.operation.path_or_fileobj = stream
                try:
                    yield
                finally:
                    self.sent += stream.sent
                    self.operation.path_or_fileobj = str(self.add.source)
        else:
            # The library shows xet's progress in bars of its own and offers no other way to learn of it.
            reports: list[int] = []

            class Reporter:
                def __init__(self) -> None:
                    reports.append(0)

                def update_progress(self, group: Any, _items: Any) -> None:
                    reports[-1] = int(group.total_transfer_bytes_completed)
                    tell(int(group.total_bytes_completed))

                def close(self) -> None:
                    pass

            library_reporter = reporting.XetUploadProgressReporter
            reporting.XetUploadProgressReporter = Reporter  # type: ignore[assignment,misc]
            try:
                with _bars():
                    yield
            finally:
                reporting.XetUploadProgressReporter = library_reporter  # type: ignore[misc]
                # No report at all: bars are switched off by HF_HUB_DISABLE_PROGRESS_BARS.
                self.sent += sum(reports) if reports else self.add.bytes
        if getattr(self.operation, "_upload_mode", None) == "regular":
            # The Hub wants it inside of the commit.
            self.sent = self.add.bytes
        tell(self.add.bytes)


class _CountedFile(io.BufferedReader):
    """A file that tells how far it was read and counts every byte, those of repeated attempts too."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self.sent = 0
        self._tell = tell

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.sent += len(data)
        self._tell(self.tell())
        return data


class _Passing(HubError):
    """A failure that may be gone at the next attempt; `retry_after` is what the Hub asked for, in seconds."""

    retry_after: float | None = None


class NotFound(HubError):
    """The Hub says that the repo, revision or file is not there."""


def _translated(doing: str, function: Callable[[], T]) -> T:
    """`function()`, with whatever the library raises turned into an error of this package."""
    try:
        return function()
    except HubError:
        raise
    except Exception as error:
        failure = _error(doing, error)
    # Raised outside the handler: a chained traceback would show addresses and headers.
    raise failure


def _error(doing: str, error: BaseException) -> HubError:
    import httpx2
    from huggingface_hub import errors

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # The library's word for a Hub that it did not reach, and a cache that holds nothing; it tried again by itself.
        found = _error(doing, error.__cause__)
        return HubError(found.message, found.hint) if isinstance(found, _Passing) else found
    text = redact(getattr(error, "server_message", None) or str(error)).strip()
    text = " ".join(text.split())[:400] or type(error).__name__
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{doing}: the Hub library is in offline mode", "unset HF_HUB_OFFLINE")
    if isinstance(error, errors.OIDCError):
        return AccessError(f"{doing}: {text}", "see https://huggingface.co/docs/hub/trusted-publishers")
    if status == 401 or (status is None and isinstance(error, PermissionError)):
        return AccessError(f"{doing}: the Hub does not accept this token ({text})", "set HF_TOKEN to a valid token")
    if status == 403:
        return AccessError(f"{doing}: the token lacks this right ({text})", "use a token with write access")
    if status == 404:
        return NotFound(f"{doing}: not found ({text})")
    if status in {409, 412}:
        return ConflictError(f"{doing}: {text}")
    if status in {408, 429} or (status is not None and status >= 500):
        after = _retry_after(response, text)
        passing = _Passing(f"{doing}: the Hub answers {status} ({text})", _again(after))
        passing.retry_after = after
        return passing
    if isinstance(error, httpx2.TransportError):
        return _Passing(f"{doing}: no connection to the Hub ({text})", "run again; nothing is lost")
    if isinstance(error, RuntimeError) and status is None:
        # hf-xet says everything in this way; its own retries are spent by then.
        return _Passing(f"{doing}: {text}", "run again; with HF_HUB_DISABLE_XET=1 files travel the other way")
    return HubError(f"{doing}: {text}")


def _retry_after(response: Any, text: str) -> float | None:
    """Seconds the Hub wants to be left alone for, None where it does not say.

    The quota of commits per hour is told in words alone; headers then speak of another limit that was not reached.
    """
    if found := _QUOTA.search(text):
        return float({"a": 1, "an": 1}.get(found[1]) or found[1]) * _SECONDS[found[2]]
    value = str(response.headers.get("retry-after") or "").strip()
    if not value.isdigit():
        limits = str(response.headers.get("ratelimit") or "")
        reached, left = re.search(r"\br\s*=\s*0\b", limits), re.search(r"\bt\s*=\s*(\d+)", limits)
        value = left[1] if reached and left and response.status_code == 429 else ""
    return float(value) if value else None


def _again(after: float | None) -> str:
    """What to do after a failure that passes: what was sent and staged is kept, whatever it was."""
    if after is None or after < 60:
        return "run again later; nothing is lost"
    when = datetime.now(UTC) + timedelta(seconds=after)
    return f"run the same command again after {when:%H:%M} UTC ({after / 60:.0f} minutes): what was sent is kept"


def _collection(answer: Any) -> Collection:
    held = sorted(answer.items, key=lambda item: item.position)
    items = tuple(CollectionItem(item.item_object_id, item.item_id, item.note) for item in held)
    return Collection(answer.slug, answer.url, items)


def _remote(item: Any) -> RemoteFile:
    return RemoteFile(item.path, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)


def _identity(answer: dict[str, Any]) -> Identity:
    token = (answer.get("auth") or {}).get("accessToken") or {}
    role = {"read": "read", "write": "write", "fineGrained": "fine-grained"}.get(token.get("role", ""), "unknown")
    scoped = (token.get("fineGrained") or {}).get("scoped") or ()
    scopes = tuple(
        (
            str(scope.get("entity", {}).get("type", "")),
            str(scope.get("entity", {}).get("name", "")),
            frozenset(map(str, scope.get("permissions") or ())),
        )
        for scope in scoped
    )
    orgs = {str(org.get("name")): str(org.get("roleInOrg", "")) for org in answer.get("orgs") or ()}
    return Identity(str(answer.get("name", "")), role, orgs, scopes)  # type: ignore[arg-type]


def _operation(change: Change | Sent) -> CommitOperationAdd | CommitOperationCopy | CommitOperationDelete:
    hub = _hub()
    if isinstance(change, Sent):
        return change.operation
    if isinstance(change, Add):
        return Sent(change).operation
    if isinstance(change, Copy):
        copied: CommitOperationCopy = hub.CommitOperationCopy(change.path, change.path, src_revision=change.revision)
        return copied
    deleted: CommitOperationDelete = hub.CommitOperationDelete(change.path, is_folder=False)
    return deleted


class _LibraryLog(logging.Handler):
    """Takes what the library would print: counts its retries, and passes the rest on without secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        text = redact(record.getMessage())
        if text.startswith(("Retrying in", "Rate limited")):
            _counts.retries = getattr(_counts, "retries", 0) + 1
        log.info("%s", text)


def cached_snapshot(repo_id: str, revision: str, patterns: Sequence[str]) -> Path | None:
    """The folder in the local cache with every file of `repo_id` that matches `patterns`, or None. Asks nobody."""
    try:
        return Path(
            _hub().snapshot_download(
                check_repo_id(repo_id),
                revision=check_revision(revision),
                allow_patterns=list(patterns),
                local_files_only=True,
            )
        )
    except (OSError, ValueError):
        return None


@contextmanager
def _bars() -> Iterator[None]:
    """Let the library make progress bars for a moment; everywhere else they would run through the caller's output."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()


@cache
def _hub() -> Any:
    """huggingface_hub, imported once, kept quiet, and given time limits (it has none of its own)."""
    # Read by hf-xet when its session starts: a killed upload then resumes after the last finished block.
    os.environ.setdefault("HF_XET_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def client() -> httpx2.Client:
        session = default_client_factory()
        session.timeout = httpx2.Timeout(connect=30, read=300, write=300, pool=None)
        return session

    huggingface_hub.set_client_factory(client)
    library = logging.getLogger("huggingface_hub")
    library.handlers[:] = [_LibraryLog()]
    library.propagate = False
    warnings.filterwarnings("ignore", module=r"huggingface_hub\.")
    disable_progress_bars()
    return huggingface_hub
