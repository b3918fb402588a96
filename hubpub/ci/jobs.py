"""What the workflows run: each job is one of these functions, and each can be repeated on a laptop.

The workflow files hold no logic. They hand over names in environment variables (a tag name or an input is never
part of a command line) and get back a job matrix, step outputs, a step summary, log groups and annotations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hubpub import units
from hubpub.cards.render import stale
from hubpub.ci.changes import card_changes, changed_since
from hubpub.ci.github import (
    annotation,
    at_line,
    attested,
    cell_table,
    gh,
    group,
    job_matrix,
    output,
    summary,
    warning,
    workflow,
)
from hubpub.config import Card, Project
from hubpub.errors import (
    ConflictError,
    ExportError,
    GateError,
    HubError,
    HubpubError,
    RenderError,
    SourceError,
    UsageError,
)
from hubpub.facts import CardFacts, CellFacts, OtherHost, dump
from hubpub.files import write_atomic
from hubpub.gates import missed_gates, with_current_gates
from hubpub.hub.client import Client, Retry
from hubpub.hub.content import LocalFile
from hubpub.hub.hashing import sha256sums
from hubpub.hub.names import stage_branch
from hubpub.hub.sources import download_source
from hubpub.machine import system
from hubpub.make.existing import Target, on_this_host, source_of
from hubpub.make.run import make
from hubpub.matrix import Cell, cells, select
from hubpub.measure.chosen import with_integers, without_integers
from hubpub.model.scale import slice_of
from hubpub.plan import Step, plan
from hubpub.progress import Display
from hubpub.release import promote as publishing
from hubpub.release import run, staging
from hubpub.release.connect import HUGGING_FACE, Destination
from hubpub.release.handover import (
    calibration_name,
    hand_over,
    hand_over_beside,
    hand_over_host,
    handed_over,
    note_of,
    packed,
    stand_in_name,
    stand_in_of,
)
from hubpub.release.targets import check_kind, check_targets, rehearsal_owner
from hubpub.release.version import checked_version
from hubpub.workspace import Workspace, integers_of

SUMS_OF_ONE = ".sha256"


@dataclass(frozen=True)
class Job:
    """What every job of a release is told. `facts` and `receipts` are the folders that travel between jobs.

    `namespace` is for releases, `for_rehearsals` for rehearsals; neither ever stands in for the other.
    """

    workspace: Workspace
    version: str
    namespace: str | None
    for_rehearsals: str | None
    dry_run: bool
    over_rehearsal: bool
    facts: Path
    receipts: Path

    @property
    def owner(self) -> str:
        """The namespace of this release, or of this rehearsal. Raises UsageError where none was given for it."""
        if self.workspace.rehearsal:
            owner = rehearsal_owner(endpoint(), self.namespace, self.for_rehearsals)
        else:
            owner = self.namespace
        if not owner:
            raise UsageError("no namespace to publish to", "set the variable HF_NAMESPACE, or pass --namespace NAME")
        return owner

    def cell(self, name: str) -> Cell:
        """The one cell called `name`. Raises ConfigError or UsageError."""
        found = select(cells(self.workspace.project), (name,))
        if [one.id for one in found] != [name]:
            raise UsageError(f"'{name}' does not name one cell", "write it as VARIANT/RECIPE")
        return found[0]

    def card(self, repo: str) -> Card:
        for card in self.workspace.project.cards:
            if card.repo == repo:
                return card
        raise UsageError(f"no card declares the repo '{repo}'", "write its name without the namespace")

    def step(self, cell: Cell) -> Step:
        (step,) = plan([cell], self.workspace)
        return step

    def destination(self, card: Card) -> Destination:
        """The Hub, with the right to write to this card's repo and to no other."""
        _trust(f"{self.owner}/{card.repo}")
        return Destination(Client.from_environment(endpoint()), self.owner, over_rehearsal=self.over_rehearsal)

    def checked_destination(self, card: Card) -> Destination:
        """The Hub, where nothing in this card's repo forbids this release or rehearsal."""
        to = self.destination(card)
        check_targets(
            to,
            [card],
            rehearsal=self.workspace.rehearsal,
            version=self.version,
        )
        return to


def endpoint() -> str:
    """The Hub that jobs publish to."""
    return os.environ.get("HF_ENDPOINT") or HUGGING_FACE


