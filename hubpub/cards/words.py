"""Figures and names in the words of a card: bytes, shares, shapes, and text that must not break a table."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import attrgetter

from hubpub.cards.prose import plain
from hubpub.facts import CellFacts, Gate, Resident, Sampling
from hubpub.units import number, percent, size, valued

_GATES = {
    "slice_kl_mean": "KL of the slice to the whole model, mean",
    "finite_logits": "all logits are finite",
    "kl_mean": "KL, mean",
    "top1_agreement": "agreement on the next token",
    "logit_error_max": "largest logit error",
    "prefill_error_max": "largest logit difference between prefill and decode",
    "prefill_kl_mean": "KL, mean, of a text read in chunks against token by token",
    "chat_template_fits": "prompts match the chat template, token for token",
    "greedy_first_token": "greedy answers: same first token",
    "greedy_tokens": "greedy answers: tokens that the original would also have chosen",
    "greedy_exact": "greedy answers: same text",
    "original_perplexity": "perplexity of the original",
    "lowering_kl_mean": "KL, mean, against the quantized weights run in PyTorch",
    "lowering_perplexity": "relative change of perplexity against the quantized weights run in PyTorch",
    "eos_ids": "stops on the same tokens as the original",
    "sliding_window": "attends over the same sliding window as the original, in the same layers",
    "scalars": "epsilons, scales and caps are those of the original",
    "tokenizer_fits": "the tokenizer matches the model",
    "anonymous_per_weight": "anonymous memory per weight, in bytes, without the working memory",
    "weights_stored": "the weights in the file are exactly the intended ones",
    "grid_exact": "groups of weights that are exactly as trained",
    "grid_weights": "weights of linear layers that were trained for 4 bits and kept that way",
    "llm_runner_matches": "the LLM runner gives the same text",
}
_SHARES = {"top1_agreement", "greedy_first_token", "greedy_exact", "greedy_tokens", "lowering_perplexity"} | {
    "grid_exact",
    "grid_weights",
}
_FLAGS = {
    "finite_logits",
    "weights_stored",
    "llm_runner_matches",
    "eos_ids",
    "tokenizer_fits",
    "chat_template_fits",
    "sliding_window",
    "scalars",
}


def cell(text: str) -> str:
    """`text` for a table cell: one line that neither ends the cell nor is read as HTML."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """`text` as code, for a table cell or a sentence."""
    text = plain(text).replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def inline(text: str) -> str:
    """`text` as code within a sentence: in a table a bar would end the cell, see `code`."""
    text = plain(text)
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


def runs(values: Iterable[int]) -> str:
    """Numbers with how often each follows itself, e.g. "4 x 8,192, 1 x 16,384"."""
    return ", ".join(f"{len(list(same))} x {value:,}" for value, same in groupby(values))


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun, e.g. "1 thread" or "4 files"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def fenced(text: str) -> str:
    """`text` as a block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.strip(chr(10))}\n{fence}"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Words as a sentence lists them, e.g. "a, b and c"."""
    *head, tail = list(words) or [""]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def varied(cells: Iterable[CellFacts], path: str, one: str) -> str:
    """A count that may not be the same for all cells, e.g. "31 new tokens (8 for `bf16-window`)"."""
    found: dict[int, list[str]] = {}
    for cell in cells:
        found.setdefault(attrgetter(path)(cell), []).append(cell.recipe)
    (usual, _), *others = found.items()
    unlike = "; ".join(f"{count:,} for {listed(map(code, recipes))}" for count, recipes in others)
    return counted(usual, one) + (f" ({unlike})" if unlike else "")


def settings(found: Sampling) -> str:
    """How tokens are drawn, e.g. "temperature 0.7, top-k 64 and top-p 0.95"."""
    named = (("temperature", found.temperature), ("top-k", found.top_k), ("top-p", found.top_p))
    return listed(f"{name} {value:g}" for name, value in named if value is not None)


def kinds(found: Resident) -> str:
    """Memory by kind, e.g. "248 MB + 38.6 MB"."""
    return f"{size(found.anonymous)} + {size(found.mapped)}"


FILTERS: dict[str, Callable[..., str]] = {
    "size": size,
    "percent": percent,
    "number": number,
    "integer": lambda count: f"{count:,}",
    "shape": shape,
    "cell": cell,
    "code": code,
    "inline": inline,
    "gate": gate,
    "gate_name": gate_name,
    "counted": counted,
    "before": lambda change: valued(change.old, change.unit),
    "after": lambda change: valued(change.new, change.unit),
    "listed": listed,
    "runs": runs,
    "varied": varied,
    "fenced": fenced,
    "shell": shlex.quote,
    "kinds": kinds,
    "settings": settings,
    "literal": lambda text: json.dumps(text, ensure_ascii=False),
}
