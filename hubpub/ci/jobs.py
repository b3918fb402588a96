"""What the workflows run: each job is one of these functions, and each can be repeated on a laptop.

The workflow files hold no logic. They hand over names in environment variables (a tag name or an input is never
part of a command line) and get back a job matrix, step outputs, a step summary, log groups and annotations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.ci.changes import card_changes, changed_since
from hubpub.ci.github import annotation, at_line, cell_table, gh, group, human, job_matrix, output, summary, workflow
from hubpub.config import Card, Project
from hubpub.errors import ConflictError, ExportError, GateError, HubError, RenderError, UsageError
from hubpub.facts import MEASURING, CardFacts, CellFacts, dump, load
from hubpub.files import write_atomic
from hubpub.gates import with_current_gates
from hubpub.matrix import Cell, cells, select
from hubpub.plan import Step, plan
from hubpub.workspace import Workspace

if TYPE_CHECKING:
    from hubpub.hub.client import Client
    from hubpub.progress import Display
    from hubpub.release.run import Options


@dataclass(frozen=True)
class Job:
    """What every job of a release is told. `facts` and `receipts` are the folders that travel between jobs."""

    project: Project
    work: Path
    version: str
    namespace: str | None
    rehearse: bool
    dry_run: bool
    facts: Path
    receipts: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.project, self.work, self.rehearse)

    def cell(self, name: str) -> Cell:
        """The one cell called `name`. Raises ConfigError or UsageError."""
        found = select(cells(self.project), (name,))
        if [one.id for one in found] != [name]:
            raise UsageError(f"'{name}' does not name one cell", "write it as VARIANT/RECIPE")
        return found[0]

    def card(self, repo: str) -> Card:
        for card in self.project.cards:
            if card.repo == repo:
                return card
        raise UsageError(f"no card declares the repo '{repo}'", "write its name without the namespace")

    def repo_id(self, card: Card) -> str:
        if not self.namespace:
            raise UsageError("no namespace to publish to", "set the variable HF_NAMESPACE, or pass --namespace NAME")
        return f"{self.namespace}/{card.repo}"

    def step(self, cell: Cell) -> Step:
        (step,) = plan([cell], self.workspace)
        return step

    def options(self, *names: str) -> Options:
        from hubpub.release.run import Options

        return Options(names, self.work, version=self.version, rehearse=self.rehearse, hub=_endpoint())

    def client(self, card: Card) -> Client:
        """The Hub, with the right to write to this card's repo and to no other."""
        return _client(self.repo_id(card))


def tag_version(given: str | None) -> str:
    """The version to release: `given`, else the tag the workflow runs on. Raises UsageError for any other text."""
    from hubpub.release.version import VERSION

    version = given or (os.environ.get("GITHUB_REF_NAME", "") if os.environ.get("GITHUB_REF_TYPE") == "tag" else "")
    if not VERSION.fullmatch(version):
        raise UsageError(f"{version!r} is not a version", "tag as vX.Y.Z, or pass --version vX.Y.Z")
    return version


def plan_jobs(job: Job, selectors: Sequence[str]) -> dict[str, Any]:
    """Outputs `version`, `cells` and `repos`; fails before any machine is started for what cannot be released."""
    chosen = select(cells(job.project), selectors)
    steps = plan(chosen, job.workspace)
    picked = {cell.id for cell in chosen}
    for card in {cell.card.repo: cell.card for cell in chosen}.values():
        job.repo_id(card)
        for cell in cells(job.project):
            if cell.card is card and cell.id not in picked and not cell.excluded and not job.dry_run:
                raise UsageError(
                    f"{card.repo} cannot be published: {cell.id} was not selected",
                    f"select all of it ('{card.variant.name}/*'), or make it a dry run",
                )
        if not job.rehearse and card.variant.revision is None:
            error = UsageError(f"{card.variant.source} is not pinned", f"run 'hubpub pin {card.repo}' and commit it")
            raise at_line(error, card, "variant.source")
    matrix = job_matrix(steps, rehearse=job.rehearse)
    output(version=job.version, cells=json.dumps(matrix["cells"]), repos=json.dumps(matrix["repos"]))
    kind = " (dry run: nothing is published)" if job.dry_run else ""
    lines = [f"## Release {job.version}{kind}", ""]
    if job.rehearse:
        # A scale model fits anywhere.
        lines += ["> A rehearsal on scale models: no figure is of a real one.", "", "| cell | repo |", "|---|---|"]
    else:
        lines += ["| cell | repo | file | disk | memory | runner |", "|---|---|---:|---:|---:|---|"]
    for one in matrix["cells"]["include"]:
        need = one["need"]
        row = [f"`{one['cell']}`", job.repo_id(job.card(one["repo"]))]
        if not job.rehearse:
            row += [*(human(need[key]) if need else "not known" for key in ("file", "disk", "memory")), one["runner"]]
        lines.append(f"| {' | '.join(row)} |")
    summary("\n".join(lines))
    return {"version": job.version, **matrix}


