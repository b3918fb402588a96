"""The doctor: what a cell needs, worked out from headers and recipe; and a report that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, hubpub, hubpub_here

from hubpub.config import Project
from hubpub.errors import SourceError
from hubpub.hub.client import Client
from hubpub.hub.source_sizes import size_of
from hubpub.localhub import LocalHub
from hubpub.measure import parity
from hubpub.sizing import GB, PASSAGE, Tensors, known_sizes, need_of

TEXT = "model.language_model."
# Gemma 3n E4B as it is published: the tables by their shapes, the decoder's 3.95 billion other weights as one matrix.
E4B: Tensors = {
    f"{TEXT}embed_tokens.weight": ("BF16", (262400, 2048)),
    f"{TEXT}embed_tokens_per_layer.weight": ("BF16", (262144, 256 * 35)),
    f"{TEXT}layers.0.all.weight": ("BF16", (3_949_030_128 // 16, 16)),
    "model.vision_tower.weight": ("BF16", (1_000_000_000,)),
}


def test_a_file_in_the_source_dtype_is_as_large_as_its_weights_and_is_never_held(project: Project) -> None:
    size = size_of(E4B, "gemma3n")
    need = need_of(size, project.recipes["bf16-window"])
    assert size.text == pytest.approx(6_835_235_568, rel=1e-6)
    assert need.file == pytest.approx(13.67 * GB, rel=1e-3)
    assert need.export_memory == 2 * GB
    assert need.disk == size.checkpoint + need.file == pytest.approx(29.3 * GB, rel=1e-2)
    # The original is mapped where a float32 copy of it would not fit: what is left are logits.
    assert need.validate_memory == 2 * GB + 2 * 4 * 2048 * 262_400
    # Sixteen bits as integers are no larger, with a head that is the table; the table per layer is sent as it is.
    integers = need_of(size, project.recipes["bf16"])
    assert integers.file == pytest.approx(need.file + 2 * size.vectors, rel=1e-6)
    assert integers.export_memory == 2 * GB + 2 * (size.embedding + size.matrices) + 4 * size.vectors


def test_validating_takes_what_the_vocabulary_and_the_recipe_make_of_it(project: Project) -> None:
    known, recipes = known_sizes(), project.recipes
    small, large = known["HuggingFaceTB/SmolLM2-135M"], known["google/gemma-3-270m"]
    assert parity.TOKENS == PASSAGE
    for size in (small, large):
        logits = 2 * 4 * 2048 * size.vocabulary
        assert need_of(size, recipes["bf16-window"]).validate_memory == 2 * GB + logits
        held = need_of(size, recipes["8da8w"]).export_memory - 2 * GB
        assert held > size.matrices
        assert need_of(size, recipes["8da8w"]).validate_memory == 2 * GB + held + 4 * size.embedding + logits
    assert need_of(small, recipes["8da4w"]).validate_memory < 3.2 * GB


def test_quantized_files_follow_the_recipe(project: Project) -> None:
    size = size_of(E4B, "gemma3n")
    files = {name: need_of(size, project.recipes[name]).file for name in ("8da4w-small", "8da4w", "8da8w", "fp32")}
    assert list(files) == sorted(files, key=lambda name: files[name])
    assert files["fp32"] == pytest.approx(4 * size.text, rel=1e-3)
    # int8 linears and tables, one of which is the head: one byte each.
    assert files["8da8w"] == pytest.approx(size.text, rel=1e-3)


def test_a_checkpoint_without_a_text_model_is_refused() -> None:
    with pytest.raises(SourceError, match="no gemma3n checkpoint"):
        size_of({"model.vision_tower.weight": ("BF16", (8,))}, "gemma3n")


def test_headers_are_read_from_the_hub_and_nothing_else(tmp_path: Path) -> None:
    import torch
    from huggingface_hub import HfApi
    from safetensors.torch import save_file

    save_file({f"{TEXT}embed_tokens.weight": torch.zeros(4096, 512)}, tmp_path / "model.safetensors")
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("local/source")
        api.upload_file(
            path_or_fileobj=tmp_path / "model.safetensors", path_in_repo="model.safetensors", repo_id="local/source"
        )
        hub.clear_requests()
        found = Client(hub.url, hub.token).stored_tensors("local/source", "main")
        assert size_of(found, "gemma3n").embedding == 4096 * 512
        assert sum(entry.response_bytes for entry in hub.requests) < 1 << 20


def test_offline_it_says_what_could_not_be_checked(tmp_path: Path) -> None:
    ran = hubpub("doctor", "gemma-3n-E2B-it/8da4w", "--offline", "--json", work=tmp_path, HF_HOME=str(tmp_path))
    checks = {check["subject"]: check for check in ran.json["checks"]}
    assert ran.json["ok"] == (ran.code == 0), ran.err
    assert checks["torch"]["verdict"] == "ok"
    # All is there but the text of the agreement, which is not ours to ship.
    license_ = checks["license of gemma-3n-E2B-it-pte"]
    assert license_["verdict"] == "warning" and "gemma-terms-of-use.txt" in license_["fix"]
    assert checks["targets"]["verdict"] == "unknown"
    assert all(check["fix"] for check in checks.values() if check["verdict"] != "ok")


def test_a_hub_that_does_not_answer_and_a_missing_token_are_told_apart(tmp_path: Path) -> None:
    ran = hubpub(
        "doctor", "gemma-3n-E2B-it/8da4w", "--json", "--hub", "http://127.0.0.1:9",
        work=tmp_path, HF_HOME=str(tmp_path), HF_TOKEN="hf_" + "x" * 34,
    )  # fmt: skip
    checks = {check["subject"]: check for check in ran.json["checks"]}
    assert checks["targets"]["verdict"] == "unknown"
    assert "hf_x" not in ran.out + ran.err
    ran = hubpub(
        "doctor", "gemma-3n-E2B-it/8da4w", "--json", "--hub", "http://127.0.0.1:9",
        work=tmp_path, HF_HOME=str(tmp_path), HF_TOKEN="",
    )  # fmt: skip
    assert (ran.code, {c["subject"]: c for c in ran.json["checks"]}["targets"]["verdict"]) == (4, "failed")


def test_the_job_matrix_names_every_cell_once(project: Project, tmp_path: Path) -> None:
    ran = hubpub_here("plan", "--github", "--rehearse", work=tmp_path, HUBPUB_RUNNER="small-machine")
    jobs = json.loads(ran.out)["cells"]["include"]
    planned = hubpub_here("plan", "--rehearse", "--json", work=tmp_path).json["cells"]
    assert [job["cell"] for job in jobs] == [cell["cell"] for cell in planned]
    assert {job["runner"] for job in jobs} == {"small-machine"}
    assert len({job["key"] for job in jobs}) == len(jobs)


def test_only_cells_that_changed_since_a_commit_are_planned(tmp_path: Path) -> None:
    import shutil
    import subprocess

    def git(*arguments: str) -> None:
        name = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *name, *arguments], cwd=repo, check=True, capture_output=True)

    repo = tmp_path / "repo"
    for card in ("gemma-3n-E2B-it-pte", "gemma-3n-E4B-it-pte"):
        shutil.copytree(ROOT / "cards" / card, repo / "cards" / card)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    path = repo / "cards" / "gemma-3n-E4B-it-pte" / "card.toml"
    plan = ("plan", "--rehearse", "--json", "--changed-since", "HEAD")
    assert hubpub_here(*plan, work=tmp_path, cwd=repo).json["cells"] == []
    path.write_text(path.read_text().replace("title = ", "# prose\ntitle = "))
    assert hubpub_here(*plan, work=tmp_path, cwd=repo).json["cells"] == []
    path.write_text(path.read_text().replace("context = 2048", "context = 1024"))
    cells = [cell["cell"] for cell in hubpub_here(*plan, work=tmp_path, cwd=repo).json["cells"]]
    assert cells and all(cell.startswith("gemma-3n-E4B-it/") for cell in cells)
    refused = hubpub_here("plan", "--changed-since", "--output=x", work=tmp_path, cwd=repo)
    assert refused.code == 2
    refused = hubpub_here("plan", "--changed-since=--output=x", work=tmp_path, cwd=repo)
    assert (refused.code, "is not a commit" in refused.err) == (2, True)
