"""Picking: what is chosen, the code for it, what is told of it, and what the buttons spend."""

from __future__ import annotations

import html
import json
import re
import threading
import time
from dataclasses import replace
from datetime import date, timedelta

import polars as pl
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st
from running import MODEL, WIDE_LIMITS, a_plan, reviews, simulator

import claudescale as cs
from claudescale.api import catalog, prices
from claudescale.planning.plans import PARAMETERS
from claudescale.prompts.requests import Prompt
from claudescale.widgets import asking, picks
from claudescale.widgets.pickpanel import CONTROLS
from claudescale.widgets.redrawing import Redrawing

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
MARK = "\N{MULTIPLICATION SIGN}"
MODELS = [MODEL, "claude-haiku-4-5", "claude-sonnet-5-5", "claude-opus-5-5"]
AMOUNTS = st.none() | st.floats(1e-6, 1e9) | st.integers(1, 10**6).map(float)
PICKS = {
    "model": st.sampled_from(MODELS),
    "tier": st.sampled_from(["start", "build", "scale", "tier 1", "tier 2", "tier 4"]),
    "mode": st.sampled_from([name for _, name in picks.MODES]),
    "max_tokens": st.integers(1, 64_000),
    "cache": st.booleans(),
    "deadline": AMOUNTS,
    "budget": AMOUNTS,
}


def seen(plan):
    return {name: getattr(plan, name) for name in PARAMETERS if name != "frame"}


def as_typed(line, plan, **names):
    """Return the plan that a line of code makes."""
    names = {"plan": plan, **names}
    exec(line, names)
    return names["plan"]


@settings(max_examples=200)
@sampled(st.sampled_from(list(BEGINNINGS)), st.fixed_dictionaries({}, optional=PICKS))
def test_the_line_of_code_makes_the_plan_that_was_picked(beginning, changed):
    """Whatever is picked, from whatever plan: the line evaluates to a plan with the same parameters."""
    given = BEGINNINGS[beginning]
    pick = replace(picks.of(given), **changed)
    if pick.mode == "hybrid" and pick.deadline is None:
        with pytest.raises(cs.PlanError, match="deadline=90"):
            picks.made(given, pick)
        return
    plan, line = picks.made(given, pick), picks.code(given, pick)
    again = as_typed(line, given)
    assert seen(again) == seen(plan)
    assert again.options.equals(plan.options)
    assert picks.of(plan) == pick
    assert (line == "plan") is (plan is given)


def test_the_line_is_what_one_would_type():
    """Names in double quotes, numbered tiers and whole amounts as whole numbers, nothing that is the same."""
    given = BEGINNINGS["plain"]
    changes = {
        "model": "claude-sonnet-5-5",
        "tier": "tier 3",
        "mode": "hybrid",
        "deadline": 60.0,
        "budget": 0.5,
    }
    line = 'plan = plan.replace(model="claude-sonnet-5-5", tier=3, mode="hybrid", deadline=60, budget=0.5)'
    assert picks.code(given, replace(picks.of(given), **changes)) == line
    assert picks.code(given, picks.of(given)) == "plan"
    assert picks.code(given, picks.of(given), piloted=True) == "plan = plan.calibrate(picker.pilot)"
    hybrid = BEGINNINGS["hybrid"]
    assert picks.code(hybrid, replace(picks.of(hybrid), tier="start")) == 'plan = plan.replace(tier="start")'


@sampled(AMOUNTS)
def test_what_is_shown_of_a_number_is_read_as_that_number(amount):
    """No digit of a deadline or a budget is lost between a plan and a text field."""
    assert picks.number(picks.typed(amount), "deadline", "minutes") == amount


@pytest.mark.parametrize(("text", "value"), [("", None), ("  ", None), ("90", 90), ("$1,200.5", 1200.5)])
def test_numbers_are_read_as_people_type_them(text, value):
    """Nothing is none; a dollar sign and separators are read over."""
    assert picks.number(text, "budget", "dollars") == value


@pytest.mark.parametrize("text", ["an hour", "1:30", "5 $", "--"])
def test_what_is_no_number_says_what_to_type(text):
    """The message has what was typed and what would do."""
    with pytest.raises(cs.PlanError, match=r"deadline: .* is no number\. Type minutes, such as 90"):
        picks.number(text, "deadline", "minutes")


