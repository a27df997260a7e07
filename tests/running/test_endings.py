"""A run ends, and a row fails, for the right reason: the account, the request, the row itself, or chance."""

import itertools
from contextlib import suppress

import canned
import polars as pl
import pytest
from engine import GOOD, NO_MESSAGE, TIMED_OUT, UNREACHABLE, answer, body, rows, through_desk, through_script
from hypothesis import given, settings
from hypothesis import strategies as st
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api.answers import Answer, Verdict
from claudescale.running import live
from claudescale.running.health import (
    HOPELESS_ROWS,
    HOPELESS_ROWS_LATER,
    SILENT_SECONDS,
    UNREACHABLE_SECONDS,
    Health,
)
from claudescale.running.job import Job, spread

BLOCKED = answer(400, "invalid_request_error", "Output blocked by content filtering policy")
DOUBTFUL = {
    "401": answer(401, "authentication_error"),
    "403": answer(403, "permission_error"),
    "404": answer(404, "not_found_error", "model: claude-haiku-5-5"),
    "a proxy's 404": Answer(404, {"content-type": "text/html"}, b"<html>"),
}


def always(no):
    """Return a script that always gives this answer."""
    return lambda _: no


def after(count, no):
    """Return a script that answers that many calls and then none."""
    return lambda call: no if call.number > count else GOOD


# errors that end a run

