"""Staging cells: their files and facts go to the staging branch of their repo, for any machine to promote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from hubpub.cards import licenses
from hubpub.facts import CellFacts, dump
from hubpub.hub.content import LocalFile, RepoRelease
from hubpub.hub.receipts import Staged
from hubpub.hub.staging import stage as stage_files
from hubpub.plan import Step
from hubpub.progress import Display
from hubpub.release.assemble import files_of, sources_here
from hubpub.release.connect import Destination
from hubpub.release.handover import hand_over, note_of


def stage(
    to: Destination,
    steps: Sequence[Step],
    facts: Mapping[str, CellFacts],
    version: str,
    display: Display,
    *,
    beside: Mapping[str, bytes] | None = None,
) -> tuple[Staged, ...]:
    """Stage the cells of `steps` that are in `facts`, with tokenizers and terms, and keep those facts for `promote`.

    Only cells that passed their gates are to be given. Facts go with their file: whoever finds them on the branch
    finds what they speak of. So do the files `beside` them, by name, which are never published.
    """

    done, workspace = [], steps[0].workspace
    with workspace.locked(display.note):
        for card in {step.cell.card.repo: step.cell.card for step in steps if step.cell.id in facts}.values():
            own = [step for step in steps if step.cell.card is card and step.cell.id in facts]
            measured = [facts[step.cell.id] for step in own]
            files = files_of(measured, sources_here(card, own))
            files += [LocalFile.text(note_of(one.file.name), dump(one)) for one in measured]
            files += [
                LocalFile.text(name, data) for name, data in licenses.files(card.variant, card.folder.parent).items()
            ]
            files += [LocalFile.text(name, data) for name, data in (beside or {}).items()]
            release = RepoRelease(to.repo_id(card), version, tuple(files), f"Release {version}")
            staged = stage_files(
                to.client, release, workspace.root, progress=partial(display.update, release.repo_id), small_too=True
            )
            hand_over(workspace.receipts / version, measured)
            display.finish(staged.repo_id, staged.summary)
            done.append(staged)
    return tuple(done)
