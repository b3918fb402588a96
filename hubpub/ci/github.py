"""What GitHub Actions understands: a job matrix, step outputs and summaries, log groups, annotations, its runners."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubpub import units
from hubpub.config import Card, locate
from hubpub.errors import HubpubError, ToolchainError, UsageError
from hubpub.facts import CellFacts, Workflow
from hubpub.hub.client import Client, Retry
from hubpub.hub.source_sizes import sizes
from hubpub.plan import Step
from hubpub.sizing import GB, Size, known_as, known_sizes, need_of

# What GitHub's standard Linux runner has: memory as documented, disk as seen after `hubpub ci free-disk`.
STANDARD_MEMORY, STANDARD_DISK = 16 * GB, 60 * GB
# https://docs.github.com/en/actions/reference/limits: "a job matrix can generate a maximum of 256 jobs per run".
MATRIX_JOBS = 256
# How long `gh` may take.
GH_SECONDS = 300.0


def job_matrix(steps: Sequence[Step], *, rehearsal: bool) -> dict[str, Any]:
    """One job per cell and one per repo. `runner` is the label of a machine that can hold the cell.

    The cells of "arm" are those that are measured on ARM as well, on HUBPUB_ARM_RUNNER ("none": nowhere) or
    HUBPUB_LARGE_ARM_RUNNER.

    Labels come from HUBPUB_RUNNER and HUBPUB_LARGE_RUNNER; a cell of unknown need gets the standard one. Raises
    ToolchainError for cells that do not fit the standard one where there is no large one, and UsageError for more cells
    than one matrix takes.
    """
    standard = os.environ.get("HUBPUB_RUNNER") or "ubuntu-24.04"
    large = os.environ.get("HUBPUB_LARGE_RUNNER")
    arm = os.environ.get("HUBPUB_ARM_RUNNER") or "ubuntu-24.04-arm"
    large_arm = os.environ.get("HUBPUB_LARGE_ARM_RUNNER")
    todo = [step for step in steps if step.action != "skip"]
    if len(todo) > MATRIX_JOBS:
        raise UsageError(
            f"{len(todo)} cells are more than the {MATRIX_JOBS} jobs that one matrix of GitHub takes",
            "release some repos at a time: name their variants as selectors",
        )
    table = known_sizes()
    unknown = [step for step in todo if known_as(step.cell.variant) not in table]
    measured = sizes(unknown, _impatient()) if unknown and not rehearsal else {}
    jobs, misfits = [], []
    for step in todo:
        size = table.get(known_as(step.cell.variant)) or measured.get(step.cell.variant.name)
        need = need_of(size, step.cell.recipe) if isinstance(size, Size) and not rehearsal else None
        fits = need is None or (need.memory <= STANDARD_MEMORY and need.disk <= STANDARD_DISK)
        if not fits and need is not None:
            misfits.append(f"{step.cell.id} (disk {units.size(need.disk)}, memory {units.size(need.memory)})")
        jobs.append(
            {
                "cell": step.cell.id,
                "repo": step.cell.card.repo,
                "key": step.cell.file.removesuffix(".pte"),
                "runner": standard if fits else large,
                "size": "standard" if fits else "large",
                "need": need and {"file": need.file, "disk": need.disk, "memory": need.memory},
            }
        )
    if misfits and not large:
        raise ToolchainError(
            f"{len(misfits)} cells do not fit a runner with {units.size(STANDARD_DISK)} of disk and "
            f"{units.size(STANDARD_MEMORY)} of memory: {'; '.join(misfits)}",
            "set the variable HUBPUB_LARGE_RUNNER to the label of a larger machine, or exclude them in card.toml",
        )
    repos = list(dict.fromkeys(str(job["repo"]) for job in jobs))
    on_arm = []
    for one in jobs if arm != "none" else ():
        if label := arm if one["size"] == "standard" else large_arm:
            on_arm.append({"cell": one["cell"], "repo": one["repo"], "key": one["key"], "runner": label})
    return {
        "cells": {"include": jobs},
        "repos": {"include": [{"repo": repo} for repo in repos]},
        "arm": {"include": on_arm},
    }


def _impatient() -> Any:

    try:
        client = Client.from_environment(os.environ.get("HF_ENDPOINT"))
    except HubpubError:
        return None
    client.retry = Retry(attempts=1)
    return client


def gh(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["gh", *arguments], capture_output=True, text=True, check=False, timeout=GH_SECONDS)
    except FileNotFoundError:
        raise UsageError("gh is not installed", "see https://cli.github.com, or pass --dry-run") from None
    except subprocess.TimeoutExpired:
        raise HubpubError(
            f"GitHub did not answer 'gh {' '.join(arguments[:2])}' within {GH_SECONDS:.0f} seconds",
            "run this job again",
        ) from None


def workflow() -> Workflow | None:
    """The run this is part of, or None outside of GitHub Actions."""
    found = [os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "SHA", "RUN_ID")]
    if os.environ.get("GITHUB_ACTIONS") != "true" or not all(found):
        return None
    server, repository, commit, run = (str(one) for one in found)
    page = f"{server}/{repository}/actions/runs/{run}"
    return Workflow(repository=repository, commit=commit, run=page, attested=attesting())


def attesting() -> bool:
    """Whether this run signs attestations: on a private repository GitHub takes them on some plans only."""
    return os.environ.get("HUBPUB_ATTEST", "true") != "false"


def attested(data: bytes) -> bool:
    """Whether the release workflow of this repository attested a file of exactly these bytes.

    HUBPUB_SIGNER names the file of that workflow: of the repository that defines it, where another one calls it.
    """
    repository, signer = os.environ.get("GITHUB_REPOSITORY"), os.environ.get("HUBPUB_SIGNER", "").partition("@")[0]
    if not repository or not signer:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        done = gh("attestation", "verify", str(path), "--repo", repository, "--signer-workflow", signer)
    return done.returncode == 0


def output(**values: str) -> None:
    """Step outputs; on a laptop they are printed."""
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    if any("\n" in value for value in values.values()):
        raise HubpubError("a step output spans several lines")
    _append("GITHUB_OUTPUT", lines)


def summary(text: str) -> None:
    """A part of the step summary, in Markdown; on a laptop it is printed."""
    _append("GITHUB_STEP_SUMMARY", text.rstrip() + "\n\n")


def _append(variable: str, text: str) -> None:
    path = os.environ.get(variable)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    else:
        print(text, end="")


@contextmanager
def group(title: str) -> Iterator[None]:
    """A part of the log that folds on GitHub."""
    inside = os.environ.get("GITHUB_ACTIONS") == "true"
    print(f"::group::{_escaped(title)}" if inside else title, flush=True)
    try:
        yield
    finally:
        if inside:
            print("::endgroup::", flush=True)


def annotation(error: HubpubError) -> str:
    """`error` as an annotation of GitHub, on the file and line it is about."""
    place = {"title": f"hubpub: {type(error).__name__}"}
    if error.path:
        root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd())
        place["file"] = os.path.relpath(error.path, root)
        place["line"] = str(error.line or 1)
    where = ",".join(f"{key}={_escaped(value, property_=True)}" for key, value in place.items())
    text = error.message + (f" ({error.hint})" if error.hint else "")
    return f"::error {where}::{_escaped(text)}"


def warning(text: str) -> str:
    """A sentence that GitHub shows with the run, which stays green."""
    return f"::warning title=hubpub::{_escaped(text)}"


def _escaped(text: str, *, property_: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if property_ else text


def at_line(error: HubpubError, card: Card, key: str) -> HubpubError:
    """`error`, pointing at the line of the card that declares `key`."""
    path, line = locate(card, key)
    error.path, error.line = str(path), line
    return error


def cell_table(found: Sequence[CellFacts]) -> list[str]:
    lines = ["|file|recipe|size|top-1|KL|decode|memory|gates|", "|---|---|---:|---:|---:|---:|---:|---|"]
    for facts in found:
        missed = [gate.name for gate in facts.gates if not gate.passed]
        row = [
            f"`{facts.file.name}`",
            facts.recipe,
            units.size(facts.file.bytes),
            f"{facts.parity.logits.top1_agreement:.1%}",
            f"{facts.parity.logits.kl_mean:.2g}",
            f"{facts.speed.decode_tokens_per_second:,.1f}/s",
            units.size(facts.speed.peak_resident_bytes),
            f"**failed: {', '.join(missed)}**" if missed else f"{len(facts.gates)} passed",
        ]
        lines.append("|" + "|".join(row) + "|")
    return lines


# What GitHub's Linux images bring along and no export needs, largest first.
_UNUSED = (
    "/usr/local/lib/android", "/usr/share/dotnet", "/opt/hostedtoolcache/CodeQL", "/opt/ghc", "/usr/local/.ghcup",
    "/usr/share/swift", "/usr/local/share/powershell", "/usr/local/share/chromium", "/opt/az",
)  # fmt: skip


def free_disk() -> int:
    """Remove what a GitHub-hosted runner brings along and no export needs. Returns the bytes gained.

    Anywhere else it only says what it would remove.
    """
    before = shutil.disk_usage("/").free
    there = [path for path in _UNUSED if Path(path).is_dir()]
    if os.environ.get("RUNNER_ENVIRONMENT") != "github-hosted":
        print("not on a GitHub-hosted runner; would remove: " + (", ".join(there) or "nothing"))
        return 0
    for path in there:
        subprocess.run(["sudo", "rm", "-rf", path], check=False)
    free = shutil.disk_usage("/").free
    print(f"{units.size(free)} free, {units.size(free - before)} more than before")
    return free - before
