"""Does the program say what the original says? Figures against the eager model; hubpub.gates says what must be met.

Three comparisons tell what broke:

- with the *original* in float32, unpatched: everything the export did to the model, quantization included;
- with the program's *own quantized weights* run eagerly: what lowering, cache and kernels did. Quantization cancels
  out, so the limit is tight: a sliding window off by one, a wrong rotary base or a damaged constant shows here;
- of the program with *itself*: a prompt read at once and in two parts against token by token.

The original is run once per variant and kept on disk (`Reference`); every cell is then held against it, teacher-forced
over a text that is longer than the sliding window, and by greedy continuation of prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubpub.config import Recipe
from hubpub.errors import SourceError
from hubpub.facts import (
    MEASURING,
    Greedy,
    Logits,
    Lowering,
    Parity,
    TokenizerCheck,
    rounded,
)
from hubpub.files import write_atomic
from hubpub.measure.prompting import Reader
from hubpub.measure.runtime import Session
from hubpub.model.checkpoint import Checkpoint
from hubpub.workspace import integers_of

NEW_TOKENS = 24
# Tokens of the text that is compared: of a real model, and of a scale model in a rehearsal.
TOKENS, SCALE_TOKENS = 2048, 512
# A program that is slow reads less of the text than this many seconds allow, but always past its sliding window.
SECONDS = 900.0
_ROWS = 256
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Reference:
    """What the original model says: `tokens` of a text, its logits [tokens, vocabulary] float32, and for each prompt
    its token ids and greedy continuation of at most `new_tokens`.

    With a `window`, every `window` consecutive tokens are a text of their own, and a continuation ends with it. The
    `floor` is how far the original in bfloat16 is from itself: top-1 agreement, and mean KL in nats.
    """

    tokens: tuple[int, ...]
    logits: Any
    prompts: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    stop: tuple[int, ...]
    new_tokens: int
    window: int | None
    floor_top1: float
    floor_kl: float


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
    """Run the file against its original, and once through ExecuTorch's LLM runner with the shipped tokenizer.

    `length` is how many tokens of text are compared (see `text_length`); `references` a folder that keeps what the
    original said; `tokenizer_file` the tokenizer.json that is shipped (default: the checkpoint's); `texts` what to
    read and the prompts to continue (default: those of hubpub.data).
    """
    from hubpub import data
    from hubpub.measure import bench

    reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    shipped = tokenizer_file or checkpoint.folder / "tokenizer.json"
    texts = texts or (data.passage(), [prompt.text for prompt in data.prompts()])
    # Before the program is loaded: a machine need not hold what the original needs and the program at once.
    reference(checkpoint, reader, texts, length, references, progress, window=recipe.window)
    session = Session(pte)
    prompt, stop = texts[1][0], checkpoint.stop_tokens()
    said = session.generate(reader.encode(prompt), NEW_TOKENS, stop) if session.window is None else None
    parity = hold(session, checkpoint, recipe, texts, length, references, progress)
    runner = None
    if said is not None:
        progress("llm runner", 0.0)
        answer = bench.ask_runner(pte, shipped, prompt, NEW_TOKENS, num_bos=len(reader.bos))
        runner = bench.check_runner(answer, prompt, said, stop, reader)
    fits = check_tokenizer(shipped, reader.bos, texts[1])
    return parity.model_copy(update={"runner": runner, "tokenizer": fits})


def hold(
    session: Session,
    checkpoint: Checkpoint,
    recipe: Recipe,
    texts: tuple[str, Sequence[str]],
    length: int,
    references: Path,
    progress: Progress,
) -> Parity:
    """A loaded program held against its original over (text, prompts): everything but tokenizer and LLM runner.

    The program is let go before its quantized weights are run eagerly: a machine need not hold both.
    """
    reader = Reader(checkpoint.folder, checkpoint.family.begins_with_bos)
    original = reference(checkpoint, reader, texts, length, references, progress, window=session.window)
    ours, logits = compare_logits(session, original, checkpoint.config, progress)
    greedy = compare_greedy(session, original, progress)
    session.close()
    progress("quantized weights", 0.0)
    lowering = compare_lowering(ours, checkpoint, recipe, original, integers_of(session.path))
    return Parity(
        logits=logits,
        greedy=greedy,
        runner=None,
        lowering=lowering,
        stop_tokens=original.stop,
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
    import torch
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
    asked = json.dumps([MEASURING, tokens, encoded, new_tokens, stop, window, checkpoint.config], sort_keys=True)
    name = f"reference-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    table, data = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not table.exists() or not data.exists():
        from hubpub.measure.original import original
        from hubpub.model.loader import load

        model = original(checkpoint)
        made = []
        with torch.no_grad():
            progress("original: passage", 0.0)
            logits = eager_logits(model, tokens, window)
            for number, prompt in enumerate(encoded):
                progress("original: prompts", number / len(encoded))
                made.append(_eager_greedy(model, prompt, stop, new_tokens, window))
            del model
            progress("original: bfloat16", 0.0)
            rounded = eager_logits(load(checkpoint, dtype=torch.bfloat16), tokens, window)
        floor = _agreement(logits, rounded, tokens)
        del rounded
        folder.mkdir(parents=True, exist_ok=True)
        # Two cells of a variant may get here at once: each writes a file of its own, the last rename wins.
        temporary = data.with_name(f".{data.name}.{os.getpid()}.tmp")
        save_file({"logits": logits.contiguous()}, temporary)
        temporary.replace(data)
        write_atomic(table, json.dumps({"continuations": made, "floor": [floor.top1, floor.kl_mean]}).encode())
    with safe_open(data, "pt") as file:
        logits = file.get_tensor("logits")
    kept = json.loads(table.read_text())
    return Reference(
        tokens=tuple(tokens),
        logits=logits,
        prompts=tuple(map(tuple, encoded)),
        continuations=tuple(map(tuple, kept["continuations"])),
        stop=tuple(stop),
        new_tokens=new_tokens,
        window=window,
        floor_top1=kept["floor"][0],
        floor_kl=kept["floor"][1],
    )


def eager_logits(model: Any, tokens: Sequence[int], window: int | None) -> Any:
    """Logits [tokens, vocabulary] float32 of an eager model: of one text, or of consecutive windows."""
    import torch

    if window is None:
        return _sliced_logits(model, torch.tensor([list(tokens)]))
    rows = torch.tensor(list(tokens)).reshape(-1, window)
    return torch.cat([model(row.unsqueeze(0)).logits[0].float() for row in rows])


def _sliced_logits(model: Any, tokens: Any) -> Any:
    """Logits [S, vocabulary] float32 of tokens [1, S], as `model(tokens)` gives them, in one table of that size.

    The decoder runs once; the head, and what the model does to its logits, run on slices of what came out of it. At
    once, a vocabulary of 262,144 takes 2 GB for 2,048 tokens, and as much again for each step.
    """
    import torch

    decoder = model.model
    whole = decoder(input_ids=tokens)
    found = None
    try:
        for first in range(0, tokens.shape[1], _ROWS):
            hidden = whole.last_hidden_state[:, first : first + _ROWS]
            decoder.forward = lambda *_, hidden=hidden, **__: type(whole)(**{**whole, "last_hidden_state": hidden})
            part = model(tokens[:, first : first + _ROWS]).logits[0].float()
            if found is None:
                found = torch.empty(tokens.shape[1], part.shape[1])
            found[first : first + _ROWS] = part
    finally:
        del decoder.forward
    return found


def _eager_greedy(
    model: Any, prompt: Sequence[int], stop: Sequence[int], new_tokens: int, window: int | None
) -> list[int]:
    import torch

    made: list[int] = []
    past, tokens = None, torch.tensor([list(prompt)])
    while len(made) < new_tokens:
        out = model(tokens, past_key_values=past, use_cache=window is None, logits_to_keep=1)
        past = out.past_key_values
        made.append(int(out.logits[0, -1].argmax()))
        if made[-1] in stop:
            break
        tokens = torch.tensor([made[-1:]] if window is None else [[*prompt, *made]])
    return made


@dataclass(frozen=True)
class _Agreement:
    """How far one model's next-token probabilities are from another's, over a text."""

    top1: float
    kl_mean: float
    kl_p999: float
    error_max: float
    perplexity: float
    perplexity_of_first: float


def _agreement(first: Any, second: Any, tokens: Sequence[int]) -> _Agreement:
    """`second` held against `first`, logits [tokens, vocabulary]; a slice at a time, for vocabularies are large."""
    import torch

    following = torch.tensor([*tokens[1:], 0]).unsqueeze(1)
    parts: list[tuple[Any, ...]] = []
    for begin in range(0, len(tokens), _ROWS):
        end = min(begin + _ROWS, len(tokens))
        a, b = first[begin:end], second[begin:end]
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
        next_ = following[begin:end]
        same = a.argmax(-1) == b.argmax(-1)
        parts.append((kl, same.float(), (a - b).abs().amax(-1), -p.gather(1, next_)[:, 0], -q.gather(1, next_)[:, 0]))
    kl, same, error, surprise, ours = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Agreement(
        top1=rounded(same.mean()),
        kl_mean=rounded(kl.mean()),
        kl_p999=rounded(kl.quantile(0.999)),
        error_max=rounded(error.max()),
        perplexity=rounded(ours[:-1].mean().exp()),
        perplexity_of_first=rounded(surprise[:-1].mean().exp()),
    )


def compare_logits(
    session: Session, original: Reference, config: dict[str, Any], progress: Progress
) -> tuple[Any, Logits]:
    """The program's logits [tokens, vocabulary] over the text, and how they compare with the original's.

    A program with a cache reads the text token by token; then at once, and in two parts.
    """
    import torch

    tokens = original.tokens
    ours, error = _windows(session, tokens) if session.window else _decoded(session, tokens, config, progress)
    count = ours.shape[0]
    found = _agreement(original.logits[:count], ours, tokens[:count])
    return ours, Logits(
        tokens=count,
        finite=bool(torch.isfinite(ours).all()) and math.isfinite(error),
        top1_agreement=found.top1,
        kl_mean=found.kl_mean,
        kl_p999=found.kl_p999,
        error_max=found.error_max,
        prefill_error_max=rounded(error),
        perplexity=found.perplexity,
        perplexity_original=found.perplexity_of_first,
        floor_top1_agreement=original.floor_top1,
        floor_kl_mean=original.floor_kl,
    )


def _decoded(session: Session, tokens: Sequence[int], config: dict[str, Any], progress: Progress) -> tuple[Any, float]:
    import torch

    # One table of all logits and no list of rows beside it: it is gigabytes.
    ours = torch.empty(0)
    count = 0
    sliding = int((config.get("text_config") or config).get("sliding_window") or 0)
    least, started = sliding + max(sliding // 2, 64), time.monotonic()
    for position, token in enumerate(tokens):
        if position % 32 == 0:
            progress("passage", position / len(tokens))
            # In whole steps, so that a machine that is a little slower reads as much.
            if position >= least and position % 256 == 0 and time.monotonic() - started > SECONDS:
                break
        row = session.step([token], position)
        if position == 0:
            ours = torch.empty(len(tokens), row.shape[0])
        ours[position] = row
        count = position + 1
    ours = ours[:count]
    error = 0.0
    # The whole text at once, and in two parts that meet in the middle of a sliding window.
    cut = count // 2 + 3
    for chunks in ([(0, count)], [(0, cut), (cut, count)]):
        for first, end in chunks:
            whole = session.step(tokens[first:end], first)
        error = _largest(error, float((whole - ours[-1]).abs().max()))
    return ours, error


def _windows(session: Session, tokens: Sequence[int]) -> tuple[Any, float]:
    """Logits of consecutive windows, and how much a token's logits depend on the tokens after it: they must not."""
    import torch

    assert session.window is not None
    rows = [session.score(tokens[first : first + session.window]) for first in range(0, len(tokens), session.window)]
    half = session.window // 2
    error = float((session.score(tokens[:half]) - rows[0][:half]).abs().max())
    return torch.cat(rows), error


def _largest(one: float, other: float) -> float:
    """The larger, where max() would lose what is not a number."""
    return other if math.isnan(other) or other > one else one


def compare_lowering(
    ours: Any, checkpoint: Checkpoint, recipe: Recipe, original: Reference, kept: Path | None = None
) -> Lowering:
    """The program's logits over the text against those of the same quantized weights run eagerly."""
    import torch

    from hubpub.export.calibrate import apply_recipe
    from hubpub.model import loader

    count = ours.shape[0]
    tokens = original.tokens[:count]
    schemes = (recipe.linear, recipe.embedding, recipe.per_layer_embedding, recipe.head, *recipe.override)
    if recipe.dtype == "fp32" and not any(schemes):
        eager = original.logits[:count]
    else:
        model = loader.load_mapped(checkpoint, dtype=loader.DTYPES[recipe.dtype])
        apply_recipe(model, checkpoint, recipe, kept=kept if kept and kept.exists() else None)
        with torch.no_grad():
            eager = eager_logits(model, tokens, original.window)
        del model
    found = _agreement(eager, ours, tokens)
    return Lowering(
        kl_mean=found.kl_mean,
        kl_p999=found.kl_p999,
        top1_agreement=found.top1,
        error_max=found.error_max,
        perplexity=found.perplexity_of_first,
    )


def compare_greedy(session: Session, original: Reference, progress: Progress) -> Greedy:
    """Continue every prompt greedily and compare with the original's continuation."""
    first = exact = prefix = 0
    for number, (prompt, wanted) in enumerate(zip(original.prompts, original.continuations, strict=True)):
        progress("prompts", number / len(original.prompts))
        made = session.generate(prompt, original.new_tokens, original.stop)
        same = next(
            (i for i, (a, b) in enumerate(zip(made, wanted, strict=False)) if a != b), min(len(made), len(wanted))
        )
        first += same > 0
        exact += tuple(made) == wanted
        prefix += same
    count = len(original.prompts)
    return Greedy(
        prompts=count,
        new_tokens=original.new_tokens,
        first_token=rounded(first / count),
        exact=rounded(exact / count),
        mean_common_prefix=rounded(prefix / count),
    )


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
