"""From facts to the files of a repo: programs, tokenizer, and card, licenses and facts.json rendered from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubpub.config import Card, Project
from hubpub.errors import ConflictError
from hubpub.facts import CardFacts, CellFacts, dump, save
from hubpub.files import write_atomic
from hubpub.gates import check_regressions
from hubpub.plan import Step

if TYPE_CHECKING:
    from hubpub.cards.render import Rendered
    from hubpub.hub.client import Client
    from hubpub.hub.content import LocalFile, RepoRelease
    from hubpub.release.run import Options


def sources_here(card: Card, steps: Iterable[Step], options: Options) -> dict[str, Path]:
    """Where the programs of `steps` and their tokenizer lie on this machine, by name."""
    from hubpub.model.checkpoint import TOKENIZER_FILES

    source = tokenizer_folder(card, options)
    return {**{name: source / name for name in TOKENIZER_FILES}, **{step.cell.file: step.pte for step in steps}}


def files_of(measured: Sequence[CellFacts], sources: Mapping[str, Path]) -> list[LocalFile]:
    """Programs and tokenizer of `measured`; a file that is not in `sources` was staged by another machine."""
    from hubpub.hub.content import LocalFile

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
    """The release of one repo: programs and tokenizer, and the card, licenses and facts.json rendered beside them.

    Files that are not in `sources` were staged by other machines. `made` is added to the commit's message.
    """
    from hubpub.cards.render import render
    from hubpub.hub.content import LocalFile, RepoRelease
    from hubpub.make.devices import with_devices

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
        facts = facts.model_copy(update={"accepted": check_regressions(previous, facts, card)})
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
    from hubpub.hub.sources import download_source

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
