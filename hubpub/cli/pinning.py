"""Which commit of a source a card takes."""

from __future__ import annotations

import click

from hubpub.cli import options
from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.hub.client import Client
from hubpub.pin import pin


@command(name="pin")
@options.card_names
@click.option("--hub", metavar="URL", help="Where the sources are (default: huggingface.co).")
def pin_command(terminal: Terminal, project: Project, cards: tuple[str, ...], hub: str | None) -> None:
    """Write the latest commit of a source model into its card.toml.

    Without CARD: into those that are not pinned yet.
    """
    pinned = pin(project, cards, Client.from_environment(hub))
    lines = [str(one) for one in pinned] or [
        "every source is pinned; name a card to move it to the latest commit of its source"
    ]
    terminal.answer({"pinned": [one.as_json() for one in pinned]}, "\n".join(lines))
