"""Files that are made to be read with: the answer is an error or a program, in bounded time and memory."""

from __future__ import annotations

import mmap
import random
import struct
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from conftest import bounded

from hubpub.measure.flatbuffer import Buffer, Malformed
from measure.hostile_programs import WIDEST, program

MEMORY = 512 << 20
"""Bytes of address space that reading a program of half a megabyte may take, Python and what it imports included."""

READ = """
import io, resource, sys
from pathlib import Path
from typing import Any
from rich.console import Console
from hubpub import facts
from hubpub.cli import tables
from hubpub.errors import SourceError
from hubpub.measure.inspect import inspect
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
outcomes = []
for name in sys.argv[2:]:
    try:
        found = inspect(Path(name))
        facts.dump(found)
        Console(width=100, file=io.StringIO()).print(tables.program(found))
        outcomes.append("read")
    except SourceError as error:
        assert error.hint
        outcomes.append("refused")
print(*outcomes)
"""


def read(*paths: Path, memory: int = MEMORY) -> list[str]:
    """What becomes of each file, read by one process that may take so much `memory` and a minute of the processor."""
    return bounded(READ, *paths, memory=memory)


@pytest.mark.parametrize(
    "form",
    [
        {"kind": 2, "fields": WIDEST},
        {"kind": 2, "fields": WIDEST, "one_table": True},
        {"kind": 2, "one_table": True},
        {"kind": 5, "one_table": True},
        {"kind": 5},
    ],
    ids=str,
)
def test_tables_that_share_what_they_refer_to_take_no_more_than_they_hold(form: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "hostile.pte"
    path.write_bytes(program(470_000, **form))
    assert path.stat().st_size < 480_000
    assert read(path) in (["read"], ["refused"])


def test_damaged_bytes_end_in_an_error_or_a_program_in_bounded_memory(tmp_path: Path) -> None:
    chance = random.Random(18)
    paths = []
    for number in range(300):
        data = bytearray(program(2_000, kind=chance.choice((2, 5)), fields=chance.choice((12, 300))))
        for _ in range(chance.randrange(1, 12)):
            at = chance.randrange(8, len(data) - 4)
            if chance.random() < 0.5:
                data[at] ^= 1 << chance.randrange(8)
            else:
                struct.pack_into("<I", data, at, chance.choice((0, 4, 2**31, 2**32 - 4, len(data), 65_535)))
        paths.append(tmp_path / f"{number}.pte")
        paths[-1].write_bytes(data)
    outcomes = read(*paths)
    assert len(outcomes) == 300 and outcomes.count("refused") > 50 and outcomes.count("read") > 5


def _table(fields: bytes, slots: tuple[int, ...]) -> Buffer:
    """A buffer that holds one table of `fields`, found at the offsets `slots` in it."""
    vtable = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), 4 + len(fields), *slots)
    root = 4 + len(vtable)
    data = struct.pack("<I", root) + vtable + struct.pack("<i", len(vtable)) + fields
    return Buffer(data, 0, len(data))


def test_numbers_are_read_where_the_vtable_says_and_left_out_where_it_says_nothing() -> None:
    table = _table(struct.pack("<IbBh", 7, -1, 255, -2), (4, 8, 9, 10, 0)).root()
    assert (table.u32(0), table.i8(1), table.u8(2), table.i16(3)) == (7, -1, 255, -2)
    assert (table.u32(4), table.u32(5), table.u32(99)) == (0, 0, 0)
    assert table.table(4) is None and table.extent(4) == (0, 0) and table.string(4) == ""


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        (b"\1\0\0\0", (8,)),  # a field that begins where the table ends
        (b"\1\0\0\0", (65_535,)),
        (b"\1\0\0\0", (5,)),  # and one that begins inside and ends behind the buffer
    ],
)
def test_a_field_outside_of_its_table_is_refused(fields: bytes, slots: tuple[int, ...]) -> None:
    with pytest.raises(Malformed, match="outside"):
        _table(fields, slots).root().u32(0)


