"""A run ends, and a row fails, for the right reason: the account, the request, the row itself, or chance."""

from contextlib import suppress

import canned
import polars as pl
import pytest
from engine import GOOD, NO_MESSAGE, TIMED_OUT, UNREACHABLE, answer, body, through_script
from running import a_plan, ended, finished, reviews, simulator

import claudescale as cs
from claudescale.api.answers import Answer, Verdict
from claudescale.running import health, live
from claudescale.running.job import Job

BLOCKED = answer(400, "invalid_request_error", "Output blocked by content filtering policy")
WRONG_KEY = answer(401, "authentication_error")
ODD = {
    100: WRONG_KEY,
    101: answer(403, "permission_error"),
    102: answer(404, "not_found_error", "model: claude-haiku-5-5"),
    200: Answer(404, {"content-type": "text/html"}, b"<html>"),
}


def after(count, no):
    """Return a script that answers that many calls and then gives only this."""
    return lambda call: no if call.number > count else GOOD


WRONG = answer(400, "invalid_request_error", "Extra inputs are not permitted")
SPENT = answer(429, "rate_limit_error", "You have reached your API usage limits.")
LIMITED = answer(429, "rate_limit_error")
CLOSED = answer(400, "invalid_request_error", "The API is closed to you.")
FIRST, LATER, SILENT = health.HOPELESS_ROWS, health.HOPELESS_ROWS_LATER, health.SILENT_SECONDS
ENDS = {  # script: rows answered, most calls, least and most seconds, and the reported error
    "a wrong key": (after(0, WRONG_KEY), 0, 32, 0, 9, "authentication_error"),
    "a key withdrawn": (after(100, WRONG_KEY), 100, 400, 5, 90, "authentication_error"),
    "spend limit": (after(40, SPENT), 40, 140, 0, 30, "spend_limit_reached"),
    "a wrong request": (after(0, WRONG), 0, FIRST + 32, 0, 30, "invalid_request_error"),
    "a trouble without a name": (after(60, CLOSED), 60, LATER + 124, 0, 60, "invalid_request_error"),
    "no API at all": (after(0, NO_MESSAGE), 0, FIRST + 32, 0, 30, "invalid_response"),
    "out of reach": (after(0, UNREACHABLE), 0, 1e9, health.UNREACHABLE_SECONDS, 240, "connection_error"),
    "an outage without end": (after(60, answer(529)), 60, 1e9, SILENT, 1_500, "api_error"),
    "refusals without end": (after(0, LIMITED), 0, 1e3, SILENT, 1_500, "rate_limit_error"),
}


@pytest.mark.parametrize("trouble", ENDS)
def test_what_every_row_would_meet_ends_the_run(trouble):
    """Few calls suffice, and it has the API's own error; answers are kept, and no row fails for it."""
    script, answered, calls, least, most, error = ENDS[trouble]
    engine = through_script(script, 1_000, concurrency=20)
    assert engine.stopped_by == error
    assert len(engine.finals) == engine.errors[None] == answered
    assert len(engine.attempts) <= calls
    assert least <= engine.seconds <= most


@pytest.mark.slow
def test_the_same_run_goes_on_after_the_repair(tmp_path):
    """Rows that met the error did not fail but stay unsent; the next run answers each of them once."""
    plan, repaired = a_plan(reviews(60)), []

    def script(_path, _body, number):
        broken = number > 40 and not repaired
        return (429, {}, SPENT.content) if broken else (200, {}, canned.message())

    with canned.served(script) as client:
        with pytest.raises(cs.RunStopped) as stopped:
            finished(plan, client, ledger=tmp_path / "l")
        run = stopped.value.run
        assert (run.counts.answered, run.counts.failed, run.counts.missing) == (40, 0, 20)
        assert set(run.results["error"]) == {None, "not_sent"}
        repaired.append(len(client.seen))
        run = finished(plan, client, ledger=tmp_path / "l")
        assert len(client.seen) == repaired[0] + 20
    assert run.counts.answered == 60


def test_an_answer_sent_before_the_trouble_says_nothing_of_it():
    """Slow answers that arrive after the account was closed neither make its errors final nor delay it."""
    engine = through_script(
        lambda call: GOOD if call.seconds < 3 else CLOSED,
        2_000,
        seconds=lambda call: 20.0 if call.seconds < 3 else 0.1,
        concurrency=30,
    )
    assert engine.stopped_by == "invalid_request_error"
    assert 0 < len(engine.finals) == engine.errors[None]
    assert len(engine.attempts) < 450


@pytest.mark.parametrize(
    ("path", "status", "no", "advice"),
    [
        ("", 401, canned.error("authentication_error", "No."), "ANTHROPIC_API_KEY"),
        ("/v1", 404, canned.error("not_found_error", "Not found"), "remove /v1 from base_url"),
        ("/gateway", 404, canned.error("not_found_error", "Not found"), "Check base_url"),
        ("/gateway", 404, b"<html>404</html>", "http_404"),
        ("", 404, canned.error("not_found_error", "model: claude-haiku-5-5"), "does not know this model"),
    ],
)
def test_a_run_that_cannot_go_on_says_what_to_do(path, status, no, advice):
    """The error has specific advice and the run with the whole frame; only the address names base_url."""
    with (
        canned.served(lambda *_: (status, {}, no), path=path) as client,
        pytest.raises(cs.RunStopped, match=advice) as stopped,
    ):
        finished(a_plan(reviews(100)), client)
    run = stopped.value.run
    assert (run.state, run.results.height, run.summary["dollars"].item()) == ("failed", 100, 0)
    assert advice in repr(run)
    assert path or "base_url" not in str(stopped.value)


