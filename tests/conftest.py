"""Fixtures shared by all rooms: this checkout's project, and one whole rehearsal that many tests look at."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from filelock import FileLock

from hubpub import cli
from hubpub.config import Project

ROOT = Path(__file__).parent.parent
# Read when torch is imported: threads that spin while they wait take the processor from the tests beside.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def project() -> Project:
    """The cards and templates of this checkout."""
    return Project.find(ROOT)


@pytest.fixture(scope="session", autouse=True)
def _unsynced() -> Iterator[None]:
    """Nothing that this process writes need outlive the machine: 16,000 small files were flushed to disk one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@dataclass(frozen=True)
class Ran:
    """A finished `hubpub` command."""

    code: int
    out: str
    err: str
    root: Path = ROOT

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def hubpub(*arguments: str, work: Path, cwd: Path = ROOT, timeout: float = 1800, **env: str) -> Ran:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hubpub", *arguments, "--work", str(work)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def hubpub_here(*arguments: str, work: Path | None = None, cwd: Path = ROOT, **env: str) -> Ran:
    """Run the command line in this process, which takes a third of a second less: for what a command says and does."""
    line = [*arguments, *(["--work", str(work)] if work else [])]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, env),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.main(line)
    return Ran(code, out.getvalue(), err.getvalue())


class Silent:
    """A display that keeps the notes it is given."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished: dict[str, str] = {}

    def update(self, name: str, stage: str, fraction: float) -> None: ...

    def finish(self, name: str, outcome: str) -> None:
        self.finished[name] = outcome

    def note(self, text: str) -> None:
        self.notes.append(text)


def script_at(path: Path) -> Any:
    """The module of a script that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_card(root: Path, card: str, /, **values: Any) -> Path:
    """Put this checkout's card of a repo into the project at `root`, with other `values` of its keys; its file."""
    text = (ROOT / "cards" / card / "card.toml").read_text("utf-8")
    for key, value in values.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", text)
    path = root / "cards" / str(values.get("repo", card)) / "card.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    return path


def bounded(script: str, *paths: Path, memory: int) -> list[str]:
    """The words that `script` prints, given `memory` and `paths` as arguments, in a minute of the processor."""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(memory), *map(str, paths)],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.split()


# What a work folder may have of an earlier run: each named by a fingerprint of all that it is made of. Never a Hub, for
# what is released is compared with what was.
KEPT = ("scale", "cells", "references")
# What decides the figures in a cell's facts, and is not in its fingerprint.
MEASURING_CODE = ("measure", "make/cell.py", "facts.py", "gates.py")


def kept_work(root: Path, kept: Path) -> Path:
    """A work folder at `root` with no Hub and no receipts; its scale models and cells are those in `kept`."""
    root.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        (kept / name).mkdir(parents=True, exist_ok=True)
        # Each process of pytest-xdist does this.
        with contextlib.suppress(FileExistsError):
            (root / name).symlink_to((kept / name).resolve(), target_is_directory=True)
    return root


def making(kept: Path) -> FileLock:
    """Held while cells in `kept` are made: work folders that share them would write the same ones at once."""
    return FileLock(kept / "making.lock")


def forget_measured(kept: Path) -> None:
    """Delete what was measured in `kept` by other code than today's; exported programs stay."""
    digest = hashlib.sha256()
    for path in sorted(file for name in MEASURING_CODE for file in _modules(ROOT / "hubpub" / name)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    mark = kept / "measured-by"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return
    for name in ("parity.json", "speed.json", "facts.json"):
        for path in kept.glob(f"**/cells/*/*/*/*/{name}"):
            path.unlink()
    kept.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest.hexdigest())


