"""The xet transport: tokens for its storage service, and that service itself.

Clients send xorbs (blocks of compressed chunks) and then shards, which say which chunks make which file. A file is put
together as soon as its shard arrives, checked against its SHA-256, and kept like any other content; the xorbs stay, for
clients remember what they sent and refer to it later.

    xet/xorbs/<hash>, xet/files/<hash>.json (SHA-256, size, terms), xet/names/<sha256> (the file's xet hash)
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from hubpub.localhub.disk import Spool
from hubpub.localhub.names import check_repo_id, check_sha256
from hubpub.localhub.site import Site
from hubpub.localhub.store import Repo
from hubpub.localhub.wire import HttpError, Request, Response, file_response, json_response, parse_json
from hubpub.localhub.xorb import XORB_LIMIT, Chunk, FileRecord, Malformed, Term, read_chunks, read_shard, unpack

SHARD_LIMIT = 64 << 20
_LASTING = 3600
_SMALL_JSON = 1 << 20


def token(site: Site, request: Request, repo: Repo, writes: bool) -> Response:
    """An access token for the storage service, for one repo and an hour, with the service's address."""
    expires = int(time.time()) + _LASTING
    sealed = site.tokens.seal({"repo": repo.id, "writes": writes, "expires": expires})
    # The store's id is part of the address: clients remember per address what they have sent.
    address = f"{request.base}/_xet/{site.tokens.store_id}"
    headers = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": sealed, "X-Xet-Token-Expiration": str(expires)}
    return json_response({"casUrl": address, "exp": expires, "accessToken": sealed}, headers=headers)


def hash_of(site: Site, sha256: str) -> str | None:
    """The xet hash of a file that came by xet."""
    try:
        return (_folder(site) / "names" / sha256).read_text()
    except FileNotFoundError:
        return None


def handle(site: Site, request: Request) -> Response:
    """The storage service. Raises HttpError."""
    if not site.options.xet or request.segments[1] != site.tokens.store_id:
        raise HttpError(404, "Not found")
    match request.method, request.segments[2:]:
        case "POST", ("v1", "xorbs", "default", name):
            _repo(site, request, writes=True)
            return _receive_xorb(site, request, _hash(name))
        case "POST", ("v1", "shards") | ("shards",):
            return _receive_shard(site, request, _repo(site, request, writes=True))
        case "GET", ("v1", "reconstructions", name):
            return _reconstruction(site, request, _repo(site, request, writes=False), _hash(name))
        case "GET", ("xorbs", name):
            site.tokens.check_signed(request.path, request.first("expires"), request.first("signature"))
            path = _xorb_path(site, _hash(name))
            return file_response(request, path, path.stat().st_size, {"Content-Type": "application/octet-stream"})
    # No answer to /v1/chunks (nothing to share between users here) nor to /v2: clients then use /v1.
    raise HttpError(404, "Not found")


def telemetry(request: Request) -> Response:
    """Clients report how a transfer went, always to the root of the server: listened to and forgotten."""
    request.body.all(_SMALL_JSON)
    return json_response({})


def _folder(site: Site) -> Path:
    return site.store.disk.root / "xet"


def _xorb_path(site: Site, name: str) -> Path:
    return _folder(site) / "xorbs" / name[:2] / name


def _hash(name: str) -> str:
    return check_sha256(name)


def _repo(site: Site, request: Request, *, writes: bool) -> Repo:
    """The repo that the storage token is for. Raises HttpError 401 or 403."""
    claims = site.tokens.unseal(request.headers.get("Authorization"))
    if writes and not claims.get("writes"):
        raise HttpError(403, "This token may only read")
    repo = site.store.find(check_repo_id(*claims["repo"].split("/")))
    if repo is None:
        raise HttpError(403, "The repo of this token is gone")
    return repo


def _receive_xorb(site: Site, request: Request, name: str) -> Response:
    place = _xorb_path(site, name)
    with site.store.disk.spool() as spool:
        for block in request.body.blocks(XORB_LIMIT + (1 << 20)):
            spool.write(block)
        if place.exists():
            return json_response({"was_inserted": False})
        spool.flush()
        with spool.path.open("rb") as file:
            try:
                read_chunks(file, spool.size)
            except Malformed as error:
                raise HttpError(400, f"Not a xorb: {error}") from None
        spool.move(place)
    return json_response({"was_inserted": True})


@lru_cache(maxsize=64)
def _chunks(path: Path) -> tuple[Chunk, ...]:
    with path.open("rb") as file:
        return read_chunks(file, path.stat().st_size)


def _term_chunks(site: Site, term: Term) -> tuple[Path, tuple[Chunk, ...]]:
    """Where a term's chunks lie. Raises Malformed where the xorb was not sent or has fewer chunks."""
    path = _xorb_path(site, term.xorb)
    try:
        chunks = _chunks(path)[term.start : term.end]
    except FileNotFoundError:
        raise Malformed(f"the xorb {term.xorb} was not sent") from None
    if len(chunks) != term.end - term.start or sum(chunk.unpacked for chunk in chunks) != term.size:
        raise Malformed("a term does not fit its xorb")
    return path, chunks


