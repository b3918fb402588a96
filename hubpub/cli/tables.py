"""What the rooms found, as a person reads it on a screen: one function per thing that is reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hubpub.cli.terminal import clean, table
from hubpub.units import number, percent, rate, seconds, size, valued

if TYPE_CHECKING:
    from hubpub.cards.diff import CardChange
    from hubpub.cards.family_sizes import Sized
    from hubpub.doctor import Check
    from hubpub.facts import DeviceSpeed, Evaluation, Memory, Program, Speed, Tensor
    from hubpub.hub.maintenance import RepoStatus, Verification
    from hubpub.hub.receipts import Receipt
    from hubpub.make.existing import Validation
    from hubpub.make.rebuild import Comparison
    from hubpub.measure.chat import Reply
    from hubpub.measure.compare import CardDiff
    from hubpub.measure.drift import Drift
    from hubpub.plan import Step
    from hubpub.release.run import Report


def plan(steps: Sequence[Step]) -> RenderableType:
    """One row per cell, and how many of each kind."""
    made = table("cell", "action", "why", "file", "recipe")
    for step in steps:
        style = {"export": "bold", "reuse": "dim", "skip": "dim"}[step.action]
        made.add_row(step.cell.id, step.action, step.reason, step.cell.file, step.cell.recipe.summary, style=style)
    counts = {action: sum(step.action == action for step in steps) for action in ("export", "reuse", "skip")}
    summary = f"{counts['export']} to export, {counts['reuse']} up to date, {counts['skip']} skipped"
    return Group(made, Text(), Text(summary))


def checks(found: Sequence[Check]) -> RenderableType:
    """One row per check, what to do below those that are not well, then the verdict."""
    made = Table(box=None, pad_edge=False, show_header=False)
    marks = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("failed", "bold red")}
    for check in found:
        mark, style = marks.get(check.verdict, ("unknown", "yellow"))
        said = Text(check.found)
        if check.fix and check.verdict != "ok":
            said.append(f"\n-> {check.fix}", style="bold")
        made.add_row(Text(mark, style=style), check.subject, said)
    counts = {kind: sum(check.verdict == kind for check in found) for kind in ("ok", "failed", "unknown")}
    verdict = f"{counts['ok']} fine, {counts['failed']} failed, {counts['unknown']} could not be checked"
    return Group(made, Text(), Text(verdict))


def report(found: Report) -> RenderableType:
    """Cells with size, quality, speed and gates; then what every repo got and where to look at it."""
    made = table(
        "cell", ">size", ">top-1", ">KL", ">greedy", ">prefill/s", ">decode/s", ">memory", ">export", "gates"
    )  # fmt: skip
    for step in found.steps:
        made.add_row(*_cell(found, step))
    lines: list[RenderableType] = [made, Text()]
    real = [facts for facts in found.facts.values() if not facts.source.scale_model]
    if len(real) < len(found.facts):
        lines.append(Text("Rehearsal: every figure is of a scale model, none of a real one.", style="yellow"))
    busy = [facts.cell for facts in real if not facts.speed.representative]
    if busy:
        why = next(facts.speed.reason for facts in real if not facts.speed.representative)
        lines.append(Text(f"The speed of {len(busy)} cells says little: {why}.", "yellow"))
    lines += [Text(failure.message, style="red") for failure in found.failures.values()]
    lines += [Text(f"{one.repo_id}: {one.summary}") for one in found.staged]
    lines.append(receipts(found.receipts))
    if not found.local_hub:
        lines += [Text(f"look at it: {page}") for page in found.pages]
    else:
        lines.append(Text(f"the local Hub is stored in {found.local_hub}; 'hubpub hub serve' shows its pages"))
    lines.append(Text(f"{found.version} in {seconds(found.seconds)}"))
    return Group(*lines)


def _cell(found: Report, step: Step) -> list[str]:
    facts = found.facts.get(step.cell.id)
    if facts is None:
        error = found.failures.get(step.cell.id)
        return [step.cell.id, *[""] * 8, "failed" if error else step.reason]
    logits, greedy, speed = facts.parity.logits, facts.parity.greedy, facts.speed
    stages = facts.stages
    spent = stages.load + stages.quantize + stages.export + stages.lower + stages.write
    missed = [gate.name for gate in facts.gates if not gate.passed]
    return [
        step.cell.id,
        size(facts.file.bytes),
        percent(logits.top1_agreement),
        number(logits.kl_mean),
        percent(greedy.exact),
        number(speed.prefill_tokens_per_second),
        number(speed.decode_tokens_per_second),
        size(speed.peak_resident_bytes),
        "kept" if step.action == "reuse" else seconds(spent),
        f"failed: {', '.join(missed)}" if missed else f"{len(facts.gates)} passed",
    ]


def receipts(found: Sequence[Receipt]) -> RenderableType:
    """What every repo got or would get; a dry run names each file it would write."""
    lines: list[RenderableType] = []
    for receipt in found:
        lines.append(Text(f"{receipt.repo_id}: {receipt.summary}"))
        lines += [Text(f"{receipt.repo_id}: {note}", style="yellow") for note in receipt.notes]
        if receipt.outcome.kind == "planned":
            lines += _planned(receipt)
    return Group(*lines)


def _planned(receipt: Receipt) -> list[RenderableType]:
    made = table("file", ">size", "")
    for file in receipt.files:
        if file.changed:
            made.add_row(file.path, size(file.bytes), "send" if file.sent_bytes else "copy on the Hub, staged already")
    kept = sum(not file.changed for file in receipt.files)
    shown: list[RenderableType] = [Padding(made, (0, 0, 0, 2))] if made.row_count else []
    return [*shown, Text(f"  {kept} files stay as they are")] if kept else shown


def verification(found: Verification) -> RenderableType:
    """One row per published file, then the verdict."""
    made = table("file", ">size", "sha256", "checked", "")
    for file in found.files:
        shown = "" if file.bytes is None else size(file.bytes)
        made.add_row(file.path, shown, file.expected[:12], file.how, "ok" if file.ok else Text("wrong", style="red"))
    lines: list[RenderableType] = [made, Text()]
    lines += [Text(problem, style="red") for problem in found.problems]
    verdict = "intact" if found.ok else "not intact"
    lines.append(Text(f"{found.repo} at {found.revision} ({found.commit[:12]}) is {verdict}"))
    return Group(*lines)


def rebuilt(found: Comparison) -> RenderableType:
    """What came of exporting a published file again."""
    if found.same:
        said = f"{found.file} was rebuilt from its source, byte for byte (Python {found.python}, {found.system})"
        return Text(said, style="green")
    lines = [
        Text(f"{found.file} came out as another file (Python {found.python}, {found.system})", style="red"),
        Text(f"published {found.published}"),
        Text(f"here      {found.rebuilt}  {found.kept}"),
        Text(found.reason),
    ]
    return Group(*lines)


def status(found: Sequence[RepoStatus]) -> RenderableType:
    """One row per repo: what main holds, tags, what is staged, what was released from here; then what disagrees."""
    made = table("repo", "published", "commit", "tags", "staged", "from here", "agree")
    for one in found:
        staged = ", ".join(f"{waiting.version} ({len(waiting.files)} files)" for waiting in one.staged)
        made.add_row(
            one.repo,
            one.published or ("nothing" if one.exists else "no such repo yet"),
            (one.head or "")[:12],
            ", ".join(name for name, _ in one.tags[-3:]),
            staged or "nothing",
            one.receipts[-1].version if one.receipts else "nothing",
            Text("no", style="yellow") if one.notes else "yes" if one.exists else "",
        )
    notes = [Text(f"{one.repo}: {note}", style="yellow") for one in found for note in one.notes]
    return Group(made, Text(), *notes) if notes else made


def reply(found: Reply) -> str:
    """What an answer cost, in one line."""
    return (
        f"{found.prompt_tokens} tokens in, {found.tokens} out   load {seconds(found.load_seconds)}   "
        f"first token {seconds(found.first_token_seconds)}   prefill {rate(found.prefill_tokens_per_second)}   "
        f"decode {rate(found.decode_tokens_per_second)}"
    )


def program(found: Program, title: str = "program") -> RenderableType:
    """A program's methods, where its bytes are, operators, backends and metadata, under `title`."""
    head = clean(title)
    head.stylize("bold")
    head.append(f"   {size(sum(found.layout.values()))}, schema version {found.schema_version}")
    if found.external_bytes:
        head.append(f", needs {size(found.external_bytes)} of weights from another file", style="yellow")
    methods = _grid(
        "Methods",
        ("method", "inputs", "outputs", ">memory", ">state", ">instructions", ">delegate calls"),
        [
            (
                method.name,
                _signature(method.inputs),
                _signature(method.outputs),
                size(method.planned_bytes),
                size(method.state_bytes),
                f"{method.instructions:,}",
                f"{method.delegates:,}",
            )
            for method in found.methods
        ],
    )
    small = [_shares("Where the bytes are", "part", found.layout)]
    if found.weights:
        small.append(_shares("Weights", "dtype", found.weights))
    if found.backends:
        rows = [(name, f"{n:,}", size(found.backend_bytes.get(name, 0))) for name, n in found.backends.items()]
        small.append(_grid("Backends", ("backend", ">delegates", ">bytes"), rows))
    cache = found.kv_cache
    if cache.bytes:
        caption = f"KV cache: {size(cache.bytes)}, {cache.dtype}, {cache.layers} layers"
        small.append(_counts(caption, "shape of a buffer", cache.shapes))
    operators = found.operators
    lists = []
    if operators.kernels:
        lists.append(_counts("Kernels an app must link", "operator", operators.kernels))
    if operators.delegated:
        caption = f"In delegates ({percent(operators.delegated_share)} of operators)"
        lists.append(_counts(caption, "operator", operators.delegated))
    if found.metadata:
        metadata = {name: list(value) if isinstance(value, tuple) else value for name, value in found.metadata.items()}
        lists.append(_grid("Metadata", ("method", "value"), [(name, str(value)) for name, value in metadata.items()]))
    return Group(head, Text(""), methods, Columns(small), Columns(lists))


