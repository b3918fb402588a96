"""No secret in anything a command prints: messages, hints, tracebacks, JSON, annotations, and what is logged."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Ran

from hubpub.errors import HubError
from hubpub.hub.client import Client, Retry
from hubpub.redaction import redact

# What a message may hold, and the part of it that nobody may read.
SECRETS = {
    "a token": ("no rights for hf_AbCdEfGhIjKlMnOp", "AbCdEfGhIjKlMnOp"),
    "a token of an app": ("no rights for hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIi.c2ln-na_t", "c2ln-na_t"),
    "a token of another kind": ("no rights for hf_deploy_0123abcd4567efgh", "4567efgh"),
    "an organisation's token": ("no rights for api_org_AbCdEfGhIj", "AbCdEfGhIj"),
    "GitHub's token": ("fetching with ghs_0123456789abcdefABCD failed", "0123456789abcdefABCD"),
    "a JSON web token": ("assertion eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc expired", "eyJzdWIiOiIx"),
    "a user and a password": ("cannot reach https://bob:s3cret@host.example/api", "s3cret"),
    "a password with a slash": ("cannot reach https://bob:s3/cr@et@host.example/api", "s3/cr"),
    "a user alone": ("cannot reach https://0123456789token@host.example/api", "0123456789token"),
    "basic": ("the proxy refused Basic Ym9iOnMzY3JldA==", "Ym9iOnMzY3JldA"),
    "bearer": ("the proxy refused Bearer opaque.thing-1", "opaque.thing-1"),
    "a header": ("sent Authorization: Digest nonce0123", "nonce0123"),
    "a header in JSON": ('sent {"authorization": "Custom 0123abc"}', "0123abc"),
    "a cookie": ("sent Cookie: token=abcdef0123; other=1", "abcdef0123"),
    "Amazon's signature": ("GET https://s3.example/x?X-Amz-Signature=0af1&part=1", "0af1"),
    "Amazon's session": ("GET https://s3.example/x?a=1&X-Amz-Security-Token=FwoG%2Bx", "FwoG"),
    "Google's signature": ("GET https://storage.example/x?X-Goog-Signature=9c0ffee&part=1", "9c0ffee"),
    "Google's credential": ("GET https://storage.example/x?X-Goog-Credential=me%40project", "me%40project"),
    "a shared access signature": ("GET https://blob.example/x?sv=1&sig=q%2Bz0123", "q%2Bz0123"),
    "CloudFront's": ("GET https://cdn.example/x?Policy=eyJTdGF0ZW1&Signature=Zm9v&Key-Pair-Id=K2AB", "K2AB"),
    "a token in an address": ("GET https://hub.example/x?token=plain0123&a=1", "plain0123"),
    "a field of JSON": ('answered {"access_token": "plain0123", "expires_in": 3600}', "plain0123"),
    "a variable": ("HF_TOKEN=plain0123 was set", "plain0123"),
    "a password": ("tried password: hunter2 first", "hunter2"),
}
TOKEN = "hf_" + "Secret" * 5


class Answers(BaseHTTPRequestHandler):
    """A Hub that refuses everything, in the words of `message`."""

    message = ""
    status = 400

    def do_GET(self) -> None:
        data = json.dumps({"error": self.message}).encode()
        self.send_response(self.status)
        self.send_header("X-Error-Message", self.message)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def refusing(message: str, status: int = 400) -> Iterator[str]:
    handler = type("Handler", (Answers,), {"message": message, "status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", SECRETS)
def test_every_kind_is_hidden_and_nothing_else(kind: str) -> None:
    text, secret = SECRETS[kind]
    shown = redact(text)
    assert secret not in shown and "[hidden]" in shown
    assert shown.split()[0] == text.split()[0] or kind == "a variable"
    assert redact(shown) == shown
    assert "host.example" in shown or "host.example" not in text


@pytest.mark.parametrize(
    "text",
    [
        "look at https://huggingface.co/google/gemma-3n-E2B-it/tree/main?recursive=true",
        "http://127.0.0.1:8765/someone/gemma@v1.0.0 answers 404",
        "the token has no rights: set HF_TOKEN to a token with write access",
        "wrote tokenizer.json, 512 tokens, eos_token_id: 106",
        "Basic Authentication and basic arithmetic, hf_transfer, hf_hub_download and hf_xet",
        "gemma-3n-E2B-it/8da4w: sha256 0a1b2c3d",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert redact(text) == text


# One process for several command lines: each line of its own, and what it came to.
SEVERAL = """
import contextlib, io, json, sys
from hubpub.cli import main
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def several(lines: list[list[str]], work: Path, **env: str) -> list[Ran]:
    """Run command lines one after the other in a process that begins with the variables `env`."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps([[*line, "--work", str(work)] for line in lines])],
        cwd=ROOT, env={**os.environ, "HF_TOKEN": TOKEN, **env}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Nothing goes by another way than what a command prints.
    assert done.stderr == ""
    return [Ran(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("flags", [[], ["--verbose", "--json"]])
def test_no_secret_of_a_hub_s_answer_is_printed(flags: list[str], tmp_path: Path) -> None:
    told = [text for text, _ in SECRETS.values()]
    with ExitStack() as hubs:
        # A long message is cut: the kinds are told a few at a time.
        texts = ["; ".join(told[first : first + 5]) for first in range(0, len(told), 5)]
        urls = [hubs.enter_context(refusing(text, 403 if flags else 400)) for text in texts]
        lines = [["status", "--hub", url, "--namespace", "someone", *flags] for url in urls]
        answers = several(lines, tmp_path, GITHUB_ACTIONS="true", HF_DEBUG="1")
    assert len(answers) == len(texts)
    for ran in answers:
        assert ran.code in {9, 10}
        assert "::error " in ran.err
        assert "[hidden]" in (ran.json["error"] if flags else ran.err)
        for _, secret in SECRETS.values():
            assert secret not in ran.out + ran.err
        assert "Secret" not in ran.out + ran.err


@pytest.mark.parametrize("by", ["option", "variable"])
@pytest.mark.parametrize("address", ["https://bob:s3cret@host.example", "https://bob:s3/cret@host.example"])
def test_an_address_with_a_password_is_refused_and_not_repeated(by: str, address: str, tmp_path: Path) -> None:
    # An option says which Hub is meant; where it may be left out, so does the variable.
    if by == "option":
        lines, given = [["status"], ["release", "--all", "--version", "v1.0.0"]], {}
        lines = [[*line, "--hub", address] for line in lines]
    else:
        lines, given = [["doctor"], ["pin"]], {"HF_ENDPOINT": address}
    answers = several([[*line, "--json", "--verbose"] for line in lines], tmp_path, **given)
    assert len(answers) == 2
    for ran in answers:
        assert ran.code != 0
        for secret in ("s3cret", "s3/cret", "bob", "Secret"):
            assert secret not in ran.out + ran.err


def test_what_the_library_logs_is_clean(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = "GET https://storage.example/x?X-Goog-Signature=9c0ffee with Basic Ym9iOnMzY3JldA=="
    with refusing(text, 503) as url, pytest.raises(HubError) as caught:
        Client(url, TOKEN, retry=Retry(attempts=2, first=0.01)).refs("a/b")
    # What other packages log is theirs, and reaches nobody who does not ask for it.
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hubpub")]
    assert ours
    for shown in (*ours, str(caught.value), repr(caught.value)):
        assert "9c0ffee" not in shown and "Ym9iOnMzY3JldA" not in shown and "Secret" not in shown


def test_an_error_is_clean_from_the_moment_it_is_made() -> None:
    error = HubError("https://bob:s3cret@host refused", "try hf_AbCdEfGhIjKlMnOp")
    assert "s3cret" not in f"{error!r} {error} {error.message} {error.args}"
    assert "AbCdEfGh" not in str(error.hint)


def test_secrets_are_hidden() -> None:
    Client("http://127.0.0.1:1", "plain-local-secret")
    text = redact(
        "hf_abcdefghijkl Bearer xyz plain-local-secret https://s3/x?X-Amz-Signature=0af&a=1&token=q "
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc"
    )
    for secret in ("abcdefghijkl", "xyz", "plain-local", "0af", "=q", "eyJzdWIi"):
        assert secret not in text
    assert "a=1" in text
