"""The code on a card, copied from the rendered page: what can run here runs against a real file of a local Hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from card_python import Ended, each_in_a_process
from conftest import ROOT, Silent, kept_work, making, scale_model, script_at

from cards.sample import cell as sample
from hubpub.cards.render import render
from hubpub.config import Card, Project
from hubpub.facts import CardFacts, CellFacts, Context, FileFact, dump
from hubpub.hub.hashing import sha256sums
from hubpub.localhub import LocalHub
from hubpub.make.run import make
from hubpub.matrix import cells, select
from hubpub.measure.prompting import prompt_format
from hubpub.model.checkpoint import TOKENIZER_FILES, digest
from hubpub.plan import plan
from hubpub.workspace import Workspace

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NATIVE = Path(__file__).parent / "native"
VERSION = "v1.0.0"
TUNED, BASE = "gemma-3n-E2B-it-pte", "gemma-3n-E2B-pte"
# What the scale models learned to say to a question about a capital, and about the way of water.
ANSWERS = {TUNED: "capital of France is Paris", BASE: "great circle"}
REACT_NATIVE = "react-native-executorch@0.10.2"


@dataclass(frozen=True)
class Published:
    """Cards on a running Hub: the code blocks of each by language, as the page shows them, and the files beside."""

    hub: LocalHub
    blocks: dict[str, dict[str, list[str]]]
    pte: Path
    tokenizer: Path

    def env(self, home: Path) -> dict[str, str]:
        """What a program needs to meet this Hub and no other."""
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "HF_ENDPOINT": self.hub.url, "HF_HOME": str(home), "PYTHONPATH": "", "PATH": search}


@pytest.fixture(scope="module")
def made(
    run_folder: Path, kept: Path, project: Project, scale_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A scale model's checkpoint and a folder of its programs, with a KV cache and over a window."""
    # A work folder of its own, for its Hub, with the cells of the others.
    workspace = Workspace(project, kept_work(run_folder / "usage-work", kept), rehearsal=True)
    steps = plan(
        select(cells(project), [f"gemma-3n-E2B-it/{recipe}" for recipe in ("8da4w", "bf16-window")]), workspace
    )
    with making(kept):
        assert make(steps, workspace, Silent()).failures == {}
    out = tmp_path_factory.mktemp("programs")
    for step in steps:
        (out / step.cell.file).symlink_to(step.pte)
    return scale_model("gemma-3n-E2B-it", scale_cache), out