def _grid(caption: str, columns: Sequence[str], rows: Sequence[tuple[str | Text, ...]]) -> RenderableType:
    made = table(*columns)
    for row in rows:
        made.add_row(*(clean(cell) if isinstance(cell, str) else cell for cell in row))
    return Padding(Group(Text(caption, style="bold"), made), (0, 2, 1, 0))


def _counts(caption: str, column: str, found: Mapping[str, int]) -> RenderableType:
    return _grid(caption, (column, ">count"), [(name, f"{count:,}") for name, count in found.items()])


def _shares(caption: str, column: str, found: Mapping[str, int]) -> RenderableType:
    total = sum(found.values()) or 1
    rows = [
        (name, size(count), percent(count / total), Text("█" * round(12 * count / total), style="cyan"))
        for name, count in sorted(found.items(), key=lambda item: -item[1])
    ]
    return _grid(caption, (column, ">bytes", ">", ""), rows)


def _signature(tensors: Sequence[Tensor]) -> Text:
    lines = (f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]" for tensor in tensors)
    return Text("\n").join(clean(line) for line in lines)


def validation(found: Validation) -> RenderableType:
    """One row per gate, what was compared, and where it drifts."""
    made = table("gate", ">measured", ">limit", "")
    for gate in found.gates:
        sign = "<=" if gate.kind == "max" else ">="
        verdict = Text("passed", style="green") if gate.passed else Text("FAILED", style="bold red")
        made.add_row(gate.name, number(gate.measured), f"{sign} {gate.limit:g}", verdict)
    logits, greedy = found.parity.logits, found.parity.greedy
    compared = (
        f"over {logits.tokens} tokens: perplexity {number(logits.perplexity)}, of the reference model "
        f"{number(logits.perplexity_original)}; KL mean {number(logits.kl_mean)}, 99.9 % {number(logits.kl_p999)}"
        f" (of the reference model in bfloat16: {number(logits.floor_kl_mean or 0)})\n"
        f"{greedy.prompts} prompts: {percent(greedy.first_token)} begin alike, {percent(greedy.exact)} are alike for "
        f"{greedy.new_tokens} tokens, common beginning {number(greedy.mean_common_prefix)} tokens on average"
    )
    lines: list[RenderableType] = [Text(found.name, style="bold"), made, Text(compared, style="dim")]
    if found.drift:
        lines += [Text(), drift(found.drift)]
    return Group(*lines, Text())


