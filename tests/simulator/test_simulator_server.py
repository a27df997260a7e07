"""The simulator over HTTP: the real SDK in strict mode, broken answers, a class, the command line."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import pytest
from bodies import OPUS, SEARCH, TOOL, batch_of, cached, form, request, rows_of
from desks import HEADERS, NOW, answered, desk

from claudescale.api.client import is_nearby
from claudescale.clock import Clock
from claudescale.simulator import Fault, Simulator
from claudescale.simulator.server import board

FREE = (1e9, 1e12, 1e12)
BREAKS_OFF = r"(?i)payload|incomplete|peer|closed"


def asked(simulator, ask):
    """Return the result of `ask(client)`, with a client that validates every answer and retries nothing."""

    async def run():
        async with simulator.client(_strict_response_validation=True, max_retries=0) as client:
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
        batches, streamed = client.messages.batches, []
        plain = [await client.messages.create(**body) for body in bodies]
        for body in bodies:
            async with client.messages.stream(**body) as stream:
                streamed.append(await stream.get_final_message())
        batch = await ended(client, (await batches.create(**rows_of(*bodies))).id)
        late = {line.custom_id: line.result.message async for line in await batches.results(batch.id)}
        return plain, streamed, [late[str(place)] for place in range(len(bodies))]

    def shape(message):
        content = message.model_dump(exclude={"content": {"__all__": {"parsed_output"}}})["content"]
        usage = message.usage.output_tokens, message.usage.server_tool_use
        return content, message.stop_reason, message.stop_details, usage

    with Simulator(FREE, speed=2_000, faults={"refusal": 0.2, "refusal_midway": 0.2}) as made:
        plain, streamed, late = asked(made, ask)
        assert (made.stats["in_flight"], made.stats["calls"]) == (0, 2 * len(bodies))
    assert [*map(shape, plain)] == [*map(shape, streamed)] == [*map(shape, late)]
    assert {"refusal", "end_turn"} <= {message.stop_reason for message in plain}
    assert any(message.usage.server_tool_use.web_search_requests for message in plain[6:])
    assert streamed[6].diagnostics.cache_miss_reason.type == "previous_message_not_found"


def test_the_sdk_in_strict_mode_takes_every_kind_of_result():
    """Batches are created, listed, canceled and deleted; results of all four kinds are as counted."""
    faults = {"batch_stuck": Fault(tries=[2]), "batch_expired": Fault(tries=[1], probability=0.5)}
    body = batch_of(12)
    body["requests"][1]["params"]["temperature"] = 0.5
    body["requests"][2]["params"]["model"] = "claude-none"

    async def ask(client):
        batches, results = client.messages.batches, []
        first, stuck = await batches.create(**body), await client.beta.messages.batches.create(**body)
        assert first.expires_at - first.created_at == timedelta(hours=24)
        with pytest.raises(anthropic.BadRequestError, match="still processing"):
            await batches.delete(stuck.id)
        assert (await batches.cancel(stuck.id)).cancel_initiated_at >= stuck.created_at
        for name in (first.id, stuck.id):
            counts = (await ended(client, name)).request_counts.to_dict()
            results.append({line.custom_id: line.result async for line in await batches.results(name)})
            types = [result.type for result in results[-1].values()]
            assert counts == {kind: types.count(kind) for kind in counts}
        assert [batch.id async for batch in batches.list(limit=1)] == [stuck.id, first.id]
        assert (await batches.delete(stuck.id)).type == "message_batch_deleted"
        return results

    with Simulator(speed=2_000, batch_seconds=300, faults=faults) as made:
        first, second = asked(made, ask)
    assert {result.type for result in second.values()} == {"canceled"}
    assert {result.type for result in first.values()} == {"succeeded", "errored", "expired"}
    errors = [first[name].error.error.type for name in ("row-1", "row-2")]
    assert errors == ["invalid_request_error", "not_found_error"]


BROKEN = {  # how calls end, and whether a reply is billed, or a batch made, nevertheless
    "drop": (anthropic.APIConnectionError, 0),
    "drop_after": (anthropic.APIConnectionError, 1),
    "hang": (anthropic.APITimeoutError, 0),
    "html_body": (anthropic.InternalServerError, 0),
    "truncated_body": (Exception, 1),
    "not_json": (Exception, 1),
}
CREATES = {
    "create_dropped": (anthropic.APIConnectionError, 0),
    "create_failed": (anthropic.InternalServerError, 0),
    "create_lost": (anthropic.APIConnectionError, 1),
    "create_hang": (anthropic.APITimeoutError, 1),
    "create_failed_after": (anthropic.InternalServerError, 1),
}


def test_broken_answers_break_as_they_do_on_the_wire_at_the_tries_that_are_chosen():
    """Dropped, hanging, cut and senseless answers to messages, creates, a poll, results; the bill holds."""

    async def ask(client):
        batches, whole_lines, account = client.messages.batches, 0, made.desk.account
        with pytest.raises(anthropic.InternalServerError):
            await batches.list()
        for kind, (error, done) in {**BROKEN, **CREATES}.items():
            before = account.billed_rows["live"] + account.counts["batches_created"]
            impatient = client.with_options(timeout=0.4 if "hang" in kind else 30).messages
            call = impatient.batches.create(**rows) if kind in CREATES else impatient.create(**request())
            with pytest.raises(error):
                await call
            assert account.billed_rows["live"] + account.counts["batches_created"] - before == done, kind
        with pytest.raises(Exception, match=BREAKS_OFF):
            async with client.messages.stream(**request()) as stream:
                _ = [event.type async for event in stream]
        assert account.billed_rows["live"] == 4
        name = (await batches.create(**rows)).id
        await ended(client, name)
        with pytest.raises(Exception, match=BREAKS_OFF):  # noqa: PT012
            async for _ in await batches.results(name):
                whole_lines += 1
        assert whole_lines == 20
        assert len([line async for line in await batches.results(name)]) == 41

    rows, tries = batch_of(41), [*enumerate(BROKEN, start=1), *enumerate(CREATES, start=1)]
    faults = {"poll_failed": Fault(tries=[1]), "results_cut": Fault(tries=[1])}
    faults |= {kind: Fault(tries=[number]) for number, kind in tries}
    faults["drop_after"] = Fault(tries=[2, len(BROKEN) + 1])
    with Simulator(speed=500, batch_seconds=60, faults=faults) as made:
        asked(made, ask)
        assert made.stats["faults"] == {**dict.fromkeys(faults, 1), "drop_after": 2}


def test_any_client_learns_the_clock_and_nobody_is_answered_once_it_is_closed():
    """Answers to plain HTTP are marked and dated in API time; it listens on this machine only."""
    simulator = Simulator("start", speed=200)
    assert simulator.url.startswith("http://127.0.0.1:")
    status, headers, about = fetch(f"{simulator.url}/simulator")
    assert (status, about["simulator"], about["speed"], about["tier"]) == (200, "claudescale", 200, "start")
    assert abs(about["now"] - simulator.clock.seconds()) < 10 * 200
    assert headers["claudescale-simulator"] == "1"
    for stream in (False, True):
        status, headers, _ = fetch(f"{simulator.url}/v1/messages", request(stream=stream))
        assert (status, headers["claudescale-simulator"]) == (200, "1")
        assert parsedate_to_datetime(headers["date"]).timestamp() >= int(about["now"])
    assert fetch(f"{simulator.url}/simulator/stats")[2]["billed_rows"] == 2
    with pytest.raises(OSError, match="address already in use"):
        Simulator(port=int(simulator.url.rpartition(":")[2]))
    for _ in range(2):
        simulator.close()
    assert simulator.stats["billed_rows"] == 2
    assert repr(simulator) == "<Simulator closed tier='start' speed=200 seed=0>"
    with pytest.raises(httpx2.ConnectError):
        fetch(f"{simulator.url}/simulator")


def test_the_board_shows_by_key_what_passed_and_what_was_refused():
    """Three calls a minute are shared by three pupils; a minute later only the totals include them."""
    at = desk((3, 40_000, 8_000))
    for key in ("anna", "<b>script", "<b>script", "sk-a-secret", "sk-a-other"):
        answered(at, request(), headers={**HEADERS, "authorization": f"Bearer {key}"})
    pages = [board(at, Clock(10, now, monotonic=lambda: 0.0), "http://h") for now in (NOW, NOW + 61)]
    rows, late = ([re.sub("<[^>]*>", " ", row).split() for row in page.split("<tr>")] for page in pages)
    assert not any(word in page for word in ("secret", "script", "<b>") for page in pages)
    shown = [" ".join(row[:3] + row[4:]) for row in rows[-5:]]  # without the tokens
    assert shown[:2] == ["&lt;b&gt;s 2 0 2 0", "anna 1 0 1 0"]
    assert shown[2:4] == ["sk-a 0 1 0 1"] * 2  # keys with the same beginning stay apart
    assert shown[4].startswith("All 3 2 3 2")
    assert late[-1][:6] == ["All", "0", "0", "0", "3", "2"]
    assert "passes here in 6 seconds" in pages[0]


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
