"""`cs.limit` under the real SDK, against the simulator over a socket: each permit comes back exactly once."""

import asyncio
import gc
import json
from typing import Literal

import anthropic
import canned
import httpx2
import pydantic
import pytest
from paced import table
from running import WIDE, WIDE_LIMITS, a_plan, reviews, simulator, until

import claudescale as cs
from claudescale.errors import PlanError
from claudescale.pacing.middleware import CALLS, RATES, _characters, limiter_of
from claudescale.simulator import Fault

ASKED = {"model": "claude-haiku-5-5", "max_tokens": 60, "thinking": {"type": "disabled"}}
ASKED["messages"] = [{"role": "user", "content": "Tell me a story."}]
SPEED = 20
Label = pydantic.create_model("Label", label=(Literal["a", "b"], ...))


async def used(client, *ways, **options):
    """Return the meter of a client that was limited and used in several ways, one by one.

    After each one no call is in flight: every permit was returned exactly once.
    """
    async with cs.limit(client, **{"tier": WIDE_LIMITS, "concurrency": 2, **options}) as claude:
        limiter = limiter_of(claude)
        for way in ways:
            await way(claude)
            async with asyncio.timeout(5):
                await until(lambda: not limiter.under_way)
            assert limiter.waiting == 0
            assert {pacer.in_flight for pacer in limiter._pacers.values()} <= {0}
            assert limiter.calls.schema == CALLS
            assert limiter.calls.height == limiter.requests == limiter.answered + limiter.errors.total()
            assert limiter.calls["dollars"].sum() == pytest.approx(limiter.dollars)
        assert not ways or limiter._slots._value == 2
        return limiter


@pytest.fixture(scope="module")
def api():
    """Return a simulator with room for everything."""
    with simulator(speed=SPEED, latency=2.0) as one:
        yield one


# each way to call, to its end


async def create(claude):
    await claude.messages.create(**ASKED)


async def parse(claude):
    message = await claude.messages.parse(**ASKED, output_format=Label)
    assert message.parsed_output.label in {"a", "b"}


async def streaming_response(claude):
    async with claude.messages.with_streaming_response.create(**ASKED) as response:
        assert limiter_of(claude).under_way
        assert (await response.json())["usage"]


async def stream(claude):
    async with claude.messages.stream(**ASKED) as events:
        async for _ in events.text_stream:
            assert limiter_of(claude).under_way
    assert not limiter_of(claude).under_way


async def stream_of_create(claude):
    async for _ in await claude.messages.create(**ASKED, stream=True):
        pass


async def raw_stream(claude):
    async with claude.messages.with_streaming_response.create(**ASKED, stream=True) as response:
        assert "message_stop" in "".join([line async for line in response.iter_lines()])


def test_whatever_way_it_is_called_an_answer_is_settled_by_its_usage(api):
    """Each call counts once, with the dollars of the API's own account."""
    before = api.stats["dollars"]
    ways = create, parse, streaming_response, stream, stream_of_create, raw_stream
    calls = asyncio.run(used(api.client(), *ways)).calls
    assert calls.height == len(ways)
    assert (set(calls["status"]), set(calls["error"])) == ({200}, {None})
    assert set(calls["stop_reason"]) <= {"end_turn", "max_tokens"}
    assert calls["dollars"].sum() == pytest.approx(api.stats["dollars"] - before)
    assert calls["output_tokens"].min() > 0
    assert calls["seconds"].min() >= 1.9
    assert calls["simulated"].all()


def failing(way, raised):
    """Return a way to call that has to raise."""

    async def fails(claude):
        with pytest.raises(raised):
            await way(claude)

    return fails


# each way to leave a call unfinished


async def left(claude):
    async for _ in await claude.messages.create(**ASKED, stream=True):
        break


async def closed_unread(claude):
    events = await claude.messages.create(**ASKED, stream=True)
    await events.close()
    await events.close()


async def dropped(claude):
    await claude.messages.create(**ASKED, stream=True)
    gc.collect()


async def canceled(claude):
    task = asyncio.create_task(create(claude))
    await until(lambda: limiter_of(claude).under_way)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def canceled_stream(claude):
    async def read():
        async for event in await claude.messages.create(**ASKED, stream=True):
            if event.type == "message_start":
                asyncio.current_task().cancel()  # where the next event is awaited

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(read())