def drift(found: Drift) -> RenderableType:
    """A row per layer, weights that differ, and the verdict."""
    made = table("residual stream after", ">recipe vs reference", ">file vs recipe", "")
    for layer in found.layers:
        over = not layer.file <= found.limit
        mark = "drifts first" if layer.name == found.first else ""
        made.add_row(layer.name, f"{layer.quantization:.2e}", f"{layer.file:.2e}", mark, style="red" if over else "")
    note = f"relative error of the norm; {found.found} of {found.weights} weights were found in the file"
    lines: list[RenderableType] = [made, Text(f"{note}; allowed: {found.limit:g}", style="dim")]
    lines += [Text(f"! {one.name}: {one.how}", style="yellow") for one in found.differing]
    return Group(*lines, Text(found.verdict, style="bold"))


def speed(name: str, found: Speed) -> RenderableType:
    """The speed of one program."""

    def ranged(value: float, spread: tuple[float, float] | None) -> str:
        return rate(value) + (f"  ({number(spread[0])} to {number(spread[1])})" if spread else "")

    made = Table.grid(padding=(0, 2))
    first = seconds(found.first_token_seconds) if found.first_token_seconds is not None else ""
    for row in (
        ("load", seconds(found.load_seconds)),
        ("first token", f"{first} after {found.prefill_tokens} tokens"),
        ("prefill", ranged(found.prefill_tokens_per_second, found.prefill_range)),
        ("decode", ranged(found.decode_tokens_per_second, found.decode_range)),
        ("peak memory", size(found.peak_resident_bytes)),
        *_memory(found.memory),
        ("runs", f"{found.runs}, median and range, through: {found.through}"),
        ("host", f"{found.host}, {found.threads} threads; {found.system}; {found.runtime}"),
    ):
        made.add_row(*row)
    note = Text("representative") if found.representative else Text(f"not representative: {found.reason}", "yellow")
    return Group(Text(name, style="bold"), made, note, Text())


