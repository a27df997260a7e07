"""Trials: the same rows through every choice, scored and priced; the cheapest good one or none is picked."""

import math

import polars as pl
import pytest
from parity import CHEAP, DEAR, MIDDLE, MODELS, RIGHT, answering, api_of, number_of, numbers
from parity import done as run
from parity import parity_plan as a_plan
from running import simulator

import claudescale as cs
from claudescale.evidence.judging import EVIDENCE
from claudescale.evidence.trials import TRIAL

WRONG_EVERY = {"cheap": 5, "middle": 50, "dear": 10_000}
answer = answering(**WRONG_EVERY)
api = api_of(answer)


def a_trial(n, models=MODELS, **options):
    return cs.trial(a_plan(500), models, n=n, **{"score": "truth"} | options)


def row_of(trial, choice):
    return trial.table.row(by_predicate=pl.col("choice") == choice, named=True)


def test_a_trial_shows_what_it_costs_before_anything_is_sent():
    """Each model has a row with its plan's rows, dollars and minutes; the rest is null."""
    trial = a_trial(40)
    assert trial.table.schema == TRIAL
    assert trial.table["choice"].to_list() == trial.table["model"].to_list() == MODELS
    takes = a_plan(frame=trial.sample, model=DEAR).options.filter(mode="live").select("dollars", "minutes")
    assert trial.table.select("rows", "dollars", "minutes").row(2) == (40, *takes.row(0))
    assert trial.table.select("score", "seconds", "failed", "simulated").null_count().row(0) == (3,) * 4
    assert "Nothing is sent yet" in repr(trial)
    assert repr(trial).endswith("cs.wait(trial.run(client))")
    assert trial.plot.quality().to_dict()["description"].startswith("Nothing to show yet")


@pytest.mark.slow
def test_every_model_is_given_the_same_rows_and_the_cheapest_good_one_is_picked(api):
    """Scores are shares of right replies, dollars are what the server billed; a plan keeps mode and rows."""
    whole = a_plan(500, mode="batch", deadline=5000)
    trial = run(cs.trial(whole, MODELS, n=120, score="truth"), api.client())
    assert api.stats["calls"] == 360
    assert trial.table["dollars"].sum() == pytest.approx(api.stats["dollars"])
    assert len({tuple(plan.frame["number"]) for plan in trial.plans.values()}) == 1
    for model, every in zip(MODELS, WRONG_EVERY.values(), strict=True):
        row = row_of(trial, model)
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
    assert trial.evidence(min_score=0.9).schema == EVIDENCE
    assert repr(trial).startswith("SIMULATED Trial of 3 choices on 120 rows, scored by the truth in 'truth'")
    assert "invented" in repr(trial)
    assert repr(trial.plot.quality(min_score=0.9)).startswith("SIMULATED: 2 of 3 shown to reach 0.9")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lists", "best"),
    [
        ({"prompt": ["Even or odd? {number}", "Odd or even? {number}"]}, "prompt 1"),
        ({"effort": ["high", "low"]}, "low"),
    ],
)
def test_efforts_and_prompts_are_compared_like_models(api, lists, best):
    """Each is a choice on the same rows, and `pick` returns the plan with the one that is good enough."""
    trial = run(cs.trial(a_plan(500, model=MIDDLE), n=60, score="truth", **lists), api.client())
    assert list(trial.plans) == lists.get("effort", ["prompt 1", "prompt 2"])
    picked, sent = trial.pick(min_score=0.8), trial.plans[best]
    assert (picked.prompt, picked.effort, picked.compiled.totals.rows) == (sent.prompt, sent.effort, 500)


@pytest.mark.slow
def test_a_larger_trial_pays_for_its_new_rows_only(api, path):
    """With one ledger nothing is sent twice and n=30 includes n=10's rows; too few say how many suffice."""
    first = run(a_trial(10, [CHEAP, DEAR]), api.client(), path)
    with pytest.raises(cs.errors.NotEnoughEvidence, match="rows more would settle it") as caught:
        first.pick(min_score=0.9)
    assert f"n={10 + caught.value.rows_more} of the plan's 500 rows" in str(caught.value)
    again = run(a_trial(10, [CHEAP, DEAR]), api.client(), path)
    assert api.stats["calls"] == 20
    assert again.table.drop("minutes").equals(first.table.drop("minutes"))
    larger = run(a_trial(30, [CHEAP, DEAR]), api.client(), path)
    assert set(first.sample["number"]) < set(larger.sample["number"])
    assert api.stats["calls"] == 60
    cs.wait(larger.pick(min_score=0.3).head(40).run(api.client(), ledger=path, progress=False))
    sampled = larger.sample.filter(pl.col("number") < 40).height
    assert api.stats["calls"] == 60 + 40 - sampled


@pytest.mark.slow
def test_the_ways_to_score_give_what_they_say(api, path):
    """Expression, function and truth column agree, agreement is with the most expensive, numbers average."""
    scores = ["truth", RIGHT, lambda results: results.select(RIGHT).to_series(), None]
    trials = [run(a_trial(40, score=score), api.client(), path) for score in scores]
    assert api.stats["calls"] == 120  # another score costs nothing
    tables = [trial.table for trial in trials]
    assert [table["score"].to_list() for table in tables] == [tables[0]["score"].to_list()] * 4
    assert tables[3]["score_low"][2] == tables[3]["score_high"][2] == 1
    number = run(a_trial(40, score=1 - pl.col("number") / 2000), api.client(), path)
    row = row_of(number, CHEAP)
    assert row["score"] == pytest.approx(1 - number.sample["number"].mean() / 2000)
    assert row["score_low"] < row["score"] < row["score_high"]


