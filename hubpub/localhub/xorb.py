"""The formats of xet's storage: xorbs (blocks of compressed chunks) and shards (which chunks make which file).

Sources: the Xet protocol specification, huggingface.co/docs/xet (xorb, shard).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lz4.frame import LZ4FrameDecompressor

CHUNK_LIMIT = 128 << 10
XORB_LIMIT = 64 << 20
CHUNKS_LIMIT = 8 << 10
_IDENT = b"XETBLOB"
_CHUNK_HEADER = 8
_SHARD_TAG = bytes.fromhex("48465265706f4d6574614461746100556967456a7b815783a5bdd95ccdd14aa9")
_RECORD = 48
_BOOKEND = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


class Malformed(ValueError):
    """Bytes that are not what they should be."""


def hash_text(raw: bytes) -> str:
    """A 32-byte hash as xet writes it: four little-endian 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in a xorb (`start` to `end`, its header included) and its size when unpacked, in bytes."""

    start: int
    end: int
    scheme: int
    unpacked: int


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `end` (exclusive) of a xorb, `size` bytes unpacked."""

    xorb: str
    size: int
    start: int
    end: int


@dataclass(frozen=True)
class FileRecord:
    """A file as a shard tells of it; `sha256` is None where the client did not say."""

    hash: str
    terms: tuple[Term, ...]
    sha256: str | None


def read_chunks(file: BinaryIO, size: int) -> tuple[Chunk, ...]:
    """The chunks of a serialized xorb of `size` bytes, with or without its footer. Raises Malformed."""
    chunks: list[Chunk] = []
    place = 0
    while place < size:
        file.seek(place)
        header = file.read(_CHUNK_HEADER)
        if header.startswith(_IDENT):
            break
        if len(header) < _CHUNK_HEADER or header[0] != 0 or header[4] > 2:
            raise Malformed("not a chunk header")
        packed, unpacked = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        end = place + _CHUNK_HEADER + packed
        if (
            not 0 < unpacked <= CHUNK_LIMIT
            or packed > 2 * CHUNK_LIMIT
            or end > size
            or (header[4] == 0 and packed != unpacked)
        ):
            raise Malformed("a chunk of impossible size")
        chunks.append(Chunk(place, end, header[4], unpacked))
        if len(chunks) > CHUNKS_LIMIT:
            raise Malformed("too many chunks")
        place = end
    if not chunks:
        raise Malformed("no chunks")
    return tuple(chunks)


def unpack(data: bytes, chunk: Chunk) -> bytes:
    """The content of `chunk`, whose bytes with their header are `data`. Raises Malformed."""
    packed = data[_CHUNK_HEADER:]
    if chunk.scheme == 0:
        return packed
    try:
        # One byte more than is right: a frame that holds more is refused, and not cut to measure.
        content: bytes = LZ4FrameDecompressor().decompress(packed, max_length=chunk.unpacked + 1)
    except (RuntimeError, EOFError) as error:
        raise Malformed(str(error)) from None
    if len(content) != chunk.unpacked:
        raise Malformed("a chunk unpacks to another size than it says")
    return _regroup(content) if chunk.scheme == 2 else content


def _regroup(data: bytes) -> bytes:
    """Undo xet's grouping: every fourth byte was put together."""
    size = len(data)
    result = bytearray(size)
    place = 0
    for offset in range(4):
        count = (size - offset + 3) // 4
        result[offset::4] = data[place : place + count]
        place += count
    return bytes(result)


def read_shard(data: bytes) -> Iterator[FileRecord]:
    """The files a shard describes. Raises Malformed."""
    if len(data) < _RECORD or data[:32] != _SHARD_TAG or int.from_bytes(data[32:40], "little") != 2:
        raise Malformed("not a shard of version 2")
    place = _RECORD
    while True:
        record = _record(data, place)
        place += _RECORD
        if record[:32] == _BOOKEND:
            return
        flags, count = struct.unpack_from("<II", record, 32)
        # Checked before anything of that many entries is made.
        if place + count * _RECORD > len(data):
            raise Malformed("a shard is cut off")
        terms = []
        for _ in range(count):
            entry = _record(data, place)
            _, size, start, end = struct.unpack_from("<4I", entry, 32)
            if start >= end:
                raise Malformed("a term without chunks")
            terms.append(Term(hash_text(entry[:32]), size, start, end))
            place += _RECORD
        if flags & _WITH_VERIFICATION:
            place += count * _RECORD
        sha256 = None
        if flags & _WITH_METADATA:
            sha256 = hash_text(_record(data, place)[:32])
            place += _RECORD
        yield FileRecord(hash_text(record[:32]), tuple(terms), sha256)


def _record(data: bytes, place: int) -> bytes:
    record = data[place : place + _RECORD]
    if len(record) < _RECORD:
        raise Malformed("a shard is cut off")
    return record
