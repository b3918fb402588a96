"""What a command says of its progress."""

from __future__ import annotations

import io

from rich.console import Console

from hubpub.cli.terminal import Bars, Lines


def test_a_long_stage_says_how_long_it_will_take() -> None:
    now, out = 100.0, io.StringIO()
    lines = Lines(Console(file=out), clock=lambda: now)
    for now, fraction in ((100.0, 0.1), (110.0, 0.11), (131.0, 0.2), (140.0, 0.5), (162.0, 0.7), (199.0, 1.0)):  # noqa: B007
        lines.update("a cell", "text", fraction)
    lines.update("a cell", "prompts", 0.0)
    assert out.getvalue().splitlines() == [
        "[    0.0s] a cell: text",
        "[   31.0s] a cell: text, 20%, about 4 min left",
        "[   62.0s] a cell: text, 70%, about 31 s left",
        "[   99.0s] a cell: prompts",
    ]


def test_a_stage_that_does_not_know_how_far_it_is_says_nothing_of_it() -> None:
    now, out = 0.0, io.StringIO()
    lines = Lines(Console(file=out), clock=lambda: now)
    for now in (0.0, 40.0, 80.0):  # noqa: B007
        lines.update("a cell", "lower", 0.0)
    assert out.getvalue().splitlines() == ["[    0.0s] a cell: lower"]


def test_a_bar_shows_its_stage_and_is_gone_at_the_end() -> None:
    out = io.StringIO()
    bars = Bars(Console(file=out, force_terminal=True, width=100))
    bars.update("a cell", "text", 0.5)
    (task,) = bars.progress.tasks
    assert (task.fields["stage"], task.completed, task.total) == ("text", 0.5, 1.0)
    bars.update("a cell", "lower", 0.0)
    assert (task.fields["stage"], task.total) == ("lower", None)
    bars.finish("a cell", "done")
    assert bars.progress.tasks == []
    assert "a cell: done" in out.getvalue()
