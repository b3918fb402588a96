"""The command line: each command's way to the rooms and back to the screen, and exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hubpub.arguments import parser
from hubpub.errors import AccessError, GateError, HubError, HubpubError, RenderError, ToolchainError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from hubpub.matrix import Cell
    from hubpub.release.run import Options


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see hubpub.errors)."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
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
        from hubpub.ci.github import annotation

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
        from hubpub.ci.github import job_matrix

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
    from hubpub.ci.changes import changed_since

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
    from hubpub.release.run import run

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
    from hubpub.release.run import Options

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
    from hubpub.release.promote import promote
    from hubpub.release.run import Options

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
    from hubpub.ci import github, jobs
    from hubpub.progress import display

    if arguments.job == "free-disk":
        github.free_disk()
        return 0
    if arguments.job == "rehearse":
        with display(_err()) as progress:
            jobs.rehearse(_project(arguments), arguments.work, arguments.changed_since, arguments.name, progress)
        return 0
    job = jobs.Job(
        project=_project(arguments),
        work=arguments.work,
        version=jobs.tag_version(arguments.version),
        namespace=arguments.namespace,
        rehearse=arguments.rehearse,
        dry_run=arguments.dry_run,
        facts=arguments.facts,
        receipts=arguments.receipts,
    )
    if arguments.job == "plan":
        found = jobs.plan_jobs(job, arguments.name or os.environ.get("HUBPUB_SELECTORS", "").split())
        return _print_json(found) if arguments.json else 0
    if arguments.job in {"sums", "announce"}:
        print(jobs.sums(job) if arguments.job == "sums" else jobs.announce(job))
        return 0
    names = arguments.name or [os.environ.get("HUBPUB_REPO" if arguments.job == "promote" else "HUBPUB_CELL", "")]
    if len(names) != 1 or not names[0]:
        raise UsageError(f"'hubpub ci {arguments.job}' is for one cell or repo", "name it")
    if arguments.job == "export":
        with display(_err()) as progress:
            jobs.export(job, names[0], progress)
    else:
        run = {"resume": jobs.resume, "fetch": jobs.fetch, "stage": jobs.stage, "promote": jobs.promote}[arguments.job]
        run(job, names[0])
    return 0


def _render(arguments: argparse.Namespace) -> int:
    from hubpub.cards.render import golden, stale
    from hubpub.files import write_atomic

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
    from hubpub.making import export_from
    from hubpub.matrix import cells, select
    from hubpub.progress import display

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
    from hubpub.release.connect import connect

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
        from hubpub.release.connect import connect

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

    from hubpub.hub.maintenance import verify
    from hubpub.release.connect import connect

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

    from hubpub.hub.maintenance import status
    from hubpub.release.connect import connect

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

    from hubpub.hub.maintenance import yank
    from hubpub.release.connect import connect

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

    from hubpub.hub.publish import preflight
    from hubpub.hub.staging import staged_versions, unstage
    from hubpub.release.connect import connect

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
    from hubpub.release.run import Options

    return Options((), arguments.work, hub=arguments.hub, namespace=arguments.namespace)


def _hub_serve(arguments: argparse.Namespace) -> int:
    from hubpub.localhub import LocalHub, serve
    from hubpub.release.connect import LOCAL_PORT

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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "doctor": _doctor,
    "release": _release,
    "promote": _promote,
    "ci": _ci,
    "render": _render,
    "run": _run,
    "export": _export,
    "pin": _pin,
    "diff": _diff,
    "preview": _preview,
    "inspect": _inspect,
    "validate": _validate,
    "bench": _bench,
    "facts diff": _facts_diff,
    "verify": _verify,
    "status": _status,
    "yank": _yank,
    "unstage": _unstage,
    "hub serve": _hub_serve,
    "schema": _schema,
}


if __name__ == "__main__":
    sys.exit(main())
