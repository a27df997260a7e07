"""Batches that are not shown, results that lack lines, requests that all are refused, and redirects."""

import asyncio
import http.client
import http.server
import json
import threading
from contextlib import closing, contextmanager

import anthropic
import polars as pl
import pytest
from breaking import endpoint, error
from crash_child import LIMITS, most_requests, the_plan
from engine import taken_for_real

import claudescale as cs
from claudescale.ledger.store import Store
from claudescale.running import batch_rules
from claudescale.running.batches import MOST_ROUNDS
from claudescale.simulator import Fault

PATIENCE = 60.0
NOT_FOUND = (404, {}, error("not_found_error", "Not found"))
PAGE = b"<html><title>Gateway</title></html>"
HIDDEN = {"connection", "content-length", "transfer-encoding"}


def simulator(**options):
    """Return a simulator on which a batch is a fraction of a second."""
    given = {"speed": 1_000, "batch_seconds": 60.0, "latency": 0.2, **options}
    return cs.Simulator(
        tuple(LIMITS.values()), batch_queue_requests=100_000, batch_requests_per_minute=100_000, **given
    )


@contextmanager
def front(api, change):
    """Give a server before a simulator, with `.url` and `.seen` calls.

    `change(name, path, ask)` gives status, headers and body; `ask(path)` asks the simulator.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _go(self):
            body = self._body()
            name = endpoint(self.command, self.path)
            server.seen.append((name, self.path, dict(self.headers), body))
            status, headers, content = change(name, self.path, lambda path=self.path: self._asked(path, body))
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self):
            if "chunked" not in (self.headers["transfer-encoding"] or ""):
                return self.rfile.read(int(self.headers["content-length"] or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _asked(self, path, body):
            connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=PATIENCE)
            sent = {key: value for key, value in self.headers.items() if key.lower() not in HIDDEN | {"host"}}
            connection.request(self.command, path, body=body or None, headers=sent)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            named = {key: value for key, value in answer.getheaders() if key.lower() not in HIDDEN}
            return answer.status, named, content

        do_GET = do_POST = do_DELETE = _go  # noqa: N815 - the names of http.server

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def real(monkeypatch):
    """Let a simulator be taken for the API by what sends batches."""
    taken_for_real(monkeypatch)


async def _ended(plan, client, ledger):
    async with asyncio.timeout(PATIENCE):
        try:
            return await plan.run(client, ledger=ledger, progress=False), None
        except cs.RunStopped as stopped:
            return stopped.run, str(stopped)


def ended(plan, api, server=None, ledger=None):
    """Return the run of a plan that has ended, and the words with which it was stopped, or None."""
    client = api.client(base_url=server.url) if server else api.client()
    return asyncio.run(_ended(plan, client, ledger))


def kinds(server, name):
    """Return how many calls of that kind a server has seen."""
    return sum(each[0] == name for each in server.seen)


# a batch that is not shown


@pytest.mark.parametrize("pattern", ["first three", "every second"])
@pytest.mark.parametrize("names", [{"retrieve"}, {"results"}, {"retrieve", "results", "cancel"}])
@pytest.mark.parametrize("known", ["simulator", "real"])
def test_a_404_that_passes_is_not_believed(request, known, names, pattern):
    """A batch that is there is waited for, whatever single looks say: it is made once and paid for once."""
    if known == "real":
        request.getfixturevalue("real")
    count = 0

    def change(name, path, ask):
        nonlocal count
        count += name in names
        hidden = count <= 3 if pattern == "first three" else count % 2
        return NOT_FOUND if name in names and hidden else ask()

    with simulator() as api, front(api, change) as server:
        run, words = ended(the_plan(12), api, server)
        assert (run.state, words, run.counts.answered) == ("finished", None, 12)
        assert api.stats["batches_created"] == 1
        assert api.stats["billed_rows_by_mode"].get("batch") == 12
        assert run.counts.dollars == pytest.approx(api.stats["dollars"], abs=1e-12)


def test_a_404_for_good_costs_the_other_batches_nothing(tmp_path, monkeypatch, real):
    """Where one of several batches is never shown, all other rows come in, and then it is named."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(4))
    lost = []

    def change(name, path, ask):
        if name in {"retrieve", "results"} and not lost:
            lost.append(path.split("/")[4])
        if lost and lost[0] in path:
            return NOT_FOUND
        status, headers, content = ask()
        if name == "list" and not lost:
            lost.append(json.loads(content)["data"][0]["id"])
        if name == "list":
            shown = json.loads(content)
            shown["data"] = [each for each in shown["data"] if each["id"] not in lost]
            content = json.dumps(shown).encode()
        return status, headers, content

    plan = the_plan(20, queue=12)
    with simulator() as api, front(api, change) as server:
        run, words = ended(plan, api, server, tmp_path / "l")
        assert (run.state, run.stopped_by, run.counts.answered) == ("failed", "batch_not_found", 16)
        assert lost[0] in words
        assert "paid for, again" in words
        assert sorted(run.batches["state"])[:4] == ["collected"] * 4
        assert api.stats["batches_created"] == 5
        again, words = ended(plan, api, None, tmp_path / "l")
        assert (again.state, again.counts.answered) == ("finished", 20)
        assert api.stats["batches_created"] == 5
        assert api.stats["billed_rows_by_mode"]["batch"] == 20


