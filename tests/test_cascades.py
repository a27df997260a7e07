"""Cascades: a cheap model first, only what it does not settle to the next; one bill, nothing paid twice."""

import asyncio
import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import vl_convert
from cascade_child import MODELS, docstrings, the_cascade
from polars.testing import assert_frame_equal
from running import WIDE_LIMITS, interrupt_when, simulator, until

import claudescale as cs
from claudescale.evidence.cascadeframe import TABLE
from claudescale.evidence.cascaderuns import CascadeRun
from claudescale.evidence.passing import BILL, OPTIONS, Passing, even_share, reaching
from claudescale.views import cascadecharts

CHEAP, MIDDLE, DEAR = MODELS
LABELS = pl.Enum(["even", "odd"])
WRONG_EVERY = {CHEAP: 5, MIDDLE: 20, DEAR: 10_000}
RIGHT = pl.col("reply").cast(pl.String) == pl.col("truth")
CHILD = Path(__file__).with_name("cascade_child.py")


def number_of(body):
    return int(body["messages"][0]["content"].split()[-1])


def answer(body):
    """Tell even from odd; a model errs on every n-th number, and the cheap one breaks the form on 7s."""
    number = number_of(body)
    if body["model"] == CHEAP and number % 7 == 0:
        return "no json"
    return {"reply": ["even", "odd"][(number + (number % WRONG_EVERY[body["model"]] == 0)) % 2]}


@pytest.fixture
def api():
    """Return a fresh simulator whose models err by `WRONG_EVERY`."""
    with simulator(replies=answer) as one:
        yield one


