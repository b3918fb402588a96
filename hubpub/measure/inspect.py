"""What a `.pte` says about itself, read from the file alone: no model, no torch, no runtime, whatever its size.

The constants are never read: a file of many gigabytes takes as long as its program has instructions.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

from hubpub.facts import KVCache, Method, Operators, Program, Tensor
from hubpub.measure import xnnpack
from hubpub.measure.pte import (
    BOOL,
    BOOL_LIST,
    DOUBLE,
    DOUBLE_LIST,
    INT,
    INT_LIST,
    KINDS,
    STATIC,
    STRING,
    UNBOUND,
    File,
    Plan,
    TensorValue,
    length,
    opened,
)
from hubpub.measure.scalars import scalars_of_plan, sliding_layers

Value = int | float | bool | str

# Kernels that write to a cache, and which of their arguments are caches.
CACHE_ARGUMENTS = {
    "llama::update_cache": (1,),
    "llama::update_cache_with_indices": (1,),
    "llama::update_quantized_cache": (1,),
    "llama::sdpa_with_kv_cache": (3, 4),
}
CACHE_NAME = re.compile(r"(?:^|[._])(?:k|v|kv|key|value)s?_?cache|cache[._](?:k|v|key|value)s?(?:$|[._\d])", re.I)

MAX_METADATA_ELEMENTS = 4096


def inspect(path: Path) -> Program:
    """Everything the `.pte` at `path` says about its methods, operators, memory and metadata.

    An input or output bears the name the program keeps for it, else its position. The file holds an upper bound for a
    tensor of dynamic shape, no lower one, and not which of its dimensions are dynamic: such a dimension is written
    "1..N", without a bound "1..", and see `_Shapes` for how they are told apart. Operators inside a delegate are
    known for XNNPACK; another backend's delegates are counted and measured only.
    Raises SourceError for a file that is missing, cut short, damaged, or not a `.pte`.
    """
    with opened(path) as (file, plans):
        return _read(file, plans)


@dataclass
class _Weights:
    """Constants, each counted once whoever refers to it: (dtype, bytes) by where its data is."""

    file: File
    found: dict[tuple[str | int, ...], tuple[str, int]]
    named_by_kernels: set[str]
    named_by_delegates: dict[str, str]

    def add_plan(self, plan: Plan) -> None:
        for tensor in plan.tensors.values():
            if tensor.constant:
                self._add(("at", self.file.constant(tensor)), tensor.dtype, tensor.bytes)
            elif tensor.external:
                self.named_by_kernels.add(tensor.name)
                self._add(self._named(tensor.name), tensor.dtype, tensor.bytes)

    def add_delegate(self, backend: str, blob: tuple[int, int], graph: xnnpack.Graph) -> None:
        for number, weight in enumerate(graph.weights):
            if weight.key:
                self.named_by_delegates[weight.key] = backend
                self._add(self._named(weight.key), weight.dtype, weight.bytes)
            else:
                self._add(("blob", blob[0], number), weight.dtype, weight.bytes)

    def _named(self, name: str) -> tuple[str | int, ...]:
        extent = self.file.under(name)
        return ("named", name) if extent is None else ("at", extent[0])

    def _add(self, key: tuple[str | int, ...], dtype: str, size: int) -> None:
        # A tensor that shares the data of a larger one, as a view does, adds nothing.
        if key not in self.found or self.found[key][1] < size:
            self.found[key] = (dtype, size)

    @property
    def by_dtype(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for dtype, size in self.found.values():
            total[dtype] += size
        return total

    @property
    def external_bytes(self) -> int:
        """Bytes of the weights that are not in this file."""
        return sum(size for key, (_, size) in self.found.items() if key[0] == "named")


def _read(file: File, plans: tuple[Plan, ...]) -> Program:
    weights = _Weights(file, {}, set(), {})
    methods: list[Method] = []
    metadata: dict[str, Any] = {}
    kernels: Counter[str] = Counter()
    delegated: Counter[str] = Counter()
    backends: Counter[str] = Counter()
    blobs: dict[tuple[int, int], str] = {}
    cache = KVCache(bytes=0, dtype="", layers=0)
    windows: set[int] = set()
    sliding: tuple[int, ...] = ()
    scalars: Counter[str] = Counter()
    for plan in plans:
        weights.add_plan(plan)
        constant = _constant_value(file, plan)
        if constant is not None:
            metadata[plan.name] = constant
            continue
        state = _state(plan)
        methods.append(_method(plan, state))
        kernels.update(dict.fromkeys(plan.operators, 0))
        kernels.update(name for name, _ in plan.calls)
        windows |= _windows(plan)
        sliding = sliding or sliding_layers(plan)
        scalars |= scalars_of_plan(file, plan)
        # Methods of one program share their cache: what the largest needs is what the program needs.
        cache = max(cache, _cache(plan, state), key=lambda found: found.bytes)
    graphs: dict[tuple[int, int], xnnpack.Graph | None] = {}
    unpacked = 0
    for backend, location, index in (delegate for plan in plans for delegate in plan.delegates):
        backends[backend] += 1
        blob = file.blob(location, index)
        blobs.setdefault(blob, backend)
        if backend == xnnpack.BACKEND:
            if blob not in graphs:
                graphs[blob] = graph = xnnpack.read(file.data, *blob)
                if graph:
                    weights.add_delegate(backend, blob, graph)
            found = graphs[blob] or xnnpack.NOTHING
            delegated.update(found.operators)
            unpacked += found.unpacked
    constant_bytes, backend_bytes = _shares(file, weights, blobs)
    return Program(
        methods=tuple(methods),
        metadata=metadata,
        backends=_sorted(backends),
        operators=Operators(delegated=_sorted(delegated), kernels=_sorted(kernels)),
        constant_bytes=constant_bytes,
        delegate_bytes=sum(backend_bytes.values()),
        kv_cache=cache,
        schema_version=file.version,
        backend_bytes=_sorted(backend_bytes),
        weights=_sorted(weights.by_dtype),
        external_bytes=weights.external_bytes,
        layout=_layout(file, blobs),
        sliding_window=windows.pop() if len(windows) == 1 else None,
        unpacked_constants=unpacked,
        sliding_layers=sliding,
        scalars=dict(sorted(scalars.items())),
    )


def _shares(file: File, weights: _Weights, blobs: dict[tuple[int, int], str]) -> tuple[int, Counter[str]]:
    """Bytes of the file that are the kernels' constants, and those that are each backend's."""
    constants = sum(end - start for start, end in file.inline_constants)
    # A delegate that is not understood does not say which data is its own; with one backend there is no doubt.
    backends = set(blobs.values())
    fallback = backends.pop() if len(backends) == 1 else "unclaimed"
    shares: Counter[str] = Counter()
    for (start, end), backend in blobs.items():
        shares[backend] += end - start
    owners = {index: weights.named_by_delegates.get(name, fallback) for name, index in file.named.items()}
    own = {file.named[name] for name in weights.named_by_kernels if name in file.named}
    # Data that is a constant of the program as well is not the backend's alone.
    for index in owners.keys() - own - file.among_constants:
        shares[owners[index]] += length(file.segments[index])
    if file.constant_segment is not None:
        own.add(file.constant_segment)
    constants += sum(length(file.segments[index]) for index in own - file.among_constants)
    return constants, shares


def _layout(file: File, blobs: dict[tuple[int, int], str]) -> dict[str, int]:
    """Bytes of the file by what they hold."""
    inline = sum(map(length, file.inline_constants)), sum(map(length, file.inline_delegates))
    found = {"program": max(0, file.program_size - sum(inline)), "constants": inline[0], "delegates": inline[1]}
    named = set(file.named.values())
    for index, extent in enumerate(file.segments):
        if index == file.constant_segment:
            kind = "constants"
        elif index in file.among_constants:
            continue
        elif extent in blobs:
            kind = "delegates"
        elif index in named:
            kind = "named data"
        elif index in file.mutable_segments:
            kind = "initial state"
        else:
            kind = "other"
        found[kind] = found.get(kind, 0) + length(extent)
    found["padding"] = max(0, len(file.data) - sum(found.values()))
    return {kind: size for kind, size in found.items() if size}


def _method(plan: Plan, state: dict[int, TensorValue]) -> Method:
    shapes = _Shapes.of(plan)
    return Method(
        name=plan.name,
        inputs=_tensors(plan, plan.inputs, _leaf_names(plan.structure[0], "input", len(plan.inputs)), shapes),
        outputs=_tensors(plan, plan.outputs, _leaf_names(plan.structure[1], "output", len(plan.outputs)), shapes),
        # The first arena is reserved; the runtime ignores it.
        planned_bytes=sum(plan.arenas[1:]),
        instructions=plan.instructions,
        delegates=plan.delegate_calls,
        state_bytes=sum(tensor.bytes for tensor in state.values()),
    )


def _tensors(plan: Plan, indices: tuple[int, ...], names: tuple[str, ...], shapes: _Shapes) -> tuple[Tensor, ...]:
    found = []
    for index, name in zip(indices, names, strict=True):
        tensor = plan.tensors.get(index)
        if tensor is None:
            kind = KINDS.get(plan.kinds[index], f"kind {plan.kinds[index]}")
            found.append(Tensor(name=name, dtype=kind, shape=()))
        else:
            found.append(Tensor(name=tensor.name or name, dtype=tensor.dtype, shape=shapes.show(tensor)))
    return tuple(found)


@dataclass(frozen=True)
class _Shapes:
    """Which bounds of a method belong to dynamic dimensions.

    The file says that a tensor's shape is dynamic, not in which dimension. It is certain where the program asks for
    the size of a dimension, or where one dimension alone has a bound above 1. Other tensors are shown by these bounds;
    one that has none of them shows every dimension above 1 as dynamic.
    """

    bounds: frozenset[int]

    @classmethod
    def of(cls, plan: Plan) -> _Shapes:
        bounds = set()
        for operator, arguments in plan.calls:
            if operator.startswith("aten::sym_size.int") and len(arguments) >= 2:
                tensor, dimension = plan.tensors.get(arguments[0]), plan.integer(arguments[1])
                if tensor and dimension is not None and -len(tensor.sizes) <= dimension < len(tensor.sizes):
                    bounds.add(tensor.sizes[dimension])
        for index in plan.inputs:
            tensor = plan.tensors.get(index)
            if tensor and tensor.dynamism != STATIC:
                above = [size for size in tensor.sizes if size > 1]
                if len(above) == 1:
                    bounds.update(above)
        return cls(frozenset(bounds))

    def show(self, tensor: TensorValue) -> tuple[int | str, ...]:
        if tensor.dynamism == STATIC:
            return tensor.sizes
        if tensor.dynamism == UNBOUND:
            return tuple("1.." for _ in tensor.sizes)
        known = self.bounds & set(tensor.sizes)
        return tuple(f"1..{size}" if size > 1 and (not known or size in known) else size for size in tensor.sizes)


def _state(plan: Plan) -> dict[int, TensorValue]:
    """The mutable buffers: tensors that keep their value from call to call, by index.

    A graph's placeholders are emitted in the order parameters, buffers, inputs. A tensor before the first input that
    has a place in the arena, instead of data, is therefore a buffer; so is one that bears a name or an initial value,
    and one that is written back to.
    """
    first_input = min(plan.inputs, default=0)
    targets = {index for index, _ in _cache_arguments(plan)}
    targets.update(arguments[0] for name, arguments in plan.calls if name == "aten::copy_" and arguments)
    return {
        index: tensor
        for index, tensor in plan.tensors.items()
        if index not in plan.inputs
        and not tensor.constant
        and not tensor.external
        and (
            (tensor.planned and (index < first_input or tensor.buffer > 0))
            or (tensor.name and index not in plan.outputs)
            or index in targets
        )
    }


def _cache_arguments(plan: Plan) -> Iterator[tuple[int, str]]:
    """Index of every argument that a kernel takes as its cache, and the kernel's name."""
    for name, arguments in plan.calls:
        for position in CACHE_ARGUMENTS.get(name.partition(".")[0], ()):
            if position < len(arguments):
                yield arguments[position], name


