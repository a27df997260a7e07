"""Picking: the chosen plan, its line of code, and that nothing is spent."""

import json
import time
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st
from running import a_plan, reviews

import claudescale as cs
from claudescale.api import client as wire
from claudescale.planning.plans import PARAMETERS
from claudescale.widgets import pick as module

ROWS = reviews(40)
SYSTEM = "You read complaints of customers and answer in one word. " * 60
BEGINNINGS = {
    "plain": a_plan(ROWS, tier="start", system=SYSTEM),
    "dated": a_plan(ROWS, model="claude-haiku-4-5-20251001", tier=2, system=SYSTEM),
    "own limits": a_plan(ROWS, mode="batch", system=SYSTEM, budget=3.25),
    "hybrid": a_plan(ROWS, tier="Build", mode="hybrid", deadline=timedelta(minutes=100), system=SYSTEM),
    "cached": a_plan(ROWS, tier="tier 4", model="claude-opus-5-5", cache=True, system=SYSTEM, deadline=0.1),
    "auto": a_plan(ROWS, tier="scale", mode="auto", system=SYSTEM, returns=pl.Enum(["late", "lost"])),
}
AMOUNTS = st.just("") | st.floats(1e-6, 1e9).map(str) | st.integers(1, 10**6).map("${:,}".format)
CHOICES = {
    "model": st.sampled_from(["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"]),
    "tier": st.sampled_from(["start", "build", "scale", "tier 1", "tier 2", "tier 4"]),
    "mode": st.sampled_from([*module.MODES]),
    "max_tokens": st.integers(1, 64_000),
    "cache": st.booleans(),
    "deadline": AMOUNTS,
    "budget": AMOUNTS,
}


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Skip the drawing, which takes a second, in tests that do not need it."""
    monkeypatch.setattr(module.Picker, "_draw", lambda *_: None)


def pick(plan, **choices):
    """Return the picker of a plan with these choices."""
    picker = cs.pick(plan)
    for name, value in choices.items():
        picker.controls[name].value = value
    return picker


@settings(max_examples=12)
@sampled(st.sampled_from(list(BEGINNINGS)), st.fixed_dictionaries({}, optional=CHOICES))
def test_the_line_of_code_makes_the_plan_that_was_picked(beginning, changes):
    """For any choices and any plan the line evaluates to a plan with the same parameters."""
    given = BEGINNINGS[beginning]
    picker, names = pick(given, **changes), {"plan": given}
    exec(picker.code, names)
    for name in PARAMETERS:
        assert name == "frame" or getattr(names["plan"], name) == getattr(picker.plan, name)
    assert (picker.code == "plan") is (picker.plan is given)


def test_picking_asks_nobody_and_starts_nothing(monkeypatch):
    """Every control is changed, and no run is started, no client made and no request sent."""
    spent = []
    for owner, name in ((cs.Plan, "start"), (wire, "connect"), (wire.Wire, "ask")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: spent.append(name))
    picker = pick(BEGINNINGS["plain"], tier="build", mode="hybrid", deadline="90", budget="5", cache=True)
    picker.controls["max_tokens"].value = 100
    assert (picker.code.count("="), spent) == (7, [])


def test_the_line_is_what_one_would_type():
    """It has double quotes, whole amounts as integers, and nothing unchanged; and back again."""
    choices = {"model": "claude-sonnet-5-5", "tier": "build", "deadline": " $1,200 ", "mode": "hybrid"}
    picker = pick(BEGINNINGS["plain"], **choices)
    assert picker.code == (
        'plan = plan.replace(model="claude-sonnet-5-5", tier="build", mode="hybrid", deadline=1200)'
    )
    for name, value in {"model": "claude-haiku-5-5", "tier": "start", "mode": "live", "deadline": ""}.items():
        picker.controls[name].value = value
        assert getattr(picker.plan, name) == getattr(BEGINNINGS["plain"], name)
    assert picker.code == "plan"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"mode": "hybrid"}, "deadline=90"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"deadline": "an hour"}, "minutes the run may take, above 0"),
        ({"budget": "-1"}, "above 0"),
    ],
)
def test_what_cannot_be_is_said_in_place_of_figures(choices, words):
    """The message replaces the figures; plan and code keep their last valid state, then continue."""
    picker = pick(BEGINNINGS["plain"], **choices)
    assert "Not possible. " in picker._figures.value
    assert words in picker._figures.value
    assert picker.plan is BEGINNINGS["plain"]
    for name in choices:
        picker.controls[name].value = picker._first[name]
    assert "Not possible. " not in picker._figures.value


@pytest.mark.slow
def test_the_latest_choice_is_drawn(monkeypatch):
    """Of many changes at once only the last is drawn, among the other plans, and failures are shown."""
    monkeypatch.undo()
    picker = pick(BEGINNINGS["plain"], tier="build")
    picker.controls["tier"].value = "scale"

    def drawn(word):
        until = time.monotonic() + 60
        while word not in json.dumps(picker._chart.outputs) and time.monotonic() < until:
            time.sleep(0.02)
        return picker._chart.outputs[0]["data"]

    assert drawn("vegalite")["text/plain"] == repr(picker.plan.plot.frontier())
    monkeypatch.setattr(type(picker.plan.plot), "frontier", None)
    picker.controls["tier"].value = "start"
    assert "cannot be drawn: TypeError" in drawn("cannot")["text/plain"]


def test_the_rows_are_read_once():
    """For any number of choices the frame is measured for the first figures only."""
    read = []
    frame = ROWS.lazy().map_batches(lambda rows: read.append(rows.height) or rows)
    pick(a_plan(frame, tier="start"))
    once = len(read)
    pick(a_plan(frame, tier="start"), tier="build", max_tokens=9, mode="batch", budget="9")
    assert len(read) == 2 * once


def test_what_is_left_without_a_kernel_is_the_line_of_code():
    """The notebook saves the card and the code; a terminal gets the line."""
    picker = pick(BEGINNINGS["plain"], tier="build")
    bundle = picker._repr_mimebundle_()
    assert "Run the cell again for its controls." in bundle["text/html"]
    assert "plan = plan.replace(tier=&quot;build&quot;)" in bundle["text/html"]
    assert bundle["text/plain"] == repr(picker) == 'Picker of the plan: plan = plan.replace(tier="build")'
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_what_is_no_plan_is_refused():
    """The error says how to make one."""
    with pytest.raises(cs.PlanError, match=r"cs\.plan\(frame, \.\.\.\)"):
        cs.pick(ROWS)