def _left(plan, api, ledger):
    """Submit the batches of a plan and leave them."""

    async def leave():
        run = await plan.run(api.client(), ledger=ledger, progress=False, wait=False)
        run.leave()
        await run

    asyncio.run(leave())


def test_a_live_run_does_not_wait_for_a_batch_that_is_never_shown(tmp_path, real):
    """All rows that no batch holds are sent live; then the run says which batch holds the others."""
    with simulator(batch_seconds=1_500) as api:
        _left(the_plan(8), api, tmp_path / "l")
        with front(api, lambda name, path, ask: NOT_FOUND if name == "retrieve" else ask()) as server:
            run, words = ended(the_plan(20, mode="live"), api, server, tmp_path / "l")
        assert (run.counts.answered, run.stopped_by) == (12, "batch_not_found")
        assert "msgbatch_" in words
        assert api.stats["billed_rows_by_mode"]["live"] == 12 + 1


@pytest.mark.parametrize("forever", [True, False])
def test_a_hybrid_run_whose_batch_is_not_shown(real, forever):
    """Before its deadline a hybrid run pays for no row twice, whether its batch is shown again or not."""
    count = 0

    def change(name, path, ask):
        nonlocal count
        count += name in {"retrieve", "cancel"}
        return NOT_FOUND if name in {"retrieve", "cancel"} and (forever or count <= 3) else ask()

    with simulator(speed=200) as api, front(api, change) as server:
        run, _ = ended(the_plan(30, mode="hybrid", deadline=30), api, server)
        assert run.state == ("failed" if forever else "finished")
        assert run.counts.answered == (1 if forever else 30)
        assert api.stats["billed_rows_by_mode"] == {"live": 1, "batch": 29}


def test_a_hybrid_run_goes_live_where_there_are_no_batches():
    """A 404 to a batch is no word on the model where a row was answered live: the rest goes live too."""
    with simulator(speed=200) as api:
        with front(api, lambda name, path, ask: NOT_FOUND if name == "create" else ask()) as server:
            run, words = ended(the_plan(30, mode="hybrid", deadline=30), api, server)
        assert (run.state, run.counts.answered, words) == ("finished", 30, None)
        assert api.stats["billed_rows_by_mode"]["live"] == 30


def test_a_page_instead_of_a_batch_is_waited_out():
    """What a proxy says of a batch for a while is no word of the API on it."""
    count = 0

    def change(name, path, ask):
        nonlocal count
        count += name in {"retrieve", "results"}
        if name not in {"retrieve", "results"} or count > 12:
            return ask()
        return (502, 404, 418, 500)[count % 4], {"content-type": "text/html"}, PAGE

    with simulator() as api, front(api, change) as server:
        run, words = ended(the_plan(12), api, server)
        assert (run.counts.answered, words) == (12, None)
        assert api.stats["batches_created"] == 1