def _cache(plan: Plan, state: dict[int, TensorValue]) -> KVCache:
    """Keys and values among the mutable buffers.

    They are what the cache kernels write to; without such kernels, buffers so named; without names, buffers of four
    dimensions that come in pairs of one shape.
    """
    chosen = {index for index, _ in _cache_arguments(plan)} & state.keys()
    if not chosen:
        chosen = {index for index, tensor in state.items() if CACHE_NAME.search(tensor.name)}
    if not chosen:
        shaped = {index: tensor for index, tensor in state.items() if len(tensor.sizes) == 4}
        pairs = Counter(f"{tensor.dtype} {tensor.sizes}" for tensor in shaped.values())
        chosen = {index for index, tensor in shaped.items() if pairs[f"{tensor.dtype} {tensor.sizes}"] % 2 == 0}
    buffers = [state[index] for index in sorted(chosen)]
    by_dtype: Counter[str] = Counter()
    for tensor in buffers:
        by_dtype[tensor.dtype] += tensor.bytes
    dtype = by_dtype.most_common(1)[0][0] if by_dtype else ""
    return KVCache(
        bytes=sum(tensor.bytes for tensor in buffers),
        dtype=dtype,
        layers=sum(tensor.dtype == dtype for tensor in buffers) // 2,
        shapes=_sorted(Counter("x".join(map(str, tensor.sizes)) for tensor in buffers)),
    )