def numbers(rows):
    return pl.DataFrame({"number": range(rows), "truth": ["even", "odd"] * (rows // 2)})


def a_plan(rows=200, **options):
    options = {"model": CHEAP, "tier": WIDE_LIMITS, "returns": LABELS, "max_tokens": 2000, **options}
    frame, prompt = options.pop("frame", numbers(rows)), options.pop("prompt", "Even or odd? {number}")
    return cs.plan(frame, prompt, **options)


def a_cascade(rows=200, models=MODELS, accept=RIGHT, **options):
    return cs.cascade(a_plan(rows, **options), models, accept)


def run(cascade, client, ledger=None):
    return cs.wait(cascade.run(client, ledger=ledger, progress=False))


def counted(cascade_run, *names):
    return cascade_run.table.select(names).rows()


# ------------------------------------------------------------------------------------- before it is sent


def test_before_anything_is_known_the_price_is_a_range_with_its_break_even(api):
    """From nothing going on, the first model's price, to everything, the sum of all; nothing is sent."""
    cascade = a_cascade()
    options = cascade.options
    assert options.schema == OPTIONS
    assert options["way"].unique(maintain_order=True).to_list() == [
        "cascade", f"all on {CHEAP}", f"all on {MIDDLE}", f"all on {DEAR}",
    ]  # fmt: skip
    assert {row["break_even"] for row in options.filter(pl.col("way") != "cascade").to_dicts()} == {None}
    for mode in ("live", "batch"):
        own, cheap, middle, dear = options.filter(mode=mode).iter_rows(named=True)
        assert own["dollars"] is own["minutes"] is None
        assert own["dollars_low"] == pytest.approx(cheap["dollars"])
        assert own["dollars_high"] == pytest.approx(sum(o["dollars_high"] for o in (cheap, middle, dear)))
        share = own["break_even"]
        at_share = cheap["dollars"] + share * middle["dollars"] + share**2 * dear["dollars"]
        assert at_share == pytest.approx(dear["dollars"])
        plain = a_plan().replace(model=DEAR).options.row(by_predicate=pl.col("mode") == mode, named=True)
        assert (dear["dollars"], dear["minutes"]) == (plain["dollars"], plain["minutes"])
    text = repr(cascade)
    assert "Nothing is sent yet" in text
    assert "not known yet" in text
    assert f"{options['break_even'][0]:.0%} of the rows go on from each model" in text
    assert "cascade.calibrate(pilot)" in cascade._repr_html_()
    assert api.stats["calls"] == 0


@pytest.mark.parametrize(
    ("dollars", "target", "share"),
    [([1, 4], 4, 0.75), ([4, 1], 1, None), ([1, 1], 1, None), ([1, 1], 9, 1.0), ([1, 2, 4], 4, 0.6513878)],
)
def test_the_break_even_is_where_both_cost_the_same(dollars, target, share):
    """It solves for the share going on; none where the first alone is as dear; later shares may be known."""
    assert even_share(dollars, target) == (None if share is None else pytest.approx(share))
    assert even_share([1, 2, 4], 4, [0.5]) == pytest.approx(0.75)


def test_a_share_that_nobody_has_seen_is_not_made_up():
    """What reaches a model is unknown after one that was asked nothing, unless nothing can reach it."""
    unknown = Passing()
    assert unknown.share is None
    assert unknown.interval == (0, 1)
    assert reaching([Passing(10, 5), unknown, unknown], lambda each: each.share) == [1, 0.5, None]
    assert reaching([Passing(10, 0), unknown, unknown], lambda each: each.share) == [1, 0, 0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"models": [CHEAP]}, cs.PlanError, "two or more"),
        ({"models": CHEAP}, cs.PlanError, "two or more"),
        ({"models": [CHEAP, 5]}, cs.PlanError, "two or more"),
        ({"models": []}, cs.PlanError, "two or more"),
        ({"models": [CHEAP, "claude-opus-9"]}, cs.UnknownModel, "claude-opus-9"),
        ({"models": [CHEAP, DEAR, CHEAP]}, cs.PlanError, "twice"),
        ({"models": ["claude-haiku-4-5", "claude-haiku-4-5-20251001"]}, cs.PlanError, "twice"),
        ({"accept": pl.col("lable") == "even"}, cs.UnknownColumn, "'lable'"),
        ({"accept": pl.col("simulated")}, cs.UnknownColumn, "'simulated'"),
        ({"accept": pl.col("number")}, cs.PlanError, "Boolean"),
        ({"accept": pl.col("number", "truth") == 1}, cs.PlanError, "accept="),
        ({"accept": pl.all().is_null()}, cs.PlanError, "one column"),
        ({"accept": pl.col("truth") + pl.col("when")}, cs.PlanError, "accept="),
        ({"accept": (pl.col("number") > 3).any()}, cs.PlanError, "number of values"),
        ({"accept": RIGHT.head(1)}, cs.PlanError, "number of values"),
        ({"accept": "truth"}, cs.PlanError, "accept='truth'"),
        ({"accept": 0.8}, cs.PlanError, "accept=0.8"),
        ({"accept": lambda results: results["lable"] == "even"}, cs.UnknownColumn, "lable"),
        ({"accept": lambda results: results["number"]}, cs.PlanError, "Int64"),
        ({"accept": lambda _: True}, cs.PlanError, "a bool"),
        ({"accept": lambda results: results["reply"].lenght()}, cs.PlanError, "AttributeError"),
        ({"accept": lambda _: pl.Series([True])}, cs.PlanError, "1 values"),
        ({"frame": numbers(4).with_columns(model=pl.lit("x"))}, cs.NameTaken, "my_model"),
        ({"returns": {"model": pl.String}, "accept": None}, cs.NameTaken, "field 'model'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(options, error, words):
    """Wrong models, an `accept` that cannot tell, and a column `model` raise when the cascade is made."""
    frame = numbers(10).with_columns(when=pl.lit(dt.date(2026, 1, 1)))
    with pytest.raises(error, match=words):
        a_cascade(**{"frame": frame, **options})


def test_a_cascade_from_dear_to_cheap_is_allowed_and_says_so():
    """It is never cheaper than every row on the last model, and the card has a line for that."""
    text = repr(a_cascade(models=[DEAR, CHEAP]))
    assert f"never cheaper than every row on {CHEAP}" in text
    assert f"{CHEAP} is no dearer than {DEAR}" in text


def test_a_cascade_of_a_lazy_frame_reads_it_once_for_all_prices(monkeypatch):
    """The prices of all ways rest on one pass over the file, and are those of the DataFrame."""
    reads, real = [], pl.LazyFrame.collect
    monkeypatch.setattr(pl.LazyFrame, "collect", lambda *a, **k: reads.append(1) or real(*a, **k))
    cascade = a_cascade(frame=numbers(100).lazy())
    assert not reads
    options = cascade.options
    monkeypatch.undo()
    few = len(reads)
    assert_frame_equal(options, a_cascade(100).options)
    monkeypatch.setattr(pl.LazyFrame, "collect", lambda *a, **k: reads.append(1) or real(*a, **k))
    _ = cascade.options
    assert len(reads) == few


# ---------------------------------------------------------------------------------------------- it is run


def test_what_a_model_does_not_settle_goes_to_the_next_and_each_row_has_its_model(api):
    """Wrong by `accept` or broken, a row goes on; the frame comes back whole, in order, with who answered."""
    frame = pl.concat([numbers(200), numbers(60), pl.DataFrame({"number": [None], "truth": ["even"]})])
    done = run(a_cascade(frame=frame), api.client())
    assert isinstance(done, CascadeRun)
    assert done.state == "finished"
    number = pl.col("number")
    cheap_fails = (number % 5 == 0) | (number % 7 == 0)
    middle_fails = cheap_fails & (number % 20 == 0)
    expected = frame.with_columns(
        reply=pl.when(number.is_not_null() & (number > 0)).then("truth"),
        model=pl.when(middle_fails).then(pl.lit(DEAR))
        .when(cheap_fails).then(pl.lit(MIDDLE))
        .when(number.is_not_null()).then(pl.lit(CHEAP)),
    )  # fmt: skip
    results = done.results
    assert results.columns == ["number", "truth", "reply", "error", "model", "simulated"]
    assert results["reply"].dtype == LABELS
    assert results["simulated"].all()
    assert results["model"].to_list() == expected["model"].to_list()
    zero = (number == 0).fill_null(value=False)  # every model errs on it
    assert (
        results.filter(~zero)["reply"].cast(pl.String).to_list() == expected.filter(~zero)["reply"].to_list()
    )
    assert results.filter(zero).select("reply", "error").rows() == [("odd", "not_accepted")] * 2
    assert results.filter(~zero)["error"].null_count() == 259
    assert api.stats["calls"] == 200 + 63 + 10  # identical rows are sent once
    assert done.table.schema == TABLE
    assert counted(done, "model", "rows", "accepted", "not_accepted", "invalid_reply", "missing") == [
        (CHEAP, 260, 178, 44, 38, 0), (MIDDLE, 82, 69, 13, 0, 0), (DEAR, 13, 11, 2, 0, 0),
    ]  # fmt: skip
    assert list(done.runs) == MODELS


def test_without_accept_only_failures_go_on():
    """Refused, cut off, empty and broken replies go on; right or wrong is not asked."""

    def spoilt(body):
        number = number_of(body)
        if body["model"] == CHEAP and number in {1, 2}:
            return "x" * 100_000 if number == 1 else "no json"
        return {"reply": "odd"}

    with simulator(replies=spoilt) as api:
        done = run(a_cascade(20, models=[CHEAP, DEAR], accept=None), api.client())
        assert counted(done, "rows", "accepted", "invalid_reply", "truncated", "errors") == [
            (20, 18, 1, 1, 0), (2, 2, 0, 0, 0),
        ]  # fmt: skip
        assert done.results["error"].null_count() == 20
        assert "what fails" in repr(done.cascade)
    with simulator(replies=lambda _: {"reply": "odd"}, faults={"refusal": 0.2, "empty_content": 0.2}) as api:
        done = run(a_cascade(100, models=[CHEAP, DEAR], accept=None), api.client())
        first, last = done.table.iter_rows(named=True)
        assert min(first["refused"], first["errors"]) > 5
        assert last["rows"] == first["refused"] + first["errors"]


def test_a_row_that_no_model_settles_keeps_the_last_reply_there_was():
    """A later refusal does not take away an earlier reply; where none replied, the last error stands."""

    def replies(body):
        number, model = number_of(body), body["model"]
        if number == 1:
            return {CHEAP: {"reply": "even"}, MIDDLE: "no json", DEAR: ""}[model]
        return "" if number == 2 else {"reply": "even"}

    with simulator(replies=replies) as api:
        done = run(a_cascade(4), api.client())
    kept = done.results.select("number", "reply", "error", "model").rows()
    assert kept == [
        (0, "even", None, CHEAP), (1, "even", "not_accepted", CHEAP),
        (2, None, "empty_reply", DEAR), (3, "even", "not_accepted", DEAR),
    ]  # fmt: skip


def test_accept_may_be_a_function_and_sees_only_replies_that_came_through(api):
    """It gets the user's columns, the typed ones and the model, a Boolean per row back; a null is a no."""
    seen = []

    def sure(results):
        seen.append(results)
        right = results["reply"].cast(pl.String) == results["truth"]
        return pl.select(pl.when(results["number"] != 3).then(right)).to_series()

    done = run(a_cascade(40, accept=sure), api.client())
    assert [frame.height for frame in seen] == [0, 34, 13, 3]
    assert seen[1].columns == ["number", "truth", "reply", "error", "model"]
    assert seen[1]["error"].null_count() == 34
    three = done.results.row(3, named=True)
    assert (three["reply"], three["error"], three["model"]) == ("odd", "not_accepted", DEAR)
    assert "what sure does not accept" in repr(done.cascade)


@pytest.mark.parametrize("kind", ["raises", "short"])
def test_a_function_that_fails_on_real_replies_loses_none(api, tmp_path, kind):
    """It is told with what is kept, and the same cascade with a better one pays for the later models only."""

    def bad(results):
        if kind == "raises" and results.height:
            raise KeyError
        return pl.Series([True] * (results.height // 2), dtype=pl.Boolean)

    path = tmp_path / "a.ledger"
    with pytest.raises(cs.RunStopped, match=r"Model 1 of 3.*accept= cannot tell") as caught:
        run(a_cascade(40, accept=bad), api.client(), path)
    stopped = caught.value.run
    assert (stopped.state, stopped.stopped_by) == ("failed", "accept")
    assert stopped.results["reply"].null_count() == 6
    assert api.stats["calls"] == 40
    assert run(a_cascade(40), api.client(), path).state == "finished"
    assert api.stats["calls"] == 40 + 12 + 2


def test_a_prompt_that_looks_at_all_rows_is_the_same_for_every_model(api, tmp_path):
    """An expression over the whole frame is not computed anew on the rows that go on."""
    words = pl.format("Row {} of {}. Even or odd? {}", pl.int_range(pl.len()), pl.len(), pl.col("number"))
    path = tmp_path / "a.ledger"
    done = run(a_cascade(40, prompt=words), api.client(), path)
    assert counted(done, "rows") == [(40,), (12,), (2,)]
    assert done.results.columns == ["number", "truth", "reply", "error", "model", "simulated"]
    calls = api.stats["calls"]
    cs.wait(a_plan(40, prompt=words, model=DEAR).run(api.client(), ledger=path, progress=False))
    assert api.stats["calls"] == calls + 38  # the two that the cascade sent have the same key


def test_rows_that_the_api_gives_no_answer_to_go_on(api):
    """An error of the row, refused by the API for good, is passed on and counted as an error."""
    with simulator(replies=answer, faults={400: 0.1}) as failing:
        done = run(a_cascade(100, models=[CHEAP, DEAR]), failing.client())
    first, last = done.table.iter_rows(named=True)
    assert first["errors"] > 3
    assert last["rows"] == 100 - first["accepted"]
    assert done.results["error"].null_count() > 80


def test_a_wrong_key_stops_the_cascade_with_what_it_has(api, tmp_path):
    """`RunStopped` carries the cascade's run and names the model; the same cell with a good key goes on."""
    path = tmp_path / "a.ledger"
    with (
        simulator(faults={401: 1.0}) as refusing,
        pytest.raises(cs.RunStopped, match="Model 1 of 3") as caught,
    ):
        run(a_cascade(20), refusing.client(), path)
    stopped = caught.value.run
    assert (stopped.state, stopped.stopped_by) == ("failed", "authentication_error")
    assert set(stopped.results["error"]) <= {"not_sent", "authentication_error"}
    assert stopped.results["reply"].null_count() == 20
    assert "run = await cascade.run(client)" in repr(stopped)
    assert run(a_cascade(20), api.client(), path).state == "finished"
    with pytest.raises(cs.PlanError, match="AsyncAnthropic"):
        a_cascade(4).start("key")


# ------------------------------------------------------------------------------ money, time, end and resume


@pytest.mark.parametrize(("budget", "models"), [(0.002, 1), (0.03, 2)])
def test_the_budget_is_one_for_all_models_and_never_passed(api, budget, models):
    """What the first leaves is handed on; where it does not buy the next model's rows, the cascade stops."""
    cascade = a_cascade(100, budget=budget)
    assert "for all models together" in repr(cascade)
    done = run(cascade, api.client())
    assert (done.state, done.stopped_by) == ("stopped", "budget")
    assert len(done.runs) == models
    spent = 0.0
    for each in done.runs.values():
        assert each.plan.budget == pytest.approx(budget - spent)
        spent += each.counts.dollars
    assert done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
    assert done.dollars <= budget
    waiting = done.results.filter(pl.col("error") == "not_accepted")
    assert waiting.height
    assert waiting["reply"].null_count() == 0
    assert "so far" in repr(done)
    assert done.bill["basis"][0] == "paid so far"


def test_a_budget_too_small_for_the_first_model_is_told_before_anything_is_sent(api):
    """`ImpossibleBudget`, as for any plan, and no call."""
    with pytest.raises(cs.ImpossibleBudget):
        run(a_cascade(100, budget=0.0001), api.client())
    assert api.stats["calls"] == 0


def test_the_deadline_is_one_for_all_models():
    """A hybrid keeps the minutes in which later models could answer all; one that cannot is told at once."""
    with simulator(replies=answer, speed=600, batch_seconds=300) as api:
        with pytest.raises(cs.ImpossibleDeadline, match="no pilot has told"):
            a_cascade(40, mode="hybrid", deadline=8).start(api.client(), ledger=None)
        assert api.stats["calls"] == 0
        done = run(a_cascade(40, mode="hybrid", deadline=90), api.client())
        deadlines = [each.plan.deadline for each in done.runs.values()]
        assert done.state == "finished"
        assert deadlines[0] < 80  # ten are kept to cancel batches
        assert all(later < 90 - 5 for later in deadlines[1:])
        assert done.minutes < 90
        chosen = run(a_cascade(40, mode="auto", deadline=30), api.client())
        assert {each.plan.mode for each in chosen.runs.values()} == {"live"}


def test_time_that_is_gone_stops_the_cascade(api):
    """Rows that would go on after the deadline keep what they have."""
    with simulator(replies=answer, latency=30.0) as slow:
        done = run(a_cascade(40, deadline=0.1), slow.client())
    assert (done.state, done.stopped_by) == ("stopped", "deadline")
    assert "go on to claude-sonnet-5-5" in done.message
    assert list(done.runs) == [CHEAP]


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_real_texts_with_typed_replies_are_paid_for_once_and_the_bill_is_the_servers(tmp_path, mode):
    """Polars' docstrings: the dollars are those the simulator counted; the same cell again pays nothing."""
    path = tmp_path / "docs.ledger"
    faults = {"refusal": 0.03, "cut": 0.03, 529: 0.02}
    with simulator(seed=5, speed=2_000 if mode == "batch" else 50, faults=faults) as api:
        cascade = the_cascade(mode=mode)
        assert docstrings().height >= 400
        done = run(cascade, api.client(), path)
        stats = api.stats
        assert done.dollars == pytest.approx(stats["dollars"], abs=1e-9)
        assert done.bill["dollars"][0] == pytest.approx(stats["dollars"], abs=1e-9)
        assert stats["billed_rows"] == stats["distinct_rows_billed"]
        assert stats["dollars_by_mode"][mode] == stats["dollars"]
        results = done.results
        assert_frame_equal(results.select("owner", "name", "doc"), docstrings())
        good = results.filter(pl.col("error").is_null())
        assert (good["guess"].cast(pl.String) == good["owner"]).all()
        assert {row["accepted"] > 0 for row in done.table.iter_rows(named=True)} == {True}
        again = run(cascade, api.client(), path)
        assert again.dollars == 0
        assert api.stats["billed_rows"] == stats["billed_rows"]
        assert_frame_equal(again.results, results)
        assert_frame_equal(again.bill, done.bill)
        name = ["model", "rows", "accepted", "not_accepted", "refused", "truncated", "missing", "dollars"]
        assert_frame_equal(again.table.select(name), done.table.select(name))


@pytest.mark.parametrize("ending", ["stop", "leave"])
@pytest.mark.parametrize("at", [0, 1])
def test_stopped_in_any_model_and_resumed_it_pays_once(tmp_path, ending, at):
    """Two runs together pay what the server counted; the results are those of a run that was not stopped."""
    path = tmp_path / "docs.ledger"
    with simulator(seed=5, speed=20, latency=1.0) as api:
        cascade = the_cascade(450)

        async def interrupted():
            going = cascade.start(api.client(), ledger=path, progress=False)
            await until(lambda: len(going.runs) > at and list(going.runs.values())[at].counts.answered > 20)
            assert going.state == "running"
            assert going.results.height == 450
            assert going.table.height == at + 1
            getattr(going, ending)()
            return await going

        first = cs.wait(interrupted())
        assert first.state == "stopped"
        assert len(first.runs) == at + 1
        assert first.results["error"].null_count() < 450
        asked = [each.replies.height for each in first.runs.values()]
        assert [each.asked for each in cascade.calibrate(first).passings][: at + 1] == asked
        second = run(cascade, api.client(), path)
        stats = api.stats
        assert first.dollars > 0 < second.dollars
        assert first.dollars + second.dollars == pytest.approx(stats["dollars"], abs=1e-9)
        assert second.bill["dollars"][0] == pytest.approx(stats["dollars"], abs=1e-9)
        assert stats["billed_rows"] == stats["distinct_rows_billed"]
        assert_frame_equal(second.results, run(cascade, api.client()).results)


def test_stopped_before_it_began_it_sends_nothing(api):
    """A stop right after the start is heard, also by models that have no run yet."""

    async def at_once():
        going = a_cascade(100).start(api.client(), ledger=None, progress=False)
        going.stop()
        return await going

    done = cs.wait(at_once())
    assert done.state == "stopped"
    assert api.stats["calls"] == 0
    assert done.results["error"].to_list() == ["not_sent"] * 100


def test_a_stop_between_two_models_is_heard(api):
    """Asked for while the replies of the first are judged, it keeps the second from being asked."""
    going = []

    def stops(results):
        for each in going:
            each.stop()
        return results["number"] < 0

    async def stopped():
        going.append(a_cascade(20, accept=stops).start(api.client(), ledger=None, progress=False))
        return await going[0]

    done = cs.wait(stopped())
    assert done.state == "stopped"
    assert list(done.runs) == [CHEAP]
    assert api.stats["calls"] == 20
    assert "run = await cascade.run(client)" in repr(done)


def test_batches_that_are_left_are_collected_by_the_same_cell(tmp_path):
    """Left while its first batch is out, the cascade is "left"; the next run collects it and goes on."""
    path = tmp_path / "docs.ledger"
    with simulator(replies=answer, speed=1_000, batch_seconds=600) as api:
        cascade = a_cascade(100, mode="batch")

        async def left():
            going = cascade.start(api.client(), ledger=path, progress=False)
            await until(lambda: api.stats["batches_created"])
            await next(iter(going.runs.values())).submitted()
            going.leave()
            return await going

        first = cs.wait(left())
        assert first.state == "left"
        second = run(cascade, api.client(), path)
        assert second.state == "finished"
        assert api.stats["batches_created"] == 3
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"] == 100 + 32 + 5
        assert second.bill["dollars"][0] == pytest.approx(api.stats["dollars"], abs=1e-9)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_killed_and_run_again_it_pays_once(tmp_path, mode):
    """After kill -9 in the second model only calls that were in flight are paid for again; by batch, none."""
    path = tmp_path / "docs.ledger"
    with simulator(seed=5, speed=2_000 if mode == "batch" else 20, latency=2.0) as api:
        requests = docstrings()["doc"].n_unique()
        child = subprocess.Popen([sys.executable, CHILD, api.url, path, mode])

        def is_second():
            stats = api.stats
            return stats["batches_created"] == 2 if mode == "batch" else stats["billed_rows"] > requests + 40

        while not is_second():
            assert child.poll() is None
        child.kill()
        child.wait()
        done = run(the_cascade(mode=mode), api.client(), path)
        stats = api.stats
        assert done.state == "finished"
        again = stats["billed_rows"] - stats["distinct_rows_billed"]
        assert again <= (0 if mode == "batch" else stats["peak_in_flight"])
        replies = sum(each.replies.height for each in done.runs.values())
        assert replies == stats["distinct_rows_billed"]
        if not again:
            assert done.bill["dollars"][0] == pytest.approx(stats["dollars"], abs=1e-9)


# ------------------------------------------------------------------------------ what it would have cost


def test_a_pilot_tells_the_share_that_goes_on_and_the_price(tmp_path):
    """A calibrated cascade estimates the dollars that it then costs, within the interval of its shares."""
    with simulator(seed=5, speed=50) as api:
        whole = the_cascade()
        pilot = run(whole.sample(150), api.client(), tmp_path / "a.ledger")
        cascade = whole.calibrate(pilot)
        assert [each.asked for each in cascade.passings] == [
            each.replies.height for each in pilot.runs.values()
        ]
        on_pilot = pilot.cascade.calibrate(pilot).options.row(0, named=True)
        assert on_pilot["dollars"] == pytest.approx(pilot.dollars, rel=0.03)
        own = cascade.options.row(0, named=True)
        assert own["dollars_low"] < own["dollars"] < own["dollars_high"]
        assert own["dollars_high"] < whole.options["dollars_high"][0]
        assert "as a pilot measured it" in repr(cascade)
        assert repr(cascade).endswith("run = await cascade.run(client)")
        share = own["break_even"]  # from the first model, while from the second goes on what was measured
        at_even = cascade.plot.shares().text
        assert (
            f"at most {share:.0%} of the rows go on; a pilot measured {cascade.passings[0].share:.0%}"
            in at_even
        )
        done = run(cascade, api.client(), tmp_path / "a.ledger")
        paid = done.bill["dollars"][0]
        assert own["dollars_low"] <= paid <= own["dollars_high"]
        assert own["dollars"] == pytest.approx(paid, rel=0.2)
        with pytest.raises(cs.PlanError, match="this cascade is of"):
            cs.cascade(a_plan(), [CHEAP, DEAR]).calibrate(pilot)
        with pytest.raises(cs.PlanError, match="accepts something else"):
            cs.cascade(next(iter(whole.plans.values())), MODELS).calibrate(pilot)
        with pytest.raises(cs.PlanError, match="no cascade's run"):
            whole.calibrate(pilot.runs[CHEAP])
        kept = cascade.replace(mode="batch")
        assert kept.passings == cascade.passings
        assert {each.asked for each in cascade.replace(system="Be brief.").passings} == {0}


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_the_bill_of_all_rows_on_the_strongest_is_corrected_for_the_rows_that_reached_it(mode):
    """Long texts go on here: the mean reply would overrate it, and the estimate is near what it costs."""
    words = [5 + 3 * (number % 60) for number in range(400)]
    frame = pl.DataFrame({"number": range(400), "text": ["word " * many for many in words], "words": words})

    def as_long(body):
        return "Said: " + body["messages"][0]["content"]

    with simulator(replies=as_long, speed=2_000 if mode == "batch" else 50) as api:
        plan = cs.plan(frame, "Repeat {text} {number}", model=CHEAP, tier=WIDE_LIMITS, mode=mode)
        long = (pl.col("words") < 100) | (pl.col("model") == DEAR)
        done = run(cs.cascade(plan, [CHEAP, DEAR], accept=long), api.client())
        cheap = run_alone(plan, CHEAP, api)
        dear = run_alone(plan, DEAR, api)
        bill = done.bill
        assert bill.schema == BILL
        assert bill["estimated"].to_list() == [False, False, True]
        assert bill["rows"].to_list() == [400] * 3
        assert bill["dollars"][1] == pytest.approx(cheap)
        assert bill["dollars"][2] == pytest.approx(dear, rel=0.05)
        naive = done.runs[DEAR].replies["dollars"].mean() * 400
        assert naive > dear * 1.3
        assert bill["share"][0] == pytest.approx(bill["dollars"][0] / bill["dollars"][2])
        assert f"{bill['share'][0]:.0%} of all on {DEAR}" in repr(done)


def run_alone(plan, model, api):
    """Return what all rows on one model cost."""
    return cs.wait(plan.replace(model=model).run(api.client(), ledger=None, progress=False)).counts.dollars


def test_where_no_row_reaches_the_strongest_its_price_is_called_a_guess(api):
    """Nothing was measured of it, and the bill says so."""
    done = run(a_cascade(20, models=[CHEAP, DEAR], accept=pl.lit(value=True) | pl.col("number").is_null(),
                         frame=numbers(20).filter(pl.col("number") % 7 != 0)), api.client())  # fmt: skip
    assert list(done.runs) == [CHEAP]
    assert done.plot.bill().text.endswith(f"rows accepted: {CHEAP} 17")
    assert done.bill["basis"][2] == "guessed from characters: no row has reached it"
    assert done.state == "finished"


def test_the_line_of_each_model_says_how_many_rows_go_on_and_why(api, capsys):
    """With a bar shown, each model is announced with the reasons of the rows it is asked about."""
    cs.wait(a_cascade(40).run(api.client(), ledger=None))
    told = capsys.readouterr().err
    assert f"Model 1 of 3, {CHEAP}: every row." in told
    assert f"Model 2 of 3, {MIDDLE}: 12 rows that {CHEAP} did not settle (6 not accepted, 6 invalid)." in told


def test_the_handle_works_from_a_script_and_from_async_code(api):
    """`result()` blocks a script; in plain async code the cascade runs on the caller's own loop."""
    going = a_cascade(10).start(api.client(), ledger=None, progress=False)
    assert going.result() is going
    assert going.state == "finished"

    async def own_loop():
        started = a_cascade(10).start(api.client(), ledger=None, progress=False)
        with pytest.raises(RuntimeError, match="use await"):
            started.result()
        return await started

    assert asyncio.run(own_loop()).results["model"].null_count() == 0


def test_one_fault_of_the_whole_account_in_a_later_model_keeps_the_first_models_replies(tmp_path):
    """A spend limit met by the second model stops the cascade; every row still has its first reply."""
    path = tmp_path / "a.ledger"
    with simulator(replies=answer) as api:
        alone = run(a_cascade(100, models=[CHEAP, DEAR], accept=None), api.client(), path)
        cheap = alone.table["dollars"][0]
    with simulator(replies=answer, faults={"spend_cap": cheap}) as api:
        with pytest.raises(cs.RunStopped, match="Model 2 of 2") as caught:
            run(a_cascade(100, models=[CHEAP, DEAR]), api.client())
        stopped = caught.value.run
        assert stopped.stopped_by == "enforced_spend_limit_reached"
        assert stopped.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert stopped.results["reply"].null_count() <= 15  # calls in flight may be answered before the limit


def test_an_interrupt_leaves_a_cascade_and_the_next_run_pays_for_the_rest(tmp_path):
    """Ctrl-C stops sending, what is in flight comes in, no model is asked any more, and it resumes."""
    path = tmp_path / "a.ledger"
    with simulator(replies=answer, latency=1.0) as api:
        going = a_cascade(400).start(api.client(), ledger=path, progress=False)
        interrupt_when(lambda: api.stats["billed_rows"] > 20)
        with pytest.raises(KeyboardInterrupt):
            going.result()
        assert going.state == "stopped"
        assert list(going.runs) == [CHEAP]
        done = run(a_cascade(400), api.client(), path)
        assert going.dollars + done.dollars == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"]


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
    assert done.bill["way"].len() == 4
    assert len(done.runs) == (3 if rows else 1)
    assert done.plot.bill().text
    assert cascade.plot.shares().text
    assert "rows accepted" in done._repr_html_()


def one_bill(*dollars, estimated=True):
    """Return the frames of a picture: a cascade of two models, and each of them alone."""
    bill = pl.DataFrame(
        {
            "way": ["cascade", f"all on {CHEAP}", f"all on {DEAR}"],
            "dollars": dollars,
            "share": [each / dollars[-1] if dollars[-1] else None for each in dollars],
            "estimated": [False, False, estimated],
        }
    )
    table = pl.DataFrame({"model": [CHEAP, DEAR], "rows": [100, 20], "accepted": [80, None]})
    return bill, table.with_columns(dollars=pl.Series([dollars[1], dollars[0] - dollars[1]]))


@pytest.mark.parametrize("dollars", [(1.5, 0.1, 7.0), (2e-5, 1e-6, 1e-5), (9e5, 1.0, 2e6), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("simulated", [True, False])
def test_the_picture_of_a_bill_is_drawn(dollars, simulated):
    """By old and new Vega-Lite, no wider than a page, with estimates and the simulator named."""
    shown = cascadecharts.bill(*one_bill(*dollars), simulated=simulated)
    drawing = shown._repr_mimebundle_()["application/vnd.vegalite.v5+json"]
    for version in ("5.8", None):
        png = vl_convert.vegalite_to_png(drawing, vl_version=version)
        assert int.from_bytes(png[16:20], "big") <= 800
    text = json.dumps(drawing)
    if dollars[0]:
        assert ("SIMULATED" in text) == ("SIMULATED" in shown.text) == simulated
        assert "(estimated)" in text
        assert "80 of 100 accepted" in text
    else:
        assert shown.text == "nothing sent"


@pytest.mark.parametrize("measured", [(), (0.0, 0.0, 0.1), (0.4, 0.5, 0.6)])
def test_the_picture_of_shares_names_every_way(measured):
    """Each model alone is a labelled line, the pilot's interval a band, and the title the break-even."""
    curve = pl.DataFrame({"share": [0.0, 0.5, 1.0], "dollars": [1.0, 3.0, 5.0]})
    ways = pl.DataFrame({"way": [f"all on {CHEAP}", f"all on {DEAR}"], "dollars": [1.0, 4.0]})
    shown = cascadecharts.shares(curve, ways, measured=measured)
    drawing = shown._repr_mimebundle_()["application/vnd.vegalite.v5+json"]
    text = json.dumps(drawing)
    assert f"all on {CHEAP}: $1.00" in text
    assert f"all on {DEAR}: $4.00" in text
    assert shown.text.startswith(f"Cheaper than all on {DEAR} while at most 50% of the rows go on")
    assert ("a pilot measured" in shown.text) == bool(measured)
    assert ('"rect"' in text) == bool(measured)
    assert "Never cheaper" in cascadecharts.shares(curve, ways.reverse()).text
    assert cascadecharts.shares(curve * 0, ways.with_columns(dollars=0.0)).text == "nothing sent"