WRONG = answer(400, "invalid_request_error", "Extra inputs are not permitted")
ON_HOLD = answer(400, "invalid_request_error", "No.", error_code="organization_on_hold")
SPENT = answer(429, "rate_limit_error", "You have reached your API usage limits.")
ENDS = {  # script: rows answered, most calls, least and most seconds, and the reported error
    "a wrong key": (always(DOUBTFUL["401"]), 0, 32, 0, 9, "authentication_error"),
    "a key withdrawn": (after(100, DOUBTFUL["401"]), 100, 400, 5, 90, "authentication_error"),
    "on hold": (after(40, ON_HOLD), 40, 140, 0, 30, "organization_on_hold"),
    "spend limit": (after(40, SPENT), 40, 140, 0, 30, "spend_limit_reached"),
    "a wrong request": (always(WRONG), 0, HOPELESS_ROWS + 32, 0, 30, "invalid_request_error"),
    "a trouble without a name": (
        after(60, answer(400, "invalid_request_error", "The API is closed to you.")),
        60, 60 + HOPELESS_ROWS_LATER + 64, 0, 60, "invalid_request_error",
    ),
    "no API at all": (always(NO_MESSAGE), 0, HOPELESS_ROWS + 32, 0, 30, "invalid_response"),
    "out of reach": (always(UNREACHABLE), 0, 1e9, UNREACHABLE_SECONDS, 240, "connection_error"),
    "an outage without end": (
        after(60, answer(529, "overloaded_error")),
        60, 1e9, SILENT_SECONDS, 1_500, "overloaded_error",
    ),
    "refusals without end": (
        always(answer(429, "rate_limit_error")), 0, 1e3, SILENT_SECONDS, 1_500, "rate_limit_error",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", ENDS)
def test_what_every_row_would_meet_ends_the_run(trouble):
    """Few calls suffice, and it has the API's own error; answers are kept, and no row fails for it."""
    script, answered, calls, least, most, error = ENDS[trouble]
    engine = through_script(script, 1_000, concurrency=20)
    assert engine.stopped_by == error
    assert len(engine.finals) == engine.errors.get(None, 0) == answered
    assert len(engine.attempts) <= calls
    assert least <= engine.seconds <= most


@pytest.mark.slow
def test_the_same_run_goes_on_after_the_repair(tmp_path):
    """Rows that met the error did not fail but stay unsent; the next run answers each of them once."""
    plan, repaired = a_plan(reviews(60)), []

    def script(_path, _body, number):
        broken = number > 40 and not repaired
        return (SPENT.status, {}, canned.json.loads(SPENT.content)) if broken else (200, {}, canned.message())

    with canned.served(script) as client:
        with pytest.raises(cs.RunStopped) as stopped:
            finished(plan, client, ledger=tmp_path / "l")
        run = stopped.value.run
        assert (run.state, run.counts.answered, run.counts.failed, run.counts.missing) == (
            "failed",
            40,
            0,
            20,
        )
        assert set(run.results["error"]) == {None, "not_sent"}
        repaired.append(len(client.seen))
        run = finished(plan, client, ledger=tmp_path / "l")
        assert len(client.seen) == repaired[0] + 20
    assert run.counts.answered == 60


def test_an_answer_sent_before_the_trouble_says_nothing_of_it():
    """Slow answers that arrive after the account was closed neither make its errors final nor delay it."""
    engine = through_script(
        lambda call: GOOD if call.seconds < 3 else answer(400, "invalid_request_error", "closed"),
        2_000,
        seconds=lambda call: 20.0 if call.seconds < 3 else 0.1,
        concurrency=30,
    )
    assert engine.stopped_by == "invalid_request_error"
    assert 0 < len(engine.finals) == engine.errors[None]
    assert len(engine.attempts) < 450


@pytest.mark.parametrize(
    ("fault", "error", "advice"),
    [
        (401, "authentication_error", "ANTHROPIC_API_KEY"),
        (402, "billing_error", "billing"),
        (403, "permission_error", "key"),
        (404, "endpoint_not_found", "base_url"),
    ],
)
def test_a_run_that_cannot_go_on_says_what_to_do(fault, error, advice):
    """The error has the API's type, specific advice, and the run with the whole frame."""
    with simulator(faults={fault: 1.0}) as api, pytest.raises(cs.RunStopped, match=error) as stopped:
        finished(a_plan(reviews(100)), api.client())
    run = stopped.value.run
    assert (run.state, run.stopped_by, run.results.height) == ("failed", error, 100)
    assert run.summary["dollars"].item() == 0
    assert advice in str(stopped.value)
    assert advice in repr(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "no", "words"),
    [
        ("/v1", canned.error("not_found_error", "Not found"), "remove /v1 from base_url"),
        ("/gateway", b"<html>404</html>", "404"),
        ("", canned.error("not_found_error", "model: claude-haiku-5-5"), "does not know this model"),
    ],
)
def test_each_404_is_told_by_its_cause(path, no, words):
    """A wrong address names base_url; only an error about the model blames the model."""
    with (
        canned.served(lambda *_: (404, {}, no), path=path) as client,
        pytest.raises(cs.RunStopped) as stopped,
    ):
        finished(a_plan(reviews(100)), client)
    assert words in str(stopped.value)
    assert path or "base_url" not in str(stopped.value)


# errors that do not end a run


@pytest.mark.parametrize("no", DOUBTFUL)
def test_one_odd_answer_does_not_end_a_long_run(no):
    """A key or model that has answered is not wrong for a few 401, 403 or 404; the rows are answered."""
    engine = through_script(
        lambda call: DOUBTFUL[no] if call.number in {100, 101, 102, 200} else GOOD, 300, seconds=0.2
    )
    assert engine.stopped_by is None
    assert len(engine.finals) == 300
    assert len(engine.attempts) == 304


@pytest.mark.slow
def test_an_outage_is_waited_out():
    """Five minutes of failures lose no row, and all are in flight within seconds of the first answer."""
    engine = through_desk(250, seed=2, faults={529: (1.0, 2.0, 302.0)})
    assert engine.stopped_by is None
    assert len(engine.finals) == 250
    back = [at.sent_at - engine.attempts[0].sent_at for at in engine.attempts if at.error is None]
    back = [second for second in back if second > 302]
    assert min(back) < 320
    assert sum(second < min(back) + 8 for second in back) > 50


def test_after_an_outage_each_answer_calls_two_rows_back():
    """Rows that wait a minute for their next try need not: all are answered as fast as the API bears them."""
    no = answer(529)
    engine = through_script(lambda call: no if 2 < call.seconds < 302 else GOOD, 300, seconds=0.5)
    assert len(engine.finals) == 300
    assert engine.seconds < 302 + 30


def test_a_wait_that_the_api_asked_for_is_no_silence():
    """Failures before and after an hour-long refusal, or a night's sleep, are not an hour of failures."""
    failed = Verdict(outcome="overloaded", error="api_error")
    refused = Verdict(outcome="refused", error="rate_limit_error")
    for waited in (True, False):
        health, later = Health(), 4_000.0 if waited else 30_000.0

        def ends(verdict, now, status=500, health=health):
            waits = verdict is refused
            return health.judged(verdict, status, now, waits=waits).outcome == "stop"

        seen = [ends(failed, now) for now in range(20)]
        seen += [ends(refused, 20.0, 429)] if waited else []
        seen += [ends(failed, later + now) for now in range(20)]
        assert not any(seen)
        assert ends(failed, later + SILENT_SECONDS + 1)


@pytest.mark.slow
def test_rows_that_are_refused_alone_do_not_end_a_run(tmp_path):
    """Even if most fail, and first, each has its error and the good rows are answered within three runs."""
    blocked = canned.json.loads(BLOCKED.content)
    plan = a_plan(pl.DataFrame({"text": [f"bad {n}" for n in range(130)] + [f"fine {n}" for n in range(10)]}))

    def script(_path, content, _number):
        return (400, {}, blocked) if b"bad" in content else (200, {}, canned.message())

    with canned.served(script) as client:
        for _ in range(3):
            with suppress(cs.RunStopped):
                run = finished(plan, client, ledger=tmp_path / "l")
    assert run.counts.answered == run.results["error"].is_null().sum() == 10
    assert run.counts.failed + run.counts.missing == 130


@settings(max_examples=30)
@given(st.integers(0, 3_000))
def test_rows_go_in_an_order_that_sees_all_of_the_frame_early(count):
    """Each row occurs once; the first 32, and every eighth after that, come from all over the frame."""
    order = spread(count, 0.3).to_list()
    assert sorted(order) == list(range(count))
    for seen in (order[:32], order[39:800:8]) if count > 1_000 else ():
        gaps = [b - a for a, b in itertools.pairwise([0, *sorted(seen), count])]
        assert max(gaps) < 0.25 * count


# errors that end a row


def test_a_row_turned_down_first_is_final_once_another_is_answered():
    """Until then the account may be at fault: a refused row, alone or with others like it, stays open."""
    engine = through_script(lambda call: BLOCKED if call.body == body(0) else GOOD, concurrency=1)
    assert (len(engine.attempts), len(engine.finals), engine.errors[None]) == (10, 10, 9)
    alone = through_script(always(BLOCKED), concurrency=1)
    assert (len(alone.attempts), alone.finals) == (10, [])
    assert len(through_script(always(BLOCKED), concurrency=1, reused=1).finals) == 10


def test_a_row_that_makes_only_errors_is_given_up_and_ends_nothing():
    """It is given up after its tries, without being final: the next run may send it."""
    bad = rows(300)[10]
    engine = through_script(lambda call: answer(500) if call.body == bad.body else GOOD, 300, concurrency=2)
    assert sum(attempt.key == bad.key for attempt in engine.attempts) == live.MOST_TRIES
    assert len(engine.finals) == 299
    assert engine.stopped_by is None


@pytest.mark.parametrize(
    ("no", "tries"),
    [
        (answer(500), live.MOST_TRIES_IN_SILENCE),
        (TIMED_OUT, 3),
        (answer(429, "rate_limit_error", headers={"retry-after": "1"}), live.MOST_REFUSALS),
    ],
    ids=["errors", "hangs", "refusals"],
)
def test_a_lone_row_is_given_up_too(no, tries):
    """Nothing shows whether row or API is at fault, so it gets more tries: three calls of ten minutes."""
    engine = through_script(always(no), 1, seconds=600.0 if no is TIMED_OUT else 1.0)
    assert (len(engine.attempts), engine.finals, engine.stopped_by) == (tries, [], None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_file_that_changes_ends_the_run(mode, tmp_path, monkeypatch):
    """No row is sent with a file other than its key's; the run says so, and the same cell resumes."""
    files = [tmp_path / f"{number}.gif" for number in range(40)]
    for number, file in enumerate(files):
        file.write_bytes(b"GIF89a" + bytes([9, 0, 9, 0, number]))
    frame = pl.DataFrame({"photo": [str(file) for file in files]})
    prompt = [cs.image("photo"), "What is it?"]
    plan = cs.plan(frame, prompt, model="claude-haiku-5-5", mode=mode, concurrency=2)
    begin = Job.open

    async def changed(job):
        await begin(job)
        files[30].write_bytes(b"GIF89a" + bytes([9, 0, 9, 0, 99]))

    with simulator(speed=600) as api:
        monkeypatch.setattr(Job, "open", changed)  # the rows are read, and nothing is sent yet
        with pytest.raises(cs.RunStopped, match="same cell again") as stopped:
            cs.wait(plan.run(api.client(), ledger=tmp_path / "l", progress=False))
        monkeypatch.undo()
        assert stopped.value.run.stopped_by == "file_changed"
        run = finished(plan, api.client(), ledger=tmp_path / "l")
        assert (run.counts.answered, api.stats["billed_rows"]) == (40, 40)