def tag_version(given: str | None) -> str:
    """The version to release: `given`, else the tag the workflow runs on. Raises UsageError for any other text."""
    version = given or (os.environ.get("GITHUB_REF_NAME", "") if os.environ.get("GITHUB_REF_TYPE") == "tag" else "")
    return checked_version(version, "tag as vX.Y.Z, or pass --version vX.Y.Z")


def plan_jobs(job: Job, selectors: Sequence[str]) -> dict[str, Any]:
    """Outputs `version`, `cells` and `repos`; fails before any machine is started for what cannot be released."""
    steps = run.planned(job.workspace, selectors)
    if not job.dry_run:
        run.whole_repos(steps)
    matrix = job_matrix(steps, rehearsal=job.workspace.rehearsal)
    for one in matrix["repos"]["include"]:
        _look_at(f"{job.owner}/{one['repo']}", job)
    arm = json.dumps(matrix["arm"]) if matrix["arm"]["include"] and not job.dry_run else ""
    output(version=job.version, cells=json.dumps(matrix["cells"]), repos=json.dumps(matrix["repos"]), arm=arm)
    kind = " (dry run: nothing is published)" if job.dry_run else ""
    lines = [f"## Release {job.version}{kind}", ""]
    if job.workspace.rehearsal:
        # A scale model fits anywhere.
        lines += ["> A rehearsal on scale models: no figure is of a real one.", "", "| cell | repo |", "|---|---|"]
    else:
        lines += ["| cell | repo | file | disk | memory | runner |", "|---|---|---:|---:|---:|---|"]
    for one in matrix["cells"]["include"]:
        need = one["need"]
        row = [f"`{one['cell']}`", f"{job.owner}/{one['repo']}"]
        if not job.workspace.rehearsal:
            row += [
                *(units.size(need[key]) if need else "not known" for key in ("file", "disk", "memory")),
                one["runner"],
            ]
        lines.append(f"| {' | '.join(row)} |")
    skipped = [step for step in steps if step.action == "skip"]
    lines += ["", *(f"- `{step.cell.id}` is left out: {step.reason}" for step in skipped)]
    summary("\n".join(lines))
    return {"version": job.version, **matrix}


def _look_at(repo_id: str, job: Job) -> None:
    """Raise ConflictError where `repo_id` holds what this release must not be mixed with, as far as anybody may see it.

    This job has no token; those that have one look again.
    """
    client = Client(endpoint(), None, retry=Retry(attempts=1))
    try:
        check_kind(client, repo_id, rehearsal=job.workspace.rehearsal, over_rehearsal=job.over_rehearsal)
    except ConflictError:
        raise
    except HubError:
        return


def resume(job: Job, name: str) -> bool:
    """Whether the Hub holds this very cell of this version already, staged or published; then its facts are kept.

    What is staged counts where this workflow attested its facts, and is exported again where it did not: anybody with
    write access can put a file on a branch. Outputs `done`. Raises ConflictError where the version is published with
    another file in this cell's place, GateError where it does not pass its gates as they are now.
    """
    cell = job.cell(name)
    to = job.checked_destination(cell.card)
    found = _published(to, job, cell) or _staged(to, job, cell)
    if found is not None:
        found = with_current_gates(cell, found)
        if (error := missed_gates(found)) is not None:
            raise at_line(error, cell.card, "export.recipes")
        hand_over(job.facts, [found])
        summary(f"`{cell.id}` is on the Hub already: {units.size(found.file.bytes)}, nothing to do.")
    output(done=json.dumps(found is not None))
    return found is not None


def _published(to: Destination, job: Job, cell: Cell) -> CellFacts | None:
    repo = to.repo_id(cell.card)
    refs = to.client.refs(repo)
    if refs is None or job.version not in refs.tags:
        return None
    data = to.client.read(repo, job.version, "facts.json")
    for one in CardFacts.model_validate_json(data).cells if data else ():
        if one.cell == cell.id and one.fingerprint == job.step(cell).fingerprint.value:
            return one
    raise at_line(
        ConflictError(
            f"{repo}: {job.version} exists and was made from something else than {cell.id} is now",
            "a published version never changes: choose the next one",
        ),
        cell.card,
        "export.recipes",
    )


