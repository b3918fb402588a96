"""The pictures of the README, made of the real thing: `python docs/pictures.py [--work DIR]`.

Plans and rehearses one small repo by the command line (two minutes, no token), and draws what a terminal shows then
(terminal.svg); then opens that model's card in the preview, in a headless browser (card.png).
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from hubpub.cards.preview import Preview
from hubpub.cards.published import candidate
from hubpub.cards.views import Sources
from hubpub.config import Card, Project
from hubpub.facts import CardFacts
from hubpub.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import browser  # noqa: E402

CARD = "SmolLM2-135M-Instruct"
COLUMNS = 132
STEPS = 8
# Rich's own, without the fonts that it fetches from elsewhere: a picture of a README may load nothing.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def shown(work: Path, *arguments: str) -> Text:
    """The command line, the first and last steps of its progress, and the answer that it prints to a terminal."""
    terminal, its_end = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "hubpub", *arguments, "--work", str(work)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"},
        stdout=its_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(its_end)
    assert running.stderr is not None
    # An answer is shorter than what a terminal holds until it is read.
    steps = running.stderr.read().splitlines()
    answer = b""
    with suppress(OSError):
        while piece := os.read(terminal, 65536):
            answer += piece
    os.close(terminal)
    if running.wait() != 0:
        raise SystemExit("\n".join(steps))
    if len(steps) > 2 * STEPS:
        steps = [*steps[:STEPS], "      ...", *steps[-STEPS:]]
    typed = " ".join(f"'{word}'" if "*" in word else word for word in ("hubpub", *arguments))
    said = answer.decode().replace("\r\n", "\n").replace(str(work), ".hubpub").rstrip()
    progress = Text("".join(f"{step}\n" for step in steps), style="dim")
    return Text.assemble(("$ ", "bold green"), (typed, "bold"), "\n", progress, Text.from_ansi(said), "\n")


def draw_terminal(work: Path, path: Path) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command in ("plan", "release"):
        console.print(shown(work, command, f"{CARD}/*", "--rehearse"))
    svg = console.export_svg(title="hubpub", theme=MONOKAI, code_format=FORMAT, unique_id="hubpub")
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", "utf-8")


def take_card(project: Project, work: Path, path: Path) -> None:
    workspace = Workspace(project, work, rehearsal=True)

    def facts_for(card: Card) -> CardFacts | None:
        found, _ = candidate(workspace, card)
        return found and found.model_copy(update={"repo": f"your-name/{card.repo}"})

    sources = Sources(project, "your-name", facts_for)
    with Preview(sources) as preview, browser() as running:
        page = running.new_page(viewport={"width": 1280, "height": 1100}, color_scheme="light")
        page.goto(f"{preview.url}/card/{CARD}-pte")
        page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="work folder (default: a new one, so that everything is made)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the pictures go")
    given = parser.parse_args()
    with TemporaryDirectory() as fresh:
        work = given.work or Path(fresh)
        draw_terminal(work, given.out / "terminal.svg")
        take_card(Project.find(ROOT), work, given.out / "card.png")


if __name__ == "__main__":
    main()
