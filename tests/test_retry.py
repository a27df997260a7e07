"""A retry: what failed in a run is sent again, what was answered is taken over, and nothing is paid twice."""

import dataclasses
import json
from collections import Counter

import polars as pl
import pydantic
import pytest
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, simulator

import claudescale as cs
from claudescale.api.prices import price

SHORT, LONG = 20, 400


class Scripted:
    """Replies for a simulator: `script` maps a number that stands in a text to what is answered."""

    def __init__(self, script=None):
        self.script = script or {}
        self.asked = Counter()

    def __call__(self, body):
        """Return the reply to one body."""
        number = int(body["messages"][-1]["content"].rpartition("#")[2])
        self.asked[number] += 1
        told = self.script.get(number, f"fine {number}")
        return told(self.asked[number]) if callable(told) else told


def numbered(rows, first=0):
    """Return a frame of different texts that end with their number."""
    return pl.DataFrame({"text": [f"Review #{number}" for number in range(first, first + rows)]})


def asked(frame, **options):
    """Return a plan over numbered texts."""
    return a_plan(frame, "{text}", **{"max_tokens": SHORT, **options})


LENGTHY = dict.fromkeys((3, 7), "word " * 100)
"""Two replies of more than SHORT tokens and less than LONG."""


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("a", "b"), ("a", None), (None, "a"), (None, None)]
)
def test_only_rows_cut_off_are_sent_again_and_every_row_comes_out(tmp_path, first, second):
    """With a larger `max_tokens` two of ten rows are paid for, wherever the ledgers are."""
    ledgers = [None if name is None else tmp_path / name for name in (first, second)]
    replies = Scripted(LENGTHY)
    with simulator(replies=replies) as api:
        plan = asked(numbered(10))
        run = finished(plan, api.client(), ledger=ledgers[0])
        assert run.results["error"].drop_nulls().to_list() == ["max_tokens"] * 2
        again = plan.retry(run, max_tokens=LONG)
        assert (again.compiled.totals.requests, again.requests.height, again.options["requests"][0]) == (
            2,
            2,
            2,
        )
        retried = finished(again, api.client(), ledger=ledgers[1])
        assert replies.asked == Counter({number: 1 + (number in LENGTHY) for number in range(10)})
        assert api.stats["dollars"] == pytest.approx(run.counts.dollars + retried.counts.dollars)
    wanted = [LENGTHY.get(number, f"fine {number}").strip() for number in range(10)]
    assert [reply.strip() for reply in retried.results["reply"]] == wanted
    assert retried.results["error"].null_count() == 10
    assert_frame_equal(retried.results.select("text"), numbered(10))
    summary = retried.summary.row(0, named=True)
    assert [summary[name] for name in ("rows", "answered", "failed", "missing")] == [10, 10, 0, 0]
    assert (summary["reused"], summary["requests"], retried.attempts.height) == (8, 2, 2)
    tokens = retried.attempts.select(pl.col("input_tokens", "output_tokens").sum()).row(0, named=True)
    paid = price(MODEL).dollars(**tokens)
    assert summary["dollars"] == pytest.approx(paid)


def test_the_same_cells_after_a_restart_pay_nothing(tmp_path):
    """A run, its retry and the retry of that, all again: not one call."""
    invalid = {5: lambda times: "no label" if times < 3 else "yes"}
    replies = Scripted({**dict.fromkeys(range(8), "yes"), **invalid})
    kind = pl.Enum(["yes", "no"])
    with simulator(replies=lambda body: json.dumps({"reply": replies(body)})) as api:

        def cells():
            plan = asked(numbered(8), returns=kind, max_tokens=64)
            run = finished(plan, api.client(), ledger=tmp_path / "l")
            second = finished(plan.retry(run), api.client(), ledger=tmp_path / "l")
            third = finished(plan.retry(second), api.client(), ledger=tmp_path / "l")
            return [each.results["error"].to_list().count("invalid_reply") for each in (run, second, third)]

        assert cells() == [1, 1, 0]
        assert replies.asked.total() == 10
        assert cells() == [1, 1, 0]
        assert replies.asked.total() == 10


def test_going_back_to_what_failed_asks_again(tmp_path):
    """A row that was cut off at 20 and refused at 400 is sent anew at 20 and at another `system`."""
    with simulator(replies=Scripted(LENGTHY)) as api:
        plan, client = asked(numbered(5)), api.client()
        run = finished(plan, client, ledger=tmp_path / "l")
        longer = finished(plan.retry(run, max_tokens=SHORT + 1), client, ledger=tmp_path / "l")
        before = api.stats["calls"]
        back = finished(plan.retry(longer), client, ledger=tmp_path / "l")
        assert api.stats["calls"] == before + 1
        assert back.results["error"].to_list() == [None] * 3 + ["max_tokens", None]


