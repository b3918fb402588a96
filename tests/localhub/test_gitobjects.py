"""Git's identities."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hubpub.localhub import gitobjects

from .conftest import noise


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
