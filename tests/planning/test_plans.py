"""Plans: free to build, checked at once, changed by `replace`, compared by `compare`."""

import asyncio
import datetime as dt
import inspect
import re
import warnings
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import get_args

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import MODEL, WIDE_LIMITS, a_plan, reviews, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.planning import calibration, estimates, plans

SECRET = "my diagnosis is private"
PLAN = a_plan(reviews(2))


def test_nothing_is_sent_until_run():
    """Everything a plan can show takes no call; it has thirteen members besides its parameters, all fixed."""
    verbs = "compare head sample replace retry calibrate count_tokens learn_limits run start"
    members = {name for name in vars(PLAN) | vars(cs.Plan) if name[0] != "_"} - set(plans.PARAMETERS)
    assert members == {"compiled", "options", "requests", "plot", *verbs.split()}
    with simulator() as api:
        made = a_plan(reviews(10))
        assert made.compare(tier=[1, "start"]).height == 2 * made.options.height == 4
        assert made.requests.height == 10
        assert all(shown for shown in (repr(made), made._repr_html_()))
        assert made.head(2).requests.height == made.sample(2).requests.height == 2
        assert api.stats["calls"] == 0
    with pytest.raises(AttributeError):
        made.model = MODEL


def test_a_frame_is_one_of_polars_or_texts_or_an_arrow_table():
    """Any holder of rows gives the same rows; pandas, pyarrow and DuckDB have the Arrow C stream."""
    frame = pl.DataFrame({"text": ["a", None]})
    arrow = SimpleNamespace(__arrow_c_stream__=frame.__arrow_c_stream__)
    for given in (frame.lazy(), ["a", None], arrow):
        assert_frame_equal(a_plan(given).requests, a_plan(frame).requests)
    with pytest.raises(cs.PlanError, match="a list of texts"):
        a_plan([1])


def test_numbers_of_any_kind_are_plain_ones():
    """A number of another library gives the same plan as Python's own; what is no such number is refused."""
    for name in ("max_tokens", "concurrency", "budget", "deadline"):
        number = getattr(PLAN.replace(**{name: Decimal(5)}), name)
        assert (number, type(number) in {int, float}) == (5, True)
        for wrong in ("5", True, Decimal("NaN"), float("inf")):
            with pytest.raises(cs.PlanError, match=f"{name}="):
                PLAN.replace(**{name: wrong})
    assert PLAN.replace(deadline=dt.timedelta(minutes=5)).deadline == 5


def test_head_and_sample_take_some_of_the_rows():
    """The same seed draws the same rows, another seed others, and no row twice; more than all are all."""
    made = a_plan(reviews(100).lazy())
    one, again, other = (set(made.sample(10.0, seed).frame["text"]) for seed in (1, 1, 2))
    assert one == again != other
    assert (len(one), made.sample(1_000).frame.height, made.head(10.0).requests.height) == (10, 100, 10)
    for rows in ("3", -1, 2.5, True):
        with pytest.raises(cs.PlanError, match="how many rows"):
            made.head(rows)


def test_a_lazy_frame_that_cannot_be_planned():
    """A LazyFrame's own error becomes a PlanError without its message, which may quote data."""
    lazy = pl.LazyFrame({"text": [SECRET]})
    with pytest.raises(cs.PlanError, match=r"ColumnNotFoundError.*frame\.collect\(\)"):
        a_plan(lazy.select("missing"))
    made = a_plan(lazy.with_columns(number=pl.col("text").cast(pl.Int64)), "{number}")
    for ask in (lambda: made.options, lambda: made.requests, lambda: made.sample(1)):
        with pytest.raises(cs.PlanError, match=r"cannot be read.*frame\.collect\(\)") as raised:
            ask()
        assert SECRET not in str(raised.value)
    assert "plan cannot run" in repr(made)


