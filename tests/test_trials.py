"""Trials: the same rows through every model, scored and priced; the cheapest good one is picked, or none."""

import datetime as dt
import json
import math

import polars as pl
import pytest
import vl_convert
from running import WIDE_LIMITS, simulator

import claudescale as cs
from claudescale.evidence.evidence import VERDICTS
from claudescale.evidence.trialframe import TRIAL
from claudescale.evidence.trials import TrialPlots
from claudescale.views import trialcharts

CHEAP, MIDDLE, DEAR = "claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"
MODELS = [CHEAP, MIDDLE, DEAR]
LABELS = pl.Enum(["even", "odd"])
WRONG_EVERY = {CHEAP: 5, MIDDLE: 50, DEAR: 10_000}


def number_of(body):
    return int(body["messages"][0]["content"].split()[-1])


def answer(body):
    """Tell even from odd; a model errs on every n-th number, by `WRONG_EVERY`."""
    number = number_of(body)
    wrong = number % WRONG_EVERY[body["model"]] == 0
    return {"reply": ["even", "odd"][(number + wrong) % 2]}


@pytest.fixture(scope="module")
def api():
    """One simulator whose models err by `WRONG_EVERY`, for tests that do not count its calls."""
    with simulator(replies=answer) as one:
        yield one


@pytest.fixture
def counted():
    """Return a fresh simulator of that kind, whose counts are this test's alone."""
    with simulator(replies=answer) as one:
        yield one


def numbers(rows):
    truth = ["EVEN " if number % 2 == 0 else " Odd" for number in range(rows)]
    return pl.DataFrame({"number": range(rows), "truth": truth})


def a_plan(rows=500, **options):
    options = {"model": CHEAP, "tier": WIDE_LIMITS, "returns": LABELS, "max_tokens": 2000, **options}
    return cs.plan(
        options.pop("frame", numbers(rows)), options.pop("prompt", "Even or odd? {number}"), **options
    )


def run(trial, client, ledger=None):
    return cs.wait(trial.run(client, ledger=ledger, progress=False))


def row_of(trial, model):
    return trial.table.row(by_predicate=pl.col("model") == model, named=True)


def test_a_trial_shows_what_it_costs_before_anything_is_sent(counted):
    """A row per model with rows, dollars and minutes; the rest is null; the card has the sum."""
    trial = cs.trial(a_plan(), MODELS, n=40, score="truth")
    assert trial.table.schema == TRIAL
    assert trial.table["model"].to_list() == MODELS
    assert trial.table["rows"].to_list() == [40] * 3
    dollars = trial.table["dollars"]
    assert dollars.is_sorted()
    assert dollars[0] > 0
    expected = a_plan(40).replace(model=DEAR).options["dollars"][0]
    assert dollars[2] == pytest.approx(expected, rel=0.02)
    assert trial.table.select("score", "seconds", "errors", "simulated").null_count().row(0) == (3,) * 4
    text = repr(trial)
    assert "Nothing is sent yet" in text
    assert "in all" in text
    assert text.endswith("await trial.run(client)")
    assert "in all" in trial._repr_html_()
    assert counted.stats["calls"] == 0


def test_every_model_is_given_the_same_rows_and_measured(counted):
    """Scores are the shares of right replies on the sample, and dollars what the simulator's usage costs."""
    trial = run(cs.trial(a_plan(), MODELS, n=100, score="truth"), counted.client())
    assert counted.stats["calls"] == 300
    sample = trial.sample["number"]
    for model in MODELS:
        right = 1 - (sample % WRONG_EVERY[model] == 0).mean()
        row = row_of(trial, model)
        assert row["rows"] == 100
        assert row["score"] == pytest.approx(right)
        assert row["score_low"] <= right <= row["score_high"]
        assert row["dollars"] == pytest.approx(trial.runs[model].summary["dollars"].item())
        assert row["dollars_per_1000_rows"] == pytest.approx(row["dollars"] * 10)
        assert 0 < row["seconds"] <= row["seconds_p90"]
        assert row["output_tokens_per_second"] > 0
        assert (row["truncated"], row["refused"], row["errors"], row["simulated"]) == (0, 0, 0, True)
    assert len({tuple(scored.frame["number"]) for scored in trial.plans.values()}) == 1
    assert repr(trial).startswith("SIMULATED Trial of 3 models on 100 rows, scored by the truth in 'truth'")
    assert "invented" in repr(trial)


