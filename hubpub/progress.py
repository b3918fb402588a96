"""The one shape in which work says how far it is. Who shows it, and how, is the command line's affair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[str, float], None]
"""Called by one piece of work: the name of the stage it is at, and how much of that stage is done, 0 to 1."""


def unseen(_stage: str, _fraction: float) -> None:
    """The progress of work that nobody watches."""


class Display(Protocol):
    """Shows many pieces of work at once, each under a name of its own."""

    def update(self, name: str, stage: str, fraction: float) -> None:
        """Work called `name` is at `stage`, and `fraction` of that stage (0 to 1) is done."""

    def finish(self, name: str, outcome: str) -> None:
        """Work called `name` is over; called once."""

    def note(self, text: str) -> None:
        """A sentence that belongs to no piece of work."""
