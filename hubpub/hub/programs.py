"""A program that was published: which file of a repo is meant, and that file with its tokenizer on this disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hubpub.errors import HubError, UsageError
from hubpub.hub.client import Client
from hubpub.model.checkpoint import TOKENIZER_FILES

_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*?)(@(?P<version>[^/@]+))?")


def address(text: str) -> tuple[str, str | None] | None:
    """The repo id and the version (None: the latest) of "owner/name[@version]", or None where `text` is none."""
    found = _ADDRESS.fullmatch(text)
    return (found["repo"], found["version"]) if found and not text.endswith(".pte") else None


def download_program(client: Client, repo_id: str, version: str | None, recipe: str | None) -> Path:
    """Download one program of a repo that hubpub published, with its tokenizer; the path of the `.pte`.

    `recipe` chooses among the files (default: the recommended one). Raises HubError where there is no such repo or
    version, UsageError where it offers no such recipe.
    """
    revision = version or "main"
    try:
        config = json.loads(client.read(repo_id, revision, "config.json") or b"null")
        files = {one["recipe"]: one["file"] for one in config["files"]}
        chosen = config["recommended"] if recipe is None else files.get(recipe)
    except (ValueError, TypeError, KeyError):
        raise HubError(
            f"{repo_id}@{revision} is no repo of ExecuTorch programs that hubpub published",
            "look its name up on the Hub, or name a file; "
            "'hubpub release SELECTOR --version vX.Y.Z --hub local' publishes to local/REPO",
        ) from None
    if chosen is None:
        raise UsageError(f"{repo_id}@{revision} has no file of recipe '{recipe}'", f"it has {', '.join(files)}")
    return client.snapshot(repo_id, revision, (str(chosen), "config.json", *TOKENIZER_FILES)) / str(chosen)
