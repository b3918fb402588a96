"""The release: each step's value threaded into the next, from a plan to receipts.

plan -> (scale models) -> cells -> facts.json per card -> rendered files -> stage and promote -> receipts. Nothing is
published of a repo unless every one of its cells passed its gates, and nothing at all before every repo is staged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.config import Card, Project, locate
from hubpub.errors import (
    ConfigError,
    ConflictError,
    GateError,
    HubError,
    HubpubError,
    UsageError,
)
from hubpub.facts import CardFacts, CellFacts, dump, load, save, write_atomic
from hubpub.making import make, rejudged
from hubpub.matrix import cells, select
from hubpub.plan import Step, plan
from hubpub.progress import Display

if TYPE_CHECKING:
    from hubpub.cards.render import Rendered
    from hubpub.hub.client import Client
    from hubpub.hub.release import LocalFile, Receipt, RepoRelease, Staged
    from hubpub.localhub import LocalHub

HUGGING_FACE = "https://huggingface.co"
LOCAL_PORT = 8765
VERSION = re.compile(r"v\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")


@dataclass(frozen=True)
class Options:
    """What one release is asked to do. `hub` is "local" or an endpoint; `jobs` None: as many as the machine holds."""

    selectors: tuple[str, ...]
    work: Path
    version: str | None = None
    rehearse: bool = False
    hub: str | None = None
    namespace: str | None = None
    jobs: int | None = None
    force: bool = False
    dry_run: bool = False
    create_pr: bool = False
    record: bool = False
    stage: bool = False
    """Stop once the files of the selected cells are on staging branches: `promote` publishes them, from anywhere."""

    @property
    def endpoint(self) -> str:
        return self.hub or ("local" if self.rehearse else HUGGING_FACE)


@dataclass(frozen=True)
class Report:
    """What came of a release: the plan, the facts of every cell, what failed, and the Hub's receipts by repo."""

    version: str
    steps: tuple[Step, ...]
    facts: dict[str, CellFacts]
    failures: dict[str, HubpubError]
    receipts: tuple[Receipt, ...]
    pages: tuple[str, ...]
    local_hub: Path | None
    seconds: float = field(default=0.0)
    staged: tuple[Staged, ...] = ()

    def raise_for_failures(self) -> None:
        """Raise the worst of what went wrong: an error of a cell before a gate that was not passed."""
        if not self.failures:
            return
        errors = list(self.failures.values())
        first = next((e for e in errors if not isinstance(e, GateError)), errors[0])
        more = f" ({len(errors) - 1} more cells failed)" if len(errors) > 1 else ""
        raise type(first)(first.message + more, first.hint)

    def as_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "seconds": round(self.seconds, 2),
            "cells": [
                {
                    **step.as_json(),
                    "error": str(self.failures[step.cell.id]) if step.cell.id in self.failures else None,
                    "passed": facts.passed if (facts := self.facts.get(step.cell.id)) else None,
                    "bytes": facts.file.bytes if facts else None,
                    "sha256": facts.file.sha256 if facts else None,
                }
                for step in self.steps
            ],
            "staged": [asdict(one) for one in self.staged],
            "receipts": [receipt.as_json() for receipt in self.receipts],
            "pages": list(self.pages),
        }


