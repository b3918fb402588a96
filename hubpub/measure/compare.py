"""Two measurements of the same cells side by side: what got smaller, faster, better or worse, and what is a regression.

What counts as worse is stated in hubpub.gates: a value that moved the wrong way by more than its tolerance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hubpub.errors import UsageError
from hubpub.facts import CardFacts, CellFacts, Tensor
from hubpub.gates import Change, Regression, changes


@dataclass(frozen=True)
class CellDiff:
    """One cell before and after.

    `kernels_added` are operators an app must now link and did not before; `interface` tells in words what changed
    about methods, inputs, outputs and metadata; `gates_lost` are gates that passed before and do not now.
    """

    cell: str
    changes: tuple[Change, ...]
    kernels_added: tuple[str, ...]
    kernels_removed: tuple[str, ...]
    interface: tuple[str, ...]
    gates_lost: tuple[str, ...]


@dataclass(frozen=True)
class CardDiff:
    """One card before and after: the cells both have, and those only one has."""

    repo: str
    old_version: str
    new_version: str
    cells: tuple[CellDiff, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole difference as values that json can write."""
        return asdict(self)


def compare_cells(old: CellFacts, new: CellFacts) -> CellDiff:
    """What changed from `old` to `new`, two measurements of one cell."""
    before, after = set(old.program.operators.kernels), set(new.program.operators.kernels)
    held = {gate.name for gate in old.gates if gate.passed}
    return CellDiff(
        cell=new.cell,
        changes=changes(old, new),
        kernels_added=tuple(sorted(after - before)),
        kernels_removed=tuple(sorted(before - after)),
        interface=tuple(_interface(old, new)),
        gates_lost=tuple(gate.name for gate in new.gates if not gate.passed and gate.name in held),
    )


def compare(old: CardFacts, new: CardFacts) -> CardDiff:
    """What changed from one release of a card to another.

    Raises UsageError where one was measured on scale models and the other was not: no figure would mean anything.
    """
    if old.scale_model != new.scale_model:
        which = "the old" if old.scale_model else "the new"
        raise UsageError(
            f"{which} facts of {new.repo} are of scale models and the other are not",
            "compare two rehearsals, or two releases",
        )
    before = {cell.cell: cell for cell in old.cells}
    after = {cell.cell: cell for cell in new.cells}
    return CardDiff(
        repo=new.repo,
        old_version=old.version,
        new_version=new.version,
        cells=tuple(compare_cells(before[name], cell) for name, cell in after.items() if name in before),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def regressions(old: CardFacts, new: CardFacts) -> tuple[Regression, ...]:
    """What got worse by more than its tolerance: metrics, gates that no longer pass, and cells that are gone."""
    difference = compare(old, new)
    found = [Regression(name, "the cell is gone", 1, 0, "") for name in difference.removed]
    for cell in difference.cells:
        found += [Regression(cell.cell, f"gate {gate} no longer passes", 1, 0, "") for gate in cell.gates_lost]
        found += [
            Regression(cell.cell, change.name, change.old, change.new, change.tolerance)
            for change in cell.changes
            if change.regression
        ]
    return tuple(found)


def _interface(old: CellFacts, new: CellFacts) -> list[str]:
    """What an app that calls the program would notice, one line each."""
    found: list[str] = []

    def differ(what: str, before: dict[str, str], after: dict[str, str]) -> None:
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if was is None:
                found.append(f"{what} {name} is new: {now}")
            elif now is None:
                found.append(f"{what} {name} is gone")
            elif was != now:
                found.append(f"{what} {name}: {was} -> {now}")

    def signatures(cell: CellFacts) -> dict[str, str]:
        return {
            method.name: f"({_signature(method.inputs)}) -> ({_signature(method.outputs)})"
            for method in cell.program.methods
        }

    differ("method", signatures(old), signatures(new))
    metadata = ({name: str(value) for name, value in cell.program.metadata.items()} for cell in (old, new))
    differ("metadata", next(metadata), next(metadata))
    backends = (dict.fromkeys(cell.program.backends, "used") for cell in (old, new))
    differ("backend", next(backends), next(backends))
    return found


def _signature(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{tensor.dtype} {[*tensor.shape]}".replace("'", "") for tensor in tensors)
