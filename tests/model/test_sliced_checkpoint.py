"""A slice that was written is a checkpoint like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import hubpub, scale_model

from hubpub.errors import UsageError
from hubpub.model import sliced_checkpoint
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import load
from hubpub.model.sliced_checkpoint import write
from hubpub.slices import Slice

pytestmark = pytest.mark.slow
PART = Slice(widths=(384, 192, 384, 192, 224), skip=(3,))


@pytest.fixture(scope="module")
def whole(scale_cache: Path) -> Checkpoint:
    return Checkpoint.open(scale_model("gemma-3n-E4B-it", scale_cache))


def test_a_written_slice_is_the_slice(whole: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small enough that it takes several files, and several pieces of each tensor.
    monkeypatch.setattr(sliced_checkpoint, "SHARD", 400_000)
    monkeypatch.setattr(sliced_checkpoint, "_PIECE", 100_000)
    out = tmp_path / "out"
    read, written = whole.sliced(PART), write(whole.sliced(PART), out, lambda *_: None)
    found = Checkpoint.open(out)
    assert len(found.shards) > 2 and written == sum(path.stat().st_size for path in out.glob("*.safetensors")) - sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little") for path in out.glob("*.safetensors")
    )
    assert {name: one.shape for name, one in found.tensors.items()} == {n: one.shape for n, one in read.tensors.items()}
    ours, theirs = load(read).state_dict(), load(found).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # transformers reads it without us.
    plain = transformers.Gemma3nForCausalLM.from_pretrained(
        out, config=transformers.AutoConfig.from_pretrained(out).get_text_config(), dtype="auto"
    ).eval()
    with torch.no_grad():
        tokens = torch.arange(90, 120)[None]
        assert torch.equal(plain(tokens).logits, load(read)(tokens).logits)
    with pytest.raises(UsageError, match="is there already"):
        write(read, out, lambda *_: None)
    assert not [path for path in tmp_path.iterdir() if path != out]


def test_the_command_writes_it_and_refuses_what_breaks_a_rule(whole: Checkpoint, work: Path, tmp_path: Path) -> None:
    widths = ",".join(map(str, PART.widths))
    given = ["slice", str(whole.folder), "--widths", widths, "--skip", "3", "--out", str(tmp_path / "out"), "--json"]
    ran = hubpub(*given, work=work)
    assert ran.code == 0 and ran.json["layers"] == 5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["num_kv_shared_layers"] == 2
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    refused = hubpub("slice", str(whole.folder), "--slice", "E2B", "--out", str(tmp_path / "no"), work=work)
    assert refused.code == 5 and "there is no layer 20: the model has layers 0 to 5" in refused.err
    unnamed = hubpub("slice", str(whole.folder), "--out", str(tmp_path / "no"), work=work)
    assert unnamed.code == 2 and "E2.69B" in unnamed.err
    for option, given in (("--widths", ["--widths", "256,wide"]), ("--skip", ["--widths", "256", "--skip", "3,-1"])):
        wrong = hubpub("slice", str(whole.folder), *given, "--out", str(tmp_path / "no"), work=work)
        assert wrong.code == 2 and f"{option}: '{given[-1].split(',')[1]}' is no whole number" in wrong.err
        assert f"{option} 4,9,14" in wrong.err
