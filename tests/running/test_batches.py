"""Runs by batches and hybrid runs, over HTTP against the simulator: what is paid, kept, canceled and left.

`front` puts a server before the simulator that changes some of its answers.
"""

import asyncio
import json
import sqlite3
from contextlib import closing, contextmanager

import polars as pl
import pytest
from breaking import endpoint, error
from canned import Canned, passed_on
from crash_child import LIMITS, most_requests, the_plan
from engine import taken_for_real
from running import until

import claudescale as cs
from claudescale.running import batch_rules
from claudescale.running.batches import MOST_ROUNDS, Batches
from claudescale.running.runs import BATCHES
from claudescale.simulator import Fault

PATIENCE = 120.0
NOT_FOUND = (404, {}, error("not_found_error", "Not found"))
PAGE = b"<html><title>Gateway</title></html>"
REFUSED = (400, {}, error("invalid_request_error", "speed: Extra inputs are not permitted"))
slow = pytest.mark.slow


def simulator(*, queue=100_000, **options):
    """Return a simulator on which a batch is a fraction of a second."""
    given = {"speed": 1_000, "batch_seconds": 60.0, "latency": 0.2, **options}
    return cs.Simulator(
        tuple(LIMITS.values()), batch_queue_requests=queue, batch_requests_per_minute=10**6, **given
    )


@pytest.fixture
def api():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator() as one:
        yield one


@pytest.fixture
def real(monkeypatch):
    """Let a simulator be taken for the API by what sends batches."""
    taken_for_real(monkeypatch)


@pytest.fixture
def tens(monkeypatch):
    """Have no more than ten requests in a batch."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(10))


@contextmanager
def front(api, change=lambda name, path, ask: ask()):
    """Give a server before a simulator; `change(name, path, ask)` gives status, headers and body."""
    asked = passed_on(api.url)

    def handler(method, path, headers, body):
        name = endpoint(method, path)
        server.names.append(name)
        return change(name, path, lambda path=path: asked(method, path, headers, body))

    with Canned(handler) as server:
        server.names = []
        yield server


def always(called, answer):
    """Return what gives one answer to all calls of an endpoint."""
    return lambda name, path, ask: answer if name == called else ask()


async def _ended(plan, client, ledger=None):
    async with asyncio.timeout(PATIENCE):
        try:
            return await plan.run(client, ledger=ledger, progress=False)
        except cs.RunStopped as stopped:
            return stopped.run


def ended(plan, api, ledger=None, server=None, **client):
    """Return the run of a plan that has ended, or was stopped, which it is in time."""
    if server is not None:
        client["base_url"] = server.url
    return asyncio.run(_ended(plan, api.client(**client), ledger))


def left(plan, api, ledger):
    """Submit the batches of a plan, leave them, and return the run."""

    async def leave():
        run = await plan.run(api.client(), ledger=ledger, progress=False, wait=False)
        seen = run.state, run.batches["state"].unique().to_list(), run.results["reply"].count()
        assert seen == ("running", ["in_progress"], 0)
        run.leave()
        return await run

    return asyncio.run(leave())


def paid_once(api, run, rows, *, reused=0):
    """Check that all rows have a reply, each was billed once, and the dollars are the server's."""
    stats = api.stats
    assert run.state == "finished"
    assert run.results["text"].to_list() == run.plan.frame["text"].to_list()
    assert run.results["reply"].null_count() == 0
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == rows
    if not reused:
        assert run.summary["dollars"].item() == pytest.approx(stats["dollars"], abs=1e-9)


# a batch that is made, or maybe


def test_a_run_by_batches_and_the_frame_of_them(api):
    """Each row is paid for once; `batches` has the times and counts as the API tells them, and the cost."""
    run = ended(the_plan(90, queue=60), api)
    paid_once(api, run, 90)
    assert run.batches.schema == BATCHES
    assert run.batches["state"].to_list() == ["collected"] * 2
    assert run.batches["succeeded"].sum() == run.batches["requests"].sum() == 90
    assert run.batches["minutes"].to_list() == pytest.approx([1.0] * 2, abs=0.01)
    assert run.batches["dollars"].sum() == pytest.approx(run.summary["dollars"].item())
    kept = (run.batches["results_until"] - run.batches["created_at"]).dt.total_hours().unique()
    assert kept.to_list() == [29 * 24]
    assert run.throughput["requests_per_minute"].sum() == pytest.approx(90, rel=0.1)


