"""What a person sees of long work: bars on a terminal, plain lines elsewhere. Always on stderr, never in --json."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Display(Protocol):
    """Told about named tasks: `update` as they advance (fraction 0 to 1), `finish` once, `note` for a sentence."""

    def update(self, name: str, stage: str, fraction: float) -> None: ...

    def finish(self, name: str, outcome: str) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(console: Console) -> Display:
    """Bars where `console` is a terminal, lines where it is a log."""
    return Bars(console) if console.is_terminal else Lines(console)


class Lines:
    """One line per stage of each task, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.stages: dict[str, str] = {}

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self.started
        self.console.print(f"[{seconds:7.1f}s] {text}", markup=False, highlight=False, soft_wrap=True)

    def update(self, name: str, stage: str, fraction: float) -> None:
        if self.stages.get(name) != stage:
            self.stages[name] = stage
            self._line(f"{name}: {stage}")

    def finish(self, name: str, outcome: str) -> None:
        self._line(f"{name}: {outcome}")

    def note(self, text: str) -> None:
        self._line(text)

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


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

    def update(self, name: str, stage: str, fraction: float) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=1.0, stage=stage)
        # Stages that cannot tell how far they are pulse instead of standing at zero.
        total = 1.0 if fraction > 0 else None
        self.progress.update(self.tasks[name], total=total, completed=fraction, stage=stage)

    def finish(self, name: str, outcome: str) -> None:
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))
        self.progress.console.print(f"{name}: {outcome}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Bars:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