def _staged(to: Destination, job: Job, cell: Cell) -> CellFacts | None:

    repo = to.repo_id(cell.card)
    refs = to.client.refs(repo)
    branch = refs.branches.get(stage_branch(job.version)) if refs else None
    data = to.client.read(repo, branch, note_of(cell.file)) if branch else None
    if data is None or branch is None:
        return None
    try:
        facts = CellFacts.model_validate_json(data)
    except ValueError:
        return None
    there = to.client.files(repo, branch, [cell.file]).get(cell.file)
    same = facts.cell == cell.id and facts.fingerprint == job.step(cell).fingerprint.value and facts.measured_as_now
    if not same or there is None or (facts.file.name, facts.file.sha256) != (cell.file, there.sha256):
        return None
    if not attested(data):
        print(f"{cell.file} is staged in {repo}, but no attestation of this workflow vouches for it: exported again")
        return None
    if cell.recipe.calibrated:
        # Nobody has to vouch for it: a file that differs from what it says is refused.
        chosen = to.client.read(repo, branch, calibration_name(cell.file))
        if chosen is None:
            print(f"{cell.file} is staged in {repo}, but not what its calibration chose: exported again")
            return None
        hand_over_beside(job.facts, {calibration_name(cell.file): chosen})
    if job.workspace.rehearsal:
        # Its facts name every file of the scale model it was made of, so that they vouch for that as well.
        stand_in = to.client.read(repo, branch, stand_in_name(cell.file)) or b""
        hand_over_beside(job.facts, {stand_in_name(cell.file): stand_in})
        try:
            stand_in_of(job.facts, facts, _stand_in(job, cell))
        except SourceError as error:
            (job.facts / stand_in_name(cell.file)).unlink()
            print(f"{cell.file} is staged in {repo}, but {error.message}: exported again")
            return None
    return facts


def fetch(job: Job, name: str) -> None:
    """Bring the source of a cell to this machine: the one step that may read gated sources, and nothing else."""
    cell = job.cell(name)
    if job.workspace.rehearsal:
        return

    _trust(os.environ.get("HUBPUB_SOURCE_USER"))
    variant = cell.variant
    with group(f"{variant.source}@{variant.revision}"):
        download_source(variant.source, revision=variant.revision)


def export(job: Job, name: str, display: Display) -> CellFacts:
    """Export, inspect, validate and bench one cell. Needs no token. Raises GateError where it does not pass."""
    _without_token()
    cell = job.cell(name)
    step = job.step(cell)
    with group(f"{cell.id}: export, inspect, validate, bench"):
        made = make((step,), job.workspace, display)
    if cell.id in made.facts:
        summary("\n".join(cell_table([made.facts[cell.id]])))
    for error in made.failures.values():
        raise at_line(error, cell.card, "export.recipes")
    if cell.id not in made.facts:
        raise ExportError(f"{cell.id} is left out: {step.reason}", "leave it out of the selection")
    return made.facts[cell.id]


def stage(job: Job, name: str, display: Display) -> CellFacts:
    """Send one cell's file and tokenizer to its repo's staging branch, and keep its facts for the jobs to come.

    Beside the facts lie the sums of what this job made: they, and nothing that lay on the Hub before, are attested.
    """
    cell = job.cell(name)
    step = job.step(cell)
    known = step.facts()
    if known is None:
        raise ExportError(f"{cell.id} has not been made on this machine", f"run: hubpub ci export {cell.id}")
    if (error := missed_gates(known)) is not None:
        raise at_line(error, cell.card, "export.recipes")
    facts = known.model_copy(update={"workflow": workflow()})
    beside = {}
    if cell.recipe.calibrated:
        beside[calibration_name(cell.file)] = without_integers(integers_of(step.pte))
    if job.workspace.rehearsal:
        beside[stand_in_name(cell.file)] = packed(source_of(cell.variant, job.workspace))
    if not job.dry_run:
        to = job.checked_destination(cell.card)
        (staged,) = staging.stage(to, [step], {cell.id: facts}, job.version, display, beside=beside)
        summary(f"Staged `{facts.file.name}` for {staged.repo_id} {job.version}: {units.size(staged.bytes_sent)} sent.")
    hand_over(job.facts, [facts])
    hand_over_beside(job.facts, beside)
    note = LocalFile.text(note_of(cell.file), dump(facts))
    made = [(facts.file.name, facts.file.sha256), (note.path_in_repo, note.sha256)]
    write_atomic(job.facts / (cell.file + SUMS_OF_ONE), sha256sums(made))
    return facts


