"""Two measurements of the same cells side by side: what got smaller, faster, better or worse, and what is a regression.

What counts as worse is stated in METRICS: a value that moved the wrong way by more than its tolerance. Speed and
resident memory are compared where both were measured on one host with as many threads, while it was not busy with
something else, and not otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from hubpub.config import Card, locate
from hubpub.errors import ConfigError, GateError, UsageError
from hubpub.facts import Accepted, CardFacts, CellFacts, Tensor

if TYPE_CHECKING:
    from rich.console import RenderableType

Verdict = Literal["better", "worse", "same", "changed", "not comparable"]


@dataclass(frozen=True)
class Metric:
    """One measured value of a cell and which way is good.

    The value may get worse by `relative` of its old value and by `absolute` in its own unit; beyond both it is a
    regression. With neither, and where no way is good, it is shown and never judged.
    """

    name: str
    unit: Literal["bytes", "nats", "share", "tokens/s", "", "s"]
    read: Callable[[CellFacts], float]
    good: Literal["less", "more", "neither"]
    relative: float = 0.0
    absolute: float = 0.0
    per_host: bool = False

    @property
    def tolerance(self) -> str:
        """In words, e.g. "+10% and +0.002"; "" for a value that is not judged."""
        sign = "+" if self.good == "less" else "-"
        parts = [f"{sign}{self.relative:.0%}"] if self.relative else []
        if self.absolute:
            parts.append(
                f"{sign}{self.absolute * 100:g} points" if self.unit == "share" else f"{sign}{self.absolute:g}"
            )
        return " and ".join(parts)

    def worsened(self, old: float, new: float) -> bool:
        """Whether the value moved the wrong way by more than the tolerance."""
        if self.good == "neither" or not (self.relative or self.absolute):
            return False
        loss = new - old if self.good == "less" else old - new
        # A tolerance met to the last digit is met: the differences are of floats.
        slack = 1e-9 * max(abs(old), abs(new))
        return loss > self.relative * abs(old) + slack and loss > self.absolute + slack


def _planned(cell: CellFacts) -> float:
    return max((method.planned_bytes for method in cell.program.methods), default=0)


METRICS = (
    Metric("file size", "bytes", lambda cell: cell.file.bytes, "less", relative=0.01),
    Metric("program memory", "bytes", _planned, "less", relative=0.01),
    Metric("KV cache", "bytes", lambda cell: cell.program.kv_cache.bytes, "less", relative=0.01),
    Metric("KL mean", "nats", lambda cell: cell.parity.logits.kl_mean, "less", relative=0.10, absolute=0.002),
    Metric("top-1 agreement", "share", lambda cell: cell.parity.logits.top1_agreement, "more", absolute=0.005),
    Metric("perplexity", "", lambda cell: cell.parity.logits.perplexity, "less"),
    Metric("prefill", "tokens/s", lambda cell: cell.speed.prefill_tokens_per_second, "more", 0.10, per_host=True),
    Metric("decode", "tokens/s", lambda cell: cell.speed.decode_tokens_per_second, "more", 0.10, per_host=True),
    Metric("load", "s", lambda cell: cell.speed.load_seconds, "less", per_host=True),
    Metric("peak memory", "bytes", lambda cell: cell.speed.peak_resident_bytes, "less", 0.10, per_host=True),
    Metric("parameters", "", lambda cell: cell.parameters.total, "neither"),
    Metric("context", "", lambda cell: cell.context.exported, "neither"),
    Metric("delegated operators", "share", lambda cell: cell.program.operators.delegated_share, "more"),
)


@dataclass(frozen=True)
class Change:
    """One metric before and after. `verdict` is "not comparable" where the two were measured on different hosts."""

    name: str
    unit: str
    old: float
    new: float
    verdict: Verdict
    regression: bool
    tolerance: str

    @property
    def relative(self) -> float | None:
        """The change as a share of the old value; None where that was 0."""
        return (self.new - self.old) / self.old if self.old else None


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


@dataclass(frozen=True)
class Regression:
    """Something that got worse by more than `tolerance` allows; for a gate or a lost cell, old and new are 1 and 0."""

    cell: str
    name: str
    old: float
    new: float
    tolerance: str

    def __str__(self) -> str:
        if not self.tolerance:
            return f"{self.cell}: {self.name}"
        return f"{self.cell}: {self.name} {self.old:.6g} -> {self.new:.6g} (allowed: {self.tolerance})"


def compare_cells(old: CellFacts, new: CellFacts) -> CellDiff:
    """What changed from `old` to `new`, two measurements of one cell."""
    same_host = (old.speed.host, old.speed.threads, old.speed.through) == (
        new.speed.host,
        new.speed.threads,
        new.speed.through,
    )
    same_host = same_host and old.speed.representative and new.speed.representative
    before, after = set(old.program.operators.kernels), set(new.program.operators.kernels)
    held = {gate.name for gate in old.gates if gate.passed}
    return CellDiff(
        cell=new.cell,
        changes=tuple(_change(metric, old, new, same_host) for metric in METRICS),
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


def release_gate(old: CardFacts, new: CardFacts, card: Card) -> tuple[Accepted, ...]:
    """Let `new` follow the published `old`: what got worse must be acknowledged in the card's [[accept]].

    Returns what was acknowledged. Of scale models, speed says nothing, and one that was made anew is another model.
    Raises GateError naming what got worse, and ConfigError for an acknowledgement of something that is not measured.
    """
    names = [metric.name for metric in METRICS]
    path, line = locate(card, "accept")
    for one in card.accept:
        if one.what not in names or one.recipe not in card.export.recipes:
            raise ConfigError(
                f"{path}: accept: '{one.what}' of '{one.recipe}' is not measured",
                f"metrics: {', '.join(names)}; recipes: {', '.join(card.export.recipes)}",
                path=str(path),
                line=line,
            )
    if old.scale_model != new.scale_model:
        return ()
    before = {cell.cell: cell for cell in old.cells}
    known = {(one.recipe, one.what): one.reason for one in card.accept if one.since == old.version}
    accepted, refused = [], []
    for cell in new.cells:
        was = before.get(cell.cell)
        if was is None or (cell.source.scale_model and was.source.files != cell.source.files):
            continue
        per_host = {metric.name for metric in METRICS if metric.per_host}
        for change in compare_cells(was, cell).changes:
            if not change.regression or (cell.source.scale_model and change.name in per_host):
                continue
            reason = known.get((cell.recipe, change.name))
            if reason is None:
                refused.append(Regression(cell.cell, change.name, change.old, change.new, change.tolerance))
            else:
                accepted.append(
                    Accepted(cell=cell.cell, what=change.name, old=change.old, new=change.new, reason=reason)
                )
    if refused:
        first = refused[0]
        raise GateError(
            f"worse than {old.version}: " + "; ".join(map(str, refused)),
            f'if that is wanted, say why in {path}: [[accept]] recipe = "{first.cell.rpartition("/")[2]}", '
            f'what = "{first.name}", since = "{old.version}", reason = "..."',
        )
    return tuple(accepted)


def _change(metric: Metric, old: CellFacts, new: CellFacts, same_host: bool) -> Change:
    before, after = metric.read(old), metric.read(new)
    comparable = same_host or not metric.per_host
    verdict: Verdict
    if not comparable:
        verdict = "not comparable"
    elif before == after:
        verdict = "same"
    elif metric.good == "neither":
        verdict = "changed"
    else:
        verdict = "better" if (after < before) == (metric.good == "less") else "worse"
    regression = comparable and metric.worsened(before, after)
    return Change(metric.name, metric.unit, before, after, verdict, regression, metric.tolerance)


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


def render_diff(difference: CardDiff) -> RenderableType:
    """`difference` for a terminal: a table for each cell, and what apps would notice under it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    styles = {"better": "green", "worse": "yellow", "same": "dim", "changed": "", "not comparable": "dim"}
    parts: list[RenderableType] = [
        Text(f"{difference.repo}: {difference.old_version} -> {difference.new_version}", style="bold"),
        Text(""),
    ]
    parts += [Text(f"+ {name}, a new cell", style="green") for name in difference.added]
    parts += [Text(f"- {name}, no longer there", style="red") for name in difference.removed]
    for cell in difference.cells:
        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for name in ("metric", ">before", ">after", ">change", "", "allowed"):
            made.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
        for change in cell.changes:
            verdict = Text(change.verdict, style=styles[change.verdict])
            if change.regression:
                verdict = Text("REGRESSION", style="bold red")
            relative = "" if change.relative is None or change.old == change.new else f"{change.relative:+.1%}"
            made.add_row(
                change.name,
                _shown(change.old, change.unit),
                _shown(change.new, change.unit),
                relative if change.verdict != "not comparable" else "",
                verdict,
                change.tolerance,
            )
        parts += [Text(cell.cell, style="bold"), made]
        parts += [Text(f"gate {gate} no longer passes", style="bold red") for gate in cell.gates_lost]
        parts += [Text(f"+ kernel {name}", style="yellow") for name in cell.kernels_added]
        parts += [Text(f"- kernel {name}") for name in cell.kernels_removed]
        parts += [Text(f"! {line}", style="yellow") for line in cell.interface]
        parts.append(Text(""))
    return Group(*parts)


def _shown(value: float, unit: str) -> str:
    from hubpub.measure.inspect import human_bytes

    if unit == "bytes":
        return human_bytes(int(value))
    if unit == "share":
        return f"{value:.1%}"
    if unit == "":
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{value:.4g} {unit}"
