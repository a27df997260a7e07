"""The simulator's batches over their whole life: faults, time, caching, queue, and large ones."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import parsedate_to_datetime

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
    for batch in batches.due(now):
        for _ in batches.settle(batch):
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
        ("create_failed_after", anthropic.InternalServerError, 1),
    ],
)
def test_the_first_create_fails_and_the_second_goes_through(kind, error, created):
    """A fault at the first try leaves a batch behind or none, as its kind says; the second answers."""

    async def run():
        with Simulator(speed=200, faults={kind: Fault(tries=[1])}) as simulator:
            async with simulator.client() as client:
                with pytest.raises(error):
                    await client.messages.batches.create(**batch_of(3))
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
            async with simulator.client() as client:
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
    assert batches.show(batches.find(first["id"]), NOW + 86_399)["processing_status"] == "in_progress"
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
            async with simulator.client() as client:
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
