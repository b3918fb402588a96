"""Pages for people: repos, rendered cards, files, history. No scripts, nothing from elsewhere."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from email.message import Message
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from hubpub.cards.blocks import chips
from hubpub.cards.markdown import code_html, css
from hubpub.localhub import collections, metadata
from hubpub.localhub.cardview import render_card
from hubpub.localhub.patterns import LARGE_FROM
from hubpub.localhub.shelf import Collection
from hubpub.localhub.site import Site
from hubpub.localhub.store import BRANCH, TAG, Commit, Entry, Repo
from hubpub.localhub.wire import HttpError, Request, Response
from hubpub.units import size

if TYPE_CHECKING:
    from jinja2 import Environment

_HTML = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


def wanted(method: str, path: str, headers: Message) -> bool:
    """Whether an error is better answered with a page: it is a person's browser that asks."""
    return method == "GET" and "text/html" in (headers.get("Accept") or "") and not path.startswith(("/api/", "/_"))


def error(problem: HttpError) -> Response:
    return Response(problem.status, _render("error.html", problem=problem), {**_HTML, **problem.headers})


def handle(site: Site, request: Request) -> Response:
    """Answer a request for a page. Raises HttpError."""
    match request.segments:
        case ("",):
            access = site.access(request)
            shown = [r for r in site.store.repos() if not r.state.private or (access and access.may_read(r.id))]
            rows = [{"repo": repo, "head": _head(repo), "card": _card(site, _head(repo))} for repo in shown]
            made = _collections(site, request, "")
            return _page("index.html", rows=rows, user=site.tokens.user, collections=made)
        case ("_style.css",):
            return Response(200, css().encode(), {"Content-Type": "text/css; charset=utf-8"})
        case ("robots.txt",):
            return Response(200, b"User-agent: *\nDisallow: /\n", {"Content-Type": "text/plain"})
        case ("collections",):
            return _page("collections.html", owner="", collections=_collections(site, request, ""))
        case ("collections", owner, name):
            return _page("collection.html", **_collection(site, collections.readable(site, request, owner, name)))
        case (owner, "collections"):
            return _page("collections.html", owner=owner, collections=_collections(site, request, owner))
        case (namespace, name):
            repo = site.readable(request, namespace, name)
            return _repo_page(site, repo, "main")
        case (namespace, name, "tree", *revision) if revision:
            repo = site.readable(request, namespace, name)
            return _repo_page(site, repo, "/".join(revision))
        case (namespace, name, "blob", revision, *path):
            repo = site.readable(request, namespace, name)
            return _blob_page(site, repo, revision, "/".join(path))
        case (namespace, name, "commits", *revision) if revision:
            repo = site.readable(request, namespace, name)
            return _commits_page(repo, "/".join(revision))
        case (namespace, name, "commit", oid):
            repo = site.readable(request, namespace, name)
            return _commit_page(repo, oid)
        case (namespace, name, "discussions"):
            return _page("pulls.html", **_about(site.readable(request, namespace, name), "main"))
        case (namespace, name, "discussions", number):
            repo = site.readable(request, namespace, name)
            found = [pull for pull in repo.state.pulls if str(pull.num) == number]
            if found:
                return _page("pull.html", pull=found[0], **_about(repo, "main"))
    raise HttpError(404, "There is no such page")


def _collections(site: Site, request: Request, owner: str) -> list[Collection]:
    """The collections that this token may see."""
    found = []
    for one in site.shelf.of(owner):
        with suppress(HttpError):
            found.append(collections.readable(site, request, *one.slug.split("/")))
    return found


def _collection(site: Site, one: Collection) -> dict[str, Any]:
    repos = [(item, site.store.find(item.repo)) for item in one.items]
    rows = [{"item": item, "head": _head(repo)} for item, repo in repos if repo is not None]
    return {"collection": one, "rows": rows}


def _head(repo: Repo) -> Commit:
    return repo.commit(repo.state.refs[BRANCH + "main"])


