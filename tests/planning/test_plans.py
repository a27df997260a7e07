"""Plans: free to build, checked at once, changed by `replace`."""

import asyncio
import datetime as dt
import functools
import inspect
import json
import math
import numbers
from decimal import Decimal
from fractions import Fraction
from typing import get_args

import anthropic
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog
from claudescale.planning import choices, plans
from claudescale.planning.estimates import OPTIONS
from claudescale.planning.plans import PARAMETERS, REQUESTS

SECRET = "my diagnosis is private"


def test_nothing_is_sent_until_run():
    """Everything a plan can tell it tells without a call."""
    with simulator() as api:
        plan = a_plan(reviews(10))
        assert plan.options.height == 2
        assert plan.compare(tier=[1, "start"]).height == 4
        assert plan.requests.height == 10
        assert all(shown for shown in (repr(plan), plan._repr_html_()))
        assert plan.head(2).totals.rows == plan.sample(2).totals.rows == 2
        assert api.stats["calls"] == 0


def test_requests_are_what_would_be_sent():
    """One row per distinct request: a custom_id the API accepts, and the body as JSON."""
    frame = pl.DataFrame({"text": ["a", "b", "a", None]})
    requests = a_plan(frame, "Say {text}", system="Be brief.").requests
    assert requests.schema == REQUESTS
    assert requests["custom_id"].str.contains(r"^[A-Za-z0-9_-]{1,64}$").all()
    bodies = [json.loads(body) for body in requests["params"]]
    assert [body["messages"][0]["content"] for body in bodies] == ["Say a", "Say b"]
    assert {(body["model"], body["system"], body["max_tokens"]) for body in bodies} == {
        (MODEL, "Be brief.", 64)
    }


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"model": "claude-haiku-55"}, cs.UnknownModel, "claude-haiku-5-5"),
        ({"tier": "strat"}, cs.UnknownTier, "start"),
        ({"prompt": "{txt}"}, cs.UnknownColumn, "text"),
        ({"prompt": '{"a": {text}}'}, cs.BadTemplate, "{{"),
        ({"returns": {"text": pl.String}}, cs.NameTaken, "rename"),
        ({"returns": int}, cs.BadReturns, "pl."),
        ({"budget": float("nan")}, cs.PlanError, "dollars"),
        ({"frame": pl.Series(["a"])}, cs.PlanError, "to_frame"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_at_once(given, error, words):
    """Each mistake has its class, all of them a PlanError and a ValueError, with what to type instead."""
    arguments = {"frame": pl.DataFrame({"text": [SECRET]}), "prompt": "{text}", "model": MODEL, **given}
    with pytest.raises(error, match=words.replace("{", r"\{").replace("(", r"\(")) as raised:
        cs.plan(**arguments)
    assert isinstance(raised.value, cs.PlanError | ValueError)
    assert SECRET not in str(raised.value)


def test_there_is_no_default_model():
    """The model decides the price: leaving it out is an error of Python's own."""
    with pytest.raises(TypeError, match="model"):
        cs.plan(reviews(1), "{text}")


def test_a_lazy_frame_that_cannot_be_planned():
    """A LazyFrame's own error is a PlanError at once, without its words, which may quote data."""
    lazy = pl.LazyFrame({"text": [SECRET]})
    with pytest.raises(cs.PlanError, match=r"ColumnNotFoundError.*frame\.collect\(\)"):
        a_plan(lazy.select("missing"))
    plan = a_plan(lazy.with_columns(number=pl.col("text").cast(pl.Int64)), "{number}")
    for ask in (lambda: plan.totals, lambda: plan.options, lambda: plan.requests, lambda: plan.sample(1)):
        with pytest.raises(cs.PlanError, match=r"cannot be read.*frame\.collect\(\)") as raised:
            ask()
        assert SECRET not in str(raised.value)
    assert "cannot be run" in repr(plan)
    assert SECRET not in plan._repr_html_()


def test_replace_keeps_the_rest():
    """A changed plan differs in that alone; the old one stays as it is; a misspelt name is refused."""
    plan = a_plan(reviews(3), budget=1.0)
    other = plan.replace(tier=1, max_tokens=32)
    same = [name for name in PARAMETERS if name not in {"tier", "max_tokens"}]
    assert all(getattr(plan, name) is getattr(other, name) for name in same)
    assert (plan.max_tokens, other.max_tokens) == (64, 32)
    with pytest.raises(cs.PlanError, match="There is: frame, prompt"):
        plan.replace(tiers=1)
    with pytest.raises(AttributeError):
        plan.model = MODEL


def test_compare_names_its_choices():
    """One row per combination and mode, led by the names that were compared."""
    plan = a_plan(reviews(3))
    table = plan.compare(model=[MODEL, "claude-sonnet-5-5"], tier=["start", 2], budget=[None, 1.0])
    assert table.columns == ["model", "tier", "budget", *OPTIONS, "gain"]
    assert table["model"].to_list() == [MODEL] * 8 + ["claude-sonnet-5-5"] * 8
    assert table["tier"].to_list() == (["start"] * 4 + ["tier 2"] * 4) * 2
    assert table["budget"].to_list() == [None, None, 1.0, 1.0] * 4
    assert table["mode"].to_list() == ["live", "batch"] * 8
    sonnet = plan.replace(model="claude-sonnet-5-5", tier=2).options
    assert_frame_equal(table[12:14].select(OPTIONS.names()), sonnet)
    only = plan.compare(tier=["start", "build"], mode=["batch"])
    assert only.select("tier", "mode").rows() == [("start", "batch"), ("build", "batch")]
    assert_frame_equal(plan.compare(), plan.options)


def test_the_rows_are_read_once():
    """Comparing models, tiers and lengths measures the frame a single time."""
    reads = []
    frame = reviews(5).lazy().map_batches(lambda read: reads.append(1) or read, schema={"text": pl.String})
    plan = a_plan(frame)
    plan.compare(model=[MODEL, "claude-sonnet-5-5"], tier=["start", "build"], max_tokens=[10, 20])
    assert plan.options.height == plan.replace(budget=1.0).options.height == 2
    assert len(reads) == 1


def test_what_an_editor_completes_is_what_there_is():
    """Modes, efforts, models and tiers of the signatures exist; `compare` takes what `plan` does."""
    models, tiers = (get_args(get_args(names)[0]) for names in (plans.ModelName, plans.TierName))
    assert [catalog.model(name).id for name in models] == list(models)
    assert all(catalog.tier(name) for name in tiers)
    assert {*get_args(plans.Mode)} == {*choices.MODES, choices.AUTO}
    assert {*get_args(plans.Effort)} == {
        effort for each in catalog.MODELS.values() for effort in each.efforts
    }
    given = set(inspect.signature(cs.plan).parameters)
    assert set(PARAMETERS) == given | {"measured", "learned"}
    assert set(plans.Lists.__annotations__) == given - {"frame"}


def test_sample_is_seeded():
    """The same seed draws the same rows, another draws others, and no row comes twice."""
    plan = a_plan(reviews(100).lazy())
    assert_frame_equal(plan.sample(10, 1).frame, plan.sample(10, 1).frame)
    assert not plan.sample(10, 1).frame.equals(plan.sample(10, 2).frame)
    assert plan.sample(10).frame["text"].n_unique() == 10
    assert plan.sample(1_000).frame.height == 100


def test_a_deadline_is_minutes_or_a_timedelta():
    """Both ways of saying it are the same."""
    with simulator() as api:
        for deadline in (5, dt.timedelta(minutes=5)):
            with pytest.raises(cs.ImpossibleDeadline, match="the deadline is 5 m 00 s"):
                finished(
                    cs.plan(reviews(1_000), "{text}", model=MODEL, tier=1, deadline=deadline), api.client()
                )


def test_the_cards_hide_the_rows_and_escape_the_rest():
    """Neither text nor prompt is in a plan's card, and what could be markup is text."""
    names = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
    tier = cs.Limits(**dict.fromkeys(names, 5), source="<b>me</b>")
    plan = a_plan(pl.DataFrame({"text": [SECRET]}), "Top secret: {text}", tier=tier)
    for shown in (repr(plan), plan._repr_html_()):
        assert SECRET not in shown
        assert "Top secret" not in shown
    assert "&lt;b&gt;me&lt;/b&gt;" in plan._repr_html_()
    assert "<b>" not in plan._repr_html_()
    assert len(repr(plan).splitlines()) <= 12
    assert repr(plan).splitlines()[-1] == "pilot = await plan.sample(50).run(client)"


def test_a_wrong_client_is_refused_before_anything_is_sent():
    """A synchronous client, or something else, is told what to use; so is a client without a key."""
    for client in (anthropic.Anthropic(api_key="k"), "key"):
        with pytest.raises(cs.PlanError, match=r"cs\.connect\(\)"):
            a_plan(reviews(1)).start(client, ledger=None)
    with pytest.raises(cs.PlanError, match="ANTHROPIC_API_KEY"):
        a_plan(reviews(1)).start(anthropic.AsyncAnthropic(), ledger=None)


def test_without_a_client_one_is_made(tmp_path, monkeypatch, capsys):
    """plan.run() alone connects: with no key in the environment to a simulator, which is said."""
    monkeypatch.chdir(tmp_path)
    run = asyncio.run(a_plan(reviews(1)).run(ledger=None, progress=False))
    assert run.job.simulated
    assert "SIMULATED" in capsys.readouterr().err


# ------------------------------------------------------------------------------- numbers of any kind


@numbers.Integral.register
@functools.total_ordering
class Int64:
    """Stands for NumPy's integer, which need not be installed: an Integral that is no int."""

    def __index__(self):
        return 5

    __int__ = __index__

    def __float__(self):
        return 5.0

    def __eq__(self, other):
        return other == 5

    def __lt__(self, other):
        return other > 5

    def __hash__(self):
        return hash(5)


def plan(frame=None, prompt="Say {text}", **options):
    """Return a small plan."""
    return cs.plan(reviews(2) if frame is None else frame, prompt, **{"model": MODEL, **options})


@pytest.mark.parametrize("value", [Int64(), Decimal(5), Fraction(10, 2), 5.0])
@pytest.mark.parametrize("name", ["max_tokens", "concurrency", "budget", "deadline"])
def test_numbers_of_any_kind_are_plain_ones(name, value):
    """A number of another library gives the very plan that Python's own gives, also by replace."""
    for made in (plan(**{name: value}), plan().replace(**{name: value})):
        found = getattr(made, name)
        assert (found, type(found) in {int, float}) == (5, True)
        assert type(made.max_tokens) is int
        assert made.requests.equals(plan(**{name: 5}).requests)
        assert made.options.equals(plan(**{name: 5}).options)


def test_numpys_own():
    """NumPy's scalars are numbers, its durations are durations, its truths are no numbers."""
    numpy = pytest.importorskip("numpy")
    assert type(plan(max_tokens=numpy.int64(5)).max_tokens) is int
    assert type(plan(share=numpy.float32(0.5)).share) is float
    assert plan(deadline=numpy.timedelta64(2, "h")).deadline == 120
    for value in (numpy.bool_(1), numpy.array([1, 2]), numpy.float64("nan")):
        with pytest.raises(cs.PlanError, match="budget="):
            plan(budget=value)


def test_rows_are_counted_by_numbers_of_any_kind():
    """Head and sample take such numbers as well, and a whole float."""
    assert plan().head(Fraction(1)).totals.rows == plan().sample(Decimal(1), seed=Int64()).totals.rows == 1
    assert plan().sample(2.0).totals.rows == 2


def test_a_simulators_speed_may_be_a_decimal():
    """The speed is a plain number afterwards."""
    with cs.Simulator(speed=Decimal(60)) as simulator:
        assert type(simulator.clock.speed) is float


WRONG = {
    "max_tokens": ["5", True, 5.5, None, math.nan, -1, Decimal("NaN")],
    "concurrency": [2.5, "3", True, math.inf, 0],
    "budget": [True, math.inf, -1, [5], 10**400, Decimal("sNaN"), 5j],
    "deadline": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), math.nan, -3, True, dt.timedelta(-1)],
    "share": ["1", True, None, math.nan, 0],
    "mode": ["Batch", None, ["live"]],
    "model": [None, 5, ["claude-haiku-5-5"]],
    "tier": [None, True, 2.5, [1]],
    "system": [5, ["a"], b"x"],
    "cache": ["yes", None, 3],
    "returns": [5, "str", [], {}, object],
    "effort": [5, ["low"]],
    "thinking": ["on", True],
    "params": [[1], "x", {5: 1}],
    "prompt": [None, 5, b"x {text}"],
    "frame": [5, [1], "rows.csv"],
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_a_wrong_kind_are_told_what_to_type(name):
    """What cannot be a parameter is a PlanError of ours, never a raw error, and nothing is sent."""
    for value in WRONG[name]:
        with pytest.raises(cs.PlanError):
            plan(**{name: value})


@pytest.mark.parametrize("rows", ["3", -1, None, 2.5, True])
def test_no_number_of_rows(rows):
    """Head and sample say what a number of rows is."""
    for ask in (plan().head, plan().sample):
        with pytest.raises(cs.PlanError, match="how many rows"):
            ask(rows)


def test_a_ledger_is_a_path():
    """A ledger that is no path is told so before anything is sent."""
    with cs.Simulator() as simulator, pytest.raises(cs.PlanError, match="path of a file"):
        plan().start(simulator.client(), ledger=5)
