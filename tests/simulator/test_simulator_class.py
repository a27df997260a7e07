"""A class on one simulator: the board counts by key; other machines reach it only where asked for."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import anthropic
import httpx2
import pytest
from desks import HEADERS, NOW, answered, desk, message_of, request

import claudescale as cs
from claudescale.clock import Clock
from claudescale.simulator.server import board


def fetched(url, **headers):
    """Return the status and the text of a page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def rows_of(page):
    """Return the cells of each row of a page's tables, without their tags."""
    cells = [re.split("<t[dh][^>]*>", row)[1:] for row in page.split("<tr>")]
    return {
        row[0]: [re.sub("<.*", "", cell, flags=re.DOTALL).strip() for cell in row[1:]] for row in cells if row
    }


def test_the_board_shows_by_key_what_passed_and_what_was_refused():
    """Over HTTP, by the SDK: three calls a minute among three pupils, one of whom is refused at a time."""
    with cs.Simulator((3, 40_000, 8_000), latency=0.01) as simulator, httpx2.Client(trust_env=False) as http:
        assert "0 keys on one account" in fetched(f"{simulator.url}/class")[1]
        for name, calls in (("anna", 1), ("<b>script", 2), ("sk-ant-api03-secret", 2)):
            options = {"base_url": simulator.url, "max_retries": 0, "http_client": http}
            client = anthropic.Anthropic(api_key=name, **options)
            for _ in range(calls):
                try:
                    client.messages.create(**request())
                except anthropic.RateLimitError:
                    assert name.startswith("sk-")
        status, page = fetched(f"{simulator.url}/class")
    rows = rows_of(page)
    assert (status, [*rows][3:]) == (200, ["Name", "&lt;b&gt;s", "anna", "sk-a", "All"])
    expected = {"anna": "1010", "&lt;b&gt;s": "2020", "sk-a": "0202", "All": "3232"}
    assert {name: "".join(rows[name][:2] + rows[name][3:]) for name in expected} == expected
    assert rows["haiku-5-5"][0] == "0 of 3"
    assert 'http-equiv="refresh"' in page
    assert not any(word in page for word in ("secret", "script", "<b>"))


def test_the_last_minute_passes_and_the_total_stays():
    """A minute on, what passed and its tokens count in all alone; keys that begin alike stay apart."""
    at = desk((50, 40_000, 8_000))
    for key in ("max.m", "max.s"):
        answered(at, request(), headers={**HEADERS, "authorization": f"Bearer {key}"})
    clocks = [Clock(10, now, monotonic=lambda: 0.0) for now in (NOW, NOW + 61)]
    pages = [board(at, clock, "http://h") for clock in clocks]
    tokens = sum(message_of(request(), desk())["usage"][of] for of in ("input_tokens", "output_tokens"))
    assert [rows_of(page)["All"] for page in pages] == [
        ["2", "0", f"{2 * tokens}", "2", "0"],
        ["0", "0", "0", "2", "0"],
    ]
    assert pages[0].count("<tr><td>max.<td") == 2
    assert "passes here in 6 seconds" in pages[0]


@pytest.mark.parametrize(("options", "status"), [({}, 403), ({"host": "0.0.0.0"}, 200)])
def test_other_machines_are_served_only_where_it_is_asked_for(options, status):
    """By default another number is refused; with `host` it passes, and a name is refused all the same."""
    with cs.Simulator(**options) as simulator:
        assert simulator.url.startswith("http://127.0.0.1:")
        for name in ("192.168.1.5", "192.168.1.5:80", "[fe80::1]:80"):
            assert fetched(f"{simulator.url}/class", host=name)[0] == status
        assert fetched(f"{simulator.url}/simulator", host="example.com")[0] == 403


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
        about = json.loads(fetched(f"{here}/simulator")[1])
        assert fetched(f"{here}/class")[0] == 200
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)
    assert (about["tier"], about["speed"]) == ("tier 1", 30)
    assert f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=simulated" in first
    assert f'cs.connect(base_url="{url}", api_key="your-name")' in types
    assert (process.returncode, rest) == (0, ("", ""))


def test_a_client_asks_for_a_simulator_in_its_own_network_alone():
    """Replies of a class's simulator are known as such; a gateway elsewhere is not asked."""
    from claudescale.api.client import is_nearby  # noqa: PLC0415

    near = ("http://192.168.1.5:8123", "http://10.0.0.7")
    far = ("https://192.168.1.5", "http://93.184.215.14", "http://gateway.example.org")
    assert [url for url in (*near, *far) if is_nearby(httpx2.URL(url))] == [*near]
