"""Plans: free to build, checked at once, changed by `replace`, compared by `compare`."""

import asyncio
import datetime as dt
import inspect
import math
import re
import warnings
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import get_args

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import MODEL, WIDE_LIMITS, a_plan, reviews, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.planning import calibration, estimates, plans
from claudescale.planning.estimates import OPTIONS
from claudescale.planning.plans import PARAMETERS

SECRET = "my diagnosis is private"
OPUS, SONNET = "claude-opus-5-5", "claude-sonnet-5-5"
SYSTEM = "You read complaints of customers and answer in one word. " * 400


def plan(frame=None, prompt="Say {text}", **options):
    """Return a small plan."""
    return cs.plan(reviews(2) if frame is None else frame, prompt, **{"model": MODEL, **options})


def test_nothing_is_sent_until_run():
    """Everything a plan can show takes no call; it has thirteen members besides its parameters."""
    verbs = "compare head sample replace retry calibrate count_tokens learn_limits run start"
    members = {name for name in vars(plan()) | vars(cs.Plan) if name[0] != "_"} - set(PARAMETERS)
    assert members == {"compiled", "options", "requests", "plot", *verbs.split()}
    with simulator() as api:
        made = a_plan(reviews(10))
        assert made.compare(tier=[1, "start"]).height == 2 * made.options.height == 4
        assert made.requests.height == 10
        assert all(shown for shown in (repr(made), made._repr_html_()))
        assert made.head(2).requests.height == made.sample(2).requests.height == 2
        assert api.stats["calls"] == 0


class Table:
    """Stands in for a table of pandas, pyarrow or DuckDB: it has the Arrow C stream and nothing else."""

    def __init__(self, frame):
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "frame", [pl.LazyFrame({"text": ["a", None]}), ["a", None], Table(pl.DataFrame({"text": ["a", None]}))]
)
def test_a_frame_is_one_of_polars_or_texts_or_an_arrow_table(frame):
    """Any holder of rows gives the same rows as the Polars frame."""
    expected = plan(pl.DataFrame({"text": ["a", None]}))
    made = plan(frame)
    assert_frame_equal(made.requests, expected.requests)
    assert_frame_equal(made.options, expected.options)


WRONG = {
    "max_tokens": ["5", True, 5.5, None, math.nan, Decimal("NaN")],
    "concurrency": [2.5, "3", True, math.inf],
    "budget": [True, math.inf, [5], 10**400, Decimal("sNaN"), 5j],
    "deadline": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), math.nan, True, dt.timedelta(-1)],
    "share": ["1", True, None, math.nan],
    "mode": [None, ["live"]],
    "model": [None, ["claude-haiku-5-5"], pl.col("model"), "claude-3-opus-20240229"],
    "tier": [None, True, 2.5, [1]],
    "returns": ["str", [], object, ["good", 1]],
    "prompt": [None, b"x {text}", [{"role": "user"}]],
    "frame": [[1], "rows.csv", {"text": ["a"]}],
}
"""What is no such parameter; `tests/golden/test_errors.py` has more of it, with the words."""


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_a_wrong_kind_are_told_what_to_type(name):
    """An invalid parameter is a PlanError that quotes no text of the frame; nothing is sent."""
    for value in WRONG[name]:
        with pytest.raises(cs.PlanError) as error:
            plan(**{"frame": pl.DataFrame({"text": [SECRET]}), name: value})
        assert SECRET not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [Decimal(5), Fraction(10, 2), 5.0])
def test_numbers_of_any_kind_are_plain_ones(value):
    """A number of another library gives the same plan as Python's own; a deadline may be a timedelta."""
    for name in ("max_tokens", "concurrency", "budget", "deadline"):
        number = getattr(plan().replace(**{name: value}), name)
        assert (number, type(number) in {int, float}) == (5, True)
    assert plan(max_tokens=value).requests.equals(plan(max_tokens=5).requests)
    assert plan(deadline=dt.timedelta(minutes=5)).deadline == 5
    assert plan(reviews(9)).head(value).requests.height == plan(reviews(9)).sample(value).requests.height == 5
    for rows in ("3", -1, None, 2.5, True):
        with pytest.raises(cs.PlanError, match="how many rows"):
            plan().head(rows)


def test_a_lazy_frame_that_cannot_be_planned():
    """A LazyFrame's own error becomes a PlanError without its message, which may quote data."""
    lazy = pl.LazyFrame({"text": [SECRET]})
    with pytest.raises(cs.PlanError, match=r"ColumnNotFoundError.*frame\.collect\(\)"):
        plan(lazy.select("missing"))
    made = plan(lazy.with_columns(number=pl.col("text").cast(pl.Int64)), "{number}")
    for ask in (lambda: made.options, lambda: made.requests, lambda: made.sample(1)):
        with pytest.raises(cs.PlanError, match=r"cannot be read.*frame\.collect\(\)") as raised:
            ask()
        assert SECRET not in str(raised.value)
    assert "plan cannot run" in repr(made)


def test_a_plan_never_changes():
    """`replace` returns another plan that differs in that alone; the original stays the same."""
    before = plan(budget=1.0, max_tokens=64)
    other = before.replace(tier=1, max_tokens=32)
    differ = {name for name in PARAMETERS if getattr(before, name) is not getattr(other, name)}
    assert (differ, before.max_tokens, other.max_tokens) == ({"tier", "max_tokens"}, 64, 32)
    with pytest.raises(AttributeError):
        before.model = MODEL


