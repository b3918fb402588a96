"""One small program that the tests of this room talk to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import scale_model

from hubpub.config import Project
from hubpub.export.cell import export
from hubpub.model.checkpoint import TOKENIZER_FILES, Checkpoint
from hubpub.workspace import integers_of

CONTEXT = 160


@pytest.fixture(scope="session")
def program(project: Project, scale_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of SmolLM2's stand-in with a short context, its tokenizer beside it."""
    source = scale_model("SmolLM2-135M-Instruct", scale_cache)
    pte = tmp_path_factory.mktemp("chat") / "model.pte"
    export(
        Checkpoint.open(source), project.recipes["8da8w"], pte, context=CONTEXT, prefill=32,
        kept=integers_of(pte), progress=lambda stage, fraction: None,
    )  # fmt: skip
    for name in (*TOKENIZER_FILES, "config.json"):
        if (source / name).is_file():
            shutil.copy2(source / name, pte.parent)
    return pte
