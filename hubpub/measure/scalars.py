"""The single numbers that a model computes with beside its weights: epsilons, attention scales, cutoffs, softcaps; and
which of its two forms each GELU has.

Most are so small, or so near to each other's effect, that the noise of int8 activations hides another one: an epsilon a
hundred times as large changes no token, nor does the exact GELU for the one by tanh. A program says which it holds, and
its source, run once, which it uses.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hubpub.measure.pte import DOUBLE, STRING, TENSOR, File, Plan, TensorValue
from hubpub.model.patches import Patch, applied

# HIGH of hubpub.export.quantize, which takes torch to read: the export's own, and used in other places than eagerly.
_HIGH = 256.0
# Operators by what is counted. One whose number a delegate reads as an input multiplies with it there.
_KINDS = {"add": "add", "sub": "add", "mul": "multiply", "div": "multiply", "full": "multiply", "clamp": "clamp"}
_KINDS |= {"clamp_min": "clamp", "custom_sdpa": "attention"}
# Its form is a word among its arguments, "none" or "tanh".
_GELU = "gelu"
# The scale is the last of its arguments that is a number.
_ATTENTION = "custom_sdpa"
_COPIES = ("_to_copy", "to_copy", "clone", "expand_copy", "_to_dim_order_copy")


def scalars_of_plan(file: File, plan: Plan) -> Counter[str]:
    """How often the kernels of a method compute with each number, e.g. {"add 1e-06": 109}."""
    found: list[tuple[str, float]] = []
    forms: Counter[str] = Counter()
    copied: dict[int, float] = {}

    def number(index: int) -> float | None:
        if index in copied:
            return copied[index]
        value, tensor = plan.values[index], plan.tensors.get(index)
        if plan.kinds[index] == DOUBLE and value is not None:
            return value.f64(0)
        if plan.kinds[index] == TENSOR and tensor is not None and tensor.constant and math.prod(tensor.sizes) == 1:
            return _constant(file, tensor)
        return None

    for operator, arguments in plan.calls:
        name = operator.partition("::")[2].partition(".")[0]
        numbers = [number(index) if 0 <= index < len(plan.kinds) else None for index in arguments]
        if name in _COPIES and numbers and numbers[0] is not None:
            copied.update(dict.fromkeys(arguments[1:], numbers[0]))
        elif name == _ATTENTION:
            found += [("attention", one) for one in [one for one in numbers if one is not None][-1:]]
        elif name == _GELU:
            words = [plan.values[one] for one in arguments if 0 <= one < len(plan.kinds) and plan.kinds[one] == STRING]
            forms[f"{_GELU} {words[0].string(0) if words and words[0] else ''}"] += 1
        elif name in _KINDS:
            found += _read(name, numbers[:3])
    return counted(found) + forms


def sliding_layers(plan: Plan) -> tuple[int, ...]:
    """Which of a method's attentions, in their order, are told by a mask what they may see."""
    masked = [
        len(arguments) > 4 and arguments[4] in plan.tensors
        for operator, arguments in plan.calls
        if operator.startswith(f"llama::{_ATTENTION}")
    ]
    return tuple(index for index, one in enumerate(masked) if one)


def scalars_of_model(model: Any, patches: Sequence[Patch], *, window: bool) -> dict[str, int]:
    """The same of an eager text model, whose linear layers in integers count for nothing: they are known.

    `patches` are those of its export. In a program that attends over a `window` at once, queries and keys are each
    multiplied with the root of the scale.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from hubpub.export.quantize import DynamicLinear

    found: list[tuple[str, float]] = []
    forms: Counter[str] = Counter()

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__.rstrip("_")
            if "scaled_dot_product" in name:
                scale = (kwargs or {}).get("scale")
                scale = args[0].shape[-1] ** -0.5 if scale is None else scale
                found.extend([("multiply", math.sqrt(scale))] * 2 if window else [("attention", scale)])
            elif name == _GELU:
                forms[f"{_GELU} {(kwargs or {}).get('approximate', 'none')}"] += 1
            elif name in _KINDS and any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in args):
                found.extend(_read(name, [_number(one) for one in args]))
            return function(*args, **(kwargs or {}))

    layers = [layer for layer in model.modules() if isinstance(layer, DynamicLinear)]
    for layer in layers:
        layer.forward = _zeros(layer.out_features)  # type: ignore[method-assign]
    try:
        with applied(patches), torch.no_grad(), Recorded():
            model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)
    finally:
        for layer in layers:
            del layer.forward
    return dict(counted(found) + forms)


def counted(found: Iterable[tuple[str, float]]) -> Counter[str]:
    """Numbers by what is done with them, in float32 and six digits; those that change nothing are left out."""
    kept = Counter(
        f"{kind} {_single(value):.6g}"
        for kind, value in found
        if math.isfinite(value) and abs(value) < 1e30 and (kind, value) not in (("add", 0.0), ("multiply", 1.0))
    )
    kept.pop(f"multiply {_HIGH:.6g}", None)
    return Counter(dict(sorted(kept.items())))


def _read(name: str, numbers: Sequence[float | None]) -> list[tuple[str, float]]:
    """What a call of `name` does with the `numbers` among its arguments."""
    kind = _KINDS[name]
    if name in ("sub", "div"):
        # Whatever is divided or subtracted from is another operator than what is counted here.
        second = numbers[1] if len(numbers) > 1 else None
        if second is None or (name == "div" and not second):
            return []
        return [(kind, 1 / _single(second) if name == "div" else -second)]
    limit = 2 if name in ("add", "mul") else len(numbers)
    return [(kind, one) for one in numbers[:limit] if one is not None]


def _number(value: Any) -> float | None:
    import torch

    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and value.is_floating_point() else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _zeros(width: int) -> Any:
    return lambda x: x.new_zeros(*x.shape[:-1], width)


def _single(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _constant(file: File, tensor: TensorValue) -> float | None:
    start = file.constant(tensor)
    raw = bytes(file.data[start : start + tensor.bytes])
    if tensor.dtype == "bfloat16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack(f"<{tensor.letter}", raw)[0]) if tensor.letter in ("e", "f", "d") else None
