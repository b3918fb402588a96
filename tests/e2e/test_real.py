"""Real weights, all the way: a release of SmolLM2 from a source on a Hub, and an answer from the published file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Ran, hubpub, kept_work, with_card
from real_weights import REPO, smollm2, source_on

from hubpub.localhub import LocalHub

pytestmark = [pytest.mark.real, pytest.mark.slow]

CARD = "SmolLM2-135M-Instruct-pte"
CELL = "SmolLM2-135M-Instruct/8da4w"
QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def own_work(run_folder: Path, kept: Path) -> Path:
    """A work folder beside that of the rehearsal, whose lock and Hub it has not to wait for."""
    return kept_work(run_folder / "real-work", kept / "real-work")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, str]]:
    """A Hub that holds the source model, and the commit it has there."""
    with LocalHub(tmp_path_factory.mktemp("source"), orgs=[REPO.partition("/")[0]]) as hub:
        yield hub, source_on(hub, smollm2())


@pytest.fixture(scope="module")
def released(source: tuple[LocalHub, str], own_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """`hubpub release`, not a rehearsal, to the local Hub: without a token, of one cell with a short context."""
    hub, commit = source
    project = tmp_path_factory.mktemp("real-project")
    recipe = CELL.rpartition("/")[2]
    with_card(project, CARD, recipes=[recipe], recommended=recipe, context=512, revision=commit)
    ran = hubpub(
        "release", "SmolLM2-135M-Instruct/*", "--version", "v0.1.0", "--hub", "local", "--json",
        work=own_work, cwd=project, HF_ENDPOINT=hub.url, HF_HOME=str(own_work / "home"), HF_TOKEN="",
    )  # fmt: skip
    assert ran.code == 0, ran.err[-4000:]
    return Ran(ran.code, ran.out, ran.err, project)


def test_a_real_model_is_released_and_passes_its_gates(released: Ran) -> None:
    (cell,) = released.json["cells"]
    assert cell["cell"] == CELL
    assert cell["passed"]
    (receipt,) = released.json["receipts"]
    assert (receipt["repo_id"], receipt["version"]) == (f"local/{CARD}", "v0.1.0")


@pytest.mark.parametrize("target", [f"local/{CARD}", f"local/{CARD}@v0.1.0"])
def test_the_published_file_answers_in_english(released: Ran, own_work: Path, target: str) -> None:
    ran = hubpub(
        "run", target, "--chat", "--prompt", QUESTION, "--json", work=own_work, cwd=released.root,
        HF_HOME=str(own_work / "home"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "Paris" in ran.json["text"]
