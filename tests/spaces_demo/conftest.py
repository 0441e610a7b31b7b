"""The demo Space served on this machine, and visitors in a headless Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
APP = Path(__file__).parents[2] / "spaces_demo" / "app.py"
START_S, WAIT_MS = 120, 30_000  # a busy machine takes its time; nothing waits so long without need
# what a browser says of requests that it breaks off itself: a page is left, or a test takes its context offline
BROKEN_OFF = ("AbortError", "Connection errored out", "ERR_ABORTED", "Failed to fetch", "ERR_INTERNET_DISCONNECTED")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Space that this machine serves to itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("space") / "log"
    variables = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, APP], env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/gradio_api/info", timeout=5).close()
                break
            except OSError:
                process_wait(process)
        else:
            pytest.fail(f"the Space did not start:\n{log.read_text()}")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def process_wait(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment for the server, or until it ends."""
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with pytest.importorskip("playwright.sync_api").sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(server: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the Space as a visitor of its own; at the end, what their console and their requests say is judged."""
    contexts, faults = [], []

    def open_page(query: str = "", address: str = "", **settings: Any) -> Any:
        size = settings.pop("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(viewport=size, accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        watch(page, faults)
        page.goto(address or f"{server}/{query}")
        page.wait_for_selector("turn-player svg, shop-page", state="attached")
        return page

    open_page.faults = faults  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def watch(page: Any, faults: list[str]) -> None:
    """Write down console errors, failed scripts and requests to anywhere else, which are broken off."""

    def judge(route: Any) -> None:
        if route.request.url.startswith("http://127.0.0.1:"):
            route.continue_()
        else:
            faults.append(f"request to {route.request.url}")
            route.abort()

    def read(message: Any) -> None:
        if message.type == "error" and not any(word in message.text for word in BROKEN_OFF):
            faults.append(f"console: {message.text}")

    page.route("**/*", judge)
    page.on("console", read)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
