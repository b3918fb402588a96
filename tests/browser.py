"""A real browser for tests: an installed Chrome or Chromium, or the one that `playwright install` fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")


def installed() -> str | None:
    """The path of an installed browser: $HUBPUB_TEST_BROWSER, else the first that is found."""
    found = (os.environ.get("HUBPUB_TEST_BROWSER"), *map(shutil.which, NAMES), str(MAC) if MAC.exists() else None)
    return next((path for path in found if path), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser. Where there is none, that is an error and no reason to skip a test: see .ci/browser."""
    with sync_playwright() as playwright:
        # A sandbox of its own needs rights that containers and root do not have; the pages are ours.
        running = playwright.chromium.launch(
            executable_path=installed(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()
