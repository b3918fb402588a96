"""Does the program say what its source says? Figures against the eager model; hubpub.gates says what must be met.

Three comparisons tell what broke:

- with the *reference*, the source in float32 and unpatched: everything the export did, quantization included;
- with the program's *own quantized weights* run eagerly: what lowering, cache and kernels did;
- of the program with *itself*: a text read in pieces against token by token.

None of them can be closer than the model is to itself. So the source is also run in bfloat16 and with int8 activations,
and the quantized model with its input changed in the last bits (see hubpub.measure.baselines).

What the reference says of a text longer than the sliding window is computed once per variant and kept on disk
(`Reference`); every cell reads the same text and is compared with it. A cell also continues prompts greedily, and the
reference is asked whether it would have gone on the same way. Texts are encoded as the LLM runner does: no special
tokens but the first one, where the model wants that.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from hubpub import data
from hubpub.config import Recipe
from hubpub.errors import SourceError
from hubpub.facts import (
    MEASURING,
    Greedy,
    Logits,
    Lowering,
    Parity,
    StoredWeights,
    TokenizerCheck,
    Whole,
    rounded,
)
from hubpub.files import write_atomic
from hubpub.measure import bench
from hubpub.measure.baselines import int8_activations, perturbed
from hubpub.measure.prompting import chat_template_fits, turns_of
from hubpub.measure.reference_model import reference_model
from hubpub.measure.runtime import Session
from hubpub.measure.samples import samples
from hubpub.measure.scalars import scalars_of_model
from hubpub.measure.weights import check_weights
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.reader import Reader
from hubpub.model.shape import SLIDING
from hubpub.progress import Progress, unseen
from hubpub.workspace import integers_of

NEW_TOKENS = 24
# Tokens of the text that is compared: of a real model, and of a scale model in a rehearsal.
TOKENS, SCALE_TOKENS = 2048, 512
# Of a longer text every second token is compared, or every third: limits were set on as many tokens, and the logits of
# each are a quarter of a million numbers. All of it is read.
COMPARED = 1024
# A program that is slow reads less of the text than this many seconds allow, but always past its sliding window.
SECONDS = 300.0
# Comparing two logits takes as long as this many multiplications of a product that made them.
_COMPARISON = 300
# Rows of logits that are computed at once, and logits that are compared at once: 16 MB, which the allocator gives back
# and takes again. Larger ones are new pages each time, and filling those takes longer than all the arithmetic.
_ROWS, _AT_ONCE = 256, 1 << 22
# Logits that differ by more than this many nats are compared without the exponential of the difference.
_FAR = 8.0
_LARGEST = 700.0
# Two first tokens that the reference holds this close, in nats (a factor of 1.1 in probability), are a tie: whoever
# rounds differently decides it otherwise, as the source in bfloat16 does for one prompt of 16.
TIE = 0.1
# Logits [end - begin, vocabulary] of the rows begin to end.
Rows = Callable[[int, int], Any]
# Those of several models, or of several texts, at once.
Blocks = Callable[[int, int], Sequence[Any]]
# Progress of one stage: how much of it is done.
Told = Callable[[float], None]
_UNSEEN: Told = partial(unseen, "")


@dataclass(frozen=True)
class Reference:
    """What the source in float32 says: `tokens` of a text and its logits [compared tokens, vocabulary] float32, those
    of every token at a multiple of `step`; and the token ids of prompts, to be continued by at most `new_tokens`.

    With a `window`, every `window` consecutive tokens are a text of their own, and a continuation ends with it. `bf16`
    and `int8_activations` are what the source is against itself with those: top-1 agreement, and mean KL in nats.
    Of a slice, `whole` says how far it is from the model it is a slice of.
    """

    tokens: tuple[int, ...]
    logits: Any
    prompts: tuple[tuple[int, ...], ...]
    stop: tuple[int, ...]
    new_tokens: int
    window: int | None
    bf16: tuple[float, float]
    int8_activations: tuple[float, float]
    whole: Whole | None = None

    @property
    def step(self) -> int:
        return _step(self.tokens)

    def baseline(self, recipe: Recipe) -> tuple[float, float]:
        """Top-1 agreement and mean KL of the source with what `recipe` cannot avoid."""
        return self.int8_activations if _dynamic(recipe) else self.bf16


def _step(tokens: Sequence[int]) -> int:
    """Which tokens of a text are compared: those whose position is a multiple of this."""
    return math.ceil(len(tokens) / COMPARED)


def _dynamic(recipe: Recipe) -> bool:
    schemes = (recipe.linear, recipe.head, *(override.scheme for override in recipe.override))
    return any(scheme is not None and scheme.activation is not None for scheme in schemes)


def text_length(context: int, *, scale_model: bool) -> int:
    """Tokens of the text to compare; a scale model reads less of it, but past its sliding window too."""
    return min(context - 1, SCALE_TOKENS if scale_model else TOKENS)


def measure(
    pte: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    length: int,
    references: Path,
    progress: Progress,
    tokenizer_file: Path | None = None,
    texts: tuple[str, Sequence[str]] | None = None,
) -> Parity:
    """Run the file against its reference, and once through ExecuTorch's LLM runner with the shipped tokenizer.

    `length` is how many tokens of text are compared (see `text_length`); `references` a folder that keeps what the
    reference model said; `tokenizer_file` the tokenizer.json that is shipped (default: the checkpoint's); `texts` what
    to read and the prompts to continue (default: those of hubpub.data).
    """
    reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    shipped = tokenizer_file or checkpoint.folder / "tokenizer.json"
    texts = texts or (data.passage(), [prompt.text for prompt in data.prompts()])
    # Before the program is loaded: a machine need not hold what the reference needs and the program at once.
    reference(checkpoint, reader, texts, length, references, progress, window=recipe.window)
    session = Session(pte)
    prompt, stop = texts[1][0], checkpoint.stop_tokens()
    said = session.generate(reader.encode(prompt), NEW_TOKENS, stop) if session.window is None else None
    shown = samples(session, reader, turns_of(reader), stop, length) if session.window is None else ()
    parity = compare_to_reference(session, checkpoint, recipe, texts, length, references, progress, reader)
    runner = None
    if said is not None:
        progress("llm runner", 0.0)
        answer = bench.ask_runner(pte, shipped, reader.written_bos + prompt, NEW_TOKENS, num_bos=reader.num_bos)
        runner = bench.check_runner(answer, prompt, said, stop, reader)
    fits = check_tokenizer(shipped, reader.bos, texts[1]).model_copy(
        update={"num_bos": reader.num_bos, "chat_template": chat_template_fits(reader, shipped, stop)}
    )
    return parity.model_copy(update={"runner": runner, "tokenizer": fits, "samples": shown})


def compare_to_reference(
    session: Session,
    checkpoint: Checkpoint,
    recipe: Recipe,
    texts: tuple[str, Sequence[str]],
    length: int,
    references: Path,
    progress: Progress,
    reader: Reader | None = None,
) -> Parity:
    """A loaded program compared with its source over (text, prompts): everything but tokenizer and LLM runner.

    The program is let go before its quantized weights are run eagerly: a machine need not hold both.
    """
    from hubpub.model.loader import text_config

    # A large tokenizer takes seconds to read.
    reader = reader or Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    known = reference(checkpoint, reader, texts, length, references, progress, window=session.window)
    said, logits = compare_logits(session, known, recipe, checkpoint.config, progress)
    greedy = compare_greedy(session, checkpoint, known, progress)
    session.close()
    shape = checkpoint.family.shape(text_config(checkpoint))
    lowering, stored, scalars = compare_lowering(said, checkpoint, recipe, known, progress, session.path)
    slides = shape.sliding_window is not None and SLIDING in shape.layer_kinds
    return Parity(
        logits=logits,
        greedy=greedy,
        runner=None,
        lowering=lowering,
        weights=stored,
        whole=known.whole,
        stop_tokens=known.stop,
        sliding_window=shape.sliding_window if slides else None,
        sliding_layers=tuple(n for n, kind in enumerate(shape.layer_kinds) if kind == SLIDING) if slides else (),
        scalars=scalars,
        measuring=MEASURING,
    )


def reference(
    checkpoint: Checkpoint,
    reader: Reader,
    texts: tuple[str, Sequence[str]],
    length: int,
    folder: Path,
    progress: Progress,
    *,
    window: int | None = None,
) -> Reference:
    """The reference of a checkpoint for (text, prompts), from `folder` when it was made before.

    The float32 model is loaded (mapped, where memory is short), run and freed here. Text and prompts are encoded as an
    app does it: with <bos> where the model wants it, without a chat template.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    text, prompts = texts
    tokens = reader.encode(text)[:length]
    encoded = [reader.encode(prompt) for prompt in prompts]
    new_tokens = NEW_TOKENS
    if window:
        tokens = tokens[: len(tokens) // window * window]
        new_tokens = min(NEW_TOKENS, window // 2)
        encoded = [prompt[: window - new_tokens] for prompt in encoded]
    stop = checkpoint.stop_tokens()
    part = [checkpoint.slice.key] if checkpoint.slice else []
    asked = json.dumps(
        [MEASURING, _step(tokens), tokens, encoded, new_tokens, stop, window, checkpoint.config, *part], sort_keys=True
    )
    name = f"reference-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    table, data = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not table.exists() or not data.exists():
        logits, found = _ask(checkpoint, tokens, window, progress)
        folder.mkdir(parents=True, exist_ok=True)
        # Two cells of a variant may get here at once: each writes a file of its own, the last rename wins.
        temporary = data.with_name(f".{data.name}.{os.getpid()}.tmp")
        save_file({"logits": logits.contiguous()}, temporary)
        temporary.replace(data)
        del logits
        write_atomic(table, json.dumps(found).encode())
    with safe_open(data, "pt") as file:
        logits = file.get_tensor("logits")
    kept = json.loads(table.read_text())
    return Reference(
        tokens=tuple(tokens),
        logits=logits,
        prompts=tuple(map(tuple, encoded)),
        stop=tuple(stop),
        new_tokens=new_tokens,
        window=window,
        bf16=tuple(kept["bf16"]),
        int8_activations=tuple(kept["int8_activations"]),
        whole=Whole.model_validate(kept["whole"]) if kept.get("whole") else None,
    )


def _ask(
    checkpoint: Checkpoint, tokens: Sequence[int], window: int | None, progress: Progress
) -> tuple[Any, dict[str, Any]]:
    """Logits of the source in float32, and how far it is from itself in bfloat16 and with int8 activations."""
    import torch

    from hubpub.model.loader import load

    step = _step(tokens)

    def compared(model: Any, stage: str) -> list[float]:
        body, head = _parts(partial(progress, stage), model, len(tokens), step)
        rows = EagerLogits(model, tokens, window, step, body)
        found = _agreement(_rows(logits), rows, tokens, step, head)
        return [found.top1, found.kl_mean]

    progress("reference: loading", 0.0)
    model = reference_model(checkpoint)
    found: dict[str, Any] = {}
    with torch.no_grad():
        progress("reference: text", 0.0)
        logits = eager_logits(model, tokens, window, partial(progress, "reference: text"))
        progress(stage := "reference: int8 activations", 0.0)
        with int8_activations(model):
            found["int8_activations"] = compared(model, stage)
        del model
        progress("reference: loading", 0.0)
        model = load(checkpoint, dtype=torch.bfloat16)
        progress(stage := "reference: bfloat16", 0.0)
        found["bf16"] = compared(model, stage)
        whole = _distance(checkpoint.whole, logits, tokens, window, progress) if checkpoint.whole else None
    return logits, {**found, "whole": whole.model_dump() if whole else None}


def _distance(whole: Checkpoint, logits: Any, tokens: Sequence[int], window: int | None, progress: Progress) -> Whole:
    """How far a slice that gave `logits` is from the `whole` model, both in float32."""
    progress("reference: loading", 0.0)
    model, step = reference_model(whole), _step(tokens)
    progress(stage := "reference: the whole model", 0.0)
    body, head = _parts(partial(progress, stage), model, len(tokens), step)
    found = _agreement(EagerLogits(model, tokens, window, step, body), _rows(logits), tokens, step, head)
    return Whole(
        kl_mean=found.kl_mean,
        top1_agreement=found.top1,
        perplexity=found.perplexity,
        perplexity_whole=found.perplexity_of_first,
    )


class EagerLogits:
    """Logits of an eager model over a text, computed some rows at a time: a large vocabulary is never all in memory.

    Consecutive windows are texts of their own, where a `window` is given; of the tokens those at multiples of `step`
    are rows. `told` how much is done of what comes before the head.
    """

    def __init__(
        self, model: Any, tokens: Sequence[int], window: int | None, step: int = 1, told: Told = _UNSEEN
    ) -> None:
        import torch

        self.model = model
        texts = torch.tensor([list(tokens)]).reshape(-1, window or len(tokens))
        with _watched(model.model.layers, len(texts), told):
            states = [model.model(input_ids=text.unsqueeze(0), use_cache=False).last_hidden_state[0] for text in texts]
        self.states = torch.cat(states)[::step]

    def __call__(self, begin: int, end: int) -> Any:
        """Logits [end - begin, vocabulary] float32, as the model's own forward makes them of its last states."""
        return _logits(self.model, self.states[begin:end])


def _logits(model: Any, states: Any) -> Any:
    """Logits [rows, vocabulary] float32 of the last `states` [rows, width] of an eager model."""
    import torch

    logits = model.lm_head(states)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits.float()


@contextmanager
def _watched(layers: Any, times: int, told: Told) -> Iterator[None]:
    """While open, `told` after each of `layers` how much is done of all of them, `times` over."""
    done = 0

    def passed(*_: Any) -> None:
        nonlocal done
        done += 1
        told(done / (times * len(layers)))

    handles = [layer.register_forward_hook(passed) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(told: Told, model: Any, tokens: int, step: int, times: int = 1) -> tuple[Told, ...]:
    """What to tell of a stage that reads `tokens` with `model`, `times` over, and then compares every `step`th: a part
    for each reading and one for the head, as long as what they multiply."""
    from torch.nn import Linear

    from hubpub.export.quantize import DynamicLinear, WeightOnlyLinear

    def multiplied(module: Any) -> int:
        if isinstance(module, WeightOnlyLinear):
            return int(module.values.numel())
        return module.in_features * module.out_features if isinstance(module, Linear | DynamicLinear) else 0

    of_head = multiplied(model.lm_head)
    head = math.ceil(tokens / step) * times * (of_head + _COMPARISON * model.config.vocab_size)
    body = tokens * (sum(map(multiplied, model.modules())) - of_head)
    share = body / (times * body + head)
    bounds = [share * number for number in range(times + 1)] + [1.0]
    return tuple(
        lambda fraction, first=first, last=last: told(first + (last - first) * fraction)
        for first, last in pairwise(bounds)
    )


def eager_logits(model: Any, tokens: Sequence[int], window: int | None, told: Told = _UNSEEN) -> Any:
    """Logits [compared tokens, vocabulary] float32 of an eager model: of one text, or of consecutive windows."""
    import torch

    step = _step(tokens)
    body, head = _parts(told, model, len(tokens), step)
    rows = EagerLogits(model, tokens, window, step, body)
    count = rows.states.shape[0]
    logits = torch.empty(count, model.config.vocab_size)
    for begin in range(0, count, _ROWS):
        end = min(begin + _ROWS, count)
        logits[begin:end] = rows(begin, end)
        head(end / count)
    return logits


def _rows(logits: Any) -> Rows:
    return lambda begin, end: logits[begin:end]


@dataclass(frozen=True)
class _Agreement:
    """How far one model's next-token probabilities are from another's, over a text."""

    top1: float
    kl_mean: float
    kl_p999: float
    error_max: float
    perplexity: float
    perplexity_of_first: float


def _agreement(first: Rows, second: Rows, tokens: Sequence[int], step: int, told: Told = _UNSEEN) -> _Agreement:
    """`second` compared with `first`; `told` how much of it is done."""
    return _agreements(lambda begin, end: (first(begin, end), second(begin, end)), tokens, step, told)[0]


def _agreements(read: Blocks, tokens: Sequence[int], step: int, told: Told = _UNSEEN) -> list[_Agreement]:
    """All but the first of what is `read` compared with the first, a slice at a time, for vocabularies are large.

    Rows are those of every token of the text at a multiple of `step`. Finite wherever all logits are, however far apart
    the models.
    """
    import torch

    following = torch.tensor([*tokens[1:], 0])[::step].unsqueeze(1)
    count = following.shape[0]
    found: list[list[tuple[Any, ...]]] = []
    for begin in range(0, count, _ROWS):
        end = min(begin + _ROWS, count)
        # A head in integers is unpacked for each of these; what is compared at a time is small.
        blocks = read(begin, end)
        found = found or [[] for _ in blocks[1:]]
        small = max(1, _AT_ONCE // blocks[0].shape[1])
        for top in range(0, end - begin, small):
            a, *rest = (block[top : top + small] for block in blocks)
            next_ = following[begin + top : begin + top + a.shape[0]]
            p = a.log_softmax(-1)
            surprise = -p.gather(1, next_)[:, 0]
            best = a.max(-1).indices
            p.exp_()
            for parts, b in zip(found, rest, strict=True):
                parts.append(_compared(a, p, surprise, best, b, next_))
        told(end / count)
    return [_summed(parts) for parts in found]


def _compared(a: Any, p: Any, surprise: Any, best: Any, b: Any, next_: Any) -> tuple[Any, ...]:
    """KL, same choice, largest error, surprise by either, of rows of logits `a` with probabilities `p`, and of `b`."""
    import torch

    # What the two normalizers differ by, from the difference itself: that of two large logarithms has no digits
    # left where the models agree.
    change = b - a
    error = torch.maximum(change.amax(-1), -change.amin(-1))
    mean = torch.linalg.vecdot(p, change)
    theirs = surprise - change.gather(1, next_)[:, 0]
    normalizer = torch.linalg.vecdot(p, change.expm1_()).log1p()
    kl, theirs = normalizer - mean, theirs + normalizer
    if (far := error > _FAR).any():
        # Where they are far apart the logarithms have digits enough, and the exponential none.
        own, other = a[far].double().log_softmax(-1), b[far].double().log_softmax(-1)
        kl[far] = (own.exp() * (own - other)).sum(-1).float()
        theirs[far] = -other.gather(1, next_[far])[:, 0].float()
    return kl.clamp_(min=0), (best == b.max(-1).indices).float(), error, surprise, theirs


def _summed(parts: list[tuple[Any, ...]]) -> _Agreement:
    import torch

    kl, same, error, surprise, theirs = (torch.cat(column).double() for column in zip(*parts, strict=True))
    return _Agreement(
        top1=rounded(same.mean()),
        kl_mean=rounded(kl.mean()),
        kl_p999=rounded(kl.quantile(0.999)),
        error_max=rounded(error.max()),
        perplexity=_perplexity(theirs),
        perplexity_of_first=_perplexity(surprise),
    )


def _perplexity(surprise: Any) -> float:
    """Of all but the last row, whose next token is not known; one that no float holds is the largest there is."""
    mean = float(surprise[:-1].mean())
    return mean if math.isnan(mean) else rounded(math.exp(min(mean, _LARGEST)))


@dataclass(frozen=True)
class Said:
    """What a program said over the first `read` tokens of a text: `logits` [compared tokens, vocabulary], one at a
    time, and `pieces` [ends, vocabulary], which it read in pieces, beside what it said at their `ends` before."""

    read: int
    logits: Any
    pieces: Any
    ends: Any


def compare_logits(
    session: Session, known: Reference, recipe: Recipe, config: dict[str, Any], progress: Progress
) -> tuple[Said, Logits]:
    """What the program says over the text, and how that compares with what the reference does.

    A program with a cache reads the text token by token; then again in pieces.
    """
    said = (
        _windows(session, known.tokens, known.step, progress)
        if session.window
        else _decoded(session, known.tokens, known.step, config, progress)
    )
    compared = partial(progress, "comparing")
    found = _agreement(_rows(known.logits), _rows(said.logits), known.tokens[: said.read], known.step, compared)
    same = _agreement(_rows(said.ends), _rows(said.pieces), [0] * len(said.ends), 1)
    top1, kl = known.baseline(recipe)
    return said, Logits(
        tokens=said.logits.shape[0],
        read=said.read,
        finite=_finite(said.logits) and _finite(said.pieces),
        top1_agreement=found.top1,
        kl_mean=found.kl_mean,
        kl_p999=found.kl_p999,
        error_max=found.error_max,
        prefill_error_max=same.error_max,
        prefill_kl_mean=same.kl_mean,
        prefill_top1=same.top1,
        prefill_rows=len(said.ends),
        perplexity=found.perplexity,
        perplexity_original=found.perplexity_of_first,
        floor_top1_agreement=known.bf16[0],
        floor_kl_mean=known.bf16[1],
        baseline_top1_agreement=top1,
        baseline_kl_mean=kl,
    )


def _finite(logits: Any) -> bool:
    """Whether all of them are; a mask of a quarter of a billion would take longer than their extremes."""
    import torch

    return bool(torch.isfinite(torch.stack(logits.aminmax())).all())


def _decoded(session: Session, tokens: Sequence[int], step: int, config: dict[str, Any], progress: Progress) -> Said:
    """A program with a cache: token by token, then in pieces."""
    import torch

    sizes = (session.longest, max(2, session.longest * 3 // 5 + 3))
    rows: Any = None
    last: dict[int, Any] = {}
    count = 0
    sliding = int((config.get("text_config") or config).get("sliding_window") or 0)
    least, started = max(sliding + max(sliding // 2, 64), min(len(tokens), 256)), time.monotonic()
    for position, token in enumerate(tokens):
        if position % 32 == 0:
            progress("text", position / len(tokens))
            # In whole steps, so that a machine that is a little slower reads as much.
            if position >= least and position % 256 == 0 and time.monotonic() - started > SECONDS:
                break
        row = session.step([token], position)
        if rows is None:
            rows = torch.empty(math.ceil(len(tokens) / step), row.numel())
        if position % step == 0:
            rows[position // step] = row
        count = position + 1
        if any(count % size == 0 for size in sizes) or count % 256 == 0 or count == len(tokens):
            last[position] = row
    # Twice over the whole text: in the longest pieces, and in pieces of a length that divides neither those nor a
    # sliding window, so that they meet everywhere in it.
    pieces: list[Any] = []
    ends: list[Any] = []
    for number, size in enumerate(sizes):
        for first in range(0, count, size):
            progress("text in pieces", (number + first / count) / len(sizes))
            end = min(first + size, count)
            pieces.append(session.step(tokens[first:end], first))
            ends.append(last[end - 1])
    return Said(count, rows[: math.ceil(count / step)], torch.stack(pieces), torch.stack(ends))


def _windows(session: Session, tokens: Sequence[int], step: int, progress: Progress) -> Said:
    """Consecutive windows; the first half of one alone, which must not depend on the second."""
    import torch

    assert session.window is not None
    rows = []
    for first in range(0, len(tokens), session.window):
        progress("text", first / len(tokens))
        rows.append(session.score(tokens[first : first + session.window]))
    half = session.window // 2
    logits = torch.cat(rows)
    return Said(len(tokens), logits[::step], session.score(tokens[:half]), logits[:half])


def compare_lowering(
    said: Said,
    checkpoint: Checkpoint,
    recipe: Recipe,
    known: Reference,
    progress: Progress,
    pte: Path,
) -> tuple[Lowering, StoredWeights | None, dict[str, int]]:
    """What the program said over the text against those of the same quantized weights run eagerly, the weights that lie
    in the file `pte` against those (None where nothing is quantized), and the numbers it must compute with."""
    import torch

    from hubpub.export.calibrate import apply_recipe
    from hubpub.model import loader

    tokens, step, ours = known.tokens[: said.read], known.step, said.logits
    noise, stored = 0.0, None
    schemes = (recipe.linear, recipe.embedding, recipe.per_layer_embedding, recipe.head, *recipe.override)
    if recipe.dtype == "fp32" and not any(schemes):
        found = _agreement(_rows(known.logits), _rows(ours), tokens, step, partial(progress, "comparing"))
        model = reference_model(checkpoint)
    else:
        progress("quantized weights: loading", 0.0)
        model = loader.load_mapped(checkpoint, dtype=loader.DTYPES[recipe.dtype])
        grid = apply_recipe(model, checkpoint, recipe, kept=integers_of(pte))
        noisy = _dynamic(recipe) or recipe.dtype == "bf16"
        progress(stage := "quantized weights: text", 0.0)
        *bodies, head = _parts(partial(progress, stage), model, len(tokens), step, times=1 + noisy)
        with torch.no_grad():
            read = [EagerLogits(model, tokens, known.window, step, bodies[0])]
            if noisy:
                with perturbed(model):
                    read.append(EagerLogits(model, tokens, known.window, step, bodies[1]))
            found, *changed = _agreements(_beside(read, ours), tokens, step, head)
            noise = changed[0].kl_mean if changed else noise
        progress("weights in the file", 0.0)
        stored = check_weights(pte, model).model_copy(update={"grid": grid})
    scalars = scalars_of_model(model, checkpoint.family.patches, window=known.window is not None)
    del model
    lowering = Lowering(
        kl_mean=found.kl_mean,
        kl_p999=found.kl_p999,
        top1_agreement=found.top1,
        error_max=found.error_max,
        perplexity=found.perplexity_of_first,
        noise_kl_mean=noise,
    )
    return lowering, stored, scalars


def _beside(read: Sequence[EagerLogits], ours: Any) -> Blocks:
    """The logits of one model over several texts that it `read`, all through its head at once, and `ours` after the
    first."""
    import torch

    def blocks(begin: int, end: int) -> Sequence[Any]:
        states = torch.cat([one.states[begin:end] for one in read])
        first, *others = _logits(read[0].model, states).split(end - begin)
        return first, ours[begin:end], *others

    return blocks


def compare_greedy(session: Session, checkpoint: Checkpoint, known: Reference, progress: Progress) -> Greedy:
    """Continue every prompt greedily, and ask the reference at each token whether it would have said the same.

    Up to the first difference that is what its own greedy continuation says, at a fraction of the time. Past it, it
    says of every further token whether a reader of that text could have expected it.
    """
    import torch

    answers = []
    for number, prompt in enumerate(known.prompts):
        progress("prompts", number / len(known.prompts))
        answers.append(session.generate(prompt, known.new_tokens, known.stop))
    progress("reference: loading", 0.0)
    model = reference_model(checkpoint)
    progress(stage := "reference: prompts", 0.0)
    with torch.no_grad():
        said = answered(model, known.prompts, answers, partial(progress, stage))
    first = near = exact = prefix = likely = tokens = 0
    for logits, made in zip(said, answers, strict=True):
        same = (logits.argmax(-1) == torch.tensor(made)).long().cumprod(0)
        first += int(same[0])
        fits = logits.gather(1, torch.tensor(made).unsqueeze(1))[:, 0] >= logits.amax(-1) - TIE
        near += bool(fits[0])
        likely += int(fits.sum())
        tokens += len(made)
        exact += bool(same.all())
        prefix += int(same.sum())
    count = len(known.prompts)
    return Greedy(
        prompts=count,
        new_tokens=known.new_tokens,
        first_token=rounded(first / count),
        first_token_or_tie=rounded(near / count),
        tie=TIE,
        likely_tokens=rounded(likely / tokens),
        tokens=tokens,
        exact=rounded(exact / count),
        mean_common_prefix=rounded(prefix / count),
    )


def answered(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], told: Told = _UNSEEN
) -> Sequence[Any]:
    """Logits [tokens, vocabulary] of an eager model at each token of each answer to a prompt.

    Texts of about one length are read at once, for a mapped model widens its weights for each reading. The shorter ones
    end in tokens of nothing, which no token before them sees.
    """
    import torch

    texts = [[*prompt, *made[:-1]] for prompt, made in zip(prompts, answers, strict=True)]
    batches: list[list[int]] = []
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        if batches and len(texts[number]) <= 2 * len(texts[batches[-1][0]]):
            batches[-1].append(number)
        else:
            batches.append([number])
    rows: dict[int, Any] = {}
    with _watched(model.model.layers, len(batches), told):
        for batch in batches:
            longest = max(len(texts[number]) for number in batch)
            padded = torch.tensor([texts[number] + [0] * (longest - len(texts[number])) for number in batch])
            states = model.model(input_ids=padded, use_cache=False).last_hidden_state
            for number, one in zip(batch, states, strict=True):
                rows[number] = one[len(prompts[number]) - 1 : len(texts[number])]
    # The head, too, is widened once.
    logits: Sequence[Any] = _logits(model, torch.cat([rows[number] for number in range(len(texts))])).split(
        [len(made) for made in answers]
    )
    return logits


def check_tokenizer(path: Path, bos: tuple[int, ...], texts: Iterable[str]) -> TokenizerCheck:
    """The tokenizer.json at `path` against what texts begin with. Raises SourceError where it cannot be read.

    One that puts something else before a text than the model wants does not fit; one that puts nothing there does.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise SourceError(f"{path} is not a tokenizer: {error}", "ship the tokenizer.json of the source") from None
    specials = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    encoded = [(text, tokenizer.encode(text).ids) for text in texts]
    unchanged = [tokenizer.decode(ids, skip_special_tokens=True) == text for text, ids in encoded]
    return TokenizerCheck(
        round_trips=rounded(sum(unchanged) / len(unchanged)),
        largest_id=max(tokenizer.get_vocab(with_added_tokens=True).values()),
        begins_with_bos=all(
            ids[: len(ids) - len(tokenizer.encode(text, add_special_tokens=False).ids)] in ([], list(bos))
            for text, ids in encoded
        )
        and specials.issuperset(bos),
    )
