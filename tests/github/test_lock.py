"""What jobs that can prove who they are install: locked, with hashes, and of pyproject.toml as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, script_at

GITHUB = ROOT / ".github"


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / ".github" / "lock.py"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_locks_are_of_the_requirements_as_they_are() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"torch==2.13.0"', '"torch==2.12.0"', "has 2.13.0 for torch==2.12.0"),
        ('"rich>=13.9"', '"rich>=13.9",\n  "cowsay>=6"', "has nothing for cowsay>=6"),
        ('requires = ["hatchling>=1.27"]', 'requires = ["hatchling>=99"]', "for hatchling>=99"),
    ],
)
def test_a_lock_of_other_requirements_is_stale(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / ".github").mkdir()
    for name in ("lock.py", "requirements.txt", "requirements-build.txt"):
        shutil.copy(GITHUB / name, tmp_path / ".github" / name)
    text = (ROOT / "pyproject.toml").read_text()
    assert old in text
    (tmp_path / "pyproject.toml").write_text(text.replace(old, new))
    done = check(tmp_path)
    assert done.returncode == 1 and said in done.stdout and "fix: python .github/lock.py" in done.stdout


HERE = "sha256:4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2"
ON_ARM = "sha256:6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604"
NOTE = "# CPU build of torch==2.13.0: "


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NOTE, "# "),
        (NOTE, "# CPU build of torch==2.12.0: "),
        (f"{NOTE}x86_64 sha256:4", f"{NOTE}x86_64 sha256:5"),
        # pip would take PyPI's build there, which wants the libraries of CUDA.
        (f", aarch64 {ON_ARM}", ""),
        (f"    --hash={ON_ARM} \\\n", ""),
    ],
    ids=["not noted", "of another version", "noted and not listed", "not noted for ARM", "not listed for ARM"],
)
def test_a_lock_that_no_job_could_install_is_stale(old: str, new: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(GITHUB, tmp_path / ".github")
    path = tmp_path / ".github" / "requirements.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    done = check(tmp_path)
    assert done.returncode == 1 and "no hash of the CPU build of torch==2.13.0" in done.stdout


def test_without_its_index_the_hashes_of_the_same_torch_are_kept_and_none_are_made_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = script_at(GITHUB / "lock.py")
    monkeypatch.setattr(lock, "CPU_INDEX", "http://127.0.0.1:9/")
    text = (GITHUB / "requirements.txt").read_text()
    assert lock.cpu_build("2.13.0", text) == {"x86_64": HERE, "aarch64": ON_ARM}
    assert "the hashes noted for torch==2.13.0 are kept" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"nothing was written: .*torch==2\.14\.0"):
        lock.cpu_build("2.14.0", text)
    with pytest.raises(SystemExit, match="nothing was written: "):
        lock.cpu_build("2.13.0", text.replace(f", aarch64 {ON_ARM}", ""))


def test_the_index_tells_the_builds_of_machines_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = script_at(GITHUB / "lock.py")
    name = "torch-{}%2Bcpu-{}-{}-manylinux_2_28_{}.whl#sha256={}"
    wheels = [("2.13.0", "cp312", "cp312", "x86_64", "a" * 64), ("2.13.0", "cp312", "cp312", "aarch64", "b" * 64)]
    others = [("2.13.0", "cp313", "cp313", "x86_64", "c" * 64), ("2.13.1", "cp312", "cp312", "x86_64", "d" * 64)]
    page = tmp_path / "index.html"
    monkeypatch.setattr(lock, "CPU_INDEX", page.as_uri())
    page.write_text("\n".join(f'<a href="/whl/cpu/{name.format(*one)}">' for one in [*wheels, *others]))
    found = {"x86_64": "sha256:" + "a" * 64, "aarch64": "sha256:" + "b" * 64}
    assert lock.cpu_build("2.13.0", "") == found
    # One of a kind alone is not enough.
    page.write_text(f'<a href="/whl/cpu/{name.format(*wheels[0])}">')
    with pytest.raises(SystemExit, match="for each of x86_64, aarch64"):
        lock.cpu_build("2.13.0", "")


def test_every_line_of_a_lock_has_a_hash() -> None:
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (GITHUB / name).read_text()
        names = re.findall(r"(?m)^[^#\s]\S*", text)
        assert names and all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", one) for one in names)
        assert not re.search(r"(?m)^[^#\s]\S*$", text)
    torch = (GITHUB / "requirements.txt").read_text().split("\ntorch==")[1].split("\nt")[0]
    # PyPI's builds for Linux on Python 3.12, and the CPU ones of PyTorch's own index.
    assert "796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b" in torch
    assert "572df8be8ffb4599c88cbd6a0726f1f854f4da65d2e3c09f0e2c2283333cd6d4" in torch
    assert HERE in torch and ON_ARM in torch


def test_jobs_that_can_prove_who_they_are_install_nothing_else() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            if job.get("permissions", {}).get("id-token") != "write":
                continue
            lines = [step["run"] for step in job["steps"] if "install" in step.get("run", "")]
            assert lines == ["bash .hubpub-source/.github/install"]
    for line in (GITHUB / "install").read_text().splitlines():
        if line.startswith("pip "):
            assert "--no-deps" in line
            assert "--require-hashes" in line or ("--no-build-isolation" in line and line.endswith('"$here/.."'))
