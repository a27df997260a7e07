"""The simulator's batches over their whole life: faults, time, caching, queue, and large ones."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import parsedate_to_datetime

import aiohttp
import anthropic
import pytest

from claudescale.simulator import Batches, Desk, Fault, Simulator
from claudescale.simulator.__main__ import arguments

NOW = 1_795_000_000.0  # November 2026
VERSION = "2026-10-21"
HAIKU = "claude-haiku-5-5"


def request(text="The parcel arrived late. The box was broken.", **changes):
    return {
        "model": HAIKU,
        "max_tokens": 500,
        "messages": [{"role": "user", "content": text}],
        **changes,
    }


def batch_of(rows, name="row", **changes):
    return {
        "requests": [
            {"custom_id": f"{name}-{n}", "params": request(f"row {n}", **changes)} for n in range(rows)
        ]
    }


def made(seconds=600, tier=(1e9, 1e12, 1e12), **options):
    """Return a desk and its batches."""
    desk = Desk(tier, now=NOW, **options)
    return desk, Batches(desk, NOW, seconds=seconds)


def outcomes(batches, shown, now):
    """Return the kind of result of each row once the batch has ended."""
    for batch in batches.unsettled():
        for _ in batches.work(batch, now):
            pass
    lines = [json.loads(line) for line in batches.results(now, batches.find(shown["id"]))]
    kinds = {line["custom_id"]: line["result"] for line in lines}
    return {
        name: result["error"]["error"]["type"] if result["type"] == "errored" else result["type"]
        for name, result in kinds.items()
    }


async def ended(client, name):
    """Return the batch once it has ended."""
    while True:
        shown = await client.messages.batches.retrieve(name)
        if shown.processing_status == "ended":
            return shown
        await asyncio.sleep(0.02)


async def download(batches, name, into):
    """Add a batch's results to `into` as they come."""
    async with batches.with_streaming_response.results(name) as response:
        async for part in response.iter_bytes():
            into += part


# -------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("kind", "error", "created"),
    [
        ("create_dropped", anthropic.APIConnectionError, 0),
        ("create_failed", anthropic.InternalServerError, 0),
        ("create_lost", anthropic.APIConnectionError, 1),
        ("create_hang", anthropic.APITimeoutError, 1),
        ("create_failed_after", anthropic.InternalServerError, 1),
    ],
)
def test_the_first_create_fails_and_the_second_goes_through(kind, error, created):
    """A fault at the first try leaves a batch behind or none, as its kind says; the second answers."""

    async def run():
        with Simulator(speed=200, faults={kind: Fault(tries=[1])}) as simulator:
            async with simulator.client(max_retries=0) as client:
                impatient = client.with_options(timeout=1.0 if kind == "create_hang" else 60.0)
                with pytest.raises(error):
                    await impatient.messages.batches.create(**batch_of(3))
                left = [batch.id async for batch in client.messages.batches.list()]
                second = await client.messages.batches.create(**batch_of(3))
                now = [batch.id async for batch in client.messages.batches.list()]
                return left, second.id, now, simulator.stats

    left, second, now, stats = asyncio.run(run())
    assert len(left) == created
    assert now == [second, *left]
    assert stats["batches_created"] == created + 1
    assert stats["faults"] == {kind: 1}


def test_polls_fail_and_results_break_off_at_the_tries_that_are_told():
    """The first poll is a 500; the first download of each batch ends in the middle of a line."""

    async def run():
        faults = {"poll_failed": Fault(tries=[1]), "results_cut": Fault(tries=[1])}
        with Simulator(speed=2000, batch_seconds=60, faults=faults) as simulator:
            async with simulator.client(max_retries=0) as client:
                batches = client.messages.batches
                first, second = [(await batches.create(**batch_of(41))).id for _ in range(2)]
                with pytest.raises(anthropic.InternalServerError):
                    await batches.retrieve(first)
                found = {}
                for name in (first, second):
                    await ended(client, name)
                    raw = bytearray()
                    with pytest.raises(Exception, match=r"(?i)payload|incomplete|peer|closed"):
                        await download(batches, name, raw)
                    found[name] = bytes(raw), [line.custom_id async for line in await batches.results(name)]
                return found, simulator.stats

    found, stats = asyncio.run(run())
    for raw, names in found.values():
        assert len(set(names)) == 41
        assert raw.count(b"\n") == 20
        assert not raw.endswith(b"\n")
    assert stats["faults"] == {"poll_failed": 1, "results_cut": 2}


