"""Talking to a `.pte` through ExecuTorch's own LLM runner, as an app would."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubpub.errors import ExportError, SourceError, UsageError


@dataclass(frozen=True)
class Reply:
    """An answer and its cost: seconds to load and to the first token, tokens in, out, and per second."""

    text: str
    prompt_tokens: int
    tokens: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def run(
    pte: Path, prompt: str, *, tokenizer: Path | None, new_tokens: int, temperature: float, chat: bool, stream: bool
) -> Reply:
    """Answer `prompt` with the file at `pte`; the text goes to stdout as it comes where `stream` is set.

    `tokenizer` is a tokenizer.json or a folder with one (default: beside the file). With `chat` the prompt becomes a
    user's turn of the chat template found there. Raises SourceError where no tokenizer is found, UsageError where a
    chat template is asked for and there is none, ExportError where the runner fails.
    """
    if not pte.is_file():
        raise SourceError(f"no file at {pte}", "give the path of a .pte file")
    found = _tokenizer(pte, tokenizer)
    text, bos = (_turn(found, prompt), 0) if chat else (prompt, 1)
    arguments = {"pte": str(pte), "tokenizer": str(found), "prompt": text, "bos": bos}
    arguments |= {"new_tokens": new_tokens, "temperature": temperature}
    read, write = os.pipe()
    # The runner prints what it says by itself, and a crash of native code must not take this process along.
    child = subprocess.Popen(
        [sys.executable, "-m", "hubpub.measure.chat", json.dumps(arguments), str(write)],
        pass_fds=(write,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert child.stdout is not None
    answer = _Answer(_specials(found))
    while piece := os.read(child.stdout.fileno(), 1 << 16):
        text = answer.take(piece)
        if stream:
            print(text, end="", flush=True)
    _, errors = child.communicate()
    with os.fdopen(read) as pipe:
        told = pipe.read()
    if child.returncode or not told:
        lines = [one for one in errors.decode(errors="replace").splitlines() if one.strip() and "temp alloc" not in one]
        reason = lines[-1] if lines else f"exit code {child.returncode}"
        raise ExportError(f"{pte.name}: the LLM runner failed: {reason}", "see what the file is with 'hubpub inspect'")
    return Reply(text=answer.said, **json.loads(told))


class _Answer:
    """The runner's output without what is not said: special tokens, and the statistics it prints at the end."""

    def __init__(self, specials: list[str]) -> None:
        self.said = ""
        self._marks = [*specials, _STATISTICS]
        self._held = ""
        # Bytes of a character may come one token at a time, and an answer may end in the middle of one.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._over = False

    def take(self, piece: bytes) -> str:
        """The text that can be shown after `piece`; what may be the beginning of a mark is held back."""
        if self._over:
            return ""
        self._held += self._decoder.decode(piece)
        for mark in self._marks:
            if mark == _STATISTICS and mark in self._held:
                self._held, self._over = self._held[: self._held.index(mark)], True
            self._held = self._held.replace(mark, "")
        kept = max((n for mark in self._marks for n in range(1, len(mark)) if self._held.endswith(mark[:n])), default=0)
        if self._over:
            kept = 0
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self.said += shown
        return shown


_STATISTICS = "\nPyTorchObserver {"


def _specials(tokenizer: Path) -> list[str]:
    try:
        added = json.loads(tokenizer.read_text("utf-8")).get("added_tokens", [])
        return [str(token["content"]) for token in added if token.get("special") and token["content"].strip()]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise SourceError(f"{tokenizer} is not a tokenizer.json", "pass the one published with the file") from None


def _tokenizer(pte: Path, given: Path | None) -> Path:
    place = given or pte.parent
    path = place / "tokenizer.json" if place.is_dir() else place
    if not path.is_file():
        raise SourceError(f"no tokenizer at {path}", "pass --tokenizer with the tokenizer.json published with the file")
    return path


def _turn(tokenizer: Path, prompt: str) -> str:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer.parent, local_files_only=True)
    if not loaded.chat_template:
        raise UsageError(f"{tokenizer.parent} has no chat template", "leave --chat out: this is a base model")
    turns = [{"role": "user", "content": prompt}]
    return str(loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _answer(arguments: dict[str, Any]) -> dict[str, Any]:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    from hubpub.measure.runtime import register_kernels

    register_kernels()
    runner = TextLLMRunner(arguments["pte"], arguments["tokenizer"])
    config = GenerationConfig(
        echo=False,
        temperature=arguments["temperature"],
        num_bos=arguments["bos"],
        max_new_tokens=arguments["new_tokens"],
    )
    stats: list[Any] = []
    runner.generate(arguments["prompt"], config, None, stats.append)
    last = stats[-1]
    prefill = (last.prompt_eval_end_ms - last.inference_start_ms) / 1000
    decode = (last.inference_end_ms - last.prompt_eval_end_ms) / 1000
    return {
        "prompt_tokens": int(last.num_prompt_tokens),
        "tokens": int(last.num_generated_tokens),
        "load_seconds": round((last.model_load_end_ms - last.model_load_start_ms) / 1000, 3),
        "first_token_seconds": round((last.first_token_ms - last.inference_start_ms) / 1000, 3),
        "prefill_tokens_per_second": round(last.num_prompt_tokens / prefill, 2) if prefill > 0 else 0.0,
        "decode_tokens_per_second": round(last.num_generated_tokens / decode, 2) if decode > 0 else 0.0,
    }


if __name__ == "__main__":
    result = _answer(json.loads(sys.argv[1]))
    with os.fdopen(int(sys.argv[2]), "w") as out:
        json.dump(result, out)
