"""Trials: the same rows through every choice, scored and priced; the cheapest good one is picked, or none."""

import math

import polars as pl
import pytest
from parity import CHEAP, DEAR, LABELS, MIDDLE, MODELS, RIGHT, answering, api_of, number_of, numbers
from parity import done as run
from parity import parity_plan as a_plan
from running import WIDE_LIMITS, simulator

import claudescale as cs
from claudescale.evidence.judging import EVIDENCE
from claudescale.evidence.trials import TRIAL

WRONG_EVERY = {"cheap": 5, "middle": 50, "dear": 10_000}
answer = answering(**WRONG_EVERY)
api = api_of(answer)


def row_of(trial, choice):
    return trial.table.row(by_predicate=pl.col("choice") == choice, named=True)


def test_a_trial_shows_what_it_costs_before_anything_is_sent(api):
    """A row per model with rows, dollars and minutes as its plan has them; the rest is null."""
    trial = cs.trial(a_plan(500), MODELS, n=40, score="truth")
    assert trial.table.schema == TRIAL
    assert trial.table["choice"].to_list() == trial.table["model"].to_list() == MODELS
    for model in MODELS:
        takes = a_plan(frame=trial.sample, model=model).options.filter(mode="live")
        row = row_of(trial, model)
        assert (row["rows"], row["dollars"], row["minutes"]) == (40, takes["dollars"][0], takes["minutes"][0])
    assert trial.table.select("score", "seconds", "failed", "simulated").null_count().row(0) == (3,) * 4
    assert "Nothing is sent yet" in repr(trial)
    assert repr(trial).endswith("await trial.run(client)")
    assert "await trial.run(client)" in trial._repr_html_()
    assert trial.plot.quality().to_dict()["description"].startswith("Nothing to show yet")
    assert api.stats["calls"] == 0


def test_every_model_is_given_the_same_rows_and_the_cheapest_good_one_is_picked(api):
    """Scores are shares of right replies, dollars what the server billed; a plan keeps mode and rows."""
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
    assert (plan.model, plan.mode, plan.compiled.totals.rows, plan.compiled.expected.calls) == (
        MIDDLE,
        "batch",
        500,
        120,
    )
    assert trial.pick(min_score=0.7).model == CHEAP
    assert trial.pick(min_score=0.9, by="minutes").model in {MIDDLE, DEAR}
    assert trial.evidence(min_score=0.9).schema == EVIDENCE
    assert repr(trial).startswith("SIMULATED Trial of 3 choices on 120 rows, scored by the truth in 'truth'")
    assert "invented" in repr(trial)
    shown = trial.plot.quality(min_score=0.9)._repr_mimebundle_()
    assert shown["text/plain"].startswith("SIMULATED: 2 of 3 surely reach 0.9")
    assert shown["image/png"]


@pytest.mark.parametrize(
    ("lists", "choices", "best"),
    [
        (
            {"prompts": ["Even or odd? {number}", "Odd or even? {number}"]},
            ["prompt 1", "prompt 2"],
            "prompt 1",
        ),
        ({"efforts": ["high", "low"]}, ["high", "low"], "low"),
    ],
)
def test_efforts_and_prompts_are_compared_like_models(api, lists, choices, best):
    """Each is a choice on the same rows, and `pick` returns the plan with the one that is good enough."""
    trial = cs.trial(a_plan(500, model=MIDDLE), n=120, score="truth", **lists)
    assert list(trial.plans) == choices
    assert set(run(trial, api.client()).table["model"]) == {MIDDLE}
    picked, sent = trial.pick(min_score=0.8), trial.plans[best]
    assert (picked.prompt, picked.effort, picked.compiled.totals.rows) == (sent.prompt, sent.effort, 500)


def test_too_little_evidence_raises_with_the_rows_that_would_do(api):
    """No model is returned on ten rows; the exception says how many more, and what to type."""
    trial = run(cs.trial(a_plan(500), [MIDDLE, DEAR], n=10, score="truth"), api.client())
    with pytest.raises(cs.NotEnoughEvidence, match="rows more would settle it") as caught:
        trial.pick(min_score=0.9)
    assert f"n={10 + caught.value.rows_more} " in str(caught.value)
    with pytest.raises(cs.NotEnoughEvidence, match="of the plan's 500 rows"):
        trial.pick(min_score=0.999)
    n = 10 + 2 * caught.value.rows_more
    again = run(cs.trial(a_plan(500), [MIDDLE, DEAR], n=n, score="truth"), api.client())
    assert again.pick(min_score=0.9).model in {MIDDLE, DEAR}