@pytest.mark.slow
def test_a_row_that_failed_scores_nothing_and_one_without_text_is_not_judged(path):
    """Truncated and broken rows are wrong; agreement skips the rows on which the reference failed."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number < 10:
            return "no json"
        return "x" * 100_000 if body["model"] == DEAR and number in {10, 11} else answer(body)

    frame = numbers(40).with_columns(
        truth=pl.when(pl.col("number") < 31).then("truth"),
        number=pl.when(pl.col("number") != 30).then("number"),
    )
    plan = a_plan(frame=frame.lazy())
    with simulator(replies=spoilt) as api:
        trial = run(cs.trial(plan, [CHEAP, DEAR], n=35, score="truth"), api.client(), path)
        assert trial.sample.height == 31  # those that have a truth
        assert trial.table["rows"].to_list() == [30, 30]
        assert trial.table["why"].to_list() == ["10 invalid_reply", "2 max_tokens"]
        assert row_of(trial, DEAR)["score"] == pytest.approx(1 - 3 / 30)  # and 0 is wrong for all
        sampled = a_plan(frame=trial.sample)
        agreement = run(cs.trial(sampled, [CHEAP, DEAR], n=35), api.client(), path)
        assert agreement.table["rows"].to_list() == [28, 28]
        assert agreement.scores[CHEAP].sum() == 28 - 10 - 3  # 15, 20 and 25 are wrong, 0 and 5 broken


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": [CHEAP, "claude-sonet-5-5"]}, cs.errors.UnknownModel, "claude-sonnet-5-5"),
        ({"models": None}, cs.PlanError, "models=None: give two or more"),
        ({"effort": ["low", "high"]}, cs.PlanError, "compares one thing"),
        ({"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, cs.PlanError, "twice"),
        ({"n": 1}, cs.PlanError, "fewer than 2 rows"),
        ({"score": "trut"}, cs.errors.UnknownColumn, "'truth'"),
        ({"score": lambda results: results["label"]}, cs.PlanError, '"label" not found'),
        ({"score": 0.9}, cs.PlanError, "score=0.9"),
        ({"confidence": 95}, cs.PlanError, "confidence=95"),
        ({"returns": None, "score": None}, cs.PlanError, "Free text"),
        ({"returns": {"a": pl.Int8, "b": pl.Int8}}, cs.PlanError, r"score=pl\.col\('a'\) == pl"),
        ({"samples": 2}, cs.PlanError, r"plan\.replace\(samples=1\)"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, error, words):
    """A wrong model, number, score, budget or plan raises when the trial is made."""
    of_plan = {name: options[name] for name in ("returns", "samples") if name in options}
    of_trial = {name: value for name, value in options.items() if name not in of_plan}
    with pytest.raises(error, match=words):
        cs.trial(a_plan(100, **of_plan), **{"models": MODELS, "score": "truth"} | of_trial)


def test_nothing_can_be_picked_before_the_run_or_by_a_wrong_gate():
    """`pick` says what to do first and what a gate is."""
    wrong = {
        r"await trial\.run": {},
        "min_score=nan": {"min_score": math.nan},
        "by='seconds'": {"by": "seconds"},
    }
    for words, asked in wrong.items():
        with pytest.raises(cs.PlanError, match=words):
            a_trial(50).pick(**{"min_score": 0.9} | asked)


@pytest.mark.slow
def test_the_budget_is_never_passed():
    """With replies twice as long as guessed, the trial stops within its budget and says what is missing."""
    plan, options = a_plan(returns=None, max_tokens=1000), {"n": 40, "score": pl.col("error").is_null()}
    budget = cs.trial(plan, [CHEAP, DEAR], **options).table["dollars"].sum()
    with simulator(replies=lambda _: "word " * 450) as api:
        trial = cs.trial(plan, [CHEAP, DEAR], **options, budget=budget)
        assert "Budget: $" in repr(trial)
        run(trial, api.client())
    assert 0 < trial.table["dollars"].sum() <= budget
    assert 0 < trial.table["rows"].min() <= trial.table["rows"].max() < 40
    assert "Not answered: " in repr(trial)


@pytest.mark.slow
def test_a_run_that_cannot_go_on_ends_the_trial_and_is_sent_again_by_the_same_cell(api, path):
    """A wrong key raises as for any run and counts against no model; the trial can be run again."""
    trial = a_trial(10, [CHEAP, DEAR])
    with simulator(faults={401: 1.0}) as refusing, pytest.raises(cs.RunStopped, match="authentication_error"):
        run(trial, refusing.client(), path)
    assert trial.table["rows"].to_list() == [0, 10]  # rows judged, and rows to send
    with pytest.raises(cs.errors.NotEnoughEvidence, match="no row has a score"):
        trial.pick(min_score=0.5)
    assert "claude-opus-5-5. The same cell again" in repr(trial)
    assert run(trial, api.client(), path).table["rows"].to_list() == [10, 10]