# labels


def labels(given, **changed):
    return {name: label for label, name in picks.models(given, replace(picks.of(given), **changed))}


def test_models_are_told_with_their_line_and_price():
    """Every model that can be called is there once, the label has what it costs."""
    found = labels(BEGINNINGS["plain"])
    assert list(found) == cs.models()["model"].to_list()
    assert len(set(found.values())) == len(found)
    price = cs.models().row(by_predicate=pl.col("model") == MODEL, named=True)
    into, out = (price[f"dollars_per_million_{part}_tokens"] for part in ("input", "output"))
    assert found[MODEL] == f"{MODEL} · Haiku · ${into:.2f} in / ${out:.2f} out per million tokens"


def test_models_on_their_way_out_are_marked(monkeypatch):
    """A deprecated one tells its last day, a legacy one that it is one, a retired one is not offered."""
    facts = catalog.MODELS[MODEL]
    dying = replace(facts, lifecycle="deprecated", retires_on=date(2099, 1, 2))
    assert picks._model_label(dying, None).endswith(" · deprecated, retires 2099-01-02")
    assert picks._model_label(replace(facts, lifecycle="legacy"), None).endswith(" · legacy")
    few = replace(facts, verified_only=True)
    assert picks._model_label(few, None).endswith(" · verified organizations only")
    gone = {**catalog.MODELS, "claude-sonnet-5": replace(dying, retires_on=date(2020, 1, 2))}
    monkeypatch.setattr(catalog, "MODELS", gone)
    assert "claude-sonnet-5" not in labels(BEGINNINGS["plain"])


def test_models_that_will_not_do_are_marked(monkeypatch):
    """The mark tells why: no limits on this tier, no price, or something the plan asks for."""
    asks = a_plan(ROWS, tier="start", effort="high")
    found = labels(asks)
    assert found["claude-haiku-4-5"] == f"{MARK} claude-haiku-4-5 · Haiku · will not do this plan"
    twin = replace(catalog.MODELS["claude-mythos-5-1"], prices_of=None)
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "MODELS", {**catalog.MODELS, twin.id: twin})
        patch.setitem(catalog._BY_NAME, twin.id, twin)
        prices._price.cache_clear()
        assert labels(BEGINNINGS["own limits"])[twin.id].endswith("· price not known")
    assert found["claude-fable-5-2"].endswith("· limits on this tier not published")
    assert labels(BEGINNINGS["plain"], max_tokens=100_000)["claude-haiku-4-5"].startswith(MARK)
    assert not labels(BEGINNINGS["plain"], mode="hybrid")[MODEL].startswith(MARK)  # no fault of the model


def test_tiers_stand_in_two_groups_with_what_they_allow():
    """Today's first, then the numbered ones, each with the requests of this very model; one's own above."""
    found = picks.tiers(BEGINNINGS["plain"], MODEL)
    groups = [label.partition(" · ")[0] for label, _ in found]
    assert groups == sorted(groups, key=["Today", "Numbered"].index)
    assert ("Today · start · 1,000 requests/min", "start") in found
    assert ("Today · custom · limits not published", "custom") in found
    assert ("Numbered · tier 1 · 50 requests/min", "tier 1") in found
    own = picks.tiers(BEGINNINGS["own limits"], MODEL)
    assert own[0] == ("Your limits · 60,000 requests/min", WIDE_LIMITS)
    assert own[1:] == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no system prompt to cache"),
        ({"system": "Be brief."}, "too short: claude-haiku-5-5 caches from 512 tokens on"),
        ({"system": SYSTEM}, "long enough to be cached"),
    ],
)
def test_whether_caching_helps_is_told_before_it_is_chosen(options, words):
    """The check box stands beside what the API would make of it."""
    assert picks.cache_hint(a_plan(ROWS, **options)) == words


# what a plan takes


