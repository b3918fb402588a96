"""Figures and names in the words of a card: bytes, shares, shapes, and text that must not break a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

from hubpub.cards.prose import plain
from hubpub.facts import Gate
from hubpub.units import number, percent, size, valued

_GATES = {
    "finite_logits": "all logits are finite",
    "kl_mean": "KL, mean",
    "top1_agreement": "same next token",
    "logit_error_max": "largest logit error",
    "prefill_error_max": "largest logit difference, prefill to decode",
    "greedy_first_token": "greedy: same first token",
    "greedy_exact": "greedy: same text",
    "original_perplexity": "perplexity of the original",
    "lowering_kl_mean": "KL, mean, against the same weights run eagerly",
    "lowering_perplexity": "perplexity against the same weights run eagerly, relative",
    "eos_ids": "ends where the original ends",
    "tokenizer_fits": "the tokenizer fits",
    "llm_runner_matches": "LLM runner says the same",
}
_SHARES = {"top1_agreement", "greedy_first_token", "greedy_exact", "lowering_perplexity"}
_FLAGS = {"finite_logits", "llm_runner_matches", "eos_ids", "tokenizer_fits"}


def cell(text: str) -> str:
    """`text` for a table cell: one line that neither ends the cell nor is read as HTML."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """`text` as code, for a table cell or a sentence."""
    text = plain(text).replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def shape(dimensions: Iterable[object]) -> str:
    """The dimensions of a tensor, e.g. "[1, 1..2047]"."""
    return "[" + ", ".join(str(one) for one in dimensions) + "]"


def gate_name(name: str) -> str:
    """A gate in words."""
    return _GATES.get(name, name.replace("_", " "))


def gate(one: Gate) -> str:
    """What a gate measured and where its limit is, e.g. "0.0145 ≤ 0.2"."""
    if one.name in _FLAGS:
        return "yes" if one.passed else "**no**"
    shown = percent if one.name in _SHARES else number
    if one.kind == "min" and one.limit <= 0:
        return shown(one.measured)
    signs = {("max", True): "≤", ("max", False): ">", ("min", True): "≥", ("min", False): "<"}
    text = f"{shown(one.measured)} {signs[one.kind, one.passed]} {shown(one.limit)}"
    # Not a number is on neither side of a limit.
    text = text if math.isfinite(one.measured) else f"not finite, limit {shown(one.limit)}"
    return text if one.passed else f"**{text}**"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun, e.g. "1 thread" or "4 files"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words as a sentence lists them, e.g. "a, b and c"."""
    *head, tail = list(words) or [""]
    return f"{', '.join(head)} {last} {tail}" if head else tail


FILTERS: dict[str, Callable[..., str]] = {
    "size": size,
    "percent": percent,
    "number": number,
    "integer": lambda count: f"{count:,}",
    "shape": shape,
    "cell": cell,
    "code": code,
    "gate": gate,
    "gate_name": gate_name,
    "counted": counted,
    "before": lambda change: valued(change.old, change.unit),
    "after": lambda change: valued(change.new, change.unit),
    "listed": listed,
    "literal": lambda text: json.dumps(text, ensure_ascii=False),
}
