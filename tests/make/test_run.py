"""Making cells from a work folder that another process is using."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from make.conftest import CELL, Made

HOLD = """
import sys, time
from pathlib import Path
from hubpub.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""
MAKE = """
import sys
from pathlib import Path
from rich.console import Console
from hubpub.cli.terminal import Lines
from hubpub.config import Project
from hubpub.make.run import make
from hubpub.matrix import cells, select
from hubpub.plan import plan
from hubpub.workspace import Workspace
workspace = Workspace(Project.find(Path(sys.argv[1])), Path(sys.argv[2]), True)
made = make(plan(select(cells(workspace.project), [sys.argv[3]]), workspace), workspace, Lines(Console()))
print("made", *made.facts, flush=True)
"""


def test_a_second_process_waits_for_the_first_and_reads_what_it_made(made: Made, tmp_path: Path) -> None:
    root = tmp_path / "work"
    shutil.copytree(made.step.folder, root / made.step.folder.relative_to(made.workspace.root))
    hold = [sys.executable, "-c", HOLD, str(root / ".lock")]
    with subprocess.Popen(hold, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        command = [sys.executable, "-c", MAKE, str(ROOT), str(root), CELL]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            try:
                assert second.stdout
                said = second.stdout.readline()
                assert f"{root} is in use by process {first.pid} " in said
                assert "waiting for it to end" in said
                assert second.poll() is None
                first.send_signal(signal.SIGKILL)
                assert second.stdout.readline() == f"made {CELL}\n"
            finally:
                first.kill()
                second.kill()
    assert not (root / ".lock.holder").exists()
