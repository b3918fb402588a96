"""Finding the grid of four bits in bfloat16 weights, and reading packed integers: seconds and memory at real size.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/grid.py gemma-4-E2B [--layers N] [--table]

Every matrix of the text decoder, in the published shape, is made of noise that was put on the grid of q4_0 (scales of
either sign), one at a time; its integers and scales are found, and what they stand for is held against the weights, bit
for bit. Then the same of packed integers. `--table` adds the table of per-layer embeddings, a sixteenth of its rows.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import psutil
import torch
from real_size import text_config

from hubpub.export.grid import Found, recover, stored
from hubpub.export.quantize import unpack
from hubpub.model.packed import GROUP, fill
from hubpub.model.scale.on_grid import signed


def shapes(variant: str, layers: int | None) -> list[tuple[int, int]]:
    """Rows and columns of every matrix in the decoder's layers."""
    import transformers

    config = transformers.Gemma4TextConfig(**text_config(variant))
    with torch.device("meta"):
        model = transformers.Gemma4ForCausalLM(config)
    chosen = [
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and not module.in_features % GROUP
        if layers is None or ".layers." not in name or int(name.split(".layers.")[1].split(".")[0]) < layers
    ]
    return [(rows, columns) for rows, columns in chosen]


def same(found: Found, weight: torch.Tensor, *, signed_scales: bool = False) -> bool:
    """Whether integers, scales and shifts stand for `weight`, rounded to bfloat16 as it is."""
    step = max(1, (1 << 22) // weight.shape[1])
    for first in range(0, len(weight), step):
        rows = slice(first, first + step)
        groups = unpack(found.values[rows], low_first=not signed_scales).float().unflatten(-1, (-1, GROUP))
        whole = groups * found.scales[rows].float().unsqueeze(-1) + found.shifts[rows].unsqueeze(-1)
        if not torch.equal(whole.flatten(-2).bfloat16(), weight[rows]):
            return False
    return True


def anonymous() -> int:
    """Bytes of this process that the system cannot take back."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=("gemma-4-E2B", "gemma-4-E4B"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    wanted = shapes(given.variant, given.layers)
    largest = max(rows * columns for rows, columns in wanted)
    noise = torch.cat([signed(torch.randn(1 << 20, GROUP) * 0.02) for _ in range(-(-largest // (GROUP << 20)))])
    pool = noise.flatten()[:largest]
    tables = {"per-layer table, a sixteenth": (262144 // 16, 256 * text_config(given.variant)["num_hidden_layers"])}
    if given.table:
        pool = pool.repeat(-(-tables["per-layer table, a sixteenth"][0] * 8960 // largest))
    before, most = anonymous(), 0
    seconds, counted, exact, groups, shifted, wrong = 0.0, 0, 0, 0, 0, 0
    for (rows, columns), times in Counter(wanted).items():
        weight = pool[: rows * columns].view(rows, columns)
        for repeat in range(times):
            started = time.perf_counter()
            found = recover(weight)
            seconds += time.perf_counter() - started
            assert found is not None
            most = max(most, anonymous() - before)
            counted, exact = counted + weight.numel(), exact + found.exact
            groups, shifted = groups + found.groups, shifted + found.shifted
            if not repeat:
                wrong += not same(found, weight)
    print(f"{given.variant}: {len(wanted)} matrices, {counted:,} weights on a grid of signed scales")
    print(f"  found {exact:,} of {groups:,} groups exactly, {shifted / groups:.1%} of them reach +8; {wrong} differ")
    print(f"  {seconds:.1f} s, {counted / seconds / 1e6:.1f} million weights a second")
    print(f"  anonymous memory beside the weights: at most {most / 1e6:.0f} MB at one time")
    seconds = 0.0
    for (rows, columns), times in Counter(wanted).items():
        words = torch.randint(-(1 << 31), (1 << 31) - 1, (rows, columns // 8), dtype=torch.int32)
        scales = (torch.rand(rows, columns // GROUP) * 0.01 + 0.001).bfloat16()
        for _ in range(times):
            started = time.perf_counter()
            found = stored(words, scales)
            seconds += time.perf_counter() - started
            assert found.exact == found.groups
        out = torch.empty(rows, columns, dtype=torch.bfloat16)
        fill(out, words, scales)
        assert same(found, out)
    print(f"  the same of packed integers: {seconds:.1f} s, {counted / seconds / 1e6:.1f} million weights a second")
    for name, (rows, columns) in tables.items() if given.table else ():
        weight = pool[: rows * columns].view(rows, columns)
        started = time.perf_counter()
        found = recover(weight, signed=True)
        seconds = time.perf_counter() - started
        assert found is not None
        right = found.exact == found.groups and same(found, weight, signed_scales=True)
        print(f"  {name}: {'all' if right else 'not all'} exact, {seconds:.1f} s")


if __name__ == "__main__":
    main()
