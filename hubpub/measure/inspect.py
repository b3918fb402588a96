"""What a `.pte` says about itself, read from the file alone: no model, no torch, no runtime, whatever its size.

A program file is a flatbuffer (schema: executorch/schema/program.fbs) followed by segments that hold constants and
delegates. The file is mapped, the flatbuffer and the headers of the delegates are read, and the constants never are.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from hubpub.errors import SourceError
from hubpub.facts import KVCache, Method, Operators, Program, Tensor
from hubpub.measure import xnnpack
from hubpub.measure.flatbuffer import Buffer, Malformed, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

Value = int | float | bool | str

# ScalarType: torch's name, bits of one element, and struct's letter where it has one.
SCALARS: dict[int, tuple[str, int, str]] = {
    0: ("uint8", 8, "B"),
    1: ("int8", 8, "b"),
    2: ("int16", 16, "h"),
    3: ("int32", 32, "i"),
    4: ("int64", 64, "q"),
    5: ("float16", 16, "e"),
    6: ("float32", 32, "f"),
    7: ("float64", 64, "d"),
    8: ("complex32", 32, ""),
    9: ("complex64", 64, ""),
    10: ("complex128", 128, ""),
    11: ("bool", 8, "?"),
    12: ("qint8", 8, ""),
    13: ("quint8", 8, ""),
    14: ("qint32", 32, ""),
    15: ("bfloat16", 16, ""),
    16: ("quint4x2", 4, ""),
    17: ("quint2x4", 2, ""),
    18: ("bits1x8", 1, ""),
    19: ("bits2x4", 2, ""),
    20: ("bits4x2", 4, ""),
    21: ("bits8", 8, ""),
    22: ("bits16", 16, ""),
    23: ("float8_e5m2", 8, ""),
    24: ("float8_e4m3fn", 8, ""),
    25: ("float8_e5m2fnuz", 8, ""),
    26: ("float8_e4m3fnuz", 8, ""),
    27: ("uint16", 16, "H"),
    28: ("uint32", 32, "I"),
    29: ("uint64", 64, "Q"),
}

# KernelTypes and InstructionArguments: the tags of the schema's two unions.
INT, BOOL, DOUBLE, TENSOR, STRING, INT_LIST, DOUBLE_LIST, BOOL_LIST = 2, 3, 4, 5, 6, 7, 8, 9
KINDS = {1: "None", 2: "int", 3: "bool", 4: "float", 6: "str", 7: "list[int]", 8: "list[float]", 9: "list[bool]"}
KERNEL_CALL, DELEGATE_CALL = 1, 2
STATIC, UNBOUND = 0, 2

# Kernels that write to a cache, and which of their arguments are caches.
CACHE_ARGUMENTS = {
    "llama::update_cache": (1,),
    "llama::update_cache_with_indices": (1,),
    "llama::update_quantized_cache": (1,),
    "llama::sdpa_with_kv_cache": (3, 4),
}
CACHE_NAME = re.compile(r"(?:^|[._])(?:k|v|kv|key|value)s?_?cache|cache[._](?:k|v|key|value)s?(?:$|[._\d])", re.I)

MAX_RANK = 64
MAX_METADATA_ELEMENTS = 4096

EXPORT_AGAIN = "copy or download it again, and compare its SHA-256 with the one published"
OTHER_FORMATS = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or a .pt2)", "export it to a .pte first"),
    (0, b"GGUF", "a GGUF file", "that is llama.cpp's format; ExecuTorch reads .pte files"),
    (0, b"version https://git-lfs", "a git-LFS pointer, not the file it stands for", "run git lfs pull"),
    (0, b"<!DOCTYPE", "a web page", "the download went to an error or login page; fetch the file again"),
    (0, b"<html", "a web page", "the download went to an error or login page; fetch the file again"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (4, b"BP", "a bundled program (.bpte)", "give the .pte it was made from"),
    (4, b"FT01", "an ExecuTorch data file (.ptd)", "give the .pte that goes with it"),
    (4, b"TFL3", "a LiteRT model", "ExecuTorch reads .pte files"),
)


def inspect(path: Path) -> Program:
    """Everything the `.pte` at `path` says about its methods, operators, memory and metadata.

    An input or output bears the name the program keeps for it, else its position. The file holds an upper bound for a
    tensor of dynamic shape, no lower one, and not which of its dimensions are dynamic: such a dimension is written
    "1..N", without a bound "1..", and see `_Shapes` for how they are told apart. Operators inside a delegate are
    known for XNNPACK; another backend's delegates are counted and measured only.
    Raises SourceError for a file that is missing, cut short, damaged, or not a `.pte`.
    """
    with _mapped(path) as data:
        _identify(path, data)
        try:
            return _read(data)
        except _CutShortError as error:
            raise SourceError(f"{path} is cut short: {error}", EXPORT_AGAIN) from None
        except Malformed as error:
            raise SourceError(f"{path} is damaged: {error}", EXPORT_AGAIN) from None


class _CutShortError(Malformed):
    """The file ends before what it announces."""


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise SourceError(f"{path} is not a file", "give the path of a .pte")
        if not status.st_size:
            raise SourceError(f"{path} is empty", EXPORT_AGAIN)
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            yield data
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist", "give the path of a .pte") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


def _identify(path: Path, data: mmap) -> None:
    """Refuse what is not a program, by what it is instead."""
    head = data[:64]
    magic = head[4:8]
    if magic == b"ET12":
        return
    for offset, sign, what, hint in OTHER_FORMATS:
        if head[offset : offset + len(sign)] == sign:
            raise SourceError(f"{path} is {what}, not a .pte", hint)
    if re.fullmatch(rb"ET\d\d", magic):
        raise SourceError(
            f"{path} is an ExecuTorch program in the format {magic.decode()}; ET12 is the one known here",
            "export it again with the ExecuTorch release hubpub pins",
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(data):
        raise SourceError(f"{path} is a safetensors checkpoint, not a .pte", "export it to a .pte first")
    raise SourceError(f"{path} is not a .pte: it lacks the mark ET12 at byte 4", "give the path of a .pte")


@dataclass(frozen=True)
class _Tensor:
    """A tensor value as the file describes it; `bytes` at its upper bound, `buffer` 0 where it holds no data."""

    dtype: str
    letter: str
    bytes: int
    sizes: tuple[int, ...]
    dynamism: int
    buffer: int
    planned: bool
    external: bool
    name: str
    mutable_segment: int

    @classmethod
    def read(cls, table: Table) -> _Tensor:
        kind = table.i8(0)
        dtype, bits, letter = SCALARS.get(kind, (f"scalar type {kind}", 8, ""))
        sizes = table.numbers(2, "i")
        if len(sizes) > MAX_RANK or any(size < 0 for size in sizes):
            raise Malformed(f"a tensor of shape {list(sizes[:MAX_RANK])}")
        extra = table.table(9)
        return cls(
            dtype=dtype,
            letter=letter,
            bytes=(prod(sizes) * bits + 7) // 8,
            sizes=sizes,
            dynamism=table.i8(8),
            buffer=table.u32(5),
            planned=table.table(6) is not None,
            external=extra is not None and extra.i8(2) == 1,
            name=extra.string(1) if extra else "",
            mutable_segment=extra.u64(0) if extra else 0,
        )

    @property
    def constant(self) -> bool:
        return self.buffer > 0 and not self.planned and not self.external


@dataclass(frozen=True)
class _Plan:
    """An ExecutionPlan: one method. `calls` are kernel calls as operator name and arguments, in order."""

    name: str
    kinds: tuple[int, ...]
    values: tuple[Table | None, ...]
    tensors: dict[int, _Tensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    structure: tuple[str, str]
    operators: tuple[str, ...]
    calls: tuple[tuple[str, tuple[int, ...]], ...]
    delegates: tuple[tuple[str, int, int], ...]
    delegate_calls: int
    instructions: int
    arenas: tuple[int, ...]

    @classmethod
    def read(cls, table: Table) -> _Plan:
        kinds: list[int] = []
        values: list[Table | None] = []
        tensors: dict[int, _Tensor] = {}
        for index, entry in enumerate(table.tables(2)):
            kind, value = entry.union(0)
            kinds.append(kind)
            values.append(value)
            if kind == TENSOR and value is not None:
                tensors[index] = _Tensor.read(value)
        operators = tuple(_operator(entry) for entry in table.tables(6))
        delegates = tuple(_delegate(entry) for entry in table.tables(7))
        calls: list[tuple[str, tuple[int, ...]]] = []
        instructions = delegate_calls = 0
        for chain in table.tables(5):
            for entry in chain.tables(2):
                instructions += 1
                kind, call = entry.union(0)
                if call is None:
                    continue
                if kind == KERNEL_CALL:
                    calls.append((operators[_index(call.i32(0), operators, "operator")], call.numbers(1, "i")))
                elif kind == DELEGATE_CALL:
                    _index(call.i32(0), delegates, "delegate")
                    delegate_calls += 1
        structure = table.table(1)
        arenas = table.numbers(8, "q")
        if any(size < 0 for size in arenas):
            raise Malformed("an arena of negative size")
        return cls(
            name=table.string(0, "a method's name"),
            kinds=tuple(kinds),
            values=tuple(values),
            tensors=tensors,
            inputs=tuple(_index(index, kinds, "value") for index in table.numbers(3, "i")),
            outputs=tuple(_index(index, kinds, "value") for index in table.numbers(4, "i")),
            structure=(structure.string(0), structure.string(1)) if structure else ("", ""),
            operators=operators,
            calls=tuple(calls),
            delegates=delegates,
            delegate_calls=delegate_calls,
            instructions=instructions,
            arenas=arenas,
        )

    def integer(self, index: int) -> int | None:
        """The value of an integer constant."""
        value = self.values[index] if 0 <= index < len(self.values) and self.kinds[index] == INT else None
        return None if value is None else value.i64(0)


@dataclass(frozen=True)
class _File:
    """The program's parts outside its methods. Extents are (start, end) in the file; offsets are within a segment."""

    data: mmap
    version: int
    program_size: int
    segments: tuple[tuple[int, int], ...]
    inline_constants: tuple[tuple[int, int], ...]
    inline_delegates: tuple[tuple[int, int], ...]
    constant_segment: int | None
    constant_offsets: tuple[int, ...]
    mutable_segments: tuple[int, ...]
    named: dict[str, int]

    @classmethod
    def read(cls, data: mmap) -> tuple[_File, tuple[_Plan, ...]]:
        """The program in `data`. Raises Malformed, or _CutShortError where the file ends before what it announces."""
        program_size, base, with_header = len(data), 0, data[8:12] == b"eh00"
        if with_header:
            if len(data) < 40:
                raise _CutShortError("it ends within its header")
            program_size, base = struct.unpack_from("<QQ", data, 16)
            _reaches(data, program_size, "the program")
        root = Buffer(data, 0, program_size).root()
        segments: list[tuple[int, int]] = []
        for entry in root.tables(4):
            if not with_header:
                raise Malformed("it has segments and no extended header to say where they are")
            start = base + entry.u64(0)
            _reaches(data, start + entry.u64(1), f"segment {len(segments)}")
            segments.append((start, start + entry.u64(1)))
        constants = root.table(5)
        offsets = constants.numbers(1, "Q") if constants else ()
        file = cls(
            data=data,
            version=root.u32(0),
            program_size=program_size,
            segments=tuple(segments),
            inline_constants=tuple(_extent(entry) for entry in root.tables(2)),
            inline_delegates=tuple(_extent(entry) for entry in root.tables(3)),
            # The first offset stands for tensors without data: a program may have it and no segment.
            constant_segment=_index(constants.u32(0), segments, "segment") if constants and len(offsets) > 1 else None,
            constant_offsets=offsets,
            mutable_segments=tuple(_index(entry.u32(0), segments, "segment") for entry in root.tables(6)),
            named={entry.string(0): _index(entry.u32(1), segments, "segment") for entry in root.tables(7)},
        )
        return file, tuple(_Plan.read(entry) for entry in root.tables(1))

    def constant(self, tensor: _Tensor) -> int:
        """Where the data of a constant begins. Raises Malformed where it would not lie among the constants."""
        if self.inline_constants:
            start, end = self.inline_constants[_index(tensor.buffer, self.inline_constants, "constant")]
        elif self.constant_segment is not None:
            start, end = self.segments[self.constant_segment]
            start += self.constant_offsets[_index(tensor.buffer, self.constant_offsets, "constant")]
        else:
            raise Malformed(f"constant {tensor.buffer} of a program without constants")
        if start + tensor.bytes > end:
            raise Malformed(f"constant {tensor.buffer} of {tensor.bytes} bytes lies outside its segment")
        return start

    def blob(self, location: int, index: int) -> tuple[int, int]:
        """The extent of a delegate's blob; `location` is the schema's DataLocation."""
        extents = self.segments if location else self.inline_delegates
        return extents[_index(index, extents, "delegate's data")]