def test_a_single_401_ends_no_run_whose_key_has_worked():
    """A key that the batch endpoints took is not wrong because of one look; at creation it is the same."""
    count = 0

    def change(name, path, ask):
        nonlocal count
        count += name in {"retrieve", "list"}
        refused = (name in {"retrieve", "list"} and count == 2) or (name == "create" and 3 <= made() < 5)
        return (401, {}, error("authentication_error")) if refused else ask()

    def made():
        return kinds(server, "create")

    with simulator(batch_seconds=120.0) as api, front(api, change) as server:
        run, words = ended(the_plan(40, queue=10), api, server)
        assert (run.counts.answered, words) == (40, None)
        assert api.stats["billed_rows"] == 40


# requests that all are refused


REFUSED = (400, {}, error("invalid_request_error", "speed: Extra inputs are not permitted"))


def test_what_only_batches_refuse_makes_one_batch(tmp_path, real):
    """Where every row of a batch is refused alike no further one is made, and the rows stay open."""
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run, words = ended(the_plan(30), api, ledger=tmp_path / "l")
        stats = api.stats
        assert (run.state, run.stopped_by, run.counts.answered) == ("failed", "invalid_request_error", 0)
        assert "30 of 30 rows" in words
        assert "simulated fault" in words
        assert stats["batches_created"] == 1
        assert stats["billed_rows_by_mode"] == {"live": 1, "batch": 0}
        assert run.counts.dollars == run.bill["dollars"].sum() == pytest.approx(stats["dollars"], abs=1e-12)
        assert run.waste.filter(kind="dry_run")["billed_attempts"].to_list() == [1]
    with simulator() as api:
        again, _ = ended(the_plan(30), api, ledger=tmp_path / "l")
        assert (again.state, again.counts.answered) == ("finished", 30)


@pytest.mark.parametrize("rows", [3, 12])
def test_a_small_batch_that_is_refused_whole(rows):
    """A few rows are enough where nothing else is known and nothing else is to be sent."""
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run, words = ended(the_plan(rows), api)
        assert (run.stopped_by, api.stats["batches_created"]) == ("invalid_request_error", 1)
        assert f"{rows} of {rows} rows" in words


def test_several_batches_that_are_refused_whole(monkeypatch):
    """Small batches are counted together: past twenty rows refused alike no more of them are made."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(10))
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run, _ = ended(the_plan(100, queue=10), api)
        assert (run.stopped_by, api.stats["batches_created"]) == ("invalid_request_error", 2)


def test_a_few_refused_rows_beside_answered_ones_are_to_blame(tmp_path):
    """Rows refused in a small batch after others were answered end as such, and are not sent again."""
    with simulator() as api:
        ended(the_plan(20), api, ledger=tmp_path / "l")
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run, words = ended(the_plan(25), api, ledger=tmp_path / "l")
        assert (run.state, words, run.counts.failed) == ("finished", None, 5)
        again, _ = ended(the_plan(25), api, ledger=tmp_path / "l")
        assert (again.counts.failed, api.stats["batches_created"]) == (5, 1)


def test_a_mistake_in_all_requests_is_told_before_a_batch(real):
    """Three rows from all over the frame are refused alike: no batch is made, and the words are the API's."""
    with (
        simulator() as api,
        front(api, lambda name, _, ask: REFUSED if name == "message" else ask()) as server,
    ):
        run, words = ended(the_plan(30), api, server)
        assert (run.stopped_by, run.message) == (
            "invalid_request_error",
            "speed: Extra inputs are not permitted",
        )
        assert "not permitted" in words
        assert (kinds(server, "message"), kinds(server, "create"), api.stats["dollars"]) == (3, 0, 0)
        assert run.results["error"].to_list() == ["not_sent"] * 30


