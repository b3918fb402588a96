"""Reading flatbuffers from a memory map: the few operations needed, every one of them bounds-checked.

A file may be damaged or hostile. No read leaves the range of the buffer, and no length is believed before it was
compared with the range. What is unpacked is charged for, and its sum is bounded by the size of the buffer: tables that
all point at the same long vector end in an error, and neither in hours of work nor in gigabytes of memory. A vtable may
be shared by any number of tables; it is read where it lies, one field at a time, and never unpacked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap

_U8, _I8, _U16, _I16, _I32, _U32 = (struct.Struct(f"<{code}") for code in "BbHhiI")
_I64, _U64, _F64 = (struct.Struct(f"<{code}") for code in "qQd")

# What one table costs of the budget: its own offset and at least the offset of its vtable.
_TABLE_COST = 8
# What one element of a vector costs at least: a reference to it is as long, however short it is in the file.
_ELEMENT_COST = 8
# Real programs use a sixth of this many bytes for each of their own, and the largest one 0.3 MB in all.
_BUDGET, _MAX_BUDGET = 4, 1 << 26


class Malformed(ValueError):
    """The bytes are not what the format promises; the message says where."""


class Buffer:
    """The bytes `start` to `end` of `data`, holding one flatbuffer whose root offset lies at `start`."""

    __slots__ = ("_budget", "data", "end", "start")

    def __init__(self, data: mmap | bytes, start: int, end: int) -> None:
        if not 0 <= start <= end <= len(data):
            raise Malformed(f"a range from {start} to {end} in {len(data)} bytes")
        self.data = data
        self.start = start
        self.end = end
        self._budget = min(_BUDGET * (end - start) + 4096, _MAX_BUDGET)

    @property
    def identifier(self) -> bytes:
        """The four bytes that name the schema."""
        return self.bytes(self.start + 4, 4)

    def root(self) -> Table:
        return Table(self, self.start + self.u32(self.start))

    def charge(self, cost: int) -> None:
        """Count work against what a well-formed buffer of this size could ask for."""
        self._budget -= cost
        if self._budget < 0:
            raise Malformed("its tables overlap: more is referred to than the file holds")

    def check(self, position: int, length: int) -> None:
        if position < self.start or length < 0 or position + length > self.end:
            raise Malformed(f"{length} bytes at {position} lie outside {self.start} to {self.end}")

    def u32(self, position: int) -> int:
        return int(self._unpack(_U32, position))

    def bytes(self, position: int, length: int) -> bytes:
        self.check(position, length)
        return self.data[position : position + length]

    def _unpack(self, form: struct.Struct, position: int) -> int | float:
        if position < self.start or position + form.size > self.end:
            raise Malformed(f"{form.size} bytes at {position} lie outside {self.start} to {self.end}")
        value: int | float = form.unpack_from(self.data, position)[0]
        return value


class Table:
    """One table of a buffer. Fields are addressed by slot: their position in the schema, a union taking two."""

    __slots__ = ("_size", "_vtable", "_vtable_end", "buffer", "position")

    def __init__(self, buffer: Buffer, position: int) -> None:
        buffer.charge(_TABLE_COST)
        vtable = position - int(buffer._unpack(_I32, position))
        length = int(buffer._unpack(_U16, vtable))
        self._size = int(buffer._unpack(_U16, vtable + 2))
        if length < 4 or length % 2:
            raise Malformed(f"a vtable of {length} bytes at {vtable}")
        buffer.check(vtable, length)
        buffer.check(position, self._size)
        self._vtable, self._vtable_end = vtable + 4, vtable + length
        self.buffer = buffer
        self.position = position

    def _field(self, slot: int) -> int | None:
        entry = self._vtable + 2 * slot
        if entry >= self._vtable_end or not (offset := int(self.buffer._unpack(_U16, entry))):
            return None
        if offset >= self._size:
            raise Malformed(f"field {slot} of the table at {self.position} lies outside it")
        return self.position + offset

    def _number(self, slot: int, form: struct.Struct) -> int | float:
        position = self._field(slot)
        return 0 if position is None else self.buffer._unpack(form, position)

    def u8(self, slot: int) -> int:
        return int(self._number(slot, _U8))

    def i8(self, slot: int) -> int:
        return int(self._number(slot, _I8))

    def i16(self, slot: int) -> int:
        return int(self._number(slot, _I16))

    def i32(self, slot: int) -> int:
        return int(self._number(slot, _I32))

    def u32(self, slot: int) -> int:
        return int(self._number(slot, _U32))

    def i64(self, slot: int) -> int:
        return int(self._number(slot, _I64))

    def u64(self, slot: int) -> int:
        return int(self._number(slot, _U64))

    def f64(self, slot: int) -> float:
        return float(self._number(slot, _F64))

    def table(self, slot: int) -> Table | None:
        """The table in `slot`, or None where it was left out."""
        position = self._field(slot)
        return None if position is None else Table(self.buffer, position + self.buffer.u32(position))

    def required(self, slot: int, what: str) -> Table:
        found = self.table(slot)
        if found is None:
            raise Malformed(f"{what} is missing")
        return found

    def union(self, slot: int) -> tuple[int, Table | None]:
        """The kind of the union whose tag is in `slot`, and its table."""
        kind = self.u8(slot)
        return kind, self.table(slot + 1) if kind else None

    def extent(self, slot: int, item: int = 1) -> tuple[int, int]:
        """Position of the first element and the number of elements, each `item` bytes, of a vector; not read."""
        position = self._field(slot)
        if position is None:
            return self.buffer.start, 0
        position += self.buffer.u32(position)
        count = self.buffer.u32(position)
        self.buffer.check(position + 4, count * item)
        return position + 4, count

    def string(self, slot: int, what: str = "") -> str:
        """The text in `slot`, "" where it was left out unless `what` names it as required."""
        position, count = self.extent(slot)
        if what and not count:
            raise Malformed(f"{what} is missing")
        self.buffer.charge(count)
        return self.buffer.bytes(position, count).decode("utf-8", "replace")

    def numbers(self, slot: int, code: str) -> tuple[int, ...]:
        """The integers of a vector, `code` being struct's letter for one."""
        size = struct.calcsize(f"<{code}")
        position, count = self.extent(slot, size)
        self.buffer.charge(count * max(size, _ELEMENT_COST))
        return struct.unpack_from(f"<{count}{code}", self.buffer.data, position) if count else ()

    def floats(self, slot: int) -> tuple[float, ...]:
        """The doubles of a vector."""
        return tuple(float(value) for value in self.numbers(slot, "d"))

    def tables(self, slot: int) -> Iterator[Table]:
        """The tables of a vector, one after the other."""
        position, count = self.extent(slot, 4)
        for index in range(count):
            at = position + 4 * index
            yield Table(self.buffer, at + self.buffer.u32(at))
