"""The same cell, exported again and again in processes that have nothing in common but the source.

    python benchmarks/reproduce.py gemma-4-E2B-it/8da4w gemma-3n-E2B-it/fp32
    python benchmarks/reproduce.py gemma-4-E2B-it/8da4w --times 10 --python .venv/bin/python --python other/bin/python

Each export has a hash seed of its own, one thread or two, a folder of its own, and one interpreter after the other of
those given (with hubpub's dependencies installed). Exits with 1 where a cell came out as more than one file. Of scale
models: what differs between exports is the program, not the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPORT = """
import json, platform, sys
from pathlib import Path
import torch
from hubpub.config import Project
from hubpub.export.cell import export
from hubpub.matrix import cells, select
from hubpub.model.checkpoint import Checkpoint

root, name, source, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
(cell,) = select(cells(Project.find(Path(root))), [name])
chosen = cell.card.export
made = export(
    Checkpoint.open(Path(source)), cell.recipe, Path(out) / cell.file, context=chosen.context, prefill=chosen.prefill,
    progress=lambda stage, fraction: None, shorten=True,
)
about = {"python": platform.python_version(), "torch": torch.__version__}
about |= {"cpu": torch.backends.cpu.get_cpu_capability()}
print(json.dumps({"sha256": made.file.sha256, "bytes": made.file.bytes, **about}))
"""


def export(python: str, cell: str, source: Path, out: Path, seed: int, threads: int) -> dict[str, str]:
    """One export in a process of its own: what it made, and under what."""
    own = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(threads)}
    from hubpub.machine import export_environment

    command = [python, "-c", EXPORT, str(ROOT), cell, str(source), str(out), str(threads)]
    environment = {**os.environ, **export_environment(), **own, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{cell}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from hubpub.config import Project
    from hubpub.make.existing import source_of
    from hubpub.matrix import cells, select
    from hubpub.workspace import Workspace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", metavar="CELL")
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the hash seed of the first export")
    parser.add_argument("--python", action="append", metavar="PATH")
    parser.add_argument("--work", type=Path, default=ROOT / ".hubpub")
    arguments = parser.parse_args()
    pythons = arguments.python or [sys.executable]
    workspace = Workspace(Project.find(ROOT), arguments.work, rehearsal=True)
    differing = 0
    for cell in select(cells(workspace.project), arguments.cells):
        source = source_of(cell.variant, workspace).absolute()
        files: Counter[str] = Counter()
        for time in range(arguments.times):
            number = arguments.first + time
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, *("way",) * number)
                threads, python = 1 + number % 2, pythons[time * len(pythons) // arguments.times]
                made = export(python, cell.id, source, out, number, threads)
            files[made["sha256"]] += 1
            under = f"Python {made['python']}, torch {made['torch']}, {made['cpu']}"
            print(
                f"{cell.id}  {made['sha256'][:16]}  {made['bytes']:,} bytes  seed {number}, threads {threads}, {under}"
            )
        print(f"{cell.id}: {arguments.times} exports, {len(files)} file{'s' if len(files) > 1 else ''}", flush=True)
        differing += len(files) > 1
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
