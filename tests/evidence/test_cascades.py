"""Cascades: a cheap model first, the next one only for unsettled rows; one bill, nothing paid twice."""

from dataclasses import replace

import parity
import polars as pl
import pytest
from parity import CHEAP, DEAR, MIDDLE, MODELS, RIGHT, a_plan, number_of, numbers
from polars.testing import assert_frame_equal
from running import finished, simulator

import claudescale as cs
from claudescale.evidence.cascades import BILL, OPTIONS, TABLE, Passed


def answer(body):
    """Classify a number as `parity` does, but the cheap model breaks the form on 7s."""
    broken = body["model"] == CHEAP and number_of(body) % 7 == 0
    return "no json" if broken else parity.answer(body)


@pytest.fixture
def api():
    with simulator(replies=answer, speed=200) as one:
        yield one


def a_cascade(rows=200, models=MODELS, accept=RIGHT, **options):
    return cs.cascade(a_plan(rows, **options), models, accept)


def test_before_anything_is_known_the_price_is_a_range():
    """From the first price to the sum of all; a file is read once; batches take no less for few rows."""
    reads = []
    cascade = a_cascade(frame=numbers(100).lazy().map_batches(lambda rows: reads.append(1) or rows))
    assert cascade.options.schema == OPTIONS
    own, *alone = cascade.options.iter_rows(named=True)
    assert [way["way"] for way in (own, *alone)] == ["cascade", *[f"all on {model}" for model in MODELS]]
    assert own["dollars"] is own["minutes"] is None
    assert own["dollars_low"] == pytest.approx(alone[0]["dollars"])
    for high in ("dollars_high", "minutes_high"):
        assert own[high] == pytest.approx(sum(way[high] for way in alone))
    assert "Nothing is sent yet" in repr(cascade)
    assert "cascade.calibrate(pilot)" in repr(cascade)
    assert len(reads) == 1
    batch = replace(a_cascade(100, mode="batch"), passed=(Passed(100, 9), Passed(9, 1), Passed(1, 0)))
    assert batch.options["minutes"][0] == 3 * batch.options["minutes"][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "auto"}, r"not in mode='auto'.*mode='batch'"),
        ({"accept": pl.col("lable") == "even"}, "'lable'"),
        ({"accept": pl.col("number")}, "Int64"),
        ({"accept": "truth"}, "accept='truth'"),
        ({"frame": numbers(4).with_columns(model=pl.lit("x"))}, "'model'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, words):
    """A wrong mode, an `accept` that is not Boolean, and a column named `model` raise at once."""
    with pytest.raises(cs.PlanError, match=words):
        a_cascade(**options)


@pytest.mark.slow
def test_what_a_model_does_not_settle_goes_to_the_next_and_each_row_has_its_model(api, path):
    """Rows that break or fail `accept` are passed on; results are whole and in order, and a rerun is free."""
    frame = pl.concat([numbers(100), numbers(30), pl.DataFrame({"number": [None], "truth": ["even"]})])
    done = finished(a_cascade(frame=frame), api.client(), ledger=path)
    results, number = done.results, pl.col("number")
    assert results.columns == ["number", "truth", "reply", "error", "model", "simulated"]
    assert_frame_equal(results.select(frame.columns), frame)
    settled = pl.when(number % 5 * (number % 7) != 0).then(pl.lit(CHEAP))
    settled = settled.when(number % 50 != 0).then(pl.lit(MIDDLE)).when(number % 50 == 0).then(pl.lit(DEAR))
    assert results["model"].equals(frame.select(settled).to_series())
    zero = results.filter(number == 0)  # every model errs on it: its last answer stays, marked
    assert zero.select("reply", "error").rows() == [("odd", "not_accepted")] * 2
    assert results.filter(number > 0).select(RIGHT & pl.col("error").is_null()).to_series().all()
    assert results.select("reply", "error", "model").row(-1) == (None, None, None)
    assert done.passed == [Passed(100, 32), Passed(32, 2), Passed(2, 1)]
    assert done.table.schema == TABLE
    counts = done.table.select("model", "rows", "accepted", "passed_on", "missing").rows()
    assert counts == [(CHEAP, 130, 88, 42, 0), (MIDDLE, 42, 39, 3, 0), (DEAR, 3, 1, 2, 0)]
    assert done.table["why"][0] == "22 not_accepted, 20 invalid_reply"
    assert done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
    again = finished(a_cascade(frame=frame), api.client(), ledger=path)
    assert (again.dollars, api.stats["calls"]) == (0, 100 + 32 + 2)  # identical rows are sent once
    assert_frame_equal(again.results, results)
    assert_frame_equal(again.bill, done.bill)


@pytest.mark.slow
def test_a_cascade_of_batches_over_earlier_results(api, path):
    """Each model's rows are a batch at half the price; an earlier `reply` is `reply_1`, also for `accept`."""
    frame = numbers(30).rename({"truth": "reply"})
    right = pl.col("reply").cast(pl.String) == pl.col("reply_1").str.strip_chars().str.to_lowercase()
    # A prompt that looks at all rows is the same for every model, so the keys are those of the whole frame.
    words = pl.format("Row {} of {}. Even or odd? {}", pl.int_range(pl.len()), pl.len(), pl.col("number"))
    plan = a_plan(frame=frame, prompt=words, mode="batch")
    done = finished(cs.cascade(plan, MODELS, right), api.client(), ledger=path)
    assert api.stats["dollars_by_mode"] == {"live": 0, "batch": api.stats["dollars"]}
    assert done.results.columns == ["number", "reply_1", "reply", "error", "model", "simulated"]
    assert done.results["reply_1"].to_list() == frame["reply"].to_list()
    assert done.results.filter(pl.col("number") > 0).select(right.all()).item()
    finished(plan.replace(model=DEAR, mode="live"), api.client(), ledger=path)
    assert api.stats["calls"] == 30 - done.table["rows"][2]


@pytest.mark.slow
def test_without_accept_only_failures_are_passed_on_and_the_last_reply_stays():
    """Truncated, empty and broken replies are passed on; a later failure never removes an earlier reply."""
    spoilt = {CHEAP: {1: "x" * 100_000, 2: "no json", 3: "", 4: ""}, DEAR: {4: "", 6: "no json"}}

    def replies(body):
        return spoilt[body["model"]].get(number_of(body), {"reply": "odd"})

    with simulator(replies=replies, speed=50) as api:
        done = finished(a_cascade(20, models=[CHEAP, DEAR], accept=None), api.client())
        judged = finished(a_cascade(7, models=[CHEAP, DEAR]), api.client())
    assert done.table.select("rows", "accepted").rows() == [(20, 16), (4, 3)]
    assert set(done.table["why"][0].split(", ")) == {"1 max_tokens", "1 invalid_reply", "2 empty_reply"}
    assert done.results["error"].null_count() == 19
    last = [(None, "empty_reply", DEAR), ("odd", None, CHEAP), ("odd", "not_accepted", CHEAP)]
    assert judged.results.select("reply", "error", "model").rows()[4:] == last


@pytest.mark.slow
def test_accept_may_be_a_function_and_sees_only_replies_that_came_through(api, path):
    """It returns a Boolean per row, null meaning no; if it raises, no reply is lost or paid for again."""
    seen = []

    def sure(results):
        seen.append(results)
        return results.select(pl.when(pl.col("number") != 3).then(RIGHT)).to_series()

    def fails(results):
        return pl.repeat(value=True, n=results.height // 2, eager=True)

    with pytest.raises(cs.RunStopped, match=rf"{CHEAP}: accept= cannot tell") as caught:
        finished(a_cascade(40, accept=fails), api.client(), ledger=path)
    assert (caught.value.run.state, caught.value.run.stopped_by) == ("failed", "accept")
    assert caught.value.run.results["reply"].null_count() == 6
    done = finished(a_cascade(40, accept=sure), api.client(), ledger=path)
    assert api.stats["calls"] == 40 + 13 + 2
    assert [frame.height for frame in seen] == [0, 34, 13, 2]
    assert seen[1].columns == ["number", "truth", "reply", "error", "model"]
    assert done.results.select("reply", "error", "model").row(3) == ("odd", "not_accepted", DEAR)
    assert "what sure does not accept" in repr(done.cascade)


def test_a_wrong_key_stops_the_cascade_with_what_it_has(path):
    """`RunStopped` carries the cascade's run, names the model and says what to type."""
    with simulator(faults={401: 1.0}) as api, pytest.raises(cs.RunStopped, match="Model 1 of 3") as caught:
        finished(a_cascade(20), api.client(), ledger=path)
    stopped = caught.value.run
    assert (stopped.state, stopped.stopped_by) == ("failed", "authentication_error")
    assert stopped.results["reply"].null_count() == 20
    assert "run = cs.wait(cascade.run(client, ledger=" in repr(stopped)


@pytest.mark.slow
def test_budget_and_deadline_are_one_for_all_models(api):
    """The next model gets what the first leaves; if that is too little for its rows, the cascade stops."""
    cascade = a_cascade(100, budget=0.03)
    assert "for all models together" in repr(cascade)
    done = finished(cascade, api.client())
    assert (done.state, done.stopped_by, list(done.runs)) == ("stopped", "budget", [CHEAP, MIDDLE])
    first, second = done.runs.values()
    assert second.plan.budget == pytest.approx(0.03 - first.counts.dollars)
    assert done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
    assert done.dollars <= 0.03
    with pytest.raises(cs.errors.ImpossibleBudget):  # too small for the first
        finished(a_cascade(100, budget=0.0001), api.client())
    with simulator(replies=answer, latency=30.0, speed=50) as slow:
        late = finished(a_cascade(20, deadline=0.1), slow.client())
    assert (late.state, late.stopped_by, list(late.runs)) == ("stopped", "deadline", [CHEAP])
    assert f"passed on to {MIDDLE}" in late.message


@pytest.mark.slow
def test_a_pilot_tells_the_share_that_is_passed_on_and_the_price(api, path):
    """A calibrated cascade predicts its own cost; its bill stands next to that of all rows on each model."""
    whole = a_cascade(200, models=[CHEAP, DEAR])
    pilot = finished(whole.sample(60, seed=1), api.client(), ledger=path)
    cascade = whole.calibrate(pilot)
    own = cascade.options.row(0, named=True)
    assert own["dollars_low"] < own["dollars"] < own["dollars_high"] < whole.options["dollars_high"][0]
    on = cascade.passed[0]
    assert f"{CHEAP} passed on {on.on} of {on.asked}, so {on.shares[0]:.0%} to" in repr(cascade)
    assert repr(cascade).endswith("run = cs.wait(cascade.run(client))")
    done = finished(cascade, api.client(), ledger=path)
    assert done.bill.schema == BILL
    names, dollars, shares, estimated = done.bill.get_columns()
    assert names.to_list() == ["cascade", f"all on {CHEAP}", f"all on {DEAR}"]
    assert own["dollars_low"] <= dollars[0] <= own["dollars_high"]
    assert (shares[0], estimated.to_list()) == (pytest.approx(dollars[0] / dollars[2]), [False, False, True])
    assert repr(done.plot.bill()).startswith("SIMULATED: $")
    alone = finished(a_plan(200, model=DEAR), api.client())
    assert dollars[2] == pytest.approx(alone.counts.dollars, rel=0.1)
    for wrong, given in ((a_cascade(20, accept=None), pilot), (whole, pilot.runs[CHEAP])):
        with pytest.raises(cs.PlanError, match="not a run of this cascade"):
            wrong.calibrate(given)


def test_a_row_whose_file_cannot_be_read_is_passed_on_to_nobody(api, tmp_path):
    """Such a row keeps the error that says so, and no other model is asked, nor for a null."""
    frame = pl.DataFrame({"photo": [str(tmp_path / "no.png"), None]})
    done = finished(cs.cascade(a_plan(frame=frame, prompt=[cs.image("photo"), "Odd?"]), MODELS), api.client())
    assert (done.state, len(done.runs), api.stats["calls"]) == ("finished", 1, 0)
    assert done.table.select("rows", "accepted", "passed_on").rows() == [(0, 0, 0)]
    assert done.results.select("error", "model").rows() == [("file_not_found", None), (None, None)]
    assert " accepted; " in repr(done)