@slow
@pytest.mark.parametrize(
    ("fault", "tries"),
    [("create_lost", [1, 2]), ("create_failed_after", [1]), ("create_failed", [2])],
)
def test_a_create_without_a_plain_answer(fault, tries):
    """Whether a batch whose answer is lost is there or not is found out, and no row is paid for twice."""
    with simulator(faults={fault: Fault(tries=tries)}, queue=100) as api:
        run = ended(the_plan(60, queue=30), api)
        paid_once(api, run, 60)
        assert set(run.batches["state"]) <= {"collected", "absent"}


@slow
@pytest.mark.parametrize(("order", "seconds"), [("before", [60, 600]), ("after", [600, 60])])
def test_a_foreign_batch_of_the_same_size_and_time(monkeypatch, order, seconds):
    """Another client's batch, under way or ended, is never taken for the lost one, which is found."""
    taken, real = list(seconds), Batches._created

    async def created(self, *given):
        answer = await real(self, *given)
        if order == "after" and answer.status != 200:
            await _foreign(client, 20)
        return answer

    async def main():
        nonlocal client
        async with api.client() as client:
            if order == "before":
                await _foreign(client, 20)
            return await _ended(the_plan(20), client)

    client = None
    monkeypatch.setattr(Batches, "_created", created)
    struck = Fault(tries=[2 if order == "before" else 1])
    pace = {"batch_seconds": lambda _: taken.pop(0) if taken else 60}
    with simulator(faults={"create_lost": struck}, **pace) as api:
        run = asyncio.run(main())
        assert run.results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 40
        assert run.attempts.filter(pl.col("dollars") > 0).height == 20


async def _foreign(client, rows):
    """Make a batch of somebody else's, of a size that may be confused."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 16, "messages": [{"role": "user", "content": "x"}]}
    given = [{"custom_id": f"{i:032x}-abcdefabcdef", "params": params} for i in range(rows)]
    return await client.messages.batches.create(requests=given)


# how rows are cut into batches


def test_batches_are_cut_by_requests_bytes_and_queue(api, monkeypatch):
    """No batch has more requests or bytes than the API takes, and no queue is passed."""
    with monkeypatch.context() as patch:
        patch.setattr("claudescale.api.catalog.BATCH", most_requests(40))
        assert ended(the_plan(90), api).batches["requests"].to_list() == [40, 40, 10]
    with simulator(queue=10) as narrow:
        assert ended(the_plan(25, queue=10), narrow).batches["requests"].to_list() == [10, 10, 5]
        assert narrow.stats["refused"] == {}
    monkeypatch.setattr(batch_rules, "FULL_BYTES", 20_000)
    monkeypatch.setattr("claudescale.simulator.batches.MAX_BYTES", 21_000)
    run = ended(the_plan(90), api)
    assert set(run.batches["state"]) == {"collected"}
    assert run.batches.height > 1


@slow
def test_a_queue_that_is_smaller_than_the_table_says():
    """After three refusals in a row batches become smaller until they fit: no run waits without end."""
    with simulator(queue=40) as api:
        run = ended(the_plan(100, queue=1_000), api)
        assert run.results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 100


@pytest.mark.slow
def test_a_queue_that_others_fill_is_waited_for():
    """A 429 for the queue sends no row twice and ends no run: there is room later."""

    async def main():
        async with api.client() as client:
            await _foreign(client, 50)
            return await _ended(the_plan(60, queue=60), client)

    with simulator(queue=60, batch_seconds=600.0, speed=300) as api:
        assert asyncio.run(main()).results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 110
        assert api.stats["refused"]["rate_limit_error"] > 0


# money


@slow
def test_a_budget_is_a_hard_stop():
    """However long the replies, the server's bill is never above the budget, and the rest is not sent."""
    with simulator(queue=40, replies=lambda body: "word " * 500) as api:
        plan = the_plan(100, queue=20)
        dollars = plan.options.filter(mode="batch")["dollars"].item() * 0.8
        run = ended(plan.replace(budget=dollars), api)
        stats = api.stats
        assert (run.state, run.stopped_by) == ("stopped", "budget")
        assert 0 < stats["billed_rows"] == stats["distinct_rows_billed"] < 100
        assert run.summary["dollars"].item() == pytest.approx(stats["dollars"], abs=1e-9)
        assert stats["dollars"] <= dollars
        assert run.results["error"].n_unique() == 2


