"""Talking to a `.pte` through ExecuTorch's own LLM runner, as an app would."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubpub.errors import ExportError, SourceError, UsageError
from hubpub.machine import check_runner_loads
from hubpub.measure.inspect import inspect
from hubpub.measure.pte import identify
from hubpub.measure.runtime import register_kernels
from hubpub.model.families import FAMILIES, family
from hubpub.model.reader import Reader


@dataclass(frozen=True)
class Reply:
    """An answer and its cost: seconds to load and to the first token, tokens in, out, and per second.

    `dropped` is how many earlier exchanges no longer fitted the context and were left out.
    """

    text: str
    prompt_tokens: int
    tokens: int
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    dropped: int = 0


def run(
    pte: Path, prompt: str, *, tokenizer: Path | None, new_tokens: int, temperature: float, chat: bool, stream: bool
) -> Reply:
    """Answer `prompt` with the file at `pte`; the text goes to stdout as it comes where `stream` is set.

    `tokenizer` is a tokenizer.json or a folder with one (default: beside the file). With `chat` the prompt becomes a
    user's turn of the chat template found there. Raises SourceError where no tokenizer is found, UsageError where a
    chat template is asked for and there is none, ExportError where the runner fails.
    """
    if chat:
        with Conversation(pte, tokenizer=tokenizer, temperature=temperature) as conversation:
            return conversation.say(prompt, new_tokens, stream=stream)
    with _Process(pte, tokenizer_beside(pte, tokenizer), temperature) as process:
        reader = _reader(process.tokenizer)
        if not prompt and not reader.bos:
            raise UsageError("the prompt is empty", "say something: this model puts no token before a text")
        return process.generate(reader.written_bos + prompt, reader.num_bos, new_tokens, stream=stream)


class Conversation:
    """A chat with the file at `pte`: what was said stays in its cache, and only what is new is read.

    What is read is what the chat template makes of the whole conversation, so that a template that writes earlier
    turns in another way is followed too; then the cache is filled anew. When the context is full, the oldest exchanges
    are left out. Raises what `run` raises.
    """

    def __init__(
        self, pte: Path, *, tokenizer: Path | None = None, temperature: float = 0.0, system: str | None = None
    ) -> None:
        found = tokenizer_beside(pte, tokenizer)
        # The runner and the tokenizer each take seconds to be imported: side by side.
        self._process = _Process(pte, found, temperature)
        try:
            self._reader = _reader(found)
            if not self._reader.tokenizer.chat_template:
                raise UsageError(f"{found.parent} has no chat template", "leave --chat out: this is a base model")
            self._context = inspect(pte).context or 128
        except BaseException:
            self._process.close()
            raise
        self._system = [{"role": "system", "content": system}] if system else []
        self.reset()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def reset(self) -> None:
        """Forget what was said."""
        self._said: list[dict[str, str]] = []
        self._read, self._used = "", 0

    def say(self, message: str, new_tokens: int, *, stream: bool) -> Reply:
        """The answer to `message`. Raises UsageError where it does not fit the context even alone."""
        asked = [*self._said, {"role": "user", "content": message}]
        dropped = 0
        while True:
            text = self._written(asked)
            goes_on = bool(self._read) and not dropped and text.startswith(self._read)
            new = text[len(self._read) :] if goes_on else text
            needed = self._tokens(new) + (self._used if goes_on else len(self._reader.bos))
            # Room for an answer, as long as it was asked for or a quarter of the context.
            if needed + min(new_tokens, self._context // 4) <= self._context:
                break
            if len(asked) == 1:
                raise UsageError(
                    f"the message has {needed} tokens, and the context holds {self._context}", "say it in fewer words"
                )
            asked = asked[2:]
            dropped += 1
        room = self._context - needed
        first, bos = ("", 0) if goes_on else (self._reader.written_bos, self._reader.num_bos)
        reply = self._process.generate(first + new, bos, min(new_tokens, room), stream=stream, reset=not goes_on)
        self._said = [*asked, {"role": "assistant", "content": reply.text}]
        self._read = text + reply.text
        self._used = needed + reply.tokens
        return replace(reply, dropped=dropped)

    def _written(self, messages: list[dict[str, str]]) -> str:
        try:
            text = self._reader.tokenizer.apply_chat_template(
                [*self._system, *messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template raises what it likes
            raise UsageError(f"the chat template refuses this conversation: {error}", "leave --system out") from None
        return str(text).removeprefix(self._reader.bos_text)

    def _tokens(self, text: str) -> int:
        return len(self._reader.tokenizer.encode(text, add_special_tokens=False))


class _Process:
    """ExecuTorch's LLM runner in a process of its own.

    The runner prints what it says by itself, and a crash of native code must not take this process along.
    """

    def __init__(self, pte: Path, tokenizer: Path, temperature: float) -> None:
        check_runner_loads()
        self.pte, self.tokenizer = pte, tokenizer
        self._specials = _specials(tokenizer)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._figures, write = os.pipe()
        arguments = {"pte": str(pte), "tokenizer": str(tokenizer), "temperature": temperature, "figures": write}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hubpub.measure.chat", json.dumps(arguments)],
            pass_fds=(write,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        os.close(write)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; it holds nothing that would be lost."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._errors):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        os.close(self._figures)

    def generate(self, prompt: str, num_bos: int, new_tokens: int, *, stream: bool, reset: bool = False) -> Reply:
        """The answer to `prompt`, which follows what the cache holds unless `reset`. Raises ExportError."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        asked = {"prompt": prompt, "num_bos": num_bos, "new_tokens": new_tokens, "reset": reset}
        answer = _Answer(self._specials)
        try:
            self._child.stdin.write(json.dumps(asked).encode() + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise self._failure() from None
        said = self._child.stdout.fileno()
        figures = b""
        while not figures.endswith(b"\n"):
            ready, _, _ = select.select([said, self._figures], [], [])
            # Figures come last: what was said until then is read first.
            if said in ready and (piece := os.read(said, 1 << 16)):
                text = answer.take(piece)
                if stream:
                    print(text, end="", flush=True)
            elif self._figures in ready:
                if not (piece := os.read(self._figures, 1 << 16)):
                    raise self._failure()
                figures += piece
        return Reply(text=answer.said, **json.loads(figures))

    def _failure(self) -> ExportError:
        code = self._child.wait()
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace").splitlines()
        lines = [one for one in errors if one.strip() and "temp alloc" not in one]
        reason = lines[-1] if lines else f"exit code {code}"
        return ExportError(
            f"{self.pte.name}: the LLM runner failed: {reason}", "see what the file is with 'hubpub inspect'"
        )


def reader_beside(pte: Path, given: Path | None) -> Reader:
    """What encodes texts for the file at `pte`: see `tokenizer_beside`."""
    return _reader(tokenizer_beside(pte, given))


def _reader(tokenizer: Path) -> Reader:
    return Reader(tokenizer.parent, _wants_bos(tokenizer.parent))


def _wants_bos(folder: Path) -> bool | None:
    """What the config.json beside a tokenizer says of the first token: a published one, or that of a checkpoint."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if "num_bos" in config:
            return bool(config["num_bos"])
        architectures = config.get("architectures") or ()
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return next((one.begins_with_bos for one in map(family, FAMILIES) if one.architecture in architectures), None)


class _Answer:
    """The runner's output without what is not said: special tokens, and the statistics it prints at the end."""

    def __init__(self, specials: list[str]) -> None:
        self.said = ""
        # At a token that ends a text the runner prints a line break of its own before them.
        self._marks = [*specials, f"\n{_STATISTICS}", _STATISTICS]
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
            if mark.endswith(_STATISTICS) and mark in self._held:
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


def tokenizer_beside(pte: Path, given: Path | None) -> Path:
    """The tokenizer.json for the file at `pte`: `given`, or in the folder `given` (default: that of the file).

    Raises SourceError where there is none, or no such file, or `pte` is no program.
    """
    if not pte.exists():
        raise SourceError(f"{pte} does not exist", "give the path of a .pte, or a repo as OWNER/NAME")
    identify(pte)
    place = given or pte.parent
    path = place / "tokenizer.json" if place.is_dir() else place
    if not path.is_file():
        raise SourceError(f"no tokenizer at {path}", "pass --tokenizer with the tokenizer.json published with the file")
    return path


def _serve(pte: str, tokenizer: str, temperature: float, figures: int) -> None:
    """Answer requests, one JSON object a line on stdin: the text to stdout, then its cost as a line to `figures`."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    register_kernels()
    runner = TextLLMRunner(pte, tokenizer)
    with os.fdopen(figures, "w") as out:
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["reset"]:
                runner.reset()
            config = GenerationConfig(
                echo=False, temperature=temperature, num_bos=asked["num_bos"], max_new_tokens=asked["new_tokens"]
            )
            stats: list[Any] = []
            runner.generate(asked["prompt"], config, None, stats.append)
            ctypes.CDLL(None).fflush(None)
            last = stats[-1]
            prefill = (last.prompt_eval_end_ms - last.inference_start_ms) / 1000
            decode = (last.inference_end_ms - last.prompt_eval_end_ms) / 1000
            cost = {
                "prompt_tokens": int(last.num_prompt_tokens),
                "tokens": int(last.num_generated_tokens),
                "load_seconds": round((last.model_load_end_ms - last.model_load_start_ms) / 1000, 3),
                "first_token_seconds": round((last.first_token_ms - last.inference_start_ms) / 1000, 3),
                "prefill_tokens_per_second": round(last.num_prompt_tokens / prefill, 2) if prefill > 0 else 0.0,
                "decode_tokens_per_second": round(last.num_generated_tokens / decode, 2) if decode > 0 else 0.0,
            }
            print(json.dumps(cost), file=out, flush=True)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
