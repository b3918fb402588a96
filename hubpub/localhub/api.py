"""The Hub's REST API under /api: repos, commits, references, trees, pull requests, collections."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from hubpub.localhub import collections, gitobjects, metadata, xet
from hubpub.localhub.names import check_path, check_ref_name, check_repo_id, check_sha256, check_size
from hubpub.localhub.patterns import LARGE_FROM, is_ignored, is_large
from hubpub.localhub.site import Site, isotime
from hubpub.localhub.store import BRANCH, PULL, TAG, Authored, Commit, Entry, Pull, Repo, apply, merged, repo_not_found
from hubpub.localhub.wire import HttpError, Request, Response, json_response, parse_json

COMMIT_LIMIT = 1 << 30
LINE_LIMIT = 16 << 20
PAGE = 1000


def handle(site: Site, request: Request) -> Response:
    """Answer a request under /api. Raises HttpError."""
    match request.method, request.segments[1:]:
        case "GET", ("whoami-v2",):
            return _whoami(site, request)
        case "POST", ("validate-yaml",):
            return _validate(request)
        case "POST", ("repos", "create"):
            return _create(site, request)
        case "DELETE", ("repos", "delete"):
            return _delete(site, request)
        case "GET", ("models",):
            return _list(site, request)
        case _, ("collections", *rest):
            return collections.handle(site, request, rest)
        case _, ("models", namespace, name, *rest):
            return _repo(site, request, namespace, name, tuple(rest))
        case _, ("datasets" | "spaces" | "kernels", *_):
            raise HttpError(404, "This local Hub holds models only", "RepoNotFound")
    raise HttpError(404, "Not found: this local Hub does not have this endpoint")


def _repo(site: Site, request: Request, namespace: str, name: str, rest: tuple[str, ...]) -> Response:
    match request.method, rest:
        case "GET", ():
            return _info(request, site.readable(request, namespace, name), "main", site)
        case "GET", ("revision", revision):
            return _info(request, site.readable(request, namespace, name), revision, site)
        case "GET", ("auth-check",):
            site.readable(request, namespace, name)
            return json_response({})
        case "GET", ("auth-check", "write"):
            site.writable(request, namespace, name)
            return json_response({})
        case "PUT", ("settings",):
            return _settings(request, *site.writable(request, namespace, name))
        case "GET", ("refs",):
            return _refs(request, site.readable(request, namespace, name))
        case "GET", ("tree", revision, *path):
            return _tree(site, request, site.readable(request, namespace, name), revision, "/".join(path))
        case "POST", ("paths-info", revision):
            return _paths_info(site, request, site.readable(request, namespace, name), revision)
        case "GET", ("commits", revision):
            return _commits(request, site.readable(request, namespace, name), revision)
        case "POST", ("preupload", revision):
            return _preupload(site, request, site.writable(request, namespace, name)[0], revision)
        case "POST", ("commit", revision):
            repo, access = site.writable(request, namespace, name)
            site.quota.take(access.user)
            return _commit(site, request, repo, access.user, revision)
        case "POST" | "DELETE", ("branch" | "tag" as kind, target):
            repo = site.writable(request, namespace, name)[0]
            return _change_ref(request, repo, kind, target)
        case "GET", ("xet-read-token" | "xet-write-token", _) if site.options.xet:
            writes = rest[0] == "xet-write-token"
            repo = site.writable(request, namespace, name)[0] if writes else site.readable(request, namespace, name)
            return xet.token(site, request, repo, writes)
        case "POST", ("lfs-files", "duplicate"):
            return _duplicate(site, request, site.readable(request, namespace, name))
        case "GET", ("discussions",):
            return _discussions(request, site.readable(request, namespace, name))
        case "GET", ("discussions", number):
            repo = site.readable(request, namespace, name)
            return json_response(_discussion(repo, _find_pull(repo, number)))
        case "POST", ("discussions", number, "merge"):
            repo, access = site.writable(request, namespace, name)
            return _merge(request, repo, access.user, number)
        case "POST", ("discussions", number, "status"):
            repo, access = site.writable(request, namespace, name)
            return _set_status(request, repo, access.user, number)
    raise HttpError(404, "Not found: this local Hub does not have this endpoint")


def oauth_token(site: Site, request: Request) -> Response:
    """Trusted Publishers: the identity of a workflow against a token for one repo (RFC 8693). Raises HttpError."""
    wanted = request.body.json()
    grant, kind = "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:token-type:id_token"
    if wanted.get("grant_type") != grant or wanted.get("subject_token_type") != kind:
        raise HttpError(400, "unsupported_grant_type: only an id_token can be exchanged here")
    identity, resource = wanted.get("subject_token"), wanted.get("resource")
    if not isinstance(identity, str) or not isinstance(resource, str):
        raise HttpError(400, "invalid_request: 'subject_token' and 'resource' must be strings")
    token, seconds = site.tokens.exchange(identity, resource, request.base)
    return json_response({"access_token": token, "token_type": "bearer", "expires_in": seconds})


def _whoami(site: Site, request: Request) -> Response:
    access = site.user(request)
    token: dict[str, Any] = {"displayName": "local", "role": access.role, "createdAt": isotime(0)}
    if access.repos is not None:
        permissions = ["repo.content.read"] + (["repo.write"] if access.role == "write" else [])
        scoped = [{"entity": {"type": "model", "name": repo}, "permissions": permissions} for repo in access.repos]
        token |= {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "admin"} for org in access.orgs]
    auth: dict[str, Any] = {"type": "access_token", "accessToken": token}
    if access.expires is not None:
        auth["expiresAt"] = isotime(access.expires)
    name = {"type": "user", "id": access.user, "name": access.user, "fullname": access.user}
    return json_response({**name, "isPro": False, "orgs": orgs, "auth": auth})


def _validate(request: Request) -> Response:
    content = request.body.json().get("content")
    if not isinstance(content, str):
        raise HttpError(400, "'content' must be a string")
    found = metadata.check(content)
    if found.errors and request.headers.get("Accept") == "text/plain":
        return Response(400, "\n".join(found.errors).encode(errors="replace"), {"Content-Type": "text/plain"})
    body = {key: [{"message": text} for text in getattr(found, key)] for key in ("errors", "warnings")}
    return json_response(body, 400 if found.errors else 200)


def _create(site: Site, request: Request) -> Response:
    access = site.user(request)
    wanted = request.body.json()
    if wanted.get("type") not in (None, "model"):
        raise HttpError(400, "This local Hub holds models only")
    repo_id = check_repo_id(wanted.get("organization") or access.user, wanted.get("name"))
    site.check_write(access, repo_id)
    asked = wanted.get("visibility") is not None or wanted.get("private") is not None
    private = wanted.get("visibility") == "private" or wanted.get("private") is True
    private = private if asked else site.options.private
    repo = site.store.create(repo_id, private=private, author=access.user)
    answer = {"url": f"{request.base}/{repo_id}", "name": repo_id}
    if repo is None:
        return json_response(
            {"error": "You already created this model repo", **answer},
            409,
            {"X-Error-Message": "You already created this model repo"},
        )
    return json_response({**answer, "id": repo_id, "private": private})


def _delete(site: Site, request: Request) -> Response:
    access = site.user(request)
    wanted = request.body.json()
    repo, _ = site.writable(request, wanted.get("organization") or access.user, wanted.get("name"))  # type: ignore[arg-type]
    site.store.delete(repo)
    return Response(200)


def _settings(request: Request, repo: Repo, _access: object) -> Response:
    wanted = request.body.json()
    if wanted.keys() - {"visibility", "private", "gated"}:
        raise HttpError(400, "This local Hub knows the settings 'visibility' and 'gated' only")
    with repo.lock:
        private, gated = repo.state.private, wanted.get("gated", repo.state.gated)
        if gated not in (False, "auto", "manual"):
            raise HttpError(400, "'gated' must be false, 'auto' or 'manual'")
        if wanted.keys() & {"visibility", "private"}:
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
        repo.save(replace(repo.state, private=private, gated=gated))
    return json_response({"private": private, "gated": gated})


def _list(site: Site, request: Request) -> Response:
    access = site.access(request)
    author, search = request.first("author").lower(), request.first("search").lower()
    limit = request.number("limit", PAGE, 1, 10_000)
    start = request.number("cursor", 0, 0, 1 << 30)
    found = [
        repo
        for repo in site.store.repos()
        if (not author or repo.id.lower().startswith(author + "/"))
        and search in repo.id.lower()
        and (not repo.state.private or (access and access.may_read(repo.id)))
    ]
    page = [_summary(site, repo, repo.at("main")) for repo in found[start : start + limit]]
    return _paged(request, page, start + limit if start + limit < len(found) else None)


def _paged(request: Request, page: list[Any], cursor: int | None) -> Response:
    headers = {}
    if cursor is not None:
        query = [(key, value) for key, values in request.query.items() if key != "cursor" for value in values]
        address = f"{request.base}{request.path}?{urlencode([*query, ('cursor', str(cursor))])}"
        headers["Link"] = f'<{address}>; rel="next"'
    return json_response(page, headers=headers)


def card_of(site: Site, commit: Commit) -> str:
    """The text of the README, empty without one."""
    entry = commit.files.get("README.md")
    return site.store.read_blob(entry.sha256).decode(errors="replace") if entry and entry.size <= LARGE_FROM else ""


def _summary(site: Site, repo: Repo, commit: Commit) -> dict[str, Any]:
    card = {key: value for key, value in metadata.read(card_of(site, commit)).items() if isinstance(key, str)}
    tags = [tag for tag in card.get("tags") or () if isinstance(tag, str)] if isinstance(card.get("tags"), list) else []
    library, pipeline, license_ = card.get("library_name"), card.get("pipeline_tag"), card.get("license")
    tags = [*(str(tag) for tag in (library, pipeline) if tag), *tags, *([f"license:{license_}"] if license_ else [])]
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.oid,
        "createdAt": isotime(repo.state.created),
        "lastModified": isotime(commit.date),
        "private": repo.state.private,
        "gated": repo.state.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(tags)),
        **({"library_name": str(library)} if library else {}),
        **({"pipeline_tag": str(pipeline)} if pipeline else {}),
        "cardData": _plain(card) or None,
    }


def _plain(value: Any) -> Any:
    """Metadata as JSON can hold it: YAML knows dates, and keys that are no strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _info(request: Request, repo: Repo, revision: str, site: Site) -> Response:
    commit = repo.at(revision)
    siblings: list[dict[str, Any]] = []
    for path, entry in commit.files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if request.flag("blobs"):
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                lfs = _lfs(entry)
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    used = sum({entry.sha256: entry.size for entry in commit.files.values()}.values())
    return json_response({**_summary(site, repo, commit), "siblings": siblings, "usedStorage": used, "spaces": []})