def test_a_call_that_is_left_gives_its_permit_back(api):
    """A break, a close, a dropped stream and a cancellation each count once, as canceled."""
    ways = left, closed_unread, dropped, canceled, canceled_stream
    assert asyncio.run(used(api.client(), *ways)).errors == {"canceled": len(ways)}


@pytest.mark.parametrize(
    ("tier", "sent"), [(WIDE_LIMITS, 2), (table(6, 1e6, 1e6), 1)], ids=["place", "limit"]
)
def test_a_canceled_wait_takes_no_permit(api, tier, sent):
    """A call canceled while waiting for a slot or for the limits was never sent and is not counted."""

    async def give_up(claude):
        calls = [asyncio.create_task(create(claude)) for _ in range(sent + 1)]
        await until(lambda: limiter_of(claude).waiting == 1 and len(limiter_of(claude).under_way) == sent)
        calls[-1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    assert asyncio.run(used(api.client(), give_up, tier=tier)).requests == sent


FAILURES = [
    ("drop", create, anthropic.APIConnectionError, ["connection_error"] * 2),
    ("drop_after", stream, httpx2.HTTPError, ["connection_error"]),
    (529, stream, anthropic.OverloadedError, ["overloaded_error"] * 2),
]


@pytest.mark.parametrize(("fault", "way", "raised", "errors"), FAILURES)
def test_what_fails_gives_its_permit_back(fault, way, raised, errors):
    """A cut connection and an error, streamed or not, return one permit per attempt of the SDK's retries."""
    with simulator(speed=SPEED, faults={fault: 1.0}) as api:
        limiter = asyncio.run(used(api.client(max_retries=1), failing(way, raised)))
    assert limiter.calls["error"].to_list() == errors


def test_a_refusal_holds_everybody_for_retry_after():
    """After a 429 with a retry-after of five seconds, the next call of any task waits that long."""
    refused = failing(create, anthropic.RateLimitError)
    with simulator(speed=SPEED, faults={429: Fault(tries=[1, 2])}) as api:
        calls = asyncio.run(used(api.client(max_retries=0), refused, refused)).calls
    assert calls.select("status", "error").rows() == [(429, "ramp_limit_exceeded")] * 2
    assert calls["waited_seconds"][0] < 1
    assert calls["waited_seconds"][1] >= 4.5


def test_an_error_event_gives_the_permit_back_and_a_refusal_without_output_costs_nothing():
    """An error in the middle of a stream ends the call as overloaded; earlier output is counted."""
    usage = {"input_tokens": 11, "output_tokens": 1}
    start = {"type": "message_start", "message": canned.message(content=[], stop_reason=None, usage=usage)}
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    events = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in (start, error))
    fails = failing(stream_of_create, anthropic.APIStatusError)
    refusal = canned.message(content=[], stop_reason="refusal", usage=usage | {"output_tokens": 0})
    answers = [refusal, events.encode()]
    with canned.served(lambda *_: (200, {"content-type": "text/event-stream"}, answers.pop())) as client:
        calls = asyncio.run(used(client.with_options(max_retries=0), fails, create)).calls
    call, refused = calls.iter_rows(named=True)
    assert (call["status"], call["error"], call["input_tokens"]) == (529, "overloaded_error", 11)
    assert not call["simulated"]
    assert (refused["stop_reason"], refused["input_tokens"], refused["dollars"]) == ("refusal", 11, 0.0)


# limits learned from headers, and calls left alone


