"""What an XNNPACK delegate says about itself: the operators it runs and the weights it holds, read from its blob."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from hubpub.measure.flatbuffer import Buffer, Malformed, Table

BACKEND = "XnnpackBackend"

# The members of XNodeUnion in the order of the schema (executorch/backends/xnnpack/serialization/schema.fbs): the tag
# stored in a blob is the position in this list, beginning with 1. Names are only ever added at the end.
NODES = (
    "XNNAdd",
    "XNNFullyConnected",
    "XNNSoftmax",
    "XNNSigmoid",
    "XNNStaticTranspose",
    "XNNClamp",
    "XNNConv2d",
    "XNNDiv",
    "XNNStaticResizeBilinear2D",
    "XNNStaticConstantPad",
    "XNNAvgPooling2d",
    "XNNMinimum",
    "XNNDepthwiseConv2d",
    "XNNMaxPooling2d",
    "XNNMultiply",
    "XNNSubtract",
    "XNNFloor",
    "XNNConvert",
    "XNNGlobalAvgPooling2d",
    "XNNStaticReshape",
    "XNNArgMaxPooling2d",
    "XNNSquareRoot",
    "XNNCeiling",
    "XNNHardswish",
    "XNNLeakyReLU",
    "XNNMaximum",
    "XNNNegate",
    "XNNSquare",
    "XNNELU",
    "XNNAbs",
    "XNNPReLU",
    "XNNConcatenate2",
    "XNNConcatenate3",
    "XNNConcatenate4",
    "XNNStaticSlice",
    "XNNScaledDotProductAttention",
    "XNNBatchMatrixMultiply",
    "XNNConcatenate5",
    "XNNConvTranspose2d",
    "XNNReciprocalSquareRoot",
    "XNNLog",
    "XNNGelu",
    "XNNTanh",
    "XNNExp",
    "XNNSin",
    "XNNCopy",
    "XNNCos",
)

# XNNDatatype as a weight is stored, by what torch would call it.
DTYPES = {
    1: "float32",
    2: "float16",
    3: "int8",
    4: "uint8",
    5: "int32",
    6: "int8",
    7: "int32",
    8: "int4",
    9: "int8",
    10: "int4",
    11: "int8",
    12: "int32",
    13: "float32",
    14: "bfloat16",
}
SCALES = "scales"

_HEADER = struct.Struct("<4x4sHIIIQ")
_PER_CHANNEL, _PER_GROUP = 1, 4
# Where a matrix product keeps the numbers of its matrix and of its bias.
_PACKED = (1, 2)
_FULLY_CONNECTED = NODES.index("XNNFullyConnected") + 1


@dataclass(frozen=True)
class Weight:
    """A constant of a delegate. `key` names its data where that lies outside the blob, else it is ""."""

    dtype: str
    bytes: int
    key: str


@dataclass(frozen=True)
class Graph:
    """One delegate: occurrences of each operator, by the schema's name, its weights, and how many of its constants
    are read as they are stored, because no matrix product packs them."""

    operators: Counter[str]
    weights: tuple[Weight, ...]
    unpacked: int = 0


NOTHING = Graph(Counter(), ())


def read(data: mmap | bytes, start: int, end: int) -> Graph | None:
    """The delegate whose blob is the bytes `start` to `end` of `data`; None for a form that is not known here.

    Raises Malformed where the form is known and the bytes do not follow it.
    """
    graph = _graph(data, start, end)
    if graph is None:
        return None
    nodes = [node.union(0) for node in graph.tables(1)]
    names = (NODES[kind - 1] if 0 < kind <= len(NODES) else f"XNNNode{kind}" for kind, _ in nodes)
    packed = {one.u32(slot) for kind, one in nodes if one is not None and kind == _FULLY_CONNECTED for slot in _PACKED}
    constants = {number for number, _, tensor, _ in _values(graph) if tensor.u32(3)}
    return Graph(Counter(names), tuple(_weights(graph)), len(constants - packed))


def products(data: mmap | bytes, start: int, end: int) -> list[tuple[str, str]]:
    """The keys of integers and of scales that each product of a delegate reads, in its order; "" for none."""
    graph = _graph(data, start, end)
    if graph is None:
        return []
    keys = [entry.string(2) for entry in graph.tables(8)]

    def key(index: int) -> str:
        return keys[index] if 0 < index < len(keys) else ""

    matrices = {
        number: (key(tensor.u32(3)), key(scales))
        for number, quantized, tensor, scales in _values(graph)
        if quantized and tensor.u32(3)
    }
    return [
        matrices.get(node.u32(1), ("", ""))
        for kind, node in (entry.union(0) for entry in graph.tables(1))
        if node is not None and kind == _FULLY_CONNECTED
    ]


def _graph(data: mmap | bytes, start: int, end: int) -> Table | None:
    magic = data[start + 4 : start + 8] if end - start >= 8 else b""
    if magic == b"XH00":
        if end - start < _HEADER.size:
            raise Malformed("an XNNPACK delegate ends within its header")
        _, _, offset, size, constants, constants_size = _HEADER.unpack_from(data, start)
        if offset + size > end - start or constants + constants_size > end - start:
            raise Malformed("an XNNPACK delegate is shorter than its header says")
        buffer = Buffer(data, start + offset, start + offset + size)
    elif magic in (b"XN00", b"XN01"):
        buffer = Buffer(data, start, end)
    else:
        return None
    if buffer.identifier not in (b"XN00", b"XN01"):
        return None
    return buffer.root()


def _values(graph: Table) -> Iterator[tuple[int, bool, Table, int]]:
    """Each value of a delegate: number, whether it is quantized, tensor, and where its scales lie (0: nowhere)."""
    for number, value in enumerate(graph.tables(2)):
        kind, table = value.union(0)
        quantized = kind == 2
        tensor = table.table(0) if table is not None and quantized else table
        if table is None or tensor is None:
            continue
        scales = 0
        if quantized:
            quantization, parameters = table.union(1)
            slot = {_PER_CHANNEL: 2, _PER_GROUP: 4}.get(quantization)
            if slot is not None and parameters is not None:
                scales = parameters.u32(slot)
        yield number, quantized, tensor, scales


def _weights(graph: Table) -> list[Weight]:
    sizes = [(entry.u64(1), entry.string(2)) for entry in graph.tables(8)]
    inline = [entry.extent(0)[1] for entry in graph.tables(6)]
    dtypes: dict[int, str] = {}
    for _, _, tensor, scales in _values(graph):
        if index := tensor.u32(3):
            dtypes[index] = DTYPES.get(tensor.i16(0), "unknown")
        if scales:
            dtypes.setdefault(scales, SCALES)
    found = []
    for index, dtype in sorted(dtypes.items()):
        if index < len(sizes):
            found.append(Weight(dtype, *sizes[index]))
        elif index < len(inline):
            found.append(Weight(dtype, inline[index], ""))
        else:
            raise Malformed(f"an XNNPACK delegate refers to constant {index} of {max(len(sizes), len(inline))}")
    return found
