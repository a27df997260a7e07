"""Picking: the chosen plan, its line of code, and that nothing is spent."""

from datetime import timedelta

import pytest
from running import a_plan, reviews

import claudescale as cs
from claudescale.api import client as wire
from claudescale.planning.plans import PARAMETERS
from claudescale.widgets import pick as module

ROWS = reviews(40)
SYSTEM = "You read complaints of customers and answer in one word. " * 60
PLAIN = a_plan(ROWS, tier="start", system=SYSTEM)
DRAW = module.Picker._draw


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


@pytest.mark.parametrize(("options", "changes"), [
    ({"model": "claude-haiku-4-5-20251001", "tier": 2, "mode": "auto"}, {"tier": "tier 4", "cache": True}),
    ({"mode": "batch", "cache": True, "budget": 3.25}, {"model": "claude-opus-5-5", "budget": ""}),
    ({"tier": "Build", "mode": "hybrid", "deadline": timedelta(minutes=100)}, {"deadline": "$1,234.5"}),
    ({"tier": "start"}, {"mode": "hybrid", "deadline": "9", "budget": "1e-6", "max_tokens": 64_000}),
    ({"model": cs.Model("next", like="claude-haiku-5-5"), "cache": True}, {}),
])  # fmt: skip
def test_the_line_of_code_makes_the_plan_that_was_picked(options, changes):
    """For any choices and any plan the line evaluates to a plan with the same parameters."""
    plan = a_plan(ROWS, system=SYSTEM, **options)
    picker, names = pick(plan, **changes), {"plan": plan}
    exec(picker.code, names)
    assert picker.code.count("=") == (len(changes) + 1 if changes else 0)
    for name in PARAMETERS:
        assert name == "frame" or getattr(names["plan"], name) == getattr(picker.plan, name)


def test_picking_asks_nobody_and_starts_nothing(monkeypatch):
    """Every control is changed, and no run is started, no client made and no request sent."""
    spent = []
    for owner, name in ((cs.Plan, "start"), (wire, "connect"), (wire.Wire, "ask")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: spent.append(name))
    picker = pick(PLAIN, tier="build", mode="hybrid", deadline="90", budget="5", cache=True)
    picker.controls["max_tokens"].value = 100
    assert (picker.code.count("="), spent) == (7, [])


def test_the_line_is_what_one_would_type():
    """It has double quotes, whole amounts as integers, and nothing unchanged; and back again."""
    choices = {"model": "claude-sonnet-5-5", "tier": "build", "deadline": " $1,200 ", "mode": "hybrid"}
    picker = pick(PLAIN, **choices)
    assert picker.code == (
        'plan = plan.replace(model="claude-sonnet-5-5", tier="build", mode="hybrid", deadline=1200)'
    )
    for name, value in {"model": "claude-haiku-5-5", "tier": "start", "mode": "live", "deadline": ""}.items():
        picker.controls[name].value = value
        assert getattr(picker.plan, name) == getattr(PLAIN, name)
    assert picker.code == "plan"


@pytest.mark.parametrize(("choices", "words"), [
    ({"mode": "hybrid"}, "deadline=90"), ({"max_tokens": 0}, "max_tokens"),
    ({"deadline": "an hour"}, "minutes the run may take, above 0"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_place_of_figures(choices, words):
    """The message replaces the figures; plan and code keep their last valid state, then continue."""
    picker = pick(PLAIN, **choices)
    assert "Not possible. " in picker._figures.value
    assert words in picker._figures.value
    assert picker.plan is PLAIN
    for name in choices:
        picker.controls[name].value = picker._first[name]
    assert "Not possible. " not in picker._figures.value


@pytest.mark.slow
def test_the_latest_choice_is_drawn(monkeypatch):
    """It is drawn among the other plans; one that has changed meanwhile is not, and failures are shown."""
    picker = pick(PLAIN, tier="build")
    sentence = repr(picker.plan.plot.frontier())

    def change(_):
        picker.controls["tier"].value = "scale"  # and returns nothing that can be drawn

    def drawn():
        DRAW(picker)
        return picker._chart.outputs[0]["data"]["text/plain"]

    assert drawn() == sentence
    monkeypatch.setattr(type(picker.plan.plot), "frontier", change)
    assert drawn() == sentence
    assert "cannot be drawn: AttributeError" in drawn()


def test_what_is_left_without_a_kernel_is_the_line_of_code():
    """The notebook saves the card and the code; a terminal gets the line."""
    picker = pick(PLAIN, tier="build")
    bundle = picker._repr_mimebundle_()
    assert "Run the cell again for its controls." in bundle["text/html"]
    assert "plan = plan.replace(tier=&quot;build&quot;)" in bundle["text/html"]
    assert bundle["text/plain"] == repr(picker) == 'Picker of the plan: plan = plan.replace(tier="build")'
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_what_is_no_plan_is_refused():
    """The error says how to make one."""
    with pytest.raises(cs.PlanError, match=r"cs\.plan\(frame, \.\.\.\)"):
        cs.pick(ROWS)
