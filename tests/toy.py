"""A measured cell, its card and their facts, small enough to change one value of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubpub import facts
from hubpub.config import Card, load_card


def cell(**changed: Any) -> facts.CellFacts:
    """A measured cell; `changed` replaces values by dotted path, with "__" for the dots."""
    program = facts.Program(
        methods=(
            facts.Method(
                name="forward",
                inputs=(facts.Tensor(name="input0", dtype="int64", shape=(1, "1..2047")),),
                outputs=(facts.Tensor(name="output0", dtype="float32", shape=(1, 262144)),),
                planned_bytes=100_000_000,
                instructions=1000,
            ),
        ),
        metadata={"get_max_seq_len": 2047},
        backends={"XnnpackBackend": 90},
        operators=facts.Operators(delegated={"XNNFullyConnected": 210}, kernels={"aten::add.out": 30}),
        constant_bytes=1,
        delegate_bytes=1,
        kv_cache=facts.KVCache(bytes=80_000_000, dtype="float32", layers=20),
    )
    logits = {"tokens": 100, "finite": True, "top1_agreement": 0.95, "kl_mean": 0.02, "kl_p999": 0.3, "error_max": 1.0}
    logits |= {"prefill_error_max": 0.1, "perplexity": 10.6, "perplexity_original": 10.5}
    value: dict[str, Any] = {
        "schema": 1,
        "cell": "toy/8da4w",
        "variant": "toy",
        "recipe": "8da4w",
        "summary": "s",
        "fingerprint": "f",
        "file": {"name": "toy.pte", "bytes": 4_000_000_000, "sha256": "0"},
        "tokenizer": [],
        "source": {
            "repo": "a/b",
            "revision": "c",
            "license": "apache-2.0",
            "scale_model": False,
            "architecture": "Toy",
            "files": [],
        },
        "parameters": {"total": 10, "embedding": 5, "per_layer_embedding": 0, "other": 5},
        "layers": {"total": 2, "sliding": 1, "full": 1, "sliding_sharing_kv": 0, "full_sharing_kv": 0},
        "context": {"exported": 2048, "max_prefill": 2047, "sliding_window": 512, "source": 32768},
        "vocabulary": 262144,
        "program": program.model_dump(mode="json"),
        "parity": {
            "logits": logits,
            "greedy": {"prompts": 1, "new_tokens": 1, "first_token": 1, "exact": 1, "mean_common_prefix": 1},
            "runner": None,
        },
        "speed": {
            "host": "one",
            "threads": 2,
            "load_seconds": 10,
            "prefill_tokens": 128,
            "prefill_tokens_per_second": 40,
            "decode_tokens": 64,
            "decode_tokens_per_second": 14,
            "peak_resident_bytes": 5_000_000_000,
        },
        "gates": [{"name": "kl_mean", "kind": "max", "limit": 0.1, "measured": 0.02, "passed": True}],
        "patches": [],
        "toolchain": {},
        "stages": {"load": 1, "quantize": 1, "export": 1, "lower": 1, "write": 1, "peak_resident_bytes": 1},
    }
    for path, new in changed.items():
        *parents, key = path.split("__")
        target = value
        for parent in parents:
            target = target[parent]
        target[key] = new
    return facts.CellFacts.model_validate(value)


def card(*cells: facts.CellFacts, version: str = "1.0.0") -> facts.CardFacts:
    return facts.CardFacts(schema=1, repo="toy-pte", version=version, variant="toy", cells=cells)


def declared(folder: Path, accept: str = "") -> Card:
    """A card of one recipe, as a file declares it."""
    folder.mkdir()
    (folder / "card.toml").write_text(
        'schema = 1\nrepo = "toy-pte"\n[variant]\nname = "toy"\nsource = "a/b"\nfamily = "gemma4"\n'
        'license = "apache-2.0"\n[export]\nrecipes = ["8da4w"]\nrecommended = "8da4w"\n[card]\ntitle = "Toy"\n' + accept
    )
    return load_card(folder)