def run(project: Project, options: Options, display: Display) -> Report:
    """Plan, make, measure, render and publish. Raises HubpubError; failed cells are in the report instead."""
    from time import monotonic

    started = monotonic()
    steps = plan(
        select(cells(project), options.selectors), options.work, rehearse=options.rehearse, force=options.force
    )
    if not options.rehearse and options.version is None:
        raise UsageError("a release needs a version", "add --version vX.Y.Z, or --rehearse to try it on scale models")
    if options.stage and options.version is None:
        raise UsageError("files are staged for a version", "add --version vX.Y.Z: 'hubpub promote' asks for the same")
    if options.stage and (options.create_pr or options.dry_run):
        raise UsageError("--stage goes with neither --pr nor --dry-run", "give --pr to 'hubpub promote'")
    if options.version is not None and not VERSION.fullmatch(options.version):
        raise UsageError(f"'{options.version}' is not a version", "write it as vX.Y.Z, e.g. --version v1.0.0")
    if not options.rehearse:
        _pinned(steps)
    with ExitStack() as stack:
        client, local_hub = connect(options, stack)
        namespace = options.namespace or client.namespace
        repos = {step.cell.card.repo: f"{namespace}/{step.cell.card.repo}" for step in steps}
        _preflight(client, list(repos.values()), options)
        if not options.rehearse:
            _check_sources(steps)
        facts, failures = make(project, steps, options, display)
        if options.stage:
            assert options.version
            staged = _stage(client, steps, facts, failures, repos, options, display)
            pages = tuple(f"{client.endpoint}/{one.repo_id}" for one in staged)
            seconds = monotonic() - started
            return Report(options.version, steps, facts, failures, (), pages, local_hub, seconds, staged)
        cards = _complete(project, steps, facts, failures, options)
        version = options.version or _rehearsal_version(project, cards)
        releases = []
        for card, found in cards:
            try:
                here = _here(card, found, options)
                release = repo_release(client, project, card, *here, repos[card.repo], version, options)
            except GateError as error:
                failures[f"{card.variant.name}/*"] = error
                display.finish(card.repo, f"not published: {error.message}")
            else:
                releases.append(release)
        receipts: list[Receipt] = []
        if releases:
            from hubpub.hub.publish import publish_all

            def told(repo: str, path: str, sent: int, total: int) -> None:
                display.update(repo, f"send {path}", sent / total if total else 1.0)

            receipts = publish_all(
                client,
                releases,
                options.work,
                progress=told,
                dry_run=options.dry_run,
                create_pr=options.create_pr,
            )
            for receipt in receipts:
                display.finish(receipt.repo_id, receipt.summary)
        pages = tuple(f"{client.endpoint}/{release.repo_id}" for release in releases)
    return Report(version, steps, facts, failures, tuple(receipts), pages, local_hub, monotonic() - started)


def _stage(
    client: Client,
    steps: Sequence[Step],
    facts: dict[str, CellFacts],
    failures: dict[str, HubpubError],
    repos: dict[str, str],
    options: Options,
    display: Display,
) -> tuple[Staged, ...]:
    """Put the selected cells that passed their gates, and their tokenizers, on the staging branch of each repo."""
    from hubpub.hub.publish import stage
    from hubpub.hub.release import RepoRelease

    assert options.version is not None
    files: dict[str, dict[str, LocalFile]] = {}
    for step in steps:
        found = facts.get(step.cell.id)
        if found is None or step.cell.id in failures:
            continue
        own = files.setdefault(step.cell.card.repo, {})
        for file in files_of([found], sources_here(step.cell.card, [step], options)):
            own[file.path_in_repo] = file

    def told(repo: str, path: str, sent: int, total: int) -> None:
        display.update(repo, f"stage {path}", sent / total if total else 1.0)

    done = []
    for repo, own in files.items():
        release = RepoRelease(repos[repo], options.version, tuple(own.values()), f"Release {options.version}")
        one = stage(client, release, options.work, progress=told, small_too=True)
        display.finish(one.repo_id, one.summary)
        done.append(one)
    return tuple(done)


def promote(project: Project, options: Options, facts_dir: Path | None, display: Display) -> tuple[Receipt, ...]:
    """Publish what was staged for a version: by a pull request that waits for it, or by machines that staged cells.

    The files themselves need not be here: the facts.json of every cell, below `facts_dir` or else in the work folder,
    say what must have been staged. All repos are checked before the first is promoted.
    """
    from hubpub.hub.publish import preflight, promote_all, promote_pull, staged_versions

    version = options.version
    if version is None or not VERSION.fullmatch(version):
        raise UsageError(f"'{version}' is not a version", "write it as it was staged: --version vX.Y.Z")
    chosen = {cell.card.repo: cell.card for cell in select(cells(project), options.selectors) if not cell.excluded}
    receipts: list[Receipt] = []
    with ExitStack() as stack:
        client, _ = connect(options, stack)
        namespace = options.namespace or client.namespace
        preflight(client, [f"{namespace}/{repo}" for repo in chosen], create_pr=options.create_pr)
        releases, pulls = [], []
        for repo, card in chosen.items():
            repo_id = f"{namespace}/{repo}"
            waits = not options.create_pr and version not in staged_versions(client, repo_id)
            if waits and promote_pull(client, repo_id, version, options.work, dry_run=True):
                pulls.append(repo_id)
                continue
            measured = _measured(project, card, facts_dir, options)
            releases.append(repo_release(client, project, card, measured, {}, repo_id, version, options))

        def told(repo: str, path: str, sent: int, total: int) -> None:
            display.update(repo, f"send {path}", sent / total if total else 1.0)

        # Only looked at: a repo whose files are not all there stops every other one.
        promote_all(client, releases, options.work, dry_run=True, create_pr=options.create_pr)
        for repo_id in pulls:
            if found := promote_pull(client, repo_id, version, options.work, dry_run=options.dry_run):
                receipts.append(found)
        receipts += promote_all(
            client, releases, options.work, progress=told, dry_run=options.dry_run, create_pr=options.create_pr
        )
        for receipt in receipts:
            display.finish(receipt.repo_id, receipt.summary)
    return tuple(receipts)


