"""The parts of an ExecuTorch program file (`.pte`): what the schema stores, checked and unpacked, nothing concluded.

The schema is executorch/schema/program.fbs; the slots and tags below are positions in it. The file is mapped, and only
the flatbuffer at its beginning is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from stat import S_ISREG

from hubpub.errors import SourceError
from hubpub.measure.flatbuffer import Buffer, Malformed, Table

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

MAX_RANK = 16  # the runtime's limit

COPY_AGAIN = "copy or download it again, and compare its SHA-256 with the one published"
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


class CutShortError(Malformed):
    """The file ends before what it announces."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[File, tuple[Plan, ...]]]:
    """The program at `path` and its methods, readable until the context ends.

    Raises SourceError for a file that is missing, cut short, damaged, or not a `.pte`; what is found damaged within
    the context is told the same way.
    """
    with _mapped(path) as data:
        _identify(path, data)
        try:
            yield File.read(data)
        except CutShortError as error:
            raise SourceError(f"{path} is cut short: {error}", COPY_AGAIN) from None
        except Malformed as error:
            raise SourceError(f"{path} is damaged: {error}", COPY_AGAIN) from None


def identify(path: Path) -> None:
    """Raise SourceError, saying what it is instead, unless there is a program at `path`."""
    with _mapped(path) as data:
        _identify(path, data)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise SourceError(f"{path} is not a file", "give the path of a .pte")
        if not status.st_size:
            raise SourceError(f"{path} is empty", COPY_AGAIN)
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
class TensorValue:
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

    @classmethod
    def read(cls, table: Table) -> TensorValue:
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
        )

    @property
    def constant(self) -> bool:
        return self.buffer > 0 and not self.planned and not self.external


@dataclass(frozen=True)
class Plan:
    """An ExecutionPlan: one method. `calls` are kernel calls as operator name and arguments, in order."""

    name: str
    kinds: tuple[int, ...]
    values: tuple[Table | None, ...]
    tensors: dict[int, TensorValue]
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
    def read(cls, table: Table) -> Plan:
        kinds: list[int] = []
        values: list[Table | None] = []
        tensors: dict[int, TensorValue] = {}
        for index, entry in enumerate(table.tables(2)):
            kind, value = entry.union(0)
            kinds.append(kind)
            values.append(value)
            if kind == TENSOR and value is not None:
                tensors[index] = TensorValue.read(value)
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
class File:
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
    def read(cls, data: mmap) -> tuple[File, tuple[Plan, ...]]:
        """The program in `data`. Raises Malformed, or CutShortError where the file ends before what it announces."""
        program_size, base, with_header = len(data), 0, data[8:12] == b"eh00"
        if with_header:
            if len(data) < 40:
                raise CutShortError("it ends within its header")
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
        return file, tuple(Plan.read(entry) for entry in root.tables(1))

    def constant(self, tensor: TensorValue) -> int:
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

    @cached_property
    def among_constants(self) -> frozenset[int]:
        """The segments that are part of the segment of constants: what both name is in the file once."""
        if self.constant_segment is None:
            return frozenset()
        first, last = self.segments[self.constant_segment]
        return frozenset(
            index
            for index, (start, end) in enumerate(self.segments)
            if index != self.constant_segment and first <= start < end <= last
        )

    def under(self, name: str) -> tuple[int, int] | None:
        """The extent of the data that lies under `name`; it may be longer, for the next one begins at a multiple."""
        index = self.named.get(name)
        return None if index is None else self.segments[index]

    def blob(self, location: int, index: int) -> tuple[int, int]:
        """The extent of a delegate's blob; `location` is the schema's DataLocation."""
        extents = self.segments if location else self.inline_delegates
        return extents[_index(index, extents, "delegate's data")]


def _operator(table: Table) -> str:
    name, overload = table.string(0, "an operator's name"), table.string(1)
    return f"{name}.{overload}" if overload else name


def _delegate(table: Table) -> tuple[str, int, int]:
    data = table.required(1, "a delegate's data")
    return table.string(0, "a delegate's backend"), data.i8(0), data.u32(1)


def _extent(table: Table) -> tuple[int, int]:
    start, count = table.extent(0)
    return start, start + count


def length(extent: tuple[int, int]) -> int:
    return extent[1] - extent[0]


def _index(index: int, among: Sized, what: str) -> int:
    if not 0 <= index < len(among):
        raise Malformed(f"{what} {index} of {len(among)}")
    return index


def _reaches(data: mmap, end: int, what: str) -> None:
    if end > len(data):
        raise CutShortError(f"{what} ends at byte {end:,} and the file at {len(data):,}")
