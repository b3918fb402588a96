"""Files on their way: git-LFS uploads (whole or in parts) and downloads of any file of a commit."""

from __future__ import annotations

import mimetypes
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubpub.localhub import gitobjects, xet
from hubpub.localhub.disk import concatenate
from hubpub.localhub.names import check_path, check_repo_id, check_sha256, check_size
from hubpub.localhub.site import Site
from hubpub.localhub.store import Repo, repo_not_found
from hubpub.localhub.wire import HttpError, Request, Response, file_response, json_response

_LFS = {"Content-Type": "application/vnd.git-lfs+json"}
_TEXT = re.compile(r".*\.(md|txt|json|jsonl|toml|ya?ml|py|csv|html?|xml|jinja|js|css)|[^.]*|\.[a-z]+", re.I)


def batch(site: Site, request: Request, namespace: str, name: str) -> Response:
    """POST {repo}.git/info/lfs/objects/batch: where to send each object, or that it is there already."""
    asked = request.body.json()
    operation, objects = asked.get("operation"), asked.get("objects")
    if operation not in ("upload", "download") or not isinstance(objects, list) or len(objects) > 1000:
        raise HttpError(400, "'operation' must be upload or download, 'objects' a list of at most 1000")
    uploads = operation == "upload"
    if uploads:
        repo, _ = site.writable(request, namespace, name)
    else:
        repo = site.readable(request, namespace, name)
    answers = []
    for item in objects:
        if not isinstance(item, dict):
            raise HttpError(400, "Each of 'objects' must be an object")
        sha256, size = check_sha256(item.get("oid")), check_size(item.get("size"))
        about = _offer if uploads else _origin
        answers.append(about(site, request, repo, sha256, size))
    return json_response({"transfer": "basic", "objects": answers, "hash_algo": "sha256"}, headers=_LFS)