def collect(job: Job, name: str) -> bool:
    """Bring the staged file of a cell to this machine, for `measure`. Outputs `done`: it was measured here already.

    What is published is not staged any more: then it is taken from there.
    """
    cell = job.cell(name)
    facts = _made(job, cell)
    done = any(one.system == system() for one in facts.hosts)
    if not done:
        to = job.destination(cell.card)
        repo = to.repo_id(cell.card)
        refs = to.client.refs(repo)
        branch = stage_branch(job.version)
        revision = branch if refs and branch in refs.branches else job.version
        path = to.client.snapshot(repo, revision, (cell.file,)) / cell.file
        if not path.is_file() or job.workspace.hashes.sha256(path) != facts.file.sha256:
            raise ConflictError(
                f"{repo}@{revision}: {cell.file} is not the file that was made",
                "run this release again, from its start",
            )
        pte = _collected(job, cell)
        pte.parent.mkdir(parents=True, exist_ok=True)
        pte.unlink(missing_ok=True)
        pte.symlink_to(path.resolve())
    output(done=json.dumps(done))
    return done


def measure(job: Job, name: str, display: Display) -> OtherHost:
    """Validate and bench a collected file on this kind of machine, by the same gates. Needs no token.

    What was measured is handed over whatever it is. Raises GateError where it does not pass.
    """
    _without_token()
    cell = job.cell(name)
    facts, pte = _made(job, cell), _collected(job, cell)
    if not pte.exists():
        raise ExportError(f"{cell.file} is not on this machine", f"run: hubpub ci collect {cell.id}")
    if cell.recipe.calibrated:
        with_integers(job.facts / calibration_name(cell.file), pte, integers_of(pte))
    if job.workspace.rehearsal:
        source = stand_in_of(job.facts, facts, _stand_in(job, cell))
    else:
        source = source_of(cell.variant, job.workspace)
    with group(f"{cell.id}: validate and bench on {system()}"):
        part = slice_of(cell.variant, rehearsal=job.workspace.rehearsal)
        target = Target(cell.id, pte, cell.recipe, source, part)
        found = on_this_host(target, job.workspace, facts, partial(display.update, cell.id))
    hand_over_host(job.facts, facts, found)
    here = facts.model_copy(update={"parity": found.parity, "speed": found.speed, "gates": found.gates, "hosts": ()})
    summary("\n".join([f"On {system()}:", "", *cell_table([here])]))
    if (error := missed_gates(here)) is not None:
        raise at_line(error, cell.card, "export.recipes")
    return found


def _stand_in(job: Job, cell: Cell) -> Path:
    """Where the scale model is unpacked that came from the machine that made the file of `cell`."""
    return job.workspace.root / "stand-ins" / cell.file


def _collected(job: Job, cell: Cell) -> Path:
    return job.workspace.root / "collected" / cell.file


def _made(job: Job, cell: Cell) -> CellFacts:
    facts = handed_over(job.facts).get(cell.id)
    if facts is None:
        raise ExportError(f"there are no facts of {cell.id}", "look at the job that exports it")
    return facts


