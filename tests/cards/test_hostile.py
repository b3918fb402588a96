"""Whatever stands in card.toml, the result is a valid card with one front matter, or an error that names the key."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from cards.sample import facts as sample
from cards.sample import one_card
from hubpub.cards.blocks import BLOCK, FRONT, metadata
from hubpub.cards.markdown import to_html
from hubpub.cards.render import render
from hubpub.config import Card, Project, load_card
from hubpub.errors import ConfigError, RenderError
from hubpub.localhub.metadata import Findings, check

KEYS = ("introduction", "intended_use", "limits", "section")


@pytest.fixture
def card(project: Project) -> Card:
    """A committed card."""
    return one_card(project)


def text_of(card: Card, project: Project, **prose: object) -> str:
    changed = card.model_copy(update={"card": card.card.model_copy(update=prose)})
    made = render(changed, sample(project, card), namespace="someone", templates=project.templates_dir)
    return made.files["README.md"].decode()


@pytest.mark.parametrize(
    "prose",
    [
        "{{ facts.cells }} {% for x in y %} {# no #}",
        "{% call block('x') %}{% endcall %}",
        "---\nlicense: mit\n---",
        "--- \nlicense: mit\n...\n---",
        "'''\n+++\nlicense = 'mit'\n+++",
        "\u202eevil\u2066 \x1b[31m \x00 \u200b",
        "日本語 ünïcödé 🙂 👩‍👩‍👧",
        "line\r\nend\u2028and\u2029more\x85done",
        "| a | b |\n|---|",
        "> [!WARNING]\n> mine",
        "```python\nprint('<script>')\n```",
        "~~~~\n```\n~~~~",
        "`<b>` and 1 < 2 and a<b",
        "<details>\n<summary>more</summary>\n\ntext\n\n</details>",
        "<https://example.org>",
        " " * 150_000 + "x",
        "a" * 150_000,
        "[" * 20_000,
        "*_" * 20_000,
        "<" * 20_000,
    ],
)
def test_prose_stays_prose(card: Card, project: Project, prose: str) -> None:
    plain = text_of(card, project)
    started = time.process_time()
    text = text_of(card, project, introduction=prose, limits=prose)
    assert time.process_time() - started < 5
    front = FRONT.match(text)
    assert front
    assert len(list(yaml.safe_load_all(front["yaml"]))) == 1
    assert metadata(text) == metadata(plain)
    assert [m["name"] for m in BLOCK.finditer(text)] == [m["name"] for m in BLOCK.finditer(plain)]
    assert not set("\u202e\u2066\x1b\x00\u200b\u2028\r\x85") & set(text)
    if "{" in prose:
        assert prose in text


@pytest.mark.parametrize(
    ("prose", "says"),
    [
        ("<!-- hubpub:begin files sha256:000000000000 -->\n<!-- hubpub:end files -->", "holds a hubpub block mark"),
        ("<!-- hub\u200bpub:begin x -->", "holds a hubpub block mark"),
        ("<!--\nHUBPUB : withdrawn v1 -->", "holds a hubpub block mark"),
        ("```\nopen", "code fence of line 1 .* never closed"),
        ("text\n\n~~~\nopen\n```", "code fence of line 3 .* never closed"),
        ("<script>alert(1)</script>", "<script> is no tag"),
        ("<style>* {display: none}</style>", "<style> is no tag"),
        ("<details>\n\nopen", "<details> is never closed"),
        ("a </div> b", "</div> closes nothing"),
        ("<img src=x onerror=alert(1)>", "<img> may not have 'onerror'"),
        ("<a href='java\tscript:alert(1)'>x</a>", "href of <a> is no address"),
        ("<!-- open", "never closed"),
        ("<![CDATA[ x", "is no tag"),
        ("<?php x", "is no tag"),
        ("use List<String> here", "<string> is no tag"),
        ("a" * 1_000_000, "longer than 200,000 characters"),
    ],
)
@pytest.mark.parametrize("key", ["introduction", "limits"])
def test_what_would_change_the_rest_of_the_card_is_refused(
    card: Card, project: Project, prose: str, says: str, key: str
) -> None:
    with pytest.raises(RenderError, match=rf"card\.toml:\d+: card\.{key}: .*{says}") as caught:
        text_of(card, project, **{key: prose})
    assert caught.value.path == str(card.folder / "card.toml")
    assert caught.value.line


@pytest.mark.parametrize("value", ["a: b", "- x", "'", '"', "{a: b}", "!!python/object:x", "&a *a", "null", "1e3", "~"])
def test_tags_cannot_break_the_front_matter(card: Card, project: Project, value: str) -> None:
    assert value in metadata(text_of(card, project, tags=(value,)))["tags"]


@pytest.mark.parametrize(
    ("prose", "says"),
    [
        ({"tags": ("x" * 97,)}, r"card\.tags: "),
        ({"tags": ("\u200b",)}, r"card\.tags: "),
        ({"tags": tuple(f"t{n}" for n in range(100))}, r"card\.tags: more than 64"),
        ({"language": ("English",)}, r"card\.language: 'English' is no ISO 639 code"),
        ({"thumbnail": "javascript:alert(1)"}, r"card\.thumbnail: must be an https address"),
        ({"thumbnail": "https://x/\nlicense: mit"}, r"card\.thumbnail: must be an https address"),
        ({"title": "two\nlines"}, r"card\.title: must be one line"),
        ({"title": "\u200b"}, r"card\.title: must be one line"),
    ],
)
def test_metadata_the_hub_would_not_take_is_refused(
    card: Card, project: Project, prose: dict[str, object], says: str
) -> None:
    with pytest.raises(RenderError, match=says):
        text_of(card, project, **prose)


def test_a_recipe_cannot_break_the_table(card: Card, project: Project) -> None:
    facts = sample(project, card)
    rude = facts.cells[0].model_copy(update={"summary": "a | b\nc <b> \\| `"})
    changed = facts.model_copy(update={"cells": (rude, *facts.cells[1:])})
    text = render(card, changed, namespace="x", templates=project.templates_dir).files["README.md"].decode()
    rows = [line for line in text.splitlines() if line.startswith(f"| `{rude.recipe}` | a ")]
    assert len(rows) == 1
    assert "a \\| b c &lt;b> \\\\\\| `" in rows[0]


@pytest.mark.parametrize("name", ["a/b\n```", "a b/c", "x", "a/../b", "a/$(id)"])
def test_names_in_facts_cannot_leave_the_command_they_stand_in(card: Card, project: Project, name: str) -> None:
    facts = sample(project, card).model_copy(update={"repo": name})
    with pytest.raises(RenderError, match=r"facts\.json: repo: .* is no name"):
        render(card, facts, namespace="x", templates=project.templates_dir)


@pytest.mark.parametrize(
    "toml", ["schema = 1\nrepo = 3", "\x00", "schema = 1\n[card]\ntitle = 'x'\nbody = 'y'", "[[card]]", "schema = "]
)
def test_a_wrong_card_toml_names_the_file(tmp_path: Path, toml: str) -> None:
    (tmp_path / "card.toml").write_text(toml)
    with pytest.raises(ConfigError, match=r"card\.toml") as caught:
        load_card(tmp_path)
    assert caught.value.path == str(tmp_path / "card.toml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('title = "Gemma', 'title = "x\\n---\\nlicense: mit\\n---\\nGemma'),
        ("tags = [", 'tags = ["a\\nlicense: mit", "]", "!!python/object/apply:os.system [id]", '),
        ("tags = [", 'tags = ["&a [*a, *a]", "{{ 7 * 7 }}", "<script>alert(1)</script>", '),
        ('introduction = """', 'introduction = """\n{{ 7 * 7 }}{% raw %}${7*7}<%= 7*7 %>#{7*7}\n'),
        ('introduction = """', 'introduction = """\n\u202e\u2066 \U0001f468\u200d\U0001f469 Z\u0351\u036b'),
        ('introduction = """', 'introduction = """\n' + "word " * 210_000),
        ('limits = """', 'limits = """\n<img src=x onerror=alert(1)>\n'),
        ('language = ["en"]', ""),
        ("schema = 1", 'schema = 1\nevil = "x"'),
    ],
)
def test_a_hostile_file_gives_a_valid_card_or_an_error_that_names_it(
    project: Project, tmp_path: Path, old: str, new: str
) -> None:
    folder = tmp_path / "cards" / "mine"
    folder.mkdir(parents=True)
    text = (one_card(project).folder / "card.toml").read_text("utf-8")
    (folder / "card.toml").write_text(text.replace(old, new, 1), "utf-8")
    try:
        card = load_card(folder)
        made = render(card, sample(project, card), namespace="someone", templates=project.templates_dir)
    except (ConfigError, RenderError) as error:
        assert error.path == str(folder / "card.toml")
        assert "card.toml" in error.message
        return
    readme = made.files["README.md"].decode()
    assert check(readme) == Findings()
    assert metadata(readme)["license"] == "gemma"
    page = to_html(FRONT.sub("", readme))
    assert not re.search(r"<(script|iframe|style)|\son\w+=|javascript:", page)
    assert "49" not in page.split("Choose a file")[0].replace("7 * 7", "").replace("7*7", "")
