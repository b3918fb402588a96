"""A card and its facts rendered into the text files of a Hub repo. Needs neither torch nor a network."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hubpub.cards import licenses
from hubpub.cards.blocks import Conflict, Merged, block, front, merge
from hubpub.config import Card, Project, Prose
from hubpub.errors import RenderError
from hubpub.facts import CardFacts, CellFacts, load

__all__ = ["Conflict", "Merged", "Rendered", "golden", "merge", "render", "stale"]
_MARK = re.compile(r"<!--\s*hubpub:", re.IGNORECASE)
# Characters that reorder or hide text, and control characters: on a card they only serve to deceive.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Rendered:
    """The generated text files of a Hub repo by name: README.md, config.json and the licence files."""

    files: dict[str, bytes]


def render(
    card: Card, facts: CardFacts | None, *, namespace: str, templates: Path, previous: CardFacts | None = None
) -> Rendered:
    """The files of `card` with `facts`; without facts, a card that says there is no release yet.

    Raises RenderError naming the template and line for a template that does not fit.
    """
    prose = _checked(card)
    ordered = facts.model_copy(update={"cells": _ordered(card, facts)}) if facts else None
    values = {
        "card": prose,
        "variant": card.variant,
        "facts": ordered,
        "first": ordered.cells[0] if ordered else None,
        "pick": _recommended(card, ordered),
        "recommended": card.export.recommended,
        "namespace": namespace,
        "previous": previous,
        "chat": _chat(card),
        "notice": licenses.notice_name(card.variant),
        "block": lambda name, caller: block(name, caller()),
    }
    text = _template(templates, "card.md.jinja", values)
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n*(<!-- hubpub:begin [a-z]+ sha256:[0-9a-f]+ -->)", r"\n\n\1", text)
    text = re.sub(r"(<!-- hubpub:end [a-z]+ -->)\n*", r"\1\n\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"
    # Whitespace was tidied after the blocks were marked: mark them again by what they hold now.
    text = _remarked(text)
    files = {"README.md": (front(_metadata(card)) + "\n" + text).encode()}
    if ordered is not None:
        files["config.json"] = (json.dumps(_config(card, ordered), indent=2) + "\n").encode()
    return Rendered({**files, **licenses.files(card.variant)})


def golden(card: Card, project: Project) -> dict[Path, bytes]:
    """The committed card of a folder as its committed facts render it."""
    path = card.folder / "facts.json"
    facts = load(CardFacts, path) if path.exists() else None
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
                lines = difflib.unified_diff(
                    old.decode(errors="replace").splitlines(),
                    data.decode().splitlines(),
                    "committed",
                    "rendered",
                    lineterm="",
                )
                found.append((path, "\n".join(lines)))
    return found


def _template(templates: Path, name: str, values: dict[str, Any]) -> str:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(_FILTERS)
    try:
        return environment.get_template(name).render(values)
    except TemplateSyntaxError as error:
        raise RenderError(
            f"{error.filename or name}:{error.lineno}: {error.message}", path=error.filename, line=error.lineno
        ) from None
    except (TemplateError, UndefinedError, TypeError, ValueError, KeyError, AttributeError) as error:
        path, line = _place(error, templates)
        raise RenderError(f"{path or name}:{line or '?'}: {error}", path=path, line=line) from None


def _place(error: BaseException, templates: Path) -> tuple[str | None, int | None]:
    trace, found = error.__traceback__, (None, None)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(str(templates)):
            found = (name, trace.tb_lineno)  # type: ignore[assignment]
        trace = trace.tb_next
    return found


def _remarked(text: str) -> str:
    from hubpub.cards.blocks import BLOCK

    return BLOCK.sub(lambda match: block(match["name"], match["body"]), text)


def _checked(card: Card) -> Prose:
    """The prose of a card without what could pass for something else. Raises RenderError naming the key."""
    where = f"{card.folder.name}/card.toml"

    def tidy(key: str, text: str) -> str:
        if _MARK.search(text):
            raise RenderError(
                f"{where}: card.{key} holds a hubpub block mark", "write prose only; blocks are generated"
            )
        return _HIDDEN.sub("", text).strip()

    prose = card.card
    title = tidy("title", prose.title)
    if "\n" in title or not title:
        raise RenderError(f"{where}: card.title must be one line", "move the rest to card.introduction")
    return prose.model_copy(
        update={
            "title": title,
            **{key: tidy(key, getattr(prose, key)) for key in ("introduction", "intended_use", "limits")},
            "section": tuple(
                one.model_copy(
                    update={"title": tidy("section.title", one.title), "body": tidy("section.body", one.body)}
                )
                for one in prose.section
            ),
        }
    )


def _metadata(card: Card) -> dict[str, Any]:
    """The front matter: everything here makes the Hub do something (filters, model tree, licence, download code)."""
    tags = ["executorch", "text-generation", "on-device", card.variant.family, *card.card.tags]
    values: dict[str, Any] = {
        **licenses.metadata(card.variant),
        "library_name": "executorch",
        "pipeline_tag": "text-generation",
        "base_model": card.variant.source,
        "base_model_relation": "quantized",
        "language": list(card.card.language),
        "tags": list(dict.fromkeys(_HIDDEN.sub("", tag) for tag in tags)),
    }
    if card.card.thumbnail:
        values["thumbnail"] = card.card.thumbnail
    return values


def _config(card: Card, facts: CardFacts) -> dict[str, Any]:
    """The root config.json: the file table for programs, and the file by which the Hub counts downloads."""
    first = facts.cells[0]
    return {
        "model_type": card.variant.family,
        "library_name": "executorch",
        "base_model": card.variant.source,
        "base_model_revision": card.variant.revision,
        "version": facts.version,
        "scale_model": facts.scale_model,
        "executorch_version": first.toolchain["executorch"],
        "max_context_length": first.context.exported,
        "sliding_window": first.context.sliding_window,
        "vocab_size": first.vocabulary,
        "tokenizer": "tokenizer.json",
        "recommended": card.export.recommended,
        "files": [
            {
                "file": cell.file.name,
                "recipe": cell.recipe,
                "summary": cell.summary,
                "bytes": cell.file.bytes,
                "sha256": cell.file.sha256,
                "backends": sorted(cell.program.backends),
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


def _ordered(card: Card, facts: CardFacts) -> tuple[CellFacts, ...]:
    """The cells with the recommended one first, then by size."""
    return tuple(
        sorted(facts.cells, key=lambda cell: (cell.recipe != card.export.recommended, cell.file.bytes, cell.recipe))
    )


def _recommended(card: Card, facts: CardFacts | None) -> CellFacts | None:
    if facts is None:
        return None
    return next((cell for cell in facts.cells if cell.recipe == card.export.recommended), facts.cells[0])


def _chat(card: Card) -> str | None:
    """A user's turn as the chat template writes it, without <bos>; None for a model that was not tuned to chat."""
    if not card.variant.name.endswith("-it"):
        return None
    question = "What is the capital of France?"
    if card.variant.family == "gemma4":
        return f"<|turn>user\n{question}<turn|>\n<|turn>model\n"
    return f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


_FILTERS: dict[str, Callable[..., str]] = {
    "size": _size,
    "percent": lambda share: f"{share:.1%}".replace(".0%", "%"),
    "integer": lambda count: f"{count:,}",
    "number": lambda value: f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}",
    "shape": lambda dimensions: "[" + ", ".join(str(one) for one in dimensions) + "]",
    "namespace": lambda operator: operator.partition("::")[0],
    "pystring": lambda text: json.dumps(text, ensure_ascii=False),
}
