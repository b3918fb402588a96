"""Programs of real weights that are broken on purpose, and the gates that catch each.

    python benchmarks/planted_faults.py CHECKPOINT PTE --recipe 8da4w [--tokens N] [--work DIR] [--only NAME ...]

PTE was exported from CHECKPOINT by that recipe, and has the integers of its calibration beside it (as quality.py leaves
it). A damaged weight, another scale of attention or of the embedding is planted in a copy of the file, where the
runtime will find it; a decoder that was built wrongly (rotary base, window, softcap, activation), and ends of a text,
on the other side: the same weights under a config that differs. A tokenizer that puts no first token before a text is
shipped beside the right file. Prints one line per fault and adds it to planted.json in the folder of --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from hubpub.config import Project, Recipe
from hubpub.export.calibrate import apply_recipe
from hubpub.gates import evaluate_gates
from hubpub.measure.inspect import inspect
from hubpub.measure.parity import measure
from hubpub.measure.pte import DOUBLE, opened
from hubpub.measure.weights import stored_weights
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import DTYPES, load_mapped
from hubpub.workspace import integers_of

# The bytes of a file, where in it each weight lies by name, and the config of its source.
Change = Callable[[bytearray, dict[str, tuple[int, int]], dict[str, Any]], None]
LAYER = "model.layers.7"
SCALE = "attention scale at "


def zeroed(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    """All of one matrix; in integers packed by two, 8 is zero."""
    start, end = at[f"{LAYER}.mlp.up_proj.values"]
    packed = at[f"{LAYER}.mlp.up_proj.scales"][1] - at[f"{LAYER}.mlp.up_proj.scales"][0] > (end - start) // 64
    file[start:end] = (b"\x88" if packed else b"\0") * (end - start)


def transposed(file: bytearray, at: dict[str, tuple[int, int]], config: dict[str, Any]) -> None:
    start, end = at[f"{LAYER}.mlp.gate_proj.values"]
    matrix = torch.frombuffer(file[start:end], dtype=torch.uint8)
    file[start:end] = matrix.reshape(-1, config["hidden_size"] // 2).T.contiguous().numpy().tobytes()


def _scaled(file: bytearray, start: int, end: int, bfloat16: bool, times: float = 2.0) -> None:
    values = torch.frombuffer(file[start:end], dtype=torch.bfloat16 if bfloat16 else torch.float32)
    file[start:end] = (values * times).view(torch.uint8).numpy().tobytes()


def scales(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    _scaled(file, *at[f"{LAYER}.mlp.down_proj.scales"], _grouped(at, f"{LAYER}.mlp.down_proj"))


def row_scale(file: bytearray, at: dict[str, tuple[int, int]], config: dict[str, Any]) -> None:
    start, end = at[f"{LAYER}.mlp.down_proj.scales"]
    row = (end - start) // config["hidden_size"]
    _scaled(file, start + 3 * row, start + 4 * row, _grouped(at, f"{LAYER}.mlp.down_proj"))


def swapped(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    """The queries of two layers, integers and scales."""
    for part in ("values", "scales"):
        a, b = at[f"{LAYER}.self_attn.q_proj.{part}"], at[f"model.layers.9.self_attn.q_proj.{part}"]
        file[slice(*a)], file[slice(*b)] = file[slice(*b)], file[slice(*a)]


def shifted(file: bytearray, at: dict[str, tuple[int, int]], config: dict[str, Any]) -> None:
    """One row of the table, by one place; the head that is tied to it has the same."""
    width = config["hidden_size"]
    start = at["lm_head.values"][0] + 1000 * width
    row = file[start : start + width]
    file[start : start + width] = row[1:] + row[:1]


def one_byte(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    file[at[f"{LAYER}.self_attn.o_proj.values"][0] + 77] ^= 0x10


def norm(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    """All scales of one norm."""
    _scaled(file, *at[f"{LAYER}.input_layernorm.weight"], False)


def one_of_norm(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    start, _end = at[f"{LAYER}.input_layernorm.weight"]
    _scaled(file, start + 40, start + 44, False)


def embedding(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    """What the rows of the table are multiplied by when they are looked up."""
    _scaled(file, *at["model.embed_tokens.factor"], False, 1.1)


def rounded_embedding(file: bytearray, at: dict[str, tuple[int, int]], config: dict[str, Any]) -> None:
    """The same, with the root of the width as a model in bfloat16 has it."""
    exact = config["hidden_size"] ** 0.5
    _scaled(file, *at["model.embed_tokens.factor"], False, float(torch.tensor(exact).bfloat16()) / exact)


def attention(file: bytearray, at: dict[str, tuple[int, int]], _: dict[str, Any]) -> None:
    """The scale of attention in every layer: a number of the program."""
    for start, end in (extent for name, extent in at.items() if name.startswith(SCALE)):
        file[start:end] = struct.pack("<d", 1.1 * struct.unpack("<d", file[start:end])[0])


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
    "embedding scale a tenth off": embedding,
    "embedding scale rounded to bfloat16": rounded_embedding,
    "attention scale a tenth off": attention,
}


# Models that scale what they look up by the root of their width have those that are not here too.
ON_ALL = WEIGHTS.keys() - {"embedding scale rounded to bfloat16"}


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
        for fault in planted(given.checkpoint, given.pte, recipe, Path(folder), given.only):
            started = time.monotonic()
            own = fault.checkpoint == given.checkpoint
            references = given.work / "references" if own else fault.checkpoint / "references"
            rows[fault.name] = missed = judged(fault, recipe, given.tokens, references)
            if not own:
                # A gigabyte for each, where the vocabulary is a quarter of a million.
                shutil.rmtree(fault.checkpoint)
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


def planted(checkpoint: Path, pte: Path, recipe: Recipe, folder: Path, only: Sequence[str] | None) -> Iterator[Fault]:
    """Each fault in turn, the first of which is none; `only` those named."""

    def wanted(name: str) -> bool:
        return only is None or name in only

    if wanted("nothing"):
        yield Fault("nothing", checkpoint, pte)
    config = json.loads((checkpoint / "config.json").read_text())
    weights = [name for name in WEIGHTS if wanted(name) and (name in ON_ALL or "query_pre_attn_scalar" in config)]
    at = _places(checkpoint, pte, recipe) if weights else {}
    wrong = folder / "wrong.pte"
    integers = integers_of(pte)
    if integers.exists():
        integers_of(wrong).symlink_to(integers.resolve())
    for name in weights:
        damaged = bytearray(pte.read_bytes())
        WEIGHTS[name](damaged, at, config)
        assert damaged != pte.read_bytes()
        wrong.write_bytes(damaged)
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


def _places(checkpoint: Path, pte: Path, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Where the file holds each weight, by name, and the scales of its attentions."""
    source = Checkpoint.open(checkpoint)
    model = load_mapped(source, dtype=DTYPES[recipe.dtype])
    apply_recipe(model, source, recipe, kept=integers_of(pte))
    with opened(pte) as (file, plans):
        found = {name: extent for name, _, extent in stored_weights(file, plans, model) if extent is not None}
        for plan in plans:
            for operator, arguments in plan.calls:
                numbers = [one for one in arguments if plan.kinds[one] == DOUBLE]
                if not operator.startswith("llama::custom_sdpa") or not numbers:
                    continue
                # The last of its numbers; where in its table that lies, the file says in a vtable.
                table = plan.values[numbers[-1]]
                assert table is not None
                wanted = struct.pack("<d", table.f64(0))
                start = next(
                    at for at in range(table.position, table.position + 32) if file.data[at : at + 8] == wanted
                )
                found[f"{SCALE}{start}"] = (start, start + 8)
        return found