def _measured(project: Project, card: Card, folder: Path | None, options: Options) -> tuple[CellFacts, ...]:
    """The facts of every cell of `card`, from any facts.json below `folder`, or from the work folder.

    Raises ConfigError for one that is missing, that was measured of something else, or that fails its gates.
    """
    own = [cell for cell in cells(project) if cell.card.repo == card.repo and not cell.excluded]
    known: dict[str, CellFacts] = {}
    if folder is None:
        for step in plan(own, options.work, rehearse=options.rehearse):
            if (path := step.folder / "facts.json").exists():
                known[step.cell.id] = load(CellFacts, path)
    else:
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}", "--facts names the folder that holds the facts.json of every cell")
        for path in sorted(folder.rglob("facts.json")):
            found = load(CellFacts, path)
            if known.setdefault(found.cell, found) != found:
                raise ConfigError(
                    f"{path}: {found.cell} was measured twice, with different results", "keep one of them"
                )
    result = []
    for cell in own:
        facts = known.get(cell.id)
        if facts is None:
            where = folder or options.work
            raise ConfigError(
                f"{card.repo} cannot be promoted: there is no facts.json of {cell.id} in {where}",
                "pass the folder that holds it as --facts, or exclude the recipe in its card.toml",
            )
        source = facts.source
        if source.scale_model != options.rehearse:
            what = "on a scale model" if source.scale_model else "on the real model"
            raise ConfigError(f"{cell.id} was measured {what}", "promote it with the options it was staged with")
        if (source.repo, source.revision) != (cell.variant.source, cell.variant.revision):
            raise ConfigError(
                f"{cell.id} was measured of {source.repo}@{source.revision}, not of the source its card names",
                "stage it again from this card.toml",
            )
        if facts.file.name != cell.file:
            raise ConfigError(f"{cell.id}: its facts are of {facts.file.name}, not of {cell.file}")
        judged = rejudged(cell, facts)
        if not judged.passed:
            raise GateError(f"{card.repo} cannot be promoted: {cell.id} does not pass its gates")
        result.append(judged)
    return tuple(result)


def _pinned(steps: Sequence[Step]) -> None:
    for card in {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}.values():
        if card.variant.revision is None:
            path, line = locate(card, "variant.source")
            raise ConfigError(
                f"{path}: variant.revision is missing: a release needs one commit of {card.variant.source}",
                f"run 'hubpub pin {card.repo}': it asks the Hub and writes the commit into card.toml",
                path=str(path),
                line=line,
            )


def connect(options: Options, stack: ExitStack) -> tuple[Client, Path | None]:
    """A client for the Hub of `options`; a local Hub is started for as long as `stack` is open."""
    from hubpub.hub.client import Client

    if options.endpoint != "local":
        return Client.from_environment(options.endpoint), None
    root = options.work / "hub"
    try:
        hub = stack.enter_context(_local_hub(root, options.namespace))
    except HubError:
        # Somebody may be looking at it with `hubpub hub serve`: that one is asked then.
        if (served := _served(root)) is None:
            raise
        return served, root
    return Client(hub.url, hub.token), root


def _served(root: Path) -> Client | None:
    """A client for the local Hub that another process serves from `root`, if it answers."""
    from hubpub.hub.client import Client, Retry

    try:
        client = Client((root / "address").read_text(), (root / "token").read_text(), retry=Retry(attempts=1))
        client.whoami()
    except (OSError, HubError):
        return None
    return Client(client.endpoint, (root / "token").read_text())


