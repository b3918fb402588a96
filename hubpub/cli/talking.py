"""Asking a program something, once or turn by turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from hubpub.cli import options, tables
from hubpub.cli.options import PATH, POSITIVE, command
from hubpub.cli.terminal import Terminal
from hubpub.errors import UsageError
from hubpub.hub.programs import address, download_program
from hubpub.measure.chat import Conversation, run
from hubpub.release.connect import connect, hub_of

F = TypeVar("F", bound=Callable[..., Any])


def program(function: F) -> F:
    """Which program is meant, and how it answers."""
    for option in (
        click.option("--temperature", type=float, default=0.0, metavar="T", help="Default: 0, the likeliest token."),
        click.option("--max-new-tokens", type=POSITIVE, default=256, metavar="N", help="Default: 256."),
        click.option("--tokenizer", type=PATH, metavar="PATH", help="tokenizer.json (default: beside the file)."),
        options.hub,
        click.option("--recipe", metavar="NAME", help="Which file of a repo (default: the recommended one)."),
        click.argument("target", metavar="FILE.pte|REPO[@TAG]"),
    ):
        function = option(function)
    return function


def published(terminal: Terminal, target: str, recipe: str | None, hub: str | None, work: Path) -> Path:
    """The file that `target` names: one on this disk, or one that is downloaded from the Hub once."""
    named = address(target)
    if Path(target).exists() or named is None:
        if recipe:
            raise UsageError("--recipe chooses a file of a repo", f"{target} is a file already")
        return Path(target)
    repo, version = named
    with connect(hub_of(repo, hub), work / "hub") as source:
        pte = download_program(source.client, repo, version, recipe)
    terminal.aside(f"{repo}: {pte.name}")
    return pte


@command(name="run")
@program
@click.option("--prompt", required=True, metavar="TEXT", help="What to ask, or how the text begins.")
@click.option("--chat", is_flag=True, help="Put the prompt into the chat template, as a user's turn.")
def run_command(
    terminal: Terminal,
    work: Path,
    target: str,
    prompt: str,
    chat: bool,
    recipe: str | None,
    hub: str | None,
    tokenizer: Path | None,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Ask a program something, through ExecuTorch's LLM runner.

    A program is a file, or a repo that hubpub published: someone/SmolLM2-135M-Instruct-pte, at a tag or as it is now.
    """
    pte = published(terminal, target, recipe, hub, work)
    reply = run(
        pte, prompt, tokenizer=tokenizer, new_tokens=max_new_tokens, temperature=temperature, chat=chat,
        stream=not terminal.json,
    )  # fmt: skip
    terminal.answer(asdict(reply), "")
    if not terminal.json:
        terminal.aside(tables.reply(reply))


@command(name="chat")
@program
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
def chat_command(
    terminal: Terminal,
    work: Path,
    target: str,
    system: str | None,
    recipe: str | None,
    hub: str | None,
    tokenizer: Path | None,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Talk with a program, turn by turn. Every line is a message; /reset forgets what was said, /exit ends.

    A program is a file, or a repo that hubpub published. When the context is full, the oldest turns are left out.
    """
    pte = published(terminal, target, recipe, hub, work)
    replies = []
    with Conversation(pte, tokenizer=tokenizer, temperature=temperature, system=system) as conversation:
        for message in _messages(terminal):
            if message == "/reset":
                conversation.reset()
                terminal.aside("nothing was said yet")
                continue
            try:
                reply = conversation.say(message, max_new_tokens, stream=not terminal.json)
            except UsageError as error:
                # One message that does not fit ends no conversation.
                terminal.aside(f"{error.message}: {error.hint}")
                continue
            replies.append(reply)
            if not terminal.json:
                print()
                left = f"; {reply.dropped} earlier turns no longer fitted the context" if reply.dropped else ""
                terminal.aside(tables.reply(reply) + left)
    if terminal.json:
        terminal.answer({"replies": [asdict(reply) for reply in replies]}, "")


def _messages(terminal: Terminal) -> Iterator[str]:
    """Lines of stdin until it ends or says /exit; a person at a terminal is shown where to type."""
    while True:
        if sys.stdin.isatty():
            try:
                line = input("> ")
            except EOFError:
                return
        elif not (line := sys.stdin.readline()):
            return
        message = line.strip()
        if message == "/exit":
            return
        if message in {"/help", "/?"}:
            terminal.aside("/reset forgets what was said, /exit ends the conversation")
        elif message:
            yield message
