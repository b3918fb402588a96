"""A card and its facts rendered into the text files of a Hub repo. Needs neither torch nor a network."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.cards import charts, licenses, words
from hubpub.cards.blocks import BLOCK, Conflict, Merged, block, front, merge, unified
from hubpub.cards.linking import Links, links
from hubpub.cards.metadata import metadata
from hubpub.cards.prose import checked
from hubpub.config import Card, Project
from hubpub.errors import RenderError, UsageError
from hubpub.facts import CardFacts, CellFacts, Method, load
from hubpub.measure.compare import CardDiff, compare

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["CHARTS", "Conflict", "Merged", "Rendered", "golden", "merge", "render", "stale"]
CHARTS = {"choice-light.svg": charts.LIGHT, "choice-dark.svg": charts.DARK}
_MARK = ("<!-- hubpub:begin ", "<!-- hubpub:end ")
POLICY = "https://github.com/pytorch/executorch/blob/main/runtime/COMPATIBILITY.md"


@dataclass(frozen=True)
class Rendered:
    """The generated text files of a Hub repo by name: README.md, config.json, charts and the licence files."""

    files: dict[str, bytes]


def render(
    card: Card, facts: CardFacts | None, *, namespace: str, templates: Path, previous: CardFacts | None = None
) -> Rendered:
    """The files of `card` with `facts`; without facts, a card that says there is no release yet.

    `namespace` is the owner of the repo on the Hub. With `previous` the card says what changed since then. Raises
    RenderError naming file and line for a template or prose that does not fit.
    """
    if facts is not None:
        facts = _ordered(card, facts)
    files: dict[str, bytes] = {}
    if facts is not None:
        files["config.json"] = (json.dumps(_config(card, facts), indent=2, ensure_ascii=False) + "\n").encode()
        if len(facts.cells) > 1:
            for name, theme in CHARTS.items():
                files[name] = charts.choice(facts.cells, card.export.recommended, theme).encode()
    text = _tidy(_expand(templates, "card.md.jinja", _values(card, facts, namespace, previous)))
    readme = front(metadata(card)) + "\n" + text
    return Rendered({"README.md": readme.encode(), **files, **licenses.files(card.variant)})


def golden_facts(card: Card) -> CardFacts | None:
    """The committed facts of a card, if there are any."""
    path = card.folder / "facts.json"
    return load(CardFacts, path) if path.exists() else None


def golden(card: Card, project: Project) -> dict[Path, bytes]:
    """The committed card of a folder as its committed facts render it."""
    facts = golden_facts(card)
    namespace = facts.repo.partition("/")[0] if facts else "NAMESPACE"
    made = render(card, facts, namespace=namespace, templates=project.templates_dir)
    return {card.folder / "README.md": made.files["README.md"]}


def stale(project: Project) -> list[tuple[Path, str]]:
    """Committed cards that differ from what renders now, each with the difference."""
    found = []
    for card in project.cards:
        for path, data in golden(card, project).items():
            old = path.read_bytes() if path.exists() else b""
            if old != data:
                found.append((path, unified(old.decode(errors="replace"), data.decode(), "committed", "rendered")))
    return found


def _values(card: Card, facts: CardFacts | None, namespace: str, previous: CardFacts | None) -> dict[str, Any]:
    """What templates can speak of. Without facts there are no figures to name: using one is an error."""
    values: dict[str, Any] = {
        "card": checked(card),
        "variant": card.variant,
        "repo": f"{namespace}/{card.repo}",
        "facts": facts,
        "notice": licenses.notice_name(card.variant),
        "terms": licenses.GEMMA_TERMS,
        "policy": licenses.GEMMA_POLICY,
        "block": lambda name, caller: block(name, caller()),
    }
    if facts is None:
        return values
    first = facts.cells[0]
    # Code for a KV cache is shown with the best file that has one, code for a window with the best of those.
    pick = next((cell for cell in facts.cells if not _window(cell)), None)
    scorer = next((cell for cell in facts.cells if _window(cell)), None)
    return {
        **values,
        "repo": facts.repo,
        "first": first,
        "pick": pick,
        "scorer": scorer,
        "window": _window(scorer) if scorer else None,
        "recommended": card.export.recommended,
        "described": charts.described(facts.cells),
        "charts": len(facts.cells) > 1,
        "chat": _chat(card),
        "positions": _positions(pick) if pick else "",
        "stop": _stop(first),
        "interfaces": _interfaces(facts.cells),
        "context": {cell.cell: cell.context.exported for cell in facts.cells},
        "memory": {cell.cell: _memory(cell) for cell in facts.cells},
        "texts": _texts(facts.cells),
        "weights": {cell.cell: _weights(cell) for cell in facts.cells},
        "planned": {cell.cell: _planned(cell) for cell in facts.cells},
        "hosts": list(dict.fromkeys((cell.speed.host, cell.speed.threads) for cell in facts.cells)),
        "gates": list(dict.fromkeys(gate.name for cell in facts.cells for gate in cell.gates)),
        "patches": list({p.name: p for cell in facts.cells for p in cell.patches if p.applied}.values()),
        "links": _links(facts),
        "next_release": _next_release(first.toolchain.get("executorch", "")),
        "compatibility": POLICY,
        "changes": _changes(previous, facts),
        "previous": previous,
    }


def _expand(templates: Path, name: str, values: dict[str, Any]) -> str:
    from jinja2 import TemplateError, TemplateNotFound, TemplateSyntaxError

    try:
        return _environment(templates).get_template(name).render(values)
    except TemplateSyntaxError as error:
        path, line = error.filename or str(templates / (error.name or name)), error.lineno
        raise RenderError(f"{_short(path, templates)}:{line}: {error.message}", path=path, line=line) from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        where, at = _place(error, templates)
        message = f"there is no template {error.name}" if isinstance(error, TemplateNotFound) else str(error)
        shown = f"{_short(where, templates)}:{at}" if where else name
        raise RenderError(f"{shown}: {message}", path=where, line=at) from None


@lru_cache(maxsize=8)
def _environment(templates: Path) -> ImmutableSandboxedEnvironment:
    """One environment per folder: compiled templates are kept, and read again when their file changes."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(words.FILTERS)
    return environment


