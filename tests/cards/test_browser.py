"""The preview and the local Hub in a real browser: live reload, errors, side by side, phones, dark mode, no scripts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import ROOT
from playwright.sync_api import Browser, Page, Request

from cards.conftest import put
from cards.sample import facts as sample
from hubpub.cards.preview import Preview
from hubpub.cards.render import golden_facts
from hubpub.cards.views import Sources
from hubpub.config import Project
from hubpub.localhub import LocalHub

E2B = "gemma-3n-E2B-it-pte"
HOSTILE = """---
license: gemma
tags: ["<script>window.hacked = 1</script>"]
---
# Hello

<script>window.hacked = 1</script>
<img src="x" onerror="window.hacked = 1">
<svg onload="window.hacked = 1"><script>window.hacked = 1</script></svg>
<a href="javascript:window.hacked = 1" id="trap">press me</a>
[press me too](javascript:window.hacked=1)
<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>
<style>body { display: none }</style>
<img src="https://example.com/pixel.png">
<base href="https://example.com/">
<meta http-equiv="refresh" content="0; url=https://example.com/">
</article></main><script src="/_script.js"></script>
"""


@pytest.fixture
def preview(mine: Project) -> Iterator[Preview]:
    with Preview(Sources(mine, "someone", golden_facts)) as running:
        yield running


@contextmanager
def page_of(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of its own, with nothing remembered from another."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(10_000)
    yield page
    context.close()


def until(page: Page, expression: str, argument: object = None) -> None:
    """Return when `expression` holds. The library's own waiting runs eval in the page, which our policy forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"{expression} ({argument}) never held"
        time.sleep(0.02)


def requests_of(page: Page) -> list[Request]:
    """Everything `page` asks for from now on."""
    asked: list[Request] = []
    # The library looks into what it is given, and a method of a list is nothing it can look into.
    page.on("request", lambda request: asked.append(request))  # noqa: PLW0108
    return asked


def seconds_until_shown(page: Page, text: str, save: Callable[[], object]) -> float:
    """How long after saving a file the open page says `text`, without being asked."""
    page.evaluate("document.documentElement.dataset.same = 'yes'")
    save()
    saved = time.monotonic()
    until(page, "text => document.body.innerText.includes(text)", text)
    seconds = time.monotonic() - saved
    # It was the same page all the while: a reload would have forgotten this.
    assert page.evaluate("document.documentElement.dataset.same") == "yes"
    return seconds


def test_saving_a_template_prose_or_facts_shows_within_a_second(
    browser: Browser, preview: Preview, mine: Project
) -> None:
    template = mine.templates_dir / "partials/speed.md.jinja"
    toml, facts = mine.cards_dir / E2B / "card.toml", mine.cards_dir / E2B / "facts.json"
    with page_of(browser) as page:
        page.goto(f"{preview.url}/card/{E2B}")
        until(page, "document.getElementById('state').textContent === 'live'")
        page.evaluate("scrollTo(0, 900)")
        spent = []
        for number in range(3):
            for path, old, new in (
                (template, "## Speed", f"## Round {number} of speed"),
                (toml, "Chat and text", f"Turn {number}: chat and text"),
                (facts, "Example CPU", f"Machine {number}, Example CPU"),
            ):
                text = path.read_text()
                shown = new.removeprefix("## ")
                save = partial(path.write_text, text.replace(old, new, 1))
                spent.append(seconds_until_shown(page, shown, save))
                path.write_text(text)
                until(page, "text => !document.body.innerText.includes(text)", shown)
        # A machine busy with other work may need longer once; the tool itself does not.
        assert min(spent[0::3]) < 1
        assert min(spent[1::3]) < 1
        assert min(spent[2::3]) < 1
        until(page, "scrollY === 900")


def test_an_error_names_file_and_line_and_goes_when_it_is_mended(
    browser: Browser, preview: Preview, mine: Project
) -> None:
    template = mine.templates_dir / "partials/speed.md.jinja"
    whole = template.read_text()
    with page_of(browser) as page:
        page.goto(f"{preview.url}/card/{E2B}")
        page.evaluate("scrollTo(0, 700)")
        template.write_text(whole.replace("## Speed", "## {{ sped }}"))
        page.get_by_role("alert").wait_for()
        said = page.get_by_role("alert").inner_text()
        assert "speed.md.jinja:1" in said
        assert "'sped' is undefined" in said
        assert "{{ sped }}" in page.locator("pre .here").inner_text()
        template.write_text(whole)
        page.get_by_role("alert").wait_for(state="detached")
        page.get_by_role("heading", name="Speed and memory").wait_for()
        until(page, "scrollY === 700")


def test_beside_what_is_published(browser: Browser, mine: Project, hub: LocalHub, tmp_path: Path) -> None:
    card = mine.cards[0]
    put(hub, mine, card, sample(mine, card, "v0.9.0"))
    path = card.folder / "card.toml"
    path.write_text(path.read_text().replace("Chat and text", "Stories and text"))
    with commanded("--hub", hub.url, "--namespace", hub.user, project=tmp_path) as url, page_of(browser) as page:
        page.goto(f"{url}/card/{card.folder.name}")
        page.get_by_role("link", name="Changes to the Hub").click()
        page.locator(".pair").wait_for()
        left, right = page.locator(".pair > section").all()
        assert "v0.9.0" in left.inner_text()
        assert "Chat and text" in left.inner_text()
        assert "Stories and text" in right.inner_text()
        boxes = [left.bounding_box(), right.bounding_box()]
        assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
        page.goto(f"{url}/card/{mine.cards[1].folder.name}/changes")
        assert "nothing is published yet" in page.locator("main").inner_text()


