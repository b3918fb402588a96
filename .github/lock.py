"""Write requirements.txt and requirements-build.txt: what jobs that can prove who they are install, with hashes.

    python .github/lock.py            resolve anew (needs `pip install uv`, PyPI and, for torch, PyTorch's index)
    python .github/lock.py --check    say whether the files are of pyproject.toml as it is; asks nobody

Versions are those of Linux on Python 3.12, which the workflows run. Hashes are of every file of a version, so that an
ARM runner is served too. Of torch there are two builds: PyPI's, and the CPU one, a tenth of its size, which pip takes
where PIP_EXTRA_INDEX_URL names its index; both are listed, the CPU one for each kind of machine that jobs run on.
Without its hash pip takes PyPI's in silence, and the job stops at `import torch`, for want of CUDA's libraries. Where
that index cannot be reached, the hashes that the file notes for the same version are kept; for another version nothing
is written, as every job would stop at its install.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYPROJECT = HERE.parent / "pyproject.toml"
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"
CPU_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
# What the CUDA build of torch asks for and the CPU build does not.
CUDA = ("nvidia-", "cuda-", "triton")
# Some packages come as source: setuptools builds them, and is installed before them.
BUILDERS = ["setuptools>=77"]
MARK = "# of: "
CPU_BUILD = "# CPU build of torch=="
# What the workflows' jobs run on.
MACHINES = ("x86_64", "aarch64")


def wanted() -> dict[str, list[str]]:
    """The requirements each file is resolved from."""
    declared = tomllib.loads(PYPROJECT.read_text("utf-8"))
    build = [*declared["build-system"]["requires"], *BUILDERS]
    return {"requirements-build.txt": build, "requirements.txt": declared["project"]["dependencies"]}


def mark(requirements: list[str]) -> str:
    return hashlib.sha256(json.dumps([PYTHON, PLATFORM, sorted(requirements)]).encode()).hexdigest()


def pinned(text: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    blocks = re.findall(r"(?m)^([\w.-]+)==(\S+)((?: \\\n +--hash=\S+)+)", text)
    return {name: (version, re.findall(r"--hash=(\S+)", hashes)) for name, version, hashes in blocks}


def resolve(requirements: list[str]) -> dict[str, tuple[str, list[str]]]:
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--python-version", PYTHON, "--python-platform"]
    command += [PLATFORM, "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return {name: one for name, one in pinned(done.stdout).items() if not name.startswith(CUDA)}


def cpu_hashes(version: str) -> dict[str, str]:
    """The hash of the CPU build of torch for each kind of machine, from its index."""
    with urllib.request.urlopen(CPU_INDEX, timeout=30) as answer:
        page = answer.read().decode()
    tag = "cp" + PYTHON.replace(".", "")
    build = rf"torch-{re.escape(version)}(?:%2B|\+)cpu-{tag}-{tag}-manylinux\w+?"
    wheels = re.findall(rf"{build}_({'|'.join(MACHINES)})\.whl#sha256=([0-9a-f]{{64}})", page)
    return {machine: f"sha256:{digest}" for machine, digest in wheels}


def noted(text: str) -> tuple[str, dict[str, str]]:
    """The version of torch whose CPU build a lock lists, and the hash of it for each kind of machine."""
    found = re.search(rf"(?m)^{CPU_BUILD}(\S+): (.*)$", text)
    return (found[1], dict(re.findall(r"(\w+) (sha256:\w+)", found[2]))) if found else ("", {})


def cpu_build(version: str, text: str) -> dict[str, str]:
    """Hashes of the CPU build of `version` by machine: from its index, else as the lock `text` notes them.

    Exits without one for each kind of machine.
    """
    why = "it does not list such a wheel for each of " + ", ".join(MACHINES)
    try:
        if (hashes := cpu_hashes(version)).keys() == set(MACHINES):
            return hashes
    except OSError as error:
        why = str(error)
    before, hashes = noted(text)
    if before != version or hashes.keys() != set(MACHINES):
        sys.exit(
            f"nothing was written: {CPU_INDEX} does not say what the CPU build of torch=={version} hashes to ({why}).\n"
            "Jobs install that build, and pip would refuse it in each of them: run this where the index can be reached."
        )
    print(f"{CPU_INDEX}: {why}; the hashes noted for torch=={version} are kept", file=sys.stderr)
    return hashes


def stale() -> list[str]:
    """What is wrong with the files, in a sentence each."""
    found = []
    for name, requirements in wanted().items():
        path = HERE / name
        text = path.read_text("utf-8") if path.exists() else ""
        pins = {canonicalize_name(one): version for one, (version, _) in pinned(text).items()}
        if f"{MARK}{mark(requirements)}\n" not in text:
            found.append(f"{name} was made of other requirements than pyproject.toml has now")
        for one in map(Requirement, requirements):
            version = pins.get(canonicalize_name(one.name))
            if version is None or not one.specifier.contains(version, prereleases=True):
                found.append(f"{name} has {version or 'nothing'} for {one}")
        torch, hashes = pinned(text).get("torch", ("", []))
        noted_for, build = noted(text)
        for machine in MACHINES if torch else ():
            if noted_for != torch or build.get(machine) not in hashes:
                found.append(
                    f"{name} lists no hash of the CPU build of torch=={torch} for {machine}: no job there runs"
                )
    return found


def write() -> None:
    for name, requirements in wanted().items():
        path = HERE / name
        pins = resolve(requirements)
        lines = [f"# Written by .github/lock.py for Python {PYTHON}; do not edit.", f"{MARK}{mark(requirements)}"]
        if "torch" in pins:
            version, hashes = pins["torch"]
            more = cpu_build(version, path.read_text("utf-8") if path.exists() else "")
            pins["torch"] = version, sorted({*hashes, *more.values()})
            shown = ", ".join(f"{machine} {more[machine]}" for machine in MACHINES)
            lines.append(f"{CPU_BUILD}{version}: {shown}")
        for one, (version, hashes) in sorted(pins.items()):
            lines.append(" \\\n    ".join([f"{one}=={version}", *(f"--hash={digest}" for digest in hashes)]))
        path.write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{path.name}: {len(pins)} packages")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        problems = stale()
        print("\n".join([*problems, "fix: python .github/lock.py"]) if problems else "the locks are up to date")
        sys.exit(bool(problems))
    write()
