"""A card and its facts rendered into the text files of a Hub repo. Needs neither torch nor a network."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.cards import benchmarks, charts, choice, family_sizes, licenses, usage, words
from hubpub.cards.blocks import BLOCK, Conflict, Merged, block, front, merge, unified
from hubpub.cards.family_sizes import Known, Sized
from hubpub.cards.linking import Links, links
from hubpub.cards.metadata import metadata
from hubpub.cards.prose import checked
from hubpub.config import Card, Project
from hubpub.errors import ConfigError, RenderError, UsageError
from hubpub.facts import CardFacts, CellFacts, Method, load
from hubpub.measure.compare import CardDiff, compare
from hubpub.model.families import family
from hubpub.slices import published, source

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["CHARTS", "Conflict", "Merged", "Rendered", "golden", "merge", "render", "stale"]
CHARTS = {"choice-light.svg": charts.LIGHT, "choice-dark.svg": charts.DARK}
_FENCE = re.compile("`{3,}")
_MARK = ("<!-- hubpub:begin ", "<!-- hubpub:end ")
POLICY = "https://github.com/pytorch/executorch/blob/v{version}/runtime/COMPATIBILITY.md"


@dataclass(frozen=True)
class Rendered:
    """The generated text files of a Hub repo by name: README.md, config.json, charts and the license files."""

    files: dict[str, bytes]


def render(
    card: Card,
    facts: CardFacts | None,
    *,
    namespace: str,
    templates: Path,
    previous: CardFacts | None = None,
    among: Sequence[Card] = (),
    known: Known = family_sizes.nothing,
) -> Rendered:
    """The files of `card` with `facts`; without facts, a card that says there is no release yet.

    `namespace` is the owner of the repo on the Hub; `among` are the cards of the project, of which some may be other
    sizes of the same model, and `known` what was measured of their files. With `previous` the card says what changed
    since then. Raises RenderError naming file and line for a template or prose that does not fit.
    """
    if facts is not None:
        facts = _ordered(card, facts)
    files: dict[str, bytes] = {}
    if facts is not None:
        files["config.json"] = (json.dumps(_config(card, facts), indent=2, ensure_ascii=False) + "\n").encode()
        shown = choice.worth_a_look(facts.cells, card.export.recommended)
        if len(shown) > 1:
            for name, theme in CHARTS.items():
                files[name] = charts.choice(shown, card.export.recommended, theme).encode()
        files |= benchmarks.eval_results(facts, card.export.recommended)
    text = _tidy(_expand(templates, "card.md.jinja", _values(card, facts, namespace, previous, among, known)))
    about = metadata(card)
    if facts is not None and (index := benchmarks.model_index(facts, card.export.recommended)):
        about["model-index"] = index
    readme = front(about) + "\n" + text
    return Rendered({"README.md": readme.encode(), **files, **licenses.files(card.variant, card.folder.parent)})


def golden_facts(card: Card) -> CardFacts | None:
    """The committed facts of a card, if there are any."""
    path = card.folder / "facts.json"
    return load(CardFacts, path) if path.exists() else None


def recorded(card: Card) -> Sequence[CellFacts]:
    """The committed facts of a card's cells; none where the file cannot be read, which its own card says."""
    with suppress(ConfigError):
        facts = golden_facts(card)
        return facts.cells if facts else ()
    return ()


def golden(card: Card, project: Project) -> dict[Path, bytes]:
    """The committed card of a folder as its committed facts render it."""
    facts = golden_facts(card)
    namespace = facts.repo.partition("/")[0] if facts else "NAMESPACE"
    made = render(
        card,
        facts,
        namespace=namespace,
        templates=project.templates_dir,
        among=project.readable_cards,
        known=recorded,
    )
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


def _sizes(card: Card, facts: CardFacts | None, among: Sequence[Card], known: Known) -> Sequence[Sized]:
    """The sizes of the model with what was measured of each as this card's own files were: on scale models or not."""
    if facts is None:
        return family_sizes.siblings(card, among)
    others = family_sizes.alike(known, scale_model=facts.scale_model)
    return family_sizes.siblings(card, among, lambda one: facts.cells if one.repo == card.repo else others(one))


