"""Benchmarks of lm-evaluation-harness over a real program: tasks of our own, which SmolLM2's stand-in can solve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import hubpub
from toy import card, cell

pytest.importorskip("lm_eval", reason="hubpub[eval] is not installed")

from hubpub.errors import UsageError
from hubpub.facts import Evaluation, load
from hubpub.make.evaluations import EvaluationRecord, Evaluations, evaluate, with_evaluations
from hubpub.measure.harness import Asked, interval
from hubpub.workspace import Workspace

CAPITALS = {"France": "Paris", "Norway": "Oslo", "Italy": "Rome", "Egypt": "Cairo"}
CHOICE = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.0}}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{whole}}}}"
generation_kwargs: {{until: ["."], do_sample: {sampled}, max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks over the same four items."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = []
    for number, (country, capital) in enumerate(CAPITALS.items()):
        answers = [f"The capital of {country} is {one}" for one in CAPITALS.values()]
        item = {"question": f"What is the capital of {country}?", "choices": answers, "answer": number}
        lines.append(json.dumps({**item, "whole": f"The capital of {country} is {capital}"}))
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "capitals.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "written.yaml").write_text(WRITTEN.format(folder=folder, sampled="false"))
    return folder


@pytest.fixture
def workspace(project: object, tmp_path: Path) -> Workspace:
    return Workspace(project, tmp_path / "work", rehearsal=True)  # type: ignore[arg-type]


def test_a_program_answers_tasks_and_goes_on_where_it_was(program: Path, tasks: Path, workspace: Workspace) -> None:
    told: list[str] = []

    def ask(*names: str, limit: int | None = None) -> tuple[Evaluation, ...]:
        asked = Asked(names, limit=limit, chat=True, include=tasks)
        return evaluate(workspace, program, None, asked, lambda stage, fraction: told.append(stage))

    (some,) = ask("capitals", limit=2)
    assert (some.items, some.items_of_task, some.whole) == (2, 4, False)
    (answers,) = (workspace.root / "answers").glob("*.jsonl")
    head, *kept = answers.read_text().splitlines()
    assert (answers.stem, len(kept)) == (json.loads(head)["file"], 8)
    # Killed in the middle of a line.
    answers.write_text("\n".join([head, *kept])[:-5])
    choice, written = ask("capitals", "written")
    assert choice.whole and written.whole
    assert (choice.task, choice.version, choice.dataset, choice.split) == ("capitals", "2.0", "", "test")
    assert choice.scores[0].metric == "acc" and choice.scores[0].value >= 0.75
    assert written.scores[0].value >= 0.75
    low, high = choice.scores[0].interval or (0.0, 0.0)
    assert low < choice.scores[0].value <= high
    assert len(answers.read_text().splitlines()) == 1 + 16 + 4
    assert any("4 of 4 items, " in stage and "a minute" in stage for stage in told)
    told.clear()
    assert ask("capitals", "written") == (choice, written)
    assert "4 of 4 items, all known" in told


def test_answers_of_another_file_are_not_taken(program: Path, tasks: Path, workspace: Workspace) -> None:
    sha256 = workspace.hashes.sha256(program)
    path = workspace.answers(sha256)
    path.parent.mkdir(parents=True)
    path.write_text('{"file": "other", "runtime": "executorch 1.4.1"}\n{"request": "x", "answer": 1}\n')
    evaluate(workspace, program, None, Asked(("capitals",), limit=1, include=tasks), lambda *_: None)
    assert '"x"' not in path.read_text()


def test_what_cannot_be_run_says_why(program: Path, tasks: Path, workspace: Workspace) -> None:
    def ask(name: str, include: Path = tasks) -> None:
        evaluate(workspace, program, None, Asked((name,), include=include), lambda *_: None)

    with pytest.raises(UsageError, match="no folder"):
        ask("capitals", tasks / "none")
    (tasks / "written.yaml").write_text(WRITTEN.format(folder=tasks, sampled="true"))
    with pytest.raises(UsageError, match="samples its answers"):
        ask("written")


def test_the_command_line_takes_a_file(program: Path, tasks: Path, tmp_path: Path) -> None:
    ran = hubpub("eval", str(program), "--tasks", "capitals", "--include", str(tasks), "--chat", work=tmp_path / "w")
    assert ran.code == 0, ran.err
    assert "capitals" in ran.out and "4 of 4 items" in ran.err and "it/s" not in ran.err


def test_an_interval_is_that_of_a_share_or_from_the_error() -> None:
    assert interval(1.0, 0.0, [1.0] * 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert interval(0.5, 0.1, [0.2, 0.8]) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert interval(12.0, None, []) is None


def test_figures_are_shown_for_the_file_they_are_of(tmp_path: Path) -> None:
    """Whatever is kept beside a card: facts of another file do not show it."""
    from toy import declared

    one = declared(tmp_path / "toy-pte")
    evaluation = Evaluation(
        task="t", version="1", dataset="", subset="", split="test", shots=0, chat=False, items=4, items_of_task=4,
        truncated=0, scores=(), harness="h", runtime="r", sha256="0",
    )  # fmt: skip
    kept = Evaluations(measured=(EvaluationRecord(cell="toy/8da4w", evaluation=evaluation),))
    (tmp_path / "toy-pte" / "evaluations.json").write_text(kept.model_dump_json())
    assert load(Evaluations, tmp_path / "toy-pte" / "evaluations.json") == kept
    assert with_evaluations(card(cell()), one).cells[0].evaluations == (evaluation,)
    assert with_evaluations(card(cell(file__sha256="1")), one).cells[0].evaluations == ()