@pytest.mark.parametrize(
    ("changes", "sent"),
    [
        ({}, 0),
        ({"max_tokens": 900}, 0),
        ({"budget": 5.0}, 0),
        ({"mode": "batch"}, 0),
        ({"system": "Be kind."}, 1),
        ({"model": "claude-sonnet-5-5"}, 1),
    ],
)
def test_a_refusal_is_left_out_unless_something_changed(changes, sent):
    """What the model would decline again is not sent again, and keeps its error."""
    with simulator(faults={"refusal": 1.0}) as api:
        plan = asked(numbered(4))
        refused = finished(plan, api.client())
    assert refused.results["error"].to_list() == ["refusal"] * 4
    again = plan.retry(refused, **changes)
    assert again.requests.height == 4 * sent
    if "mode" in changes:
        return
    with simulator() as api:
        run = finished(again, api.client())
        assert api.stats["calls"] == 4 * sent
    assert run.results["error"].to_list() == [None if sent else "refusal"] * 4
    assert (run.counts.failed, run.counts.missing) == (4 * (not sent), 0)


def test_bad_input_is_left_out_unless_the_request_or_the_mode_changed():
    """Rows that the API rejects are sent again with anything else in their request, or in another mode."""
    with simulator(faults={400: 0.3}) as api:
        plan = asked(numbered(40))
        run = finished(plan, api.client())
    errors = run.results["error"].drop_nulls()
    assert set(errors) == {"invalid_request_error"}
    heights = [
        plan.retry(run, **each).requests.height for each in ({}, {"max_tokens": 50}, {"mode": "batch"})
    ]
    assert heights == [0, errors.len(), errors.len()]


def test_rows_that_were_given_up_are_sent_again():
    """What failed on the way has no last word of the API: it is sent again unchanged, by batch too."""
    with simulator(faults={500: 0.75}, speed=600) as api:
        plan = asked(numbered(60))
        run = finished(plan, api.client())
    failed = run.results["error"].drop_nulls()
    assert set(failed) == {"api_error"}
    with simulator(speed=6_000) as api:
        retried = finished(plan.retry(run, mode="batch"), api.client())
        assert api.stats["billed_rows"] == failed.len()
    assert retried.results["error"].null_count() == 60


def test_rows_of_a_batch_that_failed_are_sent_live():
    """Rows that a batch did not answer are answered live; those that it answered are taken over."""
    with simulator(speed=6_000, faults={"batch_errored": 0.4}) as api:
        plan = asked(numbered(20), mode="batch")
        run = finished(plan, api.client())
        failed = run.results["error"].is_not_null()
        assert 0 < failed.sum() < 20
        retried = finished(plan.retry(run, mode="live"), api.client())
    assert retried.attempts.height == failed.sum()
    assert set(retried.attempts["mode"]) == {"live"}
    assert retried.results["error"].null_count() == 20
    kept = ~failed
    assert_frame_equal(retried.results.filter(kept), run.results.filter(kept))


def test_a_run_that_was_stopped_is_finished_by_its_retry():
    """Rows that were never sent have no answer, so they are sent."""
    with simulator(faults={"spend_cap": 0.00008}) as api, pytest.raises(cs.RunStopped) as stopped:
        finished(asked(numbered(60), concurrency=4), api.client())
    run = stopped.value.run
    assert 0 < run.counts.answered < 60
    with simulator() as api:
        retried = finished(run.plan.retry(run), api.client())
        assert api.stats["billed_rows"] == 60 - run.counts.answered
    assert retried.results["error"].null_count() == 60


def test_duplicates_nulls_and_an_expression_that_looks_at_many_rows():
    """A text that repeats is sent once and comes out each time; a null stays unsent."""
    frame = pl.DataFrame({"text": ["a", "b", None, "b", "c", "a"]})
    prompt = pl.format("{} of {}", "text", pl.col("text").count())
    long = {"b of 5": "word " * 100}
    with simulator(replies=lambda body: long.get(body["messages"][0]["content"], "fine")) as api:
        plan = a_plan(frame, prompt, max_tokens=SHORT)
        run = finished(plan, api.client())
        again = plan.retry(run, max_tokens=LONG)
        assert (again.compiled.totals.rows, again.compiled.totals.requests, again.compiled.totals.unsent) == (
            3,
            1,
            1,
        )
        retried = finished(again, api.client())
        assert api.stats["calls"] == 4
    cut = [None, "max_tokens", None, "max_tokens", None, None]
    assert run.results["error"].to_list() == cut
    assert [reply and reply[:4] for reply in retried.results["reply"]] == [
        "fine",
        "word",
        None,
        "word",
        "fine",
        "fine",
    ]
    assert retried.results["error"].null_count() == 6
    assert (retried.counts.answered, retried.counts.rows, retried.counts.sent) == (5, 6, 5)


