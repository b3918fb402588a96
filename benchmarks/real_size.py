"""Seconds by stage, peak memory and file size of exports at real size, beside the documented way.

    python benchmarks/real_size.py gemma-3n-E2B [RECIPE ...] [--plain] [--work DIR] [--record FILE]
    python benchmarks/real_size.py gemma-3n-E4B 8da4w --slice E1.96B --slice E2.69B --keep

The checkpoint is synthetic: the published shapes, names and dtypes, filled with noise, and a tokenizer of as many
pieces; nothing is downloaded. Each export runs in a process of its own, watched from outside: anonymous memory is what
it needs, mapped memory is the checkpoint's pages, which the system takes back whenever it wants. Noise is nothing to
calibrate on: integers are rounded to nearest, unless `--calibrate` asks for the time of that too. `--plain` adds
`torch.export`, `to_edge`, `to_executorch` and writing, of the same decoder in bf16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hubpub.model.scale.gemma_tokenizer import BYTES, chat_template
from hubpub.model.scale.stand_in import CONTEXT

NOISE = 32 << 20
SHARD = 3 << 30
FAMILIES = {"gemma-3n": "gemma3n", "gemma-4": "gemma4"}
PLAIN = "plain"
PREFILL = 128


def text_config(variant: str) -> dict[str, Any]:
    """The text part of the published config.json."""
    big = "E4B" in variant
    if variant.startswith("gemma-3n"):
        layers = 35 if big else 30
        return {
            "model_type": "gemma3n_text",
            "hidden_size": 2048,
            "intermediate_size": [16384 if big else 8192] * layers,
            "num_hidden_layers": layers,
            "num_kv_shared_layers": 15 if big else 10,
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10),
            "layer_types": ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(layers)],
            "vocab_size": 262400,
            "vocab_size_per_layer_input": 262144,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "hidden_size_per_layer_input": 256,
            "sliding_window": 512,
            "altup_num_inputs": 4,
            "laurel_rank": 64,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "dtype": "bfloat16",
        }
    per = 6 if big else 5
    layers = 42 if big else 35
    return {
        "model_type": "gemma4_text",
        "hidden_size": 2560 if big else 1536,
        "intermediate_size": 10240 if big else 6144,
        "use_double_wide_mlp": not big,
        "num_hidden_layers": layers,
        "num_kv_shared_layers": 18 if big else 20,
        "layer_types": ["full_attention" if i % per == per - 1 else "sliding_attention" for i in range(layers)],
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "num_attention_heads": 8,
        "num_key_value_heads": 2 if big else 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "hidden_size_per_layer_input": 256,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "enable_moe_block": False,
        "attention_k_eq_v": False,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "dtype": "bfloat16",
    }


def checkpoint(variant: str, root: Path) -> Path:
    """A folder with a synthetic checkpoint of `variant`, made once."""
    import transformers

    from hubpub.model.families import family

    kind = family(next(name for prefix, name in FAMILIES.items() if variant.startswith(prefix)))
    folder = root / variant
    if (folder / "generation_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [kind.architecture], "model_type": kind.name, "text_config": text_config(variant)}
    config |= {"dtype": "bfloat16", "bos_token_id": 2, "eos_token_id": 1, "vision_config": {}, "audio_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    text = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    with torch.device("meta"):
        model = getattr(transformers, kind.text_class)(text)
    shapes = {
        kind.text_prefix + name.removeprefix("model."): list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    # Key and value weights of layers that read those of others: published, and never used.
    for layer in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        at, like = (f"{kind.text_prefix}layers.{one}.self_attn." for one in (layer, layer % 5))
        shapes |= {at + name: shapes[like + name] for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight")}
    noise = (torch.randn(NOISE // 2) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * math.prod(shape)
    index = {}
    for number, names in enumerate(shards, 1):
        header: dict[str, Any] = {}
        offset = 0
        for name in names:
            count = 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + count]}
            offset += count
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / shard).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in names:
                left = 2 * math.prod(shapes[name])
                # Each tensor begins elsewhere: equal ones would be stored once, which no real model would gain from.
                place = 2 * 7919 * len(index) % NOISE
                while left:
                    left -= file.write(noise[place : min(place + left, NOISE)])
                    place = 0
                index[name] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    tokenizer(folder, text.vocab_size)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    return folder


def tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of Gemma's structure: pieces of the package's own text, and pairs of them up to `vocabulary` ids."""
    from hubpub import data
    from hubpub.model.scale import gemma3n

    layout = replace(gemma3n.TOKENIZER, vocabulary=vocabulary, multimodal={}, names={})
    chat = chat_template("<start_of_turn>", "<end_of_turn>")
    layout.write(folder, data.corpus(), chat, CONTEXT)
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text("utf-8"))
    vocab, merges = made["model"]["vocab"], made["model"]["merges"]
    free = sorted(set(range(vocabulary)) - set(vocab.values()))
    learned = [piece for piece, index in vocab.items() if index > BYTES[-1]]
    for pair in itertools.product(learned, repeat=2):
        if not free:
            break
        if (piece := "".join(pair)) not in vocab:
            vocab[piece] = free.pop(0)
            merges.append(list(pair))
    path.write_text(json.dumps(made, ensure_ascii=False), "utf-8")


def name_of(variant: str, part: str | None) -> str:
    return variant.replace("E4B", part) if part else variant


