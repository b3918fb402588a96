"""Who may do what: access tokens, kept in a file only their owner can read, and signatures for addresses."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hubpub.errors import HubError
from hubpub.localhub.disk import Disk
from hubpub.localhub.wire import HttpError

Role = Literal["read", "write"]
_EXCHANGED = 3600
# What PKCS #1 v1.5 puts before a SHA-256 digest (RFC 8017, section 9.2).
_SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


@dataclass(frozen=True)
class Access:
    """What one token allows. `repos` limits it to those repos; `expires` is in seconds since 1970."""

    user: str
    role: Role
    repos: tuple[str, ...] | None = None
    expires: float | None = None
    orgs: tuple[str, ...] = ()

    def may_read(self, repo_id: str) -> bool:
        if self.repos is not None:
            return repo_id in self.repos
        return repo_id.partition("/")[0] in {self.user, *self.orgs}

    def may_write(self, repo_id: str) -> bool:
        return self.role == "write" and self.may_read(repo_id)

    def may_create(self, repo_id: str) -> bool:
        return self.may_write(repo_id)


@dataclass(frozen=True)
class _Record:
    token: str = field(repr=False)
    user: str
    role: Role
    repos: tuple[str, ...] | None
    expires: float | None


@dataclass(frozen=True)
class Publisher:
    """A workflow that `resource` (a repo, or a user) trusts: its identity must carry every one of `claims` as it is.

    As on the Hub (https://huggingface.co/docs/hub/trusted-publishers), `workflow` is the name of the workflow's file,
    e.g. "release.yml", and `branch` that of a branch: what a GitHub identity says in `workflow_ref` and `ref`. `keys`
    are the issuer's public RSA keys, as its JWKS lists them.
    """

    resource: str
    issuer: str
    keys: tuple[Mapping[str, str], ...]
    claims: Mapping[str, str]


class Tokens:
    """The tokens of one server. The first user's write token is made at the first start and stays the same."""

    def __init__(self, disk: Disk, user: str, orgs: Iterable[str]) -> None:
        self._disk = disk
        self._path = disk.root / "tokens.json"
        self._lock = threading.Lock()
        self._orgs = tuple(orgs)
        self._records: dict[str, _Record] = {}
        self._publishers: list[Publisher] = []
        self.token_path = disk.root / "token"
        if self._path.exists():
            stored = json.loads(self._path.read_bytes())
            self._key = bytes.fromhex(stored["key"])
            self.store_id: str = stored["store_id"]
            for item in stored["tokens"]:
                item["repos"] = None if item["repos"] is None else tuple(item["repos"])
                self._records[item["token"]] = _Record(**item)
        else:
            self._key = secrets.token_bytes(32)
            self.store_id = secrets.token_hex(8)
        self.user = user
        own = (r.token for r in self._records.values() if r.user == user and r.repos is None and r.expires is None)
        self._token = next(own, None) or self.add(user)
        if not self.token_path.exists() or self.token_path.read_text() != self._token:
            disk.write(self.token_path, self._token.encode(), 0o600)

    def __repr__(self) -> str:
        return f"Tokens(user={self.user!r})"

    @property
    def token(self) -> str:
        """The write token of the server's own user."""
        return self._token

    def add(
        self, user: str, role: Role = "write", repos: Iterable[str] | None = None, expires: float | None = None
    ) -> str:
        """A new token; it holds until `expires` (seconds since 1970) and, with `repos`, for those repos alone."""
        if role not in ("read", "write"):
            raise HubError(f"a token's role is 'read' or 'write', not {role!r}")
        record = _Record(f"hf_{secrets.token_hex(17)}", user, role, None if repos is None else tuple(repos), expires)
        with self._lock:
            self._records[record.token] = record
            stored = {
                "key": self._key.hex(),
                "store_id": self.store_id,
                "tokens": [asdict(record) for record in self._records.values()],
            }
            self._disk.write_json(self._path, stored, 0o600)
        return record.token

    def trust(self, publisher: Publisher) -> None:
        """Let a workflow exchange its identity for tokens, for as long as this server runs."""
        self._publishers.append(publisher)

    def exchange(self, identity: str, resource: str, audience: str) -> tuple[str, int]:
        """A token for `resource` alone, and the seconds it holds, for the bearer of the JWT `identity`.

        A repo gives a write token, a user a token that may only read. Raises HttpError 400 where the identity is
        forged, over, meant for another audience, or not one that `resource` trusts in every claim.
        """
        known = [one for one in self._publishers if one.resource == resource]
        for publisher in known:
            claims = verified(identity, publisher.keys)
            if claims is None or claims.get("iss") != publisher.issuer:
                continue
            now = time.time()
            if claims.get("aud") != audience or not claims.get("nbf", 0) <= now < claims.get("exp", 0):
                raise _invalid_grant("the identity token is over, or was made for another audience")
            named = _documented(claims)
            if all(named.get(name) == value for name, value in publisher.claims.items()):
                user, slash, _ = resource.partition("/")
                role: Role = "write" if slash else "read"
                return self.add(user, role, [resource] if slash else None, now + _EXCHANGED), _EXCHANGED
        raise _invalid_grant(f"no trusted publisher of {resource} matches the claims of this identity")

    def access(self, authorization: str | None) -> Access | None:
        """What the Authorization header allows, None without one. Raises HttpError 401 for a token not known here."""
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        record = self._records.get(token.strip()) if scheme.lower() == "bearer" else None
        if record is None or (record.expires is not None and record.expires <= time.time()):
            # The very words that make huggingface_hub speak of the token and not of a missing repo.
            raise HttpError(401, "Invalid credentials in Authorization header")
        orgs = self._orgs if record.user == self.user else ()
        return Access(record.user, record.role, record.repos, record.expires, orgs)

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def signed_query(self, purpose: str, lasting: float = 86_400) -> str:
        """A query string that allows `purpose` for `lasting` seconds to whoever holds it."""
        expires = int(time.time() + lasting)
        return f"expires={expires}&signature={self._sign(f'{purpose}|{expires}')}"

    def check_signed(self, purpose: str, expires: str, signature: str) -> None:
        """Raises HttpError 403 where the query string was not made by `signed_query` for `purpose`, or ran out."""
        valid = hmac.compare_digest(self._sign(f"{purpose}|{expires}").encode(), signature.encode())
        if not valid or int(expires) <= time.time():
            raise HttpError(403, "The signature of this address is wrong or has expired")

    def seal(self, claims: Mapping[str, Any]) -> str:
        """`claims` as a text that only this server can make."""
        text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        return f"{text}.{self._sign('claims|' + text)}"

    def unseal(self, authorization: str | None) -> dict[str, Any]:
        """The claims of a Bearer token made by `seal`. Raises HttpError 401 where it was not, or has expired."""
        text, _, signature = (authorization or "").removeprefix("Bearer ").partition(".")
        if not hmac.compare_digest(self._sign("claims|" + text).encode(), signature.encode("utf-8", "replace")):
            raise HttpError(401, "Invalid access token")
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if claims["expires"] <= time.time():
            raise HttpError(401, "The access token has expired")
        return claims


def _documented(claims: Mapping[str, Any]) -> dict[str, Any]:
    """`claims` of a GitHub identity by the names that a publisher is configured with."""
    file = str(claims.get("workflow_ref", "")).partition("@")[0].rpartition("/")[2]
    kind, _, branch = str(claims.get("ref", "")).partition("/heads/")
    return {**claims, "workflow": file, "branch": branch if kind == "refs" else None}


def verified(identity: str, keys: Iterable[Mapping[str, str]]) -> dict[str, Any] | None:
    """The claims of a JWT that one of `keys` signed (RS256, and nothing else), or None."""
    try:
        head, body, signature = identity.split(".")
        header, claims = json.loads(_unpadded(head)), json.loads(_unpadded(body))
        signed = int.from_bytes(_unpadded(signature))
    except (ValueError, TypeError):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict) or header.get("alg") != "RS256":
        return None
    digest = hashlib.sha256(f"{head}.{body}".encode()).digest()
    for key in keys:
        modulus, exponent = (int.from_bytes(_unpadded(key[part])) for part in ("n", "e"))
        length = (modulus.bit_length() + 7) // 8
        filling = b"\xff" * (length - 3 - len(_SHA256_INFO) - len(digest))
        expected = b"\0\1" + filling + b"\0" + _SHA256_INFO + digest
        if signed < modulus and hmac.compare_digest(pow(signed, exponent, modulus).to_bytes(length), expected):
            return claims
    return None


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _invalid_grant(why: str) -> HttpError:
    return HttpError(400, f"invalid_grant: {why}")
