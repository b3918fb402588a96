"""Speeds of our files on other devices: kept beside the card, shown by releases of the very files they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubpub import data
from hubpub.config import Card
from hubpub.errors import UsageError
from hubpub.facts import CardFacts, CellFacts, DeviceSpeed, Fact, load, save
from hubpub.make.existing import Target
from hubpub.matrix import cells, select
from hubpub.measure import phone
from hubpub.measure.bench import GENERATED, PREFILL
from hubpub.measure.chat import reader_beside, tokenizer_beside
from hubpub.measure.inspect import inspect
from hubpub.plan import plan
from hubpub.progress import Progress
from hubpub.workspace import Workspace

DEVICES = "devices.json"


class DeviceRecord(Fact):
    """A speed from another device, and the SHA-256 of the very `.pte` it was measured on."""

    cell: str
    sha256: str
    speed: DeviceSpeed


class Devices(Fact):
    """devices.json beside a card.toml: what `hubpub bench --import` kept, for the releases of these files to show."""

    measured: tuple[DeviceRecord, ...] = ()


def import_stats(workspace: Workspace, selector: str, speed: DeviceSpeed) -> Path:
    """Keep what the C++ runner measured on a device beside the card of the one cell `selector` names.

    The figures are bound to the bytes of its file, from the work folder or else the last recorded release: a release
    of another file does not show them. Returns the file they were written to; the card's committed facts, where they
    are of the same file, are brought up to date too.
    """
    chosen = select(cells(workspace.project), [selector])
    if len(chosen) != 1:
        names = ", ".join(cell.id for cell in chosen[:4])
        raise UsageError(f"'{selector}' is {len(chosen)} cells: {names}", "name the one the device ran")
    cell = chosen[0]
    recorded = cell.card.folder / "facts.json"
    committed = load(CardFacts, recorded) if recorded.exists() else None
    (step,) = plan(chosen, workspace)
    facts = step.facts()
    if facts is None and committed is not None:
        facts = next((one for one in committed.cells if one.cell == cell.id), None)
    if facts is None:
        raise UsageError(f"{cell.id} has not been made", "release it first: figures belong to one file")
    record = DeviceRecord(cell=cell.id, sha256=facts.file.sha256, speed=speed)
    path = cell.card.folder / DEVICES
    kept = load(Devices, path).measured if path.exists() else ()
    same = (record.cell, record.sha256, record.speed.device)
    others = tuple(one for one in kept if (one.cell, one.sha256, one.speed.device) != same)
    save(Devices(measured=tuple(sorted((*others, record), key=lambda one: (one.cell, one.speed.device)))), path)
    if committed is not None:
        save(with_devices(committed, cell.card), recorded)
    return path


@dataclass(frozen=True)
class Runs:
    """How a phone runs a program: which phone and runner (None: the only one), how many threads, how often."""

    serial: str | None
    runner: Path | None
    threads: int | None
    runs: int


def on_phone(
    workspace: Workspace, target: Target, tokenizer: Path | None, how: Runs, progress: Progress
) -> DeviceSpeed:
    """Run the program on a phone over adb; what the runner printed is kept in the work folder.

    Raises UsageError for a program that the runner cannot run, and what `hubpub.measure.phone.measure` raises.
    """
    device = phone.Phone.find(how.serial)
    runner = phone.runner(how.runner)
    program = inspect(target.pte)
    context = program.context
    if context is None or not program.metadata.get("use_kv_cache", True):
        raise UsageError(f"{target.name} is no program for the LLM runner", "choose one with a KV cache")
    file = tokenizer_beside(target.pte, tokenizer or target.source)
    reader = reader_beside(target.pte, file)
    read = max(2, min(PREFILL, context // 2))
    ids = reader.tokenizer.encode(data.passage(), add_special_tokens=False)[: read - 1]
    ask = phone.Ask(
        prompt=reader.written_bos + str(reader.tokenizer.decode(ids)),
        num_bos=reader.num_bos,
        new_tokens=min(GENERATED, context - read),
        runs=how.runs,
        threads=how.threads,
    )
    sha256 = workspace.hashes.sha256(target.pte)
    return phone.measure(device, target.pte, file, runner, ask, workspace.phone_log(sha256), progress)


def with_devices(facts: CardFacts, card: Card) -> CardFacts:
    """`facts` with what was measured elsewhere on the very files they are of."""
    path = card.folder / DEVICES
    kept = load(Devices, path).measured if path.exists() else ()

    def own(cell: CellFacts) -> CellFacts:
        found = tuple(one.speed for one in kept if (one.cell, one.sha256) == (cell.cell, cell.file.sha256))
        return cell.model_copy(update={"devices": found})

    return facts.model_copy(update={"cells": tuple(map(own, facts.cells))})
