"""`hubpub diff` against a Hub: nothing there, the same, another, edited by hand, out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran
from conftest import hubpub as command
from huggingface_hub import HfApi, RepoCard

from cards.conftest import held, put
from cards.sample import facts as sample
from hubpub.cards.render import render
from hubpub.config import Project
from hubpub.facts import dump
from hubpub.hub.client import Client
from hubpub.localhub import LocalHub
from hubpub.localhub.metadata import Findings, check

pytestmark = pytest.mark.slow


@pytest.fixture
def diff(mine: Project, hub: LocalHub, tmp_path: Path) -> Callable[..., Ran]:
    """`hubpub diff` of the project against the Hub."""

    def run(*arguments: str) -> Ran:
        options = ("--project", str(tmp_path), "--hub", hub.url, "--namespace", hub.user)
        return command("diff", *arguments, *options, work=tmp_path / "none", HF_TOKEN=hub.token)

    return run


def test_nothing_there_then_the_same_then_something_else(
    diff: Callable[..., Ran], mine: Project, hub: LocalHub
) -> None:
    card = mine.cards[0]
    first = diff(card.repo)
    assert first.code == 0, first.err
    assert "nothing is published yet" in first.out
    assert card.repo in first.out
    assert "3.24 GB" in first.out
    facts = held(sample(mine, card))
    put(hub, mine, card, facts)
    (card.folder / "facts.json").write_text(dump(facts))
    same = diff(card.repo, "--json").json["cards"][0]
    assert not same["files"], same["files"]
    assert not same["readme"], same["readme"]
    assert (same["empty"], same["old_version"]) == (True, "v1.0.0")
    assert "nothing would change" in diff(card.repo).out
    # Another file, other prose and another tag.
    cell = facts.cells[0]
    other = cell.model_copy(update={"file": cell.file.model_copy(update={"bytes": 3_000_000_000, "sha256": "0" * 64})})
    (card.folder / "facts.json").write_text(dump(facts.model_copy(update={"cells": (other, *facts.cells[1:])})))
    toml = card.folder / "card.toml"
    toml.write_text(toml.read_text().replace("Chat and text", "Stories").replace('"mobile"', '"phone"'))
    changed = diff(card.repo, "--json").json["cards"][0]
    assert [file["name"] for file in changed["files"] if file["name"].endswith(".pte")] == [cell.file.name]
    assert {one["key"] for one in changed["metadata"]} == {"tags"}
    assert {"use", "files"} <= set(changed["blocks"])
    assert changed["facts"] == "committed"
    text = diff(card.repo, "--markdown").out
    assert f"### {hub.user}/{card.repo}: v1.0.0 → the next release" in text
    assert "+Stories" in text
    # Named, the release speaks of itself and of what it follows.
    named = diff(card.repo, "--version", "v1.1.0", "--markdown").out
    assert "v1.0.0 → v1.1.0" in named
    assert "+## Changes since v1.0.0" in named


def test_an_edit_on_the_hub_is_shown_and_words_beside_it_are_kept(
    diff: Callable[..., Ran], mine: Project, hub: LocalHub
) -> None:
    card = mine.cards[0]
    repo = put(hub, mine, card, sample(mine, card))
    api = HfApi(endpoint=hub.url, token=hub.token)
    text = Path(api.hf_hub_download(repo, "README.md")).read_text()
    edited = text.replace("## Speed and memory", "## Fast") + "\nMy own words.\n"
    api.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=repo)
    ran = diff(card.repo, "--markdown")
    assert "The part `speed` was edited on the Hub; publishing would stop." in ran.out
    assert "-## Fast" in ran.out
    assert "-My own words." not in ran.out


def test_every_way_it_can_fail_has_a_code_and_a_way_out(
    diff: Callable[..., Ran], tmp_path: Path, mine: Project
) -> None:
    ran = diff("nothing-like-it")
    assert ran.code == 3
    assert mine.cards[0].repo in ran.err
    shutil.rmtree(tmp_path / "hub")
    options = ("--project", str(tmp_path), "--hub", "http://127.0.0.1:9")
    ran = command("diff", *options, "--namespace", "x", work=tmp_path, HF_TOKEN="")
    assert ran.code == 9
    assert "no connection" in ran.err
    ran = command("diff", *options, work=tmp_path, HF_TOKEN="", HF_HOME=str(tmp_path))
    assert ran.code == 10
    assert "--namespace" in ran.err


def test_the_hub_checks_what_it_would_get(mine: Project, hub: LocalHub) -> None:
    client = Client(hub.url, hub.token)
    for card in mine.cards:
        for facts in (None, sample(mine, card), sample(mine, card, scale_model=True)):
            made = render(card, facts, namespace="x", templates=mine.templates_dir).files
            text = made["README.md"].decode()
            assert client.card_problem(text) is None
            assert check(text) == Findings()
            assert RepoCard(text).data.library_name == "executorch"  # type: ignore[attr-defined]
    assert "license" in str(client.card_problem("---\nlicense: nonsense\n---\n# x\n"))


def test_a_local_hub_that_is_being_served_is_asked(mine: Project, hub: LocalHub, tmp_path: Path) -> None:
    put(hub, mine, mine.cards[0], sample(mine, mine.cards[0], "v0.9.0"))
    ran = command("diff", mine.cards[0].repo, "--project", str(tmp_path), "--hub", "local", "--json", work=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["cards"][0]["old_version"] == "v0.9.0"
