"""What a checkout changes since a commit: the cells whose files could come out differently, and the cards."""

from __future__ import annotations

import difflib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from hubpub.config import PACKAGE, Card, Project
from hubpub.errors import UsageError
from hubpub.files import write_atomic
from hubpub.matrix import cells

# Whatever is under these changes what an export or a measurement gives.
_MAKING = ("hubpub/model/", "hubpub/export/", "hubpub/measure/", "hubpub/data/", "hubpub/make/", "pyproject.toml")


def changed_since(project: Project, base: str) -> dict[str, str]:
    """The cells whose files could come out differently than at the commit `base`, with the reason.

    Prose of a card and templates change no file of a cell. Raises UsageError where `base` is no commit.
    """
    paths = _git(project, "diff", "--name-only", "--relative", f"{_commit(project, base)}...HEAD", "--").splitlines()
    paths += _git(project, "diff", "--name-only", "--relative", "HEAD", "--").splitlines()
    making = next((path for path in paths if path.startswith(_MAKING)), None)
    if making is not None and (project.root / "hubpub").samefile(PACKAGE):
        return {cell.id: f"{making} changed" for cell in cells(project)}
    before = _recipes_at(project, base)
    reasons = {}
    for cell in cells(project):
        card = cell.card
        folder = card.folder.relative_to(project.root).as_posix()
        if f"{folder}/card.toml" in paths:
            old = _toml_at(project, base, f"{folder}/card.toml")
            if why := _differs(card, old, cell.recipe.name):
                reasons[cell.id] = why
                continue
        if before is not None and cell.recipe.name not in card.recipe:
            now = tomllib.loads((PACKAGE / "recipes.toml").read_text("utf-8"))["recipe"].get(cell.recipe.name)
            if now != before.get(cell.recipe.name):
                reasons[cell.id] = f"recipe {cell.recipe.name} changed"
    return reasons


def _differs(card: Card, old: dict[str, Any], recipe: str) -> str | None:
    if not old:
        return "new card"
    now = tomllib.loads((card.folder / "card.toml").read_text("utf-8"))
    if now.get("variant") != old.get("variant"):
        return "variant changed"
    if now.get("export", {}).get("context") != old.get("export", {}).get("context"):
        return "context changed"
    if recipe not in old.get("export", {}).get("recipes", ()):
        return "new cell"
    if now.get("recipe", {}).get(recipe) != old.get("recipe", {}).get(recipe):
        return f"recipe {recipe} changed"
    return None


def _recipes_at(project: Project, base: str) -> dict[str, Any] | None:
    """The recipe table at `base`, or None where it is no part of this project."""
    if not (project.root / "hubpub").is_dir():
        return None
    found: dict[str, Any] = _toml_at(project, base, "hubpub/recipes.toml").get("recipe", {})
    return found


def _toml_at(project: Project, base: str, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(_git(project, "show", f"{_commit(project, base)}:./{path}"))
    except (UsageError, tomllib.TOMLDecodeError):
        return {}


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
    text = "\n".join(["## Cards", "", *(parts or ["No card changes."])]) + "\n"
    # A comment on GitHub holds 65,536 characters.
    write_atomic(Path("card-changes.md"), (text if len(text) < 60_000 else text[:60_000] + "\n...\n").encode())
    return text
