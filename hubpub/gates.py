"""From what was measured to what may be published: limits and verdicts, and what must not get worse. Pure.

A cell passes the gates of its recipe, or its repo is not published. Beside the last release, what counts as worse is
stated in METRICS: a value that moved the wrong way by more than its tolerance. Speed and resident memory are compared
where both were measured on one host with as many threads, while it was not busy with something else, and not
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hubpub.config import Card, Gates, locate
from hubpub.errors import ConfigError, GateError
from hubpub.facts import (
    Accepted,
    CardFacts,
    CellFacts,
    Gate,
    Greedy,
    GridFact,
    Logits,
    Lowering,
    Memory,
    OtherHost,
    Parity,
    Program,
    RunnerCheck,
    TokenizerCheck,
    rounded,
)
from hubpub.matrix import Cell

Verdict = Literal["better", "worse", "same", "changed", "not comparable"]


# What a process takes beside weights, whatever their size: the pool of threads, buffers of the runner.
BESIDE = 32 << 20


def evaluate_gates(
    limits: Gates,
    parity: Parity,
    program: Program,
    vocabulary: int,
    memory: Memory | None = None,
    parameters: int | None = None,
    *,
    trained: bool = False,
) -> tuple[Gate, ...]:
    """Every gate with its limit and what was measured. A figure that is not finite passes no gate.

    `trained`: the file must hold integers of four bits that its source was trained for.
    What facts of an older release do not hold, and what a layout does not have, is not judged; nor is memory where it
    was not measured.
    """
    logits, runner, lowering = parity.logits, parity.runner, parity.lowering
    noise = lowering.noise_kl_mean or 0.0 if lowering is not None else 0.0
    gates = _agreement_gates(limits, logits, parity.greedy, noise)
    if lowering is not None:
        gates += _lowering_gates(limits, logits, lowering, vocabulary, noise)
    if parity.whole is not None:
        gates.append(_gate("slice_kl_mean", "max", limits.slice_kl_mean_max, parity.whole.kl_mean))
    if parity.weights is not None:
        gates.append(_gate("weights_stored", "min", 1.0, float(not parity.weights.wrong)))
    if trained and parity.weights is not None:
        gates += _grid_gates(limits, parity.weights.grid)
    gates += _source_gates(program, parity)
    if parity.tokenizer is not None:
        gates += _tokenizer_gates(parity.tokenizer, runner, vocabulary)
    if runner is not None:
        gates.append(_gate("llm_runner_matches", "min", 1.0, float(runner.matches_decode_loop)))
    if limits.logit_error_max is not None:
        gates.append(_gate("logit_error_max", "max", limits.logit_error_max, logits.error_max))
    if memory is not None and parameters and limits.anonymous_per_weight_max is not None:
        limit = limits.anonymous_per_weight_max + BESIDE / parameters
        copied = _copied(program, memory) / parameters
        gates.append(_gate("anonymous_per_weight", "max", rounded(limit), rounded(copied)))
    return tuple(gates)


def _agreement_gates(limits: Gates, logits: Logits, greedy: Greedy, noise: float) -> list[Gate]:
    """What the file says beside what its source says."""
    first = greedy.first_token if greedy.first_token_or_tie is None else greedy.first_token_or_tie
    kl, top1 = _quality_limits(limits, logits)
    gates = [
        _gate("finite_logits", "min", 1.0, float(logits.finite)),
        _gate("kl_mean", "max", kl, logits.kl_mean),
        _gate("top1_agreement", "min", top1, logits.top1_agreement),
        _gate("greedy_first_token", "min", limits.greedy_first_token_min, first),
        _gate("greedy_exact", "min", limits.greedy_exact_min, greedy.exact),
    ]
    if limits.greedy_tokens_min is not None and greedy.likely_tokens is not None:
        gates.append(_gate("greedy_tokens", "min", limits.greedy_tokens_min, greedy.likely_tokens))
    if logits.prefill_kl_mean is not None:
        limit = max(limits.prefill_kl_mean_max, limits.prefill_noise_max * noise)
        gates.append(_gate("prefill_kl_mean", "max", rounded(limit), logits.prefill_kl_mean))
    return gates


def _lowering_gates(limits: Gates, logits: Logits, lowering: Lowering, vocabulary: int, noise: float) -> list[Gate]:
    # The mean of as many surprises as there are tokens, each off by the noise, is itself off by this much.
    chance = 3 * math.sqrt(2 * noise / logits.tokens)
    difference = rounded(abs(logits.perplexity / lowering.perplexity - 1))
    limit = max(limits.lowering_kl_mean_max, limits.noise_max * noise)
    return [
        # Worse than not knowing: a model that reads with a foreign tokenizer, or whose weights are damaged.
        _gate("original_perplexity", "max", vocabulary / 2, logits.perplexity_original),
        _gate("lowering_kl_mean", "max", rounded(limit), lowering.kl_mean),
        _gate("lowering_perplexity", "max", rounded(max(limits.lowering_perplexity_max, chance)), difference),
    ]


def _grid_gates(limits: Gates, grid: GridFact | None) -> list[Gate]:
    # Rounded down: one group of millions that is lost is not all of them.
    least = 1.0 if grid is not None and grid.explicit else limits.grid_exact_min
    return [
        _gate("grid_exact", "min", least, math.floor(grid.share * 1e6) / 1e6 if grid else 0.0),
        _gate("grid_weights", "min", limits.grid_weights_min, grid.weights_share if grid else 0.0),
    ]


def _source_gates(program: Program, parity: Parity) -> list[Gate]:
    """What a program must have of its source, and shows too little in what it says."""
    gates = []
    window = parity.sliding_window
    if window is not None and program.kv_cache.layers and window < (program.context or 0):
        # One token more or less at a distance of hundreds is far below the noise of int8 activations.
        same = parity.sliding_layers in (None, program.sliding_layers)
        gates.append(_gate("sliding_window", "min", 1.0, float(program.sliding_window == window and same)))
    if parity.scalars is not None:
        # An epsilon a hundred times as large is below any noise.
        gates.append(_gate("scalars", "min", 1.0, float(program.scalars == parity.scalars)))
    if parity.stop_tokens is not None:
        same = program.eos_ids is not None and set(program.eos_ids) == set(parity.stop_tokens)
        gates.append(_gate("eos_ids", "min", 1.0, float(same)))
    return gates


def _tokenizer_gates(fits: TokenizerCheck, runner: RunnerCheck | None, vocabulary: int) -> list[Gate]:
    counted = runner is None or runner.prompt_tokens == runner.prompt_tokens_original
    good = fits.round_trips == 1 and fits.largest_id < vocabulary and counted
    gates = [_gate("tokenizer_fits", "min", 1.0, float(good))]
    if fits.chat_template is not None:
        gates.append(_gate("chat_template_fits", "min", 1.0, float(fits.chat_template)))
    return gates


def _copied(program: Program, memory: Memory) -> int:
    """Bytes of anonymous memory beyond the arena, which the file asks for and which holds the KV cache.

    Nor does the tokenizer count: of a large vocabulary it takes hundreds of megabytes.
    """
    known = max((one.planned_bytes for one in program.methods), default=0)
    known += memory.beside.anonymous if memory.beside else 0
    return max(0, memory.generated.anonymous - known)


def _quality_limits(limits: Gates, logits: Logits) -> tuple[float, float]:
    """The largest KL and the least agreement: those of the recipe, or what the baseline of this very model allows."""
    kl, top1 = limits.kl_mean_max, limits.top1_min
    if limits.baseline_max is not None and logits.baseline_kl_mean is not None:
        kl = max(kl, limits.baseline_max * logits.baseline_kl_mean)
        top1 = min(top1, 1 - limits.baseline_max * (1 - (logits.baseline_top1_agreement or 1.0)))
    return rounded(kl), rounded(top1)


def with_current_gates(cell: Cell, facts: CellFacts) -> CellFacts:
    """`facts` with the recipe's gates as they are now, on every machine: changing a limit needs no new export."""

    trained = cell.variant.qat is not None and cell.recipe.in_four_bits

    def judged(one: CellFacts | OtherHost) -> tuple[Gate, ...]:
        limits, weights = cell.recipe.gates, facts.parameters.total
        return evaluate_gates(
            limits, one.parity, facts.program, facts.vocabulary, one.speed.memory, weights, trained=trained
        )

    hosts = tuple(one.model_copy(update={"gates": judged(one)}) for one in facts.hosts)
    return facts.model_copy(update={"gates": judged(facts), "hosts": hosts, "summary": cell.recipe.summary})