def _local_hub(root: Path, namespace: str | None) -> LocalHub:
    """A local Hub at the address `hubpub hub serve` uses, so that its pages can be found again; else anywhere."""
    import socket

    from hubpub.localhub import LocalHub

    orgs = [namespace] if namespace else []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", LOCAL_PORT))
        except OSError:
            return LocalHub(root, orgs=orgs)
    return LocalHub(root, LOCAL_PORT, orgs=orgs)


def _preflight(client: Client, repo_ids: Sequence[str], options: Options) -> None:
    from hubpub.hub.publish import preflight

    for access in preflight(client, repo_ids, create_pr=options.create_pr):
        if options.version and options.version in access.tags and options.force:
            raise ConflictError(
                f"{access.repo_id} already has {options.version}, and a forced export would make other files",
                "choose the next version",
            )


def _check_sources(steps: Sequence[Step]) -> None:
    """Raise AccessError before the first download where a source that has to be fetched may not be read."""
    from hubpub.hub.client import Client, cached_source

    todo = {step.cell.variant.source: step.cell.variant for step in steps if step.action == "export"}
    missing = [variant.source for variant in todo.values() if cached_source(variant.source, variant.revision) is None]
    client = Client.from_environment() if missing else None
    for source in missing:
        assert client is not None
        client.check_source(source)


def _complete(
    project: Project,
    steps: Sequence[Step],
    facts: dict[str, CellFacts],
    failures: dict[str, HubpubError],
    options: Options,
) -> list[tuple[Card, dict[str, Step]]]:
    """The cards that can be published, each with the steps of all of its cells.

    A card with a failed cell is left out. Cells of a card that were not selected must have been made before.
    """
    chosen = {step.cell.card.repo: step.cell.card for step in steps if step.action != "skip"}
    failed = {step.cell.card.repo for step in steps if step.cell.id in failures}
    found = []
    for repo, card in chosen.items():
        if repo in failed:
            continue
        own = [cell for cell in cells(project) if cell.card.repo == repo and not cell.excluded]
        all_steps = plan(own, options.work, rehearse=options.rehearse)
        for step in all_steps:
            if step.cell.id in facts:
                continue
            known = step.facts()
            if known is None:
                raise ConfigError(
                    f"{repo} cannot be published: {step.cell.id} was not selected and has not been made",
                    f"select all of it ('{step.cell.variant.name}/*'), or exclude the recipe in its card.toml",
                )
            facts[step.cell.id] = rejudged(step.cell, known)
            if not facts[step.cell.id].passed:
                raise GateError(f"{repo} cannot be published: {step.cell.id} does not pass its gates")
        found.append((card, {step.cell.id: step for step in all_steps}))
    return found


def _here(card: Card, steps: dict[str, Step], options: Options) -> tuple[tuple[CellFacts, ...], dict[str, Path]]:
    """The facts of cells that were made on this machine, and where each of their files lies."""
    found = [(step, step.facts()) for step in steps.values()]
    measured = tuple(rejudged(step.cell, facts) for step, facts in found if facts)
    return measured, sources_here(card, steps.values(), options)


def sources_here(card: Card, steps: Iterable[Step], options: Options) -> dict[str, Path]:
    """Where the programs of `steps` and their tokenizer lie on this machine, by name."""
    from hubpub.model.checkpoint import TOKENIZER_FILES

    source = tokenizer_folder(card, options)
    return {**{name: source / name for name in TOKENIZER_FILES}, **{step.cell.file: step.pte for step in steps}}


def files_of(measured: Sequence[CellFacts], sources: Mapping[str, Path]) -> list[LocalFile]:
    """Programs and tokenizer of `measured`; a file that is not in `sources` was staged by another machine."""
    from hubpub.hub.release import LocalFile

    wanted = [*(facts.file for facts in measured), *measured[0].tokenizer]
    return [LocalFile(one.name, sources.get(one.name), one.bytes, one.sha256) for one in wanted]