def test_one_line_tells_dollars_time_what_binds_and_what_is_saved():
    """And the table has the three modes, with an arrow at the one that is picked."""
    plan = a_plan(reviews(3_000), tier="start", mode="batch", deadline=100)
    card = picks.card(plan)
    told = r"Batch: \$[\d.]+ to \$[\d.]+, 1 h 00 m to 24 h 00 m, limited by batch processing; saves \$[\d.]+ "
    assert re.fullmatch(told + "against plain calls.", card.title)
    assert [row[0] for row in card.rows] == ["live", "batch ←", "hybrid"]
    assert picks.card(plan.replace(mode="auto")).title.startswith("Auto, which is ")
    assert "saves nothing" in picks.card(plan.replace(mode="live")).title
    wasted = a_plan(reviews(1), system=SYSTEM, cache=True)
    assert "more than plain calls" in picks.card(wasted).title


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deadline": 0.5}, ["This plan does not keep the deadline of 30 s."]),
        ({"deadline": 100, "mode": "batch"}, ["This plan may not keep the deadline of 1 h 40 m."]),
        ({"deadline": 3, "mode": "hybrid"}, ["This plan does not keep the deadline of 3 m 00 s."]),
        ({"budget": 0.01}, ["This plan does not keep the budget of $0.010."]),
        ({"budget": 100, "deadline": 100}, []),
        ({"budget": 100, "deadline": 100, "mode": "hybrid"}, []),
    ],
)
def test_a_wish_that_is_not_kept_is_told_at_once(options, words):
    """Before anything is run; the engine would refuse it, or stop."""
    notes = picks.card(a_plan(reviews(3_000), tier="start", **options)).notes
    assert [note[2:] for note in notes if note.startswith("⚠")] == words


def test_a_pilot_is_live_whatever_the_plan():
    """So many rows as there are, now, with the plan's budget as its hard stop; at its part of the price."""
    plan = a_plan(ROWS, mode="hybrid", deadline=100, budget=2)
    pilot = picks.pilot(plan, 10)
    assert (pilot.mode, pilot.deadline, pilot.budget, pilot.frame.height) == ("live", None, 2, 10)
    assert picks.pilot_rows(plan, 1_000) == 40
    live = plan.options.filter(mode="live")["dollars"].item()
    assert picks.pilot_dollars(plan, 10) == pytest.approx(live / 4)
    assert picks.pilot_label(plan, 10).startswith("Pilot: 10 rows, about $0.0")
    with pytest.raises(cs.PlanError, match="20 or more"):
        picks.pilot_rows(plan, 0)
    assert picks.pilot_dollars(a_plan(reviews(0)), 10) == 0


# drawing


def test_the_last_thing_asked_for_is_the_last_thing_drawn():
    """What comes in between is never drawn, and what is out of date when it is done is never shown."""
    drawn, shown, begun, go = [], [], threading.Event(), threading.Event()

    def draw(wanted):
        drawn.append(wanted)
        begun.set()
        go.wait(30)
        return wanted

    drawing = Redrawing(draw, shown.append, pytest.fail)
    drawing.ask(1)
    assert begun.wait(30)
    for wanted in range(2, 50):
        drawing.ask(wanted)
    go.set()
    until(lambda: not drawing.working)
    assert (drawn, shown) == ([1, 49], [49])


def test_a_drawing_that_fails_is_told_and_the_next_is_drawn():
    """An error ends no picker."""
    errors, shown = [], []
    drawing = Redrawing(lambda wanted: 1 / wanted, shown.append, errors.append)
    drawing.ask(0)
    until(lambda: errors)
    drawing.ask(2)
    until(lambda: shown)
    assert ([type(error) for error in errors], shown) == ([ZeroDivisionError], [0.5])


# the widgets


