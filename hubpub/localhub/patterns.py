"""Which files are large files and which are ignored: the patterns of .gitattributes and .gitignore."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

LARGE_FROM = 10_000_000
"""Bytes from which on a file is a large one, whatever it is."""

_LARGE = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gguf *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz "
    "*.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pte *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar "
    "*.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
DEFAULT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LARGE.split())


def is_large(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Whether a file belongs into large-file storage, by the repo's patterns, its size or its first bytes."""
    if size == 0:
        return False
    large = False
    for line in attributes.splitlines():
        pattern, _, rest = line.strip().partition(" ")
        if pattern and not pattern.startswith("#") and _matches(pattern, path):
            for word in rest.split():
                if word == "filter=lfs":
                    large = True
                elif word in {"-filter", "!filter"} or word.startswith("filter="):
                    large = False
    return large or size > LARGE_FROM or _is_binary(sample)


def is_ignored(path: str, ignore: str) -> bool:
    """Whether .gitignore's text `ignore` leaves `path` out."""
    ignored = False
    for raw in ignore.splitlines():
        line = raw.rstrip()
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        pattern = line[1:] if negated else line
        if any(_matches(pattern.rstrip("/"), part) for part in _with_parents(path, pattern.endswith("/"))):
            ignored = not negated
    return ignored


def _with_parents(path: str, folders_only: bool) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + (0 if folders_only else 1)))


def _is_binary(sample: bytes) -> bool:
    if b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end in the middle of a character.
        return error.start < len(sample) - 3
    return False


def _matches(pattern: str, path: str) -> bool:
    if "/" not in pattern:
        path = path.rpartition("/")[2]
    return _compiled(pattern.removeprefix("/")).fullmatch(path) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern[:500])
    known = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts))