@pytest.mark.parametrize("vtable", [(2, 4), (3, 4), (5, 4), (60, 4), (4, 400), (0, 0)])
def test_a_vtable_of_impossible_size_is_refused(vtable: tuple[int, int]) -> None:
    data = struct.pack("<IHHi", 8, *vtable, 4)
    with pytest.raises(Malformed):
        Buffer(data, 0, len(data)).root()


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (3, 2), (0, 9)])
def test_a_range_outside_of_the_bytes_is_refused(start: int, end: int) -> None:
    with pytest.raises(Malformed, match="a range"):
        Buffer(bytes(8), start, end)


@pytest.mark.parametrize(("position", "length"), [(3, 1), (4, -1), (4, 5), (9, 0)])
def test_bytes_outside_of_the_range_are_refused(position: int, length: int) -> None:
    buffer = Buffer(bytes(12), 4, 8)
    assert buffer.bytes(4, 4) == bytes(4) and buffer.bytes(8, 0) == b""
    with pytest.raises(Malformed, match="outside"):
        buffer.bytes(position, length)
    for at in (3, 5):
        with pytest.raises(Malformed, match="outside"):
            buffer.u32(at)


def test_a_vector_read_again_and_again_is_refused_before_long() -> None:
    vector = struct.pack("<I100i", 100, *range(100))
    table = _table(struct.pack("<I", 4) + vector, (4,)).root()
    assert table.numbers(0, "i") == tuple(range(100))
    assert table.extent(0, 4)[1] == 100
    with pytest.raises(Malformed, match="overlap"):
        for _ in range(50):
            table.numbers(0, "i")
    text = _table(struct.pack("<II", 4, 5) + b"hello", (4,)).root()
    assert text.string(0) == "hello"
    with pytest.raises(Malformed, match="overlap"):
        for _ in range(10_000):
            text.string(0)
    with pytest.raises(Malformed, match="overlap"):
        for _ in range(10_000):
            text.buffer.root()


def test_what_is_required_is_missed_by_name() -> None:
    table = _table(b"\0\0\0\0", (0, 0)).root()
    with pytest.raises(Malformed, match="a method's name is missing"):
        table.string(0, "a method's name")
    with pytest.raises(Malformed, match="its data is missing"):
        table.required(1, "its data")
    assert table.union(0) == (0, None)


def test_what_the_flatbuffers_library_writes_is_read_as_it_was_meant() -> None:
    """Every kind of field, written by the format's own library; the buffer lies in the middle of other bytes."""
    builder = flatbuffers.Builder()
    text, code = builder.CreateString("grüße"), builder.CreateNumpyVector(np.array([1.5, -2.25], "<f8"))
    integers = builder.CreateNumpyVector(np.array([-1, 2**31 - 1], "<i4"))
    inner = []
    for number in (11, 22, 33):
        builder.StartObject(1)
        builder.PrependInt32Slot(0, number, 0)
        inner.append(builder.EndObject())
    builder.StartVector(4, 3, 4)
    for one in reversed(inner):
        builder.PrependUOffsetTRelative(one)
    listed = builder.EndVector()
    builder.StartObject(14)
    builder.PrependUint8Slot(0, 200, 0)
    builder.PrependInt8Slot(1, -100, 0)
    builder.PrependInt16Slot(2, -30_000, 0)
    builder.PrependInt32Slot(3, -(2**31), 0)
    builder.PrependUint32Slot(4, 2**32 - 1, 0)
    builder.PrependInt64Slot(5, -(2**63), 0)
    builder.PrependUint64Slot(6, 2**64 - 1, 0)
    builder.PrependFloat64Slot(7, -0.125, 0)
    for slot, offset in ((8, text), (9, code), (10, integers), (11, listed), (13, inner[1])):
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    builder.PrependUint8Slot(12, 2, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"HUB1")
    made = bytes(builder.Output())
    buffer = Buffer(b"\xff" * 64 + made + b"\xff" * 64, 64, 64 + len(made))
    assert buffer.identifier == b"HUB1"
    table = buffer.root()
    assert (table.u8(0), table.i8(1), table.i16(2), table.i32(3)) == (200, -100, -30_000, -(2**31))
    assert (table.u32(4), table.i64(5), table.u64(6), table.f64(7)) == (2**32 - 1, -(2**63), 2**64 - 1, -0.125)
    assert table.string(8) == "grüße" and table.floats(9) == (1.5, -2.25)
    assert table.numbers(10, "i") == (-1, 2**31 - 1) and table.extent(10, 4)[1] == 2
    assert [one.i32(0) for one in table.tables(11)] == [11, 22, 33]
    kind, chosen = table.union(12)
    assert kind == 2 and chosen and chosen.i32(0) == 22
    assert table.required(13, "it").i32(0) == 22
    # A union without a kind has no table, whatever lies in its slot; what was left out is nothing.
    assert table.union(14) == (0, None) and table.floats(14) == () and list(table.tables(14)) == []