# errors that do not end a run


def test_one_odd_answer_does_not_end_a_long_run():
    """A key or model that has answered is not wrong for a few 401, 403 or 404; the rows are answered."""
    engine = through_script(lambda call: ODD.get(call.number, GOOD), 300, seconds=0.2)
    assert engine.stopped_by is None
    assert len(engine.finals) == 300
    assert len(engine.attempts) == 304


def test_an_outage_is_waited_out():
    """Five minutes of failures lose no row; then each answer calls two resting rows back."""
    no = answer(529)
    engine = through_script(lambda call: no if 2 < call.seconds < 302 else GOOD, 300, seconds=0.5)
    assert len(engine.finals) == 300
    assert engine.seconds < 302 + 30


@pytest.mark.parametrize(("gap", "refused"), [(4_000.0, True), (30_000.0, False)])
def test_a_wait_that_the_api_asked_for_is_no_silence(gap, refused):
    """Failures before and after an hour-long refusal, or a night's sleep, are not an hour of failures."""
    failed, judge = Verdict(outcome="overloaded", error="api_error"), health.Health()
    for second in range(20):
        assert judge.judged(failed, 500, second, waits=False).outcome == "overloaded"
    if refused:
        judge.judged(Verdict(outcome="refused", error="rate_limit_error"), 429, 20.0, waits=True)
    for second in range(20):
        assert judge.judged(failed, 500, gap + second, waits=False).outcome == "overloaded"
    assert judge.judged(failed, 500, gap + SILENT + 1, waits=False).outcome == "stop"


@pytest.mark.slow
def test_rows_that_are_refused_alone_do_not_end_a_run(tmp_path):
    """Even if most fail, and first, each has its error and the good rows are answered within three runs."""
    plan = a_plan(pl.DataFrame({"text": [f"bad {n}" for n in range(130)] + [f"fine {n}" for n in range(10)]}))

    def script(_path, content, _number):
        return (400, {}, BLOCKED.content) if b"bad" in content else (200, {}, canned.message())

    with canned.served(script) as client:
        for _ in range(3):
            with suppress(cs.RunStopped):
                run = finished(plan, client, ledger=tmp_path / "l")
    assert run.counts.answered == run.results["error"].is_null().sum() == 10
    assert run.counts.failed + run.counts.missing == 130


# errors that end a row


def test_a_row_turned_down_first_is_final_once_another_is_answered():
    """Until then the account may be at fault: a refused row, alone or with others like it, stays open."""
    engine = through_script(lambda call: BLOCKED if call.body == body(0) else GOOD, concurrency=1)
    assert (len(engine.attempts), len(engine.finals), engine.errors[None]) == (10, 10, 9)
    alone = through_script(after(0, BLOCKED), concurrency=1)
    assert (len(alone.attempts), alone.finals) == (10, [])
    assert len(through_script(after(0, BLOCKED), concurrency=1, reused=1).finals) == 10


@pytest.mark.parametrize(
    ("no", "rows", "tries"),
    [
        (answer(500), 300, 1 + live.MOST_TRIES),  # the first was before any answer
        (answer(500), 1, live.MOST_TRIES_IN_SILENCE),
        (TIMED_OUT, 1, 3),
        (answer(429, "rate_limit_error", headers={"retry-after": "1"}), 1, live.MOST_REFUSALS),
    ],
    ids=["errors beside answers", "errors", "hangs", "refusals"],
)
def test_a_row_that_never_succeeds_is_given_up_and_ends_nothing(no, rows, tries):
    """It is not final; alone it has more tries, as the API may be at fault, or three calls of ten minutes."""
    engine = through_script(
        lambda call: no if call.body == body(0) else GOOD,
        rows,
        seconds=600.0 if no is TIMED_OUT else 1.0,
        concurrency=2,
    )
    assert len(engine.attempts) == rows - 1 + tries
    assert (len(engine.finals), engine.stopped_by) == (rows - 1, None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_file_that_changes_ends_the_run(mode, tmp_path, monkeypatch):
    """No row is sent with a file other than its key's; the run says so, and the same cell resumes."""
    files = [tmp_path / f"{number}.gif" for number in range(40)]
    for number, file in enumerate(files):
        file.write_bytes(b"GIF89a" + bytes([9, 0, 9, 0, number]))
    prompt = [cs.image("photo"), "What is it?"]
    plan = a_plan(pl.DataFrame({"photo": map(str, files)}), prompt, mode=mode, concurrency=2)
    begin = Job.open

    async def changed(job):
        await begin(job)
        files[30].write_bytes(b"GIF89a" + bytes([9, 0, 9, 0, 99]))

    with simulator(speed=600) as api:
        monkeypatch.setattr(Job, "open", changed)  # the rows are read, and nothing is sent yet
        stopped = ended(plan, api, tmp_path / "l")
        monkeypatch.undo()
        assert stopped.stopped_by == "file_changed"
        assert "same cell again" in stopped.message
        run = finished(plan, api.client(), ledger=tmp_path / "l")
        assert (run.counts.answered, api.stats["billed_rows"]) == (40, 40)
