"""A picker and a watched run as a person sees them in JupyterLab: one session, saved and reopened once."""

import re

import pytest
from browser import lab

pytestmark = pytest.mark.slow
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


def is_stopped(page, cell):
    """Wait until a cell shows what stays of a stopped run, and return whether all of it is there."""
    page.wait_for(cell, "Run stopped")
    output = page.output(cell)
    output.locator(CHART).first.wait_for()
    return output.locator("table").count() == 1 and output.evaluate(NOTHING_CUT_OFF)


def picked(page):
    """Pick by mouse and reach every control by keyboard; return what was reached, and how far it extends."""
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
    reached = []
    for _ in range(6):
        page.page.keyboard.press("Tab")
        name = "node => (node.labels?.[0] || node).textContent"
        reached.append(page.page.locator(":focus").evaluate(name).strip())
    inside = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"
    return reached, output.locator(".jupyter-widgets").evaluate_all(inside)


def watched(page, seen):
    """Watch a run twice, run another cell, and stop the run by keyboard; keep what was seen."""
    page.run(WATCHED)
    page.wait_for(WATCHED, " left, ")
    output = page.output(WATCHED)
    page.page.wait_for_function("() => document.querySelector('.jp-Notebook progress').value > 20")
    seen["live"] = output.locator(CHART).count(), output.evaluate(NOTHING_CUT_OFF), page.text_of(WATCHED)
    for cell in (SECOND, STATE):
        page.run(cell)
    page.wait_for(SECOND, " left, ")
    stop = output.get_by_role("button", name="Stop")
    seen["meanwhile"], seen["tooltip"] = page.text_of(STATE), stop.get_attribute("title")
    stop.focus()
    page.page.keyboard.press("Enter")
    seen["stopped"] = is_stopped(page, WATCHED), is_stopped(page, SECOND)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Pick a plan and watch a run in JupyterLab once, save it and open it again; give what was seen."""
    seen = {}
    with lab(tmp_path_factory.mktemp("lab")) as open_notebook:
        page = open_notebook(CELLS, width=WIDE)
        page.run(0)
        seen["picked"] = picked(page)
        watched(page, seen)
        reader = open_notebook(page.save(), theme="dark", kernel=False)
        reader.wait_for(PICKED, re.compile("The same in code: "))
        buttons = reader.output(WATCHED).get_by_role("button", name="Stop").count()
        seen["reopened"] = is_stopped(reader, WATCHED), is_stopped(reader, SECOND), buttons
        seen["picker"] = reader.text_of(PICKED)
        seen["problems"] = page.problems() + reader.problems()
    return seen


def test_a_plan_is_picked_in_both_views_by_mouse_and_keyboard(seen):
    """Everything follows a choice wherever the picker is shown; nothing is wider than the page."""
    controls, right = seen["picked"]
    names = ["Tier", "Mode", "Max tokens", "Deadline (min)", "Budget ($)", "Cache the system prompt"]
    assert controls == names
    assert right <= WIDE


def test_the_run_is_seen_while_it_goes_on_and_stopped_by_keyboard(seen):
    """Figures and rates are whole at 900 px while other cells run; Enter on Stop leaves table and picture."""
    charts, whole, text = seen["live"]
    assert (charts > 0, whole) == (True, True)
    for words in ("SIMULATED Run running", "of about $", "in flight", "latency", "Errors: none"):
        assert words in text
    assert "running" in seen["meanwhile"]
    assert "Send nothing more" in seen["tooltip"]
    assert seen["stopped"] == (True, True)


def test_the_saved_notebook_shows_it_without_a_kernel(seen):
    """Reopened by somebody else, in dark, with no kernel and no trust, all that stays is there."""
    assert seen["reopened"] == (True, True, 0)
    assert "Run the cell again for its controls." in seen["picker"]


def test_nothing_goes_wrong_and_no_other_machine_is_asked(seen):
    """No error in cells, callbacks or console, and no request."""
    assert seen["problems"] == []