def until(condition, seconds=60):
    """Return when something another thread does has happened."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def text_of(picker, name):
    """Return what one text of a picker says."""
    page = picker._panel._texts[name].value
    return html.unescape(re.sub(r"<[^>]+>", "", page)).strip()


def settled(picker):
    """Return the picker when nothing runs and nothing is still to be drawn."""
    idle = picker.buttons["stop"]  # the last to be told
    until(lambda: not picker._asking.busy and idle.disabled and not picker._drawing.working)
    return picker


def asked(picker):
    """Return the question that stands there, or None."""
    return None if picker._panel._question.layout.display == "none" else text_of(picker, "question")


def press(picker, button):
    picker.buttons[button].click()
    return settled(picker)


@pytest.fixture(scope="module")
def busy_api():
    with simulator() as running:
        yield running


@pytest.fixture
def picker(busy_api, path):
    return settled(cs.pick(a_plan(ROWS, tier="start", system=SYSTEM), busy_api.client(), ledger=path))


def test_every_control_says_what_it_is():
    """Description and tooltip of every control and every button, in the order in which they are read."""
    picker = cs.pick(BEGINNINGS["plain"])
    assert (
        list(picker.controls) == list(CONTROLS) == [*picks.NAMES[:4], "deadline", "budget", "cache", "rows"]
    )
    for one in [*picker.controls.values(), *picker.buttons.values()]:
        assert one.description
        assert one.tooltip


def test_a_change_is_seen_at_once(picker):
    """Plan, figures, code, labels of the buttons and of the tiers follow the controls."""
    before = picker.plan
    assert picker.code == "plan"
    picker.controls["model"].value = "claude-sonnet-5-5"
    picker.controls["tier"].value = "build"
    picker.controls["mode"].value = "auto"
    picker.controls["deadline"].value = "90"
    picker.controls["budget"].value = "$5"
    picker.controls["max_tokens"].value = 32
    picker.controls["cache"].value = True
    line = 'plan = plan.replace(model="claude-sonnet-5-5", tier="build", mode="auto", max_tokens=32, '
    line += "cache=True, deadline=90, budget=5)"
    assert picker.code == line
    assert text_of(picker, "code") == f"The same in code: {line}"
    assert seen(picker.plan) == seen(as_typed(line, before))
    assert text_of(picker, "figures").startswith("Auto, which is ")
    assert picker.controls["tier"].label == "Today · build · 5,000 requests/min"
    assert picker.buttons["run"].description == f"{picks.run_label(picker.plan)} (SIMULATED)"
    settled(picker)
    for name, value in {
        "model": MODEL,
        "tier": "start",
        "mode": "live",
        "deadline": "",
        "budget": "",
    }.items():
        picker.controls[name].value = value
    picker.controls["max_tokens"].value = 64
    picker.controls["cache"].value = False
    assert picker.code == "plan"
    assert seen(picker.plan) == seen(before)
    settled(picker)


def test_the_picture_marks_what_is_picked():
    """Among the other choices, and in the sentence for those who cannot see it."""
    picker = cs.pick(a_plan(reviews(3_000), tier="start"))
    for tier, model, told in (
        ("build", MODEL, "haiku-5-5 live build"),
        ("scale", MODELS[2], "sonnet-5-5 live"),
    ):
        picker.controls["model"].value = model
        picker.controls["tier"].value = tier
        settled(picker)
        (shown,) = picker._panel._chart.outputs
        assert f"This plan, {told}" in shown["data"]["text/plain"]
        drawing = shown["data"]["application/vnd.vegalite.v5+json"]
        rings = [layer for layer in drawing["layer"] if layer["mark"].get("size") == 260]
        assert len(rings) == 1
        json.dumps(drawing)


def test_the_rows_are_read_once(monkeypatch):
    """However much is changed, the frame is measured a single time."""
    counted, measure = [], Prompt.sizes
    monkeypatch.setattr(Prompt, "sizes", lambda *given: counted.append(1) or measure(*given))
    picker = cs.pick(a_plan(reviews(500), tier="start", system=SYSTEM))
    for name, values in {
        "model": MODELS, "tier": ["build", "tier 1"], "mode": ["batch", "live"], "max_tokens": [9, 99],
        "cache": [True, False], "deadline": ["5", ""], "budget": ["1", ""],
    }.items():  # fmt: skip
        for value in values:
            picker.controls[name].value = value
    settled(picker)
    assert len(counted) == 1


def test_what_cannot_be_is_said_in_place_of_figures(picker):
    """The error's own text; the plan stays as it was, nothing can be started, the next choice is shown."""
    before = picker.plan
    for name, value, message, back in (
        ("mode", "hybrid", "deadline=90 (minutes)", "live"),
        ("model", "claude-mythos-5-1", "limits of claude-mythos-5-1 on the tier 'start' are not", MODEL),
        ("tier", "custom", "are not published", "start"),
        ("deadline", "soon", "deadline: 'soon' is no number", ""),
        ("budget", "-1", "in dollars and above 0", ""),
        ("max_tokens", 0, "max_tokens=0", 64),
    ):
        picker.controls[name].value = value
        assert message in text_of(picker, "figures"), name
        assert "still what it was before" in text_of(picker, "figures")
        assert picker.plan is before
        assert [picker.buttons[each].disabled for each in ("pilot", "run")] == [True, True]
        assert picker.controls[name].value == value
        picker.buttons["run"].click()  # on its way before the page knew
        picker.controls[name].value = back
        assert seen(picker.plan) == seen(before)
        before = picker.plan
        assert [picker.buttons[each].disabled for each in ("pilot", "run")] == [False, False]
    assert settled(picker).run is None


