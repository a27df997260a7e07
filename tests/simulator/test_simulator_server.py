"""The simulator over HTTP: the real SDK in strict mode, broken answers, a class, the command line."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import pytest
from desks import (
    HEADERS,
    LONG,
    NOW,
    OPUS,
    SEARCH,
    TOOL,
    answered,
    batch_of,
    cached,
    desk,
    form,
    request,
)

from claudescale.api import catalog
from claudescale.api.client import is_nearby
from claudescale.clock import Clock
from claudescale.simulator import Fault, Simulator
from claudescale.simulator.server import board

FREE = (1e9, 1e12, 1e12)


@pytest.fixture
def simulator():
    """Run a fast simulator."""
    with Simulator("start", speed=200) as made:
        yield made


def asked(simulator, ask, **options):
    """Return what `ask(client)` gives, with a client that validates every answer and retries nothing."""

    async def run():
        options.setdefault("_strict_response_validation", True)
        async with simulator.client(max_retries=0, **options) as client:
            return await ask(client)

    return asyncio.run(run())


async def ended(client, name):
    """Return the batch once it has ended."""
    while (shown := await client.messages.batches.retrieve(name)).processing_status != "ended":  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return shown


def fetch(url, body=None, **headers):
    """Return status, headers and JSON, or text, of an answer, by plain HTTP."""
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url, data=data, headers={**HEADERS, **headers})
    try:
        with opener.open(asked, timeout=30) as answer:
            raw = answer.read().decode()
            return answer.status, answer.headers, json.loads(raw) if raw[0] == "{" else raw
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


@pytest.mark.slow
def test_the_sdk_in_strict_mode_takes_every_message_streamed_or_not_and_in_a_batch():
    """Thinking, schemas, tools, searches, caching, refusals: three times the same message, and one bill."""
    shown, previous = {"type": "adaptive", "display": "summarized"}, {"previous_message_id": "msg_x"}
    bodies = [
        request(),
        request(model=OPUS, output_config={"effort": "max"}, max_tokens=9000),
        request(thinking=shown, max_tokens=9000),
        request(**form()),
        request(tools=[TOOL], tool_choice={"type": "any"}),
        cached("a"),
        *(request(f"row {n}", tools=[SEARCH], inference_geo="us", diagnostics=previous) for n in range(6)),
    ]

    async def ask(client):
        plain, streamed = [], []
        for body in bodies:
            plain.append(await client.messages.create(**body))
            async with client.messages.stream(**body) as stream:
                streamed.append(await stream.get_final_message())
        rows = [{"custom_id": str(place), "params": body} for place, body in enumerate(bodies)]
        batch = await ended(client, (await client.messages.batches.create(requests=rows)).id)
        lines = [line async for line in await client.messages.batches.results(batch.id)]
        lines.sort(key=lambda line: int(line.custom_id))
        return plain, streamed, [line.result.message for line in lines]

    with Simulator(FREE, speed=2_000, faults={"refusal": 0.2, "refusal_midway": 0.2}) as made:
        plain, streamed, late = asked(made, ask)
        assert made.stats["in_flight"] == 0
        assert made.stats["calls"] == 2 * len(bodies)
    for one, two, three in zip(plain, streamed, late, strict=True):
        contents = [
            message.model_dump(exclude={"content": {"__all__": {"parsed_output"}}})["content"]
            for message in (one, two, three)
        ]
        assert contents[0] == contents[1] == contents[2]
        assert (one.stop_reason, one.stop_details) == (two.stop_reason, two.stop_details)
        assert one.usage.output_tokens == two.usage.output_tokens == three.usage.output_tokens
        assert one.usage.server_tool_use == two.usage.server_tool_use == three.usage.server_tool_use
    assert {"refusal", "end_turn"} <= {message.stop_reason for message in plain}
    assert any(message.usage.server_tool_use.web_search_requests for message in plain[6:])
    assert streamed[6].diagnostics.cache_miss_reason.type == "previous_message_not_found"


BROKEN = {
    "drop": (anthropic.APIConnectionError, False),
    "drop_after": (anthropic.APIConnectionError, True),
    "hang": (anthropic.APITimeoutError, False),
    "html_body": (anthropic.InternalServerError, False),
    "truncated_body": (Exception, True),
    "not_json": (Exception, True),
}
BREAKS_OFF = r"(?i)payload|incomplete|peer|closed"


def test_broken_answers_break_as_they_do_on_the_wire():
    """Dropped, hanging, truncated, HTML and non-JSON answers reach the SDK as what they are, one a try.

    A broken stream ends after half of its events, and is billed.
    """

    async def ask(client):
        for place, (kind, (error, billed)) in enumerate(BROKEN.items()):
            before = made.desk.account.billed_rows["live"]
            with pytest.raises(error):
                await client.messages.create(**request(), timeout=0.3 if kind == "hang" else 30)
            assert made.desk.account.billed_rows["live"] - before == billed, (place, kind)
        with pytest.raises(Exception, match=BREAKS_OFF):
            async with client.messages.stream(**request()) as stream:
                _ = [event.type async for event in stream]
        assert made.desk.account.billed_rows["live"] - before == billed + 1

    faults = {kind: Fault(tries=[number]) for number, kind in enumerate(BROKEN, start=1)}
    faults["drop_after"] = Fault(tries=[2, len(BROKEN) + 1])
    with Simulator(speed=200, faults=faults) as made:
        asked(made, ask)
        assert made.stats["faults"] == {**dict.fromkeys(BROKEN, 1), "drop_after": 2}


def test_counts_models_and_limits_reach_the_sdk_as_its_types(simulator):
    """A free count is what a message is billed; lists are paged; limits need an admin's key."""
    body = {**request(LONG, system="Be brief.")}

    async def ask(client):
        counted = await client.messages.count_tokens(**{k: v for k, v in body.items() if k != "max_tokens"})
        assert counted.input_tokens == (await client.messages.create(**body)).usage.input_tokens
        default = [model async for model in client.models.list(limit=4)]
        retired = [model async for model in client.models.list(lifecycle=["retired"])]
        with pytest.raises(anthropic.NotFoundError) as error:
            await client.models.retrieve("claude-none")
        assert (error.value.type, error.value.request_id[:7]) == ("not_found_error", "req_sim")
        limits = {item.group.id: item.limits async for item in client.organization.rate_limits.list()}
        return default, retired, await client.models.retrieve("claude-haiku-4-5"), limits

    default, retired, one, limits = asked(simulator, ask)
    assert simulator.stats["calls"] == 1
    assert {model.lifecycle for model in default} <= {"active", "deprecated"}
    assert len(default) == len({model.id for model in default}) > 10
    assert {model.lifecycle for model in retired} == {"retired"}
    assert (one.line, one.max_input_tokens, one.display_name) == ("haiku", 200_000, "Claude Haiku 4.5")
    assert one.id == catalog.model("claude-haiku-4-5").snapshot
    values = {limit.type: limit.value for name in ("haiku-5-5", "batch") for limit in limits[name]}
    assert values["input_tokens_per_minute_cache_aware"] == 2_000_000
    assert values["enqueued_batch_requests"] == 200_000
    with pytest.raises(anthropic.PermissionDeniedError, match="Admin API key"):
        asked(
            simulator, lambda client: client.organization.rate_limits.list(), api_key="sk-ant-api03-ordinary"
        )


