"""`hubpub` itself: which commands there are, what becomes of errors, and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click

import hubpub
from hubpub.cli.terminal import Terminal
from hubpub.errors import HubpubError, UsageError, place
from hubpub.redaction import redact

if TYPE_CHECKING:
    from hubpub.cli.terminal import Terminal

# Commands by what a person is doing, in the order in which it is done: the module that holds each, and it in a few
# words. A module is imported when one of its commands runs, so that `hubpub --help` is there at once.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Plan": {
        "plan": ("planning", "what would run, and why"),
        "doctor": ("examining", "is this machine able to do that release"),
        "pin": ("pinning", "write the latest commit of a source model into its card.toml"),
    },
    "Make and measure files": {
        "export": ("programs", "export cells from a checkpoint on this disk, and nothing else"),
        "slice": ("programs", "write a smaller model that lies inside of Gemma 3n E4B as a checkpoint"),
        "tune": ("tuning", "find the layers of a model that are worth eight bits, within a size"),
        "inspect": ("programs", "what a .pte file says about itself"),
        "run": ("talking", "ask a program something, a file or one on the Hub, through ExecuTorch's LLM runner"),
        "chat": ("talking", "talk with a program, turn by turn"),
        "validate": ("programs", "compare programs with their reference models and evaluate their gates"),
        "bench": ("programs", "speed and memory, through the LLM runner"),
        "eval": ("evaluating", "put programs through benchmarks of lm-evaluation-harness"),
    },
    "Write cards": {
        "render": ("cards", "render the committed cards from their facts"),
        "preview": ("previewing", "show the cards in a browser as the Hub would, live while editing"),
        "diff": ("previewing", "what a release would change on the Hub"),
        "facts": ("cards", "compare the facts of two releases"),
        "schema": ("cards", "the JSON Schema of facts.json"),
    },
    "Publish": {
        "release": ("publishing", "export, measure, render and publish"),
        "promote": ("publishing", "publish what was staged, or merge the pull request that waits"),
        "collection": ("publishing", "the collection of a release on the Hub, made or put right"),
        "status": ("maintaining", "what is published, staged and local, and whether they agree"),
        "verify": ("maintaining", "check published files against their sums"),
        "yank": ("maintaining", "mark a bad version on its card; the tag stays"),
        "unstage": ("maintaining", "drop what was staged and never promoted"),
        "hub": ("maintaining", "the embedded local Hub"),
    },
    "Set up": {
        "ci": ("workflow", "one job of the release workflow; each can be repeated here"),
        "completion": ("completion", "what completes commands and cells in bash, zsh or fish"),
    },
}


class Commands(click.Group):
    """The commands of SECTIONS, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in SECTIONS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for commands in SECTIONS.values():
            if cmd_name in commands:
                module, about = commands[cmd_name]
                found: click.Command = getattr(importlib.import_module(f"hubpub.cli.{module}"), f"{cmd_name}_command")
                found.help = found.help or f"{about[0].upper()}{about[1:]}."
                found.short_help = about
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", about) for name, (_, about) in commands.items()])


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="'hubpub COMMAND --help' says more of each. First look: hubpub plan, then hubpub release --all --rehearse.",
)
@click.version_option(hubpub.__version__, prog_name="hubpub", message="%(prog)s %(version)s")
def root() -> None:
    """Export, measure, document and publish on-device language models to the Hugging Face Hub."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see hubpub.errors)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_HUBPUB_COMPLETE" in os.environ:
        root.main(arguments, prog_name="hubpub")
    terminal = Terminal()
    try:
        with root.make_context("hubpub", arguments, obj=terminal) as context:
            root.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    except click.UsageError as error:
        terminal.json = terminal.json or "--json" in arguments
        return _fail(_misused(error), terminal)
    except HubpubError as error:
        return _fail(error, terminal)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted: what was finished is kept; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`hubpub plan | head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        failure = HubpubError(
            f"{type(error).__name__}: {error} ({place(error)})",
            "this is a defect of hubpub; run again with --verbose and report what it prints",
        )
        failure.__cause__ = error
        return _fail(failure, terminal)
    return 0


def _misused(error: click.UsageError) -> UsageError:
    """What is wrong with the command line in our words, and the nearest thing that would be right."""
    known: list[str] = []
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        message, known = f"there is no option {error.option_name}", error.possibilities or []
    elif isinstance(error, click.exceptions.NoSuchCommand) and error.ctx is not None:
        message = f"there is no command '{error.command_name}'"
        group = error.ctx.command
        commands = group.list_commands(error.ctx) if isinstance(group, click.Group) else []
        known = get_close_matches(error.command_name, commands, 2)
    path = error.ctx.command_path if error.ctx is not None else "hubpub"
    nearest = f"did you mean {' or '.join(known)}? " if known else ""
    return UsageError(f"{message[0].lower()}{message[1:].rstrip('.')}", f"{nearest}'{path} --help' says what there is")


def _fail(error: HubpubError, terminal: Terminal) -> int:
    if terminal.verbose:
        cause = error.__cause__ or error
        print(redact("".join(traceback.format_exception(cause))), file=sys.stderr)
    print(f"error: {redact(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {redact(error.hint)}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from hubpub.ci.github import annotation

        print(annotation(error), file=sys.stderr)
    if terminal.json and not terminal.answered:
        hint = redact(error.hint) if error.hint else None
        print(json.dumps({"error": redact(error.message), "hint": hint, "exit_code": error.exit_code}))
    return error.exit_code
