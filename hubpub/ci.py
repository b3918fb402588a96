"""What the workflows run: each job is one of these functions, and each can be repeated on a laptop.

The workflow files hold no logic. They hand over names in environment variables (a tag name or an input is never
part of a command line) and get back a job matrix, step outputs, a step summary, log groups and annotations.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Sequence
from typing import Any

from hubpub.config import PACKAGE, Card, Project
from hubpub.errors import HubpubError, UsageError
from hubpub.matrix import cells
from hubpub.plan import Step

GB = 1_000_000_000
# What GitHub's standard Linux runner has: memory as documented, disk as seen after `hubpub ci free-disk`.
STANDARD_MEMORY, STANDARD_DISK = 16 * GB, 60 * GB
# Whatever is under these changes what an export or a measurement gives.
_MAKING = ("hubpub/model/", "hubpub/export/", "hubpub/measure/", "hubpub/data/", "hubpub/cell.py", "pyproject.toml")


def job_matrix(steps: Sequence[Step], *, rehearse: bool) -> dict[str, Any]:
    """One job per cell and one per repo. `runner` is the label of a machine that can hold the cell.

    Labels come from HUBPUB_RUNNER and HUBPUB_LARGE_RUNNER; a cell of unknown need gets the standard one.
    """
    from hubpub.doctor import need_of, sizes

    standard = os.environ.get("HUBPUB_RUNNER") or "ubuntu-24.04"
    large = os.environ.get("HUBPUB_LARGE_RUNNER") or standard
    planned = [step for step in steps if step.action != "skip"]
    known = {} if rehearse else sizes(planned, _impatient())
    jobs = []
    for step in planned:
        size = known.get(step.cell.variant.name)
        need = None if size is None or isinstance(size, HubpubError) else need_of(size, step.cell.recipe)
        fits = need is None or (need.memory <= STANDARD_MEMORY and need.disk <= STANDARD_DISK)
        jobs.append(
            {
                "cell": step.cell.id,
                "repo": step.cell.card.repo,
                "key": step.cell.file.removesuffix(".pte"),
                "runner": standard if fits else large,
                "size": "standard" if fits else "large",
                "need": need and {"file": need.file, "disk": need.disk, "memory": need.memory},
            }
        )
    repos = list(dict.fromkeys(str(job["repo"]) for job in jobs))
    return {"cells": {"include": jobs}, "repos": {"include": [{"repo": repo} for repo in repos]}}


def _impatient() -> Any:
    from hubpub.hub.client import Client, Retry

    try:
        client = Client.from_environment(os.environ.get("HF_ENDPOINT"))
    except HubpubError:
        return None
    client.retry = Retry(attempts=1)
    return client


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
