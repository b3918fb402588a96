"""Stand-ins for checkpoints that were trained for four bits: a stand-in whose weights are put on a grid.

Nothing is trained for it: what such a checkpoint has to show is that its integers come through unchanged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubpub.model.families import Family
from hubpub.model.packed import FORMAT, GROUP, METHOD

if TYPE_CHECKING:
    import torch

Form = Literal["w4a16-ct", "q4_0"]


def put_on_grid(source: Path, folder: Path, family: Family, form: Form) -> None:
    """Write the checkpoint `source` to `folder` with the linear layers of its text decoder in four bits.

    "w4a16-ct": packed integers with positive scales. "q4_0": bfloat16 weights, which in every group of 32 are integers
    in -8..7 times a scale of either sign, at which the largest weight is -8; the per-layer table too.
    """
    from safetensors.torch import load_file, save_file

    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            shutil.copy2(path, folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, value in load_file(path).items():
            if _is_matrix(name, value, family, form):
                tensors |= _packed(name, value) if form == "w4a16-ct" else {name: signed(value)}
            else:
                tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if form == "w4a16-ct":
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config["quantization_config"] = _quantization()
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _is_matrix(name: str, value: torch.Tensor, family: Family, form: Form) -> bool:
    if not name.startswith(family.text_prefix) or value.ndim != 2 or value.shape[1] % GROUP:
        return False
    below = "model." + name.removeprefix(family.text_prefix).removesuffix(".weight")
    return below != family.embedding and (below != family.per_layer_embedding or form == "q4_0")


def signed(weight: torch.Tensor) -> torch.Tensor:
    """`weight` [rows, columns] on the grid of q4_0, in bfloat16."""
    import torch

    groups = weight.float().reshape(-1, GROUP)
    outermost = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scales = (outermost / -8).bfloat16().float()
    integers = (groups / torch.where(scales == 0, 1.0, scales)).round().clamp(-8, 7)
    return (integers * scales).bfloat16().reshape(weight.shape)


def _packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    import torch

    groups = weight.float().reshape(-1, GROUP)
    # As compressed-tensors chooses scales: the range of sixteen integers is twice the largest weight.
    scales = (groups.abs().amax(1, keepdim=True) / 7.5).clamp(min=1e-10).bfloat16()
    integers = ((groups / scales.float()).round().clamp(-8, 7) + 8).to(torch.int32).reshape(len(weight), -1, 8)
    words = torch.zeros(integers.shape[:2], dtype=torch.int32)
    for place in range(8):
        words |= integers[..., place] << 4 * place
    return {
        f"{name}_packed": words,
        f"{name}_scale": scales.reshape(len(weight), -1),
        f"{name}_shape": torch.tensor(weight.shape),
    }


def _quantization() -> dict[str, Any]:
    """What config.json says of the packed form."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    weights |= {"actorder": None, "block_structure": None, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": FORMAT}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
