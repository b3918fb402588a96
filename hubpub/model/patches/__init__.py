"""Patches to upstream packages: one small module each, in force only while a context is open.

A patch names the defect, the versions it was written for and checks that its target still has the shape it expects.
Outside those versions, or where the target changed, exporting stops; where upstream mended the defect, the patch does
nothing and says so. Installed files are never touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hubpub.errors import ToolchainError
from hubpub.facts import Patch as PatchFact


@dataclass(frozen=True)
class Patch:
    """One upstream defect and its cure.

    `defective()` says whether the installed package still has it (it raises ToolchainError, through `expect`, when
    the target is not the code the patch was written for); `apply()` is a context manager that is the cure.
    """

    name: str
    defect: str
    url: str
    package: str
    versions: str
    defective: Callable[[], bool]
    apply: Callable[[], AbstractContextManager[None]]


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[tuple[PatchFact, ...]]:
    """Apply `patches` in order and yield a record of each. Raises ToolchainError where one does not hold."""
    with ExitStack() as stack:
        facts = []
        for patch in patches:
            check_version(patch.package, patch.versions, f"patch '{patch.name}'")
            needed = patch.defective()
            if needed:
                stack.enter_context(patch.apply())
            facts.append(PatchFact(name=patch.name, defect=patch.defect, url=patch.url, applied=needed))
        yield tuple(facts)


def check_version(package: str, allowed: str, who: str) -> None:
    """Raise ToolchainError unless the installed `package` lies in `allowed` (a version specifier)."""
    try:
        found = version(package)
    except PackageNotFoundError:
        raise ToolchainError(f"{who} needs {package}{allowed}, which is not installed", "pip install hubpub") from None
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(allowed).contains(found.split("+")[0], prereleases=True):
        raise ToolchainError(
            f"{who} holds for {package}{allowed}, but {found} is installed",
            f"pip install '{package}{allowed}'",
        )


def expect(patch: str, target: Callable[..., Any], *, parameters: Sequence[str], source: Sequence[str]) -> None:
    """Raise ToolchainError unless `target` has these parameters and its source holds each of these fragments."""
    found = list(inspect.signature(target).parameters)
    try:
        text = inspect.getsource(target)
    except OSError:
        text = ""
    missing = [fragment for fragment in source if fragment not in text]
    if found != list(parameters) or missing:
        what = f"parameters {found}" if found != list(parameters) else f"no longer contains {missing[0]!r}"
        raise ToolchainError(
            f"patch '{patch}': {target.__module__}.{target.__qualname__} changed upstream ({what})",
            "read the upstream change, then adapt or retire the patch under hubpub/model/patches",
        )


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` to `value` while the context is open; a name that `owner` did not have goes away again."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