def _receive_shard(site: Site, request: Request, repo: Repo) -> Response:
    try:
        for record in read_shard(request.body.all(SHARD_LIMIT)):
            _assemble(site, repo, record)
    except Malformed as error:
        raise HttpError(400, f"Not a shard that can be taken: {error}") from None
    return json_response({"result": 1})


def _assemble(site: Site, repo: Repo, record: FileRecord) -> None:
    """Put a file together and keep it, unless just these terms have made it before."""
    place = _folder(site) / "files" / f"{record.hash}.json"
    terms = [asdict(term) for term in record.terms]
    before = parse_json(place.read_bytes()) if place.exists() else None
    if before and before["terms"] == terms and record.sha256 in (None, before["sha256"]):
        repo.own(before["sha256"])
        return
    size = sum(term.size for term in record.terms)
    if size > site.options.max_file:
        raise HttpError(413, f"Files may have {site.options.max_file} bytes at most")
    with site.store.disk.spool() as spool:
        for term in record.terms:
            _write_term(site, spool, term)
        if record.sha256 is not None and spool.sha256 != record.sha256:
            raise Malformed(f"the file's sha256 is {spool.sha256}, not {record.sha256}")
        if before and spool.sha256 != before["sha256"]:
            raise Malformed("this file hash is that of another file")
        sha256 = site.store.keep(spool)
    site.store.disk.write_json(place, {"sha256": sha256, "size": size, "terms": terms})
    site.store.disk.write(_folder(site) / "names" / sha256, record.hash.encode())
    repo.own(sha256)


def _write_term(site: Site, spool: Spool, term: Term) -> None:
    path, chunks = _term_chunks(site, term)
    with path.open("rb") as file:
        file.seek(chunks[0].start)
        for chunk in chunks:
            spool.write(unpack(file.read(chunk.end - chunk.start), chunk))


def _reconstruction(site: Site, request: Request, repo: Repo, name: str) -> Response:
    """Which chunks of which xorbs make the file, or the part of it that the Range header asks for."""
    place = _folder(site) / "files" / f"{name}.json"
    if not place.exists():
        raise HttpError(404, "No such file")
    known = parse_json(place.read_bytes())
    if not repo.owns(known["sha256"]):
        raise HttpError(404, "No such file")
    start, end = 0, known["size"]
    if asked := request.headers.get("Range"):
        found = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{1,18})", asked.strip())
        if not found:
            raise HttpError(400, "The Range header is malformed")
        start, end = int(found[1]), min(end, int(found[2]) + 1)
        if start >= end:
            raise HttpError(416, "The range lies outside of the file")
    terms: list[dict[str, Any]] = []
    reaches: dict[str, list[tuple[int, int]]] = {}
    skipped = None
    for term, offset in _overlapping(site, known["terms"], start, end):
        skipped = start - offset if skipped is None else skipped
        reach = {"start": term.start, "end": term.end}
        terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": reach})
        reaches.setdefault(term.xorb, []).append((term.start, term.end))
    fetch = {xorb: [_where(site, request, xorb, *reach) for reach in _joined(found)] for xorb, found in reaches.items()}
    return json_response({"offset_into_first_range": skipped or 0, "terms": terms, "fetch_info": fetch})


def _where(site: Site, request: Request, xorb: str, start: int, end: int) -> dict[str, Any]:
    """The address and the bytes at which chunks `start` to `end` of a xorb are to be had."""
    chunks = _chunks(_xorb_path(site, xorb))
    path = f"/_xet/{site.tokens.store_id}/xorbs/{xorb}"
    return {
        "range": {"start": start, "end": end},
        "url": f"{request.base}{path}?{site.tokens.signed_query(path, _LASTING)}",
        "url_range": {"start": chunks[start].start, "end": chunks[end - 1].end - 1},
    }


def _joined(reaches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same chunks in ranges that do not overlap, as clients expect them."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(reaches):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _overlapping(site: Site, terms: list[dict[str, Any]], start: int, end: int) -> Iterator[tuple[Term, int]]:
    """The terms that hold bytes `start` to `end`, trimmed to whole chunks, each with its offset in the file."""
    offset = 0
    for stored in terms:
        term = Term(**stored)
        if offset < end and offset + term.size > start:
            _, chunks = _term_chunks(site, term)
            place, kept = offset, []
            for number, chunk in enumerate(chunks, term.start):
                if place < end and place + chunk.unpacked > start:
                    kept.append((number, place, chunk.unpacked))
                place += chunk.unpacked
            yield Term(term.xorb, sum(size for *_, size in kept), kept[0][0], kept[-1][0] + 1), kept[0][1]
        offset += term.size
