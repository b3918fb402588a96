"""Options that several commands share, and the four that every command has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from hubpub.cli.terminal import Terminal
from hubpub.config import Project
from hubpub.errors import HubpubError, UsageError
from hubpub.matrix import cells

F = TypeVar("F", bound=Callable[..., Any])
WORK = Path(".hubpub")
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)


def command(
    group: click.Group | None = None, name: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function of a Terminal and its own options, and of `project` and `work` where it names them.

    Every command takes --json, --verbose, --project and --work, whether or not it has a use for them.
    """

    def made(function: Callable[..., None]) -> click.Command:
        wanted = inspect.signature(function).parameters
        built = click.command(name or function.__name__)(click.pass_obj(function))
        built.params += _shared("project" in wanted, "work" in wanted)
        if group is not None:
            group.add_command(built)
        return built

    return made


def _shared(project: bool, work: bool) -> list[click.Parameter]:
    def spoken(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        setattr(ctx.find_object(Terminal), str(param.name), value)

    def found(ctx: click.Context, _: click.Parameter, value: Path | None) -> Project | None:
        return None if ctx.resilient_parsing or not project else Project.find(value)

    return [
        click.Option(
            ["--project"], type=PATH, metavar="DIR", callback=found, expose_value=project,
            help="Folder with cards/ (default: found from here).",
        ),
        click.Option(
            ["--work"], type=PATH, metavar="DIR", default=WORK, envvar="HUBPUB_WORK", expose_value=work,
            help=f"Folder for what is made and measured (default: {WORK}, or $HUBPUB_WORK).",
        ),
        click.Option(
            ["--json"], is_flag=True, callback=spoken, expose_value=False, is_eager=True,
            help="Print one JSON value on stdout.",
        ),
        click.Option(
            ["--verbose"], is_flag=True, callback=spoken, expose_value=False, is_eager=True,
            help="Show where an error came from.",
        ),
    ]  # fmt: skip


def _declared(ctx: click.Context) -> Project | None:
    try:
        return Project.find(ctx.params.get("project"))
    except HubpubError:
        return None


def _cells(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if (project := _declared(ctx)) is None:
        return []
    found = {cell.id: cell.recipe.summary for cell in cells(project)}
    return [CompletionItem(name, help=about) for name, about in found.items() if name.startswith(incomplete)]


def _cards(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if (project := _declared(ctx)) is None:
        return []
    return [CompletionItem(card.repo) for card in project.cards if card.repo.startswith(incomplete)]


def selectors(required: bool = False) -> Callable[[F], F]:
    """Cells by id or glob."""
    return click.argument("selectors", nargs=-1, required=required, metavar="SELECTOR...", shell_complete=_cells)


def one_target(function: F) -> F:
    """The one thing that `validate` and `bench` measure: cells by id or glob, or a file."""
    return click.argument("target", metavar="SELECTOR|FILE.pte", shell_complete=_cells)(function)


def card_names(function: F) -> F:
    """Cards by the name of their repo."""
    return click.argument("cards", nargs=-1, metavar="[CARD...]", shell_complete=_cards)(function)


rehearse = click.option("--rehearse", is_flag=True, help="On small stand-in models made here; no download.")
force = click.option("--force", is_flag=True, help="Export again what is up to date.")
all_cards = click.option("--all", "everything", is_flag=True, help="Every cell of every card.")
jobs = click.option("--jobs", type=POSITIVE, metavar="N", help="Parallel processes (default: what fits here).")
changed_since = click.option(
    "--changed-since", metavar="BASE", help="Only cells that differ from this commit or branch."
)
hub = click.option(
    "--hub", metavar="local|URL", help="Which Hub (default: $HF_ENDPOINT, or huggingface.co; of a rehearsal: local)."
)
namespace = click.option("--namespace", metavar="NAME", help="User or organisation (default: the token's user).")
rehearsal_namespace = click.option(
    "--rehearsal-namespace",
    envvar="HUBPUB_REHEARSAL_NAMESPACE",
    metavar="NAME",
    help="User or organisation that rehearsals on a Hub that is not local may publish to, and releases never.",
)
over_rehearsal = click.option(
    "--over-rehearsal",
    is_flag=True,
    envvar="HUBPUB_OVER_REHEARSAL",
    help="Release over what a rehearsal left in a repo.",
)
dry_run = click.option("--dry-run", is_flag=True, help="Say what would be sent, send nothing.")
pull_request = click.option("--pr", is_flag=True, help="Open a pull request on the Hub instead of committing.")
record = click.option("--record", is_flag=True, help="Keep the facts and cards in cards/, to be committed.")


def check_selection(chosen: tuple[str, ...], everything: bool) -> None:
    """Raise UsageError unless either cells were named or all of them meant: what publishes is never the default."""
    if not chosen and not everything:
        raise UsageError("nothing selected", "name cells (a glob such as 'gemma-3n-E2B-it/*'), or pass --all")
    if chosen and everything:
        raise UsageError("--all and selectors exclude each other", "use one of them")
