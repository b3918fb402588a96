"""Files that are whole or absent, and locks that a process lets go of however it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.files import locked, write_atomic
from hubpub.workspace import Workspace

HOLD = """
import sys, time
from pathlib import Path
from hubpub.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_process_says_for_whom_it_waits_until_that_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    workspace = Workspace(Project(tmp_path, tmp_path), tmp_path / "work", rehearsal=True)
    other = holder(workspace.root / ".lock")
    said: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with workspace.locked(said.append):
            entered.set()

    waiting = threading.Thread(target=second)
    try:
        waiting.start()
        assert not entered.wait(1)
        assert len(said) == 1
        assert re.search(rf"work is in use by process {other.pid} \(-c .*\), since \d\d:\d\d:\d\d: waiting", said[0])
        other.send_signal(how)
        other.wait()
        assert entered.wait(10)
    finally:
        other.kill()
        waiting.join()
    # What the killed process left behind locks nobody out, and nobody is named any more.
    began = time.monotonic()
    with workspace.locked(said.append):
        assert time.monotonic() - began < 1
        assert str(workspace.root) not in "".join(said[1:])
    assert [path.name for path in workspace.root.iterdir()] == [".lock"]


def test_whoever_holds_a_lock_may_take_it_again(tmp_path: Path) -> None:
    said: list[str] = []
    with locked(tmp_path / "lock", said.append):
        with locked(tmp_path / "lock", said.append):
            pass
        assert (tmp_path / "lock.holder").exists()
        other = subprocess.run(
            [sys.executable, "-c", "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(blocking=False)",
             str(tmp_path / "lock")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Timeout" in other.stderr
    assert said == []
    assert not (tmp_path / "lock.holder").exists()


def test_a_file_that_cannot_be_written_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"before")
    with pytest.raises(TypeError):
        write_atomic(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
