"""Files that are whole or absent, hashes taken once, and locks that a process lets go of however it ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hubpub.config import Project
from hubpub.errors import HubpubError
from hubpub.files import HashCache, locked, write_atomic
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


def test_a_password_on_the_command_line_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hubpub", "release", "--hub", "https://bob:s3cretpass@hub.example"])
    with locked(tmp_path / ".lock"):
        noted = (tmp_path / ".lock.holder").read_text()
    assert "@hub.example" in noted and "s3cretpass" not in noted


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


def test_a_file_is_hashed_once(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 100)
    hashes = HashCache(tmp_path / "hashes.json")
    assert hashes.sha256(file) == hashlib.sha256(b"x" * 100).hexdigest()
    stat = file.stat()
    file.chmod(0)  # unreadable for anyone but root; the record answers in any case
    again = HashCache(tmp_path / "hashes.json")
    again.records[str(file.resolve())][3] = "recorded"
    assert again.sha256(file) == "recorded"
    file.chmod(0o600)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert again.sha256(file) == hashlib.sha256(b"x" * 100).hexdigest()


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff"])
def test_a_damaged_record_is_not_believed(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "hashes.json").write_bytes(damaged)
    (tmp_path / "a").write_bytes(b"abc")
    assert HashCache(tmp_path / "hashes.json").sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HubpubError, match="nowhere"):
        HashCache(tmp_path / "hashes.json").sha256(tmp_path / "nowhere")


def test_what_is_known_of_a_file_is_of_that_file_as_it_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"1")
    hashes = HashCache(tmp_path / "deep" / "er" / "hashes.json")
    assert hashes.known(one) is None
    assert hashes.sha256(one) == hashes.known(one) == hashlib.sha256(b"1").hexdigest()
    assert hashes.known(other) is None
    # What another process noted meanwhile is kept, what it noted before is read.
    HashCache(hashes.path).record(other, "noted")
    one.write_bytes(b"22")
    assert hashes.known(one) is None
    assert hashes.sha256(one) == hashlib.sha256(b"22").hexdigest()
    assert HashCache(hashes.path).known(other) == "noted"
    text = hashes.path.read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text not in repr(hashes) and "noted" not in repr(HashCache(hashes.path))


def test_records_lie_in_the_order_of_their_names(tmp_path: Path) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(b"1")
        hashes.record(tmp_path / name, "noted")
    assert [Path(name).name for name in json.loads(hashes.path.read_text())] == ["a", "b"]


def test_a_holder_s_note_that_is_gone_is_missed_by_nobody(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        (tmp_path / "lock.holder").unlink()


@pytest.mark.parametrize("record", [{"x": [1, 2, 3]}, {"x": "abcd"}, {"x": 4}])
def test_a_record_of_another_form_is_left_out(tmp_path: Path, record: dict[str, object]) -> None:
    path = tmp_path / "hashes.json"
    path.write_text(json.dumps({**record, "good": [1, 2, 3, "4"]}))
    assert HashCache(path).records == {"good": [1, 2, 3, "4"]}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * (64 << 20))
    hashes = HashCache(tmp_path / "hashes.json")
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            with path.open("ab") as file:
                file.write(b"y")

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        with pytest.raises(HubpubError, match=r"growing changed while it was read"):
            hashes.sha256(path)
    finally:
        stop.set()
        growing.join()
    assert hashes.records == {}


def test_a_lock_whose_holder_is_not_known_is_waited_for_too(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "lock"
    other = holder(path)
    (path.parent / "lock.holder").unlink()
    said: list[str] = []

    def waiting(who: str) -> None:
        said.append(who)
        other.kill()

    with locked(path, waiting):
        assert said == ["another process"]
    other.wait()


def test_an_exception_lets_go_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "lock.holder").exists()
    other = holder(tmp_path / "lock")
    other.kill()
    other.wait()
