"""A picker and a watched run as a person sees them in JupyterLab: one session, saved and reopened once."""

import re

import pytest
from browser import lab

SETUP = """import polars as pl, claudescale as cs
limits = cs.Limits(requests_per_minute=900, input_tokens_per_minute=60_000, output_tokens_per_minute=40_000)
simulator = cs.Simulator((900, 60_000, 40_000), speed=6, latency=1.2)
texts = pl.DataFrame({"text": [f"Review {n}: the parcel was late, and the box open." for n in range(9_000)]})
plan = cs.plan(texts, "Name the complaint: {text}", model="claude-haiku-5-5", tier=limits, max_tokens=64)"""
WATCH = "run = plan.start(simulator.client(), ledger=None, progress=False)\nwatcher = cs.watch(run)\nwatcher"
PICK = """picker = cs.pick(cs.plan(texts, "Name it: {text}", model="claude-haiku-5-5", tier="start"))
picker"""
CELLS = [SETUP, WATCH, "cs.watch(run)", "run.state", PICK, "picker"]
WATCHED, SECOND, STATE, PICKED, AGAIN = range(1, 6)
CHART, WIDE = ".vega-embed svg, .vega-embed canvas", 900
NOTHING_CUT_OFF = """area => [...area.querySelectorAll('.jp-OutputArea-output')].every(
    output => output.scrollWidth <= output.clientWidth + 1)"""
RIGHT_EDGE = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"


def check_stopped(page, cell):
    """Wait until a cell shows the complete final display of a stopped run."""
    page.wait_for(cell, "Run stopped")
    output = page.output(cell)
    output.locator(CHART).first.wait_for()
    assert output.locator("table").count() == 1
    assert output.evaluate(NOTHING_CUT_OFF)


def check_picker(page):
    """By mouse and keyboard, both views of it follow every choice, and nothing is wider than the page."""
    for cell in (PICKED, AGAIN):
        page.run(cell)
    output = page.output(PICKED)
    output.locator(CHART).first.wait_for()
    output.get_by_label("Model").select_option(label="claude-sonnet-5-5")
    output.get_by_label("Tier").select_option(label="build")
    for cell in (PICKED, AGAIN):
        page.wait_for(cell, 'plan = plan.replace(model="claude-sonnet-5-5", tier="build")')
    output.get_by_label("Mode", exact=True).select_option(index=2)
    page.wait_for(PICKED, re.compile("Not possible"))
    output.get_by_label("Mode", exact=True).select_option(index=1)
    page.wait_for(PICKED, re.compile('mode="batch"'))
    output.get_by_label("Model").focus()
    for name in ("Tier", "Mode", "Max tokens", "Deadline (min)", "Budget ($)", "Cache the system prompt"):
        page.page.keyboard.press("Tab")
        focused = page.page.locator(":focus").evaluate("node => (node.labels?.[0] || node).textContent")
        assert focused.strip() == name
    assert output.locator(".jupyter-widgets").evaluate_all(RIGHT_EDGE) <= WIDE


def check_watcher(page):
    """Figures and rates fit 900 px while other cells run; Enter on Stop leaves table and picture."""
    page.run(WATCHED)
    page.wait_for(WATCHED, " left, ")
    output = page.output(WATCHED)
    page.page.wait_for_function("() => document.querySelector('.jp-Notebook progress').value > 20")
    output.locator(CHART).first.wait_for()
    assert output.evaluate(NOTHING_CUT_OFF)
    for words in ("SIMULATED Run running", "of about $", "in flight", "Latency", "Errors: none"):
        assert words in output.inner_text()
    for cell in (SECOND, STATE):
        page.run(cell)
    page.wait_for(SECOND, " left, ")
    assert "running" in page.output(STATE).inner_text()
    stop = output.get_by_role("button", name="Stop")
    assert "Send nothing more" in stop.get_attribute("title")
    stop.focus()
    page.page.keyboard.press("Enter")
    for cell in (WATCHED, SECOND):
        check_stopped(page, cell)


def check_reader(reader):
    """Reopened by another person, in dark, without kernel and trust, everything that stays is shown."""
    reader.wait_for(PICKED, re.compile("The same in code: "))
    assert "Run the cell again for its controls." in reader.output(PICKED).inner_text()
    for cell in (WATCHED, SECOND):
        check_stopped(reader, cell)
    assert reader.output(WATCHED).get_by_role("button", name="Stop").count() == 0


@pytest.mark.slow
def test_a_plan_is_picked_and_its_run_is_watched_stopped_saved_and_reopened(tmp_path):
    """A picker and two watchers work; cells and console show no error, and no other machine is contacted."""
    with lab(tmp_path) as open_notebook:
        page = open_notebook(CELLS, width=WIDE)
        page.run(0)
        check_picker(page)
        check_watcher(page)
        reader = open_notebook(page.save(), theme="dark", kernel=False)
        check_reader(reader)
        assert page.problems() + reader.problems() == []
