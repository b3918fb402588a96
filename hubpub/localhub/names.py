"""What may be a repo id, a revision or a path in a repo. Everything that comes from a client passes through here."""

from __future__ import annotations

import re

from hubpub.localhub.wire import HttpError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_OID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|/\.|^\.|^/|/$|\.$|^-")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def check_repo_id(namespace: object, name: object) -> str:
    """`namespace/name`, or HttpError 400 where the Hub would not allow such names."""
    for part in (namespace, name):
        if (
            not isinstance(part, str)
            or not _NAME.fullmatch(part)
            or ".." in part
            or "--" in part
            or part.lower().endswith((".git", ".ipynb"))
        ):
            raise HttpError(400, f"Invalid repo name: {_shown(part)}")
    return f"{namespace}/{name}"


def check_path(path: object) -> str:
    """A path inside a repo: relative, forward slashes, no `.`, `..` or `.git` segment. Raises HttpError 400."""
    if not isinstance(path, str) or not path:
        raise HttpError(400, "A path in the repo must be a string that is not empty")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise HttpError(400, f"Invalid path: {_shown(path)}") from None
    segments = path.split("/")
    if (
        size > 1024
        or _CONTROL.search(path)
        or any(not part or part in {".", ".."} or part.lower() == ".git" or len(part) > 255 for part in segments)
    ):
        raise HttpError(400, f"Invalid path: {_shown(path)}")
    return path


def check_ref_name(name: object) -> str:
    """The name of a branch or tag as git allows it. Raises HttpError 400."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= 200
        or _REF_FORBIDDEN.search(name)
        or name.endswith(".lock")
        or name.startswith("refs/")
        or name == "HEAD"
        or is_oid(name)
    ):
        raise HttpError(400, f"Invalid reference name: {_shown(name)}")
    return name


def is_oid(text: str) -> bool:
    return _OID.fullmatch(text) is not None


def check_sha256(text: object) -> str:
    """64 lower-case hexadecimal digits. Raises HttpError 400."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise HttpError(400, f"Not a sha256: {_shown(text)}")
    return text


def check_size(size: object) -> int:
    """A number of bytes. Raises HttpError 400."""
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 50:
        raise HttpError(400, f"Not a size in bytes: {_shown(size)}")
    return size


def _shown(value: object) -> str:
    return ascii(value)[:120]
