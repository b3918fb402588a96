"""The pages of the preview: what the Hub would show of every card, what would change there, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from hubpub.cards.blocks import FRONT, chips, metadata
from hubpub.cards.diff import Published, state
from hubpub.cards.markdown import code_html, to_html
from hubpub.cards.published import change as change_of
from hubpub.cards.render import Rendered, golden, recorded, render
from hubpub.config import Card, Project, load_card
from hubpub.errors import HubpubError
from hubpub.facts import CardFacts, FileFact, dump
from hubpub.units import size

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTEXT = 4
_TARGET = re.compile(r'(?:href|src)="([^"]*)"')
_ID = re.compile(r'id="([^"]*)"')


@dataclass(frozen=True)
class Sources:
    """Where previews come from: the project, the owner of the repos, and what finds a card's facts and Hub state.

    `published` gives the id of a card's repo on the Hub, and what that holds (None: nothing); it may raise HubError.
    """

    project: Project
    namespace: str
    facts_for: Callable[[Card], CardFacts | None]
    published: Callable[[Card], tuple[str, Published | None]] | None = None


@dataclass(frozen=True)
class Problem:
    """An error with the lines around the place it names: (number, text, whether it is the one)."""

    kind: str
    message: str
    hint: str | None = None
    path: str | None = None
    line: int | None = None
    excerpt: tuple[tuple[int, str, bool], ...] = ()


@dataclass(frozen=True)
class Check:
    """Something looked at on a rendered card; `fault` says what is wrong with it."""

    what: str
    fault: str | None = None


@dataclass(frozen=True)
class Made:
    """A card as it is now: rendered, or why it cannot be."""

    folder: str
    card: Card | None = None
    facts: CardFacts | None = None
    rendered: Rendered | None = None
    problem: Problem | None = None

    @property
    def name(self) -> str:
        return self.facts.repo if self.facts else self.card.repo if self.card else self.folder

    @property
    def state(self) -> str:
        if self.facts is None:
            return "no release yet"
        return f"{self.facts.version}{', a rehearsal' if self.facts.scale_model else ''}"


def folders(project: Project) -> list[str]:
    """The names of the card folders, whether their cards can be read or not."""
    if not project.cards_dir.is_dir():
        return []
    return sorted(path.name for path in project.cards_dir.iterdir() if (path / "card.toml").is_file())


def make(sources: Sources, folder: str) -> Made:
    """The card of `folder` as its files are at this moment. Never raises: what is wrong is in the result."""
    card: Card | None = None
    facts: CardFacts | None = None
    try:
        card = load_card(sources.project.cards_dir / folder)
        facts = sources.facts_for(card)
        # A fresh project each time: recipes and templates may have changed since.
        templates, others = sources.project.templates_dir, sources.project.readable_cards
        rendered = render(card, facts, namespace=sources.namespace, templates=templates, among=others, known=recorded)
    except HubpubError as error:
        return Made(folder, card, facts, problem=problem(error))
    except Exception as error:  # a preview shows what is wrong rather than going away
        return Made(folder, card, facts, problem=Problem(type(error).__name__, str(error)))
    return Made(folder, card, facts, rendered)


def problem(error: HubpubError) -> Problem:
    """`error` with the lines around the place it names."""
    kind = {3: "A declaration is wrong", 8: "This card does not render"}.get(error.exit_code, "This went wrong")
    path, line = getattr(error, "path", None), getattr(error, "line", None)
    found: list[tuple[int, str, bool]] = []
    if path and line:
        try:
            lines = Path(path).read_text("utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        first = max(0, line - 1 - _CONTEXT)
        found = [(n, text, n == line) for n, text in enumerate(lines[first : line + _CONTEXT], first + 1)]
    return Problem(kind, error.message, error.hint, path, line, tuple(found))


def index(sources: Sources, **values: Any) -> str:
    """The page of all cards."""
    rows = [make(sources, folder) for folder in folders(sources.project)]
    return _page("index.html", rows=rows, **values)


def card_page(sources: Sources, folder: str, **values: Any) -> str:
    """The card as the Hub would show it."""
    made = make(sources, folder)
    common = _common(sources, made)
    if made.rendered is None:
        return _page("card.html", **common, **values)
    text = made.rendered.files["README.md"].decode()
    article = to_html(FRONT.sub("", text), f"/card/{quote(folder, safe='')}/file/")
    return _page(
        "card.html",
        **common,
        **values,
        article=Markup(article),  # noqa: S704 (made by our sanitizer)
        metadata=metadata(text),
        files=_files(made),
        checks=_checks(sources, made, article),
    )


def changes_page(sources: Sources, folder: str, **values: Any) -> str:
    """What publishing would change: a summary, and the card on the Hub beside the new one."""
    made = make(sources, folder)
    common = _common(sources, made)
    if made.rendered is None or made.card is None or sources.published is None:
        return _page("changes.html", **common, **values, silent=None)
    try:
        repo, held = sources.published(made.card)
    except HubpubError as error:
        # A Hub that cannot be asked is no fault of the card.
        return _page("changes.html", **common, **values, silent=problem(error))
    try:
        change = change_of(sources.project, made.card, made.facts, held, repo)
    except HubpubError as error:
        return _page("changes.html", **{**common, "problem": problem(error)}, **values)
    base = f"/card/{quote(folder, safe='')}/"
    before = FRONT.sub("", held.readme) if held and held.readme else ""
    return _page(
        "changes.html",
        **common,
        **values,
        silent=None,
        held=held,
        summary=Markup(to_html(change.as_markdown(), base + "file/")),  # noqa: S704
        # The Hub's own charts are not here; ours in their place would show other figures.
        left=Markup(to_html(before, base + "published/")),  # noqa: S704
        right=Markup(to_html(FRONT.sub("", change.text), base + "file/")),  # noqa: S704
    )


def source_page(sources: Sources, folder: str, **values: Any) -> str:
    """The generated texts as they are written, and the card.toml they come from."""
    made = make(sources, folder)
    texts: list[tuple[str, Markup]] = []
    toml = sources.project.cards_dir / folder / "card.toml"
    languages = {"README.md": "markdown", "config.json": "json"}
    for name, data in made.rendered.files.items() if made.rendered else ():
        if not name.endswith(".svg"):
            texts.append((name, Markup(code_html(data.decode(), languages.get(name, "")))))  # noqa: S704
    if toml.is_file():
        texts.append(("card.toml", Markup(code_html(toml.read_text("utf-8", errors="replace"), "toml"))))  # noqa: S704
    return _page("source.html", **_common(sources, made), **values, sources=texts)


def _common(sources: Sources, made: Made) -> dict[str, Any]:
    return {
        "folder": made.folder,
        "name": made.name,
        "state": made.state,
        "problem": made.problem,
        "made": made.rendered.files if made.rendered else None,
        "chips": chips(metadata(made.rendered.files["README.md"].decode())) if made.rendered else (),
        "can_compare": sources.published is not None,
    }


def _files(made: Made) -> list[FileFact]:
    """Every file of the release by name; SHA256SUMS is written when publishing."""
    assert made.rendered is not None
    found = list(state(made.rendered.files, made.facts).files)
    sizes = {"README.md": len(made.rendered.files["README.md"])}
    if made.facts:
        sizes["facts.json"] = len(dump(made.facts).encode())
    found += [FileFact(name=name, bytes=count, sha256="") for name, count in sizes.items()]
    return sorted(found, key=lambda file: file.name)


def _checks(sources: Sources, made: Made, article: str) -> Sequence[Check]:
    """What is looked at beyond rendering: links within the card and beside it, and the committed copy."""
    assert made.rendered is not None
    assert made.card is not None
    base = f"/card/{quote(made.folder, safe='')}/file/"
    names = {file.name for file in _files(made)} | {"SHA256SUMS"}
    targets = dict.fromkeys(_TARGET.findall(article))
    ids = set(_ID.findall(article))
    beside = [one.removeprefix(base) for one in targets if one.startswith(base)]
    missing = [name for name in beside if name not in names]
    lost = [one for one in targets if one.startswith("#") and one[1:] not in ids]
    path, data = next(iter(golden(made.card, sources.project).items()))
    same = path.exists() and path.read_bytes() == data
    return (
        Check("the metadata is valid"),
        Check("every link to a file leads to one", f"no such file: {', '.join(missing)}" if missing else None),
        Check("every link within the card leads somewhere", f"no such part: {', '.join(lost)}" if lost else None),
        Check(
            "the committed README.md is up to date",
            None if same else f"{made.folder}/README.md is stale: run 'hubpub render'",
        ),
    )


def _page(template: str, /, **values: Any) -> str:
    return str(_templates().get_template(template).render(values))


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hubpub.cards", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(size=size, part=lambda text: quote(str(text), safe=""), path=quote)
    return environment