def _place(error: BaseException, templates: Path) -> tuple[str | None, int | None]:
    """The innermost template and line an error came through."""
    trace = error.__traceback__
    where: str | None = None
    line: int | None = None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(str(templates)):
            where, line = name, trace.tb_lineno
        trace = trace.tb_next
    return where, line


def _short(path: str, templates: Path) -> str:
    """A template's name from the templates folder on: paths of this machine are of no use on another."""
    return str(Path(path).relative_to(templates.parent)) if Path(path).is_relative_to(templates.parent) else path


def _tidy(text: str) -> str:
    """No blanks at line ends, one empty line at most, marks apart from what is around them, one newline at the end."""
    lines: list[str] = []
    for raw in text.split("\n"):
        line = raw.rstrip(" \t")
        apart = line.startswith(_MARK) or (bool(lines) and lines[-1].startswith(_MARK))
        if apart and line and lines and lines[-1]:
            lines.append("")
        if line or (lines and lines[-1]):
            lines.append(line)
    tidied = "\n".join(lines).strip("\n") + "\n"
    # Whitespace was tidied after the blocks were marked: mark them again by what they hold now.
    return BLOCK.sub(lambda match: block(match["name"], match["body"]), tidied)


def _config(card: Card, facts: CardFacts) -> dict[str, Any]:
    """The root config.json: the file table for programs, and the file by which the Hub counts downloads."""
    first = facts.cells[0]
    metadata_ = first.program.metadata
    return {
        "model_type": card.variant.family,
        "library_name": "executorch",
        "base_model": card.variant.source,
        "base_model_revision": card.variant.revision,
        "version": facts.version,
        "scale_model": facts.scale_model,
        "executorch_version": first.toolchain.get("executorch"),
        "max_context_length": first.context.exported,
        "sliding_window": first.context.sliding_window,
        "vocab_size": first.vocabulary,
        "num_hidden_layers": first.layers.total,
        "bos_token_id": metadata_.get("get_bos_id"),
        "eos_token_id": list(_stop(first)),
        "parameters": first.parameters.total,
        "tokenizer": "tokenizer.json",
        "tokenizer_files": [{"file": f.name, "bytes": f.bytes, "sha256": f.sha256} for f in first.tokenizer],
        "recommended": first.file.name,
        "files": [
            {
                "file": cell.file.name,
                "recipe": cell.recipe,
                "summary": cell.summary,
                "bytes": cell.file.bytes,
                "sha256": cell.file.sha256,
                "max_context_length": cell.context.exported,
                "memory_bytes": _memory(cell),
                "layout": "window" if _window(cell) else "cache",
                "kv_cache_bytes": cell.program.kv_cache.bytes,
                "backends": sorted(cell.program.backends),
                "kernels": sorted(cell.program.operators.namespaces),
                "methods": [
                    {
                        "name": method.name,
                        "inputs": [{"dtype": t.dtype, "shape": list(t.shape)} for t in method.inputs],
                        "outputs": [{"dtype": t.dtype, "shape": list(t.shape)} for t in method.outputs],
                    }
                    for method in cell.program.methods
                ],
            }
            for cell in facts.cells
        ],
    }


