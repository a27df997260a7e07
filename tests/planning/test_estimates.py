"""What a plan says before anything is known, its arithmetic, and which mode meets its deadline and budget."""

import datetime as dt
import re
from dataclasses import replace
from typing import Literal

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from predicted import HAIKU, OPUS, SONNET, case, ran, texts
from pydantic import BaseModel
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.planning import estimates
from claudescale.planning.calibration import Line, Measured
from claudescale.planning.estimates import OPTIONS

SYSTEM = "Be a judge of parcels. " * 900


def with_measured(plan, measured):
    """Return a plan of which something is known."""
    return replace(plan, _measured=measured)


def test_options_in_one_table():
    """Batch is half the price of live; savings are told against every row live."""
    frame = pl.concat([texts(90), texts(90).head(10)])
    options = a_plan(frame).options
    assert options.schema == OPTIONS
    live, batch = options.iter_rows(named=True)
    assert (live["mode"], batch["mode"]) == ("live", "batch")
    assert batch["dollars"] == pytest.approx(live["dollars"] / 2)
    assert live["dollars_saved"] > 0, "the repeated rows"
    assert live["dollars"] + live["dollars_saved"] == pytest.approx(batch["dollars"] + batch["dollars_saved"])
    assert (batch["minutes"], batch["minutes_p90"]) == (60, 24 * 60)
    for share in (0.3, 0.38, 0.42, 0.46, 1.0):  # calls in flight as many as a run begins with, more, fewer
        usual, slow = a_plan(texts(90), share=share, tier="start").options.row(0)[3:5]
        assert slow >= usual > 0
    assert_frame_equal(options, a_plan(frame.lazy()).options)


def test_nothing_to_send():
    """A plan of nulls alone costs nothing and takes no time."""
    frame = pl.DataFrame({"text": [None]}, schema={"text": pl.String})
    option = a_plan(frame).options.row(0, named=True)
    assert (option["dollars"], option["minutes"], option["binding"]) == (0, 0, "nothing to send")


def test_a_cached_prefix_is_priced_as_one_write_and_reads():
    """It is far below the price without, but for one row, which only writes; hits that fail are paid for."""
    plan, one = (a_plan(texts(rows), system=SYSTEM) for rows in (500, 1))
    cached = plan.replace(cache=True)
    assert cached.options["dollars"][0] < plan.options["dollars"][0] / 3
    assert one.replace(cache=True).options["dollars"][0] > one.options["dollars"][0]
    seldom = with_measured(cached, replace(cached.compiled.expected, cache_hit_share=0.5))
    assert seldom.options["dollars"][0] > 1.5 * cached.options["dollars"][0]


def test_a_spend_limit_binds_where_the_dollars_are_above_it():
    """A mode that costs more than the tier may spend in a month says so; one that costs less does not."""
    frame = pl.select(text=pl.format("{} {}", pl.lit("a" * 2_000), pl.int_range(120_000)))
    options = cs.plan(frame, "{text}", model=OPUS, tier="start").options
    above = options.filter(pl.col("dollars") > 500)
    assert 0 < above.height < options.height
    assert set(above["binding"]) == {estimates.SPEND_LIMIT}
    assert estimates.SPEND_LIMIT not in set(options.filter(pl.col("dollars") <= 500)["binding"])


def test_a_price_of_longer_rows_follows_the_line_of_the_pilot():
    """The first rows of a sorted frame are shorter than all: replies that grow with them are longer, too."""
    measured = Measured(output=Line(40.0, 0.9, 8.0, calls=50, center=30.0), latency=Line(1.0))
    plan = with_measured(a_plan(texts(800, is_sorted=True), "Translate: {text}", max_tokens=4_000), measured)
    near, far = plan.head(100).compiled.totals, plan.compiled.totals
    assert far.output_tokens / far.requests > 1.5 * near.output_tokens / near.requests


# ----------------------------------------------------------------------- a guess, before anything is known

TEXTS = pl.DataFrame({"text": ["late again", "works"]})


def guessed(prompt="Judge: {text}", **options):
    """Return the output tokens of a reply that a plan assumes."""
    return cs.plan(TEXTS, prompt, **{"model": HAIKU, **options}).compiled.expected.output_tokens


class Order(BaseModel):
    """What is read out of a mail."""

    number: int
    kind: Literal["refund", "exchange"]
    when: dt.date
    note: str
    tags: list[str]


NAMES = '{"who":{"first":"' + "x" * 50 + '","last":"' + "x" * 50 + '"},"at":"2026-01-31T09:30:00Z"}'
ORDER = '{"number":17,"kind":"exchange","when":"2026-01-31","note":"' + "x" * 50 + '","tags":["'


@pytest.mark.parametrize(
    ("returns", "written"),
    [
        (pl.Enum(["yes", "no", "other"]), '{"reply":"yes"}'),
        ({"stars": pl.Int64, "sure": pl.Float64 | None}, '{"stars":4,"sure":0.93}'),
        ({"who": pl.Struct({"first": pl.String, "last": pl.String}), "at": pl.Datetime("us", "UTC")}, NAMES),
        (Order, ORDER + '","'.join(["x" * 50] * 3) + '"]}'),
    ],
    ids=["enum", "numbers", "struct", "model"],
)
def test_a_typed_reply_is_as_long_as_its_form(returns, written):
    """Keys and punctuation are exact, labels are of their mean length."""
    tokens = len(written) / cs.plan(TEXTS, "{text}", model=HAIKU).compiled.model.characters_per_token
    assert guessed(returns=returns) == pytest.approx(tokens, abs=6)