def export(folder: Path, given: argparse.Namespace, out: Path) -> None:
    """One export, in this process; prints what it measured itself as JSON."""
    from hubpub.config import Project
    from hubpub.export.cell import export as export_cell
    from hubpub.model.checkpoint import Checkpoint
    from hubpub.slices import named

    context, (recipe,), (part,) = given.context, given.recipes, given.slice or [None]
    opened = Checkpoint.open(folder, named(part) if part else None)
    if recipe == PLAIN:
        print(json.dumps(plain(opened, out / "plain.pte", context)))
        return
    path = out / f"{name_of(given.variant, part)}-{recipe}.pte"
    chosen = Project.find().recipes[recipe]
    if not given.calibrate:
        chosen = chosen.model_copy(update={"calibrated": False})
    done = export_cell(opened, chosen, path, context=context, prefill=PREFILL, progress=lambda *_: None)
    print(json.dumps({"bytes": done.file.bytes, "stages": done.stages.model_dump(exclude={"peak_resident_bytes"})}))


def plain(opened: Any, path: Path, context: int) -> dict[str, Any]:
    """The documented way, of the same decoder in bf16, without anything of hubpub's export room."""
    from executorch.exir import EdgeCompileConfig, to_edge
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from hubpub.model import loader
    from hubpub.model.decoder import CachedDecoder, cached_attention
    from hubpub.model.patches import applied

    stages = {}
    started = time.monotonic()

    def stage(name: str) -> None:
        nonlocal started
        stages[name] = round(time.monotonic() - started, 2)
        started = time.monotonic()

    model = loader.load(opened, dtype=torch.bfloat16)
    stage("load")
    with applied(opened.family.patches), cached_attention(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        decoder = CachedDecoder(model, opened.family.shape(model.config), context, PREFILL, torch.bfloat16)
        example = (torch.ones(1, 8, dtype=torch.long), torch.tensor([0]))
        dynamic = ({1: torch.export.Dim("S", min=1, max=PREFILL)}, {})
        program = torch.export.export(decoder, example, dynamic_shapes=dynamic, strict=False)
        stage("export")
        edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True))
        made = edge.to_executorch()
        stage("lower")
    with path.open("wb") as file:
        made.write_to_file(file)
    stage("write")
    return {"bytes": path.stat().st_size, "stages": stages}


def watched(command: list[str], **more: str) -> tuple[str, float, int, int]:
    """Run `command`, with `more` in its environment; what it printed, its seconds, and its peak anonymous and mapped
    bytes."""
    started = time.monotonic()
    # As in hubpub's own workers: threads that spin while they wait cost more than they save on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **more}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        peak = {"RssAnon": 0, "RssFile": 0}
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = status.read_text().splitlines()
            except OSError:
                break
            for line in lines:
                key, _, value = line.partition(":")
                if key in peak:
                    peak[key] = max(peak[key], int(value.split()[0]) * 1024)
            time.sleep(0.05)
        out = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:])} ended with {process.returncode}")
    return out, time.monotonic() - started, peak["RssAnon"], peak["RssFile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=[f"{f}-{s}" for f in FAMILIES for s in ("E2B", "E4B")])
    parser.add_argument("recipes", nargs="*", default=["8da4w", "bf16"])
    parser.add_argument(
        "--slice", action="append", help="a published slice of E4B instead of the whole; may be repeated"
    )
    parser.add_argument("--calibrate", action="store_true", help="choose integers as a release does")
    parser.add_argument("--plain", action="store_true", help="the documented way as well")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--work", type=Path, default=Path(".hubpub/real-size"))
    parser.add_argument("--keep", action="store_true", help="keep the exported files")
    parser.add_argument("--record", type=Path, help="append the figures to this JSON lines file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.work / "out"
    folder = arguments.work / arguments.variant
    if arguments.child:
        export(folder, arguments, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    checkpoint(arguments.variant, arguments.work)
    source = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    host = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{arguments.variant}: checkpoint of {source / 1e9:.2f} GB, {host}")
    print(f"{'model':<18}{'recipe':<12}{'file GB':>9}{'seconds':>9}{'anon GB':>9}{'mapped GB':>11}  stages")
    rows = itertools.product(arguments.slice or [None], [*arguments.recipes, *([PLAIN] if arguments.plain else [])])
    for part, recipe in rows:
        command = [sys.executable, __file__, arguments.variant, recipe, "--child", "--work", str(arguments.work)]
        command += ["--context", str(arguments.context), *(["--slice", part] if part else [])]
        printed, seconds, anonymous, mapped = watched([*command, *(["--calibrate"] if arguments.calibrate else [])])
        found = json.loads(printed.splitlines()[-1])
        stages = "  ".join(f"{name} {value:.0f}" for name, value in found["stages"].items())
        name = name_of(arguments.variant, part)
        print(
            f"{name:<18}{recipe:<12}{found['bytes'] / 1e9:>9.2f}{seconds:>9.0f}{anonymous / 1e9:>9.2f}"
            f"{mapped / 1e9:>11.2f}  {stages}",
            flush=True,
        )
        if arguments.record:
            line = {"variant": name, "recipe": recipe, "host": host, "seconds": round(seconds, 1)}
            line |= {"anonymous_bytes": anonymous, "mapped_bytes": mapped, **found}
            with arguments.record.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not arguments.keep:
            (out / (f"{PLAIN}.pte" if recipe == PLAIN else f"{name}-{recipe}.pte")).unlink()


if __name__ == "__main__":
    main()