def test_the_cheapest_good_one_is_picked_as_a_calibrated_plan(api):
    """The whole plan comes back with the model and measured estimates; mode and rows are kept."""
    whole = a_plan(mode="batch", deadline=5000)
    trial = run(cs.trial(whole, MODELS, n=120, score="truth"), api.client())
    plan = trial.pick(min_score=0.9)
    assert plan.model == MIDDLE
    assert (plan.mode, plan.deadline, plan.totals.rows) == ("batch", 5000, 500)
    assert plan.expected.calls == 120
    assert trial.pick(min_score=0.7).model == CHEAP
    assert trial.pick(min_score=0.9, by="minutes").model in {MIDDLE, DEAR}
    verdicts = trial.evidence(min_score=0.9)
    assert verdicts.schema == VERDICTS
    assert dict(verdicts.select("model", "clears").iter_rows()) == {CHEAP: False, MIDDLE: True, DEAR: True}


def test_too_little_evidence_raises_with_the_rows_that_would_do(api):
    """No model is returned on ten rows; the exception tells how many more, and what to type."""
    trial = run(cs.trial(a_plan(), [MIDDLE, DEAR], n=10, score="truth"), api.client())
    with pytest.raises(cs.NotEnoughEvidence, match="rows more would settle it") as caught:
        trial.pick(min_score=0.9)
    more = caught.value.rows_more
    assert f"n={10 + more}" in str(caught.value)
    again = run(cs.trial(a_plan(), [MIDDLE, DEAR], n=10 + 2 * more, score="truth"), api.client())
    assert again.pick(min_score=0.9).model in {MIDDLE, DEAR}


def test_none_good_enough_is_said(api):
    """A model that is certainly below is not called undecided, and no rows are asked for."""
    trial = run(cs.trial(a_plan(), [CHEAP, MIDDLE], n=60, score=pl.lit(value=False)), api.client())
    with pytest.raises(cs.NotEnoughEvidence, match=r"None of 2 models reaches 0\.9") as caught:
        trial.pick(min_score=0.9)
    assert caught.value.rows_more is None


def test_a_trial_resumes_and_a_larger_one_pays_for_the_new_rows_only(counted, tmp_path):
    """The same ledger and seed: nothing is sent twice, and n=30 has the rows of n=20 among its own."""
    path, client = tmp_path / "trial.ledger", counted.client()
    first = run(cs.trial(a_plan(), [CHEAP, DEAR], n=20, score="truth"), client, path)
    assert counted.stats["calls"] == 40
    again = run(cs.trial(a_plan(), [CHEAP, DEAR], n=20, score="truth"), client, path)
    assert counted.stats["calls"] == 40
    same = ["model", "rows", "score", "score_low", "dollars", "seconds", "dollars_per_1000_rows"]
    assert again.table.select(same).equals(first.table.select(same))
    larger = run(cs.trial(a_plan(), [CHEAP, DEAR], n=30, score="truth"), client, path)
    assert counted.stats["calls"] == 60
    assert set(first.sample["number"]) < set(larger.sample["number"])
    cs.wait(larger.pick(min_score=0.3).head(500).run(client, ledger=path, progress=False))
    assert counted.stats["calls"] == 60 + 470
    other = cs.trial(a_plan(), [CHEAP, DEAR], n=20, score="truth", seed=1)
    assert set(other.sample["number"]) != set(first.sample["number"])


def test_the_four_ways_to_score_give_what_they_say(api):
    """Expression, function and truth column agree; agreement counts replies that are the dearest model's."""
    client = api.client()

    def by_function(results):
        return results["reply"].cast(pl.String) == results["truth"].str.strip_chars().str.to_lowercase()

    expression = pl.col("reply").cast(pl.String) == pl.col("truth").str.strip_chars().str.to_lowercase()
    tables = [
        run(cs.trial(a_plan(), MODELS, n=60, score=score), client).table
        for score in ("truth", expression, by_function, None)
    ]
    scores = [table["score"].to_list() for table in tables]
    assert scores[0] == scores[1] == scores[2]
    assert scores[3] == pytest.approx(scores[0])  # the dearest is always right here
    assert tables[3].row(2, named=True)["score_low"] == 1


