"""A checkpoint that `hubpub slice` wrote, run by llama.cpp: converted, quantized and timed; small ones compared too.

    python benchmarks/llama_slices.py CHECKPOINT --llama DIR [--type Q4_0] [--work DIR] [--compare]

DIR holds llama.cpp's `bin` and `src` (its converter, which needs the package sentencepiece). The converter reads
tokenizer.model, which lies beside every published checkpoint and which `hubpub slice` copies. A synthetic one
(`real_size.py`) has none: it is written here from its tokenizer.json. Prints tokens/s of a prompt of 128 tokens and of
32 more. `--compare` keeps the weights as float32 and prints the KL divergence of llama.cpp's logits from transformers'
over the package's passage, which is for models whose vocabulary is small.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

CONTEXT = 256


def tokenizer_model(folder: Path) -> None:
    """Write the pieces of tokenizer.json as SentencePiece's file, where there is none."""
    from sentencepiece import sentencepiece_model_pb2 as spm

    path = folder / "tokenizer.model"
    if path.exists():
        return
    read = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = {one["id"]: one for one in read["added_tokens"]}
    pieces = dict(sorted({index: piece for piece, index in read["model"]["vocab"].items()}.items()))
    pieces |= {index: one["content"] for index, one in added.items()}
    made = spm.ModelProto()
    made.trainer_spec.model_type = spm.TrainerSpec.BPE
    made.trainer_spec.byte_fallback = True
    for name, index in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        setattr(made.trainer_spec, f"{name}_id", index)
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.add_dummy_prefix = False
    made.normalizer_spec.remove_extra_whitespaces = False
    kind = spm.ModelProto.SentencePiece
    texts = {one["content"] for one in added.values()}
    for index in range(max(pieces) + 1):
        piece = pieces.get(index, "")
        if not piece or (index not in added and piece in texts):
            # No piece, or one that is special too: llama.cpp wants each text once, and ids without gaps.
            piece, what = f"<none{index}>", kind.UNUSED
        elif index == 3:
            what = kind.UNKNOWN
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            what = kind.BYTE
        elif index in added:
            what = kind.CONTROL if added[index]["special"] else kind.USER_DEFINED
        else:
            what = kind.NORMAL
        made.pieces.add(piece=piece, score=-float(index), type=what)
    path.write_bytes(made.SerializeToString())


def run(*command: str | Path) -> str:
    done = subprocess.run([str(one) for one in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} {command[1]}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def compare(folder: Path, gguf: Path, tools: Path, work: Path) -> None:
    """Logits of both over the tokens that llama.cpp made of the passage, in windows whose second half counts."""
    import torch
    import transformers

    from hubpub import data

    text, base = work / "passage.txt", work / "logits"
    text.write_text(data.passage(), "utf-8")
    run(tools / "llama-perplexity", "-m", gguf, "-f", text, "-c", str(CONTEXT), "-t", "2", "--save-all-logits", base)
    with base.open("rb") as file:
        assert file.read(8) == b"_logits_"
        context, vocabulary, chunks = struct.unpack("<Iii", file.read(12))
        tokens = torch.frombuffer(bytearray(file.read(4 * context * chunks)), dtype=torch.int32).reshape(
            chunks, context
        )
        width = 2 * ((vocabulary + 1) // 2) + 4
        raw = torch.frombuffer(bytearray(file.read()), dtype=torch.uint16).reshape(chunks, -1, width)
    # Steps of a 65,535th between the most and the least likely: log p = scale * step + least.
    scales = raw[..., :4].contiguous().view(torch.float32)
    theirs = scales[..., :1] * raw[..., 4 : 4 + vocabulary].float() + scales[..., 1:2]
    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    model = transformers.Gemma3nForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    divergences, same = [], 0
    for read, seen in zip(tokens, theirs, strict=True):
        row = read.long()
        # It puts the first token, <bos>, at the start of every window when it reads, and not into its list.
        row[0] = 2
        with torch.no_grad():
            ours = model(row[None]).logits[0, -len(seen) - 1 : -1].log_softmax(-1)
        divergences += (ours.exp() * (ours - seen)).sum(-1).tolist()
        same += int((ours.argmax(-1) == seen.argmax(-1)).sum())
    mean = math.fsum(divergences) / len(divergences)
    print(f"{len(divergences)} tokens: KL {mean:.2g} (most {max(divergences):.2g}), same {same / len(divergences):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--work", type=Path, default=Path(".hubpub/llama"))
    parser.add_argument("--compare", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    tools, name = given.llama / "bin", given.checkpoint.name
    os.environ["LD_LIBRARY_PATH"] = str(tools)
    tokenizer_model(given.checkpoint)
    # Eight bits on the way to four: half of what bfloat16 takes of the disk, and speed is the same.
    kind = "f32" if given.compare else "q8_0"
    full = given.work / f"{name}-{kind}.gguf"
    converter = given.llama / "src" / "convert_hf_to_gguf.py"
    run(sys.executable, converter, given.checkpoint, "--outtype", kind, "--outfile", full)
    if given.compare:
        compare(given.checkpoint, full, tools, given.work)
        return
    made = given.work / f"{name}-{given.type}.gguf"
    run(tools / "llama-quantize", "--allow-requantize", full, made, given.type, "2")
    full.unlink()
    print(f"{made}: {made.stat().st_size / 1e9:.2f} GB")
    print(run(tools / "llama-bench", "-m", made, "-t", "2", "-p", "128", "-n", "32", "-r", "3"))


if __name__ == "__main__":
    main()
