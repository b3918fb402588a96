"""The table of known sizes, and what a cell needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, script_at

from hubpub.config import Project
from hubpub.errors import SourceError
from hubpub.hub.source_sizes import size_of, sliced
from hubpub.sizing import Size, Tensors, agrees, known_as, known_sizes
from hubpub.slices import published


def real_size() -> Any:
    """The benchmark that knows the text part of the published configs."""
    return script_at(ROOT / "benchmarks" / "real_size.py")


@pytest.mark.parametrize("variant", ["gemma-3n-E2B", "gemma-3n-E4B", "gemma-4-E2B", "gemma-4-E4B"])
def test_the_table_says_what_the_model_of_the_published_config_has(variant: str, tmp_path: Path) -> None:
    import torch
    import transformers

    from hubpub.model.families import family

    kind = family("gemma3n" if variant.startswith("gemma-3n") else "gemma4")
    config = {"architectures": [kind.architecture], "model_type": kind.name, "vision_config": {}}
    config |= {"text_config": real_size().text_config(variant), "audio_config": {}, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = transformers.AutoConfig.from_pretrained(tmp_path).get_text_config()
    with torch.device("meta"):
        model = getattr(transformers, kind.text_class)(text)
    shapes: Tensors = {
        kind.text_prefix + name.removeprefix("model."): ("BF16", tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    for repo in (f"google/{variant}", f"google/{variant}-it"):
        known = known_sizes()[repo]
        assert replace(size_of(shapes, kind.name), checkpoint=known.checkpoint) == known
        # Towers come on top of the text.
        assert 1.05 < known.checkpoint / (2 * known.text) < 1.3
        for row in [name for name in known_sizes() if name.startswith(f"{repo}[")]:
            # A slice is downloaded with all that it is a slice of.
            part = published()[row.partition("[")[2].rstrip("]")].slice
            assert (
                replace(size_of(sliced(shapes, part, kind.name), kind.name), checkpoint=known.checkpoint)
                == known_sizes()[row]
            )


def test_every_card_of_this_checkout_is_of_a_known_size(project: Project) -> None:
    assert {known_as(card.variant) for card in project.cards} <= known_sizes().keys()


def test_a_checkpoint_of_another_size_than_the_table_says_is_noticed() -> None:
    known = known_sizes()["google/gemma-3n-E4B"]
    assert agrees(known, "google/gemma-3n-E4B") and agrees(known, "google/unknown")
    # The published files also hold keys and values that the model shares instead: 31.8 million weights.
    assert agrees(replace(known, matrices=known.matrices + 31_760_384), "google/gemma-3n-E4B")
    assert not agrees(replace(known, matrices=known.matrices * 11 // 10), "google/gemma-3n-E4B")
    assert not agrees(replace(known, checkpoint=known.checkpoint + 1), "google/gemma-3n-E4B")
    assert not agrees(Size(1, 1, 1, 0, 0, 0, 2), "google/gemma-3n-E4B")


def test_what_no_export_can_read_has_no_size() -> None:
    table = {"model.language_model.embed_tokens.weight": ("BF16", (10, 4)), "tower.mask": ("BOOL", (8,))}
    assert size_of(table, "gemma3n").checkpoint == 2 * 40 + 8
    with pytest.raises(SourceError, match="unknown dtype 'F8_E4M3'"):
        size_of({**table, "tower.weight": ("F8_E4M3", (4, 4))}, "gemma3n")
