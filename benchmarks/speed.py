"""Tokens per second of exported files, beside what the memory allows and beside the eager original, in one run.

    python benchmarks/speed.py FILE.pte ... FILE.gguf ... [--llama BIN] [--checkpoint DIR] [--profile] [--rounds N]

Every file gets a fresh process, in turns: prefill of 128 tokens, then 32 decode steps, the middle of some rounds. A
decode step reads each weight of the matrix products once: `bound` is how often the memory could do that, from its
bandwidth as measured here. `anon` is the most memory that the system could not take back. `.gguf` files run in the
llama-bench of `--llama`, once more for the time of loading alone. `--checkpoint` adds the eager original in bf16 with
its own cache. `--profile` (Linux, `perf`) prints which kernels the time of decoding goes to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from real_size import watched

from hubpub.measure import xnnpack
from hubpub.measure.pte import opened
from hubpub.measure.runtime import Session

PREFILL, DECODE = 128, 32


def bandwidth() -> float:
    """Bytes per second of reading a block that no cache holds, with all threads; the best of five."""
    block = torch.ones(1 << 28, dtype=torch.float32)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - started)
    return block.nbytes / min(seconds)


def read_by_products(path: Path) -> int:
    """Bytes of the weights that delegates name, each once: a step reads a head that is also the table, too."""
    with opened(path) as (file, plans):
        graphs = [
            xnnpack.read(file.data, *file.blob(location, index))
            for plan in plans
            for backend, location, index in plan.delegates
            if backend == xnnpack.BACKEND
        ]
    return sum({weight.key: weight.bytes for graph in graphs if graph for weight in graph.weights}.values())


def of_file(path: Path) -> dict[str, float]:
    """Seconds to load, tokens per second of prefill and decode of one file, in this process."""
    started = time.perf_counter()
    session = Session(path)
    tokens = [7 + i % 97 for i in range(PREFILL)]
    if session.window is not None:
        session.score(tokens[: session.window])
        loaded = time.perf_counter()
        session.score(tokens[: session.window])
        seconds = time.perf_counter() - loaded
        # A new token costs the whole window.
        return {"load": loaded - started, "prefill": session.window / seconds, "decode": 1 / seconds}
    session.step(tokens[:2], 0)
    loaded = time.perf_counter()
    session.step(tokens, 0)
    filled = time.perf_counter()
    for position in range(PREFILL, PREFILL + DECODE):
        session.step([11], position)
    done = time.perf_counter()
    return {"load": loaded - started, "prefill": PREFILL / (filled - loaded), "decode": DECODE / (done - filled)}


def of_original(folder: Path) -> dict[str, float]:
    """The same of the eager model in bf16."""
    import hubpub

    started = time.perf_counter()
    model = hubpub.load_text_decoder(folder, dtype=torch.bfloat16)
    tokens = torch.tensor([[7 + i % 97 for i in range(PREFILL)]])
    with torch.no_grad():
        model(tokens[:, :2])
        loaded = time.perf_counter()
        cache = model(tokens, use_cache=True).past_key_values
        filled = time.perf_counter()
        steps = 4
        for _ in range(steps):
            model(torch.tensor([[11]]), past_key_values=cache, use_cache=True)
        done = time.perf_counter()
    return {"load": loaded - started, "prefill": PREFILL / (filled - loaded), "decode": steps / (done - filled)}


def in_process(path: Path, llama: Path | None) -> dict[str, float]:
    """`of_file` or `of_original` in a fresh process, or llama.cpp's own benchmark; and its peak of anonymous memory."""
    if path.suffix != ".gguf":
        out, _, anonymous, _ = watched([sys.executable, __file__, str(path), "--child"])
        return {**json.loads(out.splitlines()[-1]), "anonymous": anonymous}
    if llama is None:
        raise SystemExit(f"{path} needs --llama")
    libraries = str(llama)
    bench = [str(llama / "llama-bench"), "-m", str(path), "-t", str(torch.get_num_threads()), "-r", "1", "-o", "json"]
    out, seconds, _, _ = watched([*bench, "-p", "2", "-n", "0", "--no-warmup"], LD_LIBRARY_PATH=libraries)
    load = seconds - 2 / json.loads(out)[0]["avg_ts"]
    out, _, anonymous, _ = watched([*bench, "-p", str(PREFILL), "-n", str(DECODE)], LD_LIBRARY_PATH=libraries)
    speeds = {"decode" if one["n_gen"] else "prefill": one["avg_ts"] for one in json.loads(out)}
    return {"load": load, **speeds, "anonymous": anonymous}