def _values(
    card: Card,
    facts: CardFacts | None,
    namespace: str,
    previous: CardFacts | None,
    among: Sequence[Card],
    known: Known,
) -> dict[str, Any]:
    """What templates can speak of. Without facts there are no figures to name: using one is an error."""
    owner = card.variant.source.partition("/")[0]
    values: dict[str, Any] = {
        "card": checked(card),
        "variant": card.variant,
        "repo": f"{namespace}/{card.repo}",
        "facts": facts,
        "notice": licenses.notice_name(card.variant),
        "terms": licenses.GEMMA_TERMS,
        "agreement": licenses.agreement(card.variant, card.folder.parent) is not None,
        "policy": licenses.GEMMA_POLICY,
        "multimodal": family(card.variant.family).multimodal,
        "owner": owner,
        "publisher": owner if owner != owner.lower() else owner.capitalize(),
        "namespace": (facts.repo.partition("/")[0] if facts else namespace),
        "published": published().get(card.variant.slice.name) if card.variant.slice else None,
        "published_at": source(),
        "sizes": _sizes(card, facts, among, known),
        "relatives": family_sizes.relatives(card, among),
        "card_repo": card.repo,
        "block": lambda name, caller: block(name, caller()),
    }
    return values if facts is None else {**values, **_of_facts(card, facts, previous)}


