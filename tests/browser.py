"""A notebook as a person sees it: JupyterLab in Chromium, on this machine only, in temporary folders.

Importing this module skips the tests of the importing module if there is no Chromium::

    with lab(tmp_path) as open_notebook:
        page = open_notebook(["import claudescale as cs; cs.models()"])
        page.run(0)
        page.output(0).get_by_role("button", name="Stop").click()     # any Playwright locator
        reader = open_notebook(page.save(), kernel=False)             # untrusted, as a reader opens it
        assert page.problems() == []
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from jupyter_server.serverapp import list_running_servers
from playwright.sync_api import sync_playwright

_NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
if CHROMIUM is None:
    pytest.skip("the browser tests need Chromium or Chrome", allow_module_level=True)

MOST_SECONDS = 120
_NO_KERNEL = "none-is-started"
_BUSY = "Dataflow already running"  # Vega on a slow page: what arrived too early comes with the next update
_TRACKER = "@jupyterlab/notebook-extension/tracker"
_LOOK = {"windowingMode": "none", "scrollPastEnd": False}  # cells out of sight are drawn too
_SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": False},
}
_SERVER = (
    "--ServerApp.ip=127.0.0.1 --ServerApp.use_redirect_file=False --no-browser --allow-root "
    "--LabApp.expose_app_in_browser=True --LabApp.extension_manager=readonly"
)
_FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"]
_PANEL = "window.jupyterapp?.shell?.currentWidget"
_KERNEL = f"{_PANEL}.context.sessionContext.session?.kernel"
_RUN = """index => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = index;
    window.ended = false;
    window.jupyterapp.commands.execute('notebook:run-cell').finally(() => { window.ended = true; });
}"""
_ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap((cell, index) =>
    (cell.model.toJSON().outputs || []).filter(output => output.output_type === 'error')
        .map(output => `cell ${index}: ${output.ename}: ${output.evalue}`))"""


@contextmanager
def lab(folder):
    """Start one JupyterLab and one Chromium, yield a function that opens notebooks in them, and end both.

    The function takes the code cells of a new notebook, or the path of a saved one, and returns its `Page`;
    the kernel runs in `folder`. Without a `kernel` it opens untrusted, as for a person who received the file.
    """
    flags = [*_FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with _server(folder) as (home, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)

        def open_notebook(source, *, theme="light", width=900, kernel=True):
            path = _notebook(source, folder, kernel=kernel)
            _set(home, theme, kernel=kernel)
            size = {"width": width, "height": 1000}
            context = browser.new_context(viewport=size, color_scheme=theme, locale="en-US")
            return Page(context.new_page(), path, url.format(path.name), kernel=kernel)

        yield open_notebook
        browser.close()


class Page:
    """One notebook, open in JupyterLab: `page` is Playwright's, `path` the file."""

    def __init__(self, page, path, url, *, kernel):
        self.page, self.path, self._problems = page, path, []
        page.set_default_timeout(MOST_SECONDS * 1_000)
        page.route("**/*", self._only_here)
        page.on("websocket", lambda socket: self._is_here(socket.url))
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._problems.append(f"uncaught: {error}"))
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_function(f"() => {_PANEL}?.content?.widgets && {_PANEL}.context.isReady")
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        if kernel:
            page.wait_for_function(f"() => {_KERNEL}?.status === 'idle'")

    def run(self, cell):
        """Run one cell (the first is 0), and return when it has ended."""
        self.page.evaluate(_RUN, cell)
        self.page.wait_for_function("() => window.ended")

    def output(self, cell):
        """Return the Playwright locator of a cell's output."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputWrapper")

    def wait_for(self, cell, text):
        """Return when a cell shows `text`."""
        self.output(cell).get_by_text(text).first.wait_for()

    def save(self):
        """Save the notebook and return its path."""
        self.page.wait_for_function(f"() => {_PANEL}.context.save().then(() => true)")
        return self.path

    def problems(self):
        """Return the problems: errors of cells and scripts, and requests to other machines."""
        return self._problems + self.page.evaluate(_ERRORS)

    def _is_here(self, url):
        if urlsplit(url).hostname in {"127.0.0.1", "localhost", None}:
            return True
        self._problems.append(f"asked {url}")
        return False

    def _only_here(self, route):
        if self._is_here(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _hear(self, message):
        if message.type == "error" and _BUSY not in message.text:
            self._problems.append(f"console: {message.text} {message.location.get('url', '').split('?')[0]}")


def _notebook(source, folder, *, kernel):
    """Write the notebook to open and return its path."""
    if isinstance(source, Path):
        notebook = nbformat.read(source, as_version=4)
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in source])
    name = "python3" if kernel else _NO_KERNEL
    notebook.metadata["kernelspec"] = {"name": name, "display_name": name, "language": "python"}
    path = folder / f"notebook-{secrets.token_hex(3)}.ipynb"
    nbformat.write(notebook, path)
    return path


def _set(home, theme, *, kernel):
    """Write the settings of the next page: JupyterLab reads them on every page load."""
    settings = _SETTINGS | {
        "@jupyterlab/apputils-extension/themes": {"theme": f"JupyterLab {theme.title()}"},
        _TRACKER: _LOOK | {"autoStartDefaultKernel": kernel},
    }
    for name, value in settings.items():
        file = home / ".jupyter/lab/user-settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


@contextmanager
def _server(folder):
    """Serve a folder; yield JupyterLab's own home and the address that opens a notebook."""
    home = folder / "home"
    home.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    command = [sys.executable, "-m", "jupyterlab", *_SERVER.split(), f"--ServerApp.root_dir={folder}"]
    with (
        (home / "server.log").open("wb") as log,
        subprocess.Popen(command, env={**clean, "HOME": str(home)}, stdout=log, stderr=log) as server,
    ):
        try:
            until = time.monotonic() + MOST_SECONDS
            while not (running := [*list_running_servers(home / ".local/share/jupyter/runtime")]):
                assert time.monotonic() < until, (home / "server.log").read_text()[-2_000:]
                time.sleep(0.1)
            url, token = running[0]["url"], running[0]["token"]
            yield home, f"{url}doc/tree/{{}}?token={token}&reset"
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