def repo_release(
    client: Client,
    project: Project,
    card: Card,
    measured: tuple[CellFacts, ...],
    sources: Mapping[str, Path],
    repo_id: str,
    version: str,
    options: Options,
    made: str = "",
) -> RepoRelease:
    """The release of one repo: programs and tokenizer, and the card, licences and facts.json rendered beside them.

    Files that are not in `sources` were staged by other machines. `made` is added to the commit's message.
    """
    from hubpub.cards.render import render
    from hubpub.hub.release import LocalFile, RepoRelease
    from hubpub.measure.compare import release_gate
    from hubpub.remeasure import with_devices

    previous = _previous(client, repo_id, version)
    facts = CardFacts(
        repo=repo_id,
        version=version,
        previous=previous.version if previous else None,
        variant=card.variant.name,
        cells=measured,
    )
    facts = with_devices(facts, card)
    if previous is not None:
        facts = facts.model_copy(update={"accepted": release_gate(previous, facts, card)})
    rendered = render(
        card,
        facts,
        namespace=repo_id.partition("/")[0],
        templates=project.templates_dir,
        previous=previous,
    )
    files = files_of(measured, sources)
    files += [LocalFile.text(name, data) for name, data in rendered.files.items() if name != "README.md"]
    files.append(LocalFile.text("facts.json", dump(facts)))
    if options.record:
        record(project, card, facts)
    return RepoRelease(
        repo_id=repo_id,
        version=version,
        files=tuple(files),
        message=f"Release {version}\n\n{made}".strip(),
        card_merge=_merge(repo_id, rendered),
    )


def record(project: Project, card: Card, facts: CardFacts) -> None:
    """Keep a release's facts and card in the checkout: the goldens that CI compares with."""
    from hubpub.cards.render import golden

    save(facts, card.folder / "facts.json")
    # What changed since the release before is not in the facts: the committed card is made from them alone.
    for path, data in golden(card, project).items():
        write_atomic(path, data)


def _merge(repo_id: str, rendered: Rendered) -> Any:
    from hubpub.cards.render import merge

    text = rendered.files["README.md"].decode()

    def merged(published: str | None) -> str:
        if published is None:
            return text
        result = merge(published, text)
        if result.conflicts:
            raise ConflictError(
                f"{repo_id}: generated parts of the published card were edited by hand:\n"
                + "\n".join(conflict.diff for conflict in result.conflicts),
                "move what was written outside of the hubpub blocks, or into card.toml",
            )
        text_now: str = result.text
        return text_now

    return merged


def tokenizer_folder(card: Card, options: Options) -> Path:
    """Where the tokenizer's files of a card's source lie: a scale model, or the downloaded checkpoint."""
    if options.rehearse:
        from hubpub.model.scale import build

        return build(card.variant.name, card.variant.family, options.work / "scale")
    from hubpub.hub.client import download_source

    return download_source(card.variant.source, revision=card.variant.revision)


def _previous(client: Client, repo_id: str, version: str) -> CardFacts | None:
    """The facts of the release that `version` follows on the Hub; a release made again follows the same one."""
    same = _published(client, repo_id, version)
    if same is not None:
        return _published(client, repo_id, same.previous) if same.previous else None
    published = _published(client, repo_id, "main")
    if published is not None and published.version == version:
        # Killed between the commit and the tag.
        return _published(client, repo_id, published.previous) if published.previous else None
    return published


def _published(client: Client, repo_id: str, revision: str) -> CardFacts | None:
    refs = client.refs(repo_id)
    if refs is None or revision not in {*refs.branches, *refs.tags}:
        return None
    data = client.read(repo_id, revision, "facts.json")
    if data is None:
        return None
    try:
        return CardFacts.model_validate_json(data)
    except ValueError:
        # Another program's facts.json, or a schema that is no longer read: nothing to compare with.
        return None


def _rehearsal_version(project: Project, cards: Sequence[tuple[Card, dict[str, Step]]]) -> str:
    """A version that names the content: rehearsing the same thing again gives the same tag."""
    digest = hashlib.sha256()
    for card, steps in cards:
        digest.update((card.folder / "card.toml").read_bytes())
        for step in steps.values():
            facts = load(CellFacts, step.folder / "facts.json")
            digest.update(dump(rejudged(step.cell, facts)).encode())
    for path in sorted(project.templates_dir.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    rooms = Path(__file__).parent / "cards"
    for path in sorted(rooms.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"v0.0.0-rehearsal.{digest.hexdigest()[:8]}"
