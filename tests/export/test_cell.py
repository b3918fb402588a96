"""The same cell gives the same bytes in every process, and all the code that decides them is in its fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

from hubpub.config import PACKAGE, Project
from hubpub.errors import ExportError
from hubpub.export.cell import export
from hubpub.matrix import cells, select
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import build
from hubpub.plan import exporting_code

EXPORT = """
import json, sys
from pathlib import Path
import torch
from hubpub.config import Project
from hubpub.export.cell import export
from hubpub.matrix import cells, select
from hubpub.model.checkpoint import Checkpoint

root, out, threads, *chosen = sys.argv[1:]
torch.set_num_threads(int(threads))
sums = []
for name, source in zip(chosen[::2], chosen[1::2], strict=True):
    (cell,) = select(cells(Project.find(Path(root))), [name])
    made = export(
        Checkpoint.open(Path(source)), cell.recipe, Path(out) / cell.file, context=512, prefill=64,
        progress=lambda stage, fraction: None,
    )
    sums.append(made.file.sha256)
modules = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "hubpub"}
print(json.dumps({"sha256": sums, "modules": modules}))
"""

# What is imported while a file is exported and decides none of its bytes.
ELSEWHERE = {
    "hubpub": "the package's name and version, which the facts record",
    "hubpub.slices": "what may be sliced: a slice is in the fingerprint by its values",
    "hubpub.config": "what people declare: a recipe is in the fingerprint by its values",
    "hubpub.matrix": "which cells there are",
    "hubpub.data": "where texts lie; the one that weights are rounded for is in the fingerprint",
    "hubpub.errors": "messages",
    "hubpub.redaction": "what messages leave out",
    "hubpub.facts": "records of what was done",
    "hubpub.progress": "how far work is",
    "hubpub.files": "how files are written, not what is in them",
    "hubpub.machine": "versions, which are in the fingerprint, and memory",
}


@dataclass(frozen=True)
class Exported:
    """What a process that exported cells says of them."""

    sha256: list[str]
    modules: dict[str, str]


def exported(chosen: dict[str, Path], out: Path, *, seed: int, threads: int) -> Exported:
    """Each cell that is chosen, of its source, one after the other in one process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed), "OMP_WAIT_POLICY": "PASSIVE"}
    environment["OMP_NUM_THREADS"] = str(threads)
    words = [str(word) for pair in chosen.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(ROOT), str(out), str(threads), *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Exported(**json.loads(done.stdout.splitlines()[-1]))


def test_a_cell_is_the_same_file_whatever_the_seed_the_threads_and_the_folder(
    project: Project, scale_cache: Path, tmp_path: Path
) -> None:
    # Under these two seeds a set of the two kinds of layers has different orders. What is exported first leaves nothing
    # behind that the second could be made of: they come in both orders.
    chosen, elsewhere = {}, {}
    for number, cell in enumerate(select(cells(project), ["gemma-3n-E2B-it/8da4w", "SmolLM2-135M-Instruct/int8"])):
        chosen[cell.id] = build(cell.variant, scale_cache)
        elsewhere[cell.id] = tmp_path / f"source-{number}"
        elsewhere[cell.id].symlink_to(chosen[cell.id])
    one = exported(chosen, tmp_path / "one", seed=1, threads=1)
    reverse = dict(reversed(elsewhere.items()))
    other = exported(reverse, tmp_path / "a" / "longer" / "way", seed=2, threads=2)
    assert len(set(one.sha256)) == 2 and one.sha256 == other.sha256[::-1]
    # Code that is imported and not hashed could change a file that is then taken to be up to date.
    hashed = {str(path) for path in exporting_code()}
    left = {name for name, path in one.modules.items() if path not in hashed}
    assert left <= ELSEWHERE.keys()
    assert all(path.startswith(str(PACKAGE)) for path in one.modules.values())


def test_the_code_of_the_fingerprint_is_that_of_two_rooms() -> None:
    rooms = {path.relative_to(PACKAGE).parts[:2] for path in exporting_code()}
    assert {("export", "cell.py"), ("export", "quantize.py"), ("model", "patches"), ("model", "families")} <= rooms
    assert {room for room, _ in rooms} == {"export", "model", "data"}
    assert not any(name.startswith("scale") for _, name in rooms)


def test_a_context_longer_than_the_models_is_refused(project: Project, scale_cache: Path, tmp_path: Path) -> None:
    (cell,) = select(cells(project), ["gemma-4-E2B-it/8da4w"])
    source = Checkpoint.open(build(cell.variant, scale_cache))
    longest = 4096
    with pytest.raises(ExportError, match=rf"{cell.file}: a context of {longest + 1} is longer than the model's"):
        export(source, cell.recipe, tmp_path / cell.file, context=longest + 1, prefill=64, progress=lambda *_: None)
    assert not list(tmp_path.iterdir())
