"""SHA-256 of local files, each content read once: a hash is recorded with the size, mtime and inode it was read at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hubpub.errors import HubpubError
from hubpub.files import write_atomic


@dataclass
class HashCache:
    """Hashes recorded in the JSON file `path`; a record that no longer fits its file is never used."""

    path: Path
    records: dict[str, list[int | str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.records.update(self._read())

    def sha256(self, file: Path) -> str:
        """SHA-256 (hex) of `file`, from the record when its size, mtime_ns and inode are as recorded.

        Raises HubpubError when the file is missing or changes while it is read.
        """
        key, before = str(file.resolve()), _stamp(file)
        record = self.records.get(key)
        if record and record[:3] == before:
            return str(record[3])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _stamp(file) != before:
            raise HubpubError(f"{file} changed while it was read", "wait until it is written, then run again")
        self.record(file, digest)
        return digest

    def record(self, file: Path, digest: str) -> None:
        """Note that `file`, as it is now, hashes to `digest`: for whoever hashed it while writing it."""
        # Another process may have added records since: theirs are kept.
        self.records = self._read() | self.records | {str(file.resolve()): [*_stamp(file), digest]}
        write_atomic(self.path, json.dumps(self.records, indent=1, sort_keys=True).encode())

    def _read(self) -> dict[str, list[int | str]]:
        try:
            data = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict):
            return {}
        return {key: value for key, value in data.items() if isinstance(value, list) and len(value) == 4}


def _stamp(file: Path) -> list[int | str]:
    try:
        stat = file.stat()
    except OSError as error:
        raise HubpubError(f"{file} cannot be read: {error.strerror}") from None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


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