CREATES = {  # and whether there is a batch all the same
    "create_dropped": (anthropic.APIConnectionError, False),
    "create_failed": (anthropic.InternalServerError, False),
    "create_lost": (anthropic.APIConnectionError, True),
    "create_hang": (anthropic.APITimeoutError, True),
    "create_failed_after": (anthropic.InternalServerError, True),
}


def test_calls_for_batches_fail_at_the_tries_that_are_chosen():
    """A create leaves a batch behind or none, as its kind says; a poll fails; results end in a line."""

    async def ask(client):
        batches, raw = client.messages.batches, b""
        with pytest.raises(anthropic.InternalServerError):
            await batches.list()
        for kind, (error, created) in CREATES.items():
            before = [batch.id async for batch in batches.list(limit=100)]
            impatient = client.with_options(timeout=0.5 if kind == "create_hang" else 60.0)
            with pytest.raises(error):
                await impatient.messages.batches.create(**batch_of(3))
            left = [batch.id async for batch in batches.list(limit=100)]
            assert (len(left) - len(before), left[created:]) == (created, before), kind
        name = (await batches.create(**batch_of(41))).id
        assert [batch.id async for batch in batches.list(limit=2)] == [name, *left]
        await ended(client, name)
        with pytest.raises(Exception, match=BREAKS_OFF):  # noqa: PT012
            async with batches.with_streaming_response.results(name) as response:
                async for part in response.iter_bytes():
                    raw += part
        assert (raw.count(b"\n"), raw.endswith(b"\n")) == (20, False)
        assert len([line async for line in await batches.results(name)]) == 41

    faults = {kind: Fault(tries=[number]) for number, kind in enumerate(CREATES, start=1)}
    faults |= {"poll_failed": Fault(tries=[1]), "results_cut": Fault(tries=[1])}
    with Simulator(speed=2000, batch_seconds=60, faults=faults) as made:
        asked(made, ask)
        assert made.stats["batches_created"] == 4
        assert made.stats["faults"] == dict.fromkeys(faults, 1)


