"""What every endpoint works with: the store, the tokens, the options, and the question who may do what."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hubpub.localhub.names import check_repo_id
from hubpub.localhub.shelf import Shelf
from hubpub.localhub.store import Repo, Store, repo_not_found
from hubpub.localhub.tokens import Access, Tokens
from hubpub.localhub.wire import HttpError, Request


@dataclass(frozen=True)
class Options:
    """`multipart_from` bytes on, an LFS upload comes in parts of `part_size` bytes; `xet` offers that transport.

    A user may make `commits_per_hour`, where there is such a limit. New repos are `private` where nobody says what they
    are to be, as an organisation may have it.
    """

    xet: bool = True
    multipart_from: int = 100_000_000
    part_size: int = 50_000_000
    idle_timeout: float = 60.0
    max_file: int = 1 << 40
    commits_per_hour: int | None = None
    private: bool = False


class CommitQuota:
    """How many commits each user made during the last hour."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._made: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def take(self, user: str) -> None:
        """Count one commit. Raises HttpError 429 past the limit; as on the Hub, its text alone says for how long."""
        if self._limit is None:
            return
        with self._lock:
            made, now = self._made.setdefault(user, deque()), time.monotonic()
            while made and made[0] <= now - 3600:
                made.popleft()
            if len(made) >= self._limit:
                minutes = max(1, round((made[0] + 3600 - now) / 60))
                error = HttpError(
                    429,
                    f"You have exceeded the rate limit for repository commits ({self._limit} per hour). "
                    f"You can retry this action in {minutes} minutes.",
                )
                # Of another limit, which was not reached.
                error.headers["RateLimit"] = '"api";r=647;t=30'
                raise error
            made.append(now)


@dataclass(frozen=True)
class Site:
    """One local Hub, without the sockets."""

    store: Store
    tokens: Tokens = field(repr=False)
    options: Options
    quota: CommitQuota = field(repr=False)
    shelf: Shelf = field(repr=False)

    def access(self, request: Request) -> Access | None:
        return self.tokens.access(request.headers.get("Authorization"))

    def user(self, request: Request) -> Access:
        """Who asks. Raises HttpError 401 where no token came."""
        access = self.access(request)
        if access is None:
            raise HttpError(401, "Invalid username or password: this needs an access token")
        return access

    def readable(self, request: Request, namespace: str, name: str) -> Repo:
        """The repo, where there is one this token may see. Otherwise HttpError 404, the same for hidden and missing."""
        access = self.access(request)
        repo = self.store.find(check_repo_id(namespace, name))
        if repo is None or (repo.state.private and not (access and access.may_read(repo.id))):
            raise repo_not_found()
        return repo

    def writable(self, request: Request, namespace: str, name: str) -> tuple[Repo, Access]:
        """The repo and who writes to it. Raises HttpError 401, 403 or 404."""
        access = self.user(request)
        repo_id = check_repo_id(namespace, name)
        repo = self.store.find(repo_id)
        if repo is None or (repo.state.private and not access.may_read(repo_id)):
            raise repo_not_found()
        self.check_write(access, repo_id)
        return repo, access

    def check_write(self, access: Access, repo_id: str) -> None:
        """Raises HttpError 403 where this token may not write to `repo_id`."""
        if access.role != "write":
            raise HttpError(403, f"This token may only read: it has no write access to {repo_id}")
        if not access.may_write(repo_id):
            raise HttpError(403, f"This token has no write access to {repo_id}")


def isotime(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
