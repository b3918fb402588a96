"""One file or one cell at a time: export, look inside, ask something, validate, bench."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Group
from rich.text import Text

from hubpub.cli import options, tables
from hubpub.cli.options import PATH, POSITIVE, command
from hubpub.cli.terminal import Terminal, table
from hubpub.config import Project
from hubpub.errors import GateError, UsageError
from hubpub.make import devices, existing
from hubpub.make.run import export_from
from hubpub.matrix import cells, select
from hubpub.measure.bench import read_stats
from hubpub.measure.inspect import inspect
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.sliced_checkpoint import write
from hubpub.slices import Slice, named, published
from hubpub.units import seconds, size
from hubpub.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


@command(name="export")
@options.selectors(required=True)
@click.option("--source", type=PATH, required=True, metavar="DIR", help="Folder with the checkpoint.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Where the files go.")
@click.option("--context", type=POSITIVE, metavar="N", help="Tokens (default: as the card says).")
@options.jobs
def export_command(
    terminal: Terminal,
    project: Project,
    selectors: tuple[str, ...],
    source: Path,
    out: Path,
    context: int | None,
    jobs: int | None,
) -> None:
    chosen = [cell for cell in select(cells(project), selectors) if not cell.excluded]
    with terminal.progress() as progress:
        made = export_from(chosen, source, out, jobs, context, progress)
    shown = table("cell", "file", ">size", ">export", "sha256")
    for cell, one in made.items():
        spent = sum(one.stages.model_dump(exclude={"peak_resident_bytes"}).values())
        shown.add_row(cell, str(out / one.file.name), size(one.file.bytes), seconds(spent), one.file.sha256)
    terminal.answer({"files": [{"cell": cell, **one.model_dump(mode="json")} for cell, one in made.items()]}, shown)


@command(name="slice")
@click.argument("checkpoint", type=PATH, metavar="CHECKPOINT")
@click.option("--slice", "name", metavar="NAME", help="A published slice, e.g. E2.69B.")
@click.option("--widths", metavar="N,N,...", help="Instead of a name: the feed-forward width of each layer that stays.")
@click.option("--skip", metavar="N,N,...", help="With --widths: layers to leave out, numbered from 0.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The folder to make.")
def slice_command(
    terminal: Terminal, checkpoint: Path, name: str | None, widths: str | None, skip: str | None, out: Path
) -> None:
    """Write a slice of a Gemma 3n E4B CHECKPOINT as a checkpoint of its own, which transformers and others load."""
    if (name is None) == (widths is None) or (skip and name):
        raise UsageError("which slice?", f"--slice NAME, one of {', '.join(published())}; or --widths, and --skip")
    try:
        part = named(name) if name else Slice(widths=_numbers(widths, "--widths"), skip=_numbers(skip, "--skip"))
    except ValueError as error:
        raise UsageError(str(error)) from None
    opened = Checkpoint.open(checkpoint, part)
    with terminal.progress() as progress:
        written = write(opened, out, partial(progress.update, "slice"))
    layers = opened.config["text_config"]["num_hidden_layers"]
    weights = sum(prod(stored.shape) for stored in opened.text_tensors.values())
    shown = table("folder", ">layers", ">text weights", ">bytes")
    shown.add_row(str(out), str(layers), f"{weights:,}", f"{written:,}")
    terminal.answer({"folder": str(out), "layers": layers, "text_weights": weights, "bytes": written}, shown)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers between commas. Raises UsageError for anything else, naming the `option` and what it was given."""
    numbers = [one.strip() for one in text.split(",")] if text else []
    if wrong := [one for one in numbers if not one.isdecimal()]:
        raise UsageError(f"{option}: '{wrong[0]}' is no whole number", f"write numbers between commas: {option} 4,9,14")
    return tuple(map(int, numbers))


@command(name="inspect")
@click.argument("file", type=PATH, metavar="FILE.pte")
def inspect_command(terminal: Terminal, file: Path) -> None:
    found = inspect(file)
    terminal.answer(found.model_dump(mode="json"), tables.program(found, file.name))