def test_head_and_sample_of_a_retry_are_of_what_it_sends():
    """A pilot of a retry has only rows that are sent, and its replies are the retry's."""
    replies = Scripted(dict.fromkeys(range(0, 20, 2), "word " * 100))
    with simulator(replies=replies) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
        again = plan.retry(run, max_tokens=LONG)
        assert again.head(3).requests.equals(again.requests.head(3))
        pilot = finished(again.sample(4), api.client())
        assert pilot.results.height == 4
        assert set(pilot.results["text"]) <= set(numbered(20)["text"].gather_every(2))
        assert again.calibrate(pilot).measured.calls == 4


def test_a_retry_of_typed_replies_takes_them_over_typed():
    """Typed columns are whole again; a class defined anew with the same fields is the same form."""

    def made():
        class Tag(pydantic.BaseModel):
            label: str
            score: int

        return Tag

    bad = {1: lambda times: "nothing" if times == 1 else '{"label": "x", "score": 9}'}
    good = {number: json.dumps({"label": "x", "score": number}) for number in range(4)}
    replies = Scripted(good | bad)
    with simulator(replies=replies) as api:
        plan = asked(numbered(4), returns=made(), max_tokens=64)
        run = finished(plan, api.client())
        assert run.results["error"].to_list() == [None, "invalid_reply", None, None]
        retried = finished(plan.retry(run, returns=made()), api.client())
    assert retried.results["score"].to_list() == [0, 9, 2, 3]
    with pytest.raises(cs.PlanError, match="another form"):
        plan.retry(run, returns=pl.Enum(["x"]))
    with pytest.raises(cs.PlanError, match="another form"):
        plan.retry(run, returns=None)


def test_a_lazy_frame_is_read_once_more_and_compared():
    """A LazyFrame that gives the same texts is retried; one that gives others is told."""
    given = [numbered(4)]
    lazy = pl.LazyFrame().map_batches(lambda _: given[0], schema={"text": pl.String})
    with simulator(replies=Scripted(LENGTHY)) as api:
        plan = asked(lazy)
        run = finished(plan, api.client())
        assert plan.retry(run, max_tokens=LONG).requests.height == 1
        given[0] = given[0].reverse()
        with pytest.raises(cs.PlanError, match="the same texts in the same order"):
            plan.retry(run, max_tokens=LONG)


def test_what_is_no_run_of_the_plan_is_told():
    """Another frame, another prompt, a pilot, what is no run, unknown names: each is told."""
    with simulator() as api:
        plan = asked(numbered(6))
        run = finished(plan, api.client())
        pilot = finished(plan.sample(3), api.client())
    with pytest.raises(cs.PlanError, match=r"has 3 rows and the plan 6.*run\.plan\.retry\(run\)"):
        plan.retry(pilot)
    for other in (asked(numbered(6, first=1)), a_plan(numbered(6), "Look: {text}")):
        with pytest.raises(cs.PlanError, match="asks something else"):
            other.retry(run)
    for thing in (
        plan,
        run.results,
        None,
        cs.cascade(plan, models=[MODEL, "claude-sonnet-5-5"], accept=pl.lit(value=True)),
    ):
        with pytest.raises(cs.PlanError, match="takes a run of a plan, not a"):
            plan.retry(thing)
    for name in ("frame", "prompt", "nonsense"):
        with pytest.raises(cs.PlanError, match=f"changes no '{name}'"):
            plan.retry(run, **{name: 1})
    again = plan.retry(run)
    with pytest.raises(cs.PlanError, match="Give it the plan itself"):
        cs.cascade(again, models=[MODEL, "claude-sonnet-5-5"], accept=pl.lit(value=True))
    for name in ("frame", "prompt", "returns"):
        with pytest.raises(cs.PlanError, match=f"keeps the {name}"):
            again.replace(**{name: getattr(plan, name)})


def test_a_run_that_goes_on_is_not_retried():
    """While rows are under way, or batches of it are at the API, nobody knows what fails."""
    with simulator(latency=2.0) as api:
        plan = asked(numbered(30))
        run = plan.start(api.client(), ledger=None, progress=False)
        with pytest.raises(cs.PlanError, match="still going"):
            plan.retry(run)
        cs.wait(run)
    with simulator() as api:
        plan = asked(numbered(3), mode="batch")
        run = cs.wait(plan.run(api.client(), ledger=None, progress=False, wait=False))
        run.leave()
        cs.wait(run)
        assert run.state == "left"
        with pytest.raises(cs.PlanError, match="Collect them first"):
            plan.retry(run, max_tokens=LONG)