def _windows(plan: Plan) -> set[int]:
    """The distances from which on a token is hidden: what a comparison that a mask is made of compares with."""
    parts = {index for name, arguments in plan.calls if name.startswith("aten::logical_or") for index in arguments[:2]}
    found = {
        plan.integer(arguments[1])
        for name, arguments in plan.calls
        if name.startswith("aten::ge.Scalar") and len(arguments) > 2 and arguments[2] in parts
    }
    return {window for window in found if window is not None and window > 0}


def _constant_value(file: File, plan: Plan) -> Value | tuple[int, ...] | tuple[float, ...] | None:
    """What a metadata method answers: one without inputs and instructions whose outputs are constants. Else None."""
    if plan.inputs or plan.instructions or not plan.outputs:
        return None
    found: list[Value] = []
    several = len(plan.outputs) > 1 or '"builtins.list"' in plan.structure[1] or '"builtins.tuple"' in plan.structure[1]
    for index in plan.outputs:
        kind, value, tensor = plan.kinds[index], plan.values[index], plan.tensors.get(index)
        if value is None:
            return None
        if kind == INT:
            found.append(value.i64(0))
        elif kind == BOOL:
            found.append(bool(value.u8(0)))
        elif kind == DOUBLE:
            found.append(value.f64(0))
        elif kind == STRING:
            found.append(value.string(0))
        elif kind == INT_LIST:
            several = True
            items = [plan.integer(item) for item in value.numbers(0, "q")]
            found.extend(item for item in items if item is not None)
        elif kind == DOUBLE_LIST:
            several = True
            found.extend(value.floats(0))
        elif kind == BOOL_LIST:
            several = True
            found.extend(bool(item) for item in value.numbers(0, "B"))
        elif tensor and tensor.constant and tensor.letter and prod(tensor.sizes) <= MAX_METADATA_ELEMENTS:
            several = several or tensor.sizes != ()
            found.extend(struct.unpack_from(f"<{prod(tensor.sizes)}{tensor.letter}", file.data, file.constant(tensor)))
        else:
            return None
    # JSON has no word for these; and no list of text is known that anyone keeps in a program.
    found = [str(item) if isinstance(item, float) and not isfinite(item) else item for item in found]
    if not several:
        return found[0]
    if any(isinstance(item, str) for item in found):
        return ", ".join(map(str, found))
    if any(isinstance(item, float) for item in found):
        return tuple(float(item) for item in found)
    return tuple(int(item) for item in found)


def _leaf_names(structure: str, prefix: str, count: int) -> tuple[str, ...]:
    """A name for each input or output: the keyword or key that the program's container structure has, else a number."""
    plain = tuple(f"{prefix}{number}" for number in range(count))
    try:
        names = tuple(_leaves(json.loads(structure)[1], ""))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return plain
    if len(names) != count:
        return plain
    return tuple(name or number for name, number in zip(names, plain, strict=True))


def _leaves(node: Any, name: str) -> Iterator[str]:
    if node["type"] is None:
        yield name
        return
    children = node["children_spec"]
    keys = json.loads(node["context"]) if node["type"].endswith("dict") else [""] * len(children)
    for key, child in zip(keys, children, strict=True):
        yield from _leaves(child, f"{name}.{key}".strip("."))


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    """By count, the largest first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