def measured(function: F) -> F:
    """The options of `validate` and `bench` that say which program is measured, and with what."""
    for option in (
        click.option("--recipe", metavar="NAME", help="What a file was made by, where its name does not say it."),
        click.option(
            "--source", type=PATH, metavar="DIR", help="The checkpoint of the reference model (default: the card's)."
        ),
        click.option("--rehearse", is_flag=True, help="The cells of a rehearsal, on scale models."),
        options.one_target,
    ):
        function = option(function)
    return function


@command(name="validate")
@measured
@click.option("--locate-drift", is_flag=True, help="Find the first layer that drifts, and its weights.")
def validate_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    target: str,
    rehearse: bool,
    source: Path | None,
    recipe: str | None,
    locate_drift: bool,
) -> None:
    # Threads that spin while they wait take the processor from each other; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    workspace = Workspace(project, work, rehearse)
    targets = existing.find(workspace, target, source=source, recipe=recipe)
    found = []
    with terminal.progress() as progress:
        for one in targets:
            stage_of = partial(progress.update, one.name)
            found.append(existing.validate(one, workspace, stage_of, with_drift=locate_drift))
            progress.finish(one.name, "done")
    terminal.answer({"targets": [one.as_json() for one in found]}, Group(*map(tables.validation, found)))
    if failed := [one for one in found if one.missed]:
        way_out = "see the table of gates"
        if failed[0].chosen_here and "weights_stored" in failed[0].missed:
            way_out = (
                "its integers were chosen again here, and another kind of processor chooses others: "
                "validate it where it was made"
            )
        raise GateError(f"{failed[0].name} did not pass: {', '.join(failed[0].missed)}", way_out)


@command(name="bench")
@measured
@click.option("--runs", type=POSITIVE, default=5, metavar="N", help="Timed runs (default: 5).")
@click.option("--tokenizer", type=PATH, metavar="FILE", help="tokenizer.json (default: beside the file).")
@click.option("--import", "stats", type=PATH, metavar="STATS", help="Keep what the C++ runner measured elsewhere.")
@click.option("--device", metavar="NAME", help='Where that was, e.g. "Pixel 9".')
@click.option(
    "--adb", is_flag=False, flag_value="", metavar="[SERIAL]", help="On the phone that adb reaches (put it last)."
)
@click.option("--runner", type=PATH, metavar="PATH", help="ExecuTorch's llama_main for Android.")
@click.option("--threads", type=POSITIVE, metavar="N", help="Threads on the phone (default: as the runner chooses).")
def bench_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    target: str,
    rehearse: bool,
    source: Path | None,
    recipe: str | None,
    runs: int,
    tokenizer: Path | None,
    stats: Path | None,
    device: str | None,
    adb: str | None,
    runner: Path | None,
    threads: int | None,
) -> None:
    workspace = Workspace(project, work, rehearse)
    if stats:
        if not device:
            raise UsageError("--import needs the name of the device", 'add --device, e.g. --device "Pixel 9"')
        path = devices.import_stats(workspace, target, read_stats(stats, device))
        terminal.answer({"written": str(path)}, f"kept in {path}; 'hubpub render' shows it on the card")
        return
    if adb is None and (runner or threads):
        raise UsageError("--runner and --threads are of a phone", "add --adb")
    targets = existing.find(workspace, target, source=source, recipe=recipe)
    if adb is not None:
        of_cell = {cell.id for cell in cells(project)}
        told, kept = {}, ""
        with terminal.progress() as progress:
            for one in targets:
                stage_of = partial(progress.update, one.name)
                how = devices.Runs(adb or None, runner, threads, runs)
                told[one.name] = devices.on_phone(workspace, one, tokenizer, how, stage_of)
                progress.finish(one.name, "done")
                if one.name in of_cell and not rehearse:
                    kept = f"kept in {devices.import_stats(workspace, one.name, told[one.name])}; "
                    kept += "'hubpub render' shows it on the card"
        value = {name: one.model_dump(mode="json") for name, one in told.items()}
        terminal.answer(value, Group(*(tables.device(name, one) for name, one in told.items()), kept))
        return
    found = {one.name: existing.bench(one, tokenizer, runs) for one in targets}
    terminal.answer(
        {name: one.model_dump(mode="json") for name, one in found.items()},
        Group(*(tables.speed(name, one) for name, one in found.items())) if found else Text(),
    )