def test_the_sample_changes_the_pilot_alone(picker):
    """The plan stays the same object, the button tells the rows and the dollars; no rows are no pilot."""
    before = picker.plan
    picker.controls["rows"].value = 20
    assert picker.buttons["pilot"].description.startswith("Pilot: 20 rows, about $0.00")
    assert picker.plan is before
    picker.controls["rows"].value = 0
    assert picker.buttons["pilot"].disabled
    assert not picker.buttons["run"].disabled


def test_a_pilot_asks_and_then_measures(picker, path):
    """Nothing is sent before Yes; then the figures of this model, and only of this one, are measured."""
    press(picker, "pilot")
    assert re.match(r"SIMULATED, nothing is paid.*Spend about \$0\.\d+ on a pilot of 40 rows", asked(picker))
    assert not path.exists()
    press(picker, "no")
    assert (asked(picker), picker.pilot, path.exists()) == (None, None, False)
    picker.controls["rows"].value = 30
    press(picker, "pilot")
    press(picker, "yes")
    assert picker.pilot.counts.answered == 30
    assert picker.run is None
    assert "measured on 30 calls" in text_of(picker, "figures")
    assert "SIMULATED" in text_of(picker, "said")
    assert picker.code == "plan = plan.calibrate(picker.pilot)"
    pilot = picker.pilot
    picker.controls["model"].value = "claude-sonnet-5-5"
    assert (picker.pilot, picker.plan.measured) == (None, None)
    picker.controls["model"].value = MODEL
    picker.controls["tier"].value = "build"
    line = 'plan = plan.replace(tier="build").calibrate(picker.pilot)'
    assert (picker.pilot, picker.code) == (pilot, line)
    assert seen(as_typed(line, picker._given, picker=picker)) == seen(picker.plan)
    settled(picker)


def test_what_the_pilot_paid_for_the_run_does_not_pay_again(picker):
    """They share the ledger, and the run that was cheap enough began without a question."""
    picker.controls["rows"].value = 10
    press(picker, "pilot")
    press(picker, "yes")
    press(picker, "run")
    assert (picker.run.state, picker.run.counts.reused, picker.run.counts.requests) == ("finished", 10, 30)
    assert "picker.run.results" in text_of(picker, "said")
    card, picture = picker._panel._below.outputs
    assert "Run finished: 40 of 40 rows answered" in card["data"]["text/plain"]
    assert "image/png" in picture["data"]


@pytest.mark.parametrize("most", [0.0, 1e9])
def test_a_run_asks_above_the_sum_that_was_given(busy_api, path, most):
    """Below it begins at once; the sum is told beside the button."""
    picker = settled(cs.pick(BEGINNINGS["plain"], busy_api.client(), ledger=path, confirm_dollars=most))
    press(picker, "run")
    assert (picker.run is None) is (asked(picker) is not None) is (most == 0)
    assert "Run where it may cost more than $" in text_of(picker, "terms")
    if most == 0:
        press(picker, "yes")
    assert picker.run.state == "finished"


def test_another_choice_takes_the_question_back(picker):
    """What was asked was for the plan before."""
    press(picker, "pilot")
    picker.controls["tier"].value = "build"
    assert asked(picker) is None
    press(picker, "yes")
    assert (picker.pilot, picker.run) == (None, None)


def test_a_run_is_stopped_and_the_next_one_sends_the_rest(path):
    """Stop keeps what is answered; Run again pays for what is missing, and for nothing twice."""
    with simulator(speed=1, latency=0.05) as api:
        plan = a_plan(reviews(300), concurrency=2)
        picker = settled(cs.pick(plan, api.client(), ledger=path))
        picker.buttons["run"].click()
        until(lambda: picker.run is not None and picker.run.counts.answered >= 5)
        assert picker.buttons["run"].disabled
        assert not picker.buttons["stop"].disabled
        first = picker.run
        picker.buttons["run"].click()  # a program may click what a person cannot
        assert text_of(picker, "said").startswith(("One thing at a time", "The run is followed below"))
        press(picker, "stop")
        assert (picker.run, first.state) == (first, "stopped")
        assert 0 < first.counts.answered < 300
        assert picker.buttons["stop"].disabled
        press(picker, "run")
        assert picker.run.state == "finished"
        assert picker.run.counts.reused == first.counts.answered
        assert first.counts.requests + picker.run.counts.requests == 300


