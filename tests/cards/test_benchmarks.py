"""Benchmarks on a card and in what the Hub reads: whole tasks of registered data sets, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cards.sample import facts as all_facts
from hubpub.cards.blocks import metadata
from hubpub.cards.render import Rendered, render
from hubpub.config import Card, Project
from hubpub.facts import Evaluation, Score
from hubpub.localhub.metadata import check

WHOLE = Evaluation(
    task="gsm8k", version="3", dataset="openai/gsm8k", subset="main", split="test", shots=5, chat=False, items=1319,
    items_of_task=1319, truncated=0, harness="lm-evaluation-harness 0.4.13", runtime="executorch 1.4.1", sha256="s",
    scores=(Score(metric="exact_match, strict-match", value=0.25, stderr=0.012, interval=(0.227, 0.274)),),
)  # fmt: skip


@pytest.fixture
def card(project: Project) -> Card:
    return next(one for one in project.cards if one.repo == "gemma-4-E2B-it-pte")


def shown(project: Project, card: Card, evaluation: Evaluation, recipe: str | None = None) -> Rendered:
    """The card with one evaluation of the file of `recipe` (default: the recommended one)."""
    facts = all_facts(project, card)
    chosen = recipe or card.export.recommended
    cells = tuple(
        cell.model_copy(update={"evaluations": (evaluation,)}) if cell.recipe == chosen else cell
        for cell in facts.cells
    )
    return render(card, facts.model_copy(update={"cells": cells}), namespace="someone", templates=project.templates_dir)


def index(made: Rendered) -> Any:
    text = made.files["README.md"].decode()
    assert not check(text).errors
    return metadata(text).get("model-index")


def test_a_whole_benchmark_is_on_the_page_and_in_the_metadata(project: Project, card: Card) -> None:
    made = shown(project, card, WHOLE)
    (row,) = [line for line in made.files["README.md"].decode().splitlines() if "`gsm8k`" in line]
    assert row.endswith("| `gsm8k`, 5-shot | exact_match, strict-match | 0.25 | 0.227 to 0.274 | 1,319 |")
    (entry,) = index(made)
    assert entry["name"].endswith(f"{card.export.recommended}.pte")
    assert entry["results"][0]["dataset"]["type"] == "openai/gsm8k"
    assert entry["results"][0]["metrics"][0]["value"] == 0.25
    (board,) = yaml.safe_load(made.files[".eval_results/gsm8k.yaml"])
    assert (board["dataset"], board["value"]) == ({"id": "openai/gsm8k", "task_id": "gsm8k"}, 25.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"items": 100}, "100 of 1,319 (subset)"),
        ({"truncated": 3}, "1,319; 3 cut to fit"),
        ({"dataset": ""}, "1,319 |"),
    ],
)
def test_a_part_of_one_is_on_the_page_alone(project: Project, card: Card, changed: dict[str, Any], said: str) -> None:
    made = shown(project, card, WHOLE.model_copy(update=changed))
    assert said in made.files["README.md"].decode()
    assert index(made) is None
    assert not any(Path(name).parts[0] == ".eval_results" for name in made.files)


def test_another_file_than_the_recommended_one_speaks_on_the_page_alone(project: Project, card: Card) -> None:
    made = shown(project, card, WHOLE, "bf16")
    assert "`gsm8k`" in made.files["README.md"].decode()
    assert index(made) is None


def test_what_the_hub_has_no_leaderboard_of_is_in_the_metadata_alone(project: Project, card: Card) -> None:
    made = shown(project, card, WHOLE.model_copy(update={"task": "arc_easy", "dataset": "allenai/ai2_arc"}))
    assert index(made)
    assert not any(Path(name).parts[0] == ".eval_results" for name in made.files)