def _ordered(card: Card, facts: CardFacts) -> CardFacts:
    """`facts` with the recommended cell first, then by size. Raises RenderError where they cannot be of a release."""
    if not facts.cells:
        raise RenderError(f"{card.repo}: the facts of {facts.version} hold no cells", "make the release again")
    # These go into links and commands as they are.
    for what, text in (("repo", facts.repo), ("version", facts.version), *(("file", c.file.name) for c in facts.cells)):
        if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)?", text, re.ASCII) or (what == "repo") != ("/" in text):
            raise RenderError(f"{card.repo}: facts.json: {what}: {text!r} is no name", "make the release again")
    cells = sorted(facts.cells, key=lambda cell: (cell.recipe != card.export.recommended, cell.file.bytes, cell.recipe))
    return facts.model_copy(update={"cells": tuple(cells)})


def _weights(cell: CellFacts) -> int:
    return cell.program.constant_bytes + cell.program.delegate_bytes


def _planned(cell: CellFacts) -> int:
    """Bytes of the arena of the method that needs most; it holds the KV cache at full context."""
    return max((method.planned_bytes for method in cell.program.methods), default=0)


def _memory(cell: CellFacts) -> int:
    """Bytes of RAM to reckon with at full context: what a run took, or what the file asks for, whichever is more."""
    return max(cell.speed.peak_resident_bytes, _weights(cell) + _planned(cell))


def _window(cell: CellFacts) -> int | None:
    """The tokens that a program without a KV cache takes at once; None for one that has a cache."""
    method = _forward(cell)
    if method is None or len(method.inputs) != 1 or not method.inputs[0].shape:
        return None
    last = method.inputs[0].shape[-1]
    return last if isinstance(last, int) else None


def _interfaces(cells: Sequence[CellFacts]) -> list[tuple[Method, int | None, list[str], str]]:
    """Each way to call `forward`: its window (None: a KV cache), the recipes that have it, the types of its outputs."""
    found: dict[object, list[tuple[Method, CellFacts]]] = {}
    for cell in cells:
        if method := _forward(cell):
            inputs = tuple((one.dtype, one.shape) for one in method.inputs)
            found.setdefault((inputs, tuple(one.shape for one in method.outputs)), []).append((method, cell))
    listed = []
    for alike in found.values():
        types: dict[str, list[str]] = {}
        for method, cell in alike:
            types.setdefault(", ".join(dict.fromkeys(one.dtype for one in method.outputs)), []).append(cell.recipe)
        first, *others = types.items()
        said = [first[0], *(f"{kind} in {words.listed(map(words.code, names))}" for kind, names in others)]
        method, cell = alike[0]
        listed.append((method, _window(cell), [cell.recipe for _, cell in alike], "; ".join(said)))
    return listed


def _texts(cells: Sequence[CellFacts]) -> list[tuple[int, int, list[str]]]:
    """(tokens read, perplexity of the original times a million, recipes) for each length the cells were read over."""
    found: dict[tuple[int, int], list[str]] = {}
    for cell in cells:
        logits = cell.parity.logits
        found.setdefault((logits.tokens, round(logits.perplexity_original * 1e6)), []).append(cell.recipe)
    return [(*key, names) for key, names in found.items()]


def _forward(cell: CellFacts) -> Method | None:
    return next((method for method in cell.program.methods if method.name == "forward"), None)


def _positions(cell: CellFacts) -> str:
    """The second input of `forward` in Python, as the program's own shapes ask for it."""
    method = _forward(cell)
    if method and len(method.inputs) == 2 and method.inputs[1].shape == (1,):
        return "torch.tensor([position])"
    return "torch.arange(position, position + len(step))"


def _stop(cell: CellFacts) -> tuple[int, ...]:
    """The token ids that end a text, as the program's metadata names them."""
    ids = cell.program.metadata.get("get_eos_ids", ())
    return tuple(int(one) for one in ids) if isinstance(ids, tuple) else (int(ids),)


def _links(facts: CardFacts) -> Links:
    backends = sorted({name for cell in facts.cells for name in cell.program.backends})
    namespaces = sorted({name for cell in facts.cells for name in cell.program.operators.namespaces})
    return links(backends, namespaces)


def _next_release(version: str) -> str:
    """The next release of ExecuTorch that is no patch, e.g. "1.5" after "1.4.1"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return f"{match[1]}.{int(match[2]) + 1}" if match else ""


def _changes(previous: CardFacts | None, facts: CardFacts) -> CardDiff | None:
    """What changed since `previous`; None where that was this very version or a rehearsal beside a real release."""
    if previous is None or previous.version == facts.version or not previous.cells:
        return None
    try:
        return compare(previous, facts)
    except UsageError:
        return None


def _chat(card: Card) -> str | None:
    """A user's turn as the chat template writes it, without <bos>; None for a model that was not tuned to chat."""
    if not card.variant.chat:
        return None
    question = "What is the capital of France?"
    if card.variant.family == "gemma4":
        return f"<|turn>user\n{question}<turn|>\n<|turn>model\n"
    return f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
