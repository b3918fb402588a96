"""Which files of a repo are large, and which are none."""

from __future__ import annotations

from hubpub.localhub.patterns import DEFAULT_ATTRIBUTES, is_ignored, is_large


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