def missed_gates(facts: CellFacts) -> GateError | None:
    """The error that says which gates a cell does not pass, and where; None where it passes all of them."""
    judged = [(gate, "") for gate in facts.gates]
    judged += [(gate, f" on {one.system}") for one in facts.hosts for gate in one.gates]
    failed = [(gate, where) for gate, where in judged if not gate.passed]
    if not failed:
        return None
    missed = [f"{gate.name}{where} {gate.measured:g} ({gate.kind} {gate.limit:g})" for gate, where in failed]
    return GateError(f"{facts.cell} did not pass: {', '.join(missed)}", "its repo is not published")


def _gate(name: str, kind: Literal["max", "min"], limit: float, measured: float) -> Gate:
    passed = math.isfinite(measured) and (measured <= limit if kind == "max" else measured >= limit)
    return Gate(name=name, kind=kind, limit=limit, measured=measured, passed=passed)


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


# How much worse is let pass, and why:
# - sizes, 1 %: the same code gives the same bytes, so that any growth is a change; this much comes with a new release
#   of ExecuTorch or one more field of metadata;
# - top-1 agreement, half a point: the standard error of 95 % over 2,000 tokens, sqrt(0.95 * 0.05 / 2000);
# - KL, 10 % and 0.002 nats: a choice. The first is for files that are far from the reference model, the second for
#   those so near that a share of nearly nothing would be a regression;
# - speeds and memory, 10 %: a choice, above the range of runs on one quiet machine that facts record beside the median.
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


def changes(old: CellFacts, new: CellFacts) -> tuple[Change, ...]:
    """Every metric of a cell before and after."""
    same_host = (old.speed.host, old.speed.threads, old.speed.through) == (
        new.speed.host,
        new.speed.threads,
        new.speed.through,
    )
    same_host = same_host and old.speed.representative and new.speed.representative
    return tuple(_change(metric, old, new, same_host) for metric in METRICS)


def check_regressions(old: CardFacts, new: CardFacts, card: Card) -> tuple[Accepted, ...]:
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
        for change in changes(was, cell):
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
