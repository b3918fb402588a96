"""Which cells a change concerns: prose none, what decides a file or a verdict those it decides, code all."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from hubpub.ci.changes import changed_since
from hubpub.config import Project
from hubpub.errors import UsageError

CARD = "gemma-3n-E4B-it-pte"
EXCLUDED = '\n[[exclude]]\nrecipe = "int8"\nreason = "too slow"\n'


class Repo:
    """A git repository with two cards, at one commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for card in ("gemma-3n-E2B-it-pte", CARD):
            shutil.copytree(ROOT / "cards" / card, root / "cards" / card)
        self.card = root / "cards" / CARD / "card.toml"

    def git(self, *arguments: str) -> None:
        name = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *name, *arguments], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("init", "-q", "-b", "main")
        self.git("add", ".")
        self.git("commit", "-qm", "one")

    def edit(self, path: Path, change: Callable[[str], str]) -> None:
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before

    def changed(self, base: str = "HEAD") -> dict[str, str]:
        return changed_since(Project.find(self.root), base)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path)


def test_prose_concerns_no_cell(repo: Repo) -> None:
    repo.commit()
    assert repo.changed() == {}
    repo.edit(repo.card, lambda text: text.replace("title = ", "# said better\ntitle = "))
    assert repo.changed() == {}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("context = 2048", "context = 1024", "context changed"),
        ("[export]\n", "[export]\nprefill = 64\n", "prefill changed"),
        ("revision = ", "revision = 'f00df00df00df00df00df00df00df00df00df00d' # ", "variant changed"),
    ],
)
def test_what_decides_every_cell_of_a_card(repo: Repo, old: str, new: str, reason: str) -> None:
    repo.commit()
    repo.edit(repo.card, lambda text: text.replace(old, new, 1))
    found = repo.changed()
    declared = [f"gemma-3n-E4B-it/{name}" for name in Project.find(repo.root).cards[1].export.recipes]
    assert found == dict.fromkeys(declared, reason)


def test_an_exclusion_that_is_gone_is_a_cell_that_is_there(repo: Repo) -> None:
    repo.edit(repo.card, lambda text: text.split("\n[[exclude]]")[0] + EXCLUDED)
    repo.commit()
    repo.edit(repo.card, lambda text: text.replace(EXCLUDED, ""))
    assert repo.changed() == {"gemma-3n-E4B-it/int8": "no longer excluded"}


def test_a_recipe_of_a_card_and_its_gates(repo: Repo) -> None:
    own = '[recipe.int8]\nsummary = "int8"\ndtype = "fp32"\nbackend = "portable"\n'
    own += "[recipe.int8.gates]\nkl_mean_max = 0.1\ntop1_min = 0.9\n"
    repo.edit(repo.card, lambda text: f"{text}\n{own}")
    repo.commit()
    repo.edit(repo.card, lambda text: text.replace('summary = "int8"', 'summary = "eight bits"'))
    assert repo.changed() == {}
    repo.edit(repo.card, lambda text: text.replace("kl_mean_max = 0.1", "kl_mean_max = 0.2"))
    assert repo.changed() == {"gemma-3n-E4B-it/int8": "recipe int8 changed"}


def test_a_new_card_and_one_that_was_not_valid(repo: Repo) -> None:
    repo.edit(repo.card, lambda text: text.replace("family = ", "familiy = "))
    repo.commit()
    repo.edit(repo.card, lambda text: text.replace("familiy = ", "family = "))
    assert set(repo.changed().values()) == {"new card"}


def test_code_concerns_every_cell_wherever_hubpub_is_installed(repo: Repo) -> None:
    """The checkout is hubpub's own, and what runs is a copy of it elsewhere: as after `pip install .`."""
    shutil.copy(ROOT / "pyproject.toml", repo.root)
    shutil.copytree(ROOT / "hubpub", repo.root / "hubpub", ignore=shutil.ignore_patterns("__pycache__"))
    repo.commit()
    repo.edit(repo.root / "hubpub" / "cards" / "render.py", lambda text: text + "\n# prose\n")
    assert repo.changed() == {}
    path = repo.root / "hubpub" / "model" / "loader.py"
    repo.edit(path, lambda text: text + "\n# other code\n")
    found = repo.changed()
    assert set(found.values()) == {"hubpub/model/loader.py changed"}
    assert len(found) == sum(len(card.export.recipes) for card in Project.find(repo.root).cards)
    path.write_text((ROOT / "hubpub" / "model" / "loader.py").read_text())
    recipes = repo.root / "hubpub" / "recipes.toml"
    repo.edit(recipes, lambda text: text.replace("[recipe.bf16]\n", "[recipe.bf16]\noverride = []\n"))
    assert repo.changed() == {}
    repo.edit(recipes, lambda text: text.replace("override = []\n", 'override = [{ pattern = "nothing" }]\n'))
    project = Project.find(repo.root)
    found = changed_since(Project(project.cards_dir, project.templates_dir, recipes), "HEAD")
    assert set(found.values()) == {"recipe bf16 changed"} and len(found) == 2


def test_only_what_this_branch_changed(repo: Repo) -> None:
    repo.commit()
    repo.git("checkout", "-qb", "ours")
    repo.edit(repo.card, lambda text: text.replace("context = 2048", "context = 1024"))
    repo.git("commit", "-qam", "two")
    repo.git("checkout", "-q", "main")
    other = repo.root / "cards" / "gemma-3n-E2B-it-pte" / "card.toml"
    repo.edit(other, lambda text: text.replace("context = 2048", "context = 512"))
    repo.git("commit", "-qam", "theirs")
    repo.git("checkout", "-q", "ours")
    assert {name.partition("/")[0] for name in repo.changed("main")} == {"gemma-3n-E4B-it"}


@pytest.mark.parametrize("base", ["--output=x", "no-such-branch", "$(id)"])
def test_what_is_no_commit_is_refused(repo: Repo, base: str) -> None:
    repo.commit()
    with pytest.raises(UsageError):
        repo.changed(base)