def resume(job: Job, name: str) -> bool:
    """Whether the Hub holds this very cell of this version already, staged or published; then its facts are kept.

    Outputs `done`. Raises ConflictError where the version is published with another file in this cell's place.
    """
    cell = job.cell(name)
    found = _held(job.client(cell.card), job, cell)
    if found is not None:
        _keep(job, found)
        summary(f"`{cell.id}` is on the Hub already: {human(found.file.bytes)}, nothing to do.")
    output(done=json.dumps(found is not None))
    return found is not None


def _held(client: Client, job: Job, cell: Cell) -> CellFacts | None:
    from hubpub.hub.names import stage_branch

    repo, wanted = job.repo_id(cell.card), job.step(cell).fingerprint.value
    refs = client.refs(repo)
    if refs is None:
        return None
    if job.version in refs.tags:
        data = client.read(repo, job.version, "facts.json")
        published = CardFacts.model_validate_json(data).cells if data else ()
        for one in published:
            if one.cell == cell.id and one.fingerprint == wanted:
                return one
        raise at_line(
            ConflictError(
                f"{repo}: {job.version} exists and was made from something else than {cell.id} is now",
                "a published version never changes: choose the next one",
            ),
            cell.card,
            "export.recipes",
        )
    branch = refs.branches.get(stage_branch(job.version))
    data = client.read(repo, branch, _note(cell)) if branch else None
    if data is None or branch is None:
        return None
    try:
        facts = CellFacts.model_validate_json(data)
    except ValueError:
        return None
    current = facts.fingerprint == wanted and facts.parity.measuring == facts.speed.measuring == MEASURING
    there = client.files(repo, branch, [facts.file.name]).get(facts.file.name)
    return facts if current and there and there.sha256 == facts.file.sha256 else None


def fetch(job: Job, name: str) -> None:
    """Bring the source of a cell to this machine: the one step that may read gated sources, and nothing else."""
    cell = job.cell(name)
    if job.rehearse:
        return
    from hubpub.hub.sources import download_source

    _trust(os.environ.get("HUBPUB_SOURCE_USER"))
    variant = cell.variant
    with group(f"{variant.source}@{variant.revision}"):
        download_source(variant.source, revision=variant.revision)


def export(job: Job, name: str, display: Display) -> CellFacts:
    """Export, inspect, validate and bench one cell. Needs no token. Raises GateError where it does not pass."""
    from hubpub.make.run import make

    # A step cannot be kept from the means to prove who it is, so they are dropped before model code runs.
    for variable in ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "HF_TOKEN", "HF_OIDC_RESOURCE"):
        os.environ.pop(variable, None)
    cell = job.cell(name)
    with group(f"{cell.id}: export, inspect, validate, bench"):
        made = make((job.step(cell),), job.workspace, display)
    facts, failures = made.facts, made.failures
    if cell.id in facts:
        summary("\n".join(cell_table([facts[cell.id]])))
    for error in failures.values():
        raise at_line(error, cell.card, "export.recipes")
    if cell.id not in facts:
        raise ExportError(f"{cell.id} is excluded: {cell.excluded}", "leave it out of the selection")
    return facts[cell.id]