def test_free_text_is_as_long_as_is_asked_for():
    """Words, sentences and paragraphs that prompt or system prompt ask for; never above max_tokens."""
    asked = ["Name it in one word: {text}", "In one sentence: {text}", "Three sentences on {text}", "{text}"]
    assert sorted(asked, key=guessed) == asked
    assert guessed(system="Answer with a single word.") == guessed(asked[0]) < 10
    assert guessed("Write 200 words on {text}") > 2 * guessed("Write 80 words on {text}")
    assert guessed(max_tokens=16) == 16
    assert guessed(pl.col("text")) == guessed("{text}")


def test_thinking_is_assumed_where_a_model_thinks():
    """By effort, where it cannot be off or is asked for; none where it is off."""
    plain = guessed()
    assert guessed(model=SONNET) == plain, "off in bulk"
    names = ("low", "medium", "high", "xhigh", "max")
    efforts = [guessed(effort=effort, max_tokens=8_000) for effort in names]
    assert plain < efforts[0]
    assert efforts == sorted(efforts)
    assert plain < guessed(model=OPUS) < guessed(model=OPUS, effort="high")
    budget = {"type": "enabled", "budget_tokens": 1_024}
    assert guessed(model="claude-haiku-4-5", thinking=budget, max_tokens=4_000) > 500
    card = repr(cs.plan(TEXTS, "Judge: {text}", model=OPUS, returns=pl.Boolean))
    assert "estimated from characters, output assumed (59 tokens, 50 of them thinking, in 1.7 s): cal" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["level", "explained"])
def test_the_first_price_is_near_what_is_paid(name):
    """Of the notebooks' plans: within a quarter, before anything is known."""
    plan, api = case(name, 100)
    assert plan.options["dollars"][0] == pytest.approx(ran(plan, **api).dollars, rel=0.25)


# --------------------------------------------------------------- what meets a deadline and a budget


def auto(rows=200, **given):
    """Return a plan that takes some minutes live."""
    limits = cs.Limits(requests_per_minute=20, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)
    return a_plan(reviews(rows), **{"mode": "auto", "tier": limits, **given})


@pytest.mark.parametrize(
    ("deadline", "mode"), [(None, "batch"), (25 * 60, "batch"), (120, "hybrid"), (30, "live"), (12, "live")]
)
def test_auto_is_the_cheapest_that_is_in_time(deadline, mode):
    """Half the price where there is a day, a hybrid where there are hours, live where there are minutes."""
    assert auto(deadline=deadline).compiled.resolved() == mode


@pytest.mark.parametrize(("deadline", "budget"), [(1, 0.1), (12, 0.1), (16, 2e-3), (99, 0.1), (2_000, 0.002)])
def test_what_is_chosen_meets_deadline_and_budget(deadline, budget):
    """It meets them at the 90th percentile, and nothing that is cheaper does."""
    plan = auto(deadline=deadline, budget=budget)
    rows = {row["mode"]: row for row in plan.options.iter_rows(named=True)}
    least = {"live": 0, "batch": 0, "hybrid": rows["live"]["minutes_p90"] + estimates.CANCEL_MINUTES}
    fits = {
        mode: row["dollars"]
        for mode, row in rows.items()
        if max(row["minutes_p90"], least[mode]) <= deadline and row["dollars_p90"] <= budget
    }
    if not fits:
        with pytest.raises(cs.PlanError):
            plan.compiled.resolved()
    else:
        assert fits[plan.compiled.resolved()] == min(fits.values())


def test_what_cannot_be_met_names_what_can():
    """An impossible deadline says one that would do, and that does; a budget, the cheapest way's price."""
    with pytest.raises(cs.errors.ImpossibleDeadline, match="mode='live', the quickest") as refused:
        auto(deadline=2).compiled.resolved()
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert auto(deadline=minutes).compiled.resolved() == "live"
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"up to \$0\.\d+ in mode='batch'"):
        auto(budget=1e-6).compiled.resolved()
    with pytest.raises(cs.errors.ImpossibleDeadline, match=r"live, and mode='hybrid' keeps 5 m 00 s"):
        auto(mode="hybrid", deadline=12).compiled.check()
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"about \$.* enough for about \d+ rows"):
        auto(mode="live", budget=0.001).compiled.check()
    assert auto(mode="live", budget=0.001).compiled.check(part=0.01)["dollars"] < 0.001
    assert auto(deadline=0.001).compiled.likely_mode == "batch", "a picture of it can be drawn"
    assert "cannot run" in repr(auto(deadline=0.001))


def test_a_hybrid_costs_a_batch_where_one_is_in_time_and_live_calls_at_most():
    """Its 90th percentile in minutes is the deadline, in dollars that of live calls."""
    for deadline, like in ((120, "batch"), (30, "live")):
        options = auto(mode="hybrid", deadline=deadline).options
        rows = {row["mode"]: row for row in options.iter_rows(named=True)}
        hybrid = rows["hybrid"]
        assert hybrid["dollars"] == rows[like]["dollars"]
        assert hybrid["dollars_p90"] == rows["live"]["dollars_p90"]
        assert (hybrid["minutes"], hybrid["minutes_p90"]) == (min(60, deadline), deadline)


def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run is one of that mode."""
    plan = a_plan(reviews(3), mode="auto", deadline=30)
    assert "live <-" in repr(plan)
    with simulator(speed=60) as api:
        run = finished(plan, api.client())
    assert (run.plan.mode, run.attempts["mode"].unique().to_list()) == ("live", ["live"])
