"""Plans: free to build, checked at once, changed by `replace`."""

import asyncio
import json
from datetime import timedelta

import anthropic
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
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
        ({"model": "claude-3-opus-20240229"}, cs.UnknownModel, "claude-opus"),
        ({"tier": "strat"}, cs.UnknownTier, "start"),
        ({"prompt": "{txt}"}, cs.UnknownColumn, "text"),
        ({"prompt": '{"a": {text}}'}, cs.BadTemplate, "{{"),
        ({"returns": {"text": pl.String}}, cs.NameTaken, "rename"),
        ({"returns": int}, cs.BadReturns, "pl."),
        ({"mode": "turbo"}, cs.PlanError, "'live'"),
        ({"budget": 0}, cs.PlanError, "dollars"),
        ({"budget": "5"}, cs.PlanError, "dollars"),
        ({"budget": float("nan")}, cs.PlanError, "dollars"),
        ({"deadline": -1}, cs.PlanError, "minutes"),
        ({"deadline": "soon"}, cs.PlanError, "timedelta"),
        ({"concurrency": 0}, cs.PlanError, "whole number"),
        ({"concurrency": 2.5}, cs.PlanError, "whole number"),
        ({"share": 0}, cs.PlanError, "share"),
        ({"max_tokens": 0}, cs.PlanError, "max_tokens"),
        ({"params": {"stream": True}}, cs.PlanError, "stream"),
        ({"frame": {"text": ["a"]}}, cs.PlanError, "pl.DataFrame"),
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


def test_a_pandas_frame_is_shown_the_way():
    """The message has the one call that makes a Polars frame of it."""
    with pytest.raises(cs.PlanError, match=r"pandas\.DataFrame.*pl\.from_pandas\(frame\)"):
        a_plan(type("DataFrame", (), {"__module__": "pandas.core.frame"})())


@pytest.mark.parametrize("name", ["reply", "error"])
def test_a_column_of_our_name(name):
    """A frame that already has a column reply or error is told how to rename it."""
    with pytest.raises(cs.NameTaken, match=rf"frame\.rename\(\{{'{name}'"):
        a_plan(pl.DataFrame({"text": ["a"], name: ["b"]}))


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


def test_measurements_hold_as_long_as_the_question():
    """Another tier or more rows keep a pilot's measurements, another model or prompt voids them."""
    with simulator() as api:
        plan = a_plan(reviews(20))
        measured = plan.calibrate(finished(plan.head(5), api.client()))
    assert plan.measured is None
    assert measured.replace(tier=1).head(3).sample(2).measured == measured.measured
    changes = {"model": "claude-sonnet-5-5", "prompt": "Hm: {text}", "system": "x", "returns": pl.Boolean()}
    for change in ({name: value} for name, value in changes.items()):
        assert measured.replace(**change).measured is None


def test_calibrating_on_nothing():
    """A run without a paid reply of the model has nothing to teach, and says what to run."""
    with simulator(faults={400: 1.0}) as api:
        plan = a_plan(reviews(3))
        run = finished(plan, api.client())
    with pytest.raises(cs.PlanError, match=r"plan\.sample\(50\)"):
        plan.calibrate(run)


def test_compare_names_its_choices():
    """One row per combination and mode, led by the names that were compared."""
    plan = a_plan(reviews(3))
    table = plan.compare(model=[MODEL, "claude-sonnet-5-5"], tier=["start", 2], budget=[None, 1.0])
    assert table.columns == ["model", "tier", "budget", *OPTIONS]
    assert table["model"].to_list() == [MODEL] * 8 + ["claude-sonnet-5-5"] * 8
    assert table["tier"].to_list() == (["start"] * 4 + ["tier 2"] * 4) * 2
    assert table["budget"].to_list() == [None, None, 1.0, 1.0] * 4
    assert table["mode"].to_list() == ["live", "batch"] * 8
    sonnet = plan.replace(model="claude-sonnet-5-5", tier=2).options
    assert_frame_equal(table[12:14].select(OPTIONS.names()), sonnet)
    only = plan.compare(tier=["start", "build"], mode=["batch"])
    assert only.select("tier", "mode").rows() == [("start", "batch"), ("build", "batch")]
    assert_frame_equal(plan.compare(), plan.options)


@pytest.mark.parametrize(
    "lists", [{"model": MODEL}, {"tier": []}, {"max_tokens": 5}, {"tiers": ["start"]}, {"mode": "live"}]
)
def test_compare_wants_lists(lists):
    """One value where a list is needed, an empty list, a misspelt name: each says what to type."""
    with pytest.raises(cs.PlanError, match=r"give a list|There is:"):
        a_plan(reviews(3)).compare(**lists)


def test_the_rows_are_read_once():
    """Comparing models, tiers and lengths measures the frame a single time."""
    reads = []
    frame = reviews(5).lazy().map_batches(lambda read: reads.append(1) or read, schema={"text": pl.String})
    plan = a_plan(frame)
    plan.compare(model=[MODEL, "claude-sonnet-5-5"], tier=["start", "build"], max_tokens=[10, 20])
    assert plan.options.height == plan.replace(budget=1.0).options.height == 2
    assert len(reads) == 1


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
        for deadline in (5, timedelta(minutes=5)):
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
    assert run.simulated
    assert "SIMULATED" in capsys.readouterr().err
