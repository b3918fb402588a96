"""What the loader promises to people who look inside models, with the real TransformerLens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OF_FAMILY, ROOT, scale_model

from hubpub.model.families import FAMILIES

pytestmark = [pytest.mark.lens, pytest.mark.slow]

# It asks for thirty packages more, most of them for other things than looking inside: these are the ones it imports.
PACKAGES = (
    "transformer-lens==4.3.0", "accelerate==1.15.0", "datasets==5.2.0", "dill==0.4.1", "einops==0.8.2",
    "jaxtyping==0.3.11", "multiprocess==0.70.19", "pyarrow==26.0.1", "wadler-lindig==0.1.8", "xxhash==4.1.0",
)  # fmt: skip

# The docstring's example for each checkpoint that is named, and what it must show.
SHOWN = """
import json, sys, traceback
import torch, hubpub
from transformers import AutoTokenizer
from hubpub.model.lens import bridge

def show(folder):
    model = hubpub.load_text_decoder(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer.encode("The sun warms the sea, and some of the water rises.")])
    streams = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: streams.append(output))
    with torch.no_grad():
        wanted = model(tokens).logits
        for layer in model.model.layers:
            layer._forward_hooks.clear()
        logits, cache = bridge(model, tokenizer).run_with_cache(tokens)
    assert torch.equal(logits, wanted), "other logits"
    assert len(streams) == model.config.num_hidden_layers
    for number, stream in enumerate(streams):
        # Gemma 3n has four streams, and the first is the active one.
        active = stream if stream.ndim == 3 else stream[model.config.altup_active_idx]
        assert torch.equal(cache[f"blocks.{number}.hook_resid_post"], active), f"another stream after layer {number}"

found = {}
for name, folder in json.loads(sys.argv[1]).items():
    try:
        show(folder)
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def lens(work: Path) -> Path:
    """A folder with TransformerLens beside the packages of this environment."""
    folder = work / "lens"
    if not (folder / "transformer_lens").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *PACKAGES], check=True)
    return folder


@pytest.fixture(scope="session")
def failed(lens: Path, scale_cache: Path) -> dict[str, str]:
    """What went wrong, by family: one process for all, since the package takes longest to import."""
    folders = {family: str(scale_model(OF_FAMILY[family], scale_cache)) for family in FAMILIES}
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{lens}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SHOWN, json.dumps(folders)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_computes_the_same_and_holds_the_stream_of_every_layer(family: str, failed: dict[str, str]) -> None:
    assert family not in failed, failed[family]
