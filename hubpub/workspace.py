"""Where things lie: the project, the work folder, and what a rehearsal keeps apart from a release."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubpub.config import Project
from hubpub.files import HashCache, locked


def integers_of(program: Path) -> Path:
    """Where the integers lie that a calibration chose for the weights of `program`: beside it, never published."""
    return program.with_suffix(".integers.safetensors")


@dataclass(frozen=True)
class Workspace:
    """A project and the work folder `root` in which its cells are made; `rehearsal`: of scale models.

    Nothing else knows the names of what lies in a work folder.
    """

    project: Project
    root: Path
    rehearsal: bool

    def cells_of(self, variant: str, recipe: str) -> Path:
        """The folder of one cell: a folder below it for each fingerprint it was made with."""
        return self.root / "cells" / ("rehearsal" if self.rehearsal else "release") / variant / recipe

    def references(self, *marks: str) -> Path:
        """Where it is kept what reference models say; `marks` name the source and the code that ran it."""
        return self.root.joinpath("references", *marks)

    def answers(self, sha256: str) -> Path:
        """Where it is kept what the program with this hash answered to benchmarks, wherever the file lies."""
        return self.root / "answers" / f"{sha256}.jsonl"

    def phone_log(self, sha256: str) -> Path:
        """Where it is kept what the runner printed on a phone of the program with this hash."""
        return self.root / "phones" / f"{sha256[:12]}.log"

    def rebuilds(self, cell: str) -> Path:
        """Where a published file is exported again, to be compared."""
        return self.root / "rebuilds" / cell

    @property
    def scale_models(self) -> Path:
        return self.root / "scale"

    @property
    def hub(self) -> Path:
        """What the local Hub stores."""
        return self.root / "hub"

    @property
    def receipts(self) -> Path:
        """What was published and staged from here: a folder for each version."""
        return self.root / "releases"

    @property
    def hashes(self) -> HashCache:
        """SHA-256 of the files that were made here, each read once."""
        return HashCache(self.root / "hashes.json")

    @contextmanager
    def locked(self, note: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that makes or publishes from this work folder; `note` is told whom it waits for."""

        def waiting(holder: str) -> None:
            note(f"{self.root} is in use by {holder}: waiting for it to end (another --work needs no waiting)")

        with locked(self.root / ".lock", waiting):
            yield
