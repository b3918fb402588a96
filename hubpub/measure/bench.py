"""Speed and memory of a program in a process of its own, and the LLM runner's answer to one prompt.

A fresh process so that peak memory is the program's alone, and so that a crash of native code is an error message.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubpub.errors import ExportError
from hubpub.facts import RunnerCheck, Speed

PREFILL, DECODE = 128, 32


@dataclass(frozen=True)
class Answer:
    """What the LLM runner said: the text it streamed and how many tokens it counted."""

    text: str
    tokens: int


def host() -> str:
    """The processor, cores and system a speed was measured on; nothing that identifies the machine."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def speed(pte: Path, context: int) -> Speed:
    """Load `pte` in a fresh process, prefill and decode, and report times and peak memory."""
    prefill = min(PREFILL, context - DECODE - 1)
    return Speed(host=host(), **_child("speed", {"pte": str(pte), "prefill": prefill, "decode": DECODE}))


def ask_runner(pte: Path, tokenizer: Path, prompt: str, new_tokens: int) -> Answer:
    """Greedy answer of ExecuTorch's own TextLLMRunner to `prompt`, with <bos> put before it by the runner."""
    return Answer(
        **_child("runner", {"pte": str(pte), "tokenizer": str(tokenizer), "prompt": prompt, "new_tokens": new_tokens})
    )


def check_runner(answer: Answer, prompt: str, ours: list[int], stop: list[int], tokenizer: Any) -> RunnerCheck:
    """Compare the runner's text with the decode loop's tokens `ours`, token for token through the tokenizer."""
    kept = [token for token in ours if token not in stop]
    wanted = tokenizer.decode(kept, skip_special_tokens=False)
    # The runner streams the closing token of a turn too, as text.
    said = answer.text
    for token in stop:
        said = said.removesuffix(tokenizer.decode([token], skip_special_tokens=False))
    return RunnerCheck(
        prompt=prompt, text=said, tokens=answer.tokens, matches_decode_loop=said.strip() == wanted.strip()
    )


def _child(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "hubpub.measure.bench", task, json.dumps(arguments), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            lines = [line for line in done.stderr.splitlines() if "No temp allocator" not in line]
            tail = lines[-1] if lines else f"exit code {done.returncode}"
            raise ExportError(f"{Path(arguments['pte']).name}: {task} failed in the runtime: {tail}")
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def _speed(pte: str, prefill: int, decode: int) -> dict[str, Any]:
    import psutil
    import torch

    from hubpub.measure.runtime import Session, register_kernels

    register_kernels()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    session = Session(Path(pte))
    tokens = [7 + i % 97 for i in range(prefill)]
    # The first run packs weights and touches pages; the user waits for that once, as part of loading.
    session.step(tokens[:2], 0)
    ready = time.perf_counter()
    session.step(tokens, 0)
    filled = time.perf_counter()
    for position in range(prefill, prefill + decode):
        session.step([11], position)
    done = time.perf_counter()
    return {
        "threads": torch.get_num_threads(),
        "load_seconds": round(ready - started, 3),
        "prefill_tokens": prefill,
        "prefill_tokens_per_second": round(prefill / (filled - ready), 2),
        "decode_tokens": decode,
        "decode_tokens_per_second": round(decode / (done - filled), 2),
        "peak_resident_bytes": max(0, peak_resident_bytes() - before),
    }


def peak_resident_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    try:
        # getrusage also counts what the parent held when it forked; the kernel's mark of this image does not.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _runner(pte: str, tokenizer: str, prompt: str, new_tokens: int) -> dict[str, Any]:
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    from hubpub.measure.runtime import register_kernels

    register_kernels()

    pieces: list[str] = []
    stats: list[Any] = []
    runner = TextLLMRunner(pte, tokenizer)
    config = GenerationConfig(echo=False, temperature=0.0, num_bos=1, max_new_tokens=new_tokens)
    runner.generate(prompt, config, pieces.append, stats.append)
    return {"text": "".join(pieces), "tokens": int(stats[-1].num_generated_tokens)}


def _main(task: str, arguments: str, out: str) -> None:
    work: Any = {"speed": _speed, "runner": _runner}[task]
    result = work(**json.loads(arguments))
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