@dataclass
class _Weights:
    """Constants, each counted once whoever refers to it: (dtype, bytes) by where its data is."""

    file: _File
    found: dict[tuple[str | int, ...], tuple[str, int]]
    named_by_kernels: set[str]
    named_by_delegates: dict[str, str]

    def add_plan(self, plan: _Plan) -> None:
        for tensor in plan.tensors.values():
            if tensor.constant:
                self.file.constant(tensor)
                self._add(("constant", tensor.buffer), tensor.dtype, tensor.bytes)
            elif tensor.external:
                self.named_by_kernels.add(tensor.name)
                self._add(("named", tensor.name), tensor.dtype, tensor.bytes)

    def add_delegate(self, backend: str, blob: tuple[int, int], graph: xnnpack.Graph) -> None:
        for number, weight in enumerate(graph.weights):
            if weight.key:
                self.named_by_delegates[weight.key] = backend
                self._add(("named", weight.key), weight.dtype, weight.bytes)
            else:
                self._add(("blob", blob[0], number), weight.dtype, weight.bytes)

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
        return sum(size for key, (_, size) in self.found.items() if key[0] == "named" and key[1] not in self.file.named)


def _read(data: mmap) -> Program:
    file, plans = _File.read(data)
    weights = _Weights(file, {}, set(), {})
    methods: list[Method] = []
    metadata: dict[str, Any] = {}
    kernels: Counter[str] = Counter()
    delegated: Counter[str] = Counter()
    backends: Counter[str] = Counter()
    blobs: dict[tuple[int, int], str] = {}
    cache = KVCache(bytes=0, dtype="", layers=0)
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
        # Methods of one program share their cache: what the largest needs is what the program needs.
        cache = max(cache, _cache(plan, state), key=lambda found: found.bytes)
    graphs: dict[tuple[int, int], xnnpack.Graph | None] = {}
    for backend, location, index in (delegate for plan in plans for delegate in plan.delegates):
        backends[backend] += 1
        blob = file.blob(location, index)
        blobs.setdefault(blob, backend)
        if backend == xnnpack.BACKEND:
            if blob not in graphs:
                graphs[blob] = graph = xnnpack.read(data, *blob)
                if graph:
                    weights.add_delegate(backend, blob, graph)
            delegated.update((graphs[blob] or xnnpack.NOTHING).operators)
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
    )