@slow
def test_dollars_with_a_cache_equal_the_servers():
    """A cached prompt is primed by a batch of one row; hits are measured, dollars are the server's."""
    with simulator(seed=3) as api:
        run = ended(the_plan(60, cache=True, system="Answer in one word. " * 600), api)
        paid_once(api, run, 60)
        assert run.batches["requests"].to_list() == [1, 59]
        assert 0.3 <= run.batches["cache_hit_share"][1] <= 1
        assert run.attempts["cache_read_input_tokens"].sum() == api.stats["cache_read_input_tokens"]
        assert run.bill["dollars"].sum() == pytest.approx(api.stats["dollars"], abs=1e-9)


# rows that fail


@slow
@pytest.mark.parametrize("fault", ["batch_errored", "batch_expired"])
def test_rows_that_may_succeed_go_into_the_next_batch(fault):
    """Expired rows and errors of the moment are sent again, and billed once."""
    with simulator(faults={fault: Fault(probability=0.4, tries=[1])}) as api:
        run = ended(the_plan(40), api)
        paid_once(api, run, 40)
        assert run.batches["requests"][1] < 40


@slow
def test_rows_that_never_succeed_are_given_up():
    """After some batches a row is given up; its error says why, and another run may try again."""
    with simulator(faults={"batch_expired": 1.0}) as api:
        run = ended(the_plan(30), api)
        assert (api.stats["billed_rows"], api.stats["batches_created"]) == (0, MOST_ROUNDS)
    assert run.results["error"].to_list() == ["expired"] * 30


