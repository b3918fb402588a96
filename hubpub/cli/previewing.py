"""Cards beside what is published: in a browser, and as a list of what a release would change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.text import Text

from hubpub.cards.diff import CardChange, Published
from hubpub.cards.preview import serve_preview
from hubpub.cards.published import candidate, change, chosen, files_of, published
from hubpub.cards.render import golden_facts
from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Card, Project
from hubpub.errors import AccessError, HubError
from hubpub.hub.client import Retry
from hubpub.release.connect import HUGGING_FACE, LOCAL, connect
from hubpub.workspace import Workspace


@command(name="preview")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8766, metavar="PORT", help="Default: 8766; 0: any that is free."
)
@click.option(
    "--hub", metavar="local|URL", default="local", help="Compare with what is published there (default: local)."
)
@click.option("--namespace", metavar="NAME", help="User or organisation to show.")
def preview_command(
    terminal: Terminal, project: Project, work: Path, port: int, hub: str, namespace: str | None
) -> None:
    def there(card: Card) -> tuple[str, Published | None]:
        if hub == LOCAL and not (work / "hub").is_dir():
            raise HubError(
                f"there is no local Hub in {work} yet",
                "run 'hubpub release --all --rehearse', or name a Hub with --hub",
            )
        # Asked when the page is opened, and let go at once: a release may need the local Hub meanwhile.
        with connect(hub, work / "hub", namespace) as to:
            to.client.retry = Retry(attempts=1)
            repo = to.repo_id(card)
            return repo, published(to.client, repo, files_of(golden_facts(card)))

    def ready(url: str) -> None:
        said = f"preview at {url}  (saving a card, its facts or a template reloads it; Ctrl-C stops it)"
        terminal.announce({"url": url}, said)

    serve_preview(
        project,
        namespace=namespace or "NAMESPACE",
        port=port,
        facts_for=golden_facts,
        published=there,
        ready=ready,
    )


@command(name="diff")
@options.card_names
@options.hub
@options.namespace
@click.option("--version", metavar="vX.Y.Z", help="The tag of that release (default: not decided yet).")
@click.option("--markdown", is_flag=True, help="Print a comment for a pull request.")
def diff_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    cards: tuple[str, ...],
    hub: str | None,
    namespace: str | None,
    version: str | None,
    markdown: bool,
) -> None:
    """What a release would change on the Hub.

    CARD is the name of a repo, a variant or a folder, or a glob.
    """
    found: list[tuple[CardChange, str]] = []
    with connect(hub or HUGGING_FACE, work / "hub", namespace) as to:
        to.client.retry = Retry(attempts=3)
        try:
            owner = to.namespace
        except AccessError as error:
            raise type(error)(error.message, f"name the owner with --namespace; or {error.hint}") from None
        for card in chosen(project, cards):
            facts, origin = candidate(Workspace(project, work, hub == LOCAL), card)
            repo = f"{owner}/{card.repo}"
            one = change(project, card, facts, published(to.client, repo, files_of(facts)), repo, version)
            found.append((replace(one, refused=to.client.card_problem(one.text)), origin))
    if markdown and not terminal.json:
        print("\n".join(f"{one.as_markdown()}\n<sub>facts: {origin}</sub>\n" for one, origin in found), end="")
        return
    shown: list[RenderableType] = []
    for one, origin in found:
        shown += [tables.card_change(one), Text(f"facts: {origin}\n", style="dim")]
    moved = sum(not one.empty for one, _ in found)
    said = f"{moved} of {len(found)} cards would change on {to.client.endpoint}" if moved else "nothing would change"
    terminal.answer({"cards": [{**one.as_json(), "facts": origin} for one, origin in found]}, Group(*shown, Text(said)))
