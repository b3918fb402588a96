"""Cards beside what is published: in a browser, and as a list of what a release would change."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.text import Text

from hubpub.cards.preview import serve_preview
from hubpub.cards.render import golden_facts
from hubpub.cards.views import Sources
from hubpub.cli import options, tables
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.release.changes import changes, published_now
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
    def ready(url: str) -> None:
        said = f"preview at {url}  (saving a card, its facts or a template reloads it; Ctrl-C stops it)"
        terminal.announce({"url": url}, said)

    published = partial(published_now, hub, work / "hub", namespace)
    with suppress(KeyboardInterrupt):
        serve_preview(Sources(project, namespace or "NAMESPACE", golden_facts, published), port, ready)


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
    with connect(hub or HUGGING_FACE, work / "hub", namespace) as to:
        found = changes(Workspace(project, work, hub == LOCAL), to, cards, version)
    if markdown and not terminal.json:
        print("\n".join(f"{one.as_markdown()}\n<sub>facts: {origin}</sub>\n" for one, origin in found), end="")
        return
    shown: list[RenderableType] = []
    for one, origin in found:
        shown += [tables.card_change(one), Text(f"facts: {origin}\n", style="dim")]
    moved = sum(not one.empty for one, _ in found)
    said = f"{moved} of {len(found)} cards would change on {to.client.endpoint}" if moved else "nothing would change"
    terminal.answer({"cards": [{**one.as_json(), "facts": origin} for one, origin in found]}, Group(*shown, Text(said)))
