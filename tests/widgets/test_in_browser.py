"""A picker and a watched run as a person sees them in JupyterLab: one session, saved and reopened once."""

import json
import os
import shutil
import subprocess
import sys
import time

import nbformat
import pytest
from jupyter_server.serverapp import list_running_servers
from playwright.sync_api import sync_playwright

SETUP = """import polars as pl, claudescale as cs
limits = cs.Limits(requests_per_minute=900, input_tokens_per_minute=60_000, output_tokens_per_minute=40_000)
simulator = cs.Simulator((900, 60_000, 40_000), speed=6, latency=1.2)
texts = pl.DataFrame({"text": [f"Review {n}: the parcel was late, and the box open." for n in range(90_000)]})
plan = cs.plan(texts, "Name the complaint: {text}", model="claude-haiku-5-5", tier=limits, max_tokens=64)"""
WATCH = "run = plan.start(simulator.client(), ledger=None, progress=False)\nwatcher = cs.watch(run)\nwatcher"
PICK = """picker = cs.pick(cs.plan(texts, "Name it: {text}", model="claude-haiku-5-5", tier="start"))
picker"""
CELLS = [SETUP, WATCH, "cs.watch(run)", "run.state", PICK, "picker"]
WATCHED, SECOND, STATE, PICKED, AGAIN = range(1, 6)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
FLAGS += ["--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
SERVER = "--ServerApp.ip=127.0.0.1 --no-browser --allow-root --LabApp.expose_app_in_browser=True"
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # draws cells out of sight
}
PANEL = "window.jupyterapp.shell.currentWidget"
RUN = f"""async cell => {{
    await {PANEL}.context.sessionContext.ready;
    {PANEL}.content.activeCellIndex = cell;
    await window.jupyterapp.commands.execute('notebook:run-cell');
}}"""
BUSY = "Dataflow already running"  # Vega on a slow page: what arrived too early comes with the next update
CHART, WIDE = ".vega-embed svg, .vega-embed canvas", 900
NOTHING_CUT_OFF = """area => [...area.querySelectorAll('.jp-OutputArea-output')].every(
    output => output.scrollWidth <= output.clientWidth + 1)"""


@pytest.fixture
def address(tmp_path):
    """Serve a folder with a JupyterLab of its own settings, and yield the address of its notebooks."""
    overrides = tmp_path / ".jupyter/labconfig/default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    command = [sys.executable, "-m", "jupyterlab", *SERVER.split(), f"--ServerApp.root_dir={tmp_path}"]
    environment = {**os.environ, "HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    with server:
        while not (running := [*list_running_servers(tmp_path)]):
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield f"{running[0]['url']}doc/tree/{{}}?token={running[0]['token']}"
        server.terminate()  # it ends its kernels first


@pytest.fixture
def open_notebook(address, tmp_path):
    """Yield a function that opens a notebook in Chromium; at the end no page has had an error.

    No other machine can be reached: to ask one is an error.
    """
    problems = []

    def open_notebook(notebook, name):
        nbformat.write(notebook, tmp_path / name)
        page = browser.new_page(viewport={"width": WIDE, "height": 1_000})
        page.set_default_timeout(120_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address.format(name))
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady")
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        return page

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield open_notebook
        browser.close()
    assert [problem for problem in problems if BUSY not in problem] == []


def output(page, cell, words=""):
    """Return the locator of a cell's output, once it shows these words."""
    found = page.locator(".jp-Notebook .jp-Cell").nth(cell).locator(".jp-Cell-outputWrapper")
    found.filter(has_text=words).wait_for()
    return found


def check_stopped(page, cell):
    """Wait until a cell shows the complete final display of a stopped run."""
    shown = output(page, cell, "Run stopped")
    shown.locator(CHART).first.wait_for()
    assert shown.locator("table").count() == 1
    assert shown.evaluate(NOTHING_CUT_OFF)


def check_picker(page):
    """Both views of it follow every choice, and nothing is wider than the page."""
    for cell in (PICKED, AGAIN):
        page.evaluate(RUN, cell)
    picker = output(page, PICKED)
    picker.locator(CHART).first.wait_for()
    picker.get_by_label("Model").select_option(label="claude-sonnet-5-5")
    picker.get_by_label("Mode", exact=True).select_option(index=1)
    for cell in (PICKED, AGAIN):
        output(page, cell, 'plan = plan.replace(model="claude-sonnet-5-5", mode="batch")')
    assert picker.evaluate(NOTHING_CUT_OFF)


def check_watcher(page):
    """Figures and rates fit 900 px while other cells run; Enter on Stop leaves table and picture."""
    page.evaluate(RUN, WATCHED)
    shown = output(page, WATCHED, " left, ")
    page.wait_for_function("() => document.querySelector('.jp-Notebook progress').value > 20")
    shown.locator(CHART).first.wait_for()
    assert shown.evaluate(NOTHING_CUT_OFF)
    for words in ("SIMULATED Run running", "of about $", "in flight", "Latency", "Errors: none"):
        assert words in shown.inner_text()
    for cell in (SECOND, STATE):
        page.evaluate(RUN, cell)
    output(page, SECOND, " left, ")
    output(page, STATE, "running")
    shown.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Enter")
    for cell in (WATCHED, SECOND):
        check_stopped(page, cell)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="this test needs Chromium or Chrome")
def test_a_plan_is_picked_and_its_run_is_watched_stopped_saved_and_reopened(tmp_path, open_notebook):
    """A picker and two watchers work; reopened by a reader, without kernel and trust, what stays is shown."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python"}
    page = open_notebook(made, "made.ipynb")
    page.evaluate(RUN, 0)
    check_picker(page)
    check_watcher(page)
    page.evaluate(f"() => {PANEL}.context.save()")
    saved = nbformat.read(tmp_path / "made.ipynb", as_version=4)
    assert "error" not in {output.output_type for cell in saved.cells for output in cell.outputs}
    saved.metadata = {"kernelspec": {"name": "of another person", "display_name": "none"}}
    reader = open_notebook(saved, "saved.ipynb")
    output(reader, PICKED, "The same in code: ")
    output(reader, PICKED, "Run the cell again for its controls.")
    for cell in (WATCHED, SECOND):
        check_stopped(reader, cell)
    assert output(reader, WATCHED).get_by_role("button", name="Stop").count() == 0
