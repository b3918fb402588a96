"""The formats underneath: LZ4, git's identities, patterns."""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from hubpub.localhub import gitobjects
from hubpub.localhub.patterns import DEFAULT_ATTRIBUTES, is_ignored, is_large
from hubpub.localhub.xorb import Malformed, lz4_frame

from .conftest import noise


def frame(*blocks: bytes) -> bytes:
    body = b"".join(len(block).to_bytes(4, "little") + block for block in blocks)
    return b"\x04\x22\x4d\x18\x40\x40\xc0" + body + bytes(4)


def test_lz4_by_hand() -> None:
    # "abcd", then 4 + 15 + 255 + 3 bytes copied from 4 back, then the last literals "xyz".
    block = b"\x4fabcd\x04\x00\xff\x03" + b"\x30xyz"
    assert lz4_frame(frame(block), 1000) == (b"abcd" * 100)[: 4 + 277] + b"xyz"
    # A copy in a second block reaches back into the first, which is stored as it is.
    stored = (3 | 1 << 31).to_bytes(4, "little") + b"abc"
    linked = b"\x04\x22\x4d\x18\x40\x40\xc0" + stored + (6).to_bytes(4, "little") + b"\x02\x03\x00\x20zz" + bytes(4)
    assert lz4_frame(linked, 100) == b"abcabcabczz"
    with pytest.raises(Malformed):
        lz4_frame(frame(block), 100)
    chance = random.Random(1)
    for _ in range(300):
        broken = bytearray(frame(block))
        broken[chance.randrange(len(broken))] = chance.randrange(256)
        with suppress(Malformed):
            assert len(lz4_frame(bytes(broken[: chance.randrange(len(broken))]), 400)) <= 400


def test_lz4_as_the_library_has_it() -> None:
    library = pytest.importorskip("lz4.frame")
    for content in (b"", b"a", noise(5000), b"ab" * 60_000, noise(300) * 300, bytes(100_000)):
        assert lz4_frame(library.compress(content, block_linked=True, content_checksum=True), 200_000) == content


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
