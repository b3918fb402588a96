"""The identities git gives to contents: blobs, large-file pointers, trees and commits, as SHA-1 in hexadecimal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_pointer(data: bytes) -> bool:
    return len(data) < 1024 and data.startswith(b"version https://git-lfs.github.com/spec/v1\n")


def tree_ids(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Ids of all folders (the root is `""`) of a tree given as (path, blob id)."""
    folders: dict[str, dict[str, tuple[bytes, str]]] = {"": {}}
    for path, oid in files:
        folder, rest = "", path
        while "/" in rest:
            name, _, rest = rest.partition("/")
            child = f"{folder}/{name}" if folder else name
            folders[folder][name] = (b"40000", child)
            folders.setdefault(child, {})
            folder = child
        folders[folder][rest] = (b"100644", oid)
    ids: dict[str, str] = {}
    # A folder is named after what it holds: the deepest come first, the root last.
    for folder in sorted(folders, key=lambda name: (name.count("/") + 1) if name else 0, reverse=True):
        # Git sorts a folder as if its name ended in a slash.
        items = sorted(
            (name.encode() + (b"/" if mode == b"40000" else b""), mode, name.encode(), target)
            for name, (mode, target) in folders[folder].items()
        )
        data = b"".join(
            mode + b" " + name + b"\0" + bytes.fromhex(ids[target] if mode == b"40000" else target)
            for _, mode, name, target in items
        )
        ids[folder] = object_id("tree", data)
    return ids


def commit_id(tree: str, parents: Iterable[str], author: str, seconds: int, message: str) -> str:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"{role} {author} <{author}@local> {seconds} +0000" for role in ("author", "committer")]
    return object_id("commit", ("\n".join(lines) + "\n\n" + message).encode())
