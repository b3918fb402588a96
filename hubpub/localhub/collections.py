"""The Hub's API of collections, under /api/collections: who may see, make and change them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hubpub.localhub.names import check_repo_id
from hubpub.localhub.shelf import Collection, Item, Shelf
from hubpub.localhub.site import Site, isotime
from hubpub.localhub.tokens import Access
from hubpub.localhub.wire import HttpError, Request, Response, json_response

# As the Hub limits them, in characters.
LONGEST_TITLE, LONGEST_DESCRIPTION, LONGEST_NOTE = 60, 150, 500
_ID = re.compile(r"[0-9a-f]{24}")


def handle(site: Site, request: Request, rest: Sequence[str]) -> Response:
    """Answer a request under /api/collections. Raises HttpError."""
    shelf = site.shelf
    match request.method, tuple(rest):
        case "GET", ():
            return _list(site, request)
        case "POST", ():
            with shelf.lock:
                return _create(site, request)
        case "GET", (owner, name):
            return json_response(_shown(readable(site, request, owner, name)))
        case "PATCH", (owner, name):
            with shelf.lock:
                held = _writable(site, request, owner, name)
                return json_response({"success": True, "data": _shown(_renamed(shelf, held, request.body.json()))})
        case "DELETE", (owner, name):
            with shelf.lock:
                shelf.drop(_writable(site, request, owner, name))
            return json_response({"success": True})
        case "POST", (owner, name, "items"):
            with shelf.lock:
                return _add(site, request, _writable(site, request, owner, name))
        case (("PATCH" | "DELETE"), (owner, name, "items", key)):
            with shelf.lock:
                return _change(shelf, request, _writable(site, request, owner, name), key)
    raise HttpError(404, "Not found: this local Hub does not have this endpoint")


def readable(site: Site, request: Request, owner: str, name: str) -> Collection:
    """The collection, with the items this token may see. Raises HttpError 404, the same for hidden and missing."""
    access = site.access(request)
    held = site.shelf.find(owner, name)
    if held is None or (held.private and not _member(access, owner)):
        raise HttpError(404, "Collection not found")
    return replace(held, items=tuple(item for item in held.items if _shows(site, access, item.repo)))


def _shows(site: Site, access: Access | None, repo_id: str) -> bool:
    repo = site.store.find(repo_id)
    return repo is not None and (not repo.state.private or (access is not None and access.may_read(repo_id)))


def _member(access: Access | None, owner: str) -> bool:
    """Whether this token is for all that `owner` has: one that was made for single repos is for those alone."""
    return access is not None and access.repos is None and access.may_read(f"{owner}/any")


def _writable(site: Site, request: Request, owner: str, name: str) -> Collection:
    _check_write(site.user(request), owner)
    held = site.shelf.find(owner, name)
    if held is None:
        raise HttpError(404, "Collection not found")
    return held


def _check_write(access: Access, owner: str) -> None:
    if access.role != "write" or not _member(access, owner):
        raise HttpError(403, f"This token has no write access to the collections of {owner}")


def _list(site: Site, request: Request) -> Response:
    access, item = site.access(request), request.first("item").removeprefix("models/")
    limit = request.number("limit", 100, 1, 100)
    found = [
        readable(site, request, *one.slug.split("/"))
        for one in site.shelf.of(request.first("owner"))
        if not one.private or _member(access, one.owner)
    ]
    found = [one for one in found if not item or item in [held.repo for held in one.items]]
    # A list shows the first items of each, and where each stands is its own place in the list.
    shown = [_shown(replace(one, items=one.items[:4])) for one in found[:limit]]
    return json_response([{key: value for key, value in one.items() if key != "position"} for one in shown])


def _create(site: Site, request: Request) -> Response:
    wanted = request.body.json()
    owner = str(wanted.get("namespace"))
    check_repo_id(owner, "any")
    _check_write(site.user(request), owner)
    title = _text(wanted, "title", LONGEST_TITLE)
    if not title:
        raise HttpError(400, "'title' must not be empty")
    for held in site.shelf.of(owner):
        if held.title == title:
            return json_response({"error": "This collection already exists", "slug": held.slug}, 409)
    short = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
    made = Collection(
        slug=f"{owner}/{short}-{secrets.token_hex(12)}",
        owner=owner,
        title=title,
        updated=0,
        description=_text(wanted, "description", LONGEST_DESCRIPTION),
        private=wanted.get("private") is True,
    )
    return json_response(_shown(site.shelf.keep(made)))


def _renamed(shelf: Shelf, held: Collection, wanted: Mapping[str, Any]) -> Collection:
    if "title" in wanted:
        held = replace(held, title=_text(wanted, "title", LONGEST_TITLE) or held.title)
    if "description" in wanted:
        held = replace(held, description=_text(wanted, "description", LONGEST_DESCRIPTION))
    if "private" in wanted:
        held = replace(held, private=wanted["private"] is True)
    return shelf.keep(held)


def _add(site: Site, request: Request, held: Collection) -> Response:
    wanted = request.body.json()
    item = wanted.get("item")
    if not isinstance(item, dict) or item.get("type") != "model":
        raise HttpError(400, "This local Hub holds models only")
    repo_id = check_repo_id(*str(item.get("id")).partition("/")[::2])
    if not _shows(site, site.user(request), repo_id):
        raise HttpError(404, f"There is no model {repo_id}")
    if repo_id in [one.repo for one in held.items]:
        return json_response({"error": f"{repo_id} is in the collection already"}, 409)
    added = Item(secrets.token_hex(12), repo_id, _text(wanted, "note", LONGEST_NOTE))
    return json_response(_shown(site.shelf.keep(replace(held, items=(*held.items, added)))))


def _change(shelf: Shelf, request: Request, held: Collection, key: str) -> Response:
    items = list(held.items)
    at = next((place for place, item in enumerate(items) if item.key == key), None)
    if at is None or not _ID.fullmatch(key):
        raise HttpError(404, "There is no such item in the collection")
    item = items.pop(at)
    if request.method == "PATCH":
        wanted = request.body.json()
        if "note" in wanted:
            item = replace(item, note=_text(wanted, "note", LONGEST_NOTE))
        place = wanted.get("position", at)
        if not isinstance(place, int) or isinstance(place, bool) or place < 0:
            raise HttpError(400, "'position' must be a number from 0")
        items.insert(place, item)
    shelf.keep(replace(held, items=tuple(items)))
    return json_response({"success": True})


def _text(wanted: Mapping[str, Any], key: str, longest: int) -> str | None:
    value = wanted.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > longest):
        raise HttpError(400, f"'{key}' must be a string of at most {longest} characters")
    return value


def _shown(one: Collection) -> dict[str, Any]:
    return {
        "slug": one.slug,
        "title": one.title,
        "description": one.description,
        "owner": {"name": one.owner, "type": "user"},
        "lastUpdated": isotime(one.updated),
        "position": 0,
        "private": one.private,
        "theme": "blue",
        "upvotes": 0,
        "gating": False,
        "items": [
            {
                "_id": item.key,
                "id": item.repo,
                "type": "model",
                "position": place,
                **({"note": {"text": item.note, "html": ""}} if item.note else {}),
            }
            for place, item in enumerate(one.items)
        ],
    }