def _lfs(entry: Entry) -> dict[str, Any]:
    size = len(gitobjects.pointer(entry.sha256, entry.size))
    return {"oid": entry.sha256, "size": entry.size, "pointerSize": size}


def _refs(request: Request, repo: Repo) -> Response:
    refs = sorted(repo.state.refs.items())

    def listed(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in refs
            if ref.startswith(prefix)
        ]

    found = {"branches": listed(BRANCH), "converts": [], "tags": listed(TAG)}
    if request.flag("include_prs"):
        found["pullRequests"] = listed(PULL)
    return json_response(found)


def _described(
    site: Site, repo: Repo, commit: Commit, paths: Iterable[str], folders: Mapping[str, str], expand: bool
) -> list[dict[str, Any]]:
    """What the Hub tells about files and folders of a commit; `folders` maps paths to git's tree ids."""
    paths = list(paths)
    changed = repo.last_changes(commit.oid, paths) if expand else {}
    result = []
    for path in paths:
        entry = commit.files.get(path)
        item: dict[str, Any] = {"type": "directory", "oid": folders.get(path, ""), "size": 0, "path": path}
        if entry is not None:
            item = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.lfs:
                item["lfs"] = _lfs(entry)
                if site.options.xet and (xet_hash := xet.hash_of(site, entry.sha256)):
                    item["xetHash"] = xet_hash
        if path in changed:
            last = changed[path]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": isotime(last.date)}
        result.append(item)
    return result


