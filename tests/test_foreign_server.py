"""Against a server that is not ours: mocklimit enforces token buckets with Anthropic's headers and errors.

It counts a quarter of the body's characters as input and 20 tokens as output, and takes both when a call
comes. Its replies are all the same and tell no tokens: only who is let in, and when, can be looked at.
"""

import asyncio
import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from running import a_plan, reviews

import claudescale as cs

pytest.importorskip("mocklimit", reason="pip install -e '.[test,foreign]' brings it")

KEY = "sk-ant-api03-not_a_real_key_of_a_foreign_server"
PREFIX = "anthropic-ratelimit"
START_SECONDS = 60.0
PATIENCE = 120.0
TEXT = {"type": "object", "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}}}
FIXED = {"type": "message", "role": "assistant", "model": "claude-haiku-5-5", "stop_reason": "end_turn"}
PROPERTIES = {"id": {"type": "string"}, "content": {"type": "array", "items": TEXT}}
PROPERTIES |= {name: {"enum": [value]} for name, value in FIXED.items()}
JSON = {"application/json": {"schema": {"type": "object", "properties": PROPERTIES}}}
ANSWERS = {"200": {"description": "A Message.", "content": JSON}}
SPEC = {
    "openapi": "3.1.0",
    "info": {"title": "Messages", "version": "1"},
    "servers": [{"url": "http://127.0.0.1/v1"}],
    "paths": {"/messages": {"post": {"operationId": "create", "responses": ANSWERS}}},
}


def bucket(dimension, name, per_minute, seconds):
    """Return one token bucket that holds so many seconds of its limit."""
    capacity = max(math.ceil(per_minute * seconds / 60), 1)
    # mocklimit tells the capacity as the limit, which is true of a bucket that holds a minute only.
    limit = f"{PREFIX}-{name}-limit" if seconds == 60 else f"x-capacity-{name}"
    headers = {
        "limit": limit, "remaining": f"{PREFIX}-{name}-remaining", "reset": f"{PREFIX}-{name}-reset"
    }  # fmt: skip
    return {
        "dimension": dimension, "capacity": capacity, "refill_rate": per_minute / 60, "headers": headers
    }  # fmt: skip


def configuration(requests, input_tokens, output_tokens, seconds):
    """Return what mocklimit is to enforce."""
    limits = [
        bucket("requests", "requests", requests, seconds),
        bucket("tokens.input", "input-tokens", input_tokens, seconds),
        bucket("tokens.output", "output-tokens", output_tokens, seconds),
    ]
    one, none = {"strategy": "fixed", "value": 1}, {"strategy": "fixed", "value": 0}
    form = {"reset": "rfc3339", "retry_after": {"header": "retry-after", "unit": "seconds"}}
    policy = {
        "strategy": "token_bucket", "limits": limits, "scope": "api_key", "format": form,
        "error_template": {"provider": "anthropic"},
    }  # fmt: skip
    endpoint = {
        "methods": ["POST"],
        "policy": "messages",
        "resources": {
            "requests": {"input": one, "output": none},
            "tokens": {
                "input": {"strategy": "characters_div_4"},
                "output": {"strategy": "fixed", "value": 20},
            },
        },
        "timing": {"base_ms": [20, 120]},
    }
    return {"policies": {"messages": policy}, "endpoints": {"/messages": endpoint}}


@contextmanager
def server(folder, *limits):
    """Give the address of a server that enforces limits."""
    for name, value in (("spec", SPEC), ("limits", configuration(*limits))):
        (folder / f"{name}.yaml").write_text(json.dumps(value))  # JSON is YAML
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mocklimit", "serve", "--spec", folder / "spec.yaml"]
    command += ["--rate-config", folder / "limits.yaml", "--port", str(port), "--log-level", "ERROR"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _await(url, process)
            yield url
        finally:
            process.terminate()


def _await(url, process):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "mocklimit did not start"
        try:
            stats(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
        else:
            return


def stats(url):
    """Return requests and refusals by the server's own count."""
    with urllib.request.urlopen(f"{url}/mocklimit/stats", timeout=10) as answer:
        found = json.load(answer)
    counts = [each for keys in found.values() for each in keys.values()]
    return sum(each["total_requests"] for each in counts), sum(each["total_429s"] for each in counts)


def run_of(url, rows, ledger, told):
    """Return the run of that many rows, to which other limits may have been `told` than the true ones."""

    async def ended():
        client = cs.connect(api_key=KEY, base_url=url)
        tier = cs.Limits(
            requests_per_minute=told[0], input_tokens_per_minute=told[1], output_tokens_per_minute=told[2]
        )
        plan = a_plan(reviews(rows), tier=tier, max_tokens=20)
        async with asyncio.timeout(PATIENCE):
            return await plan.run(client, ledger=ledger, progress=False)

    return asyncio.run(ended())


def bound_seconds(limits, rows, run):
    """Return the seconds that no client can beat, by what mocklimit takes of each bucket."""
    requests, input_tokens, output_tokens, seconds = limits
    size = sum(len(body) // 4 for body in _bodies(run))
    needs = zip((rows, size, 20 * rows), (requests, input_tokens, output_tokens), strict=True)
    return max((need - limit * seconds / 60) / (limit / 60) for need, limit in needs)


def _bodies(run):
    return [body.encode() for body in run.plan.requests["params"]]


CASES = {  # limits per minute and seconds that a bucket holds; rows; limits told to the client
    "requests": ((600, 10**6, 10**6, 60), 620, None),
    "requests, by the second": ((600, 10**6, 10**6, 1), 40, None),
    "input tokens": ((6_000, 12_600, 10**6, 60), 325, None),
    "output tokens": ((6_000, 10**6, 6_000, 60), 320, None),
    "ten times too much told": ((600, 10**6, 10**6, 60), 620, (6_000, 10**7, 10**7)),
    "a tenth told": ((600, 10**6, 10**6, 60), 620, (60, 10**5, 10**5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_answered_within_its_limits(tmp_path, case, record_property):
    """Whichever limit binds, whatever was thought of it: rows in, rows out; refusals are counted alike."""
    limits, rows, told = CASES[case]
    with server(tmp_path, *limits) as url:
        run = run_of(url, rows, tmp_path / "l", told or limits[:3])
        requests, refused = stats(url)
    bound = bound_seconds(limits, rows, run)
    figures = {"rows": rows, "calls": requests, "refused": refused, "bound": round(bound, 1)}
    figures["seconds"] = round(run.minutes * 60, 1)
    record_property("figures", figures)
    print(f"\n{case}: {figures}")
    assert run.results["text"].to_list() == run.plan.frame["text"].to_list()
    assert run.results["reply"].to_list() == ["mock_string"] * rows
    assert run.results["error"].null_count() == rows
    assert not run.job.simulated
    assert requests - refused == rows
    assert run.counts.refused == refused
    # It closes idle connections after five seconds; a call that meets that has no answer, and goes again.
    assert run.attempts["status"].count() == requests
    assert set(run.attempts["error"].drop_nulls()) <= {"rate_limit_error", "connection_error"}
    assert run.minutes * 60 >= bound - 0.5
    again = run_of(url, rows, tmp_path / "l", told or limits[:3])  # nothing listens there any more
    assert (again.state, again.summary["requests"].item()) == ("finished", 0)
