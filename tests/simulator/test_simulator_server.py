"""The simulator over HTTP: the real SDK in strict mode, broken answers, a class, the command line."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import pytest
from bodies import LONG, OPUS, SEARCH, TOOL, batch_of, cached, form, request, rows_of
from desks import HEADERS, NOW, answered, desk

from claudescale.api import catalog
from claudescale.api.client import is_nearby
from claudescale.clock import Clock
from claudescale.simulator import Fault, Simulator
from claudescale.simulator.server import board

FREE = (1e9, 1e12, 1e12)
BREAKS_OFF = r"(?i)payload|incomplete|peer|closed"


@pytest.fixture
def simulator():
    """Run a fast simulator."""
    with Simulator("start", speed=200) as made:
        yield made


def asked(simulator, ask, **options):
    """Return the result of `ask(client)`, with a client that validates every answer and retries nothing."""

    async def run():
        strict = {"_strict_response_validation": True, "max_retries": 0, **options}
        async with simulator.client(**strict) as client:
            return await ask(client)

    return asyncio.run(run())


async def ended(client, name):
    """Return the batch once it has ended."""
    while (shown := await client.messages.batches.retrieve(name)).processing_status != "ended":  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return shown


def fetch(url, body=None):
    """Return status, headers and JSON or text of an answer, by plain HTTP."""
    with httpx2.Client(trust_env=False, timeout=30) as http:
        answer = http.request("POST" if body else "GET", url, json=body, headers=HEADERS)
    is_json = "json" in answer.headers["content-type"]
    return answer.status_code, answer.headers, answer.json() if is_json else answer.text


@pytest.mark.slow
def test_the_sdk_in_strict_mode_takes_every_message_streamed_or_not_and_in_a_batch():
    """Thinking, schemas, tools, searches, caching and refusals give the same message thrice, and one bill."""
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
        batch = await ended(client, (await client.messages.batches.create(**rows_of(*bodies))).id)
        results = {
            line.custom_id: line.result async for line in await client.messages.batches.results(batch.id)
        }
        return plain, streamed, [results[str(place)].message for place in range(len(bodies))]

    with Simulator(FREE, speed=2_000, faults={"refusal": 0.2, "refusal_midway": 0.2}) as made:
        plain, streamed, late = asked(made, ask)
        assert (made.stats["in_flight"], made.stats["calls"]) == (0, 2 * len(bodies))
    for messages in zip(plain, streamed, late, strict=True):
        shapes = [
            (
                message.model_dump(exclude={"content": {"__all__": {"parsed_output"}}})["content"],
                (message.stop_reason, message.stop_details),
                (message.usage.output_tokens, message.usage.server_tool_use),
            )
            for message in messages
        ]
        assert shapes[0] == shapes[1] == shapes[2]
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


def test_broken_answers_break_as_they_do_on_the_wire():
    """The SDK meets dropped, hanging, truncated, HTML and non-JSON answers, one kind per try.

    A broken stream ends after half of its events and is billed.
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
    """A free count equals a message's billed tokens; lists are paged; limits are the tier's."""
    body = {**request(LONG, system="Be brief.")}

    async def ask(client):
        counted = await client.messages.count_tokens(**{k: v for k, v in body.items() if k != "max_tokens"})
        assert counted.input_tokens == (await client.messages.create(**body)).usage.input_tokens
        default = [model async for model in client.models.list(limit=4)]
        retired = [model async for model in client.models.list(lifecycle=["retired"])]
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


CREATES = {  # and whether a batch exists nevertheless
    "create_dropped": (anthropic.APIConnectionError, False),
    "create_failed": (anthropic.InternalServerError, False),
    "create_lost": (anthropic.APIConnectionError, True),
    "create_hang": (anthropic.APITimeoutError, True),
    "create_failed_after": (anthropic.InternalServerError, True),
}


def test_calls_for_batches_fail_at_the_tries_that_are_chosen():
    """A create leaves a batch behind or none, as its kind says; a poll fails; results end within a line."""

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
    """Live calls are answered while thousands of overdue rows are processed and their replies written."""

    async def ask(client):
        async def results_of(batch):
            await ended(client, batch.id)
            return [line async for line in await client.messages.batches.results(batch.id)]

        await client.messages.create(**request())  # the SDK's first call takes long
        batch, calls = await client.messages.batches.create(**batch_of(1_500)), 0
        results = asyncio.ensure_future(results_of(batch))
        while not results.done():
            await client.messages.create(**request(f"live {calls}"))
            calls += 1
        return calls, len(await results)

    # The replies take no time, and all rows are due at once, long before they can be done.
    with Simulator(FREE, speed=2e4, batch_seconds=1.0, latency=0.0, batch_requests_per_minute=1e9) as made:
        calls, lines = asked(made, ask)
    assert calls > 5
    assert lines == 1_500


def test_any_client_learns_the_clock(simulator):
    """Plain HTTP works; GET /simulator describes it; answers are marked and dated in API time."""
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
    for _ in range(2):
        simulator.close()
    assert simulator.stats["billed_rows"] == 1
    assert repr(simulator) == "<Simulator closed tier='start' speed=200 seed=0>"
    with pytest.raises(httpx2.ConnectError):
        fetch(f"{simulator.url}/simulator")


def cells_of(page):
    """Return the cells of each row of a page's tables, without their tags."""
    rows = [re.split("<t[dh][^>]*>", row)[1:] for row in page.split("<tr>")]
    return {row[0]: [cell.partition("<")[0].strip() for cell in row[1:]] for row in rows if row}


def test_the_board_shows_by_key_what_passed_and_what_was_refused():
    """Three calls a minute are shared by three pupils; a minute later only the totals include them."""
    at = desk((3, 40_000, 8_000))
    assert "0 keys on one account" in board(at, Clock(10), "http://h")
    for key in ("anna", "<b>script", "<b>script", "sk-a-secret", "sk-a-other"):
        answered(at, request(), headers={**HEADERS, "authorization": f"Bearer {key}"})
    page, late = (board(at, Clock(10, now, monotonic=lambda: 0.0), "http://h") for now in (NOW, NOW + 61))
    assert not any(word in page for word in ("secret", "script", "<b>"))
    assert page.count("<tr><td>sk-a<td") == 2  # keys with the same beginning stay apart
    rows = cells_of(page)
    expected = {"anna": "1010", "&lt;b&gt;s": "2020", "sk-a": "0101", "All": "3232"}
    assert [*rows][3:] == ["Name", "&lt;b&gt;s", "anna", "sk-a", "All"]
    assert {name: "".join(rows[name][:2] + rows[name][3:]) for name in expected} == expected
    assert "".join(cells_of(late)["All"]) == "00032"
    assert rows["haiku-5-5"][0] == "0 of 3"
    assert "passes here in 6 seconds" in page
    assert 'http-equiv="refresh"' in page


@pytest.mark.slow
def test_the_command_line_serves_a_class_and_stops_cleanly():
    """It prints what to type and the board's address, and a signal ends it with status 0 and no error."""
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
    """Replies of a class's simulator are recognized; a gateway on another network is not asked."""
    near = ("http://192.168.1.5:8123", "http://10.0.0.7")
    far = ("https://192.168.1.5", "http://93.184.215.14", "http://gateway.example.org")
    assert [url for url in (*near, *far) if is_nearby(httpx2.URL(url))] == [*near]
