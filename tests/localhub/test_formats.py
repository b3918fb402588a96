"""The formats underneath: LZ4, git's identities, patterns."""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from pathlib import Path

import lz4.frame
import pytest

from hubpub.localhub import gitobjects
from hubpub.localhub.patterns import DEFAULT_ATTRIBUTES, is_ignored, is_large
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


def test_identities_are_those_of_git(tmp_path: Path) -> None:
    files = {"a.txt": b"a", "a/b.txt": b"b", "a-b/c": b"c", "z/y/x/w.bin": noise(1000), "ü.md": "ü".encode()}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    del files["a.txt"]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    git("add", ".")
    ids = gitobjects.tree_ids((path, gitobjects.object_id("blob", content)) for path, content in files.items())
    tree = git("write-tree")
    assert ids[""] == tree
    assert ids["z/y"] == git("rev-parse", f"{tree}:z/y")


def test_which_files_are_large() -> None:
    def large(path: str, size: int = 100, sample: bytes = b"text", attributes: str = DEFAULT_ATTRIBUTES) -> bool:
        return is_large(path, size, sample, attributes)

    assert large("a.pte") and large("sub/x.safetensors") and large("saved_model/a/b/c") and large("tokenizer.model")
    assert large("tokenizer.json", 10_000_001) and not large("tokenizer.json", 9_999_999)
    assert large("a.txt", sample=b"\0\1") and large("a.txt", sample=b"\xff\xfe text that is no UTF-8")
    assert not large("a.txt", sample="ü".encode()[:1]) and not large("a.txt", sample=b"x" * 510 + "ü".encode()[:1])
    assert not large("README.md") and not large("empty.pte", 0, b"")
    assert not large("a.pte", attributes=DEFAULT_ATTRIBUTES + "*.pte -filter\n")
    assert large("x/data.csv", attributes="x/*.csv filter=lfs\n") and not large(
        "y/data.csv", attributes="x/*.csv filter=lfs\n"
    )


def test_which_files_are_ignored() -> None:
    rules = "# rules\n*.log\n!keep.log\nbuild/\n/top.txt\n"
    assert [
        is_ignored(path, rules) for path in ("a.log", "x/a.log", "keep.log", "build/x", "top.txt", "x/top.txt", "b")
    ] == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
    ]