def profile(path: Path) -> list[tuple[str, float]]:
    """Share of the processor samples of decoding by kernel, largest first."""
    perf = shutil.which("perf")
    if perf is None:
        raise SystemExit("--profile needs Linux perf")
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        fifo = Path(folder) / "control"
        os.mkfifo(fifo)
        record = [perf, "record", "-q", "-e", "cpu-clock", "-o", data, "-D", "-1", "--control", f"fifo:{fifo}"]
        command = [*record, sys.executable, __file__, str(path), "--decode-only", str(fifo)]
        subprocess.run(command, check=True, capture_output=True)
        script = [perf, "script", "-i", data, "-F", "ip,sym,dso"]
        lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    counted: Counter[str] = Counter()
    for line in lines:
        symbol, library = line.split(None, 1)[1].rsplit(" (", 1)
        library = Path(library.rstrip(")")).name
        if library.startswith("_portable_lib"):
            # XNNPACK's kernels carry no names in the published runtime; the other kernels do.
            counted["XNNPACK products" if symbol == "[unknown]" else symbol.rpartition("::")[2]] += 1
        else:
            counted[library] += 1
    return [(name, count / len(lines)) for name, count in counted.most_common(12)]


def decode_only(path: Path, fifo: Path) -> None:
    session = Session(path)
    session.step([7] * 16, 0)
    fifo.write_text("enable\n")
    for position in range(16, 16 + DECODE):
        session.step([11], position)
    fifo.write_text("disable\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="append the figures to this JSON lines file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--decode-only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode_only:
        decode_only(arguments.files[0], arguments.decode_only)
        return
    if arguments.child:
        path = arguments.files[0]
        print(json.dumps(of_original(path) if path.is_dir() else of_file(path)))
        return
    speed = bandwidth()
    print(f"memory: {speed / 1e9:.1f} GB/s with {torch.get_num_threads()} threads")
    paths = [*arguments.files, *([arguments.checkpoint] if arguments.checkpoint else [])]
    rounds: dict[Path, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(arguments.rounds):
        for path in paths:
            rounds[path].append(in_process(path, arguments.llama))
    print(
        f"{'file':<34}{'load s':>8}{'prefill/s':>11}{'decode/s':>10}{'anon GB':>9}"
        f"{'weights GB':>12}{'bound/s':>9}{'of bound':>10}"
    )
    for path, found in rounds.items():
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        line: dict[str, Any] = {"file": path.name, **{key: round(value, 2) for key, value in middle.items()}}
        tail = ""
        if path.suffix == ".pte" and (read := read_by_products(path)):
            bound = speed / read
            line |= {"weights_read_bytes": read, "bound": round(bound, 2)}
            tail = f"{read / 1e9:>12.2f}{bound:>9.1f}{middle['decode'] / bound:>10.0%}"
        figures = f"{middle['load']:>8.1f}{middle['prefill']:>11.1f}{middle['decode']:>10.2f}"
        print(f"{path.name:<34}{figures}{middle['anonymous'] / 1e9:>9.2f}{tail}")
        if arguments.record:
            with arguments.record.open("a") as file:
                file.write(json.dumps(line | {"bandwidth": round(speed)}) + "\n")
    programs = [path for path in arguments.files if path.suffix == ".pte"]
    for path in (p for p in programs if arguments.profile and Session(p).longest > DECODE):
        print(f"\n{path.name}, decoding:")
        for name, share in profile(path):
            print(f"  {share:>6.1%}  {name}")


if __name__ == "__main__":
    main()