def _shares(file: _File, weights: _Weights, blobs: dict[tuple[int, int], str]) -> tuple[int, Counter[str]]:
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
    for index in owners.keys() - own:
        shares[owners[index]] += _length(file.segments[index])
    if file.constant_segment is not None:
        own.add(file.constant_segment)
    constants += sum(_length(file.segments[index]) for index in own)
    return constants, shares


def _layout(file: _File, blobs: dict[tuple[int, int], str]) -> dict[str, int]:
    """Bytes of the file by what they hold."""
    inline = sum(map(_length, file.inline_constants)), sum(map(_length, file.inline_delegates))
    found = {"program": max(0, file.program_size - sum(inline)), "constants": inline[0], "delegates": inline[1]}
    named = set(file.named.values())
    for index, extent in enumerate(file.segments):
        if index == file.constant_segment:
            kind = "constants"
        elif extent in blobs:
            kind = "delegates"
        elif index in named:
            kind = "named data"
        elif index in file.mutable_segments:
            kind = "initial state"
        else:
            kind = "other"
        found[kind] = found.get(kind, 0) + _length(extent)
    found["padding"] = max(0, len(file.data) - sum(found.values()))
    return {kind: size for kind, size in found.items() if size}


def _method(plan: _Plan, state: dict[int, _Tensor]) -> Method:
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


