"""The comment of a pull request: one, edited at every push, and never another bot's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from hubpub.ci.changes import COMMENT

OURS = f"{COMMENT}\n## Cards\n"
# What `gh` does of it: comments as the API lists them, filtered by jq itself; a PATCH; a new comment.
GH = """
import json, sys, jq
from pathlib import Path
store = Path({store!r})
comments = json.loads(store.read_text())
words = sys.argv[1:]
if words[:1] == ["api"] and "--jq" in words:
    assert "repos/a/b/issues/7/comments" in words
    for found in jq.compile(words[words.index("--jq") + 1]).input_value(comments).all():
        print(found)
elif words[:1] == ["api"]:
    assert words[words.index("--method") + 1] == "PATCH"
    number = int(next(w for w in words if w.startswith("repos/")).rpartition("/")[2])
    body = Path(words[words.index("--field") + 1].removeprefix("body=@")).read_text()
    next(one for one in comments if one["id"] == number)["body"] = body
else:
    assert words[:3] == ["pr", "comment", "7"], words
    body = Path(words[words.index("--body-file") + 1]).read_text()
    comments.append({{"id": len(comments) + 1, "user": {{"login": "github-actions[bot]"}}, "body": body}})
store.write_text(json.dumps(comments))
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "gh.py").write_text(GH.format(store=str(tmp_path / "comments.json")))
    (tmp_path / "gh").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/gh.py" "$@"\n')
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "card-changes.md").write_text(OURS)
    return tmp_path


def comment(world: Path, comments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the step as it stands in the file, where these comments are there already."""
    (world / "comments.json").write_text(json.dumps(comments))
    jobs = yaml.safe_load((ROOT / ".github/workflows/rehearse.yml").read_text())["jobs"]
    (step,) = [step for step in jobs["comment"]["steps"] if step.get("name") == "Comment"]
    env = {"PATH": f"{world}:{os.environ['PATH']}", "GH_REPO": "a/b", "PULL": "7", "GH_TOKEN": "t"}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=world, env=env, check=True, timeout=60)
    found: list[dict[str, Any]] = json.loads((world / "comments.json").read_text())
    return found


def said(number: int, login: str, body: str) -> dict[str, Any]:
    return {"id": number, "user": {"login": login}, "body": body}


def test_another_bots_comment_is_left_alone(world: Path) -> None:
    coverage = said(1, "github-actions[bot]", "Coverage: 97 %")
    forged = said(2, "somebody", f"{COMMENT} not ours")
    first = comment(world, [coverage, forged])
    assert first[:2] == [coverage, forged] and first[2]["body"] == OURS and len(first) == 3


def test_ours_is_edited_whoever_comments_later(world: Path) -> None:
    ours = said(1, "github-actions[bot]", f"{COMMENT}\nold")
    later = said(2, "github-actions[bot]", "Coverage: 97 %")
    assert comment(world, [ours, later]) == [{**ours, "body": OURS}, later]


def test_the_mark_is_what_the_rehearsal_writes(world: Path) -> None:
    text = (ROOT / ".github/workflows/rehearse.yml").read_text()
    assert f'startswith("{COMMENT}")' in text
