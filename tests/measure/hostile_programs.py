"""Small programs whose tables all refer to the same bytes: what they unpack to is many times what they hold."""

from __future__ import annotations

import struct

WIDEST = 32_765
"""Fields of the widest vtable there can be."""


def program(size: int, *, kind: int, fields: int = 12, one_table: bool = False) -> bytes:
    """A program of about `size` bytes with one method that has as many values as fit, all of `kind`.

    Each value has a table of its own, or with `one_table` all have the same. What they hold is one and the same table,
    of `fields` fields.
    """
    data = bytearray(struct.pack("<I4s", 0, b"ET12"))

    def vtable(size: int, *fields: int) -> int:
        at = len(data)
        data.extend(struct.pack(f"<{2 + len(fields)}H", 4 + 2 * len(fields), size, *fields))
        return at

    def table(vtable: int, *words: int) -> int:
        at = len(data)
        data.extend(struct.pack(f"<i{len(words)}I", at - vtable, *words))
        return at

    def refer(at: int) -> None:
        """Let the offset at `at` point to what comes next."""
        struct.pack_into("<I", data, at, len(data) - at)

    root_fields = vtable(12, 4, 8)  # version, execution_plan
    plan_fields = vtable(12, 4, 0, 8)  # name, container_meta_type, values
    value_fields = vtable(12, 4, 8)  # val_type, val
    nothing = vtable(4, *range(4, 4 + fields) if fields > 12 else [0] * fields)
    data.extend(bytes(-len(data) % 4))
    refer(0)
    root = table(root_fields, 0, 0)
    refer(root + 8)
    data.extend(struct.pack("<II", 1, 4))
    plan = table(plan_fields, 0, 0)
    refer(plan + 4)
    data.extend(struct.pack("<I8s", 7, b"forward"))
    refer(plan + 8)
    count = (size - len(data)) // (4 if one_table else 16)
    data.extend(struct.pack("<I", count))
    vector = len(data)
    data.extend(bytes(4 * count))
    for index in range(count):
        if index == 0 or not one_table:
            value = len(data)
            table(value_fields, kind, 0)
        struct.pack_into("<I", data, vector + 4 * index, value - vector - 4 * index)
    last = len(data)
    table(nothing)
    for index in range(1 if one_table else count):
        at = vector + 4 * count + 12 * index + 8
        struct.pack_into("<I", data, at, last - at)
    return bytes(data)
