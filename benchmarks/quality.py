"""Every recipe on real weights: quality, gates and how long validation takes, beside llama.cpp's types.

    python benchmarks/quality.py CHECKPOINT --work DIR [--recipes bf16 8da4w ...] [--tokens N] [--text FILE]
        [--tuned FILE ...] [--llama DIR]

CHECKPOINT is a folder with config.json and safetensors, e.g. SmolLM2-135M-Instruct or gemma-3-270m. Files are exported
to DIR once and kept. --text is another text than the passage that gates are measured on. --tuned takes JSON with a
recipe and the layers that have int8 weights in it, as `hubpub tune --dry-run --json` prints it; the row is called as
that file. With --llama, that DIR holds llama.cpp's `bin` and `src` (its converter): the same weights become Q8_0, Q4_0
and Q4_K_M, compared over the same text in windows of 512 tokens of which the second half counts, as llama-perplexity
does it. Prints one line per file and writes quality.json, or quality-TEXT.json, to the folder of --work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hubpub import data
from hubpub.config import Project, Recipe
from hubpub.export.cell import export
from hubpub.gates import evaluate_gates
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import measure
from hubpub.model.checkpoint import Checkpoint
from hubpub.workspace import integers_of

TYPES = ("Q8_0", "Q4_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", default=["bf16", "int8", "8da8w", "8da4w", "8da4w-small"])
    parser.add_argument("--tokens", type=int, default=2047)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tuned", type=Path, nargs="*", default=[])
    parser.add_argument("--llama", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.open(given.checkpoint)
    recipes = dict(Project.find().recipes)
    for file in given.tuned:
        said = json.loads(file.read_text("utf-8"))
        recipes[file.stem] = Recipe.model_validate(
            {**recipes[said["recipe"]].model_dump(), "name": file.stem, "tuned": said["tuned"]}
        )
    text = given.text.read_text("utf-8") if given.text else data.passage()
    path = given.work / (f"quality-{given.text.stem}.json" if given.text else "quality.json")
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in [*given.recipes, *(file.stem for file in given.tuned)]:
        rows[name] = ours(checkpoint, recipes[name], given.work, given.tokens, text)
        path.write_text(json.dumps(rows, indent=1))
        show(name, rows[name])
    if given.llama:
        for name, row in llama(given.checkpoint, given.llama, given.work, path.stem, text).items():
            rows[name] = row
            show(name, row)
    path.write_text(json.dumps(rows, indent=1))


def ours(checkpoint: Checkpoint, recipe: Recipe, work: Path, tokens: int, text: str) -> dict[str, Any]:
    pte = work / f"{checkpoint.folder.name}-{recipe.name}.pte"
    if not pte.exists():
        export(checkpoint, recipe, pte, context=2048, prefill=128, progress=lambda *_: None, kept=integers_of(pte))
    spent: dict[str, float] = {}
    last, began = "load", time.monotonic()

    def progress(stage: str, _: float) -> None:
        nonlocal last, began
        spent[last] = spent.get(last, 0.0) + time.monotonic() - began
        last, began = stage, time.monotonic()

    started = time.monotonic()
    texts = text, [prompt.text for prompt in data.prompts()]
    parity = measure(pte, checkpoint, recipe, tokens, work / "references", progress, texts=texts)
    progress("", 1.0)
    program = inspect(pte)
    vocabulary = int(str(program.metadata["get_vocab_size"]))
    gates = evaluate_gates(recipe.gates, parity, program, vocabulary)
    return {
        "bytes": pte.stat().st_size,
        "seconds": round(time.monotonic() - started, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in spent.items() if seconds >= 0.5},
        "parity": parity.model_dump(mode="json"),
        "gates": [gate.model_dump(mode="json") for gate in gates],
    }


def llama(checkpoint: Path, tools: Path, work: Path, name: str, text: str) -> dict[str, dict[str, Any]]:
    read, full, base = work / f"{name}.txt", work / "bf16.gguf", work / f"{name}.kld"
    read.write_text(text, "utf-8")

    def tool(name: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [tools / "bin" / name, *arguments], capture_output=True, text=True, errors="replace", check=True
        )
        return done.stdout + done.stderr

    if not full.exists():
        converter = tools / "src" / "convert_hf_to_gguf.py"
        subprocess.run([sys.executable, converter, checkpoint, "--outtype", "bf16", "--outfile", full], check=True)
    if not base.exists():
        tool("llama-perplexity", "-m", full, "-f", read, "-c", "512", "-t", "2", "--kl-divergence-base", base)
    found = {}
    for kind in TYPES:
        made = work / f"{kind}.gguf"
        if not made.exists():
            tool("llama-quantize", full, made, kind, "2")
        said = tool(
            "llama-perplexity", "-m", made, "-c", "512", "-t", "2", "--kl-divergence", "--kl-divergence-base", base
        )
        kl, top = re.search(r"Mean\s+KLD:\s+(\S+)", said), re.search(r"Same top p:\s+(\S+)", said)
        assert kl is not None
        assert top is not None
        found[kind] = {"bytes": made.stat().st_size, "kl_mean": float(kl[1]), "top1": float(top[1]) / 100}
    return found


def show(name: str, row: dict[str, Any]) -> None:
    if "parity" not in row:
        print(f"{name}: {row['bytes'] / 1e6:.0f} MB, KL {row['kl_mean']:.4f}, top-1 {row['top1']:.1%}", flush=True)
        return
    logits, lowering, greedy = (row["parity"][key] for key in ("logits", "lowering", "greedy"))
    print(
        f"{name}: {row['bytes'] / 1e6:.0f} MB, {logits['tokens']} tokens, KL {logits['kl_mean']:.5f} (baseline "
        f"{logits['baseline_kl_mean']:.5f}), top-1 {logits['top1_agreement']:.1%} "
        f"({logits['baseline_top1_agreement']:.1%}), kernels {lowering['kl_mean']:.6f} (noise "
        f"{lowering['noise_kl_mean']:.6f}), in pieces {logits['prefill_kl_mean']:.6f} ({logits['prefill_top1']:.0%}), "
        f"first token {greedy['first_token']:.0%} ({greedy['first_token_or_tie']:.0%} with ties), "
        f"{row['seconds']} s {row['stages']}",
        flush=True,
    )
    for gate in row["gates"]:
        if not gate["passed"]:
            print(f"   FAILED {gate['name']}: {gate['measured']:g}, {gate['kind']} {gate['limit']:g}", flush=True)


if __name__ == "__main__":
    main()