@pytest.mark.slow
def test_a_large_batch_leaves_other_calls_their_turn():
    """While thousands of overdue rows are decided, and their replies written, live calls are answered."""

    async def ask(client):
        async def lines():
            return [line async for line in await client.messages.batches.results(batch.id)]

        await client.messages.create(**request())  # the SDK's first call takes long
        batch, answered = await client.messages.batches.create(**batch_of(1_500)), [0, 0]
        download = None
        while download is None or not download.done():
            await client.messages.create(**request(f"live {sum(answered)}"))
            answered[download is not None] += 1
            shown = await client.messages.batches.retrieve(batch.id)
            if download is None and shown.processing_status == "ended":
                download = asyncio.ensure_future(lines())
        return answered, len(await download)

    # The replies take no time, and all rows are due at once, long before they can be done.
    with Simulator(FREE, speed=2e4, batch_seconds=1.0, latency=0.0, batch_requests_per_minute=1e9) as made:
        answered, lines = asked(made, ask)
        assert made.stats["billed_rows"] == lines + sum(answered) + 1 == 1_500 + sum(answered) + 1
    assert min(answered) >= 1


def test_any_client_learns_the_clock(simulator):
    """Plain HTTP works; GET /simulator says what runs; answers are marked and dated in API time."""
    status, headers, about = fetch(f"{simulator.url}/simulator")
    assert (status, about["simulator"], about["speed"], about["tier"]) == (200, "claudescale", 200, "start")
    assert abs(about["now"] - simulator.clock.seconds()) < 10 * 200
    assert headers["claudescale-simulator"] == "1"
    for stream in (False, True):
        status, headers, _ = fetch(f"{simulator.url}/v1/messages", request(stream=stream))
        assert (status, headers["claudescale-simulator"]) == (200, "1")
        assert parsedate_to_datetime(headers["date"]).timestamp() >= int(about["now"])
    assert fetch(f"{simulator.url}/simulator/stats")[2]["billed_rows"] == 2


def test_it_listens_on_this_machine_only_and_closes(simulator):
    """The address is loopback; a port in use is an error; closed, it refuses connections, keeps its stats."""
    assert simulator.url.startswith("http://127.0.0.1:")
    fetch(f"{simulator.url}/v1/messages", request())
    with pytest.raises(OSError, match="address already in use"):
        Simulator(port=int(simulator.url.rpartition(":")[2]))
    simulator.close()
    simulator.close()
    assert simulator.stats["billed_rows"] == 1
    assert repr(simulator) == "<Simulator closed tier='start' speed=200 seed=0>"
    with pytest.raises(urllib.error.URLError):
        fetch(f"{simulator.url}/simulator")