def test_a_hub_that_cannot_be_asked_is_a_line_on_the_page(browser: Browser, mine: Project, tmp_path: Path) -> None:
    folder = mine.cards[0].folder.name
    for arguments, says in (
        (("--hub", "http://127.0.0.1:9", "--namespace", "x"), "no connection"),
        ((), "there is no local Hub"),
    ):
        with commanded(*arguments, project=tmp_path) as url, page_of(browser) as page:
            page.goto(f"{url}/card/{folder}/changes")
            assert says in page.locator("main").inner_text()
            assert page.get_by_role("alert").count() == 0
            page.get_by_role("link", name="Card", exact=True).click()
            page.get_by_role("heading", name="Choose a file").wait_for()


def test_a_hostile_card_runs_nothing_and_fetches_nothing(
    browser: Browser, mine: Project, hub: LocalHub, tmp_path: Path
) -> None:
    card = mine.cards[0]
    repo = put(hub, mine, card, sample(mine, card, "v0.9.0"), readme=HOSTILE)
    with commanded("--hub", hub.url, "--namespace", hub.user, project=tmp_path) as url:
        for address in (
            f"{url}/card/{card.folder.name}/changes",
            f"{hub.url}/{repo}",
            f"{hub.url}/{repo}/blob/main/README.md",
        ):
            with page_of(browser) as page:
                asked = requests_of(page)
                page.goto(address)
                for trap in page.get_by_text("press me").all():
                    trap.click()
                # What got past the sanitizer would still meet the policy of the page.
                page.evaluate(
                    "const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
                    "document.body.append(s);"
                    "const i = new Image(); i.src = 'https://example.com/x.png'; document.body.append(i);"
                )
                page.wait_for_timeout(100)
                assert page.evaluate("window.hacked") is None
                assert page.url.partition("#")[0] == address
                assert page.locator("body").is_visible()
                assert page.locator("main").count() == 1
                assert page.locator("iframe, base, main style, main script").count() == 0
                # The image of another host is refused by the policy before anything leaves the machine.
                elsewhere = [one for one in asked if urlsplit(one.url).hostname not in {"127.0.0.1", None}]
                assert {one.failure for one in elsewhere} == {"csp"}


def test_a_phone_scrolls_down_and_never_sideways(
    browser: Browser, preview: Preview, mine: Project, hub: LocalHub
) -> None:
    repo = put(hub, mine, mine.cards[0], sample(mine, mine.cards[0]))
    pages = [preview.url + path for path in ("", f"/card/{E2B}", f"/card/{E2B}/source")]
    pages += [hub.url + path for path in ("", f"/{repo}", f"/{repo}/commits/main", f"/{repo}/blob/main/config.json")]
    with page_of(browser, viewport={"width": 360, "height": 740}, device_scale_factor=2, has_touch=True) as page:
        for address in pages:
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") == 360, address
        page.goto(f"{preview.url}/card/{E2B}")
        # The table of files scrolls within itself, and the recommended one is in sight of its figures.
        assert page.locator(".wide").first.evaluate("one => one.scrollWidth > one.clientWidth")
        page.get_by_role("link", name="Files", exact=True).click()
        until(page, "document.getElementById('files').getBoundingClientRect().top < 740")


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, preview: Preview, hub: LocalHub) -> None:
    def brightness(page: Page) -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    chart = "document.querySelector('picture img').currentSrc"
    with page_of(browser, color_scheme="dark") as page:
        page.goto(hub.url)
        assert brightness(page) < 60
        page.goto(f"{preview.url}/card/{E2B}")
        assert brightness(page) < 60
        assert page.evaluate(chart).endswith("choice-dark.svg")
        page.get_by_role("button", name="Switch between light and dark").click()
        assert brightness(page) > 200
        until(page, f"{chart}.endsWith('choice-light.svg')")
        assert page.evaluate("document.querySelector('picture img').naturalWidth") > 0


def test_the_right_file_is_in_sight_at_once(browser: Browser, preview: Preview, mine: Project) -> None:
    recommended = mine.cards[0].export.recommended
    with page_of(browser, viewport={"width": 1360, "height": 900}) as page:
        page.goto(f"{preview.url}/card/{E2B}")
        row = page.locator("tr", has_text="8da4w").first
        assert recommended in row.inner_text()
        box = row.bounding_box()
        assert box and box["y"] + box["height"] < 900
        assert {"GB", "%"} <= set(re.findall(r"GB|%", row.inner_text()))
        # On a phone all of the table is in sight.
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.locator(".wide").first.evaluate("one => one.scrollWidth - one.clientWidth") <= 0


@contextmanager
def commanded(*arguments: str, project: Path) -> Iterator[str]:
    """The address of `hubpub preview`, run as a command."""
    command = [sys.executable, "-m", "hubpub", "preview", "--port", "0", "--json", "--project", str(project)]
    with subprocess.Popen(
        [*command, "--work", str(project / "none"), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        try:
            yield json.loads(running.stdout.readline())["url"]
        finally:
            running.terminate()
