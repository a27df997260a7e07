"""Trials: the same rows through every choice, scored and priced; the cheapest good one or none is picked."""

import math

import polars as pl
import pytest
from drawing import check_drawn_whole
from parity import CHEAP, DEAR, MIDDLE, MODELS, RIGHT, WRONG_EVERY, a_plan, answer, number_of, numbers
from running import finished, simulator

import claudescale as cs
from claudescale.evidence.trials import TRIAL


@pytest.fixture
def api():
    with simulator(replies=answer, speed=200) as one:
        yield one


def a_trial(n, models=MODELS, **options):
    return cs.trial(a_plan(500), models, n=n, **{"score": "truth"} | options)


def test_a_trial_shows_what_it_costs_before_anything_is_sent():
    """Each model has a row with its plan's rows, dollars and minutes, the rest is null; `pick` waits."""
    trial = a_trial(40)
    assert trial.table.schema == TRIAL
    assert trial.table["choice"].to_list() == trial.table["model"].to_list() == MODELS
    takes = a_plan(frame=trial.sample, model=DEAR).options.filter(mode="live").select("dollars", "minutes")
    assert trial.table.select("rows", "dollars", "minutes").row(2) == (40, *takes.row(0))
    assert trial.table.select("score", "seconds", "failed", "simulated").null_count().row(0) == (3,) * 4
    assert "Nothing is sent yet" in repr(trial)
    assert repr(trial).endswith("cs.wait(trial.run(client))")
    assert trial.plot.quality().to_dict()["description"].startswith("Nothing to show yet")
    gates = (r"await trial\.run", 0.9, "minutes"), ("=nan", math.nan, "minutes"), ("by=.s", 0.9, "s")
    for words, gate, by in gates:
        with pytest.raises(cs.PlanError, match=words):
            trial.pick(min_score=gate, by=by)


@pytest.mark.slow
def test_every_model_is_given_the_same_rows_and_the_cheapest_good_one_is_picked(api, path):
    """Scores are shares of right replies, dollars are what the server billed; a plan keeps mode and rows."""
    whole = a_plan(500, mode="batch", deadline=5000)
    trial = finished(cs.trial(whole, MODELS, n=120, score="truth"), api.client(), ledger=path)
    assert trial.table["dollars"].sum() == pytest.approx(api.stats["dollars"])
    assert len({tuple(plan.frame["number"]) for plan in trial.plans.values()}) == 1
    for row, every in zip(trial.table.iter_rows(named=True), WRONG_EVERY.values(), strict=True):
        right = 1 - (trial.sample["number"] % every == 0).mean()
        assert (row["rows"], row["failed"], row["why"], row["simulated"]) == (120, 0, "", True)
        assert row["score"] == pytest.approx(right)
        assert row["score_low"] <= right <= row["score_high"]
        assert row["dollars_per_1000_rows"] == pytest.approx(row["dollars"] / 120 * 1000)
        assert 0 < row["seconds"] <= row["seconds_p90"]
    plan = trial.pick(min_score=0.9)
    assert (plan.model, plan.mode, plan.compiled.totals.rows) == (MIDDLE, "batch", 500)
    assert plan.compiled.expected.calls == 120
    assert trial.pick(min_score=0.7).model == CHEAP
    assert trial.pick(min_score=0.9, by="minutes").model in {MIDDLE, DEAR}
    assert repr(trial).startswith("SIMULATED Trial of 3 choices on 120 rows, scored by the truth in 'truth'")
    quality = trial.plot.quality(min_score=0.9)
    assert repr(quality).startswith("SIMULATED: 2 of 3 shown to reach 0.9")
    check_drawn_whole(quality.to_dict())
    # Expression, function and truth agree, agreement is with the most expensive, and numbers average.
    for score in (RIGHT, lambda results: results.select(RIGHT).to_series(), None):
        other = finished(cs.trial(whole, MODELS, n=120, score=score), api.client(), ledger=path)
        assert other.table["score"].to_list() == trial.table["score"].to_list()
    assert other.table["score_low"][2] == other.table["score_high"][2] == 1
    number = finished(cs.trial(whole, MODELS, n=120, score=pl.col("number") / 500), api.client(), ledger=path)
    row = number.table.row(0, named=True)
    assert row["score_low"] < row["score"] < row["score_high"]
    assert row["score"] == pytest.approx(trial.sample["number"].mean() / 500)
    assert api.stats["calls"] == 360  # another score costs nothing


@pytest.mark.slow
def test_efforts_and_prompts_are_compared_like_models(api):
    """Each is a choice on the same rows, and `pick` returns the plan with the one that is good enough."""
    for kind, values, names in (
        ("effort", ["high", "low"], ["high", "low"]),
        ("prompt", ["Odd or even? {number}", "Is it odd? {number}"], ["prompt 1", "prompt 2"]),
    ):
        trial = cs.trial(a_plan(500, model=MIDDLE), **{kind: values}, n=60, score="truth")
        finished(trial, api.client())
        assert list(trial.plans) == names
        picked = trial.pick(min_score=0.8)
        assert (getattr(picked, kind), picked.compiled.totals.rows) == (values[1], 500)


