"""Source checkpoints: which files of one are read, where they lie once downloaded, and who may download them."""

from __future__ import annotations

from pathlib import Path

from hubpub.errors import AccessError
from hubpub.hub.client import Client, NotFound, cached_snapshot

# Weights, configuration, tokenizer and terms; never pickles.
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "LICENSE*", "README.md")


def download_source(repo_id: str, *, revision: str | None, endpoint: str | None = None) -> Path:
    """Download a source checkpoint and return its folder.

    What the local cache holds already is not fetched again. Raises AccessError where the terms were not accepted yet.
    """
    client = Client.from_environment(endpoint)
    try:
        return client.snapshot(repo_id, revision or "main", PATTERNS)
    except AccessError as error:
        raise AccessError(error.message, _terms(client, repo_id)) from None


def cached_source(repo_id: str, revision: str | None) -> Path | None:
    """The folder of a source that lies complete in the local cache, or None. Asks nobody."""
    return cached_snapshot(repo_id, revision or "main", PATTERNS)


def check_source(client: Client, repo_id: str) -> None:
    """Raise AccessError where the terms of a source model were not accepted with this token, or it is hidden."""
    try:
        client.check_read(repo_id)
    except (AccessError, NotFound) as error:
        raise AccessError(f"the source {repo_id} cannot be read: {error.message}", _terms(client, repo_id)) from None


def _terms(client: Client, repo_id: str) -> str:
    return f"accept its terms at {client.endpoint}/{repo_id}, then set HF_TOKEN"
