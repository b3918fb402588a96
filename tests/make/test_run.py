"""Making cells from a work folder that another process is using."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from hubpub.errors import SourceError
from hubpub.make.run import refuse_links
from hubpub.model.checkpoint import digest
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


@pytest.mark.slow
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


def test_links_that_lead_out_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    repo = tmp_path / "models--a--b"
    snapshot, blobs = repo / "snapshots" / "1", repo / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b1").write_text("{}")
    (snapshot / "config.json").symlink_to(blobs / "b1")
    refuse_links(snapshot)
    # Large files: the repo's blob is a link to one that all repos of the cache share.
    shared = repo.parent / "blobs" / "0c"
    shared.mkdir(parents=True)
    (shared / "x1").write_text("{}")
    (blobs / ("7" * 64)).symlink_to(shared / "x1")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{'7' * 64}")
    refuse_links(snapshot)
    assert digest(snapshot / "model.safetensors").sha256 == "7" * 64
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match=r"tokenizer\.json is a link"):
        refuse_links(snapshot)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="leads out"):
        refuse_links(plain)
