"""How a command speaks to whoever typed it: one answer on stdout, as tables or as JSON, and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hubpub.progress import Display
from hubpub.units import percent


@dataclass
class Terminal:
    """Where the answer of one command goes. `answered` tells that stdout has its one JSON value already."""

    json: bool = False
    verbose: bool = False
    answered: bool = False

    def answer(self, value: object, shown: RenderableType) -> None:
        """Print `value` as JSON where that was asked for, else `shown`; text is printed as it is."""
        if self.json:
            print(json.dumps(value, indent=2))
            self.answered = True
        elif isinstance(shown, str):
            print(shown)
        else:
            # A log has no width of its own: tables are not folded there.
            Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(shown)

    def announce(self, value: object, shown: str) -> None:
        """One line at once, JSON or text, for a command that goes on running."""
        print(json.dumps(value) if self.json else shown, flush=True)
        self.answered = True

    def aside(self, text: str) -> None:
        """A remark that is no part of the answer."""
        _err().print(Text(text, style="dim"))

    @contextmanager
    def progress(self) -> Iterator[Display]:
        """Bars where stderr is a terminal, lines where it is a log."""
        console = _err()
        if not console.is_terminal:
            yield Lines(console)
            return
        bars = Bars(console)
        with bars.progress:
            yield bars


def _err() -> Console:
    return Console(stderr=True, highlight=False)


def table(*columns: str) -> Table:
    """An empty table as every command draws them; a column whose name begins with ">" is set to the right."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for name in columns:
        made.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return made


def clean(text: str, limit: int = 200) -> Text:
    """Text of a file that others made, without control characters and at most `limit` characters long."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:limit])
    return Text(shown + ("…" if len(text) > limit else ""))


@dataclass
class Pace:
    """When the stage of a task began, how far it was then, and when it was last spoken of."""

    stage: str
    began: float
    first: float
    shown: float

    def ahead(self, fraction: float, now: float) -> str:
        """How far the stage is and how long it will take at its pace so far; "" before there is a pace to speak of."""
        done, spent = fraction - self.first, now - self.began
        if done <= 0.02 or spent < 5 or fraction >= 1:
            return ""
        left = spent * (1 - fraction) / done
        return f"{percent(fraction)}, about {f'{left / 60:.0f} min' if left >= 90 else f'{left:.0f} s'} left"


class Paces:
    """The pace of each task at the stage that it is at."""

    def __init__(self) -> None:
        self._of: dict[str, Pace] = {}

    def at(self, name: str, stage: str, fraction: float, now: float) -> tuple[Pace, bool]:
        """The pace of the task called `name`, and whether it begins here."""
        pace = self._of.get(name)
        if pace is not None and pace.stage == stage:
            return pace, False
        self._of[name] = Pace(stage, now, fraction, now)
        return self._of[name], True


class Lines:
    """A line for each stage of each task, with the seconds since the start; of a long stage, how far it is by then.

    `clock` counts seconds.
    """

    EVERY = 30.0

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock, self.started = console, clock, clock()
        self.paces = Paces()

    def update(self, name: str, stage: str, fraction: float) -> None:
        now = self.clock()
        pace, begins = self.paces.at(name, stage, fraction, now)
        if begins:
            self.note(f"{name}: {stage}")
        elif now - pace.shown >= self.EVERY and (ahead := pace.ahead(fraction, now)):
            pace.shown = now
            self.note(f"{name}: {stage}, {ahead}")

    def finish(self, name: str, outcome: str) -> None:
        self.note(f"{name}: {outcome}")

    def note(self, text: str) -> None:
        self.console.print(
            f"[{self.clock() - self.started:7.1f}s] {text}", markup=False, highlight=False, soft_wrap=True
        )


class Bars:
    """One bar per task that is under way; finished tasks become a line above."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self.paces = Paces()

    def update(self, name: str, stage: str, fraction: float) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=1.0, stage=stage)
        now = time.monotonic()
        pace, _ = self.paces.at(name, stage, fraction, now)
        # Stages that cannot tell how far they are pulse instead of standing at zero: a task without a total does, and
        # `update` takes None for "as before".
        task = next(task for task in self.progress.tasks if task.id == self.tasks[name])
        task.total = 1.0 if fraction > 0 else None
        said = ", ".join(filter(None, (stage, pace.ahead(fraction, now))))
        self.progress.update(task.id, completed=fraction, stage=said)

    def finish(self, name: str, outcome: str) -> None:
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))
        self.note(f"{name}: {outcome}")

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)