def _memory(found: Memory | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    rows = {"loading": found.loaded, "the prompt": found.prefilled, f"{found.generated_tokens} tokens": found.generated}
    return [(f"after {when}", f"{size(at.anonymous)} anonymous, {size(at.mapped)} mapped") for when, at in rows.items()]


def device(name: str, found: DeviceSpeed) -> RenderableType:
    """The speed and memory of one program on another device."""
    made = Table.grid(padding=(0, 2))
    made.add_row("device", found.device)
    made.add_row("load", seconds(found.load_seconds))
    made.add_row("first token", f"{seconds(found.first_token_seconds)} after {found.prefill_tokens} tokens")
    made.add_row("prefill", rate(found.prefill_tokens_per_second))
    made.add_row("decode", f"{rate(found.decode_tokens_per_second)}, {found.decode_tokens} tokens")
    made.add_row("runs", f"{found.runs}, median" + (f", {found.threads} threads" if found.threads else ""))
    for row in _memory(found.memory):
        made.add_row(*row)
    if found.celsius:
        made.add_row("processor", f"{found.celsius[0]:.0f} °C before, {found.celsius[1]:.0f} °C after")
    return Group(Text(name, style="bold"), made, Text())


def evaluations(found: Mapping[str, Sequence[Evaluation]]) -> RenderableType:
    """One row per figure of each task, by program."""
    made = table("program", "task", "shots", ">items", "metric", ">value", ">95% of the time")
    for name, evaluated in found.items():
        for one in evaluated:
            items = f"{one.items:,}" if one.items == one.items_of_task else f"{one.items:,} of {one.items_of_task:,}"
            items += f", {one.truncated:,} cut" if one.truncated else ""
            for score in one.scores:
                spread = f"{number(score.interval[0])} to {number(score.interval[1])}" if score.interval else ""
                made.add_row(name, one.task, str(one.shots), items, score.metric, number(score.value), spread)
    return made


def difference(found: CardDiff) -> RenderableType:
    """A table for each cell of two releases, and what apps would notice under it."""
    styles = {"better": "green", "worse": "yellow", "same": "dim", "changed": "", "not comparable": "dim"}
    parts: list[RenderableType] = [
        Text(f"{found.repo}: {found.old_version} -> {found.new_version}", style="bold"),
        Text(""),
    ]
    parts += [Text(f"+ {name}, a new cell", style="green") for name in found.added]
    parts += [Text(f"- {name}, no longer there", style="red") for name in found.removed]
    for cell in found.cells:
        made = table("metric", ">before", ">after", ">change", "", "allowed")
        for change in cell.changes:
            verdict = Text(change.verdict, style=styles[change.verdict])
            if change.regression:
                verdict = Text("REGRESSION", style="bold red")
            relative = "" if change.relative is None or change.old == change.new else f"{change.relative:+.1%}"
            made.add_row(
                change.name,
                valued(change.old, change.unit),
                valued(change.new, change.unit),
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


def card_change(change: CardChange) -> RenderableType:
    """What publishing would change in one repo: metadata, files, figures and the card."""
    parts: list[RenderableType] = [Text(change.headline, style="bold")]
    if change.empty:
        return Group(*parts)
    if change.refused:
        parts.append(Text(f"! the Hub would refuse this card: {change.refused}", style="bold red"))
    parts += [Text(f"! edited on the Hub: {one.block}\n{one.diff}", style="bold red") for one in change.conflicts]
    if change.metadata:
        parts.append(Text("\nMetadata", style="bold"))
        parts += [Text(f"{one.key}: {_metadata(one.old)} → {_metadata(one.new)}") for one in change.metadata]
    if change.files:
        made = table("file", "", ">before", ">after")
        styles = {"added": "green", "dropped": "red", "changed": ""}
        for file in change.files:
            made.add_row(
                file.name, file.kind, *map(_optional, (file.old_bytes, file.new_bytes)), style=styles[file.kind]
            )
        parts += [Text(""), made]
    if change.moved and change.moved.cells:
        parts += [Text(""), difference(change.moved)]
    if change.readme:
        from rich.syntax import Syntax

        parts += [Text(f"Card ({', '.join(change.blocks) or 'text'})", style="bold")]
        parts.append(Syntax(change.readme, "diff", background_color="default", word_wrap=True))
    return Group(*parts)


def _optional(count: int | None) -> str:
    return "" if count is None else size(count)


def _metadata(value: object) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sizes(rows: Sequence[Sized], estimated: Mapping[str, int | None]) -> RenderableType:
    """The sizes of a model; figures of the recommended file, and MMLU as it was published of the pretrained model.

    `estimated` are bytes of files that were not made, by repo.
    """
    shown = table("size", "repo", ">RAM", ">file", ">agrees", ">KL to the whole", ">tokens/s", ">published MMLU")
    for one in rows:
        found = one.as_json()
        guess = estimated.get(one.card.repo)
        measured = ("not made", f"~{size(guess)}" if guess else "", "", "", "")
        if one.cell is not None:
            whole = found["kl_to_whole"]
            measured = (
                f"{found['device_ram_gb']} GB",
                size(found["bytes"]),
                percent(found["top1_agreement"]),
                "" if whole is None else number(whole),
                number(found["decode_tokens_per_second"]),
            )
        shown.add_row(one.name, one.card.repo, *measured, percent(one.published.mmlu))
    notes = ["MMLU is published by Google, of the pretrained model. All else was measured, of the recommended files."]
    if any(one.cell and one.cell.source.scale_model for one in rows):
        notes.append("These files are of a rehearsal: figures of small stand-ins, which say nothing of the model.")
    if any(estimated.values()):
        notes.append("~ is estimated from the shapes of the model.")
    if len({(one.cell.speed.host, one.cell.speed.threads) for one in rows if one.cell}) > 1:
        notes.append("Speed was measured on several machines: compare it on one alone.")
    return Group(shown, Text("\n".join(notes), style="dim"))
