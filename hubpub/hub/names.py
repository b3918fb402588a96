"""What a repo, a version and a file in a repo may be called; everything is checked before the first request."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hubpub.config import NAME
from hubpub.errors import ConfigError

STAGE_PREFIX = "hubpub-stage/"
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_SEMANTIC = re.compile(
    r"v?(?P<major>\d{1,9})(?:\.(?P<minor>\d{1,9})(?:\.(?P<patch>\d{1,9}))?)?(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+.*)?"
)
_PART = re.compile(r"[A-Za-z0-9._+@-]{1,200}")
# Files that steer git or the Hub: a release that wrote them could hide or rewrite the others.
_RESERVED = frozenset({".git", ".gitattributes", ".gitignore", ".gitmodules", ".cache", ".huggingface", ".", ".."})


def check_repo_id(value: str) -> str:
    """`value` if it is an `owner/name` the Hub accepts. Raises ConfigError."""
    owner, _, name = value.partition("/")
    for part in (owner, name):
        if not NAME.fullmatch(part) or ".." in part or "--" in part or part.endswith((".git", ".ipynb")):
            raise ConfigError(f"repo id {value!r} is not 'owner/name'", "letters, digits, '.', '_' and '-' only")
    return value


def check_version(value: str) -> str:
    """`value` if it can be a tag and part of a branch name. Raises ConfigError."""
    odd = value in {"main", "HEAD"} or ".." in value or value.endswith(".lock") or re.fullmatch(r"[0-9a-f]{40}", value)
    if not _VERSION.fullmatch(value) or odd:
        raise ConfigError(f"version {value!r} cannot be a tag", "for example v1.2.0")
    return value


def check_revision(value: str) -> str:
    """`value` if it is a branch, tag or commit id that can stand in an address. Raises ConfigError."""
    parts = value.split("/")
    if not value or len(value) > 200 or any(p in {".", "..", ""} or not _PART.fullmatch(p) for p in parts):
        raise ConfigError(f"revision {value!r} is not a branch, tag or commit id")
    return value


def check_path(value: str) -> str:
    """`value` if it is a relative path that is safe on every system and does not steer git. Raises ConfigError."""
    parts = value.split("/")
    for part in parts:
        if not _PART.fullmatch(part) or part.lower() in _RESERVED or part.endswith("."):
            raise ConfigError(
                f"file name {value!r} cannot be published", "letters, digits, '.', '_', '+', '@' and '-', no '..'"
            )
    if len(value) > 400:
        raise ConfigError(f"file name {value[:60]!r}... is too long to be published")
    return value


def check_paths(values: Iterable[str]) -> None:
    """Check every path, and that no two are the same or differ only in case. Raises ConfigError."""
    seen: dict[str, str] = {}
    for value in values:
        key = check_path(value).lower()
        if (twin := seen.get(key)) is not None:
            raise ConfigError(f"the release holds both {twin!r} and {value!r}", "give each file a name of its own")
        seen[key] = value


def stage_branch(version: str) -> str:
    """Name of the branch that holds the files of `version` until they are promoted."""
    return STAGE_PREFIX + check_version(version)


def newest_above(version: str, others: Iterable[str]) -> str | None:
    """The newest of `others` that is above `version` in semantic order, or None.

    Names without such an order (and those of rehearsals, which are all v0.0.0) are above nothing and below nothing.
    """
    mine = _order(version)
    above = [(order, other) for other in others if (order := _order(other)) is not None and mine and order > mine]
    return max(above)[1] if above else None


def _order(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]] | None:
    """What versions are sorted by, as semver.org item 11 has it: a pre-release is below its release."""
    found = _SEMANTIC.fullmatch(version)
    if found is None:
        return None
    core = tuple(int(found[part] or 0) for part in ("major", "minor", "patch"))
    before = found["pre"]
    if before and core == (0, 0, 0):
        return None
    parts = before.split(".") if before else []
    # A number is below a word; numbers go by their value, words by their letters.
    return core, not before, tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