def test_rows_that_are_refused_are_errors(tmp_path):
    """A request that the API will not take is its row's error, is not sent again, and costs nothing."""
    with simulator(faults={"batch_invalid": 0.4}) as api:
        run = ended(the_plan(40), api, tmp_path / "l")
        failed = run.results.filter(error="invalid_request_error").height
        assert 0 < failed == run.results["reply"].null_count()
        assert api.stats["billed_rows"] == 40 - failed
        ended(the_plan(40), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1


# requests that all are refused


@slow
def test_what_only_batches_refuse_makes_one_batch(tmp_path, real):
    """Where every row of a batch is refused alike no further one is made, and the rows stay open."""
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run = ended(the_plan(30), api, tmp_path / "l")
        stats = api.stats
        assert (run.state, run.stopped_by) == ("failed", "invalid_request_error")
        assert "30 of 30 rows" in run.message
        assert "simulated fault" in run.message
        assert not any(text in run.message for text in run.plan.frame["text"])
        assert stats["batches_created"] == 1
        assert stats["billed_rows_by_mode"] == {"live": 1, "batch": 0}
        assert run.counts.dollars == run.bill["dollars"].sum() == pytest.approx(stats["dollars"], abs=1e-12)
        assert run.waste.filter(kind="dry_run")["billed_attempts"].to_list() == [1]
    with simulator() as api:
        assert ended(the_plan(30), api, tmp_path / "l").counts.answered == 30


@slow
def test_a_few_refused_rows_are_to_blame_where_others_were_answered(tmp_path):
    """Alone they end the run and stay open; beside answered ones they end as such, and are not sent again."""
    with simulator() as api:
        ended(the_plan(20), api, tmp_path / "l")
    with simulator(faults={"batch_invalid": 1.0}) as api:
        assert ended(the_plan(3), api).stopped_by == "invalid_request_error"
        for _ in range(2):
            run = ended(the_plan(25), api, tmp_path / "l")
            assert (run.state, run.counts.failed) == ("finished", 5)
        assert api.stats["batches_created"] == 2


# a look at some rows before


@slow
@pytest.mark.parametrize(
    ("refused", "stopped_by", "messages", "batches"), [(3, "invalid_request_error", 3, 0), (1, None, 2, 1)]
)
def test_a_mistake_in_all_requests_is_told_before_a_batch(real, refused, stopped_by, messages, batches):
    """Where three rows from all over the frame are refused alike no batch is made; for one alone it is."""

    def change(name, path, ask):
        return REFUSED if name == "message" and server.names.count("message") <= refused else ask()

    with simulator() as api, front(api, change) as server:
        run = ended(the_plan(30), api, server=server)
        assert run.stopped_by == stopped_by
        assert (server.names.count("message"), server.names.count("create")) == (messages, batches)
        if stopped_by:
            assert run.message == "speed: Extra inputs are not permitted"
            assert run.results["error"].to_list() == ["not_sent"] * 30


@slow
def test_the_first_message_is_short_and_sent_once_within_the_budget(tmp_path, real):
    """One token is asked for, and nothing where rows are answered already or the budget has no room."""
    with simulator() as api, front(api) as server:
        plan = the_plan(1)
        dollars = plan.options.filter(mode="batch")["dollars"].item()
        assert ended(plan.replace(budget=dollars), api, server=server).stopped_by == "budget"
        assert not {"message", "create"} & {*server.names}
        run = ended(the_plan(12), api, tmp_path / "l", server)
        (body,) = server.bodies()
        assert json.loads(body)["max_tokens"] == 1
        first = run.attempts.filter(error="dry_run")
        assert first.select("mode", "status", "batch_id", "reply").rows() == [("live", 200, None, None)]
        assert first["output_tokens"].item() == 1
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-12)
        ended(the_plan(20), api, tmp_path / "l", server)
        assert (server.names.count("message"), server.names.count("create")) == (1, 2)


# trouble on the way


@slow
def test_a_batch_that_is_stuck_expires_and_is_sent_again():
    """A batch that does not end within its 24 hours costs nothing, and its rows go into another."""
    with simulator(faults={"batch_stuck": Fault(tries=[1])}, speed=100_000) as api:
        run = ended(the_plan(20), api)
        paid_once(api, run, 20)
        assert run.batches["expired"].to_list() == [20, 0]


@slow
def test_what_passes_is_not_believed_of_a_batch(real):
    """A batch is waited for whatever single looks say, a 404 or a proxy's page: made once, paid for once."""
    page = {"content-type": "text/html"}, PAGE

    def change(name, path, ask):
        names = {"retrieve", "results", "cancel"}
        count = sum(each in names for each in server.names)
        hidden = name in names and (count <= 6 or count % 2)
        return (NOT_FOUND, (502, *page), (404, *page), (418, *page))[count % 4] if hidden else ask()

    with simulator() as api, front(api, change) as server:
        run = ended(the_plan(12), api, server=server)
        assert (run.state, run.counts.answered) == ("finished", 12)
        assert api.stats["batches_created"] == 1
        assert run.counts.dollars == pytest.approx(api.stats["dollars"], abs=1e-12)


@slow
def test_a_404_for_good_costs_the_other_batches_nothing(tmp_path, tens, real):
    """Where one of several batches is never shown, all other rows come in, and then it is named."""
    lost = []

    def change(name, path, ask):
        if lost and lost[0] in path:
            return NOT_FOUND
        status, headers, content = ask()
        if name == "create":
            lost.append(json.loads(content)["id"])
        return status, headers, content

    plan = the_plan(30, queue=20)
    with simulator() as api:
        with front(api, change) as server:
            run = ended(plan, api, tmp_path / "l", server)
        assert (run.state, run.stopped_by, run.counts.answered) == ("failed", "batch_not_found", 20)
        assert lost[0] in run.message
        assert ended(plan, api, tmp_path / "l").counts.answered == 30
        assert (api.stats["batches_created"], api.stats["billed_rows_by_mode"]["batch"]) == (3, 30)


