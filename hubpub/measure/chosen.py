"""What a calibration chose for a program, on its way to a machine of another kind.

Sums are rounded in another order there, and what is chosen of them are other integers: a file can only be held to those
of the machine that made it. They lie in the file itself, under the names of their layers. What does not (norms that
scales were moved into, and the scales of a head) is a few kilobytes, and travels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hubpub.errors import SourceError
from hubpub.measure.pte import length, opened

if TYPE_CHECKING:
    import torch

_INTEGERS = "integers"


def without_integers(kept: Path) -> bytes:
    """What `kept` (see `hubpub.workspace.integers_of`) holds beside integers and their scales, and what those are.

    A file that is not there, as nothing was calibrated, holds nothing.
    """
    from safetensors import safe_open
    from safetensors.torch import save

    rest: dict[str, torch.Tensor] = {}
    integers: dict[str, tuple[str, list[int]]] = {}
    if kept.exists():
        with safe_open(kept, "pt") as file:
            names = list(file.keys())
            layers = {name.removesuffix(".values") for name in names if name.endswith(".values")}
            for name in names:
                if name.rpartition(".")[0] in layers:
                    # Nothing of it is read: of a large model it would be gigabytes.
                    tensor = file.get_slice(name)
                    integers[name] = str(tensor[:0].dtype).removeprefix("torch."), tensor.get_shape()
                else:
                    rest[name] = file.get_tensor(name)
    return bytes(save(rest, {_INTEGERS: json.dumps(integers)}))


def with_integers(rest: Path, pte: Path, into: Path) -> None:
    """Write to `into` what `without_integers` was given: from its answer in `rest`, and the integers that are in `pte`.

    Raises SourceError where there is no such answer, or it is of another program.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    again = "run the job that exports this cell again"
    try:
        with safe_open(rest, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
            integers = json.loads(file.metadata()[_INTEGERS])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"what a calibration chose for {pte.name} is not here: {error}", again) from None
    if not integers:
        return
    with opened(pte) as (program, _):
        for name, (dtype, shape) in integers.items():
            kind: torch.dtype = getattr(torch, dtype)
            size, extent = math.prod(shape) * kind.itemsize, program.under(name)
            if extent is None or length(extent) < size:
                raise SourceError(f"{rest.name} is of another program than {pte.name}: it has no {name}", again)
            read = bytearray(program.data[extent[0] : extent[0] + size])
            tensors[name] = torch.frombuffer(read, dtype=kind).reshape(shape)
    save_file(tensors, into)