def _of_facts(card: Card, facts: CardFacts, previous: CardFacts | None) -> dict[str, Any]:
    """What templates can speak of where cells were measured."""
    first = facts.cells[0]
    shown = choice.worth_a_look(facts.cells, card.export.recommended)
    pick = usage.runnable(facts.cells)
    scorer = next((cell for cell in facts.cells if choice.window(cell)), None)
    return {
        "repo": facts.repo,
        "first": first,
        "pick": pick,
        "use": usage.usage(pick, card.variant) if pick else None,
        "new_tokens": usage.NEW_TOKENS,
        "questions": usage.QUESTIONS,
        "beginning": usage.BEGINNING,
        # What a stand-in says is no sample of the model.
        "samples": pick.parity.samples if pick and not facts.scale_model else (),
        "sampling": first.sampling,
        "scorer": scorer,
        "window": choice.window(scorer) if scorer else None,
        "recommended": card.export.recommended,
        "shown": shown,
        "why": choice.why(shown[0], shown, facts.cells),
        "others": [cell for cell in facts.cells if cell not in shown],
        "trades": {cell.cell: choice.trade(cell, first) for cell in shown if cell is not first},
        "beaten_by": {cell.cell: choice.beaten_by(cell, facts.cells) for cell in facts.cells},
        "described": charts.described(shown),
        "charts": len(shown) > 1,
        "packable": pick is not None and usage.packable(pick),
        "downloads": _downloads(first),
        "shipped": [file.name for file in first.tokenizer],
        "interfaces": _interfaces(facts.cells),
        "memory": {cell.cell: choice.memory(cell) for cell in facts.cells},
        "device": {cell.cell: choice.device(cell) for cell in facts.cells},
        "weights": {cell.cell: choice.weights(cell) for cell in facts.cells},
        "planned": {cell.cell: choice.planned(cell) for cell in facts.cells},
        "floors": _floors(facts.cells),
        "hosts": list(dict.fromkeys((cell.speed.host, cell.speed.threads) for cell in facts.cells)),
        "harnesses": list(dict.fromkeys(one.harness for cell in facts.cells for one in cell.evaluations)),
        "machines": _machines(facts.cells),
        "untimed": _untimed(facts.cells),
        "gates": list(dict.fromkeys(gate.name for cell in facts.cells for gate in cell.gates)),
        "patches": list({p.name: p for cell in facts.cells for p in cell.patches if p.applied}.values()),
        "links": _links(facts),
        "custom": _custom(facts.cells),
        "custom_in": [cell.recipe for cell in facts.cells if _custom([cell])],
        "runtimes": list(dict.fromkeys(cell.toolchain.get("executorch", "") for cell in facts.cells)),
        "compatibility": POLICY.format(version=first.toolchain.get("executorch", "")),
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
    """No blanks at line ends, one empty line at most outside of code, marks apart from what is around them, one newline
    at the end."""
    lines: list[str] = []
    code = ""
    for raw in text.split("\n"):
        line = raw.rstrip(" \t")
        if fence := _FENCE.match(line):
            code = "" if code and line == code else code or fence[0]
        if code and not fence:
            lines.append(line)
            continue
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
        "num_bos": int(bool(first.prompt.bos)) if first.prompt else None,
        "eos_token_id": list(usage.stop(first)),
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
                "memory_bytes": choice.memory(cell),
                "device_ram_gb": choice.device(cell),
                "layout": "window" if choice.window(cell) else "cache",
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


def _interfaces(cells: Sequence[CellFacts]) -> list[tuple[Method, int | None, list[str], str]]:
    """Each way to call `forward`: its window (None: a KV cache), the recipes that have it, the types of its outputs."""
    found: dict[object, list[tuple[Method, CellFacts]]] = {}
    for cell in cells:
        if method := cell.program.forward:
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
        listed.append((method, choice.window(cell), [cell.recipe for _, cell in alike], "; ".join(said)))
    return listed


def _floors(cells: Sequence[CellFacts]) -> list[tuple[float, float | None, list[str]]]:
    """What rounding to bfloat16 alone changes: (agreement, mean KL, recipes) for each text the cells were read over."""
    found: dict[tuple[float, float | None], list[str]] = {}
    for cell in cells:
        logits = cell.parity.logits
        if logits.floor_top1_agreement is not None:
            found.setdefault((logits.floor_top1_agreement, logits.floor_kl_mean), []).append(cell.recipe)
    return [(*key, names) for key, names in found.items()]


def _downloads(cell: CellFacts) -> list[str]:
    """What an app needs beside the `.pte`, in the order people look for it."""
    shipped = {file.name for file in cell.tokenizer}
    return ["tokenizer.json", *(name for name in ("chat_template.jinja",) if name in shipped), "config.json"]


def _custom(cells: Sequence[CellFacts]) -> list[str]:
    """Namespaces of operators that are not Core ATen: no release of ExecuTorch promises to keep them as they are."""
    core = {"", "aten", "dim_order_ops", "executorch_prim"}
    return sorted({name for cell in cells for name in cell.program.operators.namespaces} - core)


def _machines(cells: Sequence[CellFacts]) -> list[tuple[str, str, int]]:
    """The machines of cells that were measured on several: processor, its name, and threads."""
    speeds = [speed for cell in cells if cell.hosts for speed in (cell.speed, *(one.speed for one in cell.hosts))]
    return list(dict.fromkeys(((one.system.split() or ["here"])[-1], one.host, one.threads) for one in speeds))


def _untimed(cells: Sequence[CellFacts]) -> list[str]:
    """Why the speed of a cell on another machine is not shown: it says nothing of that kind of processor."""
    others = [one.speed for cell in cells for one in cell.hosts]
    return list(dict.fromkeys(speed.reason for speed in others if not speed.representative))


def _links(facts: CardFacts) -> Links:
    backends = sorted({name for cell in facts.cells for name in cell.program.backends})
    namespaces = sorted({name for cell in facts.cells for name in cell.program.operators.namespaces})
    return links(backends, namespaces)


def _changes(previous: CardFacts | None, facts: CardFacts) -> CardDiff | None:
    """What changed since `previous`; None where that was this very version or a rehearsal beside a real release."""
    if previous is None or previous.version == facts.version or not previous.cells:
        return None
    try:
        return compare(previous, facts)
    except UsageError:
        return None