def _folders(commit: Commit) -> dict[str, str]:
    return gitobjects.tree_ids((path, entry.oid) for path, entry in commit.files.items())


def _tree(site: Site, request: Request, repo: Repo, revision: str, path: str) -> Response:
    commit = repo.at(revision)
    folders = _folders(commit)
    path = path.strip("/")
    if path not in folders:
        raise HttpError(404, f"{path} does not exist on '{revision}'", "EntryNotFound")
    prefix = f"{path}/" if path else ""
    recursive, expand = request.flag("recursive"), request.flag("expand")
    inside = [item for item in (*folders, *commit.files) if item and item.startswith(prefix)]
    if not recursive:
        inside = [item for item in inside if "/" not in item[len(prefix) :]]
    inside.sort(key=lambda item: (item in commit.files, item))
    start = request.number("cursor", 0, 0, 1 << 30)
    limit = request.number("limit", 100 if expand else PAGE, 1, PAGE)
    page = _described(site, repo, commit, inside[start : start + limit], folders, expand)
    return _paged(request, page, start + limit if start + limit < len(inside) else None)


def _paths_info(site: Site, request: Request, repo: Repo, revision: str) -> Response:
    if (request.headers.get("Content-Type") or "").startswith("application/json"):
        asked = request.body.json()
        paths, expand = asked.get("paths"), asked.get("expand") is True
        paths = [paths] if isinstance(paths, str) else paths
    else:
        try:
            form = parse_qsl(request.body.all().decode(), keep_blank_values=True)
        except ValueError:
            raise HttpError(400, "The form is malformed") from None
        paths = [value for key, value in form if key in {"paths", "paths[]"}]
        expand = any(key == "expand" and value.lower() in {"true", "1"} for key, value in form)
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HttpError(400, "'paths' must be a list of strings")
    if len(paths) > PAGE:
        raise HttpError(413, "too many parameters")
    commit = repo.at(revision)
    folders = _folders(commit)
    known = commit.files.keys() | folders.keys() - {""}
    found = [path for path in dict.fromkeys(item.strip("/") for item in paths) if path in known]
    return json_response(_described(site, repo, commit, found, folders, expand))


