"""What this machine is: versions of the export stack, processor and system, memory, and how many processes fit."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hubpub.errors import ToolchainError

STACK = ("torch", "executorch", "torchao", "transformers")
"""The packages whose versions decide the bytes of a `.pte`."""


def export_environment() -> dict[str, str]:
    """What a process must find when it starts, so that what it exports is the same file on every machine.

    Sums of a calibrated recipe are rounded as the vectors of the processor are wide: those of AVX2 are used where there
    are wider ones. No file may depend on the order of a set, and tests see to it; where one did after all, it would be
    the same file everywhere.
    """
    found = {"PYTHONHASHSEED": "0"}
    if platform.machine() in {"x86_64", "AMD64"}:
        found |= {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT"}
    return found


_KERNEL_ARCHITECTURE = Path("/proc/sys/kernel/arch")


@cache
def versions(packages: tuple[str, ...] = STACK) -> dict[str, str]:
    """Installed versions, without local build tags; "missing" where a package is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def system() -> str:
    """Operating system and processor architecture, e.g. "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def host() -> str:
    """The processor, cores and system a speed was measured on; nothing that identifies the machine."""
    name = _processor() or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def _processor() -> str | None:
    """The name of the processor as Linux tells it; on ARM it tells numbers, which lscpu knows the names of."""
    try:
        told = Path("/proc/cpuinfo").read_text()
        if "model name" not in told:
            environment = {**os.environ, "LC_ALL": "C"}
            told = subprocess.run(
                ["lscpu"], capture_output=True, text=True, check=False, timeout=10, env=environment
            ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.partition(":") for line in told.splitlines() if line.lower().startswith("model name"))
    return next((name.strip() for _, _, name in lines if name.strip() not in {"", "-"}), None)


def emulated() -> bool:
    """Whether the processor is an emulated one: Linux runs on another kind than it tells this program of."""
    try:
        return _KERNEL_ARCHITECTURE.read_text().strip() != platform.machine()
    except OSError:
        return False


def check_runner_loads() -> None:
    """Raise ToolchainError where a library is missing that ExecuTorch's LLM runner needs.

    Its wheel for ARM has one of GCC's that systems without a compiler lack; it then says that it was not installed.
    """
    if system() == "Linux aarch64":
        try:
            ctypes.CDLL("libatomic.so.1")
        except OSError as error:
            raise ToolchainError(
                f"ExecuTorch's LLM runner cannot be loaded: {error}", "install it: apt-get install libatomic1"
            ) from None


def processes_that_fit(tasks: int, bytes_each: int) -> int:
    """As many processes for `tasks` as there are cores and as fit into the memory that is free, at least one."""
    import psutil

    fitting = psutil.virtual_memory().available // max(bytes_each, 1)
    return max(1, min(tasks, os.cpu_count() or 1, int(fitting)))


def resident() -> tuple[int, int] | None:
    """Bytes of this process in memory: anonymous, and mapped from files; None where the system does not tell them
    apart."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024, int(lines["RssFile"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def peak_resident_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    try:
        # getrusage also counts what the parent held when it forked; the kernel's mark of this image does not.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
