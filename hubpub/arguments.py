"""What can be typed: the commands of `hubpub`, their arguments and what they say about themselves."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import hubpub

WORK = ".hubpub"


def parser() -> argparse.ArgumentParser:
    """Everything `hubpub` understands. What it returns says the command's name as `command`."""
    whole = argparse.ArgumentParser(
        prog="hubpub",
        description="Export, measure, document and publish on-device language models to the Hugging Face Hub.",
    )
    whole.add_argument("--version", action="version", version=f"hubpub {hubpub.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    shared.add_argument("--verbose", action="store_true", help="show where an error came from")
    shared.add_argument("--project", type=Path, metavar="DIR", help="folder with cards/ (default: found from here)")
    shared.add_argument(
        "--work", type=Path, default=Path(os.environ.get("HUBPUB_WORK", WORK)), metavar="DIR",
        help=f"folder for what is made and measured (default: {WORK}, or $HUBPUB_WORK)",
    )  # fmt: skip
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, help_: str, group: Any = commands, command: str | None = None) -> Any:
        added = group.add_parser(name, parents=[shared], help=help_, description=help_)
        added.set_defaults(command=command or name)
        return added

    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("selectors", nargs="*", metavar="SELECTOR", help="cell ids or globs, e.g. 'gemma-3n-*/8da4w'")
    choice.add_argument("--rehearse", action="store_true", help="on small stand-in models made here; no download")
    choice.add_argument("--force", action="store_true", help="export again what is up to date")

    hubs = argparse.ArgumentParser(add_help=False)
    hubs.add_argument("--hub", metavar="local|URL", help="which Hub (default: huggingface.co; of a rehearsal: local)")
    hubs.add_argument("--namespace", metavar="NAME", help="user or organisation (default: the token's user)")

    since = argparse.ArgumentParser(add_help=False)
    since.add_argument("--changed-since", metavar="BASE", help="only cells that differ from this commit or branch")

    plan = commands.add_parser("plan", parents=[shared, choice, since], help="what would run, and why")
    plan.set_defaults(command="plan")
    plan.add_argument("--github", action="store_true", help="print the job matrix of a workflow as JSON")
    doctor = commands.add_parser(
        "doctor", parents=[shared, choice, since, hubs], help="is this machine able to do that release",
    )  # fmt: skip
    doctor.set_defaults(command="doctor")
    doctor.add_argument("--offline", action="store_true", help="ask nobody; say what could not be checked")
    release = commands.add_parser(
        "release", parents=[shared, choice], help="export, measure, render and publish",
    )  # fmt: skip
    release.set_defaults(command="release")
    release.add_argument("--all", action="store_true", help="every cell of every card")
    release.add_argument("--version", metavar="vX.Y.Z", help="the tag of this release (a rehearsal can do without)")
    release.add_argument(
        "--hub", metavar="local|URL", help="where to publish (default: huggingface.co; rehearsal: local)"
    )
    release.add_argument("--namespace", metavar="NAME", help="user or organisation (default: the token's user)")
    release.add_argument("--jobs", type=_positive, metavar="N", help="parallel processes (default: what fits here)")
    release.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    release.add_argument("--pr", action="store_true", help="open a pull request on the Hub instead of committing")
    release.add_argument("--record", action="store_true", help="keep the facts and cards in cards/, to be committed")
    release.add_argument(
        "--stage",
        action="store_true",
        help="stop when the files are staged on the Hub: 'hubpub promote' publishes them",
    )
    promote = commands.add_parser(
        "promote", parents=[shared, hubs], help="publish what was staged, or merge the pull request that waits",
    )  # fmt: skip
    promote.set_defaults(command="promote")
    promote.add_argument("selectors", nargs="*", metavar="SELECTOR", help="cells or repos; each repo is promoted whole")
    promote.add_argument("--all", action="store_true", help="the repo of every card")
    promote.add_argument("--version", metavar="vX.Y.Z", required=True, help="the version that was staged")
    promote.add_argument("--facts", type=Path, metavar="DIR", help="folder with the facts.json of every cell")
    promote.add_argument("--rehearse", action="store_true", help="what was staged is of scale models")
    promote.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    promote.add_argument("--pr", action="store_true", help="open a pull request on the Hub instead of committing")
    promote.add_argument("--record", action="store_true", help="keep the facts and cards in cards/, to be committed")
    run = add("run", "ask a .pte file something, through ExecuTorch's LLM runner")
    run.add_argument("file", type=Path, metavar="FILE.pte")
    run.add_argument("--prompt", required=True, metavar="TEXT")
    run.add_argument("--chat", action="store_true", help="put the prompt into the chat template, as a user's turn")
    run.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json (default: beside the file)")
    run.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="default: 128")
    run.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest token")
    export = add("export", "export cells from a checkpoint on this disk, and nothing else")
    export.add_argument("selectors", nargs="+", metavar="SELECTOR", help="cell ids or globs, e.g. 'gemma-3n-*/8da4w'")
    export.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder with the checkpoint")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    export.add_argument("--context", type=_positive, metavar="N", help="tokens (default: as the card says)")
    export.add_argument("--jobs", type=_positive, metavar="N", help="parallel processes (default: what fits here)")
    ci = add("ci", "one job of the release workflow; each can be repeated here")
    ci.add_argument(
        "job",
        choices=["plan", "free-disk", "resume", "fetch", "export", "stage", "sums", "promote", "announce", "rehearse"],
    )
    ci.add_argument("name", nargs="*", metavar="NAME", help="selectors, one cell, or one repo, as the job needs")
    ci.add_argument("--version", default=os.environ.get("HUBPUB_VERSION"), metavar="vX.Y.Z", help="default: the tag")
    ci.add_argument("--namespace", default=os.environ.get("HUBPUB_NAMESPACE"), metavar="NAME")
    ci.add_argument("--rehearse", action="store_true", default=_flag("HUBPUB_REHEARSE"), help="on scale models")
    ci.add_argument("--dry-run", action="store_true", default=_flag("HUBPUB_DRY_RUN"), help="publish nothing")
    ci.add_argument("--facts", type=Path, default=Path("facts"), metavar="DIR", help="default: facts")
    ci.add_argument("--receipts", type=Path, default=Path("receipts"), metavar="DIR", help="default: receipts")
    ci.add_argument("--changed-since", default=os.environ.get("HUBPUB_BASE"), metavar="BASE", help="for rehearse")
    pin = add("pin", "write the latest commit of a source model into its card.toml")
    pin.add_argument("cards", nargs="*", metavar="CARD", help="repo names (default: those that are not pinned yet)")
    pin.add_argument("--hub", metavar="URL", help="where the sources are (default: huggingface.co)")
    status = commands.add_parser(
        "status", parents=[shared, hubs], help="what is published, staged and local, and whether they agree"
    )
    status.set_defaults(command="status")
    yank = commands.add_parser("yank", parents=[shared, hubs], help="mark a bad version on its card; the tag stays")
    yank.set_defaults(command="yank")
    yank.add_argument("repo", metavar="REPO@TAG", help="e.g. someone/gemma-3n-E2B-it-pte@v1.0.0")
    yank.add_argument("--reason", required=True, metavar="TEXT", help="what is wrong with it, in a sentence")
    yank.add_argument("--new-version", metavar="REPO", help="another repo that takes over, for the Hub to link to")
    unstage = commands.add_parser("unstage", parents=[shared, hubs], help="drop what was staged and never promoted")
    unstage.set_defaults(command="unstage")
    unstage.add_argument("repo", metavar="REPO", help="e.g. someone/gemma-3n-E2B-it-pte")
    unstage.add_argument("--version", metavar="vX.Y.Z", help="of this version alone (default: of all)")
    verify = commands.add_parser("verify", parents=[shared, hubs], help="check published files against their sums")
    verify.set_defaults(command="verify")
    verify.add_argument("repo", metavar="REPO[@TAG]", help="e.g. someone/gemma-3n-E2B-it-pte@v1.0.0")
    verify.add_argument("--download", action="store_true", help="read every byte, not just what the Hub recorded")
    render = add("render", "render the committed cards from their facts")
    render.add_argument("--check", action="store_true", help="only say whether they are stale (exit code 8)")
    preview = add("preview", "show the cards in a browser as the Hub would, live while editing")
    preview.add_argument("--port", type=int, default=8766, help="default: 8766; 0: any that is free")
    preview.add_argument(
        "--hub", metavar="local|URL", default="local", help="compare with what is published there (default: local)"
    )
    preview.add_argument("--namespace", metavar="NAME", help="user or organisation to show")
    changes = commands.add_parser("diff", parents=[shared, hubs], help="what a release would change on the Hub")
    changes.set_defaults(command="diff")
    changes.add_argument("cards", nargs="*", metavar="CARD", help="repo, variant or folder names, or globs")
    changes.add_argument("--version", metavar="vX.Y.Z", help="the tag of that release (default: not decided yet)")
    changes.add_argument("--markdown", action="store_true", help="print a comment for a pull request")
    inspect = add("inspect", "what a .pte file says about itself")
    inspect.add_argument("file", type=Path, metavar="FILE.pte")
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("target", metavar="SELECTOR|FILE.pte", help="cells that were made, or one file")
    made.add_argument("--rehearse", action="store_true", help="the cells of a rehearsal, on scale models")
    made.add_argument("--source", type=Path, metavar="DIR", help="the original's checkpoint (default: the card's)")
    made.add_argument("--recipe", metavar="NAME", help="what a file was made by, where its name does not say it")
    validate = commands.add_parser(
        "validate", parents=[shared, made], help="hold programs against their originals and judge their gates"
    )
    validate.set_defaults(command="validate")
    validate.add_argument("--where", action="store_true", help="find the first layer that drifts, and its weights")
    bench = commands.add_parser("bench", parents=[shared, made], help="speed and memory, through the LLM runner")
    bench.set_defaults(command="bench")
    bench.add_argument("--runs", type=_positive, default=5, metavar="N", help="timed runs (default: 5)")
    bench.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: beside the file)")
    bench.add_argument(
        "--import", dest="imported", type=Path, metavar="STATS", help="keep what the C++ runner measured elsewhere"
    )
    bench.add_argument("--device", metavar="NAME", help='where that was, e.g. "Pixel 9"')
    facts = commands.add_parser("facts", help="compare facts").add_subparsers(required=True, metavar="COMMAND")
    difference = add("diff", "what got smaller, faster, better or worse", facts, "facts diff")
    difference.add_argument("old", type=Path, metavar="OLD")
    difference.add_argument("new", type=Path, metavar="NEW")
    add("schema", "the JSON Schema of facts.json")
    hub = commands.add_parser("hub", help="the embedded local Hub").add_subparsers(required=True, metavar="COMMAND")
    serve = add("serve", "serve the local Hub until Ctrl-C", hub, "hub serve")
    serve.add_argument("--port", type=int, help="default: 8765; 0: any that is free")
    return whole


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true"}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
