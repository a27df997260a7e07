"""Cascades: a cheap model first, only what it does not settle to the next; one bill, nothing paid twice."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from cascade_child import docstrings, the_cascade
from parity import CHEAP, DEAR, MIDDLE, MODELS, RIGHT, answering, api_of, number_of, numbers
from parity import done as run
from parity import parity_plan as a_plan
from polars.testing import assert_frame_equal
from running import interrupt_when, simulator

import claudescale as cs
from claudescale.evidence.cascades import BILL, OPTIONS, TABLE, Passed

CHILD = Path(__file__).parent.with_name("cascade_child.py")


def answer(body):
    """Tell even from odd; a model errs on every n-th number, and the cheap one breaks the form on 7s."""
    broken = body["model"] == CHEAP and number_of(body) % 7 == 0
    return "no json" if broken else answering(cheap=5, middle=20, dear=10_000)(body)


api = api_of(answer)


def a_cascade(rows=200, models=MODELS, accept=RIGHT, **options):
    return cs.cascade(a_plan(rows, **options), models, accept)


# before it is sent


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_before_anything_is_known_the_price_is_a_range(mode):
    """From nothing passed on, the first model's price, to everything, the sum of all; nothing is sent."""
    cascade = a_cascade(mode=mode)
    assert cascade.options.schema == OPTIONS
    own, *alone = cascade.options.iter_rows(named=True)
    assert [own["way"], *[way["way"] for way in alone]] == [
        "cascade",
        *[f"all on {model}" for model in MODELS],
    ]
    assert own["dollars"] is own["minutes"] is None
    assert own["dollars_low"] == pytest.approx(alone[0]["dollars"])
    for unit in ("dollars", "minutes"):
        assert own[f"{unit}_high"] == pytest.approx(sum(way[f"{unit}_high"] for way in alone))
    plain = a_plan(model=DEAR).options.filter(mode=mode)
    assert (alone[2]["dollars"], alone[2]["minutes"]) == (plain["dollars"][0], plain["minutes"][0])
    assert "Nothing is sent yet" in repr(cascade)
    assert "cascade.calibrate(pilot)" in cascade._repr_html_()