@slow
def test_a_batch_that_is_never_shown_stays_held(tmp_path, real):
    """Nothing it holds is sent again until the user forgets it; a live run sends all other rows."""
    with simulator(batch_seconds=1_500) as api:
        left(the_plan(8), api, tmp_path / "l")
        with front(api, always("retrieve", NOT_FOUND)) as server:
            run = ended(the_plan(20, mode="live"), api, tmp_path / "l", server)
        assert (run.counts.answered, run.stopped_by) == (12, "batch_not_found")
        assert "forget('msgbatch_" in run.message
        assert api.stats["billed_rows_by_mode"]["live"] == 12 + 1
        with cs.Ledger(tmp_path / "l") as ledger:
            assert ledger.forget(run.batches["batch_id"].item()) == 8
        assert ended(the_plan(8, mode="live"), api, tmp_path / "l").counts.answered == 8


@slow
@pytest.mark.parametrize("spoiled", ["archived", "deleted"])
def test_a_batch_whose_results_are_gone(tmp_path, spoiled):
    """After 29 days that is said, and its rows stay held; a simulator's batch ends with it."""
    with simulator(batch_seconds=1_500.0) as api:
        batch_id = left(the_plan(20), api, tmp_path / "l").batches["batch_id"].item()
        batch = api.batches._batches[batch_id]

        async def spoil():
            async with api.client() as client:
                while batch.settled_at is None:
                    await client.messages.batches.retrieve(batch_id)
                if spoiled == "deleted":
                    await client.messages.batches.delete(batch_id)
                batch.archived_at -= 30 * 86_400

        asyncio.run(spoil())
        with closing(sqlite3.connect(tmp_path / "l")) as file, file:  # it was seen to have ended
            file.execute("UPDATE batches SET state = 'ended'")
        run = ended(the_plan(20), api, tmp_path / "l")
        if spoiled == "archived":
            assert (run.stopped_by, api.stats["batches_created"]) == ("results_gone", 1)
            assert "29 days" in run.message
            with cs.Ledger(tmp_path / "l") as ledger:
                assert ledger.forget(batch_id) == 20
            run = ended(the_plan(20), api, tmp_path / "l")
        assert run.results["reply"].null_count() == 0
        assert api.stats["batches_created"] == 2


@slow
def test_a_single_401_ends_no_run_whose_key_has_worked(tens):
    """A key that the batch endpoints took is not wrong because of one look; at creation it is the same."""

    def change(name, path, ask):
        looks = server.names.count("retrieve") + server.names.count("list")
        refused = (name in {"retrieve", "list"} and looks == 2) or (
            name == "create" and 3 <= server.names.count("create") < 5
        )
        return (401, {}, error("authentication_error")) if refused else ask()

    with simulator() as api, front(api, change) as server:
        assert ended(the_plan(40, queue=10), api, server=server).counts.answered == 40
        assert api.stats["billed_rows"] == 40


def _changed(change):
    """Return what changes the result lines of the batch that is read first."""
    first = []

    def changed(name, path, ask):
        status, headers, content = ask()
        if name == "results" and (first or first.append(path) or first)[0] == path:
            content = b"".join(change(content.splitlines(keepends=True)))
        return status, headers, content

    return changed


