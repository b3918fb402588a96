"""Chunks as the storage service packs them."""

from __future__ import annotations

import random
from contextlib import suppress

import lz4.frame
import pytest

from hubpub.localhub.xorb import Chunk, Malformed, unpack

from .conftest import noise


def chunk(data: bytes, unpacked: int, scheme: int = 1) -> bytes:
    """What `unpack` makes of `data` behind a header."""
    return unpack(bytes(8) + data, Chunk(0, 8 + len(data), scheme, unpacked))


@pytest.mark.parametrize("content", [b"a", noise(5000), b"ab" * 60_000, noise(300) * 300, bytes(100_000)])
def test_a_chunk_is_what_it_was(content: bytes) -> None:
    grouped = b"".join(content[offset::4] for offset in range(4))
    assert chunk(content, len(content), 0) == content
    assert chunk(lz4.frame.compress(content, block_linked=True, content_checksum=True), len(content)) == content
    assert chunk(lz4.frame.compress(grouped), len(content), 2) == content


def test_a_damaged_chunk_is_refused_and_never_longer_than_it_says() -> None:
    content = b"abcd" * 1000 + noise(100)
    packed = lz4.frame.compress(content, content_checksum=True)
    for size in (len(content) - 1, len(content) + 1):
        with pytest.raises(Malformed):
            chunk(packed, size)
    chance = random.Random(1)
    for _ in range(300):
        broken = bytearray(packed)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        with suppress(Malformed):
            assert len(chunk(bytes(broken[: chance.randrange(1, len(broken) + 1)]), len(content))) == len(content)
