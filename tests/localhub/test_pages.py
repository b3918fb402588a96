"""The pages of a local Hub."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hubpub.localhub import LocalHub

from .conftest import noise
from .test_api import add, commit
from .test_server import ask

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def test_pages(hub: LocalHub, api: HfApi, repo: str) -> None:
    card = (
        "---\nlicense: mit\ntags: ['<b>tag</b>']\n---\n# Title <script>alert(1)</script>\n<!-- made -->\n"
        "[good](other.md) [bad](javascript:alert(1)) ![x](pic.png)\n\n<img src=x onerror=alert(1)>\n\n"
        "| a | b |\n|--|--|\n| 1 | 2 |\n"
    )
    commit(api, repo, {"README.md": card.encode(), "<i>.txt": b"<script>alert(2)</script>", "a.pte": noise(50_000)})
    api.create_tag(repo, tag="v1")
    api.create_commit(repo, [add("x.txt", b"x")], commit_message="<u>Propose</u>", create_pr=True)
    pages = [
        "/",
        f"/{repo}",
        f"/{repo}/tree/v1",
        f"/{repo}/commits/main",
        f"/{repo}/discussions",
        f"/{repo}/discussions/1",
    ]
    pages += [
        f"/{repo}/blob/main/%3Ci%3E.txt",
        f"/{repo}/commit/{api.model_info(repo).sha}",
        f"/{repo}/blob/main/a.pte",
    ]
    for path in [*pages, "/none/there", f"/{repo}/tree/none"]:
        page = ask(hub, "GET", path, token=None, Accept="text/html")
        assert page.status_code == (404 if "none" in path else 200), path
        assert page.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert not re.search(r"<(script|img src=x|b|i|u)\b|onerror=[^&]*>|href=\"javascript|https?://", page.text), path
    text = ask(hub, "GET", f"/{repo}", token=None).text
    assert f'href="/{repo}/resolve/main/other.md"' in text and "<td>1</td>" in text and "made" not in text
    style = ask(hub, "GET", "/_style.css", token=None)
    assert "prefers-color-scheme: dark" in style.text and "url(" not in style.text
    stored = ask(hub, "GET", f"/{repo}/resolve/main/%3Ci%3E.txt", token=None)
    assert (
        stored.headers["Content-Type"].startswith("text/plain")
        and "sandbox" in stored.headers["Content-Security-Policy"]
    )
