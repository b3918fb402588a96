"""The end of a release as a person reads it: one row per cell, one line per repo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hubpub.measure.inspect import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubpub.doctor import Check
    from hubpub.hub.maintenance import RepoStatus, Verification
    from hubpub.hub.receipts import Receipt
    from hubpub.plan import Step
    from hubpub.release.run import Report


def render_report(report: Report) -> RenderableType:
    """Cells with size, quality, speed and gates; then what every repo got and where to look at it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cell")
    for column in ("size", "top-1", "KL", "greedy", "prefill/s", "decode/s", "memory", "export"):
        table.add_column(column, justify="right")
    table.add_column("gates")
    for step in report.steps:
        table.add_row(*_row(report, step))
    lines: list[RenderableType] = [table, Text()]
    if any(facts.source.scale_model for facts in report.facts.values()):
        lines.append(Text("Rehearsal: every figure is of a scale model, none of a real one.", style="yellow"))
    busy = [facts.cell for facts in report.facts.values() if not facts.speed.representative]
    if busy:
        lines.append(Text(f"The machine was busy while it timed {len(busy)} cells: their speed says little.", "yellow"))
    for failure in report.failures.values():
        lines.append(Text(failure.message, style="red"))
    for one in report.staged:
        lines.append(Text(f"{one.repo_id}: {one.summary}"))
    lines.append(render_receipts(report.receipts))
    for page in report.pages:
        lines.append(Text(f"look at it: {page}"))
    if report.local_hub:
        lines.append(Text(f"the local Hub is stored in {report.local_hub}; 'hubpub hub serve' shows its pages"))
    lines.append(Text(f"{report.version} in {report.seconds:.1f} s"))
    return Group(*lines)


def render_receipts(receipts: Sequence[Receipt]) -> RenderableType:
    """What every repo got or would get; a dry run names each file it would write."""
    lines: list[RenderableType] = []
    for receipt in receipts:
        lines.append(Text(f"{receipt.repo_id}: {receipt.summary}"))
        if receipt.outcome.kind == "planned":
            lines += _planned(receipt)
    return Group(*lines)


def _planned(receipt: Receipt) -> list[RenderableType]:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 2))
    for column in ("", "", ""):
        table.add_column(column)
    table.columns[1].justify = "right"
    for file in receipt.files:
        if file.changed:
            how = f"send {file.bytes:,} bytes" if file.sent_bytes else "copy on the Hub, staged already"
            table.add_row(file.path, human_bytes(file.bytes), how)
    kept = sum(not file.changed for file in receipt.files)
    return [table, Text(f"  {kept} files stay as they are")] if kept else [table]


def _row(report: Report, step: Step) -> list[str]:
    facts = report.facts.get(step.cell.id)
    if facts is None:
        error = report.failures.get(step.cell.id)
        return [step.cell.id, *[""] * 8, "failed" if error else step.reason]
    logits, greedy, speed = facts.parity.logits, facts.parity.greedy, facts.speed
    stages = facts.stages
    seconds = stages.load + stages.quantize + stages.export + stages.lower + stages.write
    missed = [gate.name for gate in facts.gates if not gate.passed]
    return [
        step.cell.id,
        human_bytes(facts.file.bytes),
        f"{logits.top1_agreement:.1%}",
        f"{logits.kl_mean:.2g}",
        f"{greedy.exact:.0%}",
        f"{speed.prefill_tokens_per_second:,.0f}",
        f"{speed.decode_tokens_per_second:,.0f}",
        human_bytes(speed.peak_resident_bytes),
        "kept" if step.action == "reuse" else f"{seconds:.0f} s",
        f"failed: {', '.join(missed)}" if missed else f"{len(facts.gates)} passed",
    ]


def render_verification(found: Verification) -> RenderableType:
    """One row per published file, then the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("file", "size", "sha256", "checked", ""):
        table.add_column(column, justify="right" if column == "size" else "left")
    for file in found.files:
        size = "" if file.bytes is None else human_bytes(file.bytes)
        table.add_row(file.path, size, file.expected[:12], file.how, "ok" if file.ok else Text("wrong", style="red"))
    lines: list[RenderableType] = [table, Text()]
    lines += [Text(problem, style="red") for problem in found.problems]
    verdict = "intact" if found.ok else "not intact"
    lines.append(Text(f"{found.repo} at {found.revision} ({found.commit[:12]}) is {verdict}"))
    return Group(*lines)


def render_status(found: Sequence[RepoStatus]) -> RenderableType:
    """One row per repo: what main holds, tags, what is staged, what was released from here; then what disagrees."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("repo", "published", "commit", "tags", "staged", "from here", "agree"):
        table.add_column(column)
    for one in found:
        staged = ", ".join(f"{waiting.version} ({len(waiting.files)} files)" for waiting in one.staged)
        table.add_row(
            one.repo,
            one.published or ("nothing" if one.exists else "no such repo yet"),
            (one.head or "")[:12],
            ", ".join(name for name, _ in one.tags[-3:]),
            staged or "nothing",
            one.receipts[-1].version if one.receipts else "nothing",
            Text("no", style="yellow") if one.notes else "yes" if one.exists else "",
        )
    notes = [Text(f"{one.repo}: {note}", style="yellow") for one in found for note in one.notes]
    return Group(table, Text(), *notes) if notes else table


def render_checks(checks: Sequence[Check]) -> RenderableType:
    """One row per check, what to do below those that are not well, then the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False)
    marks = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("failed", "bold red")}
    for check in checks:
        mark, style = marks.get(check.verdict, ("unknown", "yellow"))
        found = Text(check.found)
        if check.fix and check.verdict != "ok":
            found.append(f"\n-> {check.fix}", style="bold")
        table.add_row(Text(mark, style=style), check.subject, found)
    counts = {kind: sum(check.verdict == kind for check in checks) for kind in ("ok", "failed", "unknown")}
    verdict = f"{counts['ok']} fine, {counts['failed']} failed, {counts['unknown']} could not be checked"
    return Group(table, Text(), Text(verdict))