@pytest.mark.parametrize("answer", ["one row", "529", "429", "a 404", "a page", "different words"])
def test_what_says_nothing_of_all_requests_stops_nothing(real, answer):
    """A row's own fault, an overload or a gateway without live calls keeps no batch from being made."""
    count = 0

    def change(name, path, ask):
        nonlocal count
        if name != "message":
            return ask()
        count += 1
        given = {
            "one row": REFUSED if count == 1 else ask(),
            "529": (529, {}, error("overloaded_error")),
            "429": (429, {"retry-after": "1"}, error("rate_limit_error")),
            "a 404": (404, {}, error("not_found_error", "no such route")),
            "a page": (403, {"content-type": "text/html"}, PAGE),
            "different words": (400, {}, error("invalid_request_error", f"row {count} is too long")),
        }
        return given[answer]

    with simulator() as api, front(api, change) as server:
        run, words = ended(the_plan(30), api, server)
        assert (run.counts.answered, words) == (30, None)
        assert api.stats["billed_rows_by_mode"]["batch"] == 30


def test_the_first_message_is_short_and_sent_once(tmp_path, real):
    """One message of one token goes before the first batch; where rows are answered already none does."""
    with simulator() as api, front(api, lambda name, path, ask: ask()) as server:
        run, _ = ended(the_plan(12), api, server, tmp_path / "l")
        (body,) = [json.loads(each[3]) for each in server.seen if each[0] == "message"]
        assert body["max_tokens"] == 1
        first = run.attempts.filter(error="dry_run")
        assert first.select("mode", "status", "batch_id", "reply").rows() == [("live", 200, None, None)]
        assert first["output_tokens"].item() == 1
        assert run.results["error"].null_count() == 12
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-12)
        assert run.savings["dollars_with"][-1] == pytest.approx(api.stats["dollars"], abs=1e-12)
        ended(the_plan(20), api, server, tmp_path / "l")
        assert kinds(server, "message") == 1
        assert kinds(server, "create") == 2


def test_the_first_message_leaves_thinking_its_budget():
    """Where thinking has a budget of tokens the shortest reply is one token longer, as the API demands."""
    thinking = {"type": "enabled", "budget_tokens": 2_048}
    given = json.dumps({"model": "m", "max_tokens": 4_096, "thinking": thinking}).encode()
    body, longest = batch_rules.dry_run(given)
    assert json.loads(body) == {"model": "m", "max_tokens": 2_049, "thinking": thinking}
    assert longest == 2_049


def test_the_first_message_keeps_to_the_budget(real):
    """Where the budget has no room for it beside nothing else, the API only counts, which is free."""
    plan = the_plan(1)
    dollars = plan.options.filter(mode="batch")["dollars"].item()
    with simulator() as api, front(api, lambda name, path, ask: ask()) as server:
        run, _ = ended(plan.replace(budget=dollars), api, server)
        assert (run.stopped_by, kinds(server, "message"), api.stats["dollars"]) == ("budget", 0, 0)
        assert kinds(server, "check") == 1


# troubles of the account


def test_trouble_of_the_account_at_a_creation(tmp_path, monkeypatch):
    """What ends the making of batches ends no collecting: what was made comes in, the rest stays open."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(10))
    words = "This organization is on hold."
    trouble = (400, {}, error("invalid_request_error", words, error_code="organization_on_hold"))

    def change(name, path, ask):
        return trouble if name == "create" and kinds(server, "create") > 2 else ask()

    with simulator() as api, front(api, change) as server:
        run, words = ended(the_plan(40, queue=100), api, server, tmp_path / "l")
        assert (run.stopped_by, run.counts.answered, run.counts.missing) == ("organization_on_hold", 20, 20)
        assert "on hold." in words
        assert kinds(server, "create") == 3
        again, _ = ended(the_plan(40, queue=100), api, None, tmp_path / "l")
        assert (again.counts.answered, api.stats["billed_rows"]) == (40, 40)


def test_trouble_of_the_account_in_results(tmp_path, monkeypatch):
    """Rows that failed for the account's sake have no last word: they are sent once it is mended."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(10))
    told = {"type": "invalid_request_error", "message": "This organization has been disabled."}
    body = {"type": "error", "error": told}
    first = []

    def change(name, path, ask):
        status, headers, content = ask()
        if name == "results" and path == (first or first.append(path) or first)[0]:
            lines = [json.loads(line) for line in content.splitlines()]
            for line in lines[5:]:
                line["result"] = {"type": "errored", "error": body}
            content = "\n".join(json.dumps(line) for line in lines).encode()
        return status, headers, content

    with simulator() as api, front(api, change) as server:
        run, words = ended(the_plan(30, queue=100), api, server, tmp_path / "l")
        assert (run.stopped_by, run.counts.answered) == ("account_disabled", 25)
        assert "has been disabled." in words
        assert api.stats["batches_created"] == 3
        again, _ = ended(the_plan(30, queue=100), api, None, tmp_path / "l")
        assert (again.state, again.counts.answered) == ("finished", 30)