def stage(job: Job, name: str) -> CellFacts:
    """Send one cell's file and tokenizer to its repo's staging branch, and keep its facts for the jobs to come."""
    from hubpub.hub.content import LocalFile, RepoRelease
    from hubpub.hub.staging import stage as stage_files
    from hubpub.release.assemble import files_of, sources_here

    cell = job.cell(name)
    step = job.step(cell)
    known = step.facts()
    if known is None:
        raise ExportError(f"{cell.id} has not been made on this machine", f"run: hubpub ci export {cell.id}")
    facts = with_current_gates(cell, known).model_copy(update={"workflow": workflow()})
    if not facts.passed:
        raise at_line(GateError(f"{cell.id} does not pass its gates"), cell.card, "export.recipes")
    if not job.dry_run:
        files = files_of([facts], sources_here(cell.card, [step], job.options(cell.id)))
        # Last: whoever finds the facts on the branch finds the files they speak of.
        files.append(LocalFile.text(_note(cell), dump(facts)))
        release = RepoRelease(job.repo_id(cell.card), job.version, tuple(files), "")
        staged = stage_files(job.client(cell.card), release, job.work, small_too=True)
        summary(
            f"Staged `{facts.file.name}` for {job.repo_id(cell.card)} {job.version}: {human(staged.bytes_sent)} sent."
        )
    _keep(job, facts)
    return facts


def sums(job: Job) -> Path:
    """Write SHA256SUMS of every cell whose facts arrived: what is attested."""
    from hubpub.hub.hashing import sha256sums

    found = sorted(_facts(job).values(), key=lambda facts: facts.file.name)
    if not found:
        raise ExportError("no cell was staged: there is nothing to attest", "look at the export jobs")
    path = job.facts / "SHA256SUMS"
    text = sha256sums([(facts.file.name, facts.file.sha256) for facts in found])
    write_atomic(path, text.encode() if isinstance(text, str) else text)
    return path


def promote(job: Job, repo: str) -> dict[str, Any]:
    """Render, one commit, tag and verify one repo, from what its export jobs staged. Keeps the receipt.

    Raises ExportError where a cell of the repo was not staged; the repo stays as it was.
    """
    from hubpub.hub.maintenance import verify
    from hubpub.hub.publish import promote as promote_release
    from hubpub.hub.publish import publish_all
    from hubpub.release.assemble import repo_release

    card = job.card(repo)
    repo_id = job.repo_id(card)
    own = [cell for cell in cells(job.project) if cell.card is card and not cell.excluded]
    known = _facts(job)
    missing = [cell.id for cell in own if cell.id not in known]
    if missing:
        error = ExportError(
            f"{repo_id} is not published: {', '.join(missing)} was not staged",
            "re-run the failed jobs: what is staged stays",
        )
        raise at_line(error, card, "export.recipes")
    measured = tuple(known[cell.id] for cell in own)
    client = job.client(card)
    made = workflow()
    with group(f"{repo_id} {job.version}"):
        message = f"Made by {made.run} from commit {made.commit}." if made else ""
        options = job.options()
        release = repo_release(client, job.project, card, measured, {}, repo_id, job.version, options, message)
        if job.dry_run:
            (receipt,) = publish_all(client, [release], job.work, dry_run=True, unstaged=True)
        else:
            receipt = promote_release(client, release, job.work)
            checked = verify(client, repo_id, job.version)
            if not checked.ok:
                raise HubError(f"{repo_id}@{job.version} is not intact: {checked.problems[0]}")
    record = {**receipt.as_json(), "summary": receipt.summary, "workflow": made and made.model_dump()}
    write_atomic(job.receipts / f"{repo}.json", (json.dumps(record, indent=2) + "\n").encode())
    page = f"{client.endpoint}/{repo_id}/tree/{job.version}"
    summary("\n".join([f"## [{repo_id}]({page})", "", receipt.summary, "", *cell_table(measured)]))
    return record