@pytest.fixture(scope="module")
def published(
    made: tuple[Path, Path], project: Project, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    """Both cards on a Hub with the files of the scale model, and what their pages show."""
    checkpoint, out = made
    folder = tmp_path_factory.mktemp("tokenizers")
    blocks: dict[str, dict[str, list[str]]] = {}
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        for repo in (TUNED, BASE):
            card = next(card for card in project.cards if card.repo == repo)
            tokenizer = folder / repo
            tokenizer.mkdir()
            for name in TOKENIZER_FILES:
                # The base model has the same tokenizer and no turns.
                if (checkpoint / name).is_file() and not (repo == BASE and "chat" in name):
                    shutil.copy2(checkpoint / name, tokenizer)
            _publish(hub, project, card, out, tokenizer)
            page = browser.new_page()
            page.goto(f"{hub.url}/{hub.user}/{repo}")
            found = page.locator("pre code").evaluate_all("all => all.map(one => [one.className, one.textContent])")
            page.close()
            blocks[repo] = {}
            for name, text in found:
                language = re.search(r"language-(\w+)", name)
                blocks[repo].setdefault(language[1] if language else "", []).append(text)
        yield Published(hub, blocks, out / "gemma-3n-E2B-it-8da4w.pte", folder / TUNED / "tokenizer.json")


def _publish(hub: LocalHub, project: Project, card: Card, out: Path, tokenizer: Path) -> None:
    """A release of `card` with real files; figures are made up, the program's shapes and the prompts are not."""
    from huggingface_hub import CommitOperationAdd, HfApi

    cells = tuple(
        _cell(project, card, recipe, out / f"gemma-3n-E2B-it-{recipe}.pte", tokenizer)
        for recipe in ("8da4w", "bf16-window")
    )
    facts = CardFacts(repo=f"{hub.user}/{card.repo}", version=VERSION, variant=card.variant.name, cells=cells)
    files = render(card, facts, namespace=hub.user, templates=project.templates_dir).files
    files |= {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    files |= {cell.file.name: (out / f"gemma-3n-E2B-it-{cell.recipe}.pte").read_bytes() for cell in cells}
    files["facts.json"] = dump(facts).encode()
    sums = [(name, hashlib.sha256(data).hexdigest()) for name, data in files.items() if name != "README.md"]
    files["SHA256SUMS"] = sha256sums(sums)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(facts.repo)
    api.create_commit(facts.repo, [CommitOperationAdd(name, data) for name, data in files.items()], commit_message="a")
    api.create_tag(facts.repo, tag=VERSION)


def _cell(project: Project, card: Card, recipe: str, pte: Path, tokenizer: Path) -> CellFacts:
    from hubpub.measure.inspect import inspect

    fact = digest(pte)
    program = inspect(pte)
    prefill, context = (int(str(program.metadata[key])) for key in ("get_max_seq_len", "get_max_context_len"))
    return sample(card, recipe, project.recipe(card, recipe).summary).model_copy(
        update={
            "file": FileFact(name=f"{card.variant.name}-{recipe}.pte", bytes=fact.bytes, sha256=fact.sha256),
            "tokenizer": tuple(digest(path) for path in sorted(tokenizer.iterdir())),
            "context": Context(exported=context, max_prefill=prefill, sliding_window=32, source=4096),
            "program": program,
            "prompt": prompt_format(tokenizer),
        }
    )


@pytest.fixture(scope="module")
def python(published: Published, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """Every block of Python of both cards, and one that goes on until the context is full."""
    codes = {repo: published.blocks[repo]["python"] for repo in (TUNED, BASE)}
    (code,) = (one for one in codes[TUNED] if "DecodeStream" in one)
    more = 'for _ in range(200):\n    "".join(generate(question))\n'
    codes["full"] = [f"{code}\n{more}"]
    folder = tmp_path_factory.mktemp("python")
    found = iter(each_in_a_process([code for group in codes.values() for code in group], published.env(folder), folder))
    return {name: [next(found) for _ in group] for name, group in codes.items()}


@pytest.mark.parametrize("repo", [TUNED, BASE])
def test_the_python_runs(python: dict[str, list[Ended]], repo: str) -> None:
    assert len(python[repo]) == 4
    for done in python[repo]:
        assert done.status == 0, done.err[-2000:]
        if "log_softmax" in done.code:
            # A text the model was trained on: its tokens are likely, each after those before it.
            scores = [float(one) for one in re.findall(r": (-?\d+\.\d+)$", done.out, re.MULTILINE)]
            assert len(scores) > 4
            assert -1 < sum(scores) / len(scores) <= 0
        else:
            assert ANSWERS[repo] in done.out
        if "DecodeStream" in done.code and repo == TUNED:
            # Two answers, and no mark of a turn in either.
            assert len(done.out.strip().splitlines()) >= 2
            assert "end_of_turn" not in done.out


def test_the_python_stops_at_the_end_of_the_context(python: dict[str, list[Ended]]) -> None:
    """Turn after turn fills the context: the code says so before the runtime fails."""
    (done,) = python["full"]
    assert done.status == 1
    assert "ValueError: the context is full" in done.err


def test_the_shell_downloads_and_checks(published: Published, tmp_path: Path) -> None:
    downloads = [code for code in published.blocks[TUNED]["sh"] if "hf download" in code]
    assert len(downloads) == 2
    first, second = (re.sub(r"(?m)^pip .*\n", "", code) for code in downloads)
    env = published.env(tmp_path / "home")
    done = subprocess.run(["sh", "-ec", first], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "gemma-3n-E2B-it"
    # The Hub counts a download by config.json.
    assert {"gemma-3n-E2B-it-8da4w.pte", "tokenizer.json", "config.json"} <= {path.name for path in folder.iterdir()}
    if shutil.which("shasum") is None:
        second = re.sub(r"(?m)^shasum .*\n", "", second)
    done = subprocess.run(["sh", "-ec", second], env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gemma-3n-E2B-it-8da4w.pte: OK" in done.stdout
    assert "FAILED" not in done.stdout


@pytest.mark.parametrize("repo", [TUNED, BASE])
def test_the_cpp_builds_links_and_runs(published: Published, repo: str, tmp_path: Path) -> None:
    """Against the libraries of the Python package, under the names that ExecuTorch's own build gives its targets."""
    import executorch
    import torch

    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no CMake or no C++ compiler")
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("LDLIBRARY"))
    if library.suffix == ".a" or not library.is_file():
        pytest.skip("the libraries of the Python package need Python's own as a shared one")
    # What comes after the program needs headers that the package does not have.
    (cmake,), (main, packed) = published.blocks[repo]["cmake"], published.blocks[repo]["cpp"]
    assert "load_packed" in packed
    (tmp_path / "CMakeLists.txt").write_text(cmake)
    (tmp_path / "main.cpp").write_text(main)
    source = tmp_path / "include" / "executorch"
    shutil.copytree(NATIVE / "include", source.parent)
    (source / "tools" / "cmake").mkdir(parents=True)
    (source / "tools" / "cmake" / "Utils.cmake").write_text(
        "function(executorch_target_link_options_shared_lib target)\nendfunction()\n"
    )
    places = {
        "EXECUTORCH_SOURCE": source,
        "executorch_DIR": NATIVE,
        "PACKAGE": Path(next(iter(executorch.__path__))),
        "TORCH": Path(torch.__file__).parent,
        "PYTHON": library,
    }
    for command in (
        ["cmake", "-B", "build", *(f"-D{key}={place}" for key, place in places.items())],
        ["cmake", "--build", "build"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    name = next(iter(re.findall(r'"([\w.-]+\.pte)"', main)))
    shutil.copy2(published.pte, tmp_path / name)
    shutil.copy2(published.tokenizer, tmp_path)
    done = subprocess.run(["build/answer"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ANSWERS[repo] in done.stdout
    answer = done.stdout.rpartition("\nanswer: ")[2].strip()
    assert answer
    assert "end_of_turn" not in answer


def test_packed_weights_in_cpp_give_the_same_answer(published: Published, tmp_path: Path) -> None:
    """With ExecuTorch's headers, which its Python package lacks: those of a clone of the cards' version."""
    clone = os.environ.get("HUBPUB_EXECUTORCH")
    if not clone:
        pytest.skip("HUBPUB_EXECUTORCH names no clone of ExecuTorch")
    benchmark = script_at(ROOT / "benchmarks" / "packed_weights.py")
    _, packed = published.blocks[TUNED]["cpp"]
    program, weights = benchmark.build(packed, Path(clone), tmp_path), tmp_path / "weights"
    common = (str(published.pte), str(published.tokenizer), "mmap", "The lighthouse")
    packs = (str(weights),)
    plain, first, second = (benchmark.measure(program, *common, *more) for more in ((), packs, packs))
    assert weights.stat().st_size > 0
    assert plain[-1] == first[-1] == second[-1]


@pytest.mark.parametrize("repo", [TUNED, BASE])
def test_the_react_native_has_the_types_of_the_package(published: Published, repo: str, work: Path) -> None:
    """Against the package that npm has, with TypeScript at its strictest."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "typescript").is_dir():
        (folder / "package.json").write_text('{"private": true}\n')
        install = ["npm", "install", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
        done = subprocess.run(
            [*install, REACT_NATIVE, "typescript@5"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode and re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr):
            pytest.skip("npm's registry cannot be reached")
        assert done.returncode == 0, done.stderr
    (code,) = published.blocks[repo]["ts"]
    check = ["npx", "tsc", "--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]
    (folder / "card.ts").write_text(code)
    done = subprocess.run(
        [*check, "--moduleResolution", "bundler", "card.ts"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    # The check can fail: an option that the package does not know is found.
    (folder / "card.ts").write_text(code.replace("maxNewTokens", "maxTokens"))
    done = subprocess.run(
        [*check, "--moduleResolution", "bundler", "card.ts"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "maxTokens" in done.stdout
