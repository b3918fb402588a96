"""Publishing what was staged."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hubpub.config import Card, Project
from hubpub.errors import ConfigError, GateError, UsageError
from hubpub.facts import CellFacts, load
from hubpub.gates import with_current_gates
from hubpub.matrix import cells, select
from hubpub.plan import plan
from hubpub.progress import Display
from hubpub.release.assemble import repo_release
from hubpub.release.connect import connect
from hubpub.release.version import VERSION

if TYPE_CHECKING:
    from hubpub.hub.receipts import Receipt
    from hubpub.release.run import Options


def promote(project: Project, options: Options, facts_dir: Path | None, display: Display) -> tuple[Receipt, ...]:
    """Publish what was staged for a version: by a pull request that waits for it, or by machines that staged cells.

    The files themselves need not be here: the facts.json of every cell, below `facts_dir` or else in the work folder,
    say what must have been staged. All repos are checked before the first is promoted.
    """
    from hubpub.hub.publish import preflight, publish_all
    from hubpub.hub.pulls import promote_pull
    from hubpub.hub.staging import staged_versions

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
        publish_all(client, releases, options.work, dry_run=True, create_pr=options.create_pr)
        for repo_id in pulls:
            if found := promote_pull(client, repo_id, version, options.work, dry_run=options.dry_run):
                receipts.append(found)
        receipts += publish_all(
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
        for step in plan(own, options.workspace(project)):
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
        judged = with_current_gates(cell, facts)
        if not judged.passed:
            raise GateError(f"{card.repo} cannot be promoted: {cell.id} does not pass its gates")
        result.append(judged)
    return tuple(result)