def test_a_table_without_fields_is_one() -> None:
    assert _table(b"", ()).root().u32(0) == 0


def test_a_field_never_reaches_over_its_table_into_the_next() -> None:
    buffer = _table(b"\1\0\0\0", (8, 9))
    longer = Buffer(bytes(buffer.data) + b"\7\0\0\0" * 4, 0, len(buffer.data) + 16)
    for slot in (0, 1):
        with pytest.raises(Malformed, match=f"field {slot} of the table at 12 lies outside it"):
            longer.root().u32(slot)


@pytest.mark.parametrize(("count", "item"), [(3, 4), (2, 5), (9, 1), (2**32 - 1, 8)])
def test_a_vector_longer_than_the_buffer_is_refused_before_it_is_read(count: int, item: int) -> None:
    table = _table(struct.pack("<II", 4, count) + bytes(8), (4,)).root()
    with pytest.raises(Malformed, match="outside"):
        table.extent(0, item)
    fits = _table(struct.pack("<II", 4, 2) + bytes(8), (4,)).root()
    assert fits.extent(0, 4)[1] == 2 and fits.extent(0, 1)[1] == 2


def test_what_may_be_asked_of_a_buffer_follows_its_size() -> None:
    for data, budget in ((b"", 4096), (bytes(1000), 4 * 1000 + 4096), (mmap.mmap(-1, 32 << 20), 64 << 20)):
        buffer = Buffer(data, 0, len(data))
        buffer.charge(budget)
        with pytest.raises(Malformed, match="overlap"):
            buffer.charge(1)
    part = Buffer(bytes(1000), 400, 500)
    part.charge(4 * 100 + 4096)
    with pytest.raises(Malformed, match="overlap"):
        part.charge(1)


@pytest.mark.parametrize(("code", "each"), [("b", 8), ("i", 8), ("q", 8)])
def test_a_table_costs_what_it_takes_and_an_element_at_least_a_reference(code: str, each: int) -> None:
    buffer = _table(struct.pack("<II", 4, 3) + bytes(24), (4,))
    budget = 4 * len(buffer.data) + 4096
    buffer.charge(budget - 8 - 3 * each)
    assert buffer.root().numbers(0, code) == (0, 0, 0)
    with pytest.raises(Malformed, match="overlap"):
        buffer.charge(1)


def test_a_vector_of_tables_may_reach_up_to_the_last_table_of_the_buffer() -> None:
    """Eight references to one table of four bytes, the last four of all."""
    offsets = [58 - (26 + 4 * index) for index in range(8)]
    table = _table(struct.pack("<IHHI8Ii", 8, 4, 4, 8, *offsets, 40), (4,)).root()
    assert [one.position for one in table.tables(0)] == [58] * 8