def test_a_lazy_frame_is_read_once_for_the_prices_of_all_models():
    """The prices of all ways rest on one pass over the file, and are those of the DataFrame."""
    reads = []
    frame = numbers(100).lazy().map_batches(lambda rows: reads.append(1) or rows)
    assert_frame_equal(a_cascade(frame=frame).options, a_cascade(100).options)
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": [CHEAP]}, cs.PlanError, "two or more"),
        ({"models": [CHEAP, 5]}, cs.PlanError, "5"),
        ({"models": [CHEAP, "claude-opus-9"]}, cs.UnknownModel, "claude-opus-9"),
        ({"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, cs.PlanError, "twice"),
        ({"mode": "auto"}, cs.PlanError, r"not in mode='auto'.*mode='batch'"),
        ({"accept": pl.col("lable") == "even"}, cs.UnknownColumn, "'lable'"),
        ({"accept": pl.col("number")}, cs.PlanError, "Int64"),
        ({"accept": (pl.col("number") > 3).any()}, cs.PlanError, "gives 1 of Boolean"),
        ({"accept": "truth"}, cs.PlanError, "accept='truth'"),
        ({"accept": lambda results: results["lable"] == "even"}, cs.UnknownColumn, "lable"),
        ({"accept": lambda results: results["reply"].lenght()}, cs.PlanError, "AttributeError"),
        ({"frame": numbers(4).with_columns(model=pl.lit("x"))}, cs.NameTaken, "'model'"),
        ({"returns": {"model": pl.String}, "accept": None}, cs.NameTaken, "'model'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, error, words):
    """Wrong models or mode, an `accept` that cannot tell, and a column `model` raise at once."""
    with pytest.raises(error, match=words):
        a_cascade(**{"frame": numbers(10), **options})


# it is run


def test_what_a_model_does_not_settle_goes_to_the_next_and_each_row_has_its_model(api):
    """Wrong by `accept` or broken, a row is passed on; the frame comes back whole and in order."""
    frame = pl.concat([numbers(200), numbers(60), pl.DataFrame({"number": [None], "truth": ["even"]})])
    done = run(a_cascade(frame=frame), api.client())
    assert done.state == "finished"
    results = done.results
    assert results.columns == ["number", "truth", "reply", "error", "model", "simulated"]
    assert_frame_equal(results.select(frame.columns), frame)
    number = pl.col("number")
    fails = (number % 5 == 0) | (number % 7 == 0)
    model = pl.when(number.is_null()).then(None).when(~fails).then(pl.lit(CHEAP)).when(number % 20 != 0)
    assert results["model"].equals(
        frame.select(model.then(pl.lit(MIDDLE)).otherwise(pl.lit(DEAR))).to_series()
    )
    zero = results.filter(number == 0)  # every model errs on it: its last answer stays, marked
    assert zero.select("reply", "error").rows() == [("odd", "not_accepted")] * 2
    others = results.filter(number > 0)
    assert others["error"].null_count() == 258
    assert others.select(RIGHT).to_series().all()
    assert results.select("reply", "error", "model").row(-1) == (None, None, None)
    assert api.stats["calls"] == 200 + 63 + 10  # identical rows are sent once
    assert done.table.schema == TABLE
    assert done.table.select("model", "rows", "accepted", "passed_on", "missing").rows() == [
        (CHEAP, 260, 178, 82, 0), (MIDDLE, 82, 69, 13, 0), (DEAR, 13, 11, 2, 0),
    ]  # fmt: skip
    assert done.table["why"][0] == "44 not_accepted, 38 invalid_reply"
    assert done.passed == [Passed(200, 63), Passed(63, 10), Passed(10, 1)]
    assert list(done.runs) == MODELS
    assert done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)


def test_without_accept_only_failures_are_passed_on():
    """Refused, cut off, empty and broken replies, and rows the API gives no answer to; right is not asked."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number in {1, 2, 3}:
            return {1: "x" * 100_000, 2: "no json", 3: ""}[number]
        return {"reply": "odd"}

    with simulator(replies=spoilt, speed=50) as api:
        done = run(a_cascade(20, models=[CHEAP, DEAR], accept=None), api.client())
    assert done.table.select("rows", "accepted").rows() == [(20, 17), (3, 3)]
    assert set(done.table["why"][0].split(", ")) == {"1 max_tokens", "1 invalid_reply", "1 empty_reply"}
    assert done.results["error"].null_count() == 20
    with simulator(replies=answer, speed=50, faults={400: 0.1, "refusal": 0.1}) as api:
        done = run(a_cascade(100, models=[CHEAP, DEAR], accept=None), api.client())
    first, last = done.table.iter_rows(named=True)
    assert last["rows"] == first["passed_on"] > 10
    assert "refusal" in first["why"]
    assert "invalid_request_error" in first["why"]


def test_a_row_that_no_model_settles_keeps_the_last_reply_there_was():
    """A later refusal does not take away an earlier reply; where none replied, the last error stands."""

    def replies(body):
        number, model = number_of(body), body["model"]
        if number == 1:
            return {CHEAP: {"reply": "even"}, MIDDLE: "no json", DEAR: ""}[model]
        return "" if number == 2 else {"reply": "even"}

    with simulator(replies=replies) as api:
        done = run(a_cascade(4), api.client())
    assert done.results.select("number", "reply", "error", "model").rows() == [
        (0, "even", None, CHEAP), (1, "even", "not_accepted", CHEAP),
        (2, None, "empty_reply", DEAR), (3, "even", "not_accepted", DEAR),
    ]  # fmt: skip


def test_accept_may_be_a_function_and_sees_only_replies_that_came_through(api):
    """It gets the user's columns, the typed ones and the model, a Boolean per row back; a null is a no."""
    seen = []

    def sure(results):
        seen.append(results)
        return results.select(pl.when(pl.col("number") != 3).then(RIGHT)).to_series()

    done = run(a_cascade(40, accept=sure), api.client())
    assert [frame.height for frame in seen] == [0, 34, 13, 3]
    assert seen[1].columns == ["number", "truth", "reply", "error", "model"]
    assert done.results.select("reply", "error", "model").row(3) == ("odd", "not_accepted", DEAR)
    assert "what sure does not accept" in repr(done.cascade)


@pytest.mark.parametrize("kind", ["raises", "short"])
def test_a_function_that_fails_on_real_replies_loses_none(api, path, kind):
    """It is told with what is kept, and the same cascade with a better one pays for the later models only."""

    def bad(results):
        if kind == "raises" and results.height:
            raise KeyError
        return pl.Series([True] * (results.height // 2), dtype=pl.Boolean)

    with pytest.raises(cs.RunStopped, match=rf"{CHEAP}: accept= cannot tell") as caught:
        run(a_cascade(40, accept=bad), api.client(), path)
    stopped = caught.value.run
    assert (stopped.state, stopped.stopped_by) == ("failed", "accept")
    assert stopped.results["reply"].null_count() == 6
    assert run(a_cascade(40), api.client(), path).state == "finished"
    assert api.stats["calls"] == 40 + 12 + 2


def test_a_prompt_that_looks_at_all_rows_is_the_same_for_every_model(api, path):
    """An expression over the whole frame is not computed anew on the rows that are passed on."""
    words = pl.format("Row {} of {}. Even or odd? {}", pl.int_range(pl.len()), pl.len(), pl.col("number"))
    done = run(a_cascade(40, prompt=words), api.client(), path)
    assert done.table["rows"].to_list() == [40, 12, 2]
    assert done.results.columns == ["number", "truth", "reply", "error", "model", "simulated"]
    calls = api.stats["calls"]
    cs.wait(a_plan(40, prompt=words, model=DEAR).run(api.client(), ledger=path, progress=False))
    assert api.stats["calls"] == calls + 38  # the two that the cascade sent have the same key


def test_a_wrong_key_stops_the_cascade_with_what_it_has(api, path):
    """`RunStopped` carries the cascade's run and names the model; the same cell with a good key goes on."""
    with (
        simulator(faults={401: 1.0}) as refusing,
        pytest.raises(cs.RunStopped, match="Model 1 of 3") as caught,
    ):
        run(a_cascade(20), refusing.client(), path)
    stopped = caught.value.run
    assert (stopped.state, stopped.stopped_by) == ("failed", "authentication_error")
    assert stopped.results["reply"].null_count() == 20
    assert "run = await cascade.run(client)" in repr(stopped)
    assert run(a_cascade(20), api.client(), path).state == "finished"


# money, time, end and resume


@pytest.mark.parametrize(("budget", "models"), [(0.002, 1), (0.03, 2)])
def test_the_budget_is_one_for_all_models_and_never_passed(api, budget, models):
    """What the first leaves is handed on; where it does not buy the next model's rows, the cascade stops."""
    cascade = a_cascade(100, budget=budget)
    assert "for all models together" in repr(cascade)
    done = run(cascade, api.client())
    assert (done.state, done.stopped_by, len(done.runs)) == ("stopped", "budget", models)
    spent = 0.0
    for each in done.runs.values():
        assert each.plan.budget == pytest.approx(budget - spent)
        spent += each.counts.dollars
    assert done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
    assert done.dollars <= budget
    waiting = done.results.filter(pl.col("error") == "not_accepted")
    assert waiting.height > waiting["reply"].null_count() == 0
    calls = api.stats["calls"]
    with pytest.raises(cs.ImpossibleBudget):  # too small for the first: told before anything is sent
        run(a_cascade(100, budget=0.0001), api.client())
    assert api.stats["calls"] == calls


def test_time_that_is_gone_stops_the_cascade():
    """The deadline is one for all: rows that would be passed on after it keep what they have."""
    with simulator(replies=answer, latency=30.0, speed=50) as slow:
        done = run(a_cascade(40, deadline=0.1), slow.client())
    assert (done.state, done.stopped_by) == ("stopped", "deadline")
    assert "passed on to claude-sonnet-5-5" in done.message
    assert list(done.runs) == [CHEAP]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_real_texts_with_typed_replies_are_paid_for_once_and_the_bill_is_the_servers(path, mode):
    """Polars' docstrings: the dollars are those the simulator counted; the same cell again pays nothing."""
    faults = {"refusal": 0.03, "cut": 0.03, 529: 0.02}
    with simulator(seed=5, speed=2_000 if mode == "batch" else 50, faults=faults) as api:
        cascade = the_cascade(mode=mode)
        done = run(cascade, api.client(), path)
        stats = api.stats
        assert done.dollars == pytest.approx(stats["dollars"], abs=1e-9)
        assert done.bill["dollars"][0] == pytest.approx(stats["dollars"], abs=1e-9)
        assert stats["billed_rows"] == stats["distinct_rows_billed"]
        assert stats["dollars_by_mode"][mode] == stats["dollars"]
        assert_frame_equal(done.results.select("owner", "name", "doc"), docstrings())
        again = run(cascade, api.client(), path)
        assert again.dollars == 0
        assert api.stats["billed_rows"] == stats["billed_rows"]
        assert_frame_equal(again.results, done.results)
        assert_frame_equal(again.bill, done.bill)
        assert_frame_equal(again.table.drop("minutes"), done.table.drop("minutes"))


@pytest.mark.slow
@pytest.mark.parametrize("billed", [20, 430])
def test_interrupted_in_any_model_and_run_again_it_pays_once(path, billed):
    """Ctrl-C: what is in flight comes in, no model is asked any more, and the same cell pays for the rest."""
    with simulator(replies=answer, latency=1.0) as api:
        interrupt_when(lambda: api.stats["billed_rows"] > billed)
        with pytest.raises(KeyboardInterrupt):
            run(a_cascade(400), api.client(), path)
        before = api.stats["dollars"]
        done = run(a_cascade(400), api.client(), path)
        assert done.state == "finished"
        assert before + done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert done.bill["dollars"][0] == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"]
        assert_frame_equal(done.results, run(a_cascade(400), api.client()).results)


@pytest.mark.slow
def test_killed_in_the_second_batch_and_run_again_it_pays_once(path):
    """After kill -9 the same cell finds the batch that is out, collects it, and pays for nothing twice."""
    with simulator(seed=5, speed=2_000, latency=2.0) as api:
        child = subprocess.Popen([sys.executable, CHILD, api.url, path, "batch"])
        while api.stats["batches_created"] < 2:
            assert child.poll() is None
        child.kill()
        child.wait()
        done = run(the_cascade(mode="batch"), api.client(), path)
        stats = api.stats
        assert done.state == "finished"
        assert stats["billed_rows"] == stats["distinct_rows_billed"]
        assert done.bill["dollars"][0] == pytest.approx(stats["dollars"], abs=1e-9)


# what it would have cost


def test_a_pilot_tells_the_share_that_is_passed_on_and_the_price(api, path):
    """A calibrated cascade's dollars are those it then costs, within the interval of its shares."""
    whole = a_cascade(400)
    pilot = run(whole.sample(100, seed=1), api.client(), path)
    cascade = whole.calibrate(pilot)
    assert list(cascade.passed) == pilot.passed
    own = cascade.options.row(0, named=True)
    assert own["dollars_low"] < own["dollars"] < own["dollars_high"] < whole.options["dollars_high"][0]
    on = cascade.passed[0]
    assert f"{CHEAP} passed on {on.on} of {on.asked}, so {on.shares[0]:.0%} to" in repr(cascade)
    assert repr(cascade).endswith("run = await cascade.run(client)")
    done = run(cascade, api.client(), path)
    assert own["dollars_low"] <= done.bill["dollars"][0] <= own["dollars_high"]
    assert done.bill["dollars"][0] == pytest.approx(api.stats["dollars"], abs=1e-9)
    for wrong in (a_cascade(20, [CHEAP, DEAR]), a_cascade(20, accept=None)):
        with pytest.raises(cs.PlanError, match="of this very cascade"):
            wrong.calibrate(pilot)
    with pytest.raises(cs.PlanError, match="of this very cascade"):
        whole.calibrate(pilot.runs[CHEAP])


def test_the_bill_stands_next_to_every_row_on_each_model(api):
    """The first model's is what it was paid, a later one's is estimated from its replies."""
    done = run(a_cascade(200, models=[CHEAP, DEAR]), api.client())
    bill = done.bill
    assert bill.schema == BILL
    assert bill["way"].to_list() == ["cascade", f"all on {CHEAP}", f"all on {DEAR}"]
    assert bill["estimated"].to_list() == [False, False, True]
    assert bill["dollars"][1] == pytest.approx(done.runs[CHEAP].counts.dollars)
    alone = cs.wait(a_plan(200, model=DEAR).run(api.client(), ledger=None, progress=False))
    assert bill["dollars"][2] == pytest.approx(alone.counts.dollars, rel=0.1)
    assert bill["share"][0] == pytest.approx(bill["dollars"][0] / bill["dollars"][2])
    shown = done.plot.bill()._repr_mimebundle_()
    assert shown["text/plain"].startswith("SIMULATED: $")
    assert shown["text/plain"].endswith(f"all on {DEAR}")
    assert shown["image/png"]


@pytest.mark.parametrize("rows", [0, 1])
def test_frames_with_hardly_a_row_are_cascades_too(api, rows):
    """No row, or one and one with nothing to send: cards, frames and pictures are there."""
    frame = pl.DataFrame({"number": [*[3][:rows], None], "truth": [*["odd"][:rows], "even"]})
    cascade = a_cascade(frame=frame.cast({"number": pl.Int64}), accept=pl.lit(value=False))
    assert "Nothing is sent yet" in repr(cascade)
    done = run(cascade, api.client())
    assert done.state == "finished"
    assert done.results["error"].to_list() == [*["not_accepted"][:rows], None]
    assert done.results["model"].to_list() == [*[DEAR][:rows], None]
    assert len(done.runs) == (3 if rows else 1)
    assert done.plot.bill().to_dict()["description"]
    assert "rows accepted" in done._repr_html_()
