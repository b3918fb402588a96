"""The plan of the house, held: what is imported late, no circles, and tests that stand where their module does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT, forget_measured, kept_work

# Imported where they are used, because each takes longer to load than a light command may take.
HEAVY = {
    "datasets", "executorch", "flatbuffers", "httpx2", "huggingface_hub", "lm_eval", "safetensors", "tokenizers",
    "torch", "torchao", "transformer_lens", "transformers",
}  # fmt: skip
# Imported where they are used, for another reason.
LATE = {
    "jinja2": "what shows no page waits for no templates",
    "markdown_it": "the same, of Markdown",
    "pygments": "the same, of code in colours",
    "rich.syntax": "it loads pygments",
    "psutil": "what only plans looks at no memory",
    "packaging": "what only plans compares no versions",
    "resource": "not everywhere",
    "fcntl": "not everywhere",
}
LATE_OF_OURS = {
    ("hubpub", "hubpub.hub.text_decoder"): "importing hubpub asks for nothing yet",
    ("hubpub.cli.app", "hubpub.ci.github"): "only where a workflow runs",
    ("hubpub.release.connect", "hubpub.localhub"): "a third of what a light command may take, and mostly not needed",
}
# Tests of several modules at once: what they hold is true of the room, or of the whole, and of no one module.
ACROSS = {
    "cards/test_browser": "the preview and the local Hub in a real browser",
    "cards/test_claims": "what a whole card says",
    "cards/test_machines": "a whole card of files that were measured on several machines",
    "cards/test_hostile": "a whole card made of hostile declarations",
    "cards/test_signatures": "code of the templates",
    "hub/test_faults": "every fault at every call",
    "hub/test_machines": "several machines, by the command line",
    "measure/test_faults": "every gate, by the fault it is for",
    "measure/test_slices": "slices of a trained model, right and wrong ones",
}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of hubpub by its name."""
    found = {}
    for path in sorted((ROOT / "hubpub").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return found


def imported(statement: ast.stmt) -> set[str]:
    """The names of modules that an import statement loads."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.ImportFrom):
        name = statement.module or ""
        return {name} | {f"{name}.{alias.name}" for alias in statement.names if f"{name}.{alias.name}" in modules()}
    return set()


def at_the_top(module: ast.Module) -> set[str]:
    return set().union(*map(imported, module.body))


def in_functions(module: ast.Module) -> Iterator[tuple[ast.stmt, set[str]]]:
    functions = (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    for statement in {node for one in functions for node in ast.walk(one) if isinstance(node, ast.stmt)}:
        if names := imported(statement):
            yield statement, names


@cache
def is_heavy(name: str) -> bool:
    """Whether importing `name` loads a heavy package."""
    if name not in modules():
        return name.partition(".")[0] in HEAVY
    return any(is_heavy(one) for one in at_the_top(modules()[name]) if one != name)


def test_only_what_is_heavy_is_imported_inside_of_a_function() -> None:
    wrong = []
    for name, module in modules().items():
        for statement, names in in_functions(module):
            late = any(one == known or one.startswith(f"{known}.") for one in names for known in LATE)
            own = any((name, one) in LATE_OF_OURS for one in names)
            if not (late or own or any(map(is_heavy, names))):
                wrong.append(f"{name}:{statement.lineno}: {ast.unparse(statement)}")
    assert not wrong, "import these at the top of their module: " + "; ".join(wrong)


def test_no_two_modules_import_each_other() -> None:
    graph = {
        name: {one for one in at_the_top(module) & modules().keys() if not name.startswith(f"{one}.")} - {name}
        for name, module in modules().items()
    }
    # Raises CycleError, which names the circle.
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(graph)


def test_tests_stand_where_their_module_does() -> None:
    lost = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        place = path.relative_to(ROOT / "tests").with_suffix("")
        if place.parts[0] in ("e2e", "github") or place.as_posix() in ACROSS or path == Path(__file__):
            continue
        module = ROOT / "hubpub" / place.parent / place.name.removeprefix("test_")
        if not (module.is_dir() or module.with_suffix(".py").is_file()):
            lost.append(place.as_posix())
    assert not lost, f"name these after the module they test, or say in ACROSS what they are of: {lost}"


def test_there_is_one_way_to_publish() -> None:
    """Whatever door somebody comes through, the same function looks, sends, tags and reads back."""
    ways = {"publish_all", "promote_pull"}
    users = {
        name
        for name, tree in modules().items()
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom) and ways & {alias.name for alias in statement.names}
    }
    assert users == {"hubpub.release.promote"}
    commits = {
        name
        for name, tree in modules().items()
        if any(
            isinstance(node, ast.Attribute) and node.attr in {"create_commit", "create_tag", "merge_pull_request"}
            for node in ast.walk(tree)
        )
    }
    assert commits == {"hubpub.hub.client", "hubpub.hub.tags"}


def test_a_kept_folder_gives_a_run_cells_and_no_hub(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first = kept_work(tmp_path / "first", kept)
    (first / "cells" / "one").mkdir()
    (first / "hub").mkdir()
    (first / "releases").mkdir()
    second = kept_work(tmp_path / "second", kept)
    assert (second / "cells" / "one").is_dir()
    assert {path.name for path in second.iterdir()} == {"cells", "references", "scale"}
    assert {path.name for path in kept.iterdir()} == {"cells", "references", "scale"}


def test_what_other_code_measured_is_measured_again_and_not_exported(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "rehearsal" / "variant" / "recipe" / "0123456789ab"
    cell.mkdir(parents=True)
    names = {"export.json", "facts.json", "model.pte", "parity.json", "speed.json"}
    for by, left in (("other code", {"export.json", "model.pte"}), (None, names)):
        for name in names:
            (cell / name).touch()
        if by:
            (tmp_path / "measured-by").write_text(by)
        forget_measured(tmp_path)
        assert {path.name for path in cell.iterdir()} == left