@slow
@pytest.mark.parametrize("where", ["create", "results"])
def test_trouble_of_the_account(tmp_path, tens, where):
    """Batches that were made come in, no row has its last word by it, and once it is mended the rest goes."""
    trouble = error("invalid_request_error", "It is on hold.", error_code="organization_on_hold")

    def create(name, path, ask):
        return (400, {}, trouble) if name == "create" and server.names.count("create") > 2 else ask()

    def results(lines):
        told = {"result": {"type": "errored", "error": json.loads(trouble)}}
        return [*lines[:5], *(json.dumps(json.loads(line) | told).encode() + b"\n" for line in lines[5:])]

    with simulator() as api:
        with front(api, create if where == "create" else _changed(results)) as server:
            run = ended(the_plan(40, queue=100), api, tmp_path / "l", server)
        assert (run.state, run.stopped_by) == ("failed", "organization_on_hold")
        assert "on hold." in run.message
        assert run.counts.answered == (20 if where == "create" else 35)
        assert (run.counts.failed, run.counts.missing) == (0, 40 - run.counts.answered)
        assert server.names.count("create") == (3 if where == "create" else 4)
        assert ended(the_plan(40, queue=100), api, tmp_path / "l").counts.answered == 40


OTHERS = b'{"custom_id":"nobody-0","result":{"type":"expired"}}\n'


@slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:5], b"\x00 no line \xff\n", *lines[6:]],
        lambda lines: [*lines[1:], *lines[1:], OTHERS],
        lambda lines: [*lines[:-1], lines[-1][:40]],
    ],
)
def test_a_line_that_is_missing(damage):
    """A row whose result is never there gets an error of its own, and goes into the next batch alone."""
    with simulator() as api, front(api, _changed(damage)) as server:
        run = ended(the_plan(12), api, server=server)
        assert (run.state, run.counts.answered) == ("finished", 12)
        assert run.batches["requests"].to_list() == [12, 1]
        assert run.attempts["error"].drop_nulls().to_list() == ["result_missing"]
        assert api.stats["billed_rows"] == 13


@slow
def test_lines_that_are_missing_may_be_paid_for(tmp_path):
    """One counts against the budget at its worst; where none can be read the rows are not sent again."""
    with simulator() as api:
        dollars = ended(the_plan(2), api).job.batches._requests["worst_dollars"].sum()
        with front(api, _changed(lambda lines: lines[:-1])) as server:
            run = ended(the_plan(2, budget=dollars), api, server=server)
        assert (run.stopped_by, run.counts.answered, api.stats["batches_created"]) == ("budget", 1, 2)
    with simulator() as api:
        with front(api, _changed(lambda _: [PAGE])) as server:
            run = ended(the_plan(30), api, tmp_path / "l", server)
        assert (run.stopped_by, run.counts.answered) == ("results_incomplete", 0)
        assert "forget(" in run.message
        paid_once(api, ended(the_plan(30), api, tmp_path / "l"), 30)


# redirects


@slow
def test_a_redirect_to_the_same_place_is_followed_and_another_named(api):
    """A gateway that moved gets the batch again at its new path; what leads elsewhere makes no batch."""

    def change(name, path, ask):
        if path.startswith("/gw/"):
            return 307, {"location": f"/real{path[3:]}"}, b""
        return ask(path.removeprefix("/real"))

    with front(api, change) as server:
        run = ended(the_plan(12), api, base_url=f"{server.url}/gw")
        assert (run.counts.answered, api.stats["batches_created"]) == (12, 1)
    for status, where in ((302, "/new"), (307, "http://127.0.0.1:9/new")):
        moved = status, {"location": f"{where}/v1/messages/batches?token=secret"}, b""
        with front(api, always("create", moved)) as server:
            run = ended(the_plan(12), api, server=server)
        assert (run.state, run.stopped_by, run.counts.answered) == ("failed", "redirect_error", 0)
        assert f"Set base_url to {where}" in run.message
        assert "secret" not in run.message
        assert server.names.count("create") == 1


# stop, leave, interrupts


@slow
def test_stop_cancels_and_keeps_what_was_answered(tmp_path):
    """After stop() the batch is canceled, its answered rows are kept, and the rest is sent the next time."""

    async def main():
        run = the_plan(100).start(api.client(), ledger=tmp_path / "l", progress=False)
        async with asyncio.timeout(PATIENCE):
            await until(lambda: api.stats["billed_rows"] >= 10)
            run.stop()
            return await run

    with simulator(batch_seconds=2_000.0) as api:
        run = asyncio.run(main())
        kept = run.results["reply"].count()
        assert run.state == "stopped"
        assert 10 <= kept == api.stats["billed_rows"] < 100
        assert run.batches["canceled"].item() == 100 - kept
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert set(run.results["error"]) <= {None, "canceled", "not_sent"}
        paid_once(api, ended(the_plan(100), api, tmp_path / "l"), 100, reused=kept)


