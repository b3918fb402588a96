"""The one shape in which work says how far it is. Who shows it, and how, is the command line's affair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[str, float], None]
"""Told by one piece of work what it is at: the name of its stage, and how much of that stage is done, 0 to 1."""


class Display(Protocol):
    """Told by many pieces of work at once, each under a name of its own."""

    def update(self, name: str, stage: str, fraction: float) -> None:
        """Work called `name` is at `stage`, and `fraction` of that stage (0 to 1) is done."""

    def finish(self, name: str, outcome: str) -> None:
        """Work called `name` is over; told once."""

    def note(self, text: str) -> None:
        """A sentence that belongs to no piece of work."""
