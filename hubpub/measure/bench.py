"""Speed and memory of a program in a process of its own, and the LLM runner's answer to one prompt.

A fresh process so that peak memory is the program's alone, and so that a crash of native code is an error message.
Speed is what the LLM runner itself counts; a program without a tokenizer is timed through our own decode loop,
and one over a fixed window by its one forward call.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from hubpub import data
from hubpub.errors import ExportError, UsageError
from hubpub.facts import MEASURING, DeviceSpeed, FileFact, Memory, Resident, RunnerCheck, Speed
from hubpub.machine import (
    check_runner_loads,
    emulated,
    export_environment,
    host,
    peak_resident_bytes,
    resident,
    versions,
)
from hubpub.measure.runtime import Session, native_log, register_kernels
from hubpub.model.reader import Reader

PREFILL, DECODE = 128, 32
# How long an answer is after which memory is looked at.
GENERATED = 256
RUNS = 5
# No further run is begun after this many seconds: a slow program is timed less often.
SECONDS = 60.0
# What a process loads before others are forked from it: nothing that computes, so that it has one thread.
PRELOADED = ["hubpub.measure.bench", "torch", "executorch.extension.llm.runner", "tokenizers"]
# The share of the processor that others may use while a program is timed.
BUSY = 0.1


@dataclass(frozen=True)
class Answer:
    """What the LLM runner said: the text it streamed, how many tokens that was and how many the prompt."""

    text: str
    tokens: int
    prompt_tokens: int


def speed(pte: Path, context: int, tokenizer: Path | None = None, *, runs: int = RUNS, fresh: bool = True) -> Speed:
    """Load `pte` in a process of its own, prefill and decode `runs` times, and report medians, ranges and peak memory.

    `context` is the exported one, in tokens; see `_child` for `fresh`. Raises ExportError where the runtime fails.
    """
    prefill = max(1, min(PREFILL, context - DECODE - 1))
    arguments = {
        "pte": str(pte),
        "tokenizer": str(tokenizer) if tokenizer else None,
        "prefill": prefill,
        "decode": DECODE,
        # The runner may make a few more tokens of the prompt than it was cut to.
        "generate": max(1, min(GENERATED, context - prefill - 8)),
        "runs": runs,
    }
    return Speed(
        host=host(),
        # Not the whole release: what a vendor adds to it says whose machine this is.
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        runtime=f"executorch {versions(('executorch',))['executorch']}",
        measuring=MEASURING,
        **_child("speed", arguments, fresh=fresh),
    )


def ask_runner(pte: Path, tokenizer: Path, prompt: str, new_tokens: int, *, num_bos: int) -> Answer:
    """Greedy answer of ExecuTorch's own TextLLMRunner to `prompt`, before which it puts <bos> `num_bos` times."""
    arguments = {"pte": str(pte), "tokenizer": str(tokenizer), "prompt": prompt, "new_tokens": new_tokens}
    return Answer(**_child("runner", {**arguments, "num_bos": num_bos}, fresh=False))


def check_runner(answer: Answer, prompt: str, ours: list[int], stop: list[int], reader: Reader) -> RunnerCheck:
    """Compare the runner's text with the decode loop's tokens `ours`, token for token through the tokenizer."""
    kept = [token for token in ours if token not in stop]
    wanted = reader.decode(kept)
    # The runner streams the closing token of a turn too, as text.
    said = answer.text
    for token in stop:
        said = said.removesuffix(reader.decode([token]))
    return RunnerCheck(
        prompt=prompt,
        text=said,
        tokens=answer.tokens,
        matches_decode_loop=said.strip() == wanted.strip(),
        prompt_tokens=answer.prompt_tokens,
        prompt_tokens_original=len(reader.encode(prompt)),
    )


