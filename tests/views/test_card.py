"""Cards of plans and runs: the facts and the next step that they show are right."""

from collections import Counter
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import polars as pl
import pytest
from drawing import under_way
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.running.batch_rules import Expected
from claudescale.running.job import Ends
from claudescale.text import dollars, tokens
from claudescale.views.card import Card

TAGS = {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "small", "code", "span"}


def test_a_card_shows_its_facts_and_nothing_else():
    """The HTML is balanced, has only the tags of a card, and shows every text as it is."""
    texts = ["<b>&$1 $2", "<i>", "&lt;", "</div>", "`x`"]
    title, *row, note, following = texts
    card = Card(title=title, header=("name", "value"), rows=[row], notes=[note], next=following)
    root = ET.fromstring(card.html())
    assert {element.tag for element in root.iter()} <= TAGS
    assert [text for text in texts if text not in "".join(root.itertext())] == []


def test_a_card_as_text_has_aligned_columns_and_at_most_two_footnotes():
    """Plain text has the same facts as HTML, in columns; from the second on the notes are one line."""
    rows = [("first", "1"), ("2nd", "1,000")]
    card = Card(title="T", header=("", "a"), rows=rows, notes=["n.", "o.", "p."], next="go()")
    assert card.text() == "T\n             a\n  first      1\n  2nd    1,000\nn.\no. p.\nNext: go()"
    assert card.html().count("<small>") == 3


def test_a_card_of_a_frame_reads_each_column_by_the_unit_in_its_name():
    """Dollars, minutes, tokens and shares have their formats, `x` beside `x_p90` is a span, null is blank."""
    columns = {
        "mode": ["live", "batch"], "dollars": [0.4, 0.2], "dollars_p90": [0.65, 0.2], "minutes": [4.5, 60.0],
        "input_tokens": [12_400, None], "cache_hit_share": [0.64, float("nan")], "requests": [1_200, 3],
    }  # fmt: skip
    card = Card.of(pl.DataFrame(columns), title="T")
    assert card.header == ["mode", "dollars", "time", "input tokens", "cache hit share", "requests"]
    assert card.rows == [
        ["live", "$0.40 to $0.65", "4 m 30 s", "12.4 k", "64%", "1,200"],
        ["batch", "$0.20", "1 h 00 m", "", "?", "3"],
    ]


BATCHES = Expected(2, 1, 9, 2_400.0, 80_000.0)


@pytest.mark.parametrize(("known", "words"), [
    ({"state": "starting"}, "Run starting: reading the rows."),
    ({"sent": 9_000, "answered": 1_234, "job": {"ends": Ends(1.5, 2.0), "estimate": {"dollars": 1.0}}},
     "Run running: 1,234 of 9,000 rows done, 1 m 30 s to 2 m 00 s left, $0 of about $1.00."),
    ({"sent": 9, "in_flight": (2, 4), "job": {"asked": "stop", "ends": Ends(1.5, 2.0)}},
     "Run stopping: 0 of 9 rows done, waiting for 2 calls in flight, $0."),
    ({"sent": 9, "job": {"expected": BATCHES}},
     "Run running: 0 of 9 rows done, batches usually within 40 min and at the latest in 23 h, $0."),
    ({"job": {"expected": BATCHES}}, "1 of 3 batches ended. The API shows no progress of a batch before"),
    ({"in_flight": (3, 16), "latency": {0.5: 1.25, 0.95: 12.3}.get},
     "Latency: 1.2 s (p95 12 s), 3 calls in flight, 16 allowed."),
    ({"errors": Counter(timeout_error=1, overloaded_error=12), "refusals": Counter(rate_limit_error=2)},
     "Errors: 12 overloaded_error, 1 timeout_error. Refused (429): 2 rate_limit_error."),
    ({"job": {"clock": SimpleNamespace(speed=10.0)}}, "10 times as fast as here."),
    ({"minutes": 1.0, "requests": 100_000}, "Faster than the limit: a bucket that is full at the start"),
])  # fmt: skip
def test_a_run_under_way_says_how_far_it_is_and_what_only_then_matters(known, words):
    """State, rows, time left, dollars, latency, failures by kind, batches, and why it outran its limit."""
    assert words in repr(under_way(**known))


@pytest.mark.parametrize("calls", [50_000, 130_000])
def test_a_full_bucket_is_no_reason_for_more_calls_than_it_holds(calls):
    """A run within its limit, or faster than a full bucket allows, is not said to be a burst."""
    assert "Faster" not in repr(under_way(requests=calls, minutes=1.0))


def test_a_run_says_what_is_reused_and_ends_with_what_to_type(path, capsys):
    """A line prices the missing rows; its card has estimate, measurement and limit, as the run has them."""
    with simulator() as api:
        finished(a_plan(reviews(30)), api.client(), ledger=path)
        capsys.readouterr()
        run = cs.wait(a_plan(reviews(40)).run(api.client(), ledger=path))
    words = "nothing is paid. 10 rows live on claude-haiku-5-5 (30 requests in the ledger already): about $"
    shown = capsys.readouterr().err
    assert (words in shown, "40/40" in shown) == (True, True)
    first, _, estimated, measured, limit, _, last = repr(run).splitlines()
    finish = "SIMULATED Run finished: 40 of 40 rows answered, 30 requests in the ledger already; 10 calls in "
    assert first.startswith(finish)
    assert dollars(run.job.estimate["dollars"]) in estimated
    assert dollars(run.counts.dollars) in measured
    assert tokens(run.counts.output_tokens) in measured
    assert (limit.split(), last) == (["limit", "60,000"], "Next: run.results")


@pytest.mark.parametrize("kept", [True, False])
def test_what_the_same_cell_would_pay_again(path, kept):
    """With a ledger the same cell sends the missing rows; without one it pays again, and the card says so."""
    with simulator(faults={"spend_cap": 0.0005}) as api, pytest.raises(cs.RunStopped) as stopped:
        finished(a_plan(reviews(100), concurrency=4), api.client(), ledger=path if kept else None)
    words = "sends only what is missing" if kept else "pays for them again"
    assert words in str(stopped.value)
    assert words in repr(stopped.value.run)


@pytest.mark.parametrize("tier", ["start", "build"])
def test_a_tier_that_does_not_fit_the_answers_is_told_on_both_cards(tier):
    """A run's card and that of the plan it calibrates say so; if tier and answers agree neither does."""
    with simulator(tier="build", speed=60) as api:
        plan = a_plan(reviews(5), tier=tier)
        run = finished(plan, api.client())
    for card in (repr(run), repr(plan.calibrate(run))):
        assert ("The API allows" in card) is (tier == "start")
    assert ("those are the limits of tier='build'." in repr(run)) is (tier == "start")


def test_a_plan_card_is_short_whatever_there_is_to_tell():
    """It has at most eight lines, even with a deadline, a cache, a mismatch and a next tier."""
    system = "You read complaints of customers and answer in one word. " * 400
    plan = a_plan(reviews(50), tier="start", system=system, cache=True, mode="auto", deadline=90)
    with simulator(tier="build", speed=60) as api:
        lines = repr(cs.wait(plan.learn_limits(api.client()))).splitlines()
    assert len(lines) <= 8
    assert not any("$0 " in line for line in lines)
    assert "In a batch 64% of the requests are assumed to hit the cache: 30% to 98% is usual." in lines[-2]
    assert lines[-1].startswith("Next: pilot = ")
