"""The page that runs the file of all widths in a browser: its predictions are onnxruntime's, and nothing leaves the machine."""

import base64
import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.toys import ROOT

PAGE = ROOT / "docs" / "demo"


@pytest.fixture(scope="module")
def about() -> dict:
    return json.loads((PAGE / "digits.json").read_text())


@pytest.fixture(scope="module")
def predicted(about) -> list[list[int]]:
    """What onnxruntime reads in the page's images at every width, here."""
    import onnxruntime

    pixels = np.frombuffer(base64.b64decode(about["pixels"]), dtype=np.uint8).reshape(-1, *about["shape"])
    images = (pixels.astype(np.float32) / np.float32(about["white"]) - np.float32(about["mean"])) / np.float32(
        about["std"]
    )
    session = onnxruntime.InferenceSession(str(PAGE / about["file"]), providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"images": images, "bits": np.array(int(bits))})[0] for bits in about["widths"]]
    return [logits.argmax(1).tolist() for logits in runs]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The page's folder with the runtime that npm brings."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, which brings onnxruntime-web: install Node.js")
    folder = tmp_path_factory.mktemp("site") / "demo"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules"))
    kept = PAGE / "node_modules"
    if kept.is_dir():
        (folder / "node_modules").symlink_to(kept)
        return folder
    command = ["npm", "install", "--prefix", str(folder), "--no-package-lock", "--no-audit", "--no-fund"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot bring onnxruntime-web: {done.stderr.strip().splitlines()[-1]}")
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser, address):
    """The page, once it has measured everything; what it asked for, and what went wrong, in `asked` and `told`."""
    opened = browser.new_page(viewport={"width": 390, "height": 800})
    opened.asked, opened.told = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on(
        "console", lambda message: opened.told.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: opened.told.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#bits:enabled", timeout=120_000)
    yield opened
    opened.close()


def test_the_file_is_the_one_that_its_description_names(about):
    content = (PAGE / about["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == about["sha256"] and len(content) == about["bytes"]
    assert about["command"].startswith("snakemake") and not about["commit"].endswith("+")


def test_a_browser_predicts_what_python_predicts_at_every_width(page, about, predicted):
    found = json.loads(page.evaluate("document.documentElement.dataset.predictions"))
    assert len(found) == len(about["widths"]) > 1 and found == predicted
    for row, classes in zip(page.locator("#widths tr").all(), predicted, strict=True):
        _, share, count, ms = row.locator("td").all_inner_texts()
        correct = sum(a == b for a, b in zip(classes, about["labels"], strict=True))
        assert count == f"{correct} of {len(classes)}" and share == f"{100 * correct / len(classes):.2f} %"
        assert float(ms) > 0


def test_the_slider_chooses_a_width(page, about, predicted):
    seen = []
    for number, width in enumerate(about["widths"].values()):
        page.locator("#bits").fill(str(number))
        assert width in page.locator("#chosen").inner_text()
        assert page.locator("tr[aria-current=true] td").first.inner_text() == width
        correct = sum(a == b for a, b in zip(predicted[number], about["labels"], strict=True))
        assert f" {correct} of {len(about['labels'])} " in page.locator("#status").inner_text()
        seen.append(page.locator("#digits figcaption").all_inner_texts())
    assert len({tuple(texts) for texts in seen}) > 1, "no image on the page tells two widths apart"


def test_nothing_leaves_the_machine_and_nothing_goes_wrong(page, address):
    page.locator("#bits").fill("0")
    assert page.told == []
    assert len(page.asked) > 4 and all(url.startswith((address, "data:", "blob:")) for url in page.asked)


def test_it_fits_a_phone(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_without_the_runtime_it_says_what_to_do(browser, site, tmp_path):
    shutil.copytree(site, tmp_path / "bare", ignore=shutil.ignore_patterns("node_modules"))
    handler = functools.partial(Quiet, directory=str(tmp_path / "bare"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{server.server_port}/")
        opened.get_by_text("make demo").wait_for(timeout=30_000)
        opened.close()
        server.shutdown()