def test_what_ends_a_run_is_told_and_the_picker_goes_on(busy_api, path):
    """A wrong key, then a deadline that cannot be kept: each with its advice, and the buttons are back."""
    plan = a_plan(reviews(3_000), tier="start")
    client = busy_api.client().copy(api_key="sk-wrong")
    picker = settled(cs.pick(plan, client, ledger=path))
    press(picker, "run")
    assert "ANTHROPIC_API_KEY" in text_of(picker, "said")
    assert picker.run.state == "failed"
    press(picker, "pilot")
    press(picker, "yes")
    assert "ANTHROPIC_API_KEY" in text_of(picker, "said")
    assert picker.pilot is None
    picker.controls["deadline"].value = "0.5"
    press(picker, "run")
    assert "the deadline is 30 s" in text_of(picker, "said")
    assert not picker.buttons["run"].disabled


def test_no_error_of_a_callback_is_lost(picker, monkeypatch):
    """What is no fault of the plan is shown too, with what led to it."""

    def broken(_):
        msg = "<broken>"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(picks, "card", broken)
    picker.controls["tier"].value = "build"
    assert "ZeroDivisionError: <broken>" in text_of(picker, "said")
    assert "test_picking.py" in text_of(picker, "said")
    assert "<broken>" not in picker._panel._texts["said"].value


def test_without_a_client_it_connects_when_a_button_is_clicked(monkeypatch, busy_api, path):
    """Planning needs none; the first click makes one, and says what it is before it asks."""
    made = []
    monkeypatch.setattr(asking, "connect", lambda: made.append(busy_api.client()) or made[-1])
    picker = settled(cs.pick(BEGINNINGS["plain"], ledger=path))
    picker.controls["tier"].value = "build"
    assert "Both connect when clicked" in text_of(picker, "terms")
    assert made == []
    press(picker, "pilot")
    assert text_of(picker, "said") == "SIMULATED: replies are synthetic and cost nothing."
    press(picker, "run")
    assert len(made) == 1


def test_calls_that_are_paid_for_are_called_so():
    """A client of another machine is not asked whether it is a simulator's."""
    client = AsyncAnthropic(api_key="sk-ant-test", base_url="https://api.example.com")
    picker = settled(cs.pick(BEGINNINGS["plain"], client, ledger=None))
    assert text_of(picker, "said") == "Calls go to api.example.com and are paid for."
    press(picker, "pilot")
    assert asked(picker).startswith("Spend about $0.0")


def test_what_is_left_without_a_kernel_is_the_line_of_code(picker):
    """Beside the widget there is plain HTML and text: figures and code, as they are when it is shown."""
    picker.controls["tier"].value = "build"
    bundle = picker._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == picker._panel.box.model_id
    assert 'plan.replace(tier="build")' in bundle["text/plain"] == repr(picker)
    assert 'plan.replace(tier="build")' in html.unescape(bundle["text/html"])
    assert "Run the cell again for its controls." in bundle["text/html"]
    assert not re.search(r"<(style|script|svg)|var\(", bundle["text/html"])
    assert picker._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"]["model_id"] == (
        picker._panel.box.model_id
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("a plan",), "cs.pick shows a plan, and this is a str"),
        ((BEGINNINGS["plain"], "a client"), "The client is a str"),
    ],
)
def test_what_is_no_plan_or_no_client_is_refused(given, words):
    """Before there is any widget."""
    with pytest.raises(cs.PlanError, match=words):
        cs.pick(*given)


@pytest.mark.parametrize("most", [-1, float("nan"), None, "1"])
def test_a_sum_that_is_none_is_refused(most):
    """Else a run would never ask."""
    with pytest.raises(cs.PlanError, match="confirm_dollars"):
        cs.pick(BEGINNINGS["plain"], confirm_dollars=most)