def read_stats(path: Path, device: str) -> DeviceSpeed:
    """The statistics of ExecuTorch's C++ LLM runner, as its own JSON: the file may be that, a list, or the whole log.

    A log holds a line "PyTorchObserver {...}" for each run. Raises UsageError where there are none, or where their
    times make no sense.
    """
    if not device.strip():
        raise UsageError("the device has no name", 'say what it was measured on, e.g. --device "Pixel 9"')
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "give the file the runner's output is in"
        ) from None
    hint = "give the log of ExecuTorch's llama_main, or the JSON behind its 'PyTorchObserver'"
    found = [_timed(one, path, hint) for one in statistics(data.decode("utf-8", "replace"))]
    if not found:
        raise UsageError(f"{path} holds no statistics of the LLM runner", hint)
    file = FileFact(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    columns = {key: median([one[key] for one in found]) for key in found[0]}
    return DeviceSpeed(
        device=device.strip(),
        stats=file,
        runs=len(found),
        load_seconds=round(columns["load"], 3),
        first_token_seconds=round(columns["first"], 3),
        prefill_tokens=int(columns["prompt"]),
        prefill_tokens_per_second=round(columns["prefill"], 2),
        decode_tokens=int(columns["generated"]),
        decode_tokens_per_second=round(columns["decode"], 2),
    )


def statistics(text: str) -> list[dict[str, Any]]:
    """What the runner printed of each run in `text`: its JSON, a list of them, or a whole log."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = []
        for line in text.splitlines():
            start = line.find("{", line.find("PyTorchObserver"))
            if "PyTorchObserver" in line and start >= 0:
                try:
                    whole.append(json.loads(line[start:]))
                except ValueError:
                    continue
    found = whole if isinstance(whole, list) else [whole]
    return [one for one in found if isinstance(one, dict)]


def _timed(stats: dict[str, Any], path: Path, hint: str) -> dict[str, float]:
    """Seconds and tokens per second of one run, computed as the runner's own report does."""
    try:
        unit = float(stats.get("SCALING_FACTOR_UNITS_PER_SECOND", 1000))
        prompt, generated = int(stats["prompt_tokens"]), int(stats["generated_tokens"])
        begin, evaluated = float(stats["inference_start_ms"]), float(stats["prompt_eval_end_ms"])
        spans = {
            "load": (float(stats["model_load_end_ms"]) - float(stats["model_load_start_ms"])) / unit,
            "first": (float(stats["first_token_ms"]) - begin) / unit,
            "prompt": (evaluated - begin) / unit,
            "decode": (float(stats["inference_end_ms"]) - evaluated) / unit,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not the statistics of the LLM runner: {error!r}", hint) from None
    if prompt < 1 or generated < 1 or spans["load"] < 0 or min(spans["prompt"], spans["decode"], spans["first"]) <= 0:
        raise UsageError(f"{path}: {prompt} and {generated} tokens in {spans} seconds cannot be", hint)
    return {
        "load": spans["load"],
        "first": spans["first"],
        "prompt": prompt,
        "generated": generated,
        "prefill": prompt / spans["prompt"],
        "decode": generated / spans["decode"],
    }


def _child(task: str, arguments: dict[str, Any], *, fresh: bool = True) -> dict[str, Any]:
    """What `task` finds in a process of its own. Raises ExportError where that ends without an answer,
    ToolchainError where the LLM runner lacks a library.

    One that is not `fresh` is forked from a process that has loaded the runtime, where the system allows that and one
    cell is made after the other: that saves two thirds of its time.
    """
    if arguments["tokenizer"]:
        check_runner_loads()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        log.touch()
        # Only a worker asks more than once; and a script that is run by itself may not be one that can be forked.
        forks = sys.platform == "linux" and multiprocessing.parent_process() is not None
        start = _forked if forks and not fresh else _started
        code = start(task, json.dumps(arguments), out, log)
        if code or not out.exists():
            lines = [line for line in log.read_text(errors="replace").splitlines() if "No temp allocator" not in line]
            tail = lines[-1] if lines else f"exit code {code}"
            raise ExportError(f"{Path(arguments['pte']).name}: {task} failed in the runtime: {tail}")
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def _started(task: str, arguments: str, out: Path, log: Path) -> int:
    command = [sys.executable, "-m", "hubpub.measure.bench", task, arguments, str(out)]
    with log.open("wb") as said:
        done = subprocess.run(command, stdout=said, stderr=said, check=False, env=_environment(task))
    return done.returncode


def _forked(task: str, arguments: str, out: Path, log: Path) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_answer, args=(task, arguments, str(out), str(log), _environment(task)))
    # What libraries say while they are loaded is nobody's concern.
    with native_log():
        process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _answer(task: str, arguments: str, out: str, log: str, environment: dict[str, str]) -> None:
    """`_main`, in a forked process: with the environment of whoever asks, and every word into `log`."""
    with Path(log).open("wb") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    _main(task, arguments, out)


def _environment(task: str) -> dict[str, str]:
    """A program is timed with all the processor has, whatever it was exported with. An answer is not: it is held
    against one made here, and sums over wider vectors are other sums."""
    left_out = export_environment() if task == "speed" else {}
    return {name: value for name, value in os.environ.items() if name not in left_out}


@dataclass(frozen=True)
class _Timing:
    """One run: tokens read and seconds until the first new one, tokens made and seconds for them."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


@dataclass(frozen=True)
class _Driver:
    """A loaded program: `once` is a timed run, `write` reads the prompt, makes so many tokens, and tells how many."""

    once: Callable[[], _Timing]
    write: Callable[[int], int]


class _Footprint:
    """What this process has in memory beyond what it had when this was made; nothing where the system does not say."""

    def __init__(self) -> None:
        self._before = resident()
        self.beside: Resident | None = None
        self.loaded: Resident | None = None

    def now(self) -> Resident | None:
        found = resident()
        if found is None or self._before is None:
            return None
        anonymous, mapped = (after - before for after, before in zip(found, self._before, strict=True))
        return Resident(anonymous=max(0, anonymous), mapped=max(0, mapped))

    def note_beside(self) -> None:
        """The tokenizer is loaded, and the program is not."""
        self.beside = self.now()

    def note_loaded(self) -> None:
        """The program is loaded, and has run once for a word: weights are packed at the latest then."""
        self.loaded = self.now()

    def of(self, driver: _Driver, generate: int) -> Memory | None:
        driver.write(1)
        prefilled = self.now()
        made = driver.write(generate)
        generated = self.now()
        if self.loaded is None or prefilled is None or generated is None:
            return None
        return Memory(
            loaded=self.loaded,
            prefilled=prefilled,
            generated=generated,
            generated_tokens=made,
            beside=self.beside,
        )


def _speed(pte: str, tokenizer: str | None, prefill: int, decode: int, generate: int, runs: int) -> dict[str, Any]:
    import torch

    register_kernels()
    if tokenizer:
        import executorch.extension.llm.runner  # noqa: F401  (its memory is not the program's)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    footprint = _Footprint()
    through, driver = "LLM runner", _runner(pte, tokenizer, prefill, decode, footprint) if tokenizer else None
    if driver is None:
        session = Session(Path(pte))
        through = "window" if session.window else "decode loop"
        driver = _window(session, footprint) if session.window else _loop(session, prefill, decode, footprint)
    ready = time.perf_counter()
    first = driver.once()  # The first run of a size touches pages.
    # A slow program writes as much as a timed run would take.
    memory = footprint.of(driver, min(generate, max(1, int(SECONDS * first.decode_tokens / first.decode_seconds))))
    timings: list[_Timing] = []
    watch, began = _Watch(), time.perf_counter()
    while len(timings) < runs and (not timings or time.perf_counter() - began < SECONDS):
        timings.append(driver.once())
    reason = watch.reason()
    reading = sorted(one.prefill_tokens / one.prefill_seconds for one in timings)
    making = sorted(one.decode_tokens / one.decode_seconds for one in timings)
    return {
        "threads": torch.get_num_threads(),
        "load_seconds": round(ready - started, 3),
        "prefill_tokens": timings[0].prefill_tokens,
        "prefill_tokens_per_second": round(median(reading), 2),
        "prefill_range": (round(reading[0], 2), round(reading[-1], 2)),
        "decode_tokens": timings[0].decode_tokens,
        "decode_tokens_per_second": round(median(making), 2),
        "decode_range": (round(making[0], 2), round(making[-1], 2)),
        "first_token_seconds": round(median(one.prefill_seconds for one in timings), 4),
        "memory": memory.model_dump(mode="json") if memory else None,
        "peak_resident_bytes": max(0, peak_resident_bytes() - before),
        "runs": len(timings),
        "through": through,
        "representative": not reason,
        "reason": reason,
    }


def _runner(pte: str, tokenizer: str, prefill: int, decode: int, footprint: _Footprint) -> _Driver | None:
    """The LLM runner; None where the model ends its answer at once, so that nothing can be timed."""
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from tokenizers import Tokenizer

    # A text cut after so many tokens: <bos> is put before it by the runner.
    ids = Tokenizer.from_file(tokenizer).encode(data.passage(), add_special_tokens=False).ids[: max(1, prefill - 1)]
    prompt = Tokenizer.from_file(tokenizer).decode(ids)
    runner = TextLLMRunner(pte, tokenizer)
    footprint.note_beside()

    def run(text: str, new_tokens: int) -> Any:
        stats: list[Any] = []
        runner.reset()
        config = GenerationConfig(echo=False, temperature=0.0, num_bos=1, max_new_tokens=new_tokens)
        # Without a callback for text: half a character is no string, and raises on its way to one.
        runner.generate(text, config, None, stats.append)
        return stats[-1]

    run("a", 2)
    footprint.note_loaded()

    def once() -> _Timing:
        # The runner's clock counts milliseconds: short spans are taken over several turns.
        first = time.perf_counter()
        turns: list[Any] = []
        while not turns or time.perf_counter() - first < 0.2:
            turns.append(run(prompt, decode))
        reading = sum(one.prompt_eval_end_ms - one.inference_start_ms for one in turns)
        making = sum(one.inference_end_ms - one.prompt_eval_end_ms for one in turns)
        count = 1000 * len(turns)
        last = turns[-1]
        return _Timing(
            last.num_prompt_tokens, max(1, reading) / count, last.num_generated_tokens, max(1, making) / count
        )

    def write(new_tokens: int) -> int:
        return int(run(prompt, new_tokens).num_generated_tokens)

    return _Driver(once, write) if write(decode) > 1 else None


def _loop(session: Session, prefill: int, decode: int, footprint: _Footprint) -> _Driver:
    tokens = [7 + i % 97 for i in range(prefill)]
    session.step(tokens[:2], 0)
    footprint.note_loaded()

    def once() -> _Timing:
        begin = time.perf_counter()
        session.step(tokens, 0)
        filled = time.perf_counter()
        for position in range(prefill, prefill + decode):
            session.step([11], position)
        return _Timing(prefill, filled - begin, decode, time.perf_counter() - filled)

    def write(new_tokens: int) -> int:
        session.step(tokens, 0)
        for position in range(prefill, prefill + new_tokens):
            session.step([11], position)
        return new_tokens

    return _Driver(once, write)


def _window(session: Session, footprint: _Footprint) -> _Driver:
    """One forward call: it reads a window, and it is what one new token costs."""
    assert session.window is not None
    window = session.window
    tokens = [7 + i % 97 for i in range(window)]
    session.score(tokens)
    footprint.note_loaded()

    def once() -> _Timing:
        begin = time.perf_counter()
        session.score(tokens)
        seconds = time.perf_counter() - begin
        return _Timing(window, seconds, 1, seconds)

    def write(_: int) -> int:
        session.score(tokens)
        return 1

    return _Driver(once, write)


class _Watch:
    """How much of the processor others use from its making until `reason` is asked."""

    def __init__(self) -> None:
        self.started = self._now()

    def reason(self) -> str:
        """Why what was timed meanwhile is not representative; "" where it is."""
        if emulated():
            return "the processor is emulated"
        busy, ours, clock = (after - before for after, before in zip(self._now(), self.started, strict=True))
        cores = psutil.cpu_count() or 1
        others = max(0.0, busy - ours) / max(clock, 1e-9)
        if others <= BUSY * cores:
            return ""
        return f"other processes used {others:.1f} of {cores} cores meanwhile"

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Time of guests is counted as the user's already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - idle - getattr(times, "steal", 0.0), own.user + own.system, time.perf_counter()


def _ask(pte: str, tokenizer: str, prompt: str, new_tokens: int, num_bos: int) -> dict[str, Any]:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    register_kernels()

    pieces: list[str] = []
    stats: list[Any] = []
    runner = TextLLMRunner(pte, tokenizer)
    config = GenerationConfig(echo=False, temperature=0.0, num_bos=num_bos, max_new_tokens=new_tokens)
    runner.generate(prompt, config, pieces.append, stats.append)
    return {
        "text": "".join(pieces),
        "tokens": int(stats[-1].num_generated_tokens),
        "prompt_tokens": int(stats[-1].num_prompt_tokens),
    }


def _main(task: str, arguments: str, out: str) -> None:
    work: Any = {"speed": _speed, "runner": _ask}[task]
    result = work(**json.loads(arguments))
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
