"""Does the program say what the original says? Figures against the eager model, and the gates that judge them.

The original is run once per variant, unpatched, in float32, and kept on disk (`Reference`); every cell is then held
against it: teacher-forced through token-by-token decode, past the sliding window, and by greedy continuation.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubpub.config import Gates
from hubpub.facts import Gate, Greedy, Logits, RunnerCheck, write_atomic
from hubpub.measure.runtime import Session

NEW_TOKENS = 24
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Reference:
    """What the original model says: `tokens` of a passage, its logits [tokens, vocabulary] float32, and for each
    prompt its token ids and greedy continuation."""

    tokens: tuple[int, ...]
    logits: Any
    prompts: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    stop: tuple[int, ...]


def passage_length(window: int, context: int) -> int:
    """Tokens of the passage to compare: half a window past the sliding window, and never beyond the context."""
    return min(context - 1, max(256, window + max(window // 2, 64)))


def reference(
    checkpoint: Any, tokenizer: Any, texts: tuple[str, Sequence[str]], length: int, folder: Path, progress: Progress
) -> Reference:
    """The reference of a checkpoint for (passage, prompts), from `folder` when it was made before.

    The float32 model is loaded, run and freed here. Prompts are encoded as they are; the tokenizer adds <bos>.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    table, data = folder / "reference.json", folder / "reference.safetensors"
    if not table.exists():
        from hubpub.model.loader import load

        passage, prompts = texts
        model = load(checkpoint, dtype=torch.float32)
        stop = stop_tokens(checkpoint.folder)
        tokens = tokenizer.encode(passage)[:length]
        encoded = [tokenizer.encode(prompt) for prompt in prompts]
        made = []
        with torch.no_grad():
            progress("original: passage", 0.0)
            logits = model(torch.tensor([tokens])).logits[0].float()
            for number, prompt in enumerate(encoded):
                progress("original: prompts", number / len(encoded))
                made.append(_eager_greedy(model, prompt, stop))
        folder.mkdir(parents=True, exist_ok=True)
        # Two cells of a variant may get here at once: each writes a file of its own, the last rename wins.
        temporary = data.with_name(f".{data.name}.{os.getpid()}.tmp")
        save_file({"logits": logits.contiguous()}, temporary)
        temporary.replace(data)
        stored = {"tokens": tokens, "prompts": encoded, "continuations": made, "stop": stop}
        write_atomic(table, json.dumps(stored).encode())
    kept = json.loads(table.read_text())
    with safe_open(data, "pt") as file:
        logits = file.get_tensor("logits")
    return Reference(
        tuple(kept["tokens"]),
        logits,
        tuple(map(tuple, kept["prompts"])),
        tuple(map(tuple, kept["continuations"])),
        tuple(kept["stop"]),
    )


def stop_tokens(folder: Path) -> list[int]:
    """The ids that end a generation, from generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        ids = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.exists() else None
        if ids is not None:
            return [ids] if isinstance(ids, int) else list(ids)
    return []


def _eager_greedy(model: Any, prompt: Sequence[int], stop: Sequence[int]) -> list[int]:
    import torch

    made: list[int] = []
    past, tokens = None, torch.tensor([list(prompt)])
    while len(made) < NEW_TOKENS:
        out = model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        made.append(int(out.logits[0, -1].argmax()))
        if made[-1] in stop:
            break
        tokens = torch.tensor([made[-1:]])
    return made


def compare_logits(session: Session, original: Reference, progress: Progress) -> Logits:
    """Feed the passage token by token and compare every distribution; then check prefill against that decode."""
    import torch

    tokens = original.tokens
    ours = torch.empty_like(original.logits)
    for position, token in enumerate(tokens):
        if position % 32 == 0:
            progress("passage", position / len(tokens))
        ours[position] = session.step([token], position)
    prefill_error = 0.0
    # The whole passage at once, and in two chunks that meet in the middle of a sliding window.
    cut = len(tokens) // 2 + 3
    for chunks in ([(0, len(tokens))], [(0, cut), (cut, len(tokens))]):
        for first, end in chunks:
            whole = session.step(tokens[first:end], first)
        prefill_error = max(prefill_error, float((whole - ours[-1]).abs().max()))
    finite = bool(torch.isfinite(ours).all()) and math.isfinite(prefill_error)
    p, q = original.logits.log_softmax(-1), ours.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    following = torch.tensor(tokens[1:]).unsqueeze(1)
    return Logits(
        tokens=len(tokens),
        finite=finite,
        top1_agreement=_rounded((ours.argmax(-1) == original.logits.argmax(-1)).float().mean()),
        kl_mean=_rounded(kl.mean()),
        kl_p999=_rounded(kl.quantile(0.999)),
        error_max=_rounded((ours - original.logits).abs().max()),
        prefill_error_max=_rounded(prefill_error),
        perplexity=_rounded((-q[:-1].gather(1, following).mean()).exp()),
        perplexity_original=_rounded((-p[:-1].gather(1, following).mean()).exp()),
    )


def compare_greedy(session: Session, original: Reference, progress: Progress) -> Greedy:
    """Continue every prompt greedily and compare with the original's continuation."""
    first = exact = prefix = 0
    for number, (prompt, wanted) in enumerate(zip(original.prompts, original.continuations, strict=True)):
        progress("prompts", number / len(original.prompts))
        made = session.generate(prompt, NEW_TOKENS, original.stop)
        same = next(
            (i for i, (a, b) in enumerate(zip(made, wanted, strict=False)) if a != b), min(len(made), len(wanted))
        )
        first += same > 0
        exact += tuple(made) == wanted
        prefix += same
    count = len(original.prompts)
    return Greedy(
        prompts=count,
        new_tokens=NEW_TOKENS,
        first_token=_rounded(first / count),
        exact=_rounded(exact / count),
        mean_common_prefix=_rounded(prefix / count),
    )


def judge(limits: Gates, logits: Logits, greedy: Greedy, runner: RunnerCheck) -> tuple[Gate, ...]:
    """Every gate with its limit and what was measured. A figure that is not finite passes no gate."""
    gates = [
        _gate("finite_logits", "min", 1.0, float(logits.finite)),
        _gate("kl_mean", "max", limits.kl_mean_max, logits.kl_mean),
        _gate("top1_agreement", "min", limits.top1_min, logits.top1_agreement),
        _gate("prefill_error_max", "max", limits.prefill_error_max, logits.prefill_error_max),
        _gate("greedy_first_token", "min", limits.greedy_first_token_min, greedy.first_token),
        _gate("greedy_exact", "min", limits.greedy_exact_min, greedy.exact),
        _gate("llm_runner_matches", "min", 1.0, float(runner.matches_decode_loop)),
    ]
    if limits.logit_error_max is not None:
        gates.append(_gate("logit_error_max", "max", limits.logit_error_max, logits.error_max))
    return tuple(gates)


def _gate(name: str, kind: Any, limit: float, measured: float) -> Gate:
    passed = math.isfinite(measured) and (measured <= limit if kind == "max" else measured >= limit)
    return Gate(name=name, kind=kind, limit=limit, measured=measured, passed=passed)


def _rounded(value: Any) -> float:
    """Six significant digits: what a comparison of two releases can rely on."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else number
