"""The command line: arguments, exit codes, progress. What is done lives in the rooms."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hubpub
from hubpub.errors import AccessError, GateError, HubError, HubpubError, RenderError, ToolchainError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from hubpub.matrix import Cell
    from hubpub.release import Options

WORK = ".hubpub"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see hubpub.errors)."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except HubpubError as error:
        return _fail(error, arguments)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`hubpub plan | head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        failure = _unexpected(error)
        failure.__cause__ = error
        return _fail(failure, arguments)


def _fail(error: HubpubError, arguments: argparse.Namespace) -> int:
    from hubpub.hub.client import redact

    if arguments.verbose:
        import traceback

        cause = error.__cause__ or error
        print(redact("".join(traceback.format_exception(cause))), file=sys.stderr)
    print(f"error: {redact(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {redact(error.hint)}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from hubpub.ci import annotation

        print(annotation(error), file=sys.stderr)
    if getattr(arguments, "json", False) and not getattr(arguments, "reported", False):
        hint = redact(error.hint) if error.hint else None
        print(json.dumps({"error": redact(error.message), "hint": hint, "exit_code": error.exit_code}))
    return error.exit_code


def _unexpected(error: Exception) -> HubpubError:
    from hubpub.workers import traceback_place

    return HubpubError(
        f"{type(error).__name__}: {error} ({traceback_place(error)})",
        "this is a defect of hubpub; run again with --verbose and report what it prints",
    )


def _plan(arguments: argparse.Namespace) -> int:
    from hubpub.plan import plan

    steps = plan(_chosen(arguments), arguments.work, rehearse=arguments.rehearse, force=arguments.force)
    if arguments.github:
        from hubpub.ci import job_matrix

        return _print_json(job_matrix(steps, rehearse=arguments.rehearse))
    if arguments.json:
        return _print_json({"cells": [step.as_json() for step in steps]})
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("cell", "action", "why", "file", "recipe"):
        table.add_column(column)
    for step in steps:
        style = {"export": "bold", "reuse": "dim", "skip": "dim"}[step.action]
        table.add_row(step.cell.id, step.action, step.reason, step.cell.file, step.cell.recipe.summary, style=style)
    _out().print(table)
    counts = {action: sum(step.action == action for step in steps) for action in ("export", "reuse", "skip")}
    _out().print(f"\n{counts['export']} to export, {counts['reuse']} up to date, {counts['skip']} excluded")
    return 0


def _chosen(arguments: argparse.Namespace) -> Sequence[Cell]:
    """The selected cells; with --changed-since those of them whose files would come out differently."""
    from hubpub.matrix import cells, select

    project = _project(arguments)
    chosen = select(cells(project), arguments.selectors)
    if arguments.changed_since is None:
        return chosen
    from hubpub.ci import changed_since

    changed = changed_since(project, arguments.changed_since)
    return [cell for cell in chosen if cell.id in changed]


def _doctor(arguments: argparse.Namespace) -> int:
    from hubpub.doctor import as_json, examine
    from hubpub.plan import plan

    steps = plan(_chosen(arguments), arguments.work, rehearse=arguments.rehearse, force=arguments.force)
    client = None
    if not arguments.offline and not arguments.rehearse:
        from hubpub.hub.client import Client, Retry

        client = Client.from_environment(arguments.hub)
        # Whoever asks what is wrong wants to know now: a Hub that does not answer is an answer.
        client.retry = Retry(attempts=1)
    checks = examine(steps, arguments.work, client=client, namespace=arguments.namespace, rehearse=arguments.rehearse)
    report = as_json(checks)
    if arguments.json:
        arguments.reported = True
        _print_json(report)
    else:
        from hubpub.summary import render_checks

        _out().print(render_checks(checks))
    if not report["ok"]:
        failed = [check for check in checks if check.verdict == "failed"]
        raise ToolchainError(f"{len(failed)} of {len(checks)} checks failed, first: {failed[0].subject}", failed[0].fix)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    from hubpub.progress import display
    from hubpub.release import run

    _selected(arguments)
    project = _project(arguments)
    options = _options(arguments)
    with display(_err()) as progress:
        report = run(project, options, progress)
    if arguments.json:
        _print_json(report.as_json())
        # The report says what failed: one JSON value is all there is on stdout.
        arguments.reported = True
    else:
        from hubpub.summary import render_report

        _out().print(render_report(report))
    report.raise_for_failures()
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    from hubpub.release import Options

    return Options(
        selectors=tuple(arguments.selectors),
        work=arguments.work,
        version=arguments.version,
        rehearse=arguments.rehearse,
        hub=arguments.hub,
        namespace=arguments.namespace,
        jobs=arguments.jobs,
        force=arguments.force,
        dry_run=arguments.dry_run,
        create_pr=arguments.pr,
        record=arguments.record,
        stage=arguments.stage,
    )


def _promote(arguments: argparse.Namespace) -> int:
    from hubpub.progress import display
    from hubpub.release import Options, promote

    _selected(arguments)
    options = Options(
        selectors=tuple(arguments.selectors),
        work=arguments.work,
        version=arguments.version,
        rehearse=arguments.rehearse,
        hub=arguments.hub,
        namespace=arguments.namespace,
        dry_run=arguments.dry_run,
        create_pr=arguments.pr,
        record=arguments.record,
    )
    project = _project(arguments)
    with display(_err()) as progress:
        receipts = promote(project, options, arguments.facts, progress)
    if arguments.json:
        return _print_json({"version": arguments.version, "receipts": [receipt.as_json() for receipt in receipts]})
    from hubpub.summary import render_receipts

    _out().print(render_receipts(receipts))
    return 0


def _selected(arguments: argparse.Namespace) -> None:
    if not arguments.selectors and not arguments.all:
        raise UsageError("nothing selected", "name cells (a glob such as 'gemma-3n-E2B-it/*'), or pass --all")
    if arguments.selectors and arguments.all:
        raise UsageError("--all and selectors exclude each other", "use one of them")


def _ci(arguments: argparse.Namespace) -> int:
    from hubpub import ci
    from hubpub.progress import display

    if arguments.job == "free-disk":
        ci.free_disk()
        return 0
    if arguments.job == "rehearse":
        with display(_err()) as progress:
            ci.rehearse(_project(arguments), arguments.work, arguments.changed_since, arguments.name, progress)
        return 0
    job = ci.Job(
        project=_project(arguments),
        work=arguments.work,
        version=ci.tag_version(arguments.version),
        namespace=arguments.namespace,
        rehearse=arguments.rehearse,
        dry_run=arguments.dry_run,
        facts=arguments.facts,
        receipts=arguments.receipts,
    )
    if arguments.job == "plan":
        found = ci.plan_jobs(job, arguments.name or os.environ.get("HUBPUB_SELECTORS", "").split())
        return _print_json(found) if arguments.json else 0
    if arguments.job in {"sums", "announce"}:
        print(ci.sums(job) if arguments.job == "sums" else ci.announce(job))
        return 0
    names = arguments.name or [os.environ.get("HUBPUB_REPO" if arguments.job == "promote" else "HUBPUB_CELL", "")]
    if len(names) != 1 or not names[0]:
        raise UsageError(f"'hubpub ci {arguments.job}' is for one cell or repo", "name it")
    if arguments.job == "export":
        with display(_err()) as progress:
            ci.export(job, names[0], progress)
    else:
        {"resume": ci.resume, "fetch": ci.fetch, "stage": ci.stage, "promote": ci.promote}[arguments.job](job, names[0])
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from hubpub.cards.render import golden, stale
    from hubpub.facts import write_atomic

    project = _project(arguments)
    old = stale(project)
    if arguments.check:
        if arguments.json:
            _print_json({"stale": [str(path) for path, _ in old]})
        for path, diff in old:
            print(f"{path} is stale:\n{diff}", file=sys.stderr)
        if old:
            raise RenderError(f"{len(old)} committed cards are stale", "run 'hubpub render' and commit the result")
    else:
        for card in project.cards:
            for path, data in golden(card, project).items():
                write_atomic(path, data)
        if arguments.json:
            _print_json({"written": [str(path) for path, _ in old]})
    if not arguments.json:
        print("\n".join(f"wrote {path}" for path, _ in old) or "every card is up to date")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hubpub.measure.chat import run

    reply = run(
        arguments.file,
        arguments.prompt,
        tokenizer=arguments.tokenizer,
        new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        chat=arguments.chat,
        stream=not arguments.json,
    )
    if arguments.json:
        return _print_json(asdict(reply))
    _err().print(
        f"\n{reply.prompt_tokens} tokens in, {reply.tokens} out   load {reply.load_seconds:.2f} s   "
        f"first token {reply.first_token_seconds:.2f} s   prefill {reply.prefill_tokens_per_second:.1f} tokens/s   "
        f"decode {reply.decode_tokens_per_second:.1f} tokens/s",
        style="dim",
    )
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from hubpub.matrix import cells, select
    from hubpub.progress import display
    from hubpub.release import export_from

    chosen = [cell for cell in select(cells(_project(arguments)), arguments.selectors) if not cell.excluded]
    with display(_err()) as progress:
        made = export_from(chosen, arguments.source, arguments.out, arguments.jobs, arguments.context, progress)
    if arguments.json:
        return _print_json({"files": [{"cell": cell, **one.model_dump(mode="json")} for cell, one in made.items()]})
    for cell, one in made.items():
        seconds = sum(one.stages.model_dump(exclude={"peak_resident_bytes"}).values())
        print(f"{cell}: {arguments.out / one.file.name}  {one.file.bytes:,} bytes  {seconds:.0f} s")
        print(f"  sha256 {one.file.sha256}")
    return 0


def _pin(arguments: argparse.Namespace) -> int:
    from hubpub.config import pin
    from hubpub.hub.client import Client

    project = _project(arguments)
    known = {card.repo: card for card in project.cards}
    if unknown := [name for name in arguments.cards if name not in known]:
        raise UsageError(f"no card '{unknown[0]}'", f"cards: {', '.join(known)}")
    client = Client.from_environment(arguments.hub)
    pinned = []
    for name in arguments.cards or [name for name, card in known.items() if card.variant.revision is None]:
        card = known[name]
        refs = client.refs(card.variant.source)
        if refs is None or "main" not in refs.branches:
            raise HubError(f"{card.variant.source} is not on {client.endpoint}", "look at variant.source in card.toml")
        commit = refs.branches["main"]
        old = card.variant.revision
        if old != commit:
            pin(card, commit)
        pinned.append({"card": name, "source": card.variant.source, "old": old, "new": commit})
    if arguments.json:
        return _print_json({"pinned": pinned})
    for one in pinned:
        change = (
            "as before" if one["old"] == one["new"] else f"was {str(one['old'])[:12] if one['old'] else 'not pinned'}"
        )
        print(f"{one['card']}: {one['source']} at {one['new']} ({change})")
    if not pinned:
        print("every source is pinned; name a card to move it to the latest commit of its source")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack
    from dataclasses import replace

    from hubpub.cards.diff import CardChange, render_change
    from hubpub.cards.published import candidate, change, chosen, files_of, published
    from hubpub.hub.client import Retry
    from hubpub.release import connect

    project = _project(arguments)
    cards = chosen(project, arguments.cards)
    options = _hub_options(arguments)
    found: list[tuple[CardChange, str]] = []
    with ExitStack() as stack:
        client, _ = connect(options, stack)
        client.retry = Retry(attempts=3)
        try:
            namespace = options.namespace or client.namespace
        except AccessError as error:
            raise type(error)(error.message, f"name the owner with --namespace; or {error.hint}") from None
        for card in cards:
            facts, origin = candidate(project, card, arguments.work, rehearse=options.endpoint == "local")
            repo = f"{namespace}/{card.repo}"
            held = published(client, repo, files_of(facts))
            one = change(project, card, facts, held, repo, arguments.version)
            found.append((replace(one, refused=client.card_fault(one.text)), origin))
    if arguments.json:
        return _print_json({"cards": [{**one.as_json(), "facts": origin} for one, origin in found]})
    if arguments.markdown:
        print("\n".join(f"{one.as_markdown()}\n<sub>facts: {origin}</sub>\n" for one, origin in found), end="")
        return 0
    out = _out()
    for one, origin in found:
        out.print(render_change(one))
        out.print(f"facts: {origin}\n", style="dim", markup=False)
    moved = sum(not one.empty for one, _ in found)
    out.print(f"{moved} of {len(found)} cards would change on {client.endpoint}" if moved else "nothing would change")
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    from hubpub.cards.preview import serve_preview
    from hubpub.cards.render import golden_facts

    def ready(url: str) -> None:
        if arguments.json:
            print(json.dumps({"url": url}), flush=True)
        else:
            print(f"preview at {url}  (saving a card, its facts or a template reloads it; Ctrl-C stops it)", flush=True)

    def published(card: Any) -> Any:
        from contextlib import ExitStack

        from hubpub.cards.published import files_of, published
        from hubpub.hub.client import Retry
        from hubpub.release import connect

        options = _hub_options(arguments)
        if options.endpoint == "local" and not (arguments.work / "hub").is_dir():
            raise HubError(
                f"there is no local Hub in {arguments.work} yet",
                "run 'hubpub release --all --rehearse', or name a Hub with --hub",
            )
        # Asked when the page is opened, and let go at once: a release may need the local Hub meanwhile.
        with ExitStack() as stack:
            client, _ = connect(options, stack)
            client.retry = Retry(attempts=1)
            repo = f"{options.namespace or client.namespace}/{card.repo}"
            return repo, published(client, repo, files_of(golden_facts(card)))

    serve_preview(
        _project(arguments),
        namespace=arguments.namespace or "NAMESPACE",
        port=arguments.port,
        facts_for=golden_facts,
        published=published,
        ready=ready,
    )
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from hubpub.measure.inspect import inspect, render_inspect

    program = inspect(arguments.file)
    if arguments.json:
        return _print_json(program.model_dump(mode="json"))
    _out().print(render_inspect(program, arguments.file.name))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from hubpub import remeasure
    from hubpub.progress import display

    # Threads that spin while they wait take the processor from each other; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    targets = _targets(arguments)
    found = []
    with display(_err()) as progress:
        for target in targets:
            told = partial(progress.update, target.name)
            found.append(
                remeasure.validate(target, arguments.work, told, scale_model=arguments.rehearse, where=arguments.where)
            )
            progress.finish(target.name, "done")
    if arguments.json:
        arguments.reported = True
        _print_json({"targets": [one.as_json() for one in found]})
    else:
        for one in found:
            _out().print(remeasure.render_validation(one))
    failed = [one for one in found if one.missed]
    if failed:
        raise GateError(f"{failed[0].name} did not pass: {', '.join(failed[0].missed)}", "see the table of gates")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from hubpub import remeasure

    if arguments.imported:
        if not arguments.device:
            raise UsageError("--import needs the name of the device", 'add --device, e.g. --device "Pixel 9"')
        path = remeasure.import_stats(
            _project(arguments), arguments.target, arguments.imported, arguments.device, arguments.work,
            rehearse=arguments.rehearse,
        )  # fmt: skip
        if arguments.json:
            return _print_json({"written": str(path)})
        print(f"kept in {path}; 'hubpub render' shows it on the card")
        return 0
    found = {
        target.name: remeasure.bench(target, arguments.tokenizer, arguments.runs) for target in _targets(arguments)
    }
    if arguments.json:
        return _print_json({name: one.model_dump(mode="json") for name, one in found.items()})
    for name, one in found.items():
        _out().print(remeasure.render_speed(name, one))
    return 0


def _targets(arguments: argparse.Namespace) -> Any:
    from hubpub.remeasure import find

    return find(
        _project(arguments),
        arguments.target,
        arguments.work,
        rehearse=arguments.rehearse,
        source=arguments.source,
        recipe=arguments.recipe,
    )


def _facts_diff(arguments: argparse.Namespace) -> int:
    from hubpub.facts import CardFacts, load
    from hubpub.measure.compare import compare, render_diff

    difference = compare(load(CardFacts, arguments.old), load(CardFacts, arguments.new))
    if arguments.json:
        return _print_json(difference.as_json())
    _out().print(render_diff(difference))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack
    from dataclasses import asdict

    from hubpub.hub.upkeep import verify
    from hubpub.release import connect

    repo, _, revision = arguments.repo.partition("@")
    with ExitStack() as stack:
        client, _ = connect(_hub_options(arguments), stack)
        found = verify(client, repo, revision or "main", download=arguments.download)
    if arguments.json:
        arguments.reported = True
        _print_json({**asdict(found), "ok": found.ok})
    else:
        from hubpub.summary import render_verification

        _out().print(render_verification(found))
    if not found.ok:
        raise HubError(f"{arguments.repo} is not intact: {found.problems[0]}", "release a new version; tags never move")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack
    from dataclasses import asdict

    from hubpub.hub.upkeep import status
    from hubpub.release import connect

    options = _hub_options(arguments)
    with ExitStack() as stack:
        client, _ = connect(options, stack)
        namespace = options.namespace or client.namespace
        repos = [f"{namespace}/{card.repo}" for card in _project(arguments).cards]
        found = status(client, repos, arguments.work)
    if arguments.json:
        return _print_json({"repos": [asdict(one) for one in found]})
    from hubpub.summary import render_status

    _out().print(render_status(found))
    return 0


def _yank(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from hubpub.hub.upkeep import yank
    from hubpub.release import connect

    repo, _, tag = arguments.repo.partition("@")
    if not tag:
        raise UsageError(f"'{arguments.repo}' names no version", "write it as OWNER/REPO@vX.Y.Z")
    with ExitStack() as stack:
        client, _ = connect(_hub_options(arguments), stack)
        commit = yank(client, repo, tag, arguments.reason, new_version=arguments.new_version)
    if arguments.json:
        return _print_json({"repo": repo, "tag": tag, "reason": arguments.reason, "commit": commit})
    if commit:
        print(f"{repo}: the card says that {tag} was withdrawn (commit {commit[:12]}); the tag and its files stay")
    else:
        print(f"{repo}: the card says so already")
    return 0


def _unstage(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from hubpub.hub.publish import preflight, staged_versions, unstage
    from hubpub.release import connect

    with ExitStack() as stack:
        client, _ = connect(_hub_options(arguments), stack)
        preflight(client, [arguments.repo])
        waiting = staged_versions(client, arguments.repo)
        chosen = [arguments.version] if arguments.version else list(waiting)
        dropped = [version for version in chosen if unstage(client, arguments.repo, version)]
    if arguments.json:
        return _print_json({"repo": arguments.repo, "dropped": dropped})
    print(f"{arguments.repo}: dropped {', '.join(dropped)}" if dropped else f"{arguments.repo}: nothing was staged")
    return 0


def _hub_options(arguments: argparse.Namespace) -> Options:
    from hubpub.release import Options

    return Options((), arguments.work, hub=arguments.hub, namespace=arguments.namespace)


def _hub_serve(arguments: argparse.Namespace) -> int:
    from hubpub.localhub import LocalHub, serve
    from hubpub.release import LOCAL_PORT

    def ready(hub: LocalHub) -> None:
        if arguments.json:
            print(json.dumps({"url": hub.url, "root": str(hub.root)}), flush=True)
        else:
            print(f"local Hub at {hub.url}  (stored in {hub.root}; Ctrl-C stops it)", flush=True)

    port = LOCAL_PORT if arguments.port is None else arguments.port
    serve(arguments.work / "hub", port, ready=ready)
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from hubpub.facts import CardFacts

    dialect = "https://json-schema.org/draft/2020-12/schema"
    return _print_json({"$schema": dialect, **CardFacts.model_json_schema(by_alias=True)})


def _project(arguments: argparse.Namespace) -> Any:
    from hubpub.config import Project

    return Project.find(arguments.project)


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _out() -> Console:
    from rich.console import Console

    # A log has no width of its own: tables are not folded there.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _err() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hubpub",
        description="Export, measure, document and publish on-device language models to the Hugging Face Hub.",
    )
    parser.add_argument("--version", action="version", version=f"hubpub {hubpub.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON value on stdout")
    shared.add_argument("--verbose", action="store_true", help="show where an error came from")
    shared.add_argument("--project", type=Path, metavar="DIR", help="folder with cards/ (default: found from here)")
    shared.add_argument(
        "--work", type=Path, default=Path(os.environ.get("HUBPUB_WORK", WORK)), metavar="DIR",
        help=f"folder for what is made and measured (default: {WORK}, or $HUBPUB_WORK)",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], help_: str, group: Any = commands) -> Any:
        command = group.add_parser(name, parents=[shared], help=help_, description=help_)
        command.set_defaults(command=function)
        return command

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
    plan.set_defaults(command=_plan)
    plan.add_argument("--github", action="store_true", help="print the job matrix of a workflow as JSON")
    doctor = commands.add_parser(
        "doctor", parents=[shared, choice, since, hubs], help="is this machine able to do that release",
    )  # fmt: skip
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--offline", action="store_true", help="ask nobody; say what could not be checked")
    release = commands.add_parser(
        "release", parents=[shared, choice], help="export, measure, render and publish",
    )  # fmt: skip
    release.set_defaults(command=_release)
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
    promote.set_defaults(command=_promote)
    promote.add_argument("selectors", nargs="*", metavar="SELECTOR", help="cells or repos; each repo is promoted whole")
    promote.add_argument("--all", action="store_true", help="the repo of every card")
    promote.add_argument("--version", metavar="vX.Y.Z", required=True, help="the version that was staged")
    promote.add_argument("--facts", type=Path, metavar="DIR", help="folder with the facts.json of every cell")
    promote.add_argument("--rehearse", action="store_true", help="what was staged is of scale models")
    promote.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    promote.add_argument("--pr", action="store_true", help="open a pull request on the Hub instead of committing")
    promote.add_argument("--record", action="store_true", help="keep the facts and cards in cards/, to be committed")
    run = add("run", _run, "ask a .pte file something, through ExecuTorch's LLM runner")
    run.add_argument("file", type=Path, metavar="FILE.pte")
    run.add_argument("--prompt", required=True, metavar="TEXT")
    run.add_argument("--chat", action="store_true", help="put the prompt into the chat template, as a user's turn")
    run.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json (default: beside the file)")
    run.add_argument("--max-new-tokens", type=_positive, default=128, metavar="N", help="default: 128")
    run.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest token")
    export = add("export", _export, "export cells from a checkpoint on this disk, and nothing else")
    export.add_argument("selectors", nargs="+", metavar="SELECTOR", help="cell ids or globs, e.g. 'gemma-3n-*/8da4w'")
    export.add_argument("--source", type=Path, required=True, metavar="DIR", help="folder with the checkpoint")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    export.add_argument("--context", type=_positive, metavar="N", help="tokens (default: as the card says)")
    export.add_argument("--jobs", type=_positive, metavar="N", help="parallel processes (default: what fits here)")
    ci = add("ci", _ci, "one job of the release workflow; each can be repeated here")
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
    pin = add("pin", _pin, "write the latest commit of a source model into its card.toml")
    pin.add_argument("cards", nargs="*", metavar="CARD", help="repo names (default: those that are not pinned yet)")
    pin.add_argument("--hub", metavar="URL", help="where the sources are (default: huggingface.co)")
    status = commands.add_parser(
        "status", parents=[shared, hubs], help="what is published, staged and local, and whether they agree"
    )
    status.set_defaults(command=_status)
    yank = commands.add_parser("yank", parents=[shared, hubs], help="mark a bad version on its card; the tag stays")
    yank.set_defaults(command=_yank)
    yank.add_argument("repo", metavar="REPO@TAG", help="e.g. someone/gemma-3n-E2B-it-pte@v1.0.0")
    yank.add_argument("--reason", required=True, metavar="TEXT", help="what is wrong with it, in a sentence")
    yank.add_argument("--new-version", metavar="REPO", help="another repo that takes over, for the Hub to link to")
    unstage = commands.add_parser("unstage", parents=[shared, hubs], help="drop what was staged and never promoted")
    unstage.set_defaults(command=_unstage)
    unstage.add_argument("repo", metavar="REPO", help="e.g. someone/gemma-3n-E2B-it-pte")
    unstage.add_argument("--version", metavar="vX.Y.Z", help="of this version alone (default: of all)")
    verify = commands.add_parser("verify", parents=[shared, hubs], help="check published files against their sums")
    verify.set_defaults(command=_verify)
    verify.add_argument("repo", metavar="REPO[@TAG]", help="e.g. someone/gemma-3n-E2B-it-pte@v1.0.0")
    verify.add_argument("--download", action="store_true", help="read every byte, not just what the Hub recorded")
    render = add("render", _render, "render the committed cards from their facts")
    render.add_argument("--check", action="store_true", help="only say whether they are stale (exit code 8)")
    preview = add("preview", _preview, "show the cards in a browser as the Hub would, live while editing")
    preview.add_argument("--port", type=int, default=8766, help="default: 8766; 0: any that is free")
    preview.add_argument(
        "--hub", metavar="local|URL", default="local", help="compare with what is published there (default: local)"
    )
    preview.add_argument("--namespace", metavar="NAME", help="user or organisation to show")
    changes = commands.add_parser("diff", parents=[shared, hubs], help="what a release would change on the Hub")
    changes.set_defaults(command=_diff)
    changes.add_argument("cards", nargs="*", metavar="CARD", help="repo, variant or folder names, or globs")
    changes.add_argument("--version", metavar="vX.Y.Z", help="the tag of that release (default: not decided yet)")
    changes.add_argument("--markdown", action="store_true", help="print a comment for a pull request")
    inspect = add("inspect", _inspect, "what a .pte file says about itself")
    inspect.add_argument("file", type=Path, metavar="FILE.pte")
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("target", metavar="SELECTOR|FILE.pte", help="cells that were made, or one file")
    made.add_argument("--rehearse", action="store_true", help="the cells of a rehearsal, on scale models")
    made.add_argument("--source", type=Path, metavar="DIR", help="the original's checkpoint (default: the card's)")
    made.add_argument("--recipe", metavar="NAME", help="what a file was made by, where its name does not say it")
    validate = commands.add_parser(
        "validate", parents=[shared, made], help="hold programs against their originals and judge their gates"
    )
    validate.set_defaults(command=_validate)
    validate.add_argument("--where", action="store_true", help="find the first layer that drifts, and its weights")
    bench = commands.add_parser("bench", parents=[shared, made], help="speed and memory, through the LLM runner")
    bench.set_defaults(command=_bench)
    bench.add_argument("--runs", type=_positive, default=5, metavar="N", help="timed runs (default: 5)")
    bench.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: beside the file)")
    bench.add_argument(
        "--import", dest="imported", type=Path, metavar="STATS", help="keep what the C++ runner measured elsewhere"
    )
    bench.add_argument("--device", metavar="NAME", help='where that was, e.g. "Pixel 9"')
    facts = commands.add_parser("facts", help="compare facts").add_subparsers(required=True, metavar="COMMAND")
    difference = add("diff", _facts_diff, "what got smaller, faster, better or worse", facts)
    difference.add_argument("old", type=Path, metavar="OLD")
    difference.add_argument("new", type=Path, metavar="NEW")
    add("schema", _schema, "the JSON Schema of facts.json")
    hub = commands.add_parser("hub", help="the embedded local Hub").add_subparsers(required=True, metavar="COMMAND")
    serve = add("serve", _hub_serve, "serve the local Hub until Ctrl-C", hub)
    serve.add_argument("--port", type=int, help="default: 8765; 0: any that is free")
    return parser


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true"}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
