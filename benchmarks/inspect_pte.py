"""Seconds and peak memory of `inspect` on a `.pte` of many gigabytes, and of the readers executorch has.

    python benchmarks/inspect_pte.py                     # a decoder of 30 layers, its embedding grown to 14 GB
    python benchmarks/inspect_pte.py --bytes 2e9 --compare
    python benchmarks/inspect_pte.py some/model.pte

The file that is made is a real export whose token embedding is declared larger afterwards; its bytes are a hole in the
file and take no disk. Each measurement runs in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEASURE = """
import json, sys, time
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
path, reader, began = Path(sys.argv[1]), sys.argv[2], time.perf_counter()
if reader == "inspect":
    from hubpub.measure.inspect import inspect as read
elif reader == "runtime":
    from executorch.runtime import Runtime
    runtime = Runtime.get()
    read = runtime.load_program
else:
    from executorch.exir._serialize._program import deserialize_pte_binary
    read = lambda path: deserialize_pte_binary(path.read_bytes())
imported, before = time.perf_counter() - began, peak()
times = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    value = read(path)
    times.append(time.perf_counter() - began)
print(json.dumps({"import_s": imported, "first_s": times[0], "best_s": min(times), "import_bytes": before,
                  "added_bytes": peak() - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", help="a .pte to read instead of one made here")
    parser.add_argument("--bytes", type=float, default=14e9, help="size of the file that is made")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--compare", action="store_true", help="also executorch's deserializer and runtime (slow)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.path or make(Path(folder) / "large.pte", int(arguments.bytes), arguments.layers)
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        print(f"{path.name}: {path.stat().st_size:,} bytes, of them on disk {path.stat().st_blocks * 512:,}")
        print(f"{'reader':14} {'import s':>9} {'first s':>9} {'best s':>9} {'peak added':>12} {'peak of import':>15}")
        for reader, repeats in (("inspect", 5), *([("deserializer", 1), ("runtime", 1)] if arguments.compare else [])):
            show(reader, path, repeats)


def show(reader: str, path: Path, repeats: int) -> None:
    command = [sys.executable, "-c", MEASURE, str(path), reader, str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        print(f"{reader:14} failed: {reason}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    megabytes = (f"{found[key] / 1e6:,.1f} MB" for key in ("added_bytes", "import_bytes"))
    times = " ".join(f"{found[key]:9.4f}" for key in ("import_s", "first_s", "best_s"))
    print(f"{reader:14} {times} {next(megabytes):>12} {next(megabytes):>15}")


def make(path: Path, size: int, layers: int) -> Path:
    """Export a decoder with `layers` layers, XNNPACK on its linears, and grow its embedding until `size` bytes."""
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program, _program_to_flatbuffer
    from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header, _insert_flatbuffer_header
    from executorch.exir._serialize.padding import aligned_size, pad_to

    whole = export(layers)
    header = _get_extended_header(whole)
    assert header is not None
    program = _flatbuffer_to_program(whole[: header.program_size])
    table = max(
        (value.val for value in program.execution_plan[0].values if getattr(value.val, "data_buffer_idx", 0)),
        key=lambda tensor: tensor.sizes[0] * tensor.sizes[-1],
    )
    row = table.sizes[-1] * 4
    rows = max(0, size - len(whole)) // row // 4 * 4
    grown = rows * row
    table.sizes[0] += rows
    segment = program.constant_segment
    segment.offsets = [offset + grown * (i > table.data_buffer_idx) for i, offset in enumerate(segment.offsets)]
    old = [(part.offset, part.size) for part in program.segments]
    for index, part in enumerate(program.segments):
        part.size += grown * (index == segment.segment_index)
        part.offset += grown * (index > segment.segment_index)
    made = _program_to_flatbuffer(program, constant_tensor_alignment=16, delegate_alignment=None)
    length = aligned_size(_ExtendedHeader.EXPECTED_LENGTH, made.max_alignment)
    program_size = length + len(made.data)
    base = aligned_size(program_size, 128)
    total = max(part.offset + part.size for part in program.segments)
    extended = pad_to(_ExtendedHeader(program_size, base, total).to_bytes(), length)
    with path.open("wb") as file:
        file.write(_insert_flatbuffer_header(made.data, r"ET[0-9a-zA-Z][0-9a-zA-Z]", extended))
        for (offset, count), part in zip(old, program.segments, strict=True):
            if part.size == count:
                file.seek(base + part.offset)
                file.write(whole[header.segment_base_offset + offset :][:count])
        file.truncate(base + total)
    return path


def export(layers: int) -> bytes:
    import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  (registers the llama:: operators)
    import torch
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4096, 64)
            self.linears = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(layers))
            for layer in range(2 * layers):
                self.register_buffer(f"cache{layer}", torch.zeros(1, 32, 2, 32))

        def forward(self, tokens: Any, input_pos: Any) -> Any:
            start = input_pos[0].item()
            torch._check(start >= 0)
            torch._check(start < 31)
            x = self.table(tokens)
            for layer, linear in enumerate(self.linears):
                q = linear(x).view(1, -1, 2, 32)
                k, v = getattr(self, f"cache{2 * layer}"), getattr(self, f"cache{2 * layer + 1}")
                torch.ops.llama.update_cache(q, k, start)
                torch.ops.llama.update_cache(q, v, start)
                x = x + torch.ops.llama.custom_sdpa(q, k, v, start, None, 0.0, True, None).reshape(1, -1, 64)
            return x[:, -1]

    module = Decoder().eval().requires_grad_(False)
    example = (torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    exported = torch.export.export(module, example, strict=False)
    partitioner = XnnpackPartitioner(config_precisions=[ConfigPrecisionType.FP32])
    lowered = to_edge_transform_and_lower(
        exported,
        partitioner=[partitioner],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
        constant_methods={"get_max_seq_len": 31, "get_eos_ids": [1, 106]},
    )
    return bytes(lowered.to_executorch().buffer)


if __name__ == "__main__":
    main()
