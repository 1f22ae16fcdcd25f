"""What end-to-end tests share: a browser without a screen, which asks nothing of the network by itself."""

from pathlib import Path

import pytest

CHROMIUM = next(filter(Path.exists, map(Path, ("/usr/bin/chromium", "/usr/bin/google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: make setup")
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()
