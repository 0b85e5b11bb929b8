"""JupyterLab, opened as a learner opens it, in headless Chromium.

`make test-browser` installs tests/browser/requirements.txt and runs these tests. `CHROMIUM` names
the browser; by default it is the first that this machine has, else Playwright's own.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--no-browser", "--LabApp.expose_app_in_browser=True", "--allow-root")
MINUTE = 60_000     # in milliseconds, as Playwright counts


@pytest.fixture(scope="session")
def browser():
    """A headless browser."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


class Lab:
    """A JupyterLab that `minids lab` starts, with folders of its own."""

    def __init__(self, folder: Path):
        self.work, self.log, self.process = folder / "work", folder / "lab.log", None
        self.environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT),
                            "MINIDS_WORK": str(self.work), "MINIDS_HOME": str(folder / "home")}

    def start(self, lesson: str) -> str:
        """Start it at a lesson ("07"), and return the address that it prints."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minids", "lab", lesson, *OPTIONS], env=self.environment,
                stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(rf"http://\S+/{lesson}_\S+", self.log.read_text("utf-8")):
                return found[0]
            time.sleep(0.3)
        raise AssertionError(f"no address of lesson {lesson} in\n{self.log.read_text('utf-8')}")

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.stop()


BOOK = "window.jupyterapp.shell.currentWidget"


class Notebook:
    """The notebook that is open in a page, driven through JupyterLab's own commands."""

    def __init__(self, page, address: str):
        self.page = page
        page.set_default_timeout(MINUTE)
        page.goto(address)
        page.wait_for_function(f"{BOOK.replace('.', '?.')}?.content?.widgets?.length > 5",
                               timeout=3 * MINUTE)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(f"{BOOK}.sessionContext.session?.kernel?.status === 'idle'",
                                    timeout=3 * MINUTE)

    def command(self, name: str) -> None:
        """Run one of JupyterLab's commands to its end."""
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def run_all(self) -> None:
        """Run all cells, and wait for the last one."""
        self.command("notebook:run-all-cells")
        self.wait_until_idle()
        self.page.wait_for_timeout(1000)

    def ids(self, where: str) -> list[str]:
        """The ids of the code cells for which a JavaScript condition on their `source` holds."""
        return self.page.evaluate(
            f"() => {BOOK}.content.widgets.filter(cell => cell.model.type === 'code')"
            ".filter(cell => { const source = cell.model.sharedModel.source; return "
            f"{where} }}).map(cell => cell.model.id)")

    def source(self, cell: str) -> str:
        return self.page.evaluate(
            f"id => {BOOK}.content.widgets.find(cell => cell.model.id === id)"
            ".model.sharedModel.source", cell)

    def errors(self) -> list[str]:
        """The names of all errors in outputs."""
        return self.page.evaluate(
            f"() => {BOOK}.content.widgets.filter(cell => cell.model.type === 'code')"
            ".flatMap(cell => cell.model.outputs.toJSON())"
            ".filter(output => output.output_type === 'error').map(output => output.ename)")

    def select(self, cell: str):
        """Make a cell the active one, scroll to it, and return its element."""
        self.page.evaluate(
            f"async id => {{ const book = {BOOK}.content;"
            " const i = book.widgets.findIndex(cell => cell.model.id === id);"
            " book.activeCellIndex = i; await book.scrollToItem(i, 'start') }", cell)
        self.page.wait_for_timeout(800)
        return self.page.locator(".jp-Notebook-cell.jp-mod-active")

    def write(self, cell: str, text: str) -> None:
        """Replace a cell's text with the keyboard, and run it."""
        self.select(cell).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(1000)
        self.wait_until_idle()

    def save_and_shut_down(self) -> None:
        self.command("docmanager:save")
        self.page.evaluate(f"() => {BOOK}.sessionContext.shutdown()")


@pytest.fixture
def open_notebook(browser):
    """A function that opens an address in a window of 1366 x 768 pixels."""
    pages = []

    def open_notebook(address: str) -> Notebook:
        pages.append(browser.new_page(viewport={"width": 1366, "height": 768}))
        return Notebook(pages[-1], address)
    yield open_notebook
    for page in pages:
        page.close()
