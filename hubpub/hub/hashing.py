"""Names of content: the ids git gives to it, and the text of SHA256SUMS."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def git_blob_id(content: bytes) -> str:
    """The id git (and the Hub, for files outside large-file storage) gives to `content`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256sums(files: Iterable[tuple[str, str]]) -> bytes:
    """The text of SHA256SUMS for (path, sha256) pairs: one `sha256  path` line each, sorted by path."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(set(files))).encode()


def parse_sha256sums(text: str) -> dict[str, str]:
    """Path -> sha256 of a SHA256SUMS text. Raises ValueError with the number of the first line that is not one."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        digest, _, path = line.partition("  ")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or not path:
            raise ValueError(f"line {number} is not 'sha256  path'")
        found[path] = digest
    return found
