"""The preview in a browser's stead: pages, errors with file and line, and changes that arrive at once."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from cards.sample import facts as sample
from hubpub.cards.diff import Published, state
from hubpub.cards.preview import Preview
from hubpub.cards.render import render
from hubpub.cards.views import Sources
from hubpub.config import Card, Project
from hubpub.errors import HubError, UsageError

E2B = "gemma-3n-E2B-it-pte"


@pytest.fixture
def mine(project: Project, tmp_path: Path) -> Project:
    """A project of its own to edit."""
    shutil.copytree(project.cards_dir, tmp_path / "cards")
    shutil.copytree(project.templates_dir, tmp_path / "templates")
    return Project(tmp_path / "cards", tmp_path / "templates")


@pytest.fixture
def preview(mine: Project) -> Iterator[Preview]:
    """Its preview; the E4B card has no release and a Hub that does not answer."""

    def published(card: Card) -> tuple[str, Published]:
        if card.folder.name != E2B:
            raise HubError("the Hub does not answer", "try again later")
        facts = sample(mine, card, "v0.9.0")
        facts = facts.model_copy(update={"cells": facts.cells[:-1]})
        made = render(card, facts, namespace="someone", templates=mine.templates_dir).files
        return facts.repo, state({**made, "README.md": made["README.md"] + b"\nWords of people.\n"}, facts)

    def facts_for(card: Card) -> object:
        return sample(mine, card) if card.folder.name == E2B else None

    with Preview(Sources(mine, "someone", facts_for, published)) as running:  # type: ignore[arg-type]
        yield running


def ask(preview: Preview, path: str, **headers: str) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection(preview.url.removeprefix("http://"), timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_index_card_changes_and_source(preview: Preview, mine: Project) -> None:
    answer, text = ask(preview, "/")
    assert answer.status == 200
    assert "someone/gemma-3n-E2B-it-pte" in text
    assert "v1.0.0" in text
    assert "no release yet" in text
    _, text = ask(preview, f"/card/{E2B}")
    assert "Choose a file" in text
    assert "google/gemma-3n-E2B-it" in text
    assert "4.61 GB" in text
    assert text.count('<span class="good">✓</span>') == 4
    (mine.cards_dir / E2B / "README.md").write_text("old")
    assert f"{E2B}/README.md is stale" in ask(preview, f"/card/{E2B}")[1]
    _, text = ask(preview, f"/card/{E2B}/changes")
    assert "v0.9.0 → the next release" in text
    assert text.count("Words of people.") == 2
    _, text = ask(preview, f"/card/{E2B}/source")
    assert "hubpub:begin" in text


def test_files_are_served_as_what_they_are(preview: Preview) -> None:
    answer, text = ask(preview, f"/card/{E2B}/file/choice-dark.svg")
    assert answer.headers["Content-Type"] == "image/svg+xml"
    assert text.startswith("<svg")
    answer, _ = ask(preview, f"/card/{E2B}/file/config.json")
    assert answer.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize(
    "path", ["/nothing", "/card/none", f"/card/{E2B}/x", f"/card/{E2B}/file/..%2f..%2fcard.toml", "/card/.."]
)
def test_other_paths_lead_nowhere(preview: Preview, path: str) -> None:
    answer, text = ask(preview, path)
    assert answer.status == 404
    assert "schema" not in text


def test_only_our_own_script_may_run_and_nothing_comes_from_elsewhere(preview: Preview) -> None:
    answer, text = ask(preview, f"/card/{E2B}")
    policy = answer.headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert nonce
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.findall(r"<script[^>]*>", text) == [f'<script src="/_script.js" nonce="{nonce[1]}">']
    assert not re.search(r'(?:src|srcset)="(?:https?:)?//', text)
    assert "style=" not in text
    assert nonce[1] not in ask(preview, f"/card/{E2B}")[1]


def test_another_name_for_this_machine_is_refused(preview: Preview) -> None:
    answer, text = ask(preview, "/", Host="evil.example:80")
    assert answer.status == 403
    assert "gemma" not in text


def test_a_hub_that_does_not_answer_is_shown(preview: Preview) -> None:
    _, text = ask(preview, "/card/gemma-3n-E4B-it-pte/changes")
    assert "the Hub does not answer" in text
    assert "try again later" in text


@pytest.mark.parametrize(
    ("file", "old", "new", "says", "line"),
    [
        (f"cards/{E2B}/card.toml", "schema = 1", "schema = ", "not valid TOML", None),
        (f"cards/{E2B}/card.toml", 'family = "gemma3n"', 'famly = "gemma3n"', "unknown key", "famly = "),
        (f"cards/{E2B}/card.toml", "Chat and text", "<script> and text", "&lt;script&gt; is no tag", "intended_use"),
        ("templates/partials/speed.md.jinja", "## Speed", "## {{ speed_of_light }}", "is undefined", "speed_of_light"),
        ("templates/card.md.jinja", "{% if card.limits %}", "{% if card.limits", "card.md.jinja:", None),
    ],
)
def test_errors_are_shown_with_the_lines_they_are_about(
    preview: Preview, mine: Project, file: str, old: str, new: str, says: str, line: str | None
) -> None:
    path = mine.root / file
    path.write_text(path.read_text().replace(old, new))
    _, text = ask(preview, f"/card/{E2B}")
    assert says in text
    assert path.name in text
    here = re.findall(r'<span class="here">(.*?)</span>', text, re.DOTALL)
    assert len(here) == 1
    assert line is None or line in here[0]
    # One broken card does not hide the others.
    _, text = ask(preview, "/")
    assert "does not render" in text
    if file.startswith("cards/"):
        assert "no release yet" in text


def test_a_saved_file_is_told_at_once(preview: Preview, mine: Project) -> None:
    connection = HTTPConnection(preview.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/_events")
    events = connection.getresponse()

    def next_version() -> str:
        while not (line := events.readline().decode()).startswith("data: "):
            assert line
        return line.removeprefix("data: ").strip()

    first = next_version()
    assert f'data-version="{first}"' in ask(preview, "/")[1]
    for path in (mine.templates_dir / "partials/speed.md.jinja", mine.cards_dir / E2B / "card.toml"):
        saved = time.monotonic()
        path.write_text(path.read_text().replace("Speed and memory", "How fast?").replace("Gemma 3n E2B", "My Gemma"))
        assert next_version() != first
        text = ask(preview, f"/card/{E2B}")[1]
        # Within a second on an idle machine; a busy one may need more, but not a poll of half a minute.
        assert time.monotonic() - saved < 5
    assert "How fast?" in text
    assert "My Gemma" in text
    connection.close()


def test_a_taken_port_says_so(preview: Preview) -> None:
    port = int(preview.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port} cannot be used"):
        Preview(preview.sources, port)
