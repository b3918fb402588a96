"""From facts to the files of a repo: programs, tokenizer, and card, licenses and facts.json rendered from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubpub.cards.family_sizes import Known, siblings
from hubpub.cards.render import Rendered, golden, merge, recorded, render
from hubpub.config import Card, Project
from hubpub.errors import ConfigError, ConflictError
from hubpub.facts import CardFacts, CellFacts, dump, save
from hubpub.files import write_atomic
from hubpub.gates import check_regressions, missed_gates, with_current_gates
from hubpub.hub.client import Client
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.history import commit_of
from hubpub.hub.sources import download_source
from hubpub.make.devices import with_devices
from hubpub.make.evaluations import with_evaluations
from hubpub.make.rebuild import with_rebuilds
from hubpub.matrix import Cell, cells_of
from hubpub.model.checkpoint import TOKENIZER_FILES
from hubpub.model.scale import build
from hubpub.plan import Step
from hubpub.release.connect import Destination


@dataclass(frozen=True)
class Ready:
    """A card that can be published: every cell of it measured as now, of its source, and past its gates as they are.

    `sources` says where its files lie on this machine; those it does not name were staged by other machines. Of a
    `partial` one cells are missing: it can be looked at, and never published.
    """

    card: Card
    cells: tuple[CellFacts, ...]
    sources: Mapping[str, Path]
    partial: bool = False


def complete_card(
    project: Project,
    card: Card,
    known: Mapping[str, CellFacts],
    sources: Mapping[str, Path],
    *,
    rehearsal: bool,
    partial: bool = False,
) -> Ready:
    """The one rule for what may become a release of `card`, out of the facts `known` by cell.

    Raises ConfigError for a cell that is missing (unless `partial`) or was measured of something else, GateError for
    one that does not pass its gates.
    """
    own = cells_of(project, card)
    missing = [cell.id for cell in own if cell.id not in known]
    if missing and not (partial and len(missing) < len(own)):
        raise ConfigError(
            f"{card.repo} cannot be published: there are no facts of {', '.join(missing)}",
            "make and stage what is missing, or exclude the recipe in its card.toml",
        )
    cells = tuple(_checked(cell, known[cell.id], rehearsal=rehearsal) for cell in own if cell.id in known)
    return Ready(card, cells, sources, bool(missing))


def _checked(cell: Cell, facts: CellFacts, *, rehearsal: bool) -> CellFacts:
    source = facts.source
    if source.scale_model != rehearsal:
        what = "on a scale model" if source.scale_model else "on the real model"
        raise ConfigError(f"{cell.id} was measured {what}", "promote it with the options it was staged with")
    if (source.repo, source.revision) != (cell.variant.source, cell.variant.revision or source.revision):
        raise ConfigError(
            f"{cell.id} was measured of {source.repo}@{source.revision}, not of the source its card names",
            "stage it again from this card.toml",
        )
    if facts.file.name != cell.file:
        raise ConfigError(f"{cell.id}: its facts are of {facts.file.name}, not of {cell.file}")
    if not facts.measured_as_now:
        raise ConfigError(
            f"{cell.id} was measured in another way than this hubpub measures", "measure it again where it was made"
        )
    current = with_current_gates(cell, facts)
    if (error := missed_gates(current)) is not None:
        raise error
    return current


def sources_here(card: Card, steps: Iterable[Step]) -> dict[str, Path]:
    """Where the programs of `steps`, all of one card, and their tokenizer lie on this machine, by name."""
    found = {step.cell.file: step.pte for step in steps}
    tokenizer = next(_tokenizer_folder(card, step) for step in steps)
    return {**{name: tokenizer / name for name in TOKENIZER_FILES}, **found}


def _tokenizer_folder(card: Card, step: Step) -> Path:
    """Where the tokenizer's files of a card's source lie: a scale model, or the downloaded checkpoint."""
    if step.workspace.rehearsal:
        return build(card.variant, step.workspace.scale_models)
    return download_source(card.variant.source, revision=card.variant.revision)


def files_of(measured: Sequence[CellFacts], sources: Mapping[str, Path]) -> list[LocalFile]:
    """Programs and tokenizer of `measured`; a file that is not in `sources` was staged by another machine."""
    wanted = [*(facts.file for facts in measured), *measured[0].tokenizer]
    return [LocalFile(one.name, sources.get(one.name), one.bytes, one.sha256) for one in wanted]


def beside(ready: Sequence[Ready]) -> Known:
    """What is known of the files of any card when `ready` is released: what that holds, else what is committed."""
    cells = {one.card.repo: one.cells for one in ready}
    return lambda card: cells[card.repo] if card.repo in cells else recorded(card)


def assemble(
    project: Project, ready: Ready, to: Destination, version: str, known: Known = recorded
) -> tuple[RepoRelease, CardFacts]:
    """The release of one repo, and its facts: what `ready` holds, and card, licenses and facts.json rendered from it.

    `known` are figures of the other sizes of its model, which its card shows beside its own. Raises GateError where it
    is worse than the release it follows and its card does not say why.
    """
    card, repo_id = ready.card, to.repo_id(ready.card)
    previous = _previous(to.client, repo_id, version)
    if previous is not None and previous.scale_model != ready.cells[0].source.scale_model:
        # A rehearsal is nothing that a release follows.
        previous = None
    facts = CardFacts(
        repo=repo_id,
        version=version,
        previous=previous.version if previous else None,
        variant=card.variant.name,
        cells=ready.cells,
    )
    facts = with_rebuilds(with_evaluations(with_devices(facts, card), card), card)
    if previous is not None:
        facts = facts.model_copy(update={"accepted": check_regressions(previous, facts, card)})
    rendered = render(
        card,
        facts,
        namespace=to.namespace,
        templates=project.templates_dir,
        previous=previous,
        among=project.readable_cards,
        known=known,
    )
    files = files_of(ready.cells, ready.sources)
    files += [LocalFile.text(name, data) for name, data in rendered.files.items() if name != "README.md"]
    files.append(LocalFile.text("facts.json", dump(facts)))
    runs = dict.fromkeys((made.run, made.commit) for cell in ready.cells if (made := cell.workflow))
    made_by = "\n".join(f"Made by {run} from commit {commit}." for run, commit in runs)
    release = RepoRelease(
        repo_id=repo_id,
        version=version,
        files=tuple(files),
        message=f"Release {version}\n\n{made_by}".strip(),
        card_merge=_merge(repo_id, rendered),
    )
    return release, facts


def record(project: Project, released: Mapping[str, CardFacts]) -> None:
    """Keep facts and cards of a release, by repo, in the checkout: the goldens that CI compares with.

    Cards of other sizes of the same models show figures of what was released: they are rendered again too.
    """
    cards = {card.repo: card for card in project.cards}
    for repo, facts in released.items():
        save(facts, cards[repo].folder / "facts.json")
    others = {one.card.repo for repo in released for one in siblings(cards[repo], project.cards)}
    for repo in sorted({*released, *others}):
        # What changed since the release before is not in the facts: the committed card is made from them alone.
        for path, data in golden(cards[repo], project).items():
            write_atomic(path, data)


def _merge(repo_id: str, rendered: Rendered) -> Callable[[str | None], str]:

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


def _previous(client: Client, repo_id: str, version: str) -> CardFacts | None:
    """The facts of the release that `version` follows on the Hub; a release made again follows the same one."""
    same = _published(client, repo_id, version)
    if same is not None:
        return _published(client, repo_id, same.previous) if same.previous else None
    refs = client.refs(repo_id)
    head = refs.branches.get("main") if refs else None
    if head and (unfinished := commit_of(client, repo_id, version, head)):
        # Killed between the commit and the tag; others may have been released since.
        same = _read(client, repo_id, unfinished.id)
        return _published(client, repo_id, same.previous) if same and same.previous else None
    return _published(client, repo_id, "main")


def _published(client: Client, repo_id: str, revision: str) -> CardFacts | None:
    refs = client.refs(repo_id)
    if refs is None or revision not in {*refs.branches, *refs.tags}:
        return None
    return _read(client, repo_id, revision)


def _read(client: Client, repo_id: str, revision: str) -> CardFacts | None:
    data = client.read(repo_id, revision, "facts.json")
    if data is None:
        return None
    try:
        return CardFacts.model_validate_json(data)
    except ValueError:
        # Another program's facts.json, or a schema that is no longer read: nothing to compare with.
        return None