def announce(job: Job) -> str:
    """The GitHub release of this tag: a table of cells per repo, sums, links and how to verify. Returns its text."""
    known = _facts(job)
    receipts = {}
    for path in sorted(job.receipts.glob("*.json")):
        receipts[path.stem] = json.loads(path.read_text("utf-8"))
    if not receipts:
        raise HubError(f"nothing of {job.version} was published", "look at the promote jobs")
    made = workflow()
    lines = []
    if job.rehearse:
        lines += ["> A rehearsal on scale models: no figure is of a real one.", ""]
    for repo, receipt in receipts.items():
        page = f"{receipt['endpoint']}/{receipt['repo_id']}/tree/{receipt['version']}"
        own = [known[cell.id] for cell in cells(job.project) if cell.card.repo == repo and cell.id in known]
        lines += [f"## [{receipt['repo_id']}]({page})", "", *cell_table(own), "", "```"]
        lines += [*(f"{facts.file.sha256}  {facts.file.name}" for facts in own), "```", ""]
    planned = json.loads(os.environ.get("HUBPUB_REPOS") or '{"include": []}')["include"]
    absent = {str(one["repo"]) for one in planned} - receipts.keys()
    if absent:
        lines += [f"Not in this release yet: {', '.join(sorted(absent))}.", ""]
    lines += ["## Check what you downloaded", "", "```sh"]
    first = next(iter(receipts.values()))
    lines += [f"hubpub verify {first['repo_id']}@{job.version}"]
    if made:
        lines += [f"gh attestation verify FILE.pte --repo {made.repository}"]
    lines += ["```"]
    if made:
        lines += ["", f"Made by [this run]({made.run}) from commit `{made.commit}`."]
    text = "\n".join(lines) + "\n"
    summary(f"# {job.version}\n\n{text}")
    if not job.dry_run and os.environ.get("GITHUB_REF_TYPE") == "tag":
        notes = job.receipts / "announcement.md"
        write_atomic(notes, text.encode())
        common = ["--title", job.version, "--notes-file", str(notes)]
        there = gh("release", "view", job.version).returncode == 0
        what = ["edit", job.version] if there else ["create", job.version, "--verify-tag"]
        done = gh("release", *what, *common)
        if done.returncode:
            raise HubError(f"gh release {what[0]}: {done.stderr.strip()}", "does the job have 'contents: write'?")
    return text


def rehearse(project: Project, work: Path, base: str | None, selectors: Sequence[str], display: Display) -> None:
    """A pull request: the cells that would come out differently, on scale models; what its cards change; stale cards.

    Raises the worst of what went wrong after everything was tried.
    """
    from hubpub.cards.render import stale
    from hubpub.make.run import make
    from hubpub.release.run import Report

    reasons = changed_since(project, base) if base else {}
    chosen = [cell for cell in select(cells(project), selectors) if base is None or cell.id in reasons]
    workspace = Workspace(project, work, rehearsal=True)
    steps = plan(chosen, workspace)
    lines = ["## Rehearsal", ""]
    made = make(steps, workspace, display)
    facts, failures = made.facts, made.failures
    lines += cell_table(list(facts.values())) if facts else ["No cell would come out differently."]
    lines += [""] + [f"- **{name}** failed: {error.message}" for name, error in failures.items()]
    summary("\n".join(lines))
    changes = card_changes(project, base) if base else ""
    summary(changes)
    for name, error in failures.items():
        print(
            annotation(at_line(error, next(step.cell.card for step in steps if step.cell.id == name), "export.recipes"))
        )
    old = stale(project)
    for path, _ in old:
        error = RenderError(f"{path.name} of {path.parent.name} is stale", "run 'hubpub render' and commit the result")
        error.path, error.line = str(path), 1
        print(annotation(error))
    Report("", steps, facts, failures, (), (), None).raise_for_failures()
    if old:
        raise RenderError(f"{len(old)} committed cards are stale", "run 'hubpub render' and commit the result")


def _endpoint() -> str:
    from hubpub.release.connect import HUGGING_FACE

    return os.environ.get("HF_ENDPOINT") or HUGGING_FACE


def _trust(resource: str | None) -> None:
    """Ask for a token of `resource` alone, where this job can prove who it is; HF_TOKEN is the other way."""
    if os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL") and not os.environ.get("HF_TOKEN") and resource:
        os.environ["HF_OIDC_RESOURCE"] = resource


def _client(resource: str) -> Client:
    from hubpub.hub.client import Client

    _trust(resource)
    return Client.from_environment(_endpoint())


def _note(cell: Cell) -> str:
    """The file on the staging branch that holds the facts of a staged cell."""
    return f"{cell.file}.facts.json"


def _keep(job: Job, facts: CellFacts) -> None:
    write_atomic(job.facts / f"{facts.file.name.removesuffix('.pte')}.json", dump(facts).encode())


def _facts(job: Job) -> dict[str, CellFacts]:
    """The facts that arrived, by cell."""
    found = [load(CellFacts, path) for path in sorted(job.facts.glob("*.json"))]
    return {facts.cell: facts for facts in found}