def test_a_trial_resumes_and_a_larger_one_pays_for_the_new_rows_only(api, path):
    """With one ledger nothing is sent twice, n=30 has the rows of n=20, and the picked plan uses all."""
    first = run(cs.trial(a_plan(500), [CHEAP, DEAR], n=20, score="truth"), api.client(), path)
    again = run(cs.trial(a_plan(500), [CHEAP, DEAR], n=20, score="truth"), api.client(), path)
    assert api.stats["calls"] == 40
    same = ["choice", "rows", "score", "score_low", "dollars", "seconds", "dollars_per_1000_rows"]
    assert again.table.select(same).equals(first.table.select(same))
    larger = run(cs.trial(a_plan(500), [CHEAP, DEAR], n=30, score="truth"), api.client(), path)
    assert set(first.sample["number"]) < set(larger.sample["number"])
    assert api.stats["calls"] == 60
    cs.wait(larger.pick(min_score=0.3).run(api.client(), ledger=path, progress=False))
    assert api.stats["calls"] == 60 + 470


def test_the_ways_to_score_give_what_they_say(api, path):
    """Expression, function and truth column agree, agreement is with the dearest, numbers are averaged."""
    scores = ["truth", RIGHT, lambda results: results.select(RIGHT).to_series(), None]
    tables = [
        run(cs.trial(a_plan(500), MODELS, n=60, score=score), api.client(), path).table for score in scores
    ]
    assert api.stats["calls"] == 180  # another score pays for nothing
    assert [table["score"].to_list() for table in tables] == [tables[0]["score"].to_list()] * 4
    assert tables[3]["score_low"][2] == tables[3]["score_high"][2] == 1
    number = run(cs.trial(a_plan(500), MODELS, n=60, score=1 - pl.col("number") / 2000), api.client(), path)
    row = row_of(number, CHEAP)
    assert row["score"] == pytest.approx(1 - number.sample["number"].mean() / 2000)
    assert row["score_low"] < row["score"] < row["score_high"]
    assert number.table.equals(number.table)


