"""Plans: what would run, and the reason a person is given."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import toy

from hubpub.config import Project
from hubpub.facts import MEASURING, CellFacts, save
from hubpub.machine import versions
from hubpub.matrix import Cell, cells
from hubpub.plan import Fingerprint, Step, fingerprint, plan, remember
from hubpub.workspace import Workspace


@pytest.fixture
def cell(project: Project) -> Cell:
    """The first declared cell."""
    return cells(project)[0]


def one(cell: Cell, work: Path, *, rehearse: bool = True, force: bool = False) -> Step:
    (step,) = plan([cell], Workspace(Project(work, work), work, rehearse), force=force)
    return step


def finish(step: Step) -> None:
    """Lay down what a cell that was made leaves behind, as far as a plan looks at it."""
    remember(step)
    step.pte.write_bytes(b"program")
    sha256 = hashlib.sha256(b"program").hexdigest()
    step.workspace.hashes.record(step.pte, sha256)
    measured = {"measuring": MEASURING, "sha256": sha256}
    facts = {"file": {"sha256": sha256}, "parity": measured, "speed": measured}
    (step.folder / "facts.json").write_text(json.dumps(facts))


def test_a_cell_is_new_then_unfinished_then_up_to_date(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    assert (step.action, step.reason) == ("export", "new")
    remember(step)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("export", "not finished")
    finish(step)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "up to date")
    step = one(cell, tmp_path, force=True)
    assert step.forced and step.reason == "forced" and not one(cell, tmp_path).forced
    (step.folder / "facts.json").write_text("{}")
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "to be measured again")


def test_a_changed_recipe_is_named_and_its_gates_are_not_part_of_it(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    other = Cell(cell.card, cell.recipe.model_copy(update={"head": None}))
    assert one(other, tmp_path).reason == "changed: recipe"
    stricter = cell.recipe.gates.model_copy(update={"top1_min": 1.0})
    judged = Cell(cell.card, cell.recipe.model_copy(update={"gates": stricter}))
    assert one(judged, tmp_path).reason == "up to date"


def test_a_changed_context_is_named(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    export = cell.card.export.model_copy(update={"context": 64})
    assert (
        one(Cell(cell.card.model_copy(update={"export": export}), cell.recipe), tmp_path).reason == "changed: context"
    )


def test_a_rehearsal_and_a_release_never_share_files(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    assert one(cell, tmp_path, rehearse=False).reason == "new"


def test_a_pinned_revision_is_the_source(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path, rehearse=False))
    variant = cell.variant.model_copy(update={"revision": "0" * 40})
    moved = Cell(cell.card.model_copy(update={"variant": variant}), cell.recipe)
    assert one(moved, tmp_path, rehearse=False).reason == "changed: source"


def test_an_excluded_cell_is_skipped_with_its_reason(cell: Cell, tmp_path: Path) -> None:
    step = one(Cell(cell.card, cell.recipe, "too large"), tmp_path)
    assert (step.action, step.reason) == ("skip", "excluded: too large")


def test_another_file_than_was_measured_is_exported_again(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    finish(step)
    step.pte.write_bytes(b"another")
    # Nothing is known of it yet: whoever reads the facts hashes it first.
    assert one(cell, tmp_path).action == "reuse"
    step.workspace.hashes.sha256(step.pte)
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == (
        "export",
        "the file is not the one that was measured",
    )


@pytest.mark.parametrize("stale", ["parity", "speed"])
def test_what_was_measured_on_another_file_is_measured_again(cell: Cell, tmp_path: Path, stale: str) -> None:
    step = one(cell, tmp_path)
    finish(step)
    path = step.folder / "facts.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, stale: {**facts[stale], "sha256": "0" * 64}}))
    assert one(cell, tmp_path).reason == "to be measured again"
    path.write_text(json.dumps({**facts, stale: {"measuring": MEASURING}}))
    assert one(cell, tmp_path).reason == "to be measured again"


@pytest.mark.parametrize("missing", ["facts.json", "the program"])
def test_a_cell_without_its_file_or_its_facts_is_not_finished(cell: Cell, tmp_path: Path, missing: str) -> None:
    step = one(cell, tmp_path)
    finish(step)
    (step.pte if missing == "the program" else step.folder / missing).unlink()
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("export", "not finished")
    assert one(cell, tmp_path).facts() is None


def test_what_was_measured_in_another_way_is_measured_again(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    finish(step)
    path = step.folder / "facts.json"
    facts = json.loads(path.read_text())
    for one_of in ("parity", "speed"):
        path.write_text(json.dumps({**facts, one_of: {**facts[one_of], "measuring": MEASURING - 1}}))
        assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "to be measured again")


@pytest.mark.parametrize("text", ["", "[]", '{"file": 1}', "\udc80"])
def test_damaged_facts_are_measured_again(cell: Cell, tmp_path: Path, text: str) -> None:
    step = one(cell, tmp_path)
    finish(step)
    (step.folder / "facts.json").write_text(text, errors="surrogateescape")
    assert (one(cell, tmp_path).action, one(cell, tmp_path).reason) == ("reuse", "to be measured again")


def test_what_changed_is_told_of_the_latest_that_can_be_read(cell: Cell, tmp_path: Path) -> None:
    """Of three older notes the newest is damaged, and the one before it differs in two parts."""
    step = one(cell, tmp_path)
    mark = step.fingerprint
    others = (
        Fingerprint("s", mark.recipe, mark.context, mark.versions, "c"),
        Fingerprint(mark.source, mark.recipe, "x", "v", mark.code),
    )
    for age, other in zip((300, 200), others, strict=True):
        older = Step(cell, "export", "", other, step.workspace)
        remember(older)
        os.utime(older.folder / "fingerprint.json", (1e9 - age, 1e9 - age))
    damaged = step.folder.with_name("damaged") / "fingerprint.json"
    damaged.parent.mkdir()
    for text in ("{", '{"source": "s"}'):
        damaged.write_text(text)
        assert one(cell, tmp_path).reason == "changed: context, versions"


def test_each_part_of_a_fingerprint_is_part_of_its_value(cell: Cell) -> None:
    mark = fingerprint(cell, rehearsal=True)
    parts = ("source", "recipe", "context", "versions", "code")
    values = {Fingerprint(**{**vars(mark), part: "0"}).value for part in parts}
    assert len(values | {mark.value}) == 6
    for part in parts:
        assert Fingerprint(**{**vars(mark), part: "0"}).changes(mark) == [part]
    assert mark.changes(mark) == []
    assert all(
        len(value) == 12 and set(value) <= set("0123456789abcdef") for value in (*vars(mark).values(), mark.value)
    )


def test_what_a_file_depends_on_changes_its_fingerprint(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = fingerprint(cell, rehearsal=True)

    def changed(other: Cell) -> list[str]:
        return fingerprint(other, rehearsal=True).changes(mark)

    for export in ({"prefill": 7}, {"context": 64}):
        card = cell.card.model_copy(update={"export": cell.card.export.model_copy(update=export)})
        assert changed(Cell(card, cell.recipe)) == ["context"]
    named = cell.recipe.model_copy(update={"summary": "in other words"})
    assert changed(Cell(cell.card, named)) == []
    assert fingerprint(cell, rehearsal=False).changes(mark) == ["source"]
    versions.cache_clear()
    try:
        monkeypatch.setattr("hubpub.machine.version", lambda name: "0.0.1")
        assert changed(cell) == ["versions"]
    finally:
        monkeypatch.undo()
        versions.cache_clear()


def test_a_plan_as_json(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    assert step.as_json() == {
        "cell": cell.id,
        "repo": cell.card.repo,
        "file": cell.file,
        "recipe": cell.recipe.summary,
        "action": "export",
        "reason": "new",
        "fingerprint": step.fingerprint.value,
    }
    assert step.folder.name == step.fingerprint.value


def test_the_facts_of_a_step_are_of_its_file_with_the_limits_of_today(cell: Cell, tmp_path: Path) -> None:
    step = one(cell, tmp_path)
    finish(step)
    sha256 = hashlib.sha256(b"program").hexdigest()
    facts = toy.cell(file={"name": cell.file, "bytes": 7, "sha256": sha256}, gates=[])
    save(facts, step.folder / "facts.json")
    found = step.facts()
    assert isinstance(found, CellFacts)
    assert (found.file, found.summary) == (facts.file, cell.recipe.summary)
    assert "kl_mean" in {gate.name for gate in found.gates}
    step.pte.write_bytes(b"another")
    assert step.facts() is None


def test_an_unpinned_source_is_rehearsed_and_not_released(cell: Cell, tmp_path: Path) -> None:
    card = cell.card.model_copy(update={"variant": cell.variant.model_copy(update={"revision": None})})
    loose = Cell(card, cell.recipe)
    assert one(loose, tmp_path).action == "export"
    step = one(loose, tmp_path, rehearse=False)
    assert (step.action, step.reason) == ("skip", f"its source is not pinned: run 'hubpub pin {card.repo}'")


def test_no_force_makes_what_is_excluded(cell: Cell, tmp_path: Path) -> None:
    assert one(Cell(cell.card, cell.recipe, "too large"), tmp_path, force=True).action == "skip"


def test_nothing_is_forced_that_nobody_forces(cell: Cell, tmp_path: Path) -> None:
    finish(one(cell, tmp_path))
    (step,) = plan([cell], Workspace(Project(tmp_path, tmp_path), tmp_path, rehearsal=True))
    assert step.reason == "up to date"


def test_the_code_of_two_rooms_is_in_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubpub import plan as planning

    text = "data/calibration.txt"
    files = ("export/cell.py", "export/deep/x.py", "model/loader.py", "model/scale/a.py", "model/scale_tokenizer.py")
    for name in (*files, text, "measure/bench.py", "export/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(planning, "PACKAGE", tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in planning.exporting_code()]
    assert found == ["export/cell.py", "export/deep/x.py", "model/loader.py", text]

    def code() -> str:
        return planning._code.__wrapped__()

    before = code()
    assert len(before) == 12
    for name in ("model/scale/a.py", "model/scale_tokenizer.py", "measure/bench.py", "export/notes.txt"):
        (tmp_path / name).write_text("a = 2")
    assert code() == before
    (tmp_path / "export/deep/x.py").write_text("a = 2")
    edited = code()
    (tmp_path / "export/deep/x.py").rename(tmp_path / "export/deep/y.py")
    renamed = code()
    (tmp_path / text).write_text("another text")
    assert len({before, edited, renamed, code()}) == 4