def _modules(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Once for a run, and not in every process of pytest-xdist."""
    if (given := os.environ.get("HUBPUB_TEST_WORK")) and not hasattr(session.config, "workerinput"):
        forget_measured(Path(given))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run: one for all processes of pytest-xdist, each of which has its own in it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def kept(run_folder: Path) -> Path:
    """Where it lies what is made once: in HUBPUB_TEST_WORK, which stays for the next run, else in that of this one."""
    given = os.environ.get("HUBPUB_TEST_WORK")
    return Path(given).absolute() if given else run_folder / "kept"


@pytest.fixture(scope="session")
def work(run_folder: Path, kept: Path) -> Path:
    """The work folder of this test run."""
    return kept_work(run_folder / "work", kept)


@pytest.fixture(scope="session")
def scale_cache(work: Path) -> Path:
    """Where scale models of this test run are kept."""
    return work / "scale"


# A chat model of every family.
OF_FAMILY = {
    "gemma3": "gemma-3-270m-it",
    "gemma3n": "gemma-3n-E2B-it",
    "gemma4": "gemma-4-E2B-it",
    "llama": "SmolLM2-135M-Instruct",
}


def scale_model(variant: str, cache: Path) -> Path:
    """The checkpoint that stands in for a variant of this checkout's cards."""
    from hubpub.model.scale import build

    variants = {card.variant.name: card.variant for card in Project.find(ROOT).cards}
    return build(variants[variant], cache)


# One card whole, and of the others what differs from it: both families, both sizes, a base model.
REHEARSED = {
    "gemma-3n-E2B-it-pte": None,
    "gemma-3n-E4B-it-pte": ["8da4w", "bf16"],
    "gemma-4-E2B-it-pte": ["8da4w", "8da4w-small", "bf16"],
    "gemma-4-E4B-pte": ["8da4w"],
}


@pytest.fixture(scope="session")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of the rehearsal: cards of this checkout, with fewer recipes so that the tests stay short."""
    root = tmp_path_factory.mktemp("project")
    for repo, recipes in REHEARSED.items():
        with_card(root, repo, **({} if recipes is None else {"recipes": recipes}))
    return Project.find(root)


@pytest.fixture(scope="session")
def rehearsal(rehearsed: Project, work: Path, kept: Path) -> Ran:
    """`hubpub release --all --rehearse --json` of that project, once."""
    with making(kept):
        ran = hubpub("release", "--all", "--rehearse", "--json", work=work, cwd=rehearsed.root)
    assert ran.code == 0, ran.err[-4000:]
    return replace(ran, root=rehearsed.root)


# What stands behind these takes more than a second: training, an export, a browser, a whole release.
SLOW_FIXTURES = {"browser", "programs", "rehearsal", "scale_cache"}

# Side by side, tests of one file stay in one process, and so do all that look at the rehearsal or publish to its Hub:
# a local Hub is served by one process at a time; and those of one cell, which two would wait for. What takes longest
# begins first.
ONE_CELL = ("tests/make/test_cell.py", "tests/make/test_rebuild.py", "tests/make/test_run.py")
TOGETHER = (
    "tests/e2e/test_release.py",
    "tests/e2e/test_regression.py",
    "tests/e2e/test_workflow.py",
    "tests/release/test_assemble.py",
)
FIRST = (*TOGETHER, "tests/e2e/test_real.py", "tests/export/test_cell.py")
# What would wait for the cells of the rehearsal, if it began with it.
LAST = ("tests/cards/test_usage.py",)


def _file(node: str) -> str:
    return node.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that ask for something slow are slow; what else is, says so. `-m "not slow"` leaves all of it out."""
    for item in items:
        if isinstance(item, pytest.Function) and SLOW_FIXTURES.intersection(item.fixturenames):
            item.add_marker("slow")
            if "rehearsal" in item.fixturenames and _file(item.nodeid) not in TOGETHER:
                raise pytest.UsageError(f"{_file(item.nodeid)} looks at the rehearsal: name it in TOGETHER")
    order = {name: place for place, name in enumerate(FIRST)} | dict.fromkeys(LAST, len(FIRST) + 1)
    items.sort(key=lambda item: order.get(_file(item.nodeid), len(FIRST)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out files, and those that belong together at once; called where pytest runs with `-n`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = _file(nodeid)
            return "rehearsal" if file in TOGETHER else "one cell" if file in ONE_CELL else file

    # In the order of the collection, not by the number of tests.
    config.option.loadscopereorder = False
    return ByFile(config, log)
