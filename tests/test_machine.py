"""What a machine is called, and whether its processor is its own."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest

from hubpub import doctor, machine
from hubpub.errors import ToolchainError
from hubpub.measure.bench import _Watch, ask_runner
from hubpub.measure.chat import _Process

# Of Linux on ARM: numbers of a maker and a part, no name.
ON_ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd49\n"
ON_X86 = "processor\t: 0\nmodel name\t: Some Processor 9\nflags\t: avx2\n"


@pytest.mark.parametrize(
    ("told", "listed", "name"),
    [
        (ON_X86, "false", "Some Processor 9"),
        (ON_ARM, "echo 'Vendor ID:  ARM'; echo 'Model name:   Neoverse-N2'", "Neoverse-N2"),
        (ON_ARM, "echo 'Model name:   -'", "aarch64"),
        (ON_ARM, "exit 1", "aarch64"),
    ],
)
def test_a_processor_has_a_name_on_arm_too(
    told: str, listed: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "lscpu"
    tool.write_text(f"#!/bin/sh\n{listed}\n")
    tool.chmod(0o755)
    read = Path.read_text

    def cpuinfo(path: Path, *arguments: Any, **named: Any) -> str:
        return told if path == Path("/proc/cpuinfo") else read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.host().startswith(f"{name}, ")
    tool.unlink()
    assert machine.host().startswith(f"{name if told == ON_X86 else 'aarch64'}, ")


def test_speed_on_an_emulated_processor_is_not_that_of_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "arch"
    monkeypatch.setattr(machine, "_KERNEL_ARCHITECTURE", kernel)
    assert not machine.emulated()
    kernel.write_text(f"{platform.machine()}\n")
    assert not machine.emulated()
    kernel.write_text("another\n")
    assert machine.emulated()
    assert _Watch().reason() == "the processor is emulated"


def test_a_library_that_the_runner_lacks_on_arm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    machine.check_runner_loads()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ToolchainError, match=r"LLM runner cannot be loaded: libatomic\.so\.1") as caught:
        ask_runner(tmp_path / "a.pte", tmp_path / "tokenizer.json", "a", 1, num_bos=0)
    with pytest.raises(ToolchainError, match="cannot be loaded"):
        _Process(tmp_path / "a.pte", tmp_path / "tokenizer.json", 0.0)
    assert caught.value.hint == "install it: apt-get install libatomic1"
    (found,) = [check for check in doctor.versions() if check.verdict == "failed"]
    assert (found.subject, found.fix) == ("LLM runner", caught.value.hint)