def _without_token() -> None:
    # A step cannot be kept from the means to prove who it is, so they are dropped before model code runs.
    for variable in ("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "HF_TOKEN", "HF_OIDC_RESOURCE"):
        os.environ.pop(variable, None)


def sums(job: Job) -> Path:
    """Write SHA256SUMS of every file that this run made, and of its facts: what is attested. Outputs `made`.

    What an earlier run made was attested there.
    """
    if not handed_over(job.facts):
        raise ExportError("no cell was staged: there is nothing to attest", "look at the export jobs")
    path = job.facts / "SHA256SUMS"
    text = "".join(one.read_text("utf-8") for one in sorted(job.facts.rglob(f"*{SUMS_OF_ONE}")))
    write_atomic(path, text.encode())
    output(made=json.dumps(bool(text)))
    return path


def promote(job: Job, repo: str, display: Display) -> dict[str, Any]:
    """Publish one repo from what its export jobs staged. Keeps the receipt. Raises HubpubError; the repo then stays."""
    card = job.card(repo)
    made = workflow()
    _check_hosts(job, card)
    with group(f"{job.owner}/{repo} {job.version}"):
        try:
            (receipt,) = publishing.promote(
                job.workspace,
                job.destination(card),
                (repo,),
                job.version,
                display,
                facts=job.facts,
                dry_run=job.dry_run,
                unstaged=job.dry_run,
            )
        except HubpubError as error:
            raise at_line(error, card, "export.recipes") from None
    record = {**receipt.as_json(), "summary": receipt.summary, "workflow": made and made.model_dump()}
    write_atomic(job.receipts / f"{repo}.json", (json.dumps(record, indent=2) + "\n").encode())
    page = f"{receipt.endpoint}/{receipt.repo_id}/tree/{job.version}"
    measured = [facts for facts in handed_over(job.facts).values() if facts.variant == card.variant.name]
    said = [receipt.summary, *(f"> {note}" for note in receipt.notes)]
    summary("\n\n".join([f"## [{receipt.repo_id}]({page})", *said, "\n".join(cell_table(measured))]))
    for note in receipt.notes:
        print(warning(f"{receipt.repo_id}: {note}"))
    return record


def _check_hosts(job: Job, card: Card) -> None:
    """Raise GateError where a cell was to be measured on another kind of machine as well, and was not."""
    wanted = {one["cell"] for one in json.loads(os.environ.get("HUBPUB_ARM") or "{}").get("include", ())}
    if job.dry_run:
        return
    for facts in handed_over(job.facts).values():
        if facts.cell in wanted and facts.variant == card.variant.name and not facts.hosts:
            raise GateError(f"{facts.cell} was not measured on ARM", "look at its measure job; run it again")


def announce(job: Job) -> str:
    """The GitHub release of this tag: a table of cells per repo, sums, links and how to verify. Returns its text."""
    known = handed_over(job.facts)
    receipts = {}
    for path in sorted(job.receipts.glob("*.json")):
        receipts[path.stem] = json.loads(path.read_text("utf-8"))
    if not receipts:
        raise HubError(f"nothing of {job.version} was published", "look at the promote jobs")
    made = workflow()
    lines = []
    if job.workspace.rehearsal:
        lines += ["> A rehearsal on scale models: no figure is of a real one.", ""]
    for repo, receipt in receipts.items():
        page = f"{receipt['endpoint']}/{receipt['repo_id']}/tree/{receipt['version']}"
        own = [known[cell.id] for cell in cells(job.workspace.project) if cell.card.repo == repo and cell.id in known]
        lines += [f"## [{receipt['repo_id']}]({page})", "", *cell_table(own), "", "```"]
        lines += [*(f"{facts.file.sha256}  {facts.file.name}" for facts in own), "```", ""]
    planned = json.loads(os.environ.get("HUBPUB_REPOS") or '{"include": []}')["include"]
    absent = {str(one["repo"]) for one in planned} - receipts.keys()
    if absent:
        lines += [f"Not in this release yet: {', '.join(sorted(absent))}.", ""]
    lines += ["## Check what you downloaded", "", "```sh"]
    first = next(iter(receipts.values()))
    lines += [f"hubpub verify {first['repo_id']}@{job.version}"]
    if made and made.attested:
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
    for name, failure in failures.items():
        card = next(step.cell.card for step in steps if step.cell.id == name)
        print(annotation(at_line(failure, card, "export.recipes")))
    old = stale(project)
    for path, _ in old:
        hint = "run 'hubpub render' and commit the result"
        print(annotation(RenderError(f"{path.name} of {path.parent.name} is stale", hint, path=str(path), line=1)))
    if error := run.worst(failures.values()):
        raise error
    if old:
        raise RenderError(f"{len(old)} committed cards are stale", "run 'hubpub render' and commit the result")


def _trust(resource: str | None) -> None:
    """Ask for a token of `resource` alone, where this job can prove who it is; HF_TOKEN is the other way."""
    if os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL") and not os.environ.get("HF_TOKEN") and resource:
        os.environ["HF_OIDC_RESOURCE"] = resource