def _card(site: Site, commit: Commit) -> dict[str, Any]:
    return metadata.read(_text(site, commit.files.get("README.md")))


def _text(site: Site, entry: Entry | None) -> str:
    if entry is None or entry.size > LARGE_FROM:
        return ""
    return site.store.read_blob(entry.sha256).decode(errors="replace")


def _about(repo: Repo, revision: str) -> dict[str, Any]:
    refs = repo.state.refs
    return {
        "repo": repo,
        "revision": revision,
        "branches": [ref.removeprefix(BRANCH) for ref in refs if ref.startswith(BRANCH)],
        "tags": {ref.removeprefix(TAG): oid for ref, oid in refs.items() if ref.startswith(TAG)},
        "pulls": tuple(reversed(repo.state.pulls)),
    }


def _repo_page(site: Site, repo: Repo, revision: str) -> Response:
    commit = repo.at(revision)
    card = _text(site, commit.files.get("README.md"))
    text = card[_body_start(card) :]
    return _page(
        "repo.html",
        **_about(repo, revision),
        commit=commit,
        card=render_card(text, f"/{repo.id}/resolve/{quote(revision, safe='')}/"),
        **_tree(_card(site, commit)),
        findings=metadata.check(card) if card else None,
        total=sum({entry.sha256: entry.size for entry in commit.files.values()}.values()),
    )


def _tree(card: dict[str, Any]) -> dict[str, Any]:
    """The metadata that the Hub shows around a card."""
    models = card.get("base_model")
    return {
        "chips": chips(card),
        "models": [str(one) for one in (models if isinstance(models, list) else [models] if models else [])],
        "relation": str(card.get("base_model_relation") or "derived"),
    }


def _body_start(card: str) -> int:
    found = metadata.FRONT.match(card)
    return found.end() if found else 0


def _blob_page(site: Site, repo: Repo, revision: str, path: str) -> Response:
    commit = repo.at(revision)
    entry = commit.files.get(path)
    if entry is None:
        raise HttpError(404, f"{path} does not exist on '{revision}'", "EntryNotFound")
    text = None
    if not entry.lfs and entry.size < 1 << 20:
        language = {"json": "json", "md": "markdown", "jinja": "jinja"}.get(path.rpartition(".")[2], "")
        text = Markup(code_html(_text(site, entry), language))  # noqa: S704 (escaped by the highlighter)
    return _page("blob.html", **_about(repo, revision), path=path, entry=entry, text=text)


def _commits_page(repo: Repo, revision: str) -> Response:
    named: dict[str, list[str]] = {}
    for ref, oid in repo.state.refs.items():
        if ref.startswith(TAG):
            named.setdefault(oid, []).append(ref.removeprefix(TAG))
    commits = [commit for commit, _ in zip(repo.history(repo.resolve(revision)), range(500), strict=False)]
    return _page("commits.html", **_about(repo, revision), commits=commits, named=named)


def _commit_page(repo: Repo, oid: str) -> Response:
    commit = repo.at(oid)
    before = repo.commit(commit.parents[0]).files if commit.parents else {}
    changes = []
    for path in sorted(before.keys() | commit.files.keys()):
        old, new = before.get(path), commit.files.get(path)
        if old != new:
            changes.append({"path": path, "old": old, "new": new})
    return _page("commit.html", **_about(repo, commit.oid), commit=commit, changes=changes)


def _page(name: str, **values: Any) -> Response:
    return Response(200, _render(name, **values), _HTML)


def _render(name: str, **values: Any) -> bytes:
    return _templates().get_template(name).render(values).encode(errors="replace")


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hubpub.localhub", "html"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(size=size, time=_when, part=lambda text: quote(str(text), safe=""), path=quote)
    return environment


def _when(moment: float) -> str:
    """A moment as people read it, e.g. "21 Nov 2026, 05:34 UTC"."""
    return datetime.fromtimestamp(moment, UTC).strftime("%-d %b %Y, %H:%M UTC")