def rows_of(page):
    """Return the cells of each row of a page's tables, without their tags."""
    cells = [re.split("<t[dh][^>]*>", row)[1:] for row in page.split("<tr>")]
    return {
        row[0]: [re.sub("<.*", "", cell, flags=re.DOTALL).strip() for cell in row[1:]] for row in cells if row
    }


def test_the_board_shows_by_key_what_passed_and_what_was_refused():
    """Over HTTP, by the SDK: three calls a minute among three pupils, one of whom is refused at a time."""
    with Simulator((3, 40_000, 8_000), latency=0.01) as simulator, httpx2.Client(trust_env=False) as http:
        assert "0 keys on one account" in fetch(f"{simulator.url}/class")[2]
        for name, calls in (("anna", 1), ("<b>script", 2), ("sk-ant-api03-secret", 2)):
            options = {"base_url": simulator.url, "max_retries": 0, "http_client": http}
            client = anthropic.Anthropic(api_key=name, **options)
            for _ in range(calls):
                try:
                    client.messages.create(**request())
                except anthropic.RateLimitError:
                    assert name.startswith("sk-")
        status, _, page = fetch(f"{simulator.url}/class")
    rows = rows_of(page)
    assert (status, [*rows][3:]) == (200, ["Name", "&lt;b&gt;s", "anna", "sk-a", "All"])
    expected = {"anna": "1010", "&lt;b&gt;s": "2020", "sk-a": "0202", "All": "3232"}
    assert {name: "".join(rows[name][:2] + rows[name][3:]) for name in expected} == expected
    assert rows["haiku-5-5"][0] == "0 of 3"
    assert 'http-equiv="refresh"' in page
    assert not any(word in page for word in ("secret", "script", "<b>"))


def test_the_last_minute_passes_and_the_total_stays():
    """A minute on, what passed counts in all alone; keys that begin alike stay apart."""
    at = desk((50, 40_000, 8_000))
    for key in ("max.m", "max.s"):
        answered(at, request(), headers={**HEADERS, "authorization": f"Bearer {key}"})
    pages = [board(at, Clock(10, now, monotonic=lambda: 0.0), "http://h") for now in (NOW, NOW + 61)]
    assert ["".join(rows_of(page)["All"][::3]) for page in pages] == ["22", "02"]
    assert pages[0].count("<tr><td>max.<td") == 2
    assert "passes here in 6 seconds" in pages[0]


@pytest.mark.slow
def test_the_command_line_serves_a_class_and_stops_cleanly():
    """It prints what to type and where the board is, and a signal ends it with status 0 and no complaint."""
    command = [sys.executable, "-m", "claudescale.simulator", "--class", "--host", "0.0.0.0", "--speed", "30"]
    environment = {"PYTHONPATH": ".", **os.environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--faults", '{"404": 1}'], env=environment, **pipes) as process:
        first, types, shows = (process.stdout.readline() for _ in range(3))
        url = shows.split()[-1].removesuffix("/class")
        here = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        about = fetch(f"{here}/simulator")[2]
        assert fetch(f"{here}/class")[0] == 200
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)
    assert (about["tier"], about["speed"]) == ("tier 1", 30)
    assert f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=simulated" in first
    assert f'cs.connect(base_url="{url}", api_key="your-name")' in types
    assert (process.returncode, rest) == (0, ("", ""))


def test_a_client_asks_for_a_simulator_in_its_own_network_alone():
    """Replies of a class's simulator are known as such; a gateway elsewhere is not asked."""
    near = ("http://192.168.1.5:8123", "http://10.0.0.7")
    far = ("https://192.168.1.5", "http://93.184.215.14", "http://gateway.example.org")
    assert [url for url in (*near, *far) if is_nearby(httpx2.URL(url))] == [*near]