# results that lack lines


def _changed(change):
    """Return what changes the result lines of the batch that is read first."""
    first = []

    def changed(name, path, ask):
        status, headers, content = ask()
        if name == "results" and (first or first.append(path) or first)[0] == path:
            content = change(content)
        return status, headers, content

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines[:5], b"\x00 no line \xff\n", *lines[6:]],
        lambda lines: [*lines[1:], *lines[1:], b'{"custom_id":"nobody-0","result":{"type":"expired"}}\n'],
        lambda lines: [*lines[:-1], lines[-1][:40]],
    ],
)
def test_a_line_that_is_missing(damage):
    """A row whose result is never there gets an error of its own, and goes into the next batch alone."""
    with simulator() as api:
        change = _changed(lambda content: b"".join(damage(content.splitlines(keepends=True))))
        with front(api, change) as server:
            run, words = ended(the_plan(12), api, server)
        assert (run.state, words, run.counts.answered) == ("finished", None, 12)
        assert run.batches["requests"].to_list() == [12, 1]
        assert run.attempts["error"].drop_nulls().to_list() == ["result_missing"]
        assert api.stats["billed_rows"] == 13


def test_a_line_that_is_missing_counts_against_the_budget():
    """A row that may have been billed unseen is set aside at its worst, and not sent past the budget."""
    with simulator() as api:
        with front(api, _changed(lambda content: content[: content.rstrip().rfind(b"\n") + 1])) as server:
            free, _ = ended(the_plan(2), api)
            dollars = free.job.batch_requests()["worst_dollars"].sum()
            run, _ = ended(the_plan(2, budget=dollars), api, server)
        assert (run.stopped_by, run.counts.answered) == ("budget", 1)
        assert api.stats["batches_created"] == 2


def test_a_line_that_is_missing_in_every_batch():
    """After some batches the row is given up, with an error that says why."""

    def change(name, path, ask):
        status, headers, content = ask()
        if name == "results":
            content = b"".join(line for line in content.splitlines(keepends=True) if row not in line)
        return status, headers, content

    plan = the_plan(12)
    with simulator() as api, front(api, change) as server:
        row = cs.wait(plan.run(api.client(), ledger=None, progress=False)).job.work.keys[7].encode()
        made = api.stats["batches_created"]
        run, words = ended(plan, api, server)
        assert (run.counts.answered, run.counts.failed, words) == (11, 1, None)
        assert run.results["error"][7] == "result_missing"
        assert api.stats["batches_created"] == made + MOST_ROUNDS


@pytest.mark.parametrize("content", [b"", PAGE, b"{}\n" * 60])
def test_results_that_cannot_be_read_at_all(tmp_path, content):
    """Where hardly a line can be read the rows are not sent again, which would pay for them again."""
    with simulator() as api:
        with front(api, _changed(lambda _: content)) as server:
            run, words = ended(the_plan(60), api, server, tmp_path / "l")
        assert (run.stopped_by, run.counts.answered) == ("results_incomplete", 0)
        assert "forget(" in words
        assert "paid for, again" in words
        again, _ = ended(the_plan(60), api, None, tmp_path / "l")
        assert (again.state, again.counts.answered, api.stats["billed_rows"]) == ("finished", 60, 60)


# redirects


