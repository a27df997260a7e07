"""A notebook as a person sees it: JupyterLab in Chromium, on this machine only, in throw-away folders.

Importing this module skips the tests of the importing module where there is no playwright or no Chromium::

    with lab(tmp_path) as open_notebook:
        page = open_notebook(["import claudescale as cs; cs.models()"])
        page.run(0)
        assert "claude" in page.text_of(0)
        page.output(0).get_by_role("button", name="Stop").click()     # any Playwright locator
        reader = open_notebook(page.save(), kernel=False)             # untrusted, as a reader opens it
        assert page.problems() == []
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

_NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
if CHROMIUM is None:
    pytest.skip("the browser tests need Chromium or Chrome", allow_module_level=True)

from playwright.sync_api import sync_playwright  # noqa: E402 - only where it is installed

START_SECONDS, CELL_SECONDS = 120, 120
_HERE = {"127.0.0.1", "localhost", None}
_NO_KERNEL = "none-is-started"
_TOO_EARLY = "No such comm target registered: jupyter.widget.control"
_BUSY = "Dataflow already running"  # Vega, of a slow page: what came too soon is drawn with what comes next
_TRACKER = "@jupyterlab/notebook-extension/tracker"
_SETTINGS = {
    _TRACKER: {"windowingMode": "none", "scrollPastEnd": False},  # cells out of sight are drawn too
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": False},
}
_FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"]
_PANEL = "window.jupyterapp?.shell?.currentWidget"
_KERNEL = f"{_PANEL}.context.sessionContext.session?.kernel"
_LISTEN = """() => {
    window.heard = [];
    window.opened = [];
    window.ended = {};
    window.jupyterapp.shell.currentWidget.context.sessionContext.iopubMessage.connect((_, message) => {
        const parent = (message.parent_header || {}).msg_type, content = message.content;
        if (message.header.msg_type === 'comm_open') window.opened.push(content.comm_id);
        if (parent === 'execute_request') return;  // shown below its cell
        if (message.header.msg_type === 'error') window.heard.push(`${content.ename}: ${content.evalue}`);
        if (content.name === 'stderr') window.heard.push(content.text);
    });
}"""
_RUN = """index => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.deselectAll();
    notebook.activeCellIndex = index;
    window.ended[index] = false;
    window.jupyterapp.commands.execute('notebook:run-cell').finally(() => { window.ended[index] = true; });
}"""
_ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap((cell, index) =>
    (cell.model.toJSON().outputs || []).filter(output => output.output_type === 'error')
        .map(output => `cell ${index}: ${output.ename}: ${output.evalue}`))"""


