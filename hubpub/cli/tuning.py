"""Bits where they count."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from rich.console import Group
from rich.table import Table

from hubpub.cli import options
from hubpub.cli.options import PATH, command
from hubpub.cli.terminal import Terminal, table
from hubpub.config import Project
from hubpub.make.existing import source_of
from hubpub.make.tuning import bytes_of, card_of, write_tuned
from hubpub.measure.tune import Costs, Part, as_table, choose, costs
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.scale import slice_of
from hubpub.units import percent, size
from hubpub.workspace import Workspace


@command(name="tune")
@click.argument("variant")
@click.option("--budget", required=True, metavar="SIZE", help="Bytes the weights may take, e.g. 105MB.")
@click.option("--recipe", default="8da4w", metavar="NAME", help="Which recipe to tune (default: 8da4w).")
@click.option("--source", type=PATH, metavar="DIR", help="Folder with the checkpoint (default: downloaded).")
@click.option("--dry-run", is_flag=True, help="Write nothing into the card.")
@options.rehearse
def tune_command(
    terminal: Terminal,
    project: Project,
    work: Path,
    variant: str,
    budget: str,
    recipe: str,
    source: Path | None,
    dry_run: bool,
    rehearse: bool,
) -> None:
    """Find the layers of a model that are worth int8 weights, within a size, and write them into its card.

    What int4 costs in each layer is measured while the model is calibrated as an export does it. With --rehearse a
    stand-in shows how it goes: the card is not written.
    """
    card, room = card_of(project, variant, recipe), bytes_of(budget)
    # What was found before does not count.
    before = project.recipe(card, recipe).model_copy(update={"tuned": {}})
    folder = source or source_of(card.variant, Workspace(project, work, rehearse))
    checkpoint = Checkpoint.open(folder, slice_of(card.variant, rehearsal=rehearse))
    with terminal.progress() as progress:
        found = costs(checkpoint, before, room, partial(progress.update, card.variant.name))
        progress.finish(card.variant.name, "done")
    chosen = choose(found, room)
    tuned, path = as_table(chosen), None
    if not (dry_run or rehearse):
        path = write_tuned(card, recipe, tuned)
    total = found.bytes + sum(part.bytes for part in chosen)
    value = {
        "variant": card.variant.name,
        "recipe": recipe,
        "budget": room,
        "bytes_before": found.bytes,
        "bytes": total,
        "parts": [{**asdict(part), "chosen": part in chosen} for part in found.parts],
        "tuned": tuned,
        "written": None if path is None else str(path),
    }
    left = sum(part.kl for part in found.parts if part not in chosen) / sum(part.kl for part in found.parts)
    said = f"{size(found.bytes)} of weights become {size(total)}; {percent(left)} of what int4 costs is left"
    said += f"; written to {path}" if path else "; nothing was written"
    terminal.answer(value, Group(_shown(found, chosen), said))


def _shown(found: Costs, chosen: tuple[Part, ...]) -> Table:
    """A row for each kind of layer, the one that costs most for a byte first."""
    made = table("kind", ">layers", ">of what int4 costs", ">more in int8", ">of it per MB", "int8 in layers")
    kinds: dict[str, list[Part]] = {}
    for part in found.parts:
        kinds.setdefault(part.kind, []).append(part)
    ranges, whole = as_table(chosen), sum(part.kl for part in found.parts)
    shares = {kind: sum(part.kl for part in parts) / whole for kind, parts in kinds.items()}
    megabytes = {kind: sum(part.bytes for part in parts) / 1e6 for kind, parts in kinds.items()}
    for kind in sorted(kinds, key=lambda one: -shares[one] / megabytes[one]):
        per_mb, where = percent(shares[kind] / megabytes[kind]), ", ".join(ranges.get(kind, ()))
        made.add_row(kind, str(len(kinds[kind])), percent(shares[kind]), size(1e6 * megabytes[kind]), per_mb, where)
    return made
