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

pytestmark = pytest.mark.slow
SHORT, LONG = 20, 400
LENGTHY = dict.fromkeys((3, 7), "word " * 100)
"""Two replies of more than SHORT tokens and less than LONG."""


class Scripted:
    """Replies for a simulator: `script` maps a number that stands in a text to what is answered."""

    def __init__(self, script=LENGTHY):
        self.script, self.asked = script, Counter()

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


@pytest.mark.parametrize(("first", "second"), [("a", "b"), (None, None)])
def test_only_rows_cut_off_are_sent_again_and_every_row_comes_out(tmp_path, first, second):
    """With a larger `max_tokens` two of ten rows are paid for, wherever the ledgers are, or were."""
    ledgers = [None if name is None else tmp_path / name for name in (first, second)]
    replies = Scripted()
    with simulator(replies=replies) as api:
        plan = asked(numbered(10))
        run = finished(plan, api.client(), ledger=ledgers[0])
        assert run.results["error"].drop_nulls().to_list() == ["max_tokens"] * 2
        again = plan.retry(run, max_tokens=LONG)
        assert (again.requests.height, again.options["requests"][0]) == (2, 2)
        for each in tmp_path.iterdir() if second == "b" else ():
            each.unlink()
        retried = finished(again, api.client(), ledger=ledgers[1])
        assert replies.asked == Counter({number: 1 + (number in LENGTHY) for number in range(10)})
        assert api.stats["dollars"] == pytest.approx(run.counts.dollars + retried.counts.dollars)
    wanted = [LENGTHY.get(number, f"fine {number}").strip() for number in range(10)]
    assert [reply.strip() for reply in retried.results["reply"]] == wanted
    assert retried.results["error"].null_count() == 10
    assert_frame_equal(retried.results.select("text"), numbered(10))
    summary = retried.summary.row(0, named=True)
    assert summary.items() >= {"rows": 10, "answered": 10, "failed": 0, "missing": 0, "reused": 8}.items()
    assert (summary["requests"], retried.attempts.height) == (2, 2)


def test_the_same_cells_after_a_restart_pay_nothing(tmp_path):
    """A run, its retry and the retry of that, all again: not one call."""
    replies = Scripted(
        {**dict.fromkeys(range(8), "yes"), 5: lambda times: "yes" if times > 2 else "no label"}
    )
    with simulator(replies=lambda body: json.dumps({"reply": replies(body)})) as api:

        def cells():
            plan = asked(numbered(8), returns=pl.Enum(["yes", "no"]), max_tokens=64)
            runs = [finished(plan, api.client(), ledger=tmp_path / "l")]
            for _ in range(2):
                runs.append(finished(plan.retry(runs[-1]), api.client(), ledger=tmp_path / "l"))
            return [run.results["error"].to_list().count("invalid_reply") for run in runs]

        for _ in range(2):
            assert cells() == [1, 1, 0]
            assert replies.asked.total() == 10