def test_compare_is_what_the_changed_plans_say():
    """Each combination and mode has a row, equal to `replace` and `options`; the frame is read once."""
    reads, system = [], "You read complaints of customers and answer in one word. " * 400
    frame = reviews(50).lazy().map_batches(lambda read: reads.append(1) or read, schema={"text": pl.String})
    mine = a_plan(frame, system=system, deadline=90)
    lists = {"tier": [1, "Build"], "model": [MODEL, "claude-opus-5-5"], "cache": [True, False]}
    table = mine.compare(**lists, budget=[None, 9.0])
    assert table.columns == [*lists, "budget", *estimates.OPTIONS, "gain", "cache_hit_share"]
    assert table["tier"].to_list() == ["tier 1"] * 24 + ["build"] * 24
    for row in table[::5].iter_rows(named=True):
        other = mine.replace(**{name: row[name] for name in (*lists, "budget")})
        option = estimates.option(other.options, row["mode"])
        assert {name: row[name] for name in option} == pytest.approx(option)
        own = estimates.option(other.replace(tier=mine.tier).options, row["mode"])
        assert row["gain"] == pytest.approx(own["minutes"] / option["minutes"])
    # Live calls hit the cache but for the first, a batch's to the documented middle, a hybrid's unknown.
    hits = table.select("cache", "mode", "cache_hit_share").unique(maintain_order=True).rows()
    shares = {"live": 0.98, "batch": calibration.BATCH_HIT_SHARE, "hybrid": None}
    assert hits == [(True, *known) for known in shares.items()] + [(False, mode, 0.0) for mode in shares]
    assert table.filter(mode="batch")["gain"].unique().to_list() == [1.0]
    only = mine.compare(tier=["start", WIDE_LIMITS], mode=["batch"])
    assert only.select("tier", "mode").rows() == [("start", "batch"), ("Limits(60 k, 100 M, 100 M)", "batch")]
    times = mine.compare(deadline=[None, 30, dt.timedelta(hours=2)], mode=["hybrid"])
    assert times["deadline"].to_list() == [30, 120]
    assert_frame_equal(mine.compare(), mine.options)
    assert len(reads) == 1
    for mode, error in (("bath", "'live', 'batch', 'hybrid'"), ("hybrid", r"deadline=\[60, 90\]")):
        with pytest.raises(cs.PlanError, match=error):
            PLAN.compare(mode=[mode])


def test_what_an_editor_completes_is_what_there_is():
    """Modes, efforts, models and tiers in the signatures exist; all methods take the parameters of `plan`."""
    models, tiers = (get_args(get_args(names)[0]) for names in (plans.ModelName, plans.TierName))
    assert [catalog.model(name).id for name in models] == list(models)
    assert all(catalog.tier(name) for name in tiers)
    assert {*get_args(plans.Mode)} == {*plans.MODES, "auto"}
    assert {*get_args(plans.Effort)} == set().union(*(model.efforts for model in catalog.MODELS.values()))
    given = set(inspect.signature(cs.plan).parameters)
    assert set(plans.PARAMETERS) == given == set(plans.Changes.__annotations__)
    assert set(plans.Lists.__annotations__) == given - {"frame"}


def test_the_card_hides_the_rows_and_escapes_the_rest():
    """No text or prompt appears in a plan's card, markup is escaped, and it says what to type."""
    tier = replace(WIDE_LIMITS, source="<b>me</b>")
    made = a_plan(pl.DataFrame({"text": [SECRET]}), "Top secret: {text}", system="By {text}.", tier=tier)
    text, html = repr(made), made._repr_html_()
    assert not [word for word in (SECRET, "Top secret") if word in text or word in html]
    assert "&lt;b&gt;me&lt;/b&gt;" in html
    assert "<b>" not in html
    assert len(text.splitlines()) <= 12
    assert text.splitlines()[-1] == "Next: pilot = cs.wait(plan.sample(50).run(client))"


def test_a_forgotten_await_says_so():
    """Each awaitable says what to type, and nothing is requested; asyncio runs one as any coroutine."""
    with simulator() as api, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for line in ("plan.run(client)", "plan.count_tokens(client)", "plan.learn_limits(client)"):
            ask = eval(line, {"plan": PLAN, "client": api.client()})
            with pytest.raises(AttributeError, match=rf"await is missing. Type .* = await {re.escape(line)}"):
                _ = ask.results
            ask.close()
        assert api.stats["calls"] == 0
        assert asyncio.run(PLAN.run(api.client(), ledger=None, progress=False)).state == "finished"
