"""The job matrix: which runner holds which cell, and what is refused before a machine is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hubpub.ci import github
from hubpub.ci.github import MATRIX_JOBS, attested, job_matrix, workflow
from hubpub.config import Project
from hubpub.errors import HubpubError, ToolchainError, UsageError
from hubpub.matrix import cells, select
from hubpub.plan import Step, plan
from hubpub.workspace import Workspace


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, no runner of one's own, and a Hub that cannot be reached."""
    for name in ("HUBPUB_RUNNER", "HUBPUB_LARGE_RUNNER", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def steps(project: Project, tmp_path: Path, *selectors: str) -> tuple[Step, ...]:
    return plan(select(cells(project), selectors), Workspace(project, tmp_path, rehearsal=False))


def test_every_cell_of_a_known_model_has_a_known_need_without_a_token(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBPUB_LARGE_RUNNER", "big")
    found = job_matrix(steps(project, tmp_path), rehearsal=False)["cells"]["include"]
    assert found and all(job["need"] for job in found)
    runners = {job["cell"]: job["runner"] for job in found}
    assert runners["gemma-3n-E2B-it/8da4w"] == "ubuntu-24.04" and runners["gemma-3n-E2B-it/fp32"] == "big"


def test_without_a_large_runner_what_does_not_fit_is_refused_with_its_need(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"gemma-3n-E2B-it/fp32 \(disk 28\.6 GB, memory 2\d\.\d GB\)") as caught:
        job_matrix(steps(project, tmp_path), rehearsal=False)
    assert "HUBPUB_LARGE_RUNNER" in str(caught.value.hint)
    assert "gemma-3n-E2B-it/8da4w" not in caught.value.message
    job_matrix(steps(project, tmp_path, "gemma-3n-E2B-it/8da4w"), rehearsal=False)
    # A scale model fits anywhere.
    assert all(job["need"] is None for job in job_matrix(steps(project, tmp_path), rehearsal=True)["cells"]["include"])


def test_a_matrix_holds_as_many_jobs_as_github_takes(project: Project, tmp_path: Path) -> None:
    (one,) = steps(project, tmp_path, "gemma-3n-E2B-it/8da4w")
    assert len(job_matrix([one] * MATRIX_JOBS, rehearsal=False)["cells"]["include"]) == 256
    with pytest.raises(UsageError, match="257 cells are more than the 256 jobs") as caught:
        job_matrix([one] * (MATRIX_JOBS + 1), rehearsal=False)
    assert "some repos at a time" in str(caught.value.hint)


def test_facts_of_a_private_run_claim_no_attestation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ACTIONS": "true",
        "SERVER_URL": "https://g",
        "REPOSITORY": "a/b",
        "SHA": "c",
        "RUN_ID": "1",
    }.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    for value, expected in (("true", True), ("false", False)):
        monkeypatch.setenv("HUBPUB_ATTEST", value)
        found = workflow()
        assert found and found.attested is expected


def test_nothing_is_attested_where_no_signer_is_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`gh` vouches for anything here: who it is to have been must be known all the same."""
    tool = tmp_path / "gh"
    tool.write_text(
        '#!/bin/sh\n[ "$1 $2 $4 $5 $6 $7" = "attestation verify --repo a/b --signer-workflow m/h/w.yml" ]\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("GITHUB_REPOSITORY", "a/b")
    monkeypatch.delenv("HUBPUB_SIGNER", raising=False)
    assert not attested(b"x")
    monkeypatch.setenv("HUBPUB_SIGNER", "m/h/w.yml@refs/tags/v1")
    assert attested(b"x")
    monkeypatch.setenv("HUBPUB_SIGNER", "m/h/other.yml@refs/tags/v1")
    assert not attested(b"x")
    monkeypatch.setenv("HUBPUB_SIGNER", "m/h/w.yml@refs/tags/v1")
    monkeypatch.delenv("GITHUB_REPOSITORY")
    assert not attested(b"x")


def test_a_github_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "gh"
    tool.write_text("#!/bin/sh\nexec sleep 20\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(github, "GH_SECONDS", 0.2)
    with pytest.raises(HubpubError, match="GitHub did not answer 'gh release view' within") as caught:
        github.gh("release", "view", "v1.0.0")
    assert caught.value.hint == "run this job again"
