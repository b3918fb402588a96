"""Programs of real weights that are broken on purpose, and the gates that catch each.

    python benchmarks/planted_faults.py CHECKPOINT PTE --recipe 8da4w [--tokens N] [--work DIR] [--only NAME ...]

PTE was exported from CHECKPOINT by that recipe, and has the integers of its calibration beside it (as quality.py leaves
it). A damaged weight is planted in a copy of the file, where the runtime will find it; a decoder that was built wrongly
(rotary base, window), and ends of a text, on the other side: the same weights under a config that differs. Prints one
line per fault and writes planted.json to the folder of --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from hubpub import data
from hubpub.config import Project, Recipe
from hubpub.gates import evaluate_gates
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import compare_to_reference
from hubpub.measure.pte import opened
from hubpub.measure.runtime import Session
from hubpub.model.checkpoint import Checkpoint
from hubpub.workspace import integers_of

Change = Callable[[bytearray, dict[str, tuple[int, int]], int], None]
LAYER = "model.layers.7"


def zeroed(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    """All of one matrix; in integers packed by two, 8 is zero."""
    start, end = at[f"{LAYER}.mlp.up_proj.values"]
    packed = at[f"{LAYER}.mlp.up_proj.scales"][1] - at[f"{LAYER}.mlp.up_proj.scales"][0] > (end - start) // 64
    file[start:end] = (b"\x88" if packed else b"\0") * (end - start)


def transposed(file: bytearray, at: dict[str, tuple[int, int]], width: int) -> None:
    start, end = at[f"{LAYER}.mlp.gate_proj.values"]
    matrix = torch.frombuffer(file[start:end], dtype=torch.uint8)
    file[start:end] = matrix.reshape(-1, width // 2).T.contiguous().numpy().tobytes()


def _scaled(file: bytearray, start: int, end: int, bfloat16: bool) -> None:
    values = torch.frombuffer(file[start:end], dtype=torch.bfloat16 if bfloat16 else torch.float32)
    file[start:end] = (values * 2).view(torch.uint8).numpy().tobytes()


def scales(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    _scaled(file, *at[f"{LAYER}.mlp.down_proj.scales"], _grouped(at, f"{LAYER}.mlp.down_proj"))


def row_scale(file: bytearray, at: dict[str, tuple[int, int]], width: int) -> None:
    start, end = at[f"{LAYER}.mlp.down_proj.scales"]
    row = (end - start) // width
    _scaled(file, start + 3 * row, start + 4 * row, _grouped(at, f"{LAYER}.mlp.down_proj"))


def swapped(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    """The queries of two layers, integers and scales."""
    for part in ("values", "scales"):
        a, b = at[f"{LAYER}.self_attn.q_proj.{part}"], at[f"model.layers.9.self_attn.q_proj.{part}"]
        file[slice(*a)], file[slice(*b)] = file[slice(*b)], file[slice(*a)]


def shifted(file: bytearray, at: dict[str, tuple[int, int]], width: int) -> None:
    """One row of the table, by one place; the head that is tied to it has the same."""
    start = at["lm_head.values"][0] + 1000 * width
    row = file[start : start + width]
    file[start : start + width] = row[1:] + row[:1]


def one_byte(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    file[at[f"{LAYER}.self_attn.o_proj.values"][0] + 77] ^= 0x10


def _grouped(at: dict[str, tuple[int, int]], name: str) -> bool:
    (a, b), (c, d) = at[f"{name}.scales"], at[f"{name}.values"]
    return b - a > (d - c) // 64


WEIGHTS: dict[str, Change] = {
    "a matrix is zero": zeroed,
    "a matrix is transposed": transposed,
    "scales of a matrix doubled": scales,
    "scales of one row doubled": row_scale,
    "queries of two layers swapped": swapped,
    "a row of the table shifted": shifted,
    "one bit of one weight": one_byte,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pte", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--tokens", type=int, default=1023)
    parser.add_argument("--work", type=Path, default=Path(".hubpub"))
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    recipe = Project.find().recipes[given.recipe]
    given.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        for name, source, pte in planted(given.checkpoint, given.pte, Path(folder)):
            if given.only and name not in given.only:
                continue
            rows[name] = judged(source, pte, recipe, given.tokens, given.work / "references" / source.name)
            shown = ", ".join(f"{gate} {measured:g} ({limit:g})" for gate, measured, limit in rows[name])
            print(f"{name}: {shown or 'passes all gates'}", flush=True)
    (given.work / "planted.json").write_text(json.dumps(rows, indent=1))


def planted(checkpoint: Path, pte: Path, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Each fault by name, with the checkpoint and the file to compare; the first is none."""
    yield "nothing", checkpoint, pte
    with opened(pte) as (file, _):
        at = {name: file.segments[index] for name, index in file.named.items()}
    config = json.loads((checkpoint / "config.json").read_text())
    wrong = folder / "wrong.pte"
    integers = integers_of(pte)
    if integers.exists():
        integers_of(wrong).symlink_to(integers.resolve())
    for name, change in WEIGHTS.items():
        data_ = bytearray(pte.read_bytes())
        change(data_, at, config["hidden_size"])
        wrong.write_bytes(data_)
        yield name, checkpoint, wrong
    rope = config.get("rope_theta", 1e4)
    changes: dict[str, dict[str, Any]] = {"rotary base doubled": {"rope_theta": 2 * rope}}
    if config.get("sliding_window"):
        changes["window off by one"] = {"sliding_window": config["sliding_window"] - 1}
    for name, changed in changes.items():
        yield name, _copy(checkpoint, folder / name.replace(" ", "-"), "config.json", config | changed), pte
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    ends = {**generation, "eos_token_id": [config["vocab_size"] - 3]}
    yield "other ends of a text", _copy(checkpoint, folder / "ends", "generation_config.json", ends), pte


def _copy(checkpoint: Path, folder: Path, name: str, content: dict[str, Any]) -> Path:
    shutil.copytree(checkpoint, folder, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    return folder


def judged(source: Path, pte: Path, recipe: Recipe, tokens: int, references: Path) -> list[tuple[str, float, float]]:
    """The gates that are missed, with what was measured and the limit."""
    texts = data.passage(), [prompt.text for prompt in data.prompts()]
    parity = compare_to_reference(
        Session(pte), Checkpoint.open(source), recipe, texts, tokens, references, lambda *_: None
    )
    program = inspect(pte)
    vocabulary = int(str(program.metadata["get_vocab_size"]))
    gates = evaluate_gates(recipe.gates, parity, program, vocabulary)
    return [(gate.name, gate.measured, gate.limit) for gate in gates if not gate.passed]


if __name__ == "__main__":
    main()
