"""Completion of commands, options, cells and cards in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hubpub.cli.options import command
from hubpub.cli.terminal import Terminal


@command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(_: Terminal, shell: str) -> None:
    """Print what completes commands, options, cells and cards in SHELL.

    \b
    bash: hubpub completion bash > ~/.local/share/bash-completion/completions/hubpub
    zsh:  hubpub completion zsh > a file _hubpub in a folder of $fpath
    fish: hubpub completion fish > ~/.config/fish/completions/hubpub.fish
    """
    built = get_completion_class(shell)
    assert built is not None
    root = click.get_current_context().find_root().command
    print(built(root, {}, "hubpub", "_HUBPUB_COMPLETE").source())
