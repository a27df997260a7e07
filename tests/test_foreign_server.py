"""Against a third-party server: mocklimit enforces token buckets with Anthropic's headers and errors.

It counts a quarter of the body's characters as input and 20 tokens as output, and takes both when a call
arrives. All its replies are identical and report no tokens, so the tests see only which calls it admits, and
when.
"""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from running import a_plan, finished, reviews

import claudescale as cs

pytest.importorskip("mocklimit", reason="pip install -e '.[test,foreign]' brings it")

PREFIX = "anthropic-ratelimit"
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
RESOURCES = {
    "requests": {"input": {"strategy": "fixed", "value": 1}, "output": {"strategy": "fixed", "value": 0}},
    "tokens": {"input": {"strategy": "characters_div_4"}, "output": {"strategy": "fixed", "value": 20}},
}
POLICY = {
    "strategy": "token_bucket",
    "scope": "api_key",
    "format": {"reset": "rfc3339", "retry_after": {"header": "retry-after", "unit": "seconds"}},
    "error_template": {"provider": "anthropic"},
}


def bucket(dimension, per_minute, seconds):
    """Return one token bucket that holds that many seconds of its limit."""
    name = dimension.replace("tokens.", "") + "-tokens" * dimension.startswith("tokens")
    headers = {told: f"{PREFIX}-{name}-{told}" for told in ("limit", "remaining", "reset")}
    if seconds != 60:  # mocklimit reports the capacity as the limit, which holds only for a one-minute bucket
        headers["limit"] = f"x-capacity-{name}"
    capacity = max(math.ceil(per_minute * seconds / 60), 1)
    return {"dimension": dimension, "capacity": capacity, "refill_rate": per_minute / 60, "headers": headers}


@contextmanager
def server(folder, limits, seconds):
    """Yield the address of a server that enforces limits."""
    dimensions = "requests", "tokens.input", "tokens.output"
    buckets = [bucket(name, limit, seconds) for name, limit in zip(dimensions, limits, strict=True)]
    endpoint = {"methods": ["POST"], "policy": "messages", "resources": RESOURCES}
    endpoint["timing"] = {"base_ms": [20, 120]}
    config = {"policies": {"messages": POLICY | {"limits": buckets}}, "endpoints": {"/messages": endpoint}}
    for name, content in (("spec", SPEC), ("limits", config)):
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mocklimit", "serve", "--spec", folder / "spec.yaml"]
    command += ["--rate-config", folder / "limits.yaml", "--port", str(port), "--log-level", "ERROR"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(url):
                assert process.poll() is None, "mocklimit did not start"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def _answers(url):
    try:
        return bool(stats(url))
    except OSError:
        return False


def stats(url):
    """Return requests and refusals by the server's own count."""
    with urllib.request.urlopen(f"{url}/mocklimit/stats", timeout=10) as answer:
        counts = [count for keys in json.load(answer).values() for count in keys.values()]
    return sum(count["total_requests"] for count in counts), sum(count["total_429s"] for count in counts)


CASES = {  # limits per minute and seconds that a bucket holds; rows; times as much told to the client
    "requests": ((600, 10**6, 10**6), 60, 620, 1),
    "requests, by the second": ((600, 10**6, 10**6), 1, 40, 1),
    "input tokens": ((6_000, 12_600, 10**6), 60, 325, 1),
    "output tokens": ((6_000, 10**6, 6_000), 60, 320, 1),
    "ten times too much told": ((600, 10**6, 10**6), 60, 620, 10),
    "a tenth told": ((600, 10**6, 10**6), 60, 620, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_answered_within_its_limits(tmp_path, path, case):
    """For any binding limit and any assumption about it: rows in, rows out, and refusals counted alike."""
    limits, seconds, rows, told = CASES[case]
    names = "requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"
    tier = cs.Limits(**{name: limit * told for name, limit in zip(names, limits, strict=True)})
    plan = a_plan(reviews(rows), tier=tier, max_tokens=20)
    with server(tmp_path, limits, seconds) as url:
        client = cs.connect(api_key="sk-ant-api03-not_a_real_key_of_a_foreign_server", base_url=url)
        run = finished(plan, client, ledger=path)
        requests, refused = stats(url)
    assert run.results["text"].to_list() == plan.frame["text"].to_list()
    assert run.results["reply"].to_list() == ["mock_string"] * rows
    assert run.results["error"].null_count() == rows
    assert not run.job.simulated
    assert (requests - refused, run.counts.refused) == (rows, refused)
    # It closes idle connections after five seconds; a call that meets that has no answer, and goes again.
    assert run.attempts["status"].count() == requests
    assert set(run.attempts["error"].drop_nulls()) <= {"rate_limit_error", "connection_error"}
    input_tokens = sum(len(body.encode()) // 4 for body in plan.requests["params"])
    needs = zip((rows, input_tokens, 20 * rows), limits, strict=True)
    bound_seconds = max((need - limit * seconds / 60) / (limit / 60) for need, limit in needs)
    assert run.minutes * 60 >= bound_seconds - 0.5
    again = finished(plan, client, ledger=path)  # nothing listens there any more
    assert (again.state, again.counts.requests) == ("finished", 0)