@pytest.mark.slow
def test_the_same_cell_and_a_larger_trial_pay_for_new_rows_only(api, path):
    """A wrong key raises and counts against no model; n=30 includes n=10's rows; too few say how many do."""
    first = a_trial(10, [CHEAP, DEAR])
    with simulator(faults={401: 1.0}) as refusing, pytest.raises(cs.RunStopped, match="authentication_error"):
        finished(first, refusing.client(), ledger=path)
    assert first.table["rows"].to_list() == [0, 10]  # rows judged, and rows to send
    with pytest.raises(cs.errors.NotEnoughEvidence, match="no row has a score"):
        first.pick(min_score=0.5)
    assert "claude-opus-5-5. The same cell again" in repr(first)
    for _ in range(2):
        assert finished(first, api.client(), ledger=path).table["rows"].to_list() == [10, 10]
    assert api.stats["calls"] == 20
    with pytest.raises(cs.errors.NotEnoughEvidence, match="rows more would settle it") as caught:
        first.pick(min_score=0.9)
    assert f"n={10 + caught.value.rows_more} of the plan's 500 rows" in str(caught.value)
    larger = finished(a_trial(30, [CHEAP, DEAR]), api.client(), ledger=path)
    assert set(first.sample["number"]) < set(larger.sample["number"])
    assert api.stats["calls"] == 60
    finished(larger.pick(min_score=0.3).head(40), api.client(), ledger=path)
    assert api.stats["calls"] == 60 + 40 - larger.sample.filter(pl.col("number") < 40).height


@pytest.mark.slow
def test_a_row_that_failed_scores_nothing_and_one_without_text_is_not_judged(path):
    """Truncated and broken rows are wrong, by an earlier `reply`; agreement skips those of the reference."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number < 10:
            return "no json"
        return "x" * 100_000 if body["model"] == DEAR and number in {10, 11} else answer(body)

    truth, number = pl.when(pl.col("number") < 31).then("truth"), pl.col("number").replace(30, None)
    plan = a_plan(frame=numbers(40).lazy().select(number, reply=truth))
    with simulator(replies=spoilt) as api:
        trial = finished(cs.trial(plan, [CHEAP, DEAR], n=35, score="reply"), api.client(), ledger=path)
        assert trial.sample.height == 31  # those that have a truth
        assert trial.table["rows"].to_list() == [30, 30]
        assert trial.table["why"].to_list() == ["10 invalid_reply", "2 max_tokens"]
        assert trial.table["score"][1] == pytest.approx(1 - 3 / 30)  # and 0 is wrong for all
        sampled = cs.trial(a_plan(frame=trial.sample), [CHEAP, DEAR], n=35)
        agreement = finished(sampled, api.client(), ledger=path)
        assert agreement.table["rows"].to_list() == [28, 28]
        assert agreement.scores[CHEAP].sum() == 28 - 10 - 3  # 15, 20 and 25 are wrong, 0 and 5 broken


@pytest.mark.parametrize(
    ("of_plan", "of_trial", "words"),
    [
        ({}, {"effort": ["low", "high"]}, "compares one thing"),
        ({}, {"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, "twice"),
        ({}, {"n": 1}, "fewer than 2 rows"),
        ({}, {"score": "trut"}, "'truth'"),
        ({}, {"score": lambda results: results["label"]}, '"label" not found'),
        ({}, {"confidence": 95}, "confidence=95"),
        ({"returns": None}, {"score": None}, "Free text"),
        ({"returns": {"a": pl.Int8, "b": pl.Int8}}, {}, r"score=pl\.col\('a'\) == pl"),
        ({"samples": 2}, {}, r"plan\.replace\(samples=1\)"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(of_plan, of_trial, words):
    """A wrong model, number, score, budget or plan raises when the trial is made."""
    with pytest.raises(cs.PlanError, match=words):
        cs.trial(a_plan(100, **of_plan), **{"models": MODELS, "score": "truth"} | of_trial)


@pytest.mark.slow
def test_the_budget_is_never_passed():
    """With replies twice as long as guessed, the trial stops within its budget and says what is missing."""
    plan, options = a_plan(returns=None, max_tokens=1000), {"n": 40, "score": pl.col("error").is_null()}
    budget = cs.trial(plan, [CHEAP, DEAR], **options).table["dollars"].sum()
    with simulator(replies=lambda _: "word " * 450) as api:
        trial = cs.trial(plan, [CHEAP, DEAR], **options, budget=budget)
        assert "Budget: $" in repr(trial)
        finished(trial, api.client())
    assert 0 < trial.table["dollars"].sum() <= budget
    assert 0 < trial.table["rows"].min() <= trial.table["rows"].max() < 40
    assert "Not answered: " in repr(trial)
