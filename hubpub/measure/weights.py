"""The weights a file holds, against those it was meant to hold: bit for bit, and without a model being run.

What a model says at the end cannot show a fault that is smaller than the noise of its own activations: one row of a
table, one layer of many, one scale of a norm, another rotary base. The bytes can. Weights that XNNPACK computes with
lie under their names; which product reads which of them is in the delegates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubpub.facts import StoredWeights
from hubpub.measure import xnnpack
from hubpub.measure.pte import File, Plan, length, opened

# Bytes that are read at a time: a table of two gigabytes is never copied.
_SLICE = 1 << 24


def check_weights(pte: Path, model: Any) -> StoredWeights:
    """Hold the weights of `pte` against those of the quantized `model`, and its products against the model's layers."""
    from hubpub.export.quantize import DynamicLinear

    wrong: list[str] = []
    count = found = 0
    layers = {layer.name for layer in model.modules() if isinstance(layer, DynamicLinear)}
    with opened(pte) as (file, plans):
        for name, tensor, extent in stored_weights(file, plans, model):
            count += 1
            found += extent is not None
            if extent is not None and not holds(file, extent, tensor):
                wrong.append(name)
        products = [
            product
            for plan in plans
            for backend, location, index in plan.delegates
            if backend == xnnpack.BACKEND
            for product in xnnpack.products(file.data, *file.blob(location, index))
        ]
    wrong += _misread(products, layers)
    return StoredWeights(weights=count, found=found, products=len(products), wrong=tuple(sorted(set(wrong))[:20]))


def _misread(products: list[tuple[str, str]], layers: set[str]) -> list[str]:
    """The layers whose integers and scales are not read, or not together, or not in the order of the layers.

    A model may multiply by one layer more than once, as Gemma 3n does by the routers of its AltUp.
    """
    names = [values.removesuffix(".values") for values, _ in products]
    wrong = [name for name in layers if name not in names]
    wrong += [
        name
        for name, (values, scales) in zip(names, products, strict=True)
        if name not in layers or (values, scales) != (f"{name}.values", f"{name}.scales")
    ]
    last = -1
    for name in names:
        if number := re.search(r"\.layers\.(\d+)\.", name):
            if int(number[1]) < last:
                wrong.append(name)
            last = max(last, int(number[1]))
    return wrong


def stored_weights(
    file: File, plans: tuple[Plan, ...], model: Any
) -> Iterator[tuple[str, Any, tuple[int, int] | None]]:
    """Every weight of `model` by name, and where the file holds it (start, end); None: it is stored in another form.

    A weight that XNNPACK computes with is stored under its name. The others have none: one whose bytes are nowhere in
    the file is taken to be the constant of its size that belongs to no other.
    """
    free: dict[tuple[int, str], int] = {}
    constants = [one for plan in plans for one in plan.tensors.values() if one.constant]
    extents = {(file.constant(one), one.bytes, one.dtype) for one in constants}
    kinds = {start: kind for start, _, kind in extents}
    for start, size, _ in sorted(extents):
        free.setdefault((size, _digest(_slices(file, start, start + size))), start)
    lost: list[tuple[str, Any]] = []
    taken: set[tuple[int, str]] = set()
    for name, tensor in _weights(model):
        size = tensor.nbytes
        if (extent := file.under(name)) is not None:
            start, end = extent
            yield name, tensor, (start, min(end, start + size))
        elif (key := (size, _digest(_parts(tensor)))) in free:
            taken.add(key)
            yield name, tensor, (free[key], free[key] + size)
        else:
            lost.append((name, tensor))
    for name, tensor in lost:
        kind = str(tensor.dtype).removeprefix("torch.")
        other = next(
            (key for key in free if key[0] == tensor.nbytes and key not in taken and kinds[free[key]] == kind), None
        )
        if other is None:
            yield name, tensor, None
        else:
            taken.add(other)
            yield name, tensor, (free[other], free[other] + other[0])


def holds(file: File, extent: tuple[int, int], tensor: Any) -> bool:
    """Whether the bytes of `extent` are those of `tensor`."""
    if length(extent) != tensor.nbytes:
        return False
    return all(ours == meant for ours, meant in zip(_slices(file, *extent), _parts(tensor), strict=True))


def _weights(model: Any) -> list[tuple[str, Any]]:
    """Every stored weight but single numbers, by name: matrices, tables, scales of integers and of norms; of tied ones
    each use that differs.

    A table that is tied to a head in integers is both: a constant for one, and under the head's name for the other.
    """
    from hubpub.export.quantize import DynamicLinear

    found = [
        (f"{layer.name}.{part}", tensor)
        for layer in model.modules()
        if isinstance(layer, DynamicLinear)
        for part, tensor in (("values", layer.values), ("scales", layer.scales))
    ]
    seen: dict[int, tuple[str, Any]] = {}
    # With the buffers that no checkpoint holds: the rotary frequencies.
    for name, tensor in (*model.state_dict(keep_vars=True).items(), *model.named_buffers()):
        if tensor.numel() > 1:
            seen.setdefault(tensor.data_ptr(), (name, tensor))
    return [*found, *seen.values()]


def _slices(file: File, start: int, end: int) -> Iterator[bytes]:
    for first in range(start, end, _SLICE):
        yield bytes(file.data[first : min(first + _SLICE, end)])


def _parts(tensor: Any) -> Iterator[bytes]:
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for first in range(0, data.numel(), _SLICE):
        yield data[first : first + _SLICE].numpy().tobytes()


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
