"""Scale models: the published layout, every kind of layer, and a next token that is decided."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import OF_FAMILY, ROOT, scale_model
from pytorch_tokenizers import CppHFTokenizer
from transformers import AutoTokenizer

from hubpub import data
from hubpub.config import Project, Variant
from hubpub.model.checkpoint import Checkpoint
from hubpub.model.families import FAMILIES
from hubpub.model.loader import load
from hubpub.model.reader import Reader
from hubpub.model.scale import build, making_code, scale_key, stand_in

GEMMA = {
    "gemma3": ("<start_of_turn>", "<end_of_turn>"),
    "gemma3n": ("<start_of_turn>", "<end_of_turn>"),
    "gemma4": ("<|turn>", "<turn|>"),
}
TURNS = {
    **{
        name: f"<bos>{start}user\nHi{end}\n{start}model\nHello{end}\n{start}user\nWho?{end}\n{start}model\n"
        for name, (start, end) in GEMMA.items()
    },
    "llama": "<|im_start|>system\nYou answer questions.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, scale_cache: Path) -> Path:
    """A chat model of every family."""
    return scale_model(OF_FAMILY[request.param], scale_cache)


def test_the_layout_is_the_published_one(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    names = set(checkpoint.tensors)
    assert checkpoint.config["architectures"] == [checkpoint.family.architecture]
    if checkpoint.family.multimodal:
        assert len(checkpoint.shards) >= 3
        for part in ("language_model", "vision_tower", "audio_tower", "embed_vision", "embed_audio"):
            assert any(name.startswith(f"model.{part}.") for name in names), part
    else:
        assert checkpoint.shards == ("model.safetensors",)
        assert len(checkpoint.text_tensors) == len(names)
    assert not any("lm_head" in name for name in names)
    assert {stored.dtype for stored in checkpoint.text_tensors.values()} == {"BF16"}


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_every_kind_of_layer_is_there_and_sharing_ones_keep_their_projections(name: str, scale_cache: Path) -> None:
    checkpoint = Checkpoint.open(scale_model(OF_FAMILY[name], scale_cache))
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


@pytest.mark.parametrize("name", ["gemma3", "llama"])
def test_queries_share_keys_and_every_layer_owns_its_own(name: str, scale_cache: Path) -> None:
    checkpoint = Checkpoint.open(scale_model(OF_FAMILY[name], scale_cache))
    config = load(checkpoint).config
    shape = checkpoint.family.shape(config)
    assert [owner.index for owner in shape.owners] == list(range(config.num_hidden_layers))
    assert all(owner.heads < config.num_attention_heads for owner in shape.owners)
    assert set(shape.layer_kinds) == (
        {"sliding_attention", "full_attention"} if name == "gemma3" else {"full_attention"}
    )
    assert (shape.sliding_window is None) == (name == "llama")


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
    texts = [
        *(prompt.text for prompt in data.prompts()),
        "a  b",
        "é 海港 🌊",
        "\n\n\t",
        "<start_of_turn>user\n",
        "in 1884",
    ]
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False)
        assert theirs.encode(text, 0, 0) == ids
        assert ours.decode(ids) == text


def test_texts_begin_as_the_family_has_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    name = Checkpoint.open(folder).family.name
    # Both kinds of tokenizer: Gemma 4 wants <bos> and leaves it to others, SmolLM2 wants none.
    assert begins == (name in {"gemma3", "gemma3n"})
    reader = Reader(folder, Checkpoint.open(folder).family.begins_with_bos)
    assert bool(reader.bos) == (name != "llama")
    assert reader.encode("a")[: len(reader.bos)] == list(reader.bos)


@pytest.mark.parametrize("name", GEMMA)
def test_special_tokens_are_gemmas(name: str, scale_cache: Path) -> None:
    folder = scale_model(OF_FAMILY[name], scale_cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<pad>", "<eos>", "<bos>", "<unk>", *GEMMA[name])]
    assert ids == [0, 1, 2, 3, 105, 106]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"][:2] == [1, 106]


def test_turns_are_the_familys(folder: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")]
    messages = [{"role": role, "content": content} for role, content in said]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert written == TURNS[Checkpoint.open(folder).family.name]


def test_questions_are_answered(folder: Path) -> None:
    model = load(Checkpoint.open(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    pairs = [p.removeprefix("Q: ").split("\nA: ") for p in data.corpus().strip().split("\n\n") if p.startswith("Q: ")]
    for question, answer in pairs[:6]:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0][len(ids) :]
        said = tokenizer.decode(out, skip_special_tokens=True)
        right += answer.startswith(said) or said.startswith(answer)
    assert right >= 4


def test_building_again_is_free(folder: Path, scale_cache: Path) -> None:
    before = (folder / "config.json").stat().st_mtime_ns
    assert scale_model(OF_FAMILY[Checkpoint.open(folder).family.name], scale_cache) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_every_variant_has_a_stand_in_of_its_own_and_an_unknown_size_the_smallest(project: Project) -> None:
    variants = [card.variant for card in project.cards]
    # A slice is taken out of the stand-in of the model that it is a slice of.
    whole = [variant for variant in variants if variant.slice is None]
    assert len({scale_key(variant) for variant in whole}) == len(whole)
    assert {scale_key(variant) for variant in variants} == {scale_key(variant) for variant in whole}
    for name in FAMILIES:
        smallest = stand_in(name, None, chat=True)
        assert stand_in(name, "999B", chat=True) == smallest
        assert smallest.family == name


def test_a_base_variant_has_the_weights_of_its_sibling_and_no_chat(folder: Path, scale_cache: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    variant = Variant(name="base", source="a/b", family=checkpoint.family.name, license="apache-2.0")
    base = build(variant, scale_cache)
    theirs, ours = Checkpoint.open(folder), Checkpoint.open(base)
    assert [f.sha256 for f in ours.files() if f.name.endswith("tensors")] == [
        f.sha256 for f in theirs.files() if f.name.endswith("tensors")
    ]
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    ends = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert ends == (0 if checkpoint.family.name == "llama" else 1)


MAKE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from hubpub.model import scale
from hubpub.progress import unseen

plan = scale.stand_in("gemma3", None, chat=True)
scale._make(replace(plan, training=replace(plan.training, steps=1)), Path(sys.argv[1]), unseen, None)
modules = {name: sys.modules[name].__file__ for name in sys.modules if name.partition(".")[0] == "hubpub"}
print(json.dumps(modules))
"""
# What is imported while a stand-in is made and decides none of its bytes.
ELSEWHERE = {
    "hubpub": "the package's name",
    "hubpub.config": "what people declare",
    "hubpub.data": "where texts lie; the corpus is in the key",
    "hubpub.errors": "messages",
    "hubpub.facts": "records of what was done",
    "hubpub.files": "how files are written, not what is in them",
    "hubpub.redaction": "what messages leave out",
    "hubpub.progress": "how far work is",
    "hubpub.slices": "what may be sliced",
    "hubpub.model": "the room",
    "hubpub.model.shape": "what an export looks at",
    "hubpub.model.folds": "what an export folds",
    "hubpub.model.scale.gemma3": "it describes stand-ins, and the key holds the description",
}


@pytest.mark.slow
def test_the_key_of_a_stand_in_covers_the_code_that_makes_it(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MAKE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "model.safetensors").is_file()
    hashed = {str(path) for path in making_code()}
    left = {name for name, path in json.loads(ran.stdout.splitlines()[-1]).items() if path not in hashed}
    assert {name for name in left if not name.startswith("hubpub.model.patches")} <= ELSEWHERE.keys()