def _commits(request: Request, repo: Repo, revision: str) -> Response:
    start, limit = request.number("cursor", 0, 0, 1 << 30), request.number("limit", 50, 1, PAGE)
    page: list[dict[str, Any]] = []
    more = False
    for number, commit in enumerate(repo.history(repo.resolve(revision))):
        if number == start + limit:
            more = True
            break
        if number >= start:
            author = {"user": commit.author, "avatar": ""}
            shown = {"id": commit.oid, "title": commit.title, "message": commit.message, "authors": [author]}
            page.append({**shown, "date": isotime(commit.date)})
    return _paged(request, page, start + limit if more else None)


def _text_of(site: Site, commit: Commit, path: str) -> str:
    entry = commit.files.get(path)
    return site.store.read_blob(entry.sha256).decode(errors="replace") if entry and entry.size < 1 << 20 else ""


def _preupload(site: Site, request: Request, repo: Repo, revision: str) -> Response:
    asked = request.body.json()
    commit = repo.at(revision)
    attributes = _text_of(site, commit, ".gitattributes")
    ignore = asked.get("gitIgnore")
    ignore = ignore if isinstance(ignore, str) else _text_of(site, commit, ".gitignore")
    files = asked.get("files")
    if not isinstance(files, list) or len(files) > PAGE:
        raise HttpError(400, f"'files' must be a list of up to {PAGE} files")
    answer = []
    for file in files:
        if not isinstance(file, dict):
            raise HttpError(400, "Each of 'files' must be an object")
        path, size = check_path(file.get("path")), check_size(file.get("size"))
        large = is_large(path, size, _decoded(file.get("sample", "")), attributes)
        item = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": is_ignored(path, ignore)}
        if entry := commit.files.get(path):
            item["oid"] = entry.etag
        answer.append(item)
    return json_response({"files": answer, "commitOid": commit.oid})


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else b"\xff", validate=True)
    except (binascii.Error, ValueError):
        raise HttpError(400, "Not valid base64") from None


