"""What a version is called, and the version of a rehearsal that was given none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from hubpub.cards.family_sizes import alike, siblings
from hubpub.config import PACKAGE, Project
from hubpub.errors import UsageError
from hubpub.facts import dump
from hubpub.release.assemble import Ready, beside

VERSION = re.compile(r"v\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")


def checked_version(version: str | None, missing: str) -> str:
    """`version` if it is one. Raises UsageError; `missing` says what to do where there is none."""
    if not version:
        raise UsageError("no version was given", missing)
    if not VERSION.fullmatch(version):
        raise UsageError(f"{version!r} is not a version", "write it as vX.Y.Z, e.g. v1.0.0")
    return version


def rehearsal_version(project: Project, ready: Sequence[Ready]) -> str:
    """A version that names the content: rehearsing the same thing again gives the same tag."""
    digest = hashlib.sha256()
    for one in ready:
        digest.update((one.card.folder / "card.toml").read_bytes())
        for facts in one.cells:
            digest.update(dump(facts).encode())
        # Its card shows figures of its other sizes, which may be of earlier releases.
        for other in siblings(one.card, project.readable_cards, alike(beside(ready), scale_model=True)):
            digest.update(dump(other.cell).encode() if other.cell else other.name.encode())
    for path in sorted(project.templates_dir.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    for path in sorted((PACKAGE / "cards").rglob("*.py")):
        digest.update(path.read_bytes())
    return f"v0.0.0-rehearsal.{digest.hexdigest()[:8]}"
