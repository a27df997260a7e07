"""A retry resends a run's failed rows, reuses its answers, and pays for nothing twice."""

import json
from collections import Counter

import polars as pl
import pydantic
import pytest
from engine import taken_for_real
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, ended, finished, simulator

import claudescale as cs

pytestmark = pytest.mark.slow
SHORT, LONG = 20, 400
LENGTHY = dict.fromkeys((3, 7), "word " * 100)
"""Two replies of more than SHORT tokens and less than LONG."""


class Scripted:
    """Replies for a simulator: `script` maps the number in a text to its answers, in turn."""

    def __init__(self, script=LENGTHY):
        self.script, self.asked = script, Counter()

    def __call__(self, body):
        """Return the reply to one body; the last of a list repeats."""
        number = int(body["messages"][-1]["content"].rpartition("#")[2])
        self.asked[number] += 1
        told = self.script.get(number, f"fine {number}")
        return told if isinstance(told, str) else told[min(self.asked[number], len(told)) - 1]


def numbered(rows):
    """Return a frame of different texts that end with their number."""
    return pl.DataFrame({"text": [f"Review #{number}" for number in range(rows)]})


def asked(frame, **options):
    """Return a plan over numbered texts."""
    return a_plan(frame, "{text}", **{"max_tokens": SHORT, **options})


def test_only_rows_cut_off_are_sent_again_and_every_row_comes_out():
    """A larger `max_tokens` pays for two of twenty rows; the cards say what failed, and what to type."""
    replies = Scripted()
    with simulator(replies=replies, faults={"refusal": 0.1}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
        refused = (run.results["error"] == "refusal").sum()
        *_, failed, line = repr(run).splitlines()
        assert "2 cut off at max_tokens=20" in failed
        assert f"{refused} refused by the model" in failed
        assert "Retrying unchanged does not help with refusal: change the model" in failed
        assert line == "Next: run = cs.wait(plan.retry(run, max_tokens=80).run(client, ledger=None))"
        again = plan.retry(run, max_tokens=LONG)
        assert "Plan: 2 rows on claude-haiku-5-5, 2 requests." in repr(again)
        assert f"{18 - refused} answered rows are reused at no cost. Left out, as " in repr(again)
        retried = finished(again, api.client())
        assert [number for number in range(20) if replies.asked[number] > 1] == [*LENGTHY]
        assert api.stats["dollars"] == pytest.approx(run.counts.dollars + retried.counts.dollars)
    assert "18 requests taken over; 2 calls" in repr(retried)
    assert "retry" not in repr(retried).splitlines()[-1]  # only refusals are left
    answered = retried.results.filter(pl.col("error").is_null())
    assert answered.height == retried.summary["answered"].item() == 20 - refused
    for text, reply in answered.select("text", "reply").rows():
        number = int(text.rpartition("#")[2])
        assert reply.strip() == LENGTHY.get(number, f"fine {number}").strip()
    assert_frame_equal(retried.results.select("text"), numbered(20))


def tag_class():
    """Return a class that is new each time, as in a cell that is run again."""
    return pydantic.create_model("Tag", label=str, score=int)


def test_the_same_cells_after_a_restart_pay_nothing(tmp_path):
    """A run, its retry and the retry of that make no call when repeated; reused replies keep their types."""
    good = [json.dumps({"label": "x", "score": number}) for number in range(8)]
    replies = Scripted(dict(enumerate(good)) | {5: ["nothing", "nothing", good[5]]})
    with simulator(replies=replies) as api:
        for _ in range(2):
            plan, failed = asked(numbered(8), returns=tag_class(), max_tokens=64), []
            for _ in range(3):
                run = finished(plan, api.client(), ledger=tmp_path / "l")
                failed += run.results.drop_nulls("error").select("reply", "score", "error").rows()
                plan = run.plan.retry(run, returns=tag_class())
            assert failed == [("nothing", None, "invalid_reply")] * 2
            assert replies.asked.total() == 10
    assert run.results["score"].to_list() == list(range(8))
    for other in (pl.Enum(["x"]), None):
        with pytest.raises(cs.PlanError, match="another form"):
            run.plan.retry(run, returns=other)


@pytest.mark.parametrize(
    ("fault", "useless", "of_use"),
    [
        ("refusal", [{}, {"max_tokens": 900}], [{"model": "claude-sonnet-5-5"}, {"system": "Be kind."}]),
        (400, [{}, {"mode": "batch"}], [{"max_tokens": 50}]),
    ],
)
def test_what_would_fail_again_is_left_out_unless_something_changed(fault, useless, of_use):
    """A refusal needs another question or model, and a rejected request any other request."""
    with simulator(faults={fault: 0.4}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
    failed = run.results["error"].is_not_null()
    assert 0 < failed.sum() < 20
    assert {plan.retry(run, **changes).requests.height for changes in useless} == {0}
    assert {plan.retry(run, **changes).requests.height for changes in of_use} == {failed.sum()}
    with simulator() as api:
        unchanged, changed = (finished(plan.retry(run, **more), api.client()) for more in ({}, of_use[-1]))
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
    """Rows given up, failed in a batch or unsent are answered, and the others are reused."""
    with simulator(faults=faults, speed=6_000) as api:
        plan = asked(numbered(40), mode=first, **({"concurrency": 4} if first == "live" else {}))
        run = ended(plan, api)
    failed = run.results["error"].is_not_null()
    assert 0 < failed.sum() < 40
    with simulator(speed=6_000) as api:
        retried = finished(plan.retry(run, mode=second), api.client())
        assert api.stats["billed_rows"] == failed.sum()
    assert retried.results["error"].null_count() == 40
    assert_frame_equal(retried.results.filter(~failed), run.results.filter(~failed))


def test_what_cannot_be_retried_is_told():
    """A run in progress, a pilot, a wrong parameter, and what a retry must keep are each named."""
    with simulator(latency=2.0) as api:
        plan = asked(numbered(6))
        run = plan.start(api.client(), ledger=None, progress=False)
        with pytest.raises(cs.PlanError, match="has ended"):
            plan.retry(run)
        cs.wait(run)
        pilot = finished(plan.sample(3), api.client())
    again, accept = plan.retry(run), pl.lit(value=True)
    for refused, words in (
        (lambda: plan.retry(pilot), r"has 3 rows and the plan 6.*run\.plan\.retry\(run\)"),
        (lambda: plan.retry(run, nonsense=1), "does not take 'nonsense'"),
        (lambda: again.sample(3), "keeps the frame"),
        (lambda: cs.cascade(again, models=[MODEL, "claude-opus-5-5"], accept=accept), "the plan itself"),
    ):
        with pytest.raises(cs.PlanError, match=words):
            refused()


def test_replies_of_a_simulator_never_stand_beside_real_ones(monkeypatch):
    """Retrying a simulator's run at the API is refused before anything is sent."""
    with simulator(replies=Scripted()) as api:
        plan = asked(numbered(5))
        again = plan.retry(finished(plan, api.client()), max_tokens=LONG)
        taken_for_real(monkeypatch)
        with pytest.raises(cs.PlanError, match="was answered by a simulator, and this client calls the API"):
            finished(again, api.client())
        assert api.stats["calls"] == 5
