"""Programs of real weights that are broken on purpose, and the gates that catch each.

    python benchmarks/planted_faults.py CHECKPOINT PTE --recipe 8da4w [--tokens N] [--work DIR] [--only NAME ...]

PTE was exported from CHECKPOINT by that recipe, and has the integers of its calibration beside it (as quality.py leaves
it). A damaged weight is planted in a copy of the file, where the runtime will find it; a decoder that was built wrongly
(rotary base, window, softcap, attention scale), and ends of a text, on the other side: the same weights under a config
that differs. A tokenizer that puts no first token before a text is shipped beside the right file. Prints one line per
fault and adds it to planted.json in the folder of --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors import safe_open

from hubpub.config import Project, Recipe
from hubpub.gates import evaluate_gates
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import measure
from hubpub.measure.pte import opened
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


def norm(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    """All scales of one norm."""
    _scaled(file, *at[f"{LAYER}.input_layernorm.weight"], False)


def one_of_norm(file: bytearray, at: dict[str, tuple[int, int]], _: int) -> None:
    start, _end = at[f"{LAYER}.input_layernorm.weight"]
    _scaled(file, start + 40, start + 44, False)


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
    "scales of a norm doubled": norm,
    "one scale of a norm doubled": one_of_norm,
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
    kept = given.work / "planted.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        for fault in planted(given.checkpoint, given.pte, Path(folder), given.only):
            started = time.monotonic()
            rows[fault.name] = missed = judged(fault, recipe, given.tokens, given.work / "references")
            shown = ", ".join(f"{gate} {measured:g} ({limit:g})" for gate, measured, limit in missed)
            seconds = time.monotonic() - started
            print(f"{fault.name}: {shown or 'passes all gates'} [{seconds:.0f} s]", flush=True)
            kept.write_text(json.dumps(rows, indent=1))


@dataclass(frozen=True)
class Fault:
    """What is broken, and the checkpoint, file and tokenizer to compare."""

    name: str
    checkpoint: Path
    pte: Path
    tokenizer: Path | None = None


def planted(checkpoint: Path, pte: Path, folder: Path, only: Sequence[str] | None) -> Iterator[Fault]:
    """Each fault in turn, the first of which is none; `only` those named."""

    def wanted(name: str) -> bool:
        return only is None or name in only

    if wanted("nothing"):
        yield Fault("nothing", checkpoint, pte)
    with opened(pte) as (file, _):
        at = {name: file.segments[index] for name, index in file.named.items()}
    config = json.loads((checkpoint / "config.json").read_text())
    at |= _norms(checkpoint, pte)
    wrong = folder / "wrong.pte"
    integers = integers_of(pte)
    if integers.exists():
        integers_of(wrong).symlink_to(integers.resolve())
    for name, change in WEIGHTS.items():
        if wanted(name):
            data_ = bytearray(pte.read_bytes())
            change(data_, at, config["hidden_size"])
            wrong.write_bytes(data_)
            yield Fault(name, checkpoint, wrong)
    for name, changed in _configs(config).items():
        if wanted(name):
            copy = _copy(checkpoint, folder / name.replace(" ", "-"), "config.json", config | changed)
            yield Fault(name, copy, pte)
    if wanted("other ends of a text"):
        generation = json.loads((checkpoint / "generation_config.json").read_text())
        ends = {**generation, "eos_token_id": [config["vocab_size"] - 3]}
        yield Fault("other ends of a text", _copy(checkpoint, folder / "ends", "generation_config.json", ends), pte)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    if wanted("no first token") and "<bos>" in json.dumps(tokenizer.get("post_processor")):
        bare = folder / "tokenizer.json"
        bare.write_text(json.dumps({**tokenizer, "post_processor": None}), "utf-8")
        yield Fault("no first token", checkpoint, pte, bare)


def _norms(checkpoint: Path, pte: Path) -> dict[str, tuple[int, int]]:
    """Where the file holds the float32 scales of the norm before layer 7, which have no names there."""
    name = f"{LAYER}.input_layernorm.weight"
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        scales = weights.get_tensor(name).float().numpy().tobytes()
    found = pte.read_bytes().find(scales)
    assert found >= 0
    return {name: (found, found + len(scales))}


def _configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys of the config that a decoder may have been built against, one fault each."""

    def turned(rope: dict[str, Any]) -> dict[str, Any]:
        return {**rope, "rope_theta": 2 * rope["rope_theta"]}

    rope = config["rope_parameters"]
    if "rope_theta" in rope:
        found: dict[str, dict[str, Any]] = {"rotary base doubled": {"rope_parameters": turned(rope)}}
    else:
        found = {
            f"rotary base of {kind.removesuffix('_attention')} layers doubled": {
                "rope_parameters": {**rope, kind: turned(rope[kind])}
            }
            for kind in rope
        }
    found["norms with another epsilon"] = {"rms_norm_eps": 100 * config["rms_norm_eps"]}
    if config.get("sliding_window"):
        found["window off by one"] = {"sliding_window": config["sliding_window"] - 1}
        full = config["layer_types"].index("full_attention")
        kinds = ["sliding_attention" if number == full else kind for number, kind in enumerate(config["layer_types"])]
        found["a full layer slides"] = {"layer_types": kinds}
    if "query_pre_attn_scalar" in config:
        found["attention scale a tenth off"] = {"query_pre_attn_scalar": round(1.21 * config["query_pre_attn_scalar"])}
        found["softcap of 30 left out"] = {"final_logit_softcapping": 30.0}
    return found


def _copy(checkpoint: Path, folder: Path, name: str, content: dict[str, Any]) -> Path:
    shutil.copytree(checkpoint, folder, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    return folder


def judged(fault: Fault, recipe: Recipe, tokens: int, references: Path) -> list[tuple[str, float, float]]:
    """The gates that are missed, with what was measured and the limit."""
    parity = measure(
        fault.pte, Checkpoint.open(fault.checkpoint), recipe, tokens, references / fault.checkpoint.name,
        lambda *_: None, tokenizer_file=fault.tokenizer,
    )  # fmt: skip
    program = inspect(fault.pte)
    vocabulary = int(str(program.metadata["get_vocab_size"]))
    gates = evaluate_gates(recipe.gates, parity, program, vocabulary)
    return [(gate.name, gate.measured, gate.limit) for gate in gates if not gate.passed]


if __name__ == "__main__":
    main()