def _clean(text: object, what: str, limit: int = 65_536) -> str:
    if not isinstance(text, str) or len(text) > limit:
        raise HttpError(400, f"'{what}' must be a string of at most {limit} characters")
    return text.encode(errors="replace").decode().replace("\0", "")


def _commit(site: Site, request: Request, repo: Repo, user: str, revision: str) -> Response:
    header: dict[str, Any] | None = None
    changes: list[tuple[str, Entry | tuple[str, str] | None]] = []
    lines = request.body.lines(COMMIT_LIMIT, LINE_LIMIT)
    for line in lines:
        item = parse_json(line)
        key = item.get("key") if isinstance(item, dict) else None
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict):
            raise HttpError(400, "Each line of a commit must be an object with 'key' and 'value'")
        if header is None:
            if key != "header":
                raise HttpError(400, "The first line of a commit must be its header")
            header = value
        else:
            changes.append(_change(site, repo, key, value))
    if header is None:
        raise HttpError(400, "The commit is empty")
    title = _clean(header.get("summary"), "summary", 4096).strip()
    message = _clean(header.get("description") or "", "description")
    if not title:
        raise HttpError(400, "'summary' must not be empty")
    with repo.lock:
        return _write(request, repo, revision, Authored(title, message, user), header.get("parentCommit"), changes)


def _change(site: Site, repo: Repo, key: object, value: dict[str, Any]) -> tuple[str, Entry | tuple[str, str] | None]:
    """One line of a commit as (path, new content): a copy is (source revision, source path), None removes."""
    path = value.get("path")
    if key == "file":
        path = check_path(path)
        content = value.get("content")
        if value.get("encoding") == "base64":
            data = _decoded(content)
        else:
            data = _clean(content, "content", LINE_LIMIT).encode()
        if len(data) > LARGE_FROM:
            raise HttpError(400, f"'{path}' is larger than {LARGE_FROM} bytes: upload it as a large file")
        if gitobjects.is_pointer(data):
            raise HttpError(400, f"'{path}' is a pointer to a large file: commit the file itself")
        if path == "README.md" and (found := metadata.check(data.decode(errors="replace"))).errors:
            raise HttpError(400, "Invalid metadata in README.md: " + "; ".join(found.errors))
        return path, site.store.keep_bytes(data)
    if key == "lfsFile":
        path = check_path(path)
        sha256 = check_sha256(value.get("oid"))
        size = site.store.blob_size(sha256) if repo.owns(sha256) else None
        if value.get("algo", "sha256") != "sha256":
            raise HttpError(400, "'algo' must be sha256")
        if size is None or (value.get("size") is not None and check_size(value["size"]) != size):
            raise HttpError(400, f"'{path}' points to a file that was never uploaded to {repo.id}: {sha256}")
        return path, Entry.large(size, sha256)
    if key == "deletedFile":
        return check_path(path), None
    if key == "deletedFolder":
        return check_path(path.rstrip("/") if isinstance(path, str) else path) + "/", None
    if key == "copyFile":
        source = value.get("srcRevision") or ""
        if not isinstance(source, str):
            raise HttpError(400, "'srcRevision' must be a string")
        return check_path(path), (source, check_path(value.get("srcPath")))
    raise HttpError(400, f"Unknown kind of change: {ascii(key)[:60]}")


