"""Troubles of the account end a run and are no row's last word; the same run goes on after the repair."""

import canned
import polars as pl
import pytest
import virtual
from engine import Engine, ScriptSend, rows
from running import a_plan, finished, reviews
from test_live import GOOD, answer

import claudescale as cs
from claudescale.api.answers import Answer, verdict, verdict_on_result

TROUBLES = [
    ("invalid_request_error", "No.", "organization_on_hold"),
    ("invalid_request_error", "No.", "workspace_human_review_disabled"),
    ("invalid_request_error", "No.", "cmek_key_disabled"),
    ("invalid_request_error", "No.", "cmek_key_network_blocked"),
    ("invalid_request_error", "No.", "claude_code_key_creator_not_member"),
    ("invalid_request_error", "This organization has been disabled.", None),
    ("invalid_request_error", "Your organization has been disabled. Contact support.", None),
    ("invalid_request_error", "This workspace is archived.", None),
    ("invalid_request_error", "The customer-managed encryption key has been disabled.", None),
    ("invalid_request_error", "You have reached your API usage limits. Access returns on 2027-01-01.", None),
    ("invalid_request_error", "You have reached your specified API usage limits.", None),
    ("invalid_request_error", "You have reached your specified workspace API usage limits.", None),
    ("rate_limit_error", "You have reached your API usage limits.", None),
    ("invalid_request_error", "Your credit balance is too low to access the API.", None),
    ("billing_error", "No.", "linked_organization_spend_limit_reached"),
]
OF_ROWS = [
    ("invalid_request_error", "Output blocked by content filtering policy", None),
    ("invalid_request_error", "prompt is too long: 250112 tokens > 200000 maximum", None),
    ("invalid_request_error", "No.", "image_dimensions_too_large"),
    ("invalid_request_error", "messages.0: the tool 'search' has been disabled", None),
]


def body(kind, words, code):
    """Return an error as the API sends it."""
    return canned.error(kind, words, **({"error_code": code} if code else {}))


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_account_in_trouble_is_no_rows_last_word(trouble):
    """By its code or by its documented words it stops the run, live and in the results of a batch."""
    error = body(*trouble)
    status = 429 if trouble[0] == "rate_limit_error" else 400
    for found in (
        verdict(Answer(status, {}, canned.json.dumps(error).encode())),
        verdict_on_result({"type": "errored", "error": error}),
    ):
        assert (found.outcome, found.final) == ("stop", False)


@pytest.mark.parametrize("trouble", OF_ROWS)
def test_a_rows_own_error_is_its_last_word(trouble):
    """What one row alone is turned down for is final, live and in the results of a batch."""
    error = body(*trouble)
    assert verdict(Answer(400, {}, canned.json.dumps(error).encode())).final
    assert verdict_on_result({"type": "errored", "error": error}).final


def test_a_file_that_has_expired_is_the_rows_own():
    """A 404 with the code of a file ends one row, not the run."""
    error = body("not_found_error", "File expired.", "file_expired")
    assert verdict(Answer(404, {}, canned.json.dumps(error).encode())).outcome == "failed"


@pytest.mark.parametrize("words", ["This organization has been disabled.", "The API is closed to you today."])
def test_the_same_run_goes_on_after_the_repair(tmp_path, words):
    """Rows that met the trouble are open: in the results not sent, and the next run answers each once."""
    repaired = []

    def script(_path, _body, number):
        if number > 40 and not repaired:
            return 400, {}, canned.error("invalid_request_error", words)
        return 200, {}, canned.message()

    ledger = tmp_path / "a.ledger"
    with canned.served(script) as client:
        with pytest.raises(cs.RunStopped) as stopped:
            finished(a_plan(reviews(300)), client, ledger=ledger)
        assert stopped.value.run.counts.answered == 40
        assert len(client.seen) <= 300
        repaired.append(True)
        before = len(client.seen)
        run = finished(a_plan(reviews(300)), client, ledger=ledger)
        assert len(client.seen) == before + 260
    assert run.counts.answered == 300
    assert run.results["text"].equals(reviews(300)["text"])


def test_rows_that_met_the_trouble_are_shown_as_not_sent():
    """They did not fail: the counts say missing, the results not_sent."""

    def script(_path, _body, number):
        if number > 40:
            return 400, {}, canned.error("invalid_request_error", "No.", error_code="organization_on_hold")
        return 200, {}, canned.message()

    with (
        canned.served(script) as client,
        pytest.raises(cs.RunStopped, match="organization_on_hold") as stopped,
    ):
        finished(a_plan(reviews(100)), client)
    run = stopped.value.run
    assert (run.counts.answered, run.counts.failed, run.counts.missing) == (40, 0, 60)
    assert run.results["error"].drop_nulls().unique().to_list() == ["not_sent"]


# rows that fail alike


def attempted(plan, client, ledger):
    """Return the run, however it ended."""
    try:
        return finished(plan, client, ledger=ledger)
    except cs.RunStopped as stopped:
        return stopped.run


def refused(content):
    """Whether a row is of the kind that a content filter turns down."""
    return b"bad" in content


@pytest.mark.parametrize(
    "kinds",
    [
        "b" * 40 + "g" * 200,
        "b" * 400 + "g" * 30,
        "b" * 150 + "g" * 20 + "b" * 150,
        "g" * 50 + "b" * 120 + "g" * 50,
        "gb" * 60,
        "g" * 100 + "b" * 40,
    ],
)
def test_rows_that_fail_for_themselves_do_not_end_a_run(tmp_path, kinds):
    """Wherever the refused rows stand, all good rows are answered, at the third run at the latest."""

    def script(_path, content, _number):
        if refused(content):
            return (
                400,
                {},
                canned.error("invalid_request_error", "Output blocked by content filtering policy"),
            )
        return 200, {}, canned.message()

    texts = [f"{'bad' if kind == 'b' else 'fine'} {number}" for number, kind in enumerate(kinds)]
    plan = a_plan(pl.DataFrame({"text": texts}), "{text}")
    with canned.served(script) as client:
        for _ in range(3):
            run = attempted(plan, client, tmp_path / "a.ledger")
    assert run.counts.answered == kinds.count("g")
    assert run.counts.answered + run.counts.failed + run.counts.missing == len(kinds)
    assert run.results["error"].is_null().sum() == kinds.count("g")


