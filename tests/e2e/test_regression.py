"""A release that is worse than the one before: refused, unless the card says why that is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Ran, hubpub, with_card
from huggingface_hub import HfApi, hf_hub_download

from hubpub.facts import CardFacts
from hubpub.localhub import LocalHub

pytestmark = pytest.mark.slow

REPO = "only-int8-pte"


def publish(project: Path, work: Path) -> Ran:
    return hubpub("release", "--all", "--rehearse", "--json", "--project", str(project), work=work)


def test_worse_than_what_is_published_needs_a_reason(work: Path, tmp_path: Path) -> None:
    card = with_card(tmp_path, "gemma-3n-E2B-it-pte", repo=REPO, recipes=["int8"], recommended="int8")
    first = publish(tmp_path, work)
    assert first.code == 0, first.err
    repo = first.json["receipts"][0]["repo_id"]

    # What is published becomes a tenth smaller than it was.
    with LocalHub(work / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        path = hf_hub_download(repo, "facts.json", endpoint=hub.url, cache_dir=tmp_path / "cache")
        facts = json.loads(Path(path).read_text())
        facts["version"] = "v0.0.1"
        facts["cells"][0]["file"]["bytes"] = int(facts["cells"][0]["file"]["bytes"] * 0.9)
        api.upload_file(path_or_fileobj=json.dumps(facts).encode(), path_in_repo="facts.json", repo_id=repo)

    # The same again would be the release that is there; another word on the card makes it the next one.
    text = re.sub(r"(?m)^title = .*$", 'title = "Only int8"', card.read_text())
    card.write_text(text)
    refused = publish(tmp_path, work)
    assert refused.code == 7, refused.err
    assert "worse than v0.0.1: gemma-3n-E2B-it/int8: file size" in refused.err
    assert '[[accept]] recipe = "int8", what = "file size", since = "v0.0.1"' in refused.err
    assert not refused.json["receipts"]

    # A misspelt acknowledgement is none.
    accept = '\n[[accept]]\nrecipe = "int8"\nwhat = "size"\nsince = "v0.0.1"\nreason = "one table is wider"\n'
    card.write_text(text + accept)
    assert publish(tmp_path, work).code == 3
    card.write_text(text + accept.replace('"size"', '"file size"'))
    accepted = publish(tmp_path, work)
    assert accepted.code == 0, accepted.err
    with LocalHub(work / "hub") as hub:
        path = hf_hub_download(repo, "facts.json", endpoint=hub.url, cache_dir=tmp_path / "again")
    (noted,) = CardFacts.model_validate_json(Path(path).read_bytes()).accepted
    assert (noted.cell, noted.what, noted.reason) == ("gemma-3n-E2B-it/int8", "file size", "one table is wider")