def _offer(site: Site, request: Request, repo: Repo, sha256: str, size: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
    if size > site.options.max_file:
        return {**answer, "error": {"code": 422, "message": f"Files may have {site.options.max_file} bytes at most"}}
    if repo.owns(sha256) and site.store.blob_size(sha256) is not None:
        if site.store.blob_size(sha256) != size:
            return {**answer, "error": {"code": 422, "message": "The stored object of this sha256 has another size"}}
        return answer
    place = f"/_lfs/{repo.id}/{sha256}"
    verify = {"href": f"{request.base}/{repo.id}.git/info/lfs/objects/verify", "header": {}}
    if size < site.options.multipart_from or size == 0:
        query = site.tokens.signed_query(f"{place}|{size}")
        upload: dict[str, Any] = {"href": f"{request.base}{place}?size={size}&{query}", "header": {}}
    else:
        part_size = max(site.options.part_size, -(-size // 10_000))
        header = {"chunk_size": str(part_size)}
        for number in range(1, -(-size // part_size) + 1):
            length = min(part_size, size - (number - 1) * part_size)
            query = site.tokens.signed_query(f"{place}/{number}|{length}")
            header[str(number)] = f"{request.base}{place}/{number}?size={length}&{query}"
        query = site.tokens.signed_query(f"{place}/complete|{size}")
        upload = {"href": f"{request.base}{place}/complete?size={size}&{query}", "header": header}
    return {**answer, "actions": {"upload": upload, "verify": verify}}


def _origin(site: Site, request: Request, repo: Repo, sha256: str, size: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
    if not repo.owns(sha256) or not site.store.has_blob(sha256):
        return {**answer, "error": {"code": 404, "message": "Object does not exist"}}
    place = f"/_lfs/{repo.id}/{sha256}"
    query = site.tokens.signed_query(f"{place}|get")
    return {**answer, "actions": {"download": {"href": f"{request.base}{place}?{query}", "header": {}}}}


def verify(site: Site, request: Request, namespace: str, name: str) -> Response:
    """POST {repo}.git/info/lfs/objects/verify: whether an object arrived whole."""
    repo, _ = site.writable(request, namespace, name)
    asked = request.body.json()
    sha256, size = check_sha256(asked.get("oid")), check_size(asked.get("size"))
    if not repo.owns(sha256) or site.store.blob_size(sha256) != size:
        raise HttpError(404, "The object did not arrive")
    return json_response({}, headers=_LFS)


def lfs(site: Site, request: Request) -> Response:
    """What the addresses given out by `batch` lead to: they carry a signature instead of a token."""
    match request.method, request.segments[1:]:
        case "PUT", (namespace, name, sha256):
            return _receive(site, request, _signed_repo(site, request, namespace, name), check_sha256(sha256))
        case "PUT", (namespace, name, sha256, number):
            repo = _signed_repo(site, request, namespace, name)
            return _receive_part(site, request, repo, check_sha256(sha256), int(number))
        case "POST", (namespace, name, sha256, "complete"):
            return _complete(site, request, _signed_repo(site, request, namespace, name), check_sha256(sha256))
        case "GET", (namespace, name, sha256):
            site.tokens.check_signed(f"{request.path}|get", request.first("expires"), request.first("signature"))
            path = site.store.blob_path(check_sha256(sha256))
            headers = {"Content-Type": "application/octet-stream", "ETag": f'"{sha256}"'}
            return file_response(request, path, path.stat().st_size, headers)
    raise HttpError(404, "Not found")


def _signed_repo(site: Site, request: Request, namespace: str, name: str) -> Repo:
    purpose = f"{request.path}|{request.first('size')}"
    site.tokens.check_signed(purpose, request.first("expires"), request.first("signature"))
    repo = site.store.find(check_repo_id(namespace, name))
    if repo is None:
        raise repo_not_found()
    return repo


def _receive(site: Site, request: Request, repo: Repo, sha256: str) -> Response:
    size = int(request.first("size"))
    with site.store.disk.spool() as spool:
        for block in request.body.blocks(size):
            spool.write(block)
        if spool.size != size:
            raise HttpError(400, f"Expected {size} bytes, got {spool.size}")
        if spool.sha256 != sha256:
            raise HttpError(400, f"The sha256 of what arrived is {spool.sha256}, not {sha256}")
        site.store.keep(spool)
    repo.own(sha256)
    return Response(200, b"", {"ETag": f'"{sha256}"'})


def _parts_folder(site: Site, repo: Repo, sha256: str) -> Path:
    return site.store.disk.root / "parts" / repo.id / sha256


def _receive_part(site: Site, request: Request, repo: Repo, sha256: str, number: int) -> Response:
    size = int(request.first("size"))
    with site.store.disk.spool() as spool:
        for block in request.body.blocks(size):
            spool.write(block)
        if spool.size != size:
            raise HttpError(400, f"Expected {size} bytes, got {spool.size}")
        folder = _parts_folder(site, repo, sha256)
        spool.move(folder / f"{number}.{spool.sha256}")
        return Response(200, b"", {"ETag": f'"{spool.sha256}"'})


def _complete(site: Site, request: Request, repo: Repo, sha256: str) -> Response:
    """Join the parts that the client lists, in order, and check that they make the object."""
    asked = request.body.json()
    parts = asked.get("parts")
    if asked.get("oid") != sha256 or not isinstance(parts, list) or not 0 < len(parts) <= 10_000:
        raise HttpError(400, "'oid' and 'parts' do not fit the address")
    folder = _parts_folder(site, repo, sha256)
    paths = []
    for number, part in enumerate(parts, 1):
        etag = part.get("etag") if isinstance(part, dict) and part.get("partNumber") == number else None
        digest = check_sha256(etag.strip('"') if isinstance(etag, str) else None)
        path = folder / f"{number}.{digest}"
        if not path.exists():
            # A repeated completion, after its answer was lost, finds the object instead of the parts.
            if repo.owns(sha256) and site.store.has_blob(sha256):
                return json_response({"success": True})
            raise HttpError(400, f"Part {number} did not arrive")
        paths.append(path)
    with site.store.disk.spool() as spool:
        concatenate(spool, paths)
        if spool.size != int(request.first("size")) or spool.sha256 != sha256:
            raise HttpError(400, f"The sha256 of the joined parts is {spool.sha256}, not {sha256}")
        site.store.keep(spool)
    repo.own(sha256)
    shutil.rmtree(folder, ignore_errors=True)
    return json_response({"success": True})


def resolve(site: Site, request: Request, repo: Repo, revision: str, path: str) -> Response:
    """GET or HEAD {repo}/resolve/{revision}/{path}: the content, with everything clients ask of its headers."""
    commit = repo.at(revision)
    entry = commit.files.get(check_path(path))
    if entry is None:
        error = HttpError(404, f"{path} does not exist on '{revision}'", "EntryNotFound")
        error.headers["X-Repo-Commit"] = commit.oid
        raise error
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.etag}"',
        "Content-Type": content_type(path),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}",
    }
    if entry.lfs:
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        if site.options.xet and (xet_hash := xet.hash_of(site, entry.sha256)):
            refresh = f"{request.base}/api/models/{repo.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": refresh, "Link": f'<{refresh}>; rel="xet-auth"'}
    return file_response(request, site.store.blob_path(entry.sha256), entry.size, headers)


def raw(site: Site, request: Request, repo: Repo, revision: str, path: str) -> Response:
    """GET {repo}/raw/{revision}/{path}: what git holds, so for a large file its pointer."""
    entry = repo.at(revision).files.get(check_path(path))
    if entry is None:
        raise HttpError(404, f"{path} does not exist on '{revision}'", "EntryNotFound")
    headers = {"ETag": f'"{entry.oid}"', "Content-Type": content_type(path)}
    if entry.lfs:
        return Response(200, gitobjects.pointer(entry.sha256, entry.size), {**headers, "Content-Type": _PLAIN})
    return file_response(request, site.store.blob_path(entry.sha256), entry.size, headers)


_PLAIN = "text/plain; charset=utf-8"


def content_type(path: str) -> str:
    """Text for what is readable, pictures as such, bytes for the rest; nothing that a browser would run.

    An SVG could hold a script: the policy every stored file is sent with keeps it from running.
    """
    if _TEXT.fullmatch(path.rpartition("/")[2]):
        return _PLAIN
    guessed = mimetypes.guess_type(path)[0] or ""
    shown = {"image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"}
    return guessed if guessed in shown else "application/octet-stream"
