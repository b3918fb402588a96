"""The command line: commands by what a person is doing, and how each answers. The work is in other rooms."""

from hubpub.cli.app import main

__all__ = ["main"]