def test_a_stuck_batch_is_canceled_or_expires_whole():
    """None of its rows is done: it ends 24 hours on, all expired, or sooner where it is canceled."""
    desk, batches = made(faults={"batch_stuck": Fault(tries=[1, 2])})
    first, second, third = (batches.create(NOW, batch_of(5), VERSION) for _ in range(3))
    batches.cancel(NOW + 600, batches.find(second["id"]))
    assert set(outcomes(batches, third, NOW + 700).values()) == {"succeeded"}
    assert set(outcomes(batches, second, NOW + 700).values()) == {"canceled"}
    assert batches.find(first["id"]).shown(NOW + 86_399)["processing_status"] == "in_progress"
    assert set(outcomes(batches, first, NOW + 86_400).values()) == {"expired"}
    assert desk.account.figures()["billed_rows"] == 5


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("batch_errored", "api_error"),
        ("batch_overloaded", "overloaded_error"),
        ("batch_invalid", "invalid_request_error"),
        ("batch_expired", "expired"),
    ],
)
def test_rows_of_a_batch_can_fail_and_the_next_batch_draws_anew(kind, outcome):
    """About the chosen share of rows fails and is not billed; the same rows sent again mostly do not."""
    desk, batches = made(faults={kind: 0.3})
    first = outcomes(batches, batches.create(NOW, batch_of(200), VERSION), NOW + 600)
    struck = {name for name, found in first.items() if found == outcome}
    assert 35 < len(struck) < 85
    assert set(first.values()) == {"succeeded", outcome}
    assert desk.account.figures()["billed_rows"] == 200 - len(struck)
    again = {"requests": [row for row in batch_of(200)["requests"] if row["custom_id"] in struck]}
    second = outcomes(batches, batches.create(NOW + 600, again, VERSION), NOW + 1200)
    assert 0 < list(second.values()).count(outcome) < len(struck) * 0.6


def test_a_row_can_fail_in_its_first_batch_and_succeed_in_its_second():
    """Tries of a row are counted by what it asks, whatever its custom_id."""
    _, batches = made(faults={"batch_overloaded": Fault(tries=[1])})
    first = outcomes(batches, batches.create(NOW, batch_of(5), VERSION), NOW + 600)
    second = outcomes(batches, batches.create(NOW, batch_of(5, name="other"), VERSION), NOW + 600)
    assert set(first.values()) == {"overloaded_error"}
    assert set(second.values()) == {"succeeded"}


# ---------------------------------------------------------------------------------------------- time


def test_every_answer_has_the_date_in_api_time():
    """Messages, errors, streams, lists and results carry the simulator's date, not this machine's."""

    async def run():
        with Simulator(speed=20_000, batch_seconds=60) as simulator:
            async with simulator.client(max_retries=0) as client:
                messages = client.messages
                batch = await messages.batches.create(**batch_of(2))
                await ended(client, batch.id)
                before = simulator.clock.seconds()
                answers = [
                    await messages.with_raw_response.create(**request()),
                    await messages.batches.with_raw_response.list(),
                    await messages.batches.with_raw_response.retrieve(batch.id),
                    await messages.batches.with_raw_response.results(batch.id),
                    await messages.with_raw_response.create(**request(), stream=True),
                ]
                with pytest.raises(anthropic.NotFoundError) as error:
                    await messages.batches.retrieve("msgbatch_none")
                answers.append(error.value.response)
                return [answer.headers["date"] for answer in answers], before, simulator.clock.seconds()

    dates, before, after = asyncio.run(run())
    moments = [parsedate_to_datetime(date).timestamp() for date in dates]
    assert all(int(before) <= moment <= after for moment in moments)
    assert all(date.endswith(" GMT") for date in dates)
    assert moments[-1] > time.time() + 60


ROW = b'{"custom_id":"a","params":{}}'


def test_an_upload_that_breaks_off_makes_no_batch():
    """The client goes away in the middle of the body: there is no batch, and the next one is made."""

    async def run():
        with Simulator(speed=200) as simulator:
            port = int(simulator.url.rpartition(":")[2])
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = (
                "POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n"
                "anthropic-version: 2026-10-21\r\nContent-Length: 9999\r\n\r\n"
            )
            writer.write(head.encode() + b'{"requests":[' + ROW)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            async with simulator.client(max_retries=0) as client:
                made = await client.messages.batches.create(**batch_of(1))
                return made.id, [batch.id async for batch in client.messages.batches.list()], simulator.stats

    name, listed, stats = asyncio.run(run())
    assert listed == [name]
    assert stats["batches_created"] == 1


# -------------------------------------------------------------------------------------------- working