@contextmanager
def lab(folder):
    """Start one JupyterLab and one Chromium, give what opens notebooks in them, and end both.

    What is given takes the code cells of a new notebook, or the path of a saved one, and returns its `Page`;
    the kernel runs in `folder`. Without a `kernel` it is opened as by somebody who got the file: not trusted.
    """
    with ExitStack() as stack:
        home, url = stack.enter_context(_server(folder))
        chromium = stack.enter_context(sync_playwright()).chromium
        flags = [*_FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
        browser = chromium.launch(executable_path=CHROMIUM, args=flags)
        stack.callback(browser.close)

        def open_notebook(source, *, theme="light", width=900, kernel=True):
            path = _notebook(source, folder, kernel=kernel)
            _set(home, theme, kernel=kernel)
            size = {"width": width, "height": 1000}
            context = browser.new_context(viewport=size, color_scheme=theme, locale="en-US")
            page = Page(context.new_page(), path)
            page.open(url.format(path.name), kernel=kernel)
            return page

        yield open_notebook


class Page:
    """One notebook, open in JupyterLab: `page` is Playwright's, `path` the file."""

    def __init__(self, page, path):
        self.page = page
        self.path = path
        self._problems = []

    def open(self, url, *, kernel):
        page = self.page
        page.set_default_timeout(30_000)
        page.route("**/*", self._only_here)
        page.on("websocket", lambda one: self._is_here(one.url) or self._problems.append(f"asked {one.url}"))
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._problems.append(f"uncaught: {error}"))
        page.goto(url, wait_until="domcontentloaded", timeout=START_SECONDS * 1_000)
        self._until(f"() => {_PANEL}?.content?.widgets && {_PANEL}.context.isReady", START_SECONDS)
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        if not kernel:
            return
        self._until(f"() => {_KERNEL}?.status === 'idle'", START_SECONDS)
        page.evaluate(_LISTEN)

    def run(self, cell):
        """Run one cell (the first is 0), and return when it has ended."""
        self.page.evaluate(_RUN, cell)
        self._until(f"() => window.ended[{cell}]", CELL_SECONDS)

    def output(self, cell):
        """Return the Playwright locator of what a cell shows."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputWrapper")

    def text_of(self, cell):
        """Return what a cell shows, as text."""
        return self.output(cell).inner_text()

    def wait_for(self, cell, text):
        """Return when a cell shows `text`."""
        self.output(cell).get_by_text(text).first.wait_for(timeout=CELL_SECONDS * 1_000)

    def save(self):
        """Save the notebook, and return its path."""
        self._until(f"() => {_PANEL}.context.save().then(() => true)", CELL_SECONDS)
        return self.path

    def problems(self):
        """Return what went wrong: errors of cells, callbacks and scripts; requests to other machines."""
        self._problems += self.page.evaluate(_ERRORS)
        heard, opened = self.page.evaluate("() => [(window.heard || []).splice(0), window.opened || []]")
        lines = [line for text in heard for line in text.splitlines()]
        self._problems += [line for line in lines if not _is_too_early(line, opened)]
        return list(dict.fromkeys(self._problems))

    def _until(self, condition, seconds):
        self.page.wait_for_function(condition, timeout=seconds * 1_000)

    @staticmethod
    def _is_here(url):
        return urlsplit(url).hostname in _HERE

    def _only_here(self, route):
        if self._is_here(route.request.url):
            route.continue_()
        else:
            self._problems.append(f"asked {route.request.url}")
            route.abort()

    def _said(self, message):
        if message.type == "error" and _BUSY not in message.text:
            self._problems.append(f"console: {message.text} {message.location.get('url', '').split('?')[0]}")


def _is_too_early(line, opened):
    """Whether the kernel says that it does not know a comm which it never opened (ipywidgets issue 3525)."""
    unknown = line.removeprefix("No such comm: ")
    return line == _TOO_EARLY or (unknown != line and unknown not in opened)


def _notebook(source, folder, *, kernel):
    """Write the notebook to open, and return its path."""
    if isinstance(source, Path):
        notebook = nbformat.read(source, as_version=4)
        path = folder / f"{source.stem}-again.ipynb"
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in source])
        path = folder / f"notebook-{secrets.token_hex(3)}.ipynb"
    name = "python3" if kernel else _NO_KERNEL
    notebook.metadata["kernelspec"] = {"name": name, "display_name": name, "language": "python"}
    nbformat.write(notebook, path)
    return path


def _set(home, theme, *, kernel):
    """Write down what the next page is to look like: JupyterLab reads its settings whenever it is loaded."""
    settings = {name: dict(value) for name, value in _SETTINGS.items()}
    settings[_TRACKER]["autoStartDefaultKernel"] = kernel
    settings["@jupyterlab/apputils-extension/themes"] = {
        "theme": f"JupyterLab {theme.title()}",
        "adaptive-theme": False,
    }
    for name, value in settings.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))


@contextmanager
def _server(folder):
    """Serve a folder; give JupyterLab's own one, and the address that opens a notebook."""
    home = folder / ".jupyter"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    places = {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")}
    places |= {f"JUPYTERLAB_{name.upper()}_DIR": str(home / name) for name in ("settings", "workspaces")}
    token = secrets.token_hex(16)
    environment = {**clean, **places, "IPYTHONDIR": str(home / "ipython"), "JUPYTER_TOKEN": token}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--ServerApp.ip=127.0.0.1 --ServerApp.port={port} --ServerApp.port_retries=0 --no-browser "
        "--allow-root --LabApp.expose_app_in_browser=True --LabApp.extension_manager=readonly "
        "--ServerApp.use_redirect_file=False"
    )
    command = [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder}"]
    home.mkdir()
    log = home / "server.log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            _answers(port, server, log)
            yield home, f"http://127.0.0.1:{port}/doc/tree/{{}}?token={token}&reset"
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _answers(port, server, log):
    """Return when the server can be connected to."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not start:\n" + log.read_text()[-2_000:])