def _tensors(plan: _Plan, indices: tuple[int, ...], names: tuple[str, ...], shapes: _Shapes) -> tuple[Tensor, ...]:
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
    def of(cls, plan: _Plan) -> _Shapes:
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

    def show(self, tensor: _Tensor) -> tuple[int | str, ...]:
        if tensor.dynamism == STATIC:
            return tensor.sizes
        if tensor.dynamism == UNBOUND:
            return tuple("1.." for _ in tensor.sizes)
        known = self.bounds & set(tensor.sizes)
        return tuple(f"1..{size}" if size > 1 and (not known or size in known) else size for size in tensor.sizes)


def _state(plan: _Plan) -> dict[int, _Tensor]:
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


def _cache_arguments(plan: _Plan) -> Iterator[tuple[int, str]]:
    """Index of every argument that a kernel takes as its cache, and the kernel's name."""
    for name, arguments in plan.calls:
        for position in CACHE_ARGUMENTS.get(name.partition(".")[0], ()):
            if position < len(arguments):
                yield arguments[position], name


def _cache(plan: _Plan, state: dict[int, _Tensor]) -> KVCache:
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


def _constant_value(file: _File, plan: _Plan) -> Value | tuple[int, ...] | tuple[float, ...] | None:
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


def _operator(table: Table) -> str:
    name, overload = table.string(0, "an operator's name"), table.string(1)
    return f"{name}.{overload}" if overload else name


def _delegate(table: Table) -> tuple[str, int, int]:
    data = table.required(1, "a delegate's data")
    return table.string(0, "a delegate's backend"), data.i8(0), data.u32(1)


