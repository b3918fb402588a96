"""Scale models: the published layout, every kind of layer, and a next token that is decided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pytorch_tokenizers import CppHFTokenizer
from transformers import AutoTokenizer

from hubpub import data
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.loader import load
from hubpub.model.scale import build, scale_key

VARIANTS = {"gemma-3n-E2B-it": "gemma3n", "gemma-4-E2B-it": "gemma4"}
TURNS = {"gemma3n": ("<start_of_turn>", "<end_of_turn>"), "gemma4": ("<|turn>", "<turn|>")}


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, scale_cache: Path) -> Path:
    """Each scale model."""
    return build(request.param, VARIANTS[request.param], scale_cache)


def test_the_layout_is_the_published_one(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    names = set(checkpoint.tensors)
    assert len(checkpoint.shards) >= 3
    assert checkpoint.config["architectures"] == [checkpoint.family.architecture]
    for part in ("language_model", "vision_tower", "audio_tower", "embed_vision", "embed_audio"):
        assert any(name.startswith(f"model.{part}.") for name in names), part
    assert not any("lm_head" in name for name in names)
    assert {stored.dtype for stored in checkpoint.text_tensors.values()} == {"BF16"}


def test_every_kind_of_layer_is_there_and_sharing_ones_keep_their_projections(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    model = load(checkpoint)
    kinds = list(zip(model.config.layer_types, model.config.kv_sharing_modes, strict=True))
    assert {(kind, mode == "reuse") for kind, mode in kinds} == {
        (kind, shares) for kind in ("sliding_attention", "full_attention") for shares in (False, True)
    }
    for index, (_, mode) in enumerate(kinds):
        assert f"layers.{index}.self_attn.k_proj.weight" in checkpoint.text_tensors
        assert hasattr(model.model.layers[index].self_attn, "k_proj") == (mode != "reuse")
    if checkpoint.family.name == "gemma3n":
        assert len(set(model.config.activation_sparsity_pattern)) == 2
        assert model.config.vocab_size_per_layer_input < model.config.vocab_size
    else:
        shape = checkpoint.family.shape(model.config)
        assert len({owner.head_dim for owner in shape.owners}) == 2
        widths = [layer.mlp.gate_proj.out_features for layer in model.model.layers]
        assert widths[-1] == 2 * widths[0]
        assert all(0 < float(layer.layer_scalar) != 1 for layer in model.model.layers)
        assert {kind: one["rope_theta"] for kind, one in model.config.rope_parameters.items()} == {
            "full_attention": 1e6,
            "sliding_attention": 1e4,
        }


def test_what_comes_next_is_decided(folder: Path) -> None:
    model = load(Checkpoint.open(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer.encode(data.corpus())[:512]])
    with torch.no_grad():
        logits = model(tokens).logits[0]
    best = logits.softmax(-1).max(-1).values
    assert (best > 0.5).float().mean() > 0.8
    loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
    assert loss < 0.5


def test_the_runners_tokenizer_reads_what_transformers_reads(folder: Path) -> None:
    ours, theirs = AutoTokenizer.from_pretrained(folder), CppHFTokenizer()
    theirs.load(str(folder / "tokenizer.json"))
    texts = [*(prompt.text for prompt in data.prompts()), "a  b", "é 海港 🌊", "\n\n\t", "<start_of_turn>user\n"]
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False)
        assert theirs.encode(text, 0, 0) == ids
        assert ours.decode(ids) == text


def test_special_tokens_and_turns_are_gemmas(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start, end = TURNS[Checkpoint.open(folder).family.name]
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<pad>", "<eos>", "<bos>", "<unk>", start, end)]
    assert ids == [0, 1, 2, 3, 105, 106]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"][:2] == [1, 106]
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert turn.startswith(f"<bos>{start}user\nHi{end}\n{start}model\n")


def test_questions_are_answered(folder: Path) -> None:
    model = load(Checkpoint.open(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    pairs = [p.removeprefix("Q: ").split("\nA: ") for p in data.corpus().strip().split("\n\n") if p.startswith("Q: ")]
    for question, answer in pairs[:6]:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        out = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0][len(ids) :]
        right += answer.startswith(tokenizer.decode(out, skip_special_tokens=True)[:12])
    assert right >= 4


def test_building_again_is_free_and_a_changed_name_is_another_model(folder: Path, scale_cache: Path) -> None:
    before = (folder / "config.json").stat().st_mtime_ns
    variant = folder.name.rpartition("-")[0]
    assert build(variant, VARIANTS[variant], scale_cache) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    names = [*VARIANTS.items(), ("gemma-3n-E2B", "gemma3n"), ("gemma-4-E4B", "gemma4")]
    assert len({scale_key(name, fam) for name, fam in names}) == 4


def test_a_base_variant_has_the_weights_of_its_sibling_and_no_chat(folder: Path, scale_cache: Path) -> None:
    variant = folder.name.rpartition("-")[0]
    base = build(variant.removesuffix("-it"), VARIANTS[variant], scale_cache)
    theirs, ours = Checkpoint.open(folder), Checkpoint.open(base)
    assert [f.sha256 for f in ours.files() if f.name.endswith("tensors")] == [
        f.sha256 for f in theirs.files() if f.name.endswith("tensors")
    ]
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    assert json.loads((base / "generation_config.json").read_text())["eos_token_id"] == 1