def test_a_request_that_is_wrong_ends_the_run_soon_and_leaves_every_row_open():
    """Rows from all over the frame fail alike and none is answered: some hundred calls, no row is final."""
    words = "output_config: Extra inputs are not permitted"
    with (
        canned.served(lambda *_: (400, {}, canned.error("invalid_request_error", words))) as client,
        pytest.raises(cs.RunStopped, match="Extra inputs") as stopped,
    ):
        finished(a_plan(reviews(3_000)), client)
    assert len(client.seen) < 200
    assert stopped.value.run.job.replies().is_empty()


def test_a_small_frame_that_fails_alike_ends_as_failed():
    """Where there is no elsewhere to look, a whole frame that fails alike is told as well."""
    words = "output_config: Extra inputs are not permitted"
    with (
        canned.served(lambda *_: (400, {}, canned.error("invalid_request_error", words))) as client,
        pytest.raises(cs.RunStopped, match="Extra inputs"),
    ):
        finished(a_plan(reviews(30)), client)


def test_answers_in_the_ledger_count(tmp_path):
    """Rows that the ledger has answers to show that the request is right: refused rows do not end the run."""
    frame = pl.DataFrame({"text": [f"fine {i}" for i in range(30)] + [f"bad {i}" for i in range(30)]})

    def script(_path, content, _number):
        if refused(content):
            return (
                400,
                {},
                canned.error("invalid_request_error", "Output blocked by content filtering policy"),
            )
        return 200, {}, canned.message()

    with canned.served(script) as client:
        finished(a_plan(frame.head(30), "{text}"), client, ledger=tmp_path / "a.ledger")
        run = finished(a_plan(frame, "{text}"), client, ledger=tmp_path / "a.ledger")
    assert (run.state, run.counts.answered, run.counts.failed) == ("finished", 30, 30)


def test_an_answer_sent_before_the_trouble_says_nothing_of_it():
    """Slow answers that come in after the account was closed neither make its words final nor delay it."""

    async def go():
        clock = virtual.clock()
        begun = clock.seconds()

        class Send(ScriptSend):
            async def __call__(self, content):
                self.calls.append(content)
                if clock.seconds() < begun + 3:
                    await virtual.asyncio.sleep(20)
                    return GOOD
                await virtual.asyncio.sleep(0.1)
                return answer(400, "invalid_request_error", "closed")

        engine = Engine(Send(None), clock, concurrency=30)
        await engine.answer(rows(2_000))
        return engine

    engine = virtual.run(go())
    assert engine.live.stopped_by.error == "invalid_request_error"
    assert 0 < len(engine.finals) == engine.errors[None]
    assert len(engine.attempts) < 450


# a key or model that has answered


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "authentication_error"), (403, "permission_error"), (404, "not_found_error")]
)
def test_one_odd_answer_does_not_end_a_long_run(status, kind):
    """After answers a single 401, 403 or 404, or a proxy's page under it, is tried again."""
    for no in (answer(status, kind), Answer(status, {"content-type": "text/html"}, b"<html>")):
        calls = []

        def script(content, _number, no=no, calls=calls):
            calls.append(content)
            return no if len(calls) in {100, 101, 102, 200} else GOOD

        engine = ended(script, 300)
        assert engine.live.stopped_by is None
        assert len(engine.finals) == 300


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "authentication_error"), (403, "permission_error"), (404, "endpoint_not_found")],
)
def test_a_key_that_is_withdrawn_ends_the_run(status, kind):
    """After several in a row, over seconds and with nothing answered, it is believed; few calls are made."""
    calls = []

    def script(content, _number):
        calls.append(content)
        return answer(status, kind) if len(calls) > 100 else GOOD

    engine = ended(script, 5_000)
    assert engine.live.stopped_by.error == kind
    assert len(engine.finals) == 100
    assert len(engine.attempts) < 100 + 6 * 64
    last = [attempt for attempt in engine.attempts if attempt.error]
    assert last[-1].sent_at - last[0].sent_at > 4


def ended(script, count):
    """Return the engine after that many rows of 0.2 s each."""

    async def go():
        engine = Engine(ScriptSend(script, 0.2), virtual.clock())
        await engine.answer(rows(count))
        return engine

    return virtual.run(go())


# every 404 by its own cause


def test_a_path_that_is_not_known_is_told_with_the_address():
    """A 404 says base_url and path, /v1 at its end is named; only one about a model blames the model."""
    found = {}
    for name, path, no in (
        ("v1", "/v1", canned.error("not_found_error", "Not found")),
        ("page", "/gateway", b"<html>404</html>"),
        ("model", "", canned.error("not_found_error", "model: claude-haiku-5-5")),
    ):
        with (
            canned.served(lambda *_, no=no: (404, {}, no), path=path) as client,
            pytest.raises(cs.RunStopped) as stopped,
        ):
            finished(a_plan(reviews(500)), client)
        found[name] = str(stopped.value)
        assert len(client.seen) < 64
    assert "take the /v1 off base_url" in found["v1"]
    assert "404" in found["page"]
    assert "base_url" not in found["model"]
    assert "does not know this model" in found["model"]
