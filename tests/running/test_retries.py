"""A retry resends a run's failed rows, reuses its answers, and pays for nothing twice."""

import json
from collections import Counter

import polars as pl
import pydantic
import pytest
from engine import taken_for_real
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, simulator

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


def numbered(rows, first=0):
    """Return a frame of different texts that end with their number."""
    return pl.DataFrame({"text": [f"Review #{number}" for number in range(first, first + rows)]})


def asked(frame, **options):
    """Return a plan over numbered texts."""
    return a_plan(frame, "{text}", **{"max_tokens": SHORT, **options})


@pytest.mark.parametrize("on_disk", [True, False])
def test_only_rows_cut_off_are_sent_again_and_every_row_comes_out(tmp_path, on_disk):
    """A larger `max_tokens` pays for two of ten rows, even if the first ledger no longer exists."""
    first, second = [tmp_path / name if on_disk else None for name in "ab"]
    replies = Scripted()
    with simulator(replies=replies) as api:
        plan = asked(numbered(10))
        run = finished(plan, api.client(), ledger=first)
        assert run.results["error"].drop_nulls().to_list() == ["max_tokens"] * 2
        again = plan.retry(run, max_tokens=LONG)
        assert (again.requests.height, again.options["requests"][0]) == (2, 2)
        for file in tmp_path.iterdir():
            file.unlink()
        retried = finished(again, api.client(), ledger=second)
        assert replies.asked == Counter({number: 1 + (number in LENGTHY) for number in range(10)})
        assert api.stats["dollars"] == pytest.approx(run.counts.dollars + retried.counts.dollars)
    wanted = [LENGTHY.get(number, f"fine {number}").strip() for number in range(10)]
    assert [reply.strip() for reply in retried.results["reply"]] == wanted
    assert_frame_equal(retried.results.select("text"), numbered(10))
    summary = retried.summary.row(0, named=True)
    assert summary.items() >= {"answered": 10, "failed": 0, "missing": 0, "reused": 8, "requests": 2}.items()


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
        try:
            run = finished(plan, api.client())
        except cs.RunStopped as stopped:
            run = stopped.run
    failed = run.results["error"].is_not_null()
    assert 0 < failed.sum() < 40
    with simulator(speed=6_000) as api:
        retried = finished(plan.retry(run, mode=second), api.client())
        assert api.stats["billed_rows"] == failed.sum()
    assert retried.results["error"].null_count() == 40
    assert_frame_equal(retried.results.filter(~failed), run.results.filter(~failed))


def test_what_cannot_be_retried_is_told():
    """A run in progress, another frame or prompt, a pilot, a non-run and kept parameters are rejected."""
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
        (lambda: asked(numbered(6, first=1)).retry(run), "the same texts in the same order"),
        (lambda: a_plan(numbered(6), "Look: {text}").retry(run), "asks something else"),
        (lambda: plan.retry(run.results), "takes a run that has ended"),
        (lambda: plan.retry(run, nonsense=1), "does not take 'nonsense'"),
        (lambda: again.replace(frame=plan.frame), "keeps the frame"),
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


def test_the_card_says_what_failed_and_what_to_type():
    """It has error kinds with row counts, the line that resends them, and what it reuses and omits."""
    with simulator(replies=Scripted(), faults={"refusal": 0.1}) as api:
        plan = asked(numbered(20))
        run = finished(plan, api.client())
        refused = (run.results["error"] == "refusal").sum()
        *_, failed, again = repr(run).splitlines()
        assert again == "Next: run = cs.wait(plan.retry(run, max_tokens=80).run(client, ledger=None))"
        for words in (
            "2 cut off at max_tokens=20",
            f"{refused} refused by the model",
            "Retrying unchanged does not help with refusal: change the model",
        ):
            assert words in failed
        shown = repr(plan.retry(run, max_tokens=80))
        for words in (
            "Plan: 2 rows on claude-haiku-5-5, 2 requests.",
            f"{18 - refused} answered rows are reused at no cost. Left out, as ",
            f"would fail again: {refused} refusal.",
            again,
        ):
            assert words in shown
        retried = finished(plan.retry(run, max_tokens=LONG), api.client())
        assert "retry" not in repr(retried).splitlines()[-1]  # only refusals are left
    assert "18 requests taken over; 2 calls" in repr(retried)