def _write(
    request: Request,
    repo: Repo,
    revision: str,
    made: Authored,
    parent: object,
    changes: Iterable[tuple[str, Entry | tuple[str, str] | None]],
) -> Response:
    if repo.gone:
        raise repo_not_found()
    as_pull = request.flag("create_pr")
    ref = repo.branch_of(revision)
    head = repo.commit(repo.state.refs[ref])
    if parent is not None and parent != head.oid:
        raise HttpError(
            412, f"A commit has happened since: '{revision}' is at {head.oid}, not at parentCommit {ascii(parent)[:50]}"
        )
    resolved: list[tuple[str, Entry | None]] = []
    for path, change in changes:
        if isinstance(change, tuple):
            source, name = change
            entry = (repo.at(source) if source else head).files.get(name)
            if entry is None:
                raise HttpError(404, f"{name} does not exist on '{source or revision}'", "EntryNotFound")
            resolved.append((path, entry))
        else:
            resolved.append((path, change))
    files = apply(head.files, resolved)
    address = f"{request.base}/{repo.id}"
    if files == head.files and not as_pull:
        # As the Hub does: what changes nothing makes no commit, and the answer names the commit that holds it.
        answer = {"commitOid": head.oid, "commitUrl": f"{address}/commit/{head.oid}", "hookOutput": "", "success": True}
        return json_response(answer)
    if as_pull and not ref.startswith(BRANCH):
        raise HttpError(400, "A pull request needs a branch to be merged into")
    commit = repo.write_commit((head.oid,), files, made)
    answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{address}/commit/{commit.oid}", "hookOutput": ""}
    if as_pull:
        number = max((pull.num for pull in repo.state.pulls), default=0) + 1
        pull = Pull(number, made.title, made.message, made.author, commit.date, ref, head.oid)
        refs = {**repo.state.refs, f"{PULL}{number}": commit.oid}
        repo.save(replace(repo.state, refs=refs, pulls=(*repo.state.pulls, pull)))
        answer["pullRequestUrl"] = f"{address}/discussions/{number}"
    else:
        repo.set_ref(ref, commit.oid)
    return json_response(answer)


def _change_ref(request: Request, repo: Repo, kind: str, target: str) -> Response:
    prefix = BRANCH if kind == "branch" else TAG
    wanted = request.body.json()
    with repo.lock:
        if request.method == "DELETE":
            ref = prefix + check_ref_name(target)
            if ref not in repo.state.refs:
                raise HttpError(404, f"Invalid rev id: {target}", "RevisionNotFound")
            if ref == BRANCH + "main":
                raise HttpError(403, "The branch main cannot be deleted")
            repo.set_ref(ref, None)
            return Response(200)
        # A branch is named in the address and starts at a point; a tag is named in the body and set on the address.
        name, point = (target, wanted.get("startingPoint", "main")) if kind == "branch" else (wanted.get("tag"), target)
        if not isinstance(point, str):
            raise HttpError(400, "'startingPoint' must be a string")
        ref = prefix + check_ref_name(name)
        if ref in repo.state.refs:
            raise HttpError(409, f"{kind.capitalize()} {name} already exists")
        repo.add_ref(ref, repo.resolve(point))
    return json_response({"ref": ref, "targetCommit": repo.state.refs.get(ref)}, 201)


def _duplicate(site: Site, request: Request, source: Repo) -> Response:
    wanted = request.body.json()
    target, files = wanted.get("target"), wanted.get("files")
    if not isinstance(target, dict) or not isinstance(target.get("name"), str) or not isinstance(files, list):
        raise HttpError(400, "'target' and 'files' are needed")
    namespace, _, name = target["name"].partition("/")
    repo, _ = site.writable(request, namespace, name)
    failed = []
    for file in files[:PAGE]:
        sha256 = check_sha256(file.get("sha256") if isinstance(file, dict) else None)
        if source.owns(sha256) and site.store.has_blob(sha256):
            repo.own(sha256)
        else:
            failed.append({"sha256": sha256, "error": "not found"})
    return json_response({"failed": failed})


def _find_pull(repo: Repo, number: str) -> Pull:
    for pull in repo.state.pulls:
        if str(pull.num) == number:
            return pull
    raise HttpError(404, f"There is no discussion {ascii(number)[:20]}")