@slow
def test_rows_that_somebody_else_canceled_are_not_sent_again(tmp_path):
    """They are named in the results; the same cell sends them."""

    async def main():
        async with api.client() as client:
            run = the_plan(40).start(client, ledger=tmp_path / "l", progress=False)
            await until(lambda: api.stats["billed_rows"] >= 5)
            await client.messages.batches.cancel(run.batches["batch_id"].item())
            return await run

    with simulator(batch_seconds=1_000.0) as api:
        run = asyncio.run(main())
        assert (run.state, api.stats["batches_created"]) == ("finished", 1)
        assert set(run.results["error"]) == {None, "canceled"}
        assert ended(the_plan(40), api, tmp_path / "l").counts.answered == 40


def _canceled(api, ledger):
    """Cancel the task that waits for a run."""

    async def main():
        task = asyncio.ensure_future(_ended(the_plan(50), api.client(), ledger))
        await until(lambda: api.stats["batches_created"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@slow
@pytest.mark.parametrize("leave", [lambda api, ledger: left(the_plan(50), api, ledger), _canceled])
def test_what_is_left_goes_on_and_is_collected_by_the_same_plan(tmp_path, leave):
    """After leave() or a canceled task the batch goes on; the next run sends nothing, live or by batch."""
    with simulator(batch_seconds=1_500.0) as api:
        leave(api, tmp_path / "l")
        run = ended(the_plan(60, mode="live"), api, tmp_path / "l")
        assert (api.stats["batches_created"], api.stats["calls"]) == (1, 10)
        paid_once(api, run, 60)


# hybrid


@slow
def test_hybrid_with_a_batch_in_time(api):
    """Where the batch is in time nothing but the first row is sent live."""
    run = ended(the_plan(40, mode="hybrid", deadline=600), api)
    paid_once(api, run, 40)
    assert api.stats["billed_rows_by_mode"] == {"live": 1, "batch": 39}


@slow
def test_hybrid_with_a_batch_that_is_too_slow():
    """A batch that would be late is canceled and the rest sent live, in time and nothing twice."""
    with simulator(batch_seconds=8_000.0, speed=100) as api:
        run = ended(the_plan(40, mode="hybrid", deadline=8), api)
        paid_once(api, run, 40)
        assert run.batches["canceled"].sum() == api.stats["billed_rows_by_mode"]["live"] - 1 > 0
        assert run.minutes <= 8


@slow
@pytest.mark.parametrize("forever", [True, False])
def test_a_hybrid_run_whose_batch_is_not_shown(real, forever):
    """Before its deadline a hybrid run pays for no row twice, whether its batch is shown again or not."""

    def change(name, path, ask):
        count = server.names.count("retrieve") + server.names.count("cancel")
        return NOT_FOUND if name in {"retrieve", "cancel"} and (forever or count <= 3) else ask()

    with simulator(speed=200) as api, front(api, change) as server:
        run = ended(the_plan(30, mode="hybrid", deadline=30), api, server=server)
        assert run.state == ("failed" if forever else "finished")
        assert run.counts.answered == (1 if forever else 30)
        assert api.stats["billed_rows_by_mode"] == {"live": 1, "batch": 29}


@slow
def test_a_hybrid_run_goes_live_where_there_are_no_batches():
    """A 404 to a batch is no word on the model where a row was answered live: the rest goes live too."""
    with simulator(speed=200) as api, front(api, always("create", NOT_FOUND)) as server:
        run = ended(the_plan(30, mode="hybrid", deadline=300), api, server=server)
        assert (run.state, run.counts.answered) == ("finished", 30)
        assert api.stats["billed_rows_by_mode"]["live"] == 30
