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
START = "run = plan.start(simulator.client(), ledger=None, progress=False)"
WATCH = "watcher = cs.watch(run)\nwatcher"
FOLLOWERS = """import threading
print("followers:", sum(each.name == "claudescale-watch" for each in threading.enumerate()))"""
REFRESHES = 'print("refreshes:", watcher.refreshes)'
SLEEP = "import time; time.sleep(60)"
PICK = """picker = cs.pick(cs.plan(texts, "Name it: {text}", model="claude-haiku-5-5", tier="start"))
picker"""
SETUP_CELL, START_CELL, WATCHED, SECOND, FOLLOWERS_CELL, REFRESHES_CELL, SLEEPING, PICKED, AGAIN = range(9)
CELLS = [SETUP, START, WATCH, "cs.watch(run)", FOLLOWERS, REFRESHES, SLEEP, PICK, "picker"]
CHART, WIDE = ".vega-embed svg, .vega-embed canvas", 900
NOTHING_CUT_OFF = """area => [...area.querySelectorAll('.jp-OutputArea-output')].every(
    output => output.scrollWidth <= output.clientWidth + 1)"""


def number(page, cell):
    """Return the number that a cell prints after a colon."""
    page.run(cell)
    return int(page.text_of(cell).split(":")[1])


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


def watched(page, found):
    """Watch a run twice, interrupt another cell, and stop it by keyboard; keep what was seen."""
    for cell in (START_CELL, WATCHED):
        page.run(cell)
    page.wait_for(WATCHED, " left, ")
    output = page.output(WATCHED)
    page.page.wait_for_function("() => document.querySelector('.jp-Notebook progress').value > 20")
    found["live"] = output.locator(CHART).count(), output.evaluate(NOTHING_CUT_OFF), page.text_of(WATCHED)
    page.run(SECOND)
    page.wait_for(SECOND, " left, ")
    found["two"] = number(page, FOLLOWERS_CELL)
    page.run(SLEEPING, wait=False)
    page.page.wait_for_function(
        "seen => document.querySelector('.jp-Notebook progress').value > seen",
        arg=output.locator("progress").evaluate("bar => bar.value"),
    )
    found["while another cell runs"] = page.ended(SLEEPING)
    page.interrupt()
    page.page.wait_for_function("cell => window.ended[cell]", arg=SLEEPING)
    before = number(page, REFRESHES_CELL)
    page.page.wait_for_timeout(2_500)
    found["after an interrupt"] = number(page, REFRESHES_CELL) - before
    stop = output.get_by_role("button", name="Stop")
    found["tooltip"] = stop.get_attribute("title")
    stop.focus()
    page.page.keyboard.press("Enter")
    found["stopped"] = is_stopped(page, WATCHED), is_stopped(page, SECOND)
    page.run(SECOND)
    found["finished"] = is_stopped(page, SECOND), number(page, FOLLOWERS_CELL)


def reopened(page):
    """Return what a reader of the saved file sees, with no kernel and no trust."""
    page.wait_for(PICKED, re.compile("The same in code: "))
    buttons = page.output(WATCHED).get_by_role("button", name="Stop").count()
    return is_stopped(page, WATCHED), is_stopped(page, SECOND), buttons, page.text_of(PICKED)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Pick a plan and watch a run in JupyterLab once, save it and open it again; give what was seen."""
    found = {}
    with lab(tmp_path_factory.mktemp("lab")) as open_notebook:
        page = open_notebook(CELLS, width=WIDE)
        page.run(SETUP_CELL)
        found["picked"] = picked(page)
        watched(page, found)
        reader = open_notebook(page.save(), theme="dark", kernel=False)
        found["reopened"] = reopened(reader)
        found["problems"] = page.problems() + reader.problems()
    return found


def test_a_plan_is_picked_in_both_views_by_mouse_and_keyboard(seen):
    """Everything follows a choice wherever the picker is shown; nothing is wider than the page."""
    controls, right = seen["picked"]
    assert controls == [
        "Tier",
        "Mode",
        "Max tokens",
        "Deadline (min)",
        "Budget ($)",
        "Cache the system prompt",
    ]
    assert right <= WIDE


def test_the_run_is_seen_while_it_goes_on(seen):
    """Progress, time left, rates against limits and figures are there, and nothing is cut off at 900 px."""
    charts, whole, text = seen["live"]
    assert (charts > 0, whole) == (True, True)
    for told in ("SIMULATED Run running", "of about $", "in flight", "latency", "Errors: none"):
        assert told in text


def test_other_cells_run_meanwhile_and_an_interrupt_ends_only_them(seen):
    """The progress moves while another cell blocks the kernel, and continues after its interrupt."""
    assert seen["while another cell runs"] is False
    assert seen["after an interrupt"] >= 1


def test_the_run_is_stopped_by_keyboard(seen):
    """Enter on Stop stops the run; both watchers give way to a table and a picture, and none is left."""
    assert "Send nothing more" in seen["tooltip"]
    assert seen["two"] == 2
    assert seen["stopped"] == (True, True)
    assert seen["finished"] == (True, 0)


def test_the_saved_notebook_shows_it_without_a_kernel(seen):
    """Reopened by somebody else, in dark, with no kernel and no trust, all that stays is there."""
    *shown, picker = seen["reopened"]
    assert shown == [True, True, 0]
    assert "Run the cell again for its controls." in picker


def test_nothing_goes_wrong_and_no_other_machine_is_asked(seen):
    """But for the interrupt that was asked for, no error in cells, callbacks or console, and no request."""
    assert [each for each in seen["problems"] if "KeyboardInterrupt" not in each] == []