def test_rows_are_done_one_by_one_and_their_requests_forgotten():
    """Half way about half is billed and out of memory, while the batch still shows no counts."""
    desk, batches = made(seconds=1000)
    shown = batches.create(NOW, batch_of(400), VERSION)
    batch = batches.find(shown["id"])
    assert all(batch.rows)
    worked = list(batches.work(batch, NOW + 500))
    assert 150 < len(worked) < 250
    assert desk.account.figures()["billed_rows"] == len(worked)
    assert [row for row in range(400) if not batch.rows[row]] == sorted(worked)
    counts = batch.shown(NOW + 500)["request_counts"]
    assert counts == {"processing": 400, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    assert set(outcomes(batches, shown, NOW + 1000).values()) == {"succeeded"}
    assert (batch.rows, batch.agenda, len(batch.lines)) == ([], [], 400)
    assert desk.account.figures()["billed_rows"] == desk.account.figures()["distinct_rows_billed"] == 400


def test_work_can_be_left_and_taken_up_at_any_row():
    """Left after every single row, and with a cancel in between, each row has one result."""
    desk, batches = made(seconds=1000)
    shown = batches.create(NOW, batch_of(100), VERSION)
    batch = batches.find(shown["id"])
    for moment in range(0, 300, 10):
        next(batches.work(batch, NOW + moment), None)
    batches.cancel(NOW + 300, batch)
    assert batch.next_at <= NOW + 320
    found = outcomes(batches, shown, NOW + 320)
    succeeded = list(found.values()).count("succeeded")
    assert len(found) == len(batch.lines) == 100
    assert set(found.values()) == {"succeeded", "canceled"}
    assert desk.account.figures()["billed_rows"] == succeeded


def test_a_large_batch_leaves_other_calls_their_turn():
    """While thousands of overdue rows are worked off, live calls and polls are answered in between."""

    async def run():
        # The replies take no time, and all rows are due at once, long before they can be done.
        with Simulator((1e9, 1e12, 1e12), speed=1e6, batch_seconds=1.0, latency=0.0) as simulator:
            async with simulator.client(max_retries=0) as client:
                await client.messages.create(**request())  # the SDK's first call takes long
                await client.messages.batches.create(**batch_of(8_000))
                billed = []
                while not billed or billed[-1]["batch"] < 8_000:
                    await client.messages.create(**request(f"live {len(billed)}"))
                    billed.append(simulator.stats["billed_rows_by_mode"])
                return billed

    billed = asyncio.run(run())
    between = [each for each in billed if 0 < each["batch"] < 8_000]
    assert len(between) >= 3
    assert [each["live"] for each in billed] == list(range(2, len(billed) + 2))


# -------------------------------------------------------------------------------------------- caching

LONG = "The parcel arrived late and the box was broken. " * 60


def cached_batch(rows, ttl):
    control = {"type": "ephemeral", "ttl": ttl}
    return batch_of(rows, system=[{"type": "text", "text": LONG, "cache_control": control}])


def read_share(desk, batches, rows, ttl, now):
    """Return which part of the rows of a new batch read the cache."""
    shown = batches.create(now, cached_batch(rows, ttl), VERSION)
    assert set(outcomes(batches, shown, now + 600).values()) == {"succeeded"}
    lines = [json.loads(line) for line in batches.results(now + 600, batches.find(shown["id"]))]
    usages = [line["result"]["message"]["usage"] for line in lines]
    read = [usage["cache_read_input_tokens"] for usage in usages]
    written = [usage["cache_creation_input_tokens"] for usage in usages]
    assert all((a > 512) != (b > 512) for a, b in zip(read, written, strict=True))
    return sum(each > 0 for each in read) / rows


@pytest.mark.parametrize(("ttl", "least", "most"), [("5m", 0.25, 0.70), ("1h", 0.57, 1.0)])
def test_the_prompt_cache_is_best_effort_in_batches(ttl, least, most):
    """From batch to batch 30 to 98 of 100 rows find the prefix, more of them with an hour than 5 minutes."""
    found = []
    for seed in range(12):
        desk, batches = made(seed=seed)
        found.append(read_share(desk, batches, 150, ttl, NOW))
    assert least < min(found) < max(found) < most
    assert max(found) - min(found) > 0.15


def test_a_batch_of_one_primes_the_next():
    """After a one-request batch with an hour's cache the next batch reads from its first row on."""
    desk, batches = made()
    assert read_share(desk, batches, 1, "1h", NOW) == 0
    shown = batches.create(NOW + 700, cached_batch(50, "1h"), VERSION)
    batch = batches.find(shown["id"])
    first = batch.agenda[-12:]  # the first to be done
    outcomes(batches, shown, NOW + 1300)
    usages = {line["custom_id"]: line["result"]["message"]["usage"] for line in map(json.loads, batch.lines)}
    assert sum(usages[f"row-{row}"]["cache_read_input_tokens"] > 512 for row in first) >= 4


# ----------------------------------------------------------------------------------------- the rest


def test_a_batch_over_the_spend_cap_is_refused():
    """Once the dollars are spent no batch is made, as no message is answered."""
    desk, batches = made(faults={"spend_cap": 0.0})
    answer = batches.submit(NOW, batch_of(2), VERSION)
    assert answer.status == 429
    assert json.loads(answer.body)["error"]["message"].startswith("You have reached your API usage limits")
    assert desk.account.figures()["batches_created"] == 0


def test_the_endpoints_of_batches_have_a_rate_of_their_own():
    """Beyond the rate every one of them is a 429 with a time to come back; messages are not."""

    async def run():
        with Simulator(speed=1, batch_requests_per_minute=3) as simulator:
            async with simulator.client(max_retries=0) as client:
                batches = client.messages.batches
                name = (await batches.create(**batch_of(1))).id
                await batches.retrieve(name)
                await batches.list()
                calls = [batches.create(**batch_of(1)), batches.retrieve(name), batches.list()]
                found = await asyncio.gather(*calls, return_exceptions=True)
                await client.messages.create(**request())
                return found, simulator.stats

    found, stats = asyncio.run(run())
    assert {type(each) for each in found} == {anthropic.RateLimitError}
    assert all(1 <= int(each.response.headers["retry-after"]) <= 20 for each in found)
    assert stats["refused"] == {"batch_requests_per_minute": 3}
    assert stats["batches_created"] == 1


def test_lists_go_forward_and_back_by_id():
    """Newest first; after_id goes on to older ones, before_id back to newer ones; limits are checked."""

    async def run():
        with Simulator(speed=200) as simulator:
            async with simulator.client(max_retries=0, _strict_response_validation=True) as client:
                batches = client.messages.batches
                ids = [(await batches.create(**batch_of(1))).id for _ in range(5)][::-1]
                first = await batches.list(limit=2)
                second = await batches.list(limit=2, after_id=first.last_id)
                back = await batches.list(limit=2, before_id=second.first_id)
                for limit in (0, 1001):
                    with pytest.raises(anthropic.BadRequestError):
                        await batches.list(limit=limit)
                return ids, first, second, back, [batch.id async for batch in batches.list(limit=1000)]

    ids, first, second, back, every = asyncio.run(run())
    assert [batch.id for batch in first.data] == ids[:2]
    assert [batch.id for batch in second.data] == ids[2:4]
    assert [batch.id for batch in back.data] == ids[:2]
    assert (first.has_more, second.has_more, back.has_more) == (True, True, False)
    assert every == ids


@pytest.mark.parametrize(
    ("method", "path", "version", "status"),
    [
        ("PUT", "", VERSION, 405),
        ("DELETE", "", VERSION, 405),
        ("PATCH", "/msgbatch_none", VERSION, 404),
        ("GET", "/msgbatch_none/results", VERSION, 404),
        ("POST", "/msgbatch_none/cancel", VERSION, 404),
        ("GET", "-other", VERSION, 404),
        ("GET", "", "2020-01-01", 400),
        ("GET", "", None, 400),
    ],
)
def test_wrong_calls_to_the_batch_endpoints_are_refused(method, path, version, status):
    """An unknown batch, path, method or API version is an error of the API's own shape."""
    headers = {"authorization": "Bearer simulated", **({"anthropic-version": version} if version else {})}

    async def run():
        async with aiohttp.ClientSession() as session:
            url = f"{simulator.url}/v1/messages/batches{path}"
            async with session.request(method, url, headers=headers) as answer:
                return answer.status, await answer.json()

    with Simulator(speed=200) as simulator:
        found, body = asyncio.run(run())
    assert found == status
    assert body["type"] == "error"
    assert body["error"]["message"]


# --------------------------------------------------------------------------------------- command line


def test_the_command_line_tells_when_and_at_which_tries_a_fault_strikes():
    """A window, tries, both or neither; a level stays a number; nonsense is said."""
    found = arguments().parse_args(["--faults", "529=0.1@30-60,create_lost=1#1+3,drop@5,spend_cap=2"]).faults
    assert found == {
        "529": Fault(probability=0.1, starts=30, ends=60),
        "create_lost": Fault(tries=[1, 3]),
        "drop": Fault(starts=5),
        "spend_cap": 2.0,
    }
    with pytest.raises(SystemExit):
        arguments().parse_args(["--faults", "529=often"])