def _extent(table: Table) -> tuple[int, int]:
    start, count = table.extent(0)
    return start, start + count


def _length(extent: tuple[int, int]) -> int:
    return extent[1] - extent[0]


def _index(index: int, among: Sized, what: str) -> int:
    if not 0 <= index < len(among):
        raise Malformed(f"{what} {index} of {len(among)}")
    return index


def _reaches(data: mmap, end: int, what: str) -> None:
    if end > len(data):
        raise _CutShortError(f"{what} ends at byte {end:,} and the file at {len(data):,}")


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    """By count, the largest first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def render_inspect(program: Program, title: str = "") -> RenderableType:
    """`program` for a terminal: where the bytes are, its methods, operators, backends and metadata.

    `title` is what to call it, for instance the file's name. Text from the file is shown without control characters.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    def grid(caption: str, *columns: tuple[str, str]) -> Grid:
        made = Grid(title=caption, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, side in columns:
            made.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
        return made

    def clean(text: str, limit: int = 200) -> Text:
        shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:limit])
        return Text(shown + ("…" if len(text) > limit else ""))

    def signature(tensors: tuple[Tensor, ...]) -> Text:
        lines = (f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]" for tensor in tensors)
        return Text("\n").join(clean(line) for line in lines)

    def counts(caption: str, column: str, found: dict[str, int]) -> Grid:
        made = grid(caption, (column, "left"), ("count", "right"))
        for name, count in found.items():
            made.add_row(clean(name), f"{count:,}")
        return made

    def shares(caption: str, column: str, found: dict[str, int]) -> Grid:
        made = grid(caption, (column, "left"), ("bytes", "right"), ("", "right"), ("", "left"))
        total = sum(found.values()) or 1
        for name, size in sorted(found.items(), key=lambda item: -item[1]):
            bar = Text("█" * max(round(20 * size / total), 1 if size else 0), style="cyan")
            made.add_row(clean(name), human_bytes(size), f"{size / total:.1%}", bar)
        return made

    parts: list[RenderableType] = []
    size = sum(program.layout.values())
    head = clean(title or "program")
    head.stylize("bold")
    head.append(f"   {human_bytes(size)}, schema version {program.schema_version}")
    if program.external_bytes:
        head.append(f", needs {human_bytes(program.external_bytes)} of weights from another file", style="yellow")
    parts += [head, Text("")]

    methods = grid(
        "Methods",
        ("method", "left"),
        ("inputs", "left"),
        ("outputs", "left"),
        ("memory", "right"),
        ("of it state", "right"),
        ("instructions", "right"),
        ("delegate calls", "right"),
    )
    for method in program.methods:
        methods.add_row(
            clean(method.name),
            signature(method.inputs),
            signature(method.outputs),
            human_bytes(method.planned_bytes),
            human_bytes(method.state_bytes),
            f"{method.instructions:,}",
            f"{method.delegates:,}",
        )
    parts.append(methods)
    cache = program.kv_cache
    if cache.bytes:
        shapes = ", ".join(f"{count} of {shape}" for shape, count in cache.shapes.items())
        parts += [
            Text(f"KV cache: {human_bytes(cache.bytes)} {cache.dtype}, {cache.layers} layers ({shapes})"),
            Text(""),
        ]
    parts.append(shares("Where the bytes are", "part", program.layout))
    if program.weights:
        parts.append(shares("Weights", "dtype", program.weights))
    if program.backends:
        backends = grid("Backends", ("backend", "left"), ("delegates", "right"), ("bytes", "right"))
        for name, count in program.backends.items():
            backends.add_row(clean(name), f"{count:,}", human_bytes(program.backend_bytes.get(name, 0)))
        parts.append(backends)
    operators = program.operators
    if operators.delegated:
        share = f"Operators in delegates ({operators.delegated_share:.0%} of all)"
        parts.append(counts(share, "operator", operators.delegated))
    namespaces = ", ".join(f"{count:,} {name or 'without a namespace'}" for name, count in operators.namespaces.items())
    parts.append(
        counts("Kernels an app must link" + (f" ({namespaces})" if namespaces else ""), "kernel", operators.kernels)
    )
    if program.metadata:
        metadata = grid("Metadata", ("method", "left"), ("value", "left"))
        for name, value in program.metadata.items():
            metadata.add_row(clean(name), clean(str(list(value)) if isinstance(value, tuple) else str(value)))
        parts.append(metadata)
    return Group(*parts)


def human_bytes(size: int) -> str:
    """`size` in decimal units, as file sizes are given on the Hub: 4.03 GB."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{size} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"
