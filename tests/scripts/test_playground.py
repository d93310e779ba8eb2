"""The playground in a real browser, and how it refuses to start."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from lambda24.sampling.pipeline import Pipeline
from lambda24.sampling.playground.uploads import fit_square, open_upload
from lambda24.scripts import playground
from tests.sampling.tiny_pipeline import tiny_pipeline

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 120_000  # milliseconds; only waited for when something is wrong
WATCH = """() => {
    window.seen = [];
    const node = document.querySelector("#generate-status");
    new MutationObserver(() => window.seen.push(node.innerText)).observe(
        node, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(names=("cat", "dog", "frog", "horse"))


@pytest.fixture(scope="module")
def browsers() -> ModuleType:
    """Playwright, where there is also something to be driven by it."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture
def address(browsers: ModuleType, pipeline: Pipeline, tmp_path: Path) -> Iterator[str]:
    """A server in a process of its own; it stops when told and leaves no files."""
    pipeline.save_pretrained(tmp_path / "model")
    log, temporary = tmp_path / "log.txt", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "scripts/playground.py", str(tmp_path / "model"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            deadline = time.monotonic() + PATIENCE / 1000
            while "playground: " not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield log.read_text().split("playground: ")[1].strip()
        finally:
            server.terminate()
        assert server.wait(60) == 0, log.read_text()
    assert not list(temporary.glob("playground-*"))


def test_generate_fail_generate_reconstruct_edit(
    browsers: ModuleType, address: str, pipeline: Pipeline, tmp_path: Path
):
    notes, given = tmp_path / "notes.png", tmp_path / "given.png"
    notes.write_text("no image")
    Image.effect_noise((40, 30), 90).save(given)
    outside = []
    with (
        browsers.sync_playwright() as play,
        play.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: outside.append(request.url))
        page.goto(address)
        status = page.locator("#generate-status")
        images = page.locator("#generate-images img")
        start = page.get_by_role("button", name="Generate", exact=True)
        start.wait_for()

        def expect_text(locator, text: str) -> None:
            browsers.expect(locator).to_contain_text(text, timeout=PATIENCE)

        page.evaluate(WATCH)
        page.get_by_label("Seeds").first.fill("3, 8")
        start.click()
        expect_text(status, "2 of class cat, done")
        seen = [text for text in page.evaluate("window.seen") if "scale" in text]
        scales = [int(text.split("scale ")[1][0]) for text in seen]
        assert scales  # a busy browser may show two updates at once
        assert scales == sorted(scales)
        for caption in ("1 x 1", "2 x 2", "4 x 4"):
            expect_text(page.locator("#generate-steps"), caption)
        browsers.expect(images).to_have_count(2, timeout=PATIENCE)
        body = page.request.get(images.nth(1).get_attribute("src")).body()
        with Image.open(io.BytesIO(body)) as image:
            assert image.tobytes() == pipeline(["cat"], [8])[0].tobytes()

        page.get_by_label("temperature").first.fill("-1")
        start.click()
        page.get_by_text("temperature must be positive, got -1").wait_for()
        page.get_by_label("temperature").first.fill("1")
        page.get_by_label("Seeds").first.fill("4")
        start.click()
        expect_text(status, "1 of class cat, done")
        browsers.expect(images).to_have_count(1, timeout=PATIENCE)

        page.get_by_role("tab", name="Reconstruct").click()
        file = page.locator("#reconstruct-upload input[type=file]")
        file.set_input_files(notes)
        page.get_by_text("notes.png is not an image").wait_for()
        page.locator("#reconstruct-upload").get_by_label("Clear").click()
        file.set_input_files(given)
        expect_text(page.locator("#reconstruct-summary"), "21 tokens, 131 bits")
        expect_text(page.locator("#reconstruct-prefixes"), "to 2 x 2: 31 bits")

        page.get_by_role("tab", name="Edit").click()
        page.locator("#edit-upload input[type=file]").set_input_files(given)
        page.get_by_label("Seeds").nth(1).fill("5")
        page.locator("#edit-start").click()
        expect_text(page.locator("#edit-status"), "kept the first 1 scales, then everything drawn")
        edited = page.locator("#edit-images img")
        browsers.expect(edited).to_have_count(1, timeout=PATIENCE)
        body = page.request.get(edited.first.get_attribute("src")).body()
        expected = pipeline.edit([fit_square(open_upload(given), 16)], ["cat"], [5], keep_scales=1)
        with Image.open(io.BytesIO(body)) as image:
            assert image.tobytes() == expected[0].tobytes()
    assert outside, "requests were not watched"
    assert [url for url in outside if not url.startswith((address, "blob:", "data:"))] == []


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(playground, "gr", None)
    with pytest.raises(ValueError, match=r'pip install "lambda24\[web\]"'):
        playground.main([str(tmp_path)])


def test_a_port_in_use_and_a_folder_without_models_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(playground, "gr", object())
    with socket.socket() as other:
        other.bind((playground.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port} cannot be used"):
            playground.main([str(tmp_path), "--port", str(port)])
    with pytest.raises(ValueError, match="not a pipeline folder"):
        playground.main([str(tmp_path), "--port", "0"])