def _discussion(repo: Repo, pull: Pull) -> dict[str, Any]:
    """A pull request as the Hub tells of it, with the events that huggingface_hub reads."""
    author = {"name": pull.author, "type": "user"}
    text = {"latest": {"raw": pull.description, "updatedAt": isotime(pull.date)}, "edited": False, "hidden": False}
    events: list[dict[str, Any]] = [{"id": f"{pull.num}-0", "type": "comment", "data": text}]
    for commit in repo.history(repo.state.refs[f"{PULL}{pull.num}"]):
        if commit.oid == pull.base_commit:
            break
        events.insert(1, {"id": commit.oid, "type": "commit", "data": {"subject": commit.title, "oid": commit.oid}})
    if pull.status != "open":
        events.append({"id": f"{pull.num}-1", "type": "status-change", "data": {"status": pull.status}})
    shown = {
        "num": pull.num,
        "title": pull.title,
        "author": author,
        "createdAt": isotime(pull.date),
        "status": pull.status,
        "repo": {"name": repo.id, "type": "model"},
        "isPullRequest": True,
        "events": [{**event, "author": author, "createdAt": isotime(pull.date)} for event in events],
        "filesWithConflicts": [],
        "changes": {"base": pull.base},
    }
    if pull.merge_commit:
        shown["changes"] = {"base": pull.base, "mergeCommitId": pull.merge_commit}
    return shown


def _discussions(request: Request, repo: Repo) -> Response:
    size, page = 50, request.number("p", 0, 0, 1 << 20)
    status, author = request.first("status", "all"), request.first("author")
    kind = request.first("type", "all")
    found = [
        pull
        for pull in reversed(repo.state.pulls)
        if kind != "discussion"
        and (status == "all" or (pull.status == "open") == (status == "open"))
        and (not author or pull.author == author)
    ]
    start = page * size
    discussions = [_discussion(repo, pull) for pull in found[start : start + size]]
    return json_response({"discussions": discussions, "count": len(found), "start": start})


def _replace_pull(repo: Repo, pull: Pull) -> tuple[Pull, ...]:
    return tuple(pull if other.num == pull.num else other for other in repo.state.pulls)


def _merge(request: Request, repo: Repo, user: str, number: str) -> Response:
    request.body.all()
    with repo.lock:
        pull = _find_pull(repo, number)
        if pull.status != "open":
            raise HttpError(409, f"Pull request {pull.num} is {pull.status}")
        theirs = repo.commit(repo.state.refs[f"{PULL}{pull.num}"])
        if pull.base not in repo.state.refs:
            raise HttpError(409, f"The branch {pull.base} is gone")
        ours = repo.commit(repo.state.refs[pull.base])
        files = merged(repo.commit(pull.base_commit).files, ours.files, theirs.files)
        made = Authored(f"{pull.title} (#{pull.num})", pull.description, user)
        commit = repo.write_commit((ours.oid, theirs.oid), files, made)
        done = replace(pull, status="merged", merge_commit=commit.oid, closed_by=user)
        refs = {**repo.state.refs, pull.base: commit.oid}
        repo.save(replace(repo.state, refs=refs, pulls=_replace_pull(repo, done)))
    return json_response({"newStatus": {"status": "merged"}, "mergeCommitId": commit.oid})


def _set_status(request: Request, repo: Repo, user: str, number: str) -> Response:
    status = request.body.json().get("status")
    if status not in ("open", "closed"):
        raise HttpError(400, "'status' must be 'open' or 'closed'")
    with repo.lock:
        pull = _find_pull(repo, number)
        if pull.status == "merged":
            raise HttpError(409, f"Pull request {pull.num} is merged")
        repo.save(replace(repo.state, pulls=_replace_pull(repo, replace(pull, status=status, closed_by=user))))
    author = {"name": user, "type": "user"}
    event = {"id": f"{pull.num}-{status}", "type": "status-change", "author": author, "createdAt": isotime(time.time())}
    return json_response({"newStatus": {**event, "data": {"status": status}}})