def _configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keys of the config that a decoder may have been built against, one fault each."""

    def turned(rope: dict[str, Any]) -> dict[str, Any]:
        return {**rope, "rope_theta": 2 * rope["rope_theta"]}

    def slowed(rope: dict[str, Any]) -> dict[str, Any]:
        return {**rope, "rope_type": "linear", "factor": 8.0}

    rope = config["rope_parameters"]
    found: dict[str, dict[str, Any]] = {}
    for name, change in (("base{} doubled", turned), ("positions{} divided by 8", slowed)):
        if "rope_theta" in rope:
            found[f"rotary {name.format('')}"] = {"rope_parameters": change(rope)}
        else:
            for kind in rope:
                layers = f" of {kind.removesuffix('_attention')} layers"
                found[f"rotary {name.format(layers)}"] = {"rope_parameters": {**rope, kind: change(rope[kind])}}
    found["norms with another epsilon"] = {"rms_norm_eps": 100 * config["rms_norm_eps"]}
    if config.get("sliding_window"):
        found["window off by one"] = {"sliding_window": config["sliding_window"] - 1}
        full = config["layer_types"].index("full_attention")
        kinds = ["sliding_attention" if number == full else kind for number, kind in enumerate(config["layer_types"])]
        found["a full layer slides"] = {"layer_types": kinds}
    activation = "hidden_activation" if "hidden_activation" in config else "hidden_act"
    found["another activation"] = {activation: "gelu" if config[activation] != "gelu" else "gelu_pytorch_tanh"}
    if "final_logit_softcapping" in config:
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