def test_headers_teach_each_group_its_limits_and_a_watcher_shows_the_calls(api):
    """The first answer gives the account's limits, for its model group alone; free calls and batches pass."""

    async def calls(claude):
        await claude.messages.count_tokens(model=ASKED["model"], messages=ASKED["messages"])
        await claude.messages.batches.list()
        await claude.models.list()
        await create(claude)
        sonnet = {"model": "claude-sonnet-5-5", "thinking": {"type": "between_tools"}}
        await claude.messages.create(**ASKED | sonnet)
        with pytest.raises(anthropic.NotFoundError):
            await claude.messages.create(**ASKED | {"model": "unheard-of"})
        watch = cs.watch(claude)
        watch.close()
        assert watch.calls.equals(limiter_of(claude).calls)
        assert "SIMULATED 2 of 3 calls answered, 0 in flight, 0 waiting" in repr(watch)
        assert f"1 / {WIDE[0]:,}" in watch._repr_html_()

    limiter = asyncio.run(used(api.client(), calls, tier=1))
    assert limiter.rates.schema == RATES
    requests = limiter.rates.filter(bucket="requests").drop("bucket")
    assert requests.rows() == [("haiku-5-5", 1, WIDE[0]), ("sonnet-5-5", 1, WIDE[0]), ("unheard-of", 1, 50)]
    assert limiter.api.clock.speed == SPEED
    with pytest.raises(TypeError, match=r"claude = cs.limit\(client\)"):
        cs.watch(api.client())


def test_a_share_leaves_the_rest_to_others():
    """A tenth of sixty requests a minute: the second call waits ten seconds for the first."""
    with simulator(tier=(60, 10**6, 10**6), speed=SPEED) as api:
        run = used(api.client(), create, create, tier=table(60, 1e6, 1e6), share=0.1)
        calls = asyncio.run(run).calls
    assert calls["waited_seconds"][1] > 5


def test_a_file_in_a_request_is_not_paced_by_its_length():
    """An image in base64 is taken for some thousand tokens, however large it is; text by its characters."""
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 10**7}
    image = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
    assert _characters(image) < 10_000 < _characters({"messages": [{"role": "user", "content": "A" * 10**5}]})


def test_concurrency_caps_what_is_in_flight_and_the_users_middleware_stays():
    """Never more than two are in flight over all models; the user's middleware sees each attempt."""
    seen = []

    async def mine(request, call_next):
        seen.append(request.url)
        return await call_next(request)

    async def six_at_once(claude):
        await asyncio.gather(*(create(claude) for _ in range(6)))

    with simulator(speed=SPEED, latency=1.0) as api:
        asyncio.run(used(api.client(middleware=[mine]), six_at_once))
        assert api.stats["peak_in_flight"] == 2
    assert seen.count("/v1/messages") == 6


def test_a_run_takes_the_limiter_off(api):
    """A run given a limited client paces its calls itself, so none is paced twice; nor by limiting twice."""
    claude = cs.limit(cs.limit(api.client()), tier="build")
    assert len(claude.middleware) == 1
    run = cs.wait(a_plan(reviews(3)).run(claude, ledger=None, progress=False))
    assert run.state == "finished"
    assert limiter_of(claude).requests == 0


def test_several_loops_one_after_the_other(api):
    """One client in successive `asyncio.run` calls keeps counts and buckets, each on its own loop."""
    http = httpx2.AsyncClient(limits=httpx2.Limits(max_keepalive_connections=0))
    claude = cs.limit(api.client(http_client=http), tier=WIDE_LIMITS, concurrency=2)
    for _ in range(3):
        asyncio.run(create(claude))
    assert limiter_of(claude).answered == 3


UNUSABLE = [
    (anthropic.Anthropic, {}, r"cs.limit\(AsyncAnthropic\(...\)\), then await"),
    (anthropic.AsyncAnthropic, {"tier": "gold"}, "no usage tier 'gold'"),
    (anthropic.AsyncAnthropic, {"share": 0}, "share=0"),
    (anthropic.AsyncAnthropic, {"concurrency": 0}, "concurrency=0"),
]


@pytest.mark.parametrize(("client", "options", "words"), UNUSABLE)
def test_what_cannot_be_limited_says_what_to_type(client, options, words):
    """A blocking client and invalid options raise before anything is sent."""
    with pytest.raises(PlanError, match=words):
        cs.limit(client(api_key="simulated"), **options)


def test_clients_of_the_clouds_are_limited(api):
    """AWS and Google use the same wire protocol, so their clients are paced and keep their class."""
    common = {"base_url": api.url, "workspace_id": "w"}
    aws = anthropic.AsyncAnthropicAWS(api_key="simulated", aws_region="us-east-1", **common)
    google = anthropic.AsyncAnthropicGoogleCloud(project="p", token_provider=lambda: "token", **common)
    for client in (aws, google):
        assert type(cs.limit(client)) is type(client)
        assert asyncio.run(used(client, create)).answered == 1