def test_compare_tells_cache_hits():
    """Live hits are all but the first, a batch's the documented middle, a hybrid's unknown."""
    cached = a_plan(reviews(100), system=SYSTEM).compare(cache=[False, True], deadline=[90])
    hits = {row[:2]: row[2] for row in cached.select("cache", "mode", "cache_hit_share").rows()}
    known = {(True, "live"): 0.99, (True, "batch"): calibration.BATCH_HIT_SHARE, (True, "hybrid"): None}
    assert hits == known | {(False, mode): 0.0 for _, mode in known}


def test_compare_is_what_the_changed_plans_say():
    """Each combination and mode has a row, equal to `replace` and `options`, led by the normalized names."""
    mine = a_plan(reviews(50), system=SYSTEM)
    lists = {"tier": [1, "Build"], "model": [MODEL, OPUS], "cache": [True, False], "budget": [None, 9.0]}
    table = mine.compare(**lists)
    assert table.columns == [*lists, *OPTIONS, "gain", "cache_hit_share"]
    assert table["tier"].to_list() == ["tier 1"] * 16 + ["build"] * 16
    assert table["mode"].to_list() == ["live", "batch"] * 16
    for row in table[::3].iter_rows(named=True):
        other = mine.replace(**{name: row[name] for name in lists})
        assert {name: row[name] for name in OPTIONS} == pytest.approx(
            estimates.option(other.options, row["mode"])
        )
    assert table.filter(mode="batch")["gain"].unique().to_list() == [1.0]
    only = mine.compare(tier=["start", WIDE_LIMITS], mode=["batch"])
    assert only.select("tier", "mode").rows() == [("start", "batch"), ("Limits(60 k, 100 M, 100 M)", "batch")]
    times = mine.compare(deadline=[None, 30, dt.timedelta(hours=2)], mode=["hybrid"])
    assert times["deadline"].to_list() == [30, 120]
    assert_frame_equal(mine.compare(), mine.options)
    for mode, error in (("bath", "'live', 'batch', 'hybrid'"), ("hybrid", r"deadline=\[60, 90\]")):
        with pytest.raises(cs.PlanError, match=error):
            mine.compare(mode=[mode])


def test_the_rows_are_read_once():
    """Comparing models, tiers and lengths measures the frame only once."""
    reads = []
    frame = reviews(5).lazy().map_batches(lambda read: reads.append(1) or read, schema={"text": pl.String})
    made = plan(frame)
    made.compare(model=[MODEL, SONNET], tier=["start", "build"], max_tokens=[10, 20])
    assert made.options.height == made.replace(budget=1.0).options.height == 2
    assert len(reads) == 1


def test_sample_is_seeded():
    """The same seed draws the same rows, another seed others, and no row twice."""
    made = plan(reviews(100).lazy())
    one, again, other = (set(made.sample(10, seed).frame["text"]) for seed in (1, 1, 2))
    assert one == again != other
    assert (len(one), made.sample(1_000).frame.height) == (10, 100)


def test_what_an_editor_completes_is_what_there_is():
    """Modes, efforts, models and tiers in the signatures exist; all methods take the parameters of `plan`."""
    models, tiers = (get_args(get_args(names)[0]) for names in (plans.ModelName, plans.TierName))
    assert [catalog.model(name).id for name in models] == list(models)
    assert all(catalog.tier(name) for name in tiers)
    assert {*get_args(plans.Mode)} == {*plans.MODES, "auto"}
    assert {*get_args(plans.Effort)} == {
        effort for each in catalog.MODELS.values() for effort in each.efforts
    }
    given = set(inspect.signature(cs.plan).parameters)
    assert set(PARAMETERS) == given == set(plans.Changes.__annotations__)
    assert set(plans.Lists.__annotations__) == given - {"frame"}


def test_the_card_hides_the_rows_and_escapes_the_rest():
    """No text or prompt appears in a plan's card, markup is escaped, and it says what to type."""
    made = plan(
        pl.DataFrame({"text": [SECRET]}), "Top secret: {text}", system="They gave {text}.",
        tier=replace(WIDE_LIMITS, source="<b>me</b>"),
    )  # fmt: skip
    text, html = repr(made), made._repr_html_()
    assert not [word for word in (SECRET, "Top secret") if word in text or word in html]
    assert "&lt;b&gt;me&lt;/b&gt;" in html
    assert "<b>" not in html
    assert len(text.splitlines()) <= 12
    assert text.splitlines()[-1] == "pilot = cs.wait(plan.sample(50).run(client))"


def test_without_a_client_one_is_made(monkeypatch, capsys):
    """plan.run() alone connects: without a key in the environment, to a simulator, and it says so."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    run = asyncio.run(plan(reviews(1)).run(ledger=None, progress=False))
    assert run.results["simulated"].all()
    assert "SIMULATED" in capsys.readouterr().err


def test_a_forgotten_await_says_so():
    """Each awaitable says what to type; nothing is requested from the API."""
    with simulator() as api, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for line in ("plan.run(client)", "plan.count_tokens(client)", "plan.learn_limits(client)"):
            ask = eval(line, {"plan": plan(), "client": api.client()})
            with pytest.raises(AttributeError, match=rf"await is missing. Type .* = await {re.escape(line)}"):
                _ = ask.results
        assert api.stats["calls"] == 0