def test_a_row_that_failed_scores_nothing_and_is_counted(path):
    """Cut off or broken, a row is wrong; with agreement, rows on which the reference failed do not count."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number < 10:
            return "no json"
        return "x" * 100_000 if body["model"] == DEAR and number in {10, 11} else answer(body)

    with simulator(replies=spoilt) as api:
        trial = run(cs.trial(a_plan(30), [CHEAP, DEAR], n=30, score="truth"), api.client(), path)
        assert row_of(trial, CHEAP)["why"] == "10 invalid_reply"
        assert row_of(trial, DEAR)["why"] == "2 max_tokens"
        assert row_of(trial, DEAR)["score"] == pytest.approx(
            1 - 3 / 30
        )  # 0 is wrong for all, two are cut off
        agreement = run(cs.trial(a_plan(30), [CHEAP, DEAR], n=30), api.client(), path)
        assert agreement.table["rows"].to_list() == [28, 28]
        assert agreement.scores[CHEAP].sum() == 28 - 10 - 3  # 15, 20 and 25 are wrong, 0 and 5 broken


def test_rows_without_text_or_truth_are_not_judged(api):
    """Only rows that have a truth are sampled, of a LazyFrame too; an unsent row does not count."""
    frame = numbers(60).with_columns(
        truth=pl.when(pl.col("number") < 20).then("truth"),
        number=pl.when(pl.col("number") != 7).then("number"),
    )
    trial = run(cs.trial(a_plan(frame=frame.lazy()), [CHEAP, DEAR], n=50, score="truth"), api.client())
    assert trial.sample.height == 20
    assert trial.table["rows"].to_list() == [19, 19]
    assert api.stats["calls"] == 38


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": [CHEAP, "claude-sonet-5-5"]}, cs.UnknownModel, "claude-sonnet-5-5"),
        ({"models": None}, cs.PlanError, "models=None: give two or more"),
        ({"models": None, "efforts": "low"}, cs.PlanError, "efforts='low': give two or more"),
        ({"efforts": ["low", "high"]}, cs.PlanError, "compares one thing"),
        ({"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, cs.PlanError, "twice"),
        ({"n": 1}, cs.PlanError, "fewer than 2 rows"),
        ({"n": 2.5}, cs.PlanError, "n=2.5"),
        ({"score": "trut"}, cs.UnknownColumn, "'truth'"),
        ({"score": "number"}, cs.PlanError, "labels of the replies: even, odd"),
        ({"score": pl.col("label")}, cs.UnknownColumn, "'label'"),
        ({"score": lambda results: results["label"]}, cs.UnknownColumn, "'label'"),
        ({"score": pl.col("reply").cast(pl.String)}, cs.PlanError, "String"),
        ({"score": pl.col("number", "truth")}, cs.PlanError, "score="),
        ({"score": lambda _: 0.5}, cs.PlanError, "a float"),
        ({"score": 0.9}, cs.PlanError, "score=0.9"),
        ({"confidence": 95}, cs.PlanError, "confidence=95"),
        ({"budget": 0}, cs.PlanError, "budget=0"),
        ({"budget": 1e-6}, cs.ImpossibleBudget, "larger budget"),
        ({"plan": {"returns": None}, "score": None}, cs.PlanError, "Free text"),
        ({"plan": {"frame": pl.scan_csv("no such file.csv"), "prompt": "x"}}, cs.PlanError, "cannot be read"),
        ({"plan": {"returns": {"a": LABELS, "b": pl.Int8}}}, cs.PlanError, r"score=pl\.col\('a'\) == pl"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, error, words):
    """A wrong model, number, score, budget or plan raises when the trial is made."""
    frame = numbers(100)
    given = {"models": MODELS, "score": "truth"} | {name: options[name] for name in options if name != "plan"}
    with pytest.raises(error, match=words):
        cs.trial(a_plan(**{"frame": frame, **options.get("plan", {})}), **given)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"min_score": 0.9}, r"await trial\.run"),
        ({"min_score": "0.9"}, "min_score='0.9'"),
        ({"min_score": math.nan}, "min_score=nan"),
        ({"min_score": 0.9, "by": "seconds"}, "by='seconds'"),
    ],
)
def test_nothing_can_be_picked_before_the_run_or_by_a_wrong_gate(asked, words):
    """`pick` says what to do first, and what a gate is."""
    with pytest.raises(cs.PlanError, match=words):
        cs.trial(a_plan(500), MODELS, score="truth").pick(**asked)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_budget_is_never_passed(factor):
    """Replies twice as long as guessed: the trial stops, within its budget, and says what is missing."""
    plan = a_plan(returns=None, max_tokens=1000)
    budget = (
        cs.trial(plan, [CHEAP, DEAR], n=40, score=pl.col("error").is_null()).table["dollars"].sum() * factor
    )
    with simulator(replies=lambda _: "word " * 450) as api:
        trial = cs.trial(plan, [CHEAP, DEAR], n=40, score=pl.col("error").is_null(), budget=budget)
        assert "Budget: $" in repr(trial)
        run(trial, api.client())
        assert 0 < trial.table["dollars"].sum() <= budget
        assert 0 < trial.table["rows"].min() <= trial.table["rows"].max() < 40
        assert trial.table["failed"].to_list() == [0, 0]
        assert "Not answered: " in repr(trial)


def test_a_run_that_cannot_go_on_ends_the_trial_and_is_sent_again_by_the_same_cell(api, path):
    """A wrong key raises as for any run and is no model's failure; the trial can be run again."""
    trial = cs.trial(a_plan(500), [CHEAP, DEAR], n=10, score="truth")
    with simulator(faults={401: 1.0}) as refusing, pytest.raises(cs.RunStopped, match="authentication_error"):
        run(trial, refusing.client(), path)
    assert list(trial.runs) == [CHEAP]
    assert trial.table["rows"].to_list() == [0, 10]  # what was judged, and what would be sent
    assert trial.table["dollars_per_1000_rows"].null_count() == 1
    with pytest.raises(cs.NotEnoughEvidence, match="no row has a score"):
        trial.pick(min_score=0.5)
    assert "claude-opus-5-5. The same cell again" in repr(trial)
    run(trial, api.client(), path)
    assert trial.table["rows"].to_list() == [10, 10]


@pytest.mark.slow
def test_stronger_simulated_models_are_right_more_often():
    """Of one seed there is one truth: models agree with the strongest the more, the stronger they are."""
    labels = pl.Enum(["delivery", "quality", "price", "service", "size"])
    frame = pl.DataFrame({"text": [f"Customer {n} wrote about order {n * 7}." for n in range(600)]})
    models = ["claude-haiku-4-5", CHEAP, MIDDLE, "claude-fable-5-1"]
    plan = cs.plan(frame, "Topic of: {text}", model=CHEAP, tier=WIDE_LIMITS, returns=labels, max_tokens=4000)
    with simulator(seed=3, speed=50) as api:
        scores = run(cs.trial(plan, models, n=600), api.client()).table["score"].to_list()
    assert scores == pytest.approx([0.87 * 0.98, 0.9 * 0.98, 0.95 * 0.98, 1.0], abs=0.04)
    assert scores == sorted(scores)