@pytest.mark.parametrize(
    ("fault", "useless", "of_use"),
    [
        (
            "refusal",
            [{}, {"max_tokens": 900}, {"budget": 5.0}, {"mode": "batch"}],
            [{"model": "claude-sonnet-5-5"}, {"system": "Be kind."}],
        ),
        (400, [{}, {"mode": "batch"}], [{"max_tokens": 50}]),
    ],
)
def test_what_would_fail_again_is_left_out_unless_something_changed(fault, useless, of_use):
    """A refusal asks for another question or model, a rejected request for any other request."""
    with simulator(faults={fault: 0.4}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
    failed = run.results["error"].is_not_null()
    assert 0 < failed.sum() < 20
    assert {plan.retry(run, **changes).requests.height for changes in useless} == {0}
    assert {plan.retry(run, **changes).requests.height for changes in of_use} == {failed.sum()}
    with simulator(speed=1_000) as api:
        unchanged, changed = (finished(plan.retry(run, **each), api.client()) for each in ({}, of_use[-1]))
        assert api.stats["billed_rows"] == failed.sum()
    assert unchanged.results["error"].equals(run.results["error"])
    assert changed.results["error"].null_count() == 20


@pytest.mark.parametrize(
    ("first", "faults", "second"),
    [
        ("live", {500: 0.75}, "batch"),
        ("batch", {"batch_errored": 0.4}, "live"),
        ("live", {"spend_cap": 8e-5}, "live"),
    ],
)
def test_rows_without_a_last_word_are_sent_again_in_any_mode(first, faults, second):
    """Given up on the way, failed in a batch, or not sent: they are answered, and the others taken over."""
    with simulator(faults=faults, speed=6_000) as api:
        plan = asked(numbered(40), mode=first, **({"concurrency": 4} if first == "live" else {}))
        try:
            run = finished(plan, api.client())
        except cs.RunStopped as stopped:
            run = stopped.run
    failed = run.results["error"].is_not_null()
    assert 0 < failed.sum() < 40
    with simulator(speed=6_000) as api:
        retried = finished(plan.retry(run, mode=second), api.client())
        assert api.stats["billed_rows"] == failed.sum()
    assert set(retried.attempts["mode"]) == {second}
    assert retried.results["error"].null_count() == 40
    assert_frame_equal(retried.results.filter(~failed), run.results.filter(~failed))


def test_a_retry_of_typed_replies_takes_them_over_typed():
    """Typed columns are whole again; a class defined anew with the same fields is the same form."""

    def made():
        class Tag(pydantic.BaseModel):
            label: str
            score: int

        return Tag

    good = {number: json.dumps({"label": "x", "score": number}) for number in range(4)}
    bad = {1: lambda times: "nothing" if times == 1 else good[1]}
    with simulator(replies=Scripted(good | bad)) as api:
        plan = asked(numbered(4), returns=made(), max_tokens=64)
        run = finished(plan, api.client())
        assert run.results["error"].to_list() == [None, "invalid_reply", None, None]
        retried = finished(plan.retry(run, returns=made()), api.client())
    assert retried.results["score"].to_list() == [0, 1, 2, 3]
    for other in (pl.Enum(["x"]), None):
        with pytest.raises(cs.PlanError, match="another form"):
            plan.retry(run, returns=other)


def test_what_cannot_be_retried_is_told():
    """A run under way, of another frame or prompt, a pilot, no run at all, names that a retry keeps."""
    given = [numbered(4)]
    lazy = asked(pl.LazyFrame().map_batches(lambda _: given[0], schema={"text": pl.String}))
    with simulator(latency=2.0) as api:
        plan = asked(numbered(6))
        run = plan.start(api.client(), ledger=None, progress=False)
        with pytest.raises(cs.PlanError, match="has ended"):
            plan.retry(run)
        cs.wait(run)
        pilot = finished(plan.sample(3), api.client())
        whole = finished(lazy, api.client())
    again = plan.retry(run)
    assert lazy.retry(whole).requests.height == 0
    given[0] = given[0].reverse()
    for retried, other, words in (
        (plan, pilot, r"has 3 rows and the plan 6.*run\.plan\.retry\(run\)"),
        (asked(numbered(6, first=1)), run, "asks something else"),
        (a_plan(numbered(6), "Look: {text}"), run, "asks something else"),
        (plan, run.results, "takes a run that has ended"),
        (lazy, whole, "the same texts in the same order"),
    ):
        with pytest.raises(cs.PlanError, match=words):
            retried.retry(other)
    with pytest.raises(cs.PlanError, match="does not take 'nonsense'"):
        plan.retry(run, nonsense=1)
    for change in (lambda: again.replace(frame=plan.frame), lambda: again.sample(3)):
        with pytest.raises(cs.PlanError, match="keeps the frame"):
            change()
    with pytest.raises(cs.PlanError, match="Give it the plan itself"):
        cs.cascade(again, models=[MODEL, "claude-sonnet-5-5"], accept=pl.lit(value=True))


def test_replies_of_a_simulator_never_stand_beside_real_ones():
    """A run of the one that is retried at the other is refused before anything is sent."""
    with simulator(replies=Scripted()) as api:
        plan = asked(numbered(5))
        again = plan.retry(finished(plan, api.client()), max_tokens=LONG)
        with pytest.raises(cs.PlanError, match="was answered by a simulator, and this client calls the API"):
            again.compiled.retry.check(simulated=False)
        retry = again.compiled.retry
        real = retry._replace(attempts=retry.attempts.with_columns(simulated=pl.lit(value=False)))
        again = dataclasses.replace(again, _retry=real)
        with pytest.raises(cs.PlanError, match="was answered by the API, and this client calls a simulator"):
            finished(again, api.client())
        assert api.stats["calls"] == 5


def test_the_budget_of_a_retry_is_of_what_it_sends():
    """Dollars of the first run do not count against it."""
    frame = numbered(20).with_columns(text="word " * 500 + pl.col("text"))
    with simulator(replies=Scripted()) as api:
        plan = asked(frame)
        run = finished(plan, api.client())
        again = plan.retry(run, max_tokens=LONG)
        budget = run.counts.dollars
        retried = finished(again.replace(budget=budget), api.client())
    assert retried.counts.dollars <= budget < retried.counts.dollars + run.counts.dollars
    assert retried.results["error"].null_count() == 20


# what the cards say


def test_the_card_says_what_failed_and_what_to_type():
    """Kinds with counts of rows, the line that sends them again, and what it takes over and leaves out."""
    with simulator(replies=Scripted(), faults={"refusal": 0.1}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
        refused = (run.results["error"] == "refusal").sum()
        again = "run = cs.wait(plan.retry(run, max_tokens=80).run(client, ledger=None))"
        lines = repr(run).splitlines()
        assert lines[-1] == again
        assert "2 cut off at max_tokens=20" in lines[-2]
        assert f"{refused} refused by the model" in lines[-2]
        assert "Retrying unchanged does not help with refusal: change the model" in lines[-2]
        assert len(lines) <= 12
        shown = repr(plan.retry(run, max_tokens=80))
        assert shown.startswith("Plan: 2 rows on claude-haiku-5-5, 2 requests.")
        assert f"{18 - refused} answered rows are reused at no cost. Left out, as " in shown
        assert f"would fail again: {refused} refusal." in shown
        assert shown.splitlines()[-1] == again
        retried = finished(plan.retry(run, max_tokens=LONG), api.client())
    assert "18 requests taken over; 2 calls" in repr(retried)
