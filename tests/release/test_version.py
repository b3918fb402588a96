"""The version of a rehearsal that was given none: the same content gives the same one, any other another."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from hubpub.config import Project
from hubpub.release.assemble import Ready
from hubpub.release.version import rehearsal_version

from .conftest import facts_of


def test_it_names_the_content(small: Project, tmp_path: Path) -> None:
    shutil.copytree(small.templates_dir, tmp_path / "templates")
    project = Project.find(tmp_path)
    card, facts = project.cards[0], tuple(facts_of(project, recipe) for recipe in ("8da4w", "8da8w"))
    found = rehearsal_version(project, [Ready(card, facts, {})])
    assert re.fullmatch(r"v0\.0\.0-rehearsal\.[0-9a-f]{8}", found)
    assert rehearsal_version(project, [Ready(card, facts, {"somewhere": tmp_path})]) == found
    seen = {found, rehearsal_version(project, [Ready(card, facts[:1], {})])}
    changed = facts[0].model_copy(update={"summary": "another"})
    seen.add(rehearsal_version(project, [Ready(card, (changed, facts[1]), {})]))
    template = next(path for path in sorted((tmp_path / "templates").rglob("*")) if path.is_file())
    template.write_text(template.read_text() + "\n")
    seen.add(rehearsal_version(project, [Ready(card, facts, {})]))
    path = card.folder / "card.toml"
    path.write_text(path.read_text() + "# said\n")
    seen.add(rehearsal_version(project, [Ready(card, facts, {})]))
    assert len(seen) == 5