def test_a_number_is_a_score_and_its_interval_the_bootstraps(api):
    """An expression that gives a number is averaged; the interval is around it and seeded."""
    score = 1 - pl.col("number") / 2000
    trial = run(cs.trial(a_plan(), [CHEAP, DEAR], n=50, score=score), api.client())
    row = row_of(trial, CHEAP)
    assert row["score"] == pytest.approx(1 - trial.sample["number"].mean() / 2000)
    assert row["score_low"] < row["score"] < row["score_high"]
    assert trial.table.equals(trial.table)


def test_a_row_that_failed_scores_nothing_and_is_counted():
    """Cut off or broken, a row is wrong; with agreement, rows on which the dearest failed do not count."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number < 10:
            return "no json"
        if body["model"] == DEAR and number in {10, 11}:
            return "x" * 100_000
        return answer(body)

    with simulator(replies=spoilt) as api:
        client = api.client()
        frame = numbers(30)
        trial = run(cs.trial(a_plan(frame=frame), [CHEAP, DEAR], n=30, score="truth"), client)
        cheap, dear = row_of(trial, CHEAP), row_of(trial, DEAR)
        assert (cheap["errors"], cheap["truncated"], cheap["rows"]) == (10, 0, 30)
        assert (dear["errors"], dear["truncated"], dear["rows"]) == (0, 2, 30)
        assert dear["score"] == pytest.approx(1 - 3 / 30)  # 0 is wrong for all, two are cut off
        agreement = run(cs.trial(a_plan(frame=frame), [CHEAP, DEAR], n=30), client)
        assert agreement.table["rows"].to_list() == [28, 28]
        assert agreement.scores[CHEAP].sum() == 28 - 10 - 3  # 15, 20 and 25 are wrong, 0 and 5 broken


def test_rows_without_text_or_truth_are_not_judged(counted):
    """Of a column of truth only rows that have one are sampled; rows with nothing to send do not count."""
    frame = numbers(60).with_columns(
        truth=pl.when(pl.col("number") < 20).then("truth"),
        number=pl.when(pl.col("number") != 7).then("number"),
    )
    trial = run(cs.trial(a_plan(frame=frame), [CHEAP, DEAR], n=50, score="truth"), counted.client())
    assert trial.sample.height == 20
    assert trial.table["rows"].to_list() == [19, 19]
    assert counted.stats["calls"] == 38


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": [CHEAP, "claude-sonet-5-5"]}, cs.UnknownModel, "claude-sonnet-5-5"),
        ({"models": [CHEAP]}, cs.PlanError, "two or more"),
        ({"models": CHEAP}, cs.PlanError, "two or more"),
        ({"models": [CHEAP, 5]}, cs.PlanError, "two or more"),
        ({"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, cs.PlanError, "twice"),
        ({"n": 1}, cs.PlanError, "n=1"),
        ({"n": 2.5}, cs.PlanError, "n=2.5"),
        ({"n": True}, cs.PlanError, "n=True"),
        ({"score": "trut"}, cs.UnknownColumn, "'truth'"),
        ({"score": "reply"}, cs.PlanError, "right answers"),
        ({"score": "number"}, cs.PlanError, "labels of the replies: even, odd"),
        ({"score": "when"}, cs.PlanError, "labels"),
        ({"score": pl.col("label")}, cs.UnknownColumn, "'label'"),
        ({"score": pl.col("reply").cast(pl.String)}, cs.PlanError, "String"),
        ({"score": pl.col("number", "truth")}, cs.PlanError, "one column"),
        ({"score": pl.col("truth") + pl.col("when")}, cs.PlanError, "score"),
        ({"score": 0.9}, cs.PlanError, "score=0.9"),
        ({"confidence": 95}, cs.PlanError, "confidence=95"),
        ({"budget": 0}, cs.PlanError, "budget=0"),
        ({"budget": True}, cs.PlanError, "budget=True"),
        ({"budget": "5"}, cs.PlanError, "budget='5'"),
        ({"budget": math.inf}, cs.PlanError, "budget=inf"),
        ({"budget": 1e-6}, cs.ImpossibleBudget, "larger budget"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, error, words):
    """A wrong model, number, score or budget raises when the trial is made."""
    frame = numbers(100).with_columns(when=pl.lit(dt.date(2026, 1, 1)))
    with pytest.raises(error, match=words):
        cs.trial(a_plan(frame=frame), **{"models": MODELS, "score": "truth", **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"returns": None}, "free text"),
        ({"returns": {"why": pl.String, "sure": pl.Float64}}, "hardly ever are the same"),
        ({"frame": numbers(1)}, "fewer than 2 rows"),
        ({"frame": numbers(0)}, "fewer than 2 rows"),
        ({"frame": numbers(9).with_columns(number=None)}, "fewer than 2 rows"),
        ({"frame": pl.scan_csv("no such file.csv"), "prompt": "x"}, "cannot be read"),
    ],
)
def test_plans_that_cannot_be_tried_are_told(options, words):
    """Replies that cannot agree, rows that are too few, and a LazyFrame that fails raise at once."""
    with pytest.raises(cs.PlanError, match=words):
        cs.trial(a_plan(**options), MODELS)


def test_a_truth_of_several_columns_says_what_to_type():
    """Where replies have two columns, the message has the expression that compares one of them."""
    plan = a_plan(returns={"parity": LABELS, "prime": pl.Boolean})
    with pytest.raises(cs.PlanError, match=r"score=pl\.col\('parity'\) == pl\.col\('truth'\)"):
        cs.trial(plan, MODELS, score="truth")


def test_a_lazy_frame_is_sampled(api):
    """The rows of a LazyFrame are the same as those of its DataFrame."""
    trial = run(cs.trial(a_plan(frame=numbers(50).lazy()), [CHEAP, DEAR], n=20, score="truth"), api.client())
    eager = cs.trial(a_plan(50), [CHEAP, DEAR], n=20, score="truth")
    assert trial.sample.equals(eager.sample)
    assert trial.pick(min_score=0.3).frame.collect().height == 50


def test_nothing_can_be_picked_before_the_run():
    """`pick` and `evidence` say what to do first; a wrong gate is told before that."""
    trial = cs.trial(a_plan(), MODELS, score="truth")
    with pytest.raises(cs.PlanError, match=r"await trial\.run"):
        trial.pick(min_score=0.9)
    with pytest.raises(cs.PlanError, match="by='seconds'"):
        trial.evidence(min_score=0.9, by="seconds")


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_budget_is_never_passed(factor):
    """Replies twice as long as guessed: the trial stops, within its budget, and says what is missing."""
    plan = a_plan(returns=None, max_tokens=1000)
    full = cs.trial(plan, [CHEAP, DEAR], n=40, score=pl.col("error").is_null())
    budget = full.table["dollars"].sum() * factor
    with simulator(replies=lambda _: "word " * 450) as api:
        trial = cs.trial(plan, [CHEAP, DEAR], n=40, score=pl.col("error").is_null(), budget=budget)
        assert f"Budget: ${budget:.2f}" in repr(trial)
        run(trial, api.client())
        assert 0 < trial.table["dollars"].sum() <= budget
        assert trial.table["rows"].min() > 0
        assert trial.table["rows"].max() < 40
        assert trial.table["errors"].to_list() == [0, 0]
        assert "Not answered: " in repr(trial)


def test_a_function_that_gives_no_column_is_told_after_the_run(api):
    """Its replies are kept: the message says that another score costs nothing."""
    trial = run(cs.trial(a_plan(), [CHEAP, DEAR], n=5, score=lambda results: 0.5), api.client())
    with pytest.raises(cs.PlanError, match="pays for none"):
        trial.table  # noqa: B018


def table_of(*rows, simulated=True):
    frame = pl.DataFrame(
        [(f"claude-{name}", 50, *figures, simulated) for name, *figures in rows],
        schema=["model", "rows", "score", "score_low", "score_high", "dollars_per_1000_rows", "simulated"],
        orient="row",
    )
    return pl.concat([TRIAL.to_frame(), frame], how="diagonal_relaxed")


CHARTS = {
    "usual": [("a", 0.9, 0.8, 0.95, 0.02), ("b", 0.95, 0.9, 0.98, 0.5), ("c", 0.97, 0.92, 0.99, 2.9)],
    "alike": [("a", 0.9, 0.8, 0.95, 1.0), ("b", 0.9, 0.8, 0.95, 1.0), ("c", 0.9, 0.8, 0.95, 1.01)],
    "one, certain": [("a", 1.0, 1.0, 1.0, 1.0)],
    "free": [("a", 0.5, 0.4, 0.6, 0.0), ("b", 0.5, 0.4, 0.6, 0.0)],
    "stars": [("a", 3.5, 3.1, 3.9, 1.0), ("b", 4.5, 4.1, 4.9, 3.0)],
    "losses": [("a", -3.5, -3.9, -3.1, 1.0), ("b", -1.0, -1.5, -0.5, 30.0)],
    "unknown": [("a", None, None, None, 1.0), ("b", 0.5, 0.4, 0.6, 2.0)],
    "none": [],
}


@pytest.mark.parametrize("gate", [None, 0.93])
@pytest.mark.parametrize("name", CHARTS)
def test_the_picture_of_any_trial_is_drawn(name, gate):
    """By old and new Vega-Lite, with every known model named, the gate on it, and the mark."""
    shown = trialcharts.quality(table_of(*CHARTS[name]), min_score=gate, clears=["claude-b"])
    drawing = shown._repr_mimebundle_()["application/vnd.vegalite.v5+json"]
    for version in ("5.8", None):
        png = vl_convert.vegalite_to_png(drawing, vl_version=version)
        assert int.from_bytes(png[16:20], "big") <= 640
    text = json.dumps(drawing)
    assert all(f'"claude-{model}"' in text for model, score, *_ in CHARTS[name] if score is not None)
    if CHARTS[name]:
        assert shown.text.startswith("SIMULATED: ")
        assert '"title": "SIMULATED: ' in text
        assert ("to reach: 0.93" in text) == (gate is not None)
        real = trialcharts.quality(table_of(*CHARTS[name], simulated=False), min_score=gate)
        assert "SIMULATED" not in json.dumps(real._repr_mimebundle_()["application/vnd.vegalite.v5+json"])


def test_the_picture_of_a_trial_names_who_reaches_the_gate(api):
    """What `pick` would allow is what the picture says; before the run there is nothing to show."""
    trial = cs.trial(a_plan(), MODELS, n=100, score="truth")
    assert trial.plot.quality().text == "nothing sent"
    run(trial, api.client())
    assert "2 of 3 models reach 0.85, 95% confident" in trial.plot.quality(min_score=0.85).text
    assert "Spends: nothing" in TrialPlots.quality.__doc__


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


def test_a_run_that_cannot_go_on_ends_the_trial_and_is_sent_again_by_the_same_cell(counted, tmp_path):
    """A wrong key raises as for any run and is no model's failure; the trial can be run again."""
    trial = cs.trial(a_plan(), [CHEAP, DEAR], n=10, score="truth")
    with pytest.raises(cs.PlanError, match="AsyncAnthropic"):
        run(trial, "key")
    with simulator(faults={401: 1.0}) as refusing, pytest.raises(cs.RunStopped, match="authentication_error"):
        run(trial, refusing.client(), tmp_path / "trial.ledger")
    assert list(trial.runs) == [CHEAP]
    assert trial.table["rows"].to_list() == [0, 10]  # what was judged, and what would be sent
    assert trial.table["dollars_per_1000_rows"].null_count() == 1
    with pytest.raises(cs.NotEnoughEvidence, match="no row has a score"):
        trial.pick(min_score=0.5)
    assert "claude-opus-5-5. The same cell again" in repr(trial)
    run(trial, counted.client(), tmp_path / "trial.ledger")
    assert trial.table["rows"].to_list() == [10, 10]