def test_replies_of_a_simulator_never_stand_beside_real_ones():
    """A run of the one that is retried at the other is refused before anything is sent."""
    with simulator(replies=Scripted(LENGTHY)) as api:
        plan = asked(numbered(5))
        run = finished(plan, api.client())
        again = plan.retry(run, max_tokens=LONG)
        again.compiled.kept.check(simulated=True)
        with pytest.raises(cs.PlanError, match="was answered by a simulator, and this client calls the API"):
            again.compiled.kept.check(simulated=False)
        kept = again.compiled.kept
        real = kept._replace(attempts=kept.attempts.with_columns(simulated=pl.lit(value=False)))
        before = api.stats["calls"]
        with pytest.raises(cs.PlanError, match="was answered by the API, and this client calls a simulator"):
            finished(dataclasses.replace(again, kept=real), api.client())
        assert api.stats["calls"] == before


def test_the_ledger_may_be_gone_once_the_retry_is_made(tmp_path):
    """What is taken over is in the plan: the file of the first run is not asked for it again."""
    with simulator(replies=Scripted(LENGTHY)) as api:
        plan = asked(numbered(5))
        finished(plan, api.client(), ledger=tmp_path / "l")
        run = finished(plan, api.client(), ledger=tmp_path / "l")
        again = plan.retry(run, max_tokens=LONG)
        for each in tmp_path.iterdir():
            each.unlink()
        retried = finished(again, api.client(), ledger=tmp_path / "l")
        assert retried.results["error"].null_count() == 5
        assert api.stats["calls"] == 6


def test_nothing_failed_so_nothing_is_sent():
    """The retry of a run without failures gives its results, and says that there is nothing to send."""
    with simulator() as api:
        plan = asked(numbered(5))
        run = finished(plan, api.client())
        again = plan.retry(run)
        assert "Plan: 0 rows" in repr(again)
        retried = finished(again, api.client())
        assert api.stats["calls"] == 5
    assert_frame_equal(retried.results, run.results)
    assert retried.bill["dollars"].sum() == 0


def test_a_budget_is_that_of_the_retry():
    """Dollars of the first run do not count against the budget of the second."""
    with simulator(replies=Scripted(LENGTHY)) as api:
        plan = asked(numbered(10), budget=0.01)
        run = finished(plan, api.client())
        allowed = price(MODEL).dollars(input_tokens=2_200, output_tokens=2 * LONG)
        retried = finished(plan.retry(run, max_tokens=LONG, budget=allowed), api.client())
    assert retried.state == "finished"
    assert retried.counts.dollars <= allowed


# what the cards say


def test_the_card_says_what_failed_and_what_to_type():
    """Kinds with counts of rows, and the line that sends them again with a larger `max_tokens`."""
    with simulator(replies=Scripted(LENGTHY), faults={"refusal": 0.1}) as api:
        run = finished(asked(numbered(20)), api.client())
        assert finished(asked(numbered(2)), api.client()).failures == {}
    lines = repr(run).splitlines()
    refused = run.failures["refusal"]
    assert run.failures == {"max_tokens": 2, "refusal": refused}
    assert lines[-1] == "run = cs.wait(plan.retry(run, max_tokens=80).run(client))"
    assert "2 cut off at max_tokens=20" in lines[-2]
    assert f"{refused} refused by the model" in lines[-2]
    assert "Retrying unchanged is of no use for refusal: change the model" in lines[-2]
    assert len(lines) <= 12


def test_where_a_retry_is_of_no_use_none_is_proposed():
    """Rows that were refused alone: the card says so, and its next line is the results."""
    with simulator(faults={"refusal": 1.0}) as api:
        run = finished(asked(numbered(3)), api.client())
    assert "Failed: 3 refused by the model. Retrying unchanged is of no use" in repr(run)
    assert repr(run).splitlines()[-1] == "run.results"


def test_the_card_of_a_retry_counts_what_it_sends():
    """Rows and requests are those to send; what is taken over and left out stands below."""
    with simulator(replies=Scripted(LENGTHY), faults={"refusal": 0.1}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
        refused = run.failures["refusal"]
        shown = repr(plan.retry(run, max_tokens=80))
        assert shown.startswith("Plan: 2 rows on claude-haiku-5-5, 2 requests.")
        assert f"{18 - refused} answered rows are taken over at no cost. Left out, as " in shown
        assert f"would fail again: {refused} refusal." in shown
        assert shown.splitlines()[-1] == "run = cs.wait(plan.retry(run, max_tokens=80).run(client))"
        retried = finished(plan.retry(run, max_tokens=LONG), api.client())
    assert "18 requests taken over; 2 calls" in repr(retried)
