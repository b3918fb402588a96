"""Seconds to lower one cell: the plain way (to_edge_transform_and_lower, whole XNNPACK pipeline) and hubpub's, in turn.

    python benchmarks/lowering.py [RECIPE] [--variant NAME] [--cache DIR]

Both start from the same quantized scale model; the ratio is what to compare, not the seconds of one machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from hubpub.config import Project, Recipe
from hubpub.export import lower
from hubpub.export.quantize import quantize, register_operators
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.decoder import CachedDecoder, cached_attention
from hubpub.model.loader import DTYPES, load
from hubpub.model.patches import applied
from hubpub.model.scale import build

CONTEXT = 512


def decoder_of(folder: Path, recipe: Recipe) -> tuple[Any, CachedDecoder]:
    """A quantized decoder of the checkpoint in `folder`."""
    checkpoint = Checkpoint.open(folder)
    model = load(checkpoint, dtype=DTYPES[recipe.dtype])
    quantize(model, recipe, checkpoint.family)
    shape = checkpoint.family.shape(model.config)
    return model, CachedDecoder(model, shape, CONTEXT, DTYPES[recipe.dtype])


def plain(decoder: CachedDecoder, recipe: Recipe) -> int:
    """The documented way; returns the number of instructions of the program."""
    from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    example = (torch.ones(1, 8, dtype=torch.long), torch.tensor([0]))
    length = torch.export.Dim("S", min=1, max=CONTEXT - 1)
    program = torch.export.export(decoder, example, dynamic_shapes=({1: length}, {}), strict=False)
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner(configs=[LinearConfig])] if recipe.backend == "xnnpack" else [],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    made = edge.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True))
    return instructions(made)


def ours(decoder: CachedDecoder, recipe: Recipe) -> int:
    """hubpub's way; returns the number of instructions of the program."""
    return instructions(lower.export(decoder, CONTEXT, recipe, {"get_max_seq_len": CONTEXT}).program)


def instructions(made: Any) -> int:
    """Instructions of the program's one method."""
    return len(made.executorch_program.execution_plan[0].chains[0].instructions)


def main() -> None:
    """Time both and print one JSON value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="8da4w")
    parser.add_argument("--variant", default="gemma-3n-E2B-it")
    parser.add_argument("--cache", type=Path, default=Path(".hubpub/scale"))
    arguments = parser.parse_args()
    recipe = Project.find().recipes[arguments.recipe]
    folder = build(arguments.variant, "gemma3n", arguments.cache)
    register_operators()
    found: dict[str, Any] = {"variant": arguments.variant, "recipe": recipe.name}
    for name, way in (("ours", ours), ("plain", plain)):
        model, decoder = decoder_of(folder, recipe)
        patches = Checkpoint.open(folder).family.patches()
        with applied(patches), cached_attention(model), torch.no_grad(), lower.quiet():
            started = time.perf_counter()
            count = way(decoder, recipe)
            found[name] = {"seconds": round(time.perf_counter() - started, 1), "instructions": count}
    found["times_faster"] = round(found["plain"]["seconds"] / found["ours"]["seconds"], 2)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
