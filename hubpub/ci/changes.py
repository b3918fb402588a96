"""What a checkout changes since a commit: the cells whose files could come out differently, and the cards."""

from __future__ import annotations

import difflib
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from hubpub.config import PACKAGE, Project, load_card
from hubpub.errors import ConfigError, UsageError
from hubpub.files import write_atomic
from hubpub.matrix import Cell, cells, select

# Nothing under these changes what an export or a measurement gives. Whatever is new in hubpub/ may.
_UNRELATED = (
    "hubpub/cards/", "hubpub/ci/", "hubpub/cli/", "hubpub/hub/", "hubpub/localhub/", "hubpub/release/",
    "hubpub/doctor.py", "hubpub/pin.py", "hubpub/progress.py", "hubpub/recipes.toml", "hubpub/redaction.py",
    "hubpub/sizes.toml", "hubpub/sizing.py", "hubpub/units.py",
)  # fmt: skip
_MAKING = ("hubpub/", "pyproject.toml", ".github/requirements")
COMMENT = "<!-- hubpub: card changes -->"


def selected(project: Project, selectors: Sequence[str], base: str | None) -> tuple[Cell, ...]:
    """The selected cells; with a commit `base` those of them whose files could come out differently since then."""
    chosen = select(cells(project), selectors)
    changed = changed_since(project, base) if base is not None else {cell.id: "" for cell in chosen}
    return tuple(cell for cell in chosen if cell.id in changed)


def changed_since(project: Project, base: str) -> dict[str, str]:
    """The cells whose files or verdicts could come out differently than at the commit `base`, with the reason.

    Prose of a card and templates change no file of a cell. Raises UsageError where `base` is no commit.
    """
    commit = _git(project, "merge-base", _commit(project, base), "HEAD").strip()
    paths = _git(project, "diff", "--name-only", "--relative", commit, "--").splitlines()
    making = next((path for path in paths if path.startswith(_MAKING) and not path.startswith(_UNRELATED)), None)
    if making is not None and _is_hubpub(project):
        return {cell.id: f"{making} changed" for cell in cells(project)}
    if not any(path.startswith("cards/") or path.endswith("/recipes.toml") for path in paths):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        before = _cells_at(project, commit, Path(folder))
    reasons = {}
    for cell in cells(project):
        old = before.get(cell.card.repo)
        if why := _differs(cell, old):
            reasons[cell.id] = why
    return reasons


def _is_hubpub(project: Project) -> bool:
    """Whether the project is hubpub's own repository, whose code makes the cells, and not somebody's cards alone."""
    try:
        declared = tomllib.loads((project.root / "pyproject.toml").read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return bool(declared.get("project", {}).get("name") == "hubpub") and (project.root / "hubpub").is_dir()


def _cells_at(project: Project, commit: str, folder: Path) -> dict[str, dict[str, Cell]]:
    """Cells by recipe by repo, as the cards and recipes at `commit` declare them; a card that is not valid has none."""
    recipes = PACKAGE / "recipes.toml"
    names = _git(project, "ls-tree", "-r", "--name-only", commit, "cards").splitlines()
    for name in names:
        if name.endswith("/card.toml") and name.count("/") == 2:
            path = folder / name
            path.parent.mkdir(parents=True)
            path.write_text(_git(project, "show", f"{commit}:./{name}"), "utf-8")
    if _is_hubpub(project):
        recipes = folder / "recipes.toml"
        recipes.write_text(_git(project, "show", f"{commit}:./hubpub/recipes.toml"), "utf-8")
    (folder / "cards").mkdir(exist_ok=True)
    old = Project(folder / "cards", project.templates_dir, recipes)
    found: dict[str, dict[str, Cell]] = {}
    for place in sorted((folder / "cards").iterdir()):
        try:
            card = load_card(place)
            reasons = {one.recipe: one.reason for one in card.exclude}
            own = [Cell(card, old.recipe(card, name), reasons.get(name)) for name in card.export.recipes]
        except ConfigError:
            continue
        found[card.repo] = {cell.recipe.name: cell for cell in own}
    return found


def _differs(cell: Cell, before: dict[str, Cell] | None) -> str | None:
    """Why `cell` could come out differently than the cells of its card `before`; None where it could not."""
    if not before:
        return "new card"
    old = before.get(cell.recipe.name)
    if old is None:
        return "new cell"
    if old.excluded and not cell.excluded:
        return "no longer excluded"
    if cell.variant != old.variant:
        return "variant changed"
    for name in ("context", "prefill"):
        if getattr(cell.card.export, name) != getattr(old.card.export, name):
            return f"{name} changed"
    if cell.recipe.model_dump(exclude={"summary"}) != old.recipe.model_dump(exclude={"summary"}):
        return f"recipe {cell.recipe.name} changed"
    return None


def _commit(project: Project, base: str) -> str:
    # A name that begins with a dash would be an option to git.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./~^@{}-]*", base):
        raise UsageError(f"'{base}' is not a commit or branch")
    return _git(project, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}").strip()


def _git(project: Project, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project.root, capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError:
        raise UsageError("git is not installed", "install git, or name the cells instead") from None
    if done.returncode:
        what = done.stderr.strip().splitlines() or [f"git {arguments[0]} {arguments[-1]} found nothing"]
        raise UsageError(f"{project.root}: {what[-1]}", "is the base fetched? In a workflow: fetch-depth: 0")
    return done.stdout


def card_changes(project: Project, base: str) -> str:
    """What this checkout changes on its cards since `base`, as Markdown; also written to card-changes.md."""
    commit, parts = _commit(project, base), []
    for card in project.cards:
        path = card.folder / "README.md"
        try:
            old = _git(project, "show", f"{commit}:./{path.relative_to(project.root).as_posix()}")
        except UsageError:
            old = ""
        new = path.read_text("utf-8") if path.exists() else ""
        diff = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", lineterm="", n=1))
        if diff:
            shown = diff[:400] + (["..."] if len(diff) > 400 else [])
            # A fence longer than any in the text, so that no card can end it.
            fence = "`" * (max([3, *(len(run) for run in re.findall(r"`+", "\n".join(shown)))]) + 1)
            title = f"<summary>{card.repo}: {len(diff)} lines</summary>"
            parts += ["<details>", title, "", f"{fence}diff", *shown, fence, "", "</details>", ""]
    text = "\n".join([COMMENT, "## Cards", "", *(parts or ["No card changes."])]) + "\n"
    # A comment on GitHub holds 65,536 characters.
    write_atomic(Path("card-changes.md"), (text if len(text) < 60_000 else text[:60_000] + "\n...\n").encode())
    return text