def _moved(status, location):
    """Return what redirects calls below /gw to those below /real, which the simulator answers."""

    def change(name, path, ask):
        if path.startswith("/gw/"):
            return status, {"location": location + path[3:]}, b""
        return ask(path.removeprefix("/real"))

    return change


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_to_the_same_place_is_followed(mode, status):
    """A gateway that moved gets the whole body again at its new path, batches as well."""
    with simulator() as api, front(api, _moved(status, "/real")) as server:
        client = api.client(base_url=f"{server.url}/gw")
        run, words = asyncio.run(_ended(the_plan(12, mode=mode), client, None))
        assert (run.counts.answered, words) == (12, None)
        assert api.stats["batches_created"] == (mode == "batch")
        assert len([each for each in server.seen if each[1] == "/gw/v1/messages/batches"]) == (
            mode == "batch"
        )


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_a_redirect_elsewhere_is_named_and_the_key_stays_here(mode, status):
    """A redirect to another host, or one that makes a GET of a POST, is not followed but named."""
    with simulator() as api, front(api, lambda name, path, ask: ask()) as other:
        there = f"{other.url}/new" if status == 307 else "/new"
        moved = (status, {"location": f"{there}/v1/messages/batches?token=secret"}, b"")

        def change(name, path, ask):
            return moved if name in {"create", "message"} else ask()

        with front(api, change) as server:
            run, words = ended(the_plan(12, mode=mode, concurrency=1), api, server)
        assert (run.state, run.stopped_by, run.counts.answered) == ("failed", "redirect_error", 0)
        assert f"Set base_url to {there}" in words
        assert "secret" not in words
        assert kinds(server, "create") + kinds(server, "message") == 1
        assert other.seen == []


def test_a_redirect_in_a_circle_makes_no_batch():
    """A redirect without end is no lost answer: the run ends at once, and says so."""
    with simulator() as api:

        def change(name, path, ask):
            return (307, {"location": path}, b"") if name == "create" else ask()

        with front(api, change) as server:
            run, words = ended(the_plan(12), api, server)
        assert run.stopped_by == "redirect_error"
        assert "circle" in words
        assert kinds(server, "create") <= 5


def test_results_elsewhere_are_fetched_without_the_key():
    """Where a gateway keeps results in a store of its own they are read there, and no key goes along."""
    kept = {}
    with simulator() as api, front(api, lambda name, path, ask: (200, {}, kept[path])) as store:

        def change(name, path, ask):
            if name != "results":
                return ask()
            kept["/signed"] = ask()[2]
            return 302, {"location": f"{store.url}/signed"}, b""

        with front(api, change) as server:
            headers = {"x-api-key": "simulated"}
            client = anthropic.AsyncAnthropic(
                base_url=server.url, api_key="simulated", default_headers=headers
            )
            run, words = asyncio.run(_ended(the_plan(12), client, None))
        assert (run.counts.answered, words) == (12, None)
        (stored,) = store.seen
        assert any("x-api-key" in map(str.lower, each[2]) for each in server.seen)
        assert not {name.lower() for name in stored[2]} & {"x-api-key", "authorization", "cookie"}


def test_a_ledger_keeps_what_a_batch_that_is_not_shown_holds(tmp_path, real):
    """Only the user frees such rows: forget() says how many, and then they are sent again."""
    with simulator(batch_seconds=1_500) as api:
        _left(the_plan(8), api, tmp_path / "l")
        with front(api, lambda name, path, ask: NOT_FOUND if name == "retrieve" else ask()) as server:
            run, _ = ended(the_plan(8), api, server, tmp_path / "l")
        assert (run.stopped_by, run.counts.answered) == ("batch_not_found", 0)
        with closing(Store(tmp_path / "l")) as ledger:
            (batch,) = ledger.batches()
            assert ledger.forget(batch.batch_id) == 8


def test_an_error_that_passes_is_tried_again():
    """Rows that fail with an error of the moment still go into the next batch."""
    with simulator(faults={"batch_errored": Fault(tries=[1])}) as api:
        run, _ = ended(the_plan(30), api)
        assert (run.counts.answered, api.stats["batches_created"]) == (30, 2)


def test_prompts_of_refused_rows_are_in_no_message(real):
    """What is said of a batch that was refused holds the API's words, and nothing of the rows."""
    with simulator(faults={"batch_invalid": 1.0}) as api:
        run, words = ended(the_plan(30), api)
        assert not any(text in words for text in run.plan.frame["text"])
        assert run.attempts.filter(pl.col("error") == "invalid_request_error").height == 30
