"""A run against a server that is not ours: mocklimit, which enforces token buckets with Anthropic's headers.

Run: ``pip install -e ".[test,foreign]"``, then ``python tests/benchmarks/foreign_benchmark.py [case ...]``,
with this package importable, or the commit tagged `mended`. For each case it prints the least seconds that
the limits allow, the time of the run as a multiple of them plus one answer, lost rows, and refused calls. The
server counts a quarter of the body's characters as input and 20 tokens as output, and takes both when a call
arrives.
"""

import asyncio
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import polars as pl

import claudescale as cs

PREFIX, NAMES = "anthropic-ratelimit", ("requests", "tokens.input", "tokens.output")
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
MUCH = 10**8
CASES = {  # limits per minute, seconds that a bucket holds, rows, words in each; tier 2's binding limit
    "requests, by the minute": ((1_000, MUCH, MUCH), 60, 1_400, 10),
    "requests, by the second": ((1_000, MUCH, MUCH), 1, 430, 10),
    "input, by the minute": ((10_000, 80_000, MUCH), 60, 560, 140),
    "input, by the second": ((10_000, 80_000, MUCH), 1, 150, 140),
    "output, by the second": ((10_000, MUCH, 16_000), 1, 350, 10),
    "requests, a tenth told": ((1_000, MUCH, MUCH), 60, 1_400, 10),
    "output, ten times told": ((10_000, MUCH, 16_000), 60, 1_200, 10),
}
TOLD = {"requests, a tenth told": 0.1, "output, ten times told": 10}


def bucket(dimension, per_minute, seconds):
    """Return one token bucket that holds that many seconds of its limit."""
    name = dimension.replace("tokens.", "") + "-tokens" * dimension.startswith("tokens")
    headers = {told: f"{PREFIX}-{name}-{told}" for told in ("limit", "remaining", "reset")}
    if seconds != 60:  # mocklimit reports the capacity as the limit, which holds only for a one-minute bucket
        headers["limit"] = f"x-capacity-{name}"
    capacity = max(math.ceil(per_minute * seconds / 60), 1)
    return {"dimension": dimension, "capacity": capacity, "refill_rate": per_minute / 60, "headers": headers}


@contextmanager
def serving(folder, limits, seconds):
    """Yield the address of a server process that enforces limits."""
    buckets = [bucket(name, limit, seconds) for name, limit in zip(NAMES, limits, strict=True)]
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
            while True:
                assert process.poll() is None, "mocklimit did not start"
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/mocklimit/stats")
                    break
                except httpx2.TransportError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def measure(name):
    """Run one case and print its figures."""
    limits, seconds, rows, words = CASES[name]
    per_minute = [limit * TOLD.get(name, 1) for limit in limits]
    kinds = ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute")
    tier = cs.Limits(**dict(zip(kinds, per_minute, strict=True)))
    frame = pl.DataFrame({"text": [f"{number} " + "word " * words for number in range(rows)]})
    plan = cs.plan(frame, "Name it: {text}", model="claude-haiku-5-5", tier=tier, max_tokens=20)
    with tempfile.TemporaryDirectory() as made, serving(Path(made), limits, seconds) as url:
        client = cs.connect(api_key="sk-ant-api03-not_a_real_key_of_a_foreign_server", base_url=url)
        run = asyncio.run(plan.run(client, ledger=Path(made) / "a.ledger", progress=False))
        (counts,) = httpx2.get(f"{url}/mocklimit/stats").json()["POST /messages"].values()
        results, attempts, minutes = run.results, run.attempts, run.minutes
    input_tokens = sum(len(body.encode()) // 4 for body in plan.requests["params"])
    needs = zip((rows, input_tokens, 20 * rows), limits, strict=True)
    bound = max((need - limit * seconds / 60) / (limit / 60) for need, limit in needs)
    ratio = minutes * 60 / (bound + float(attempts["seconds"].median()))
    lost = rows - (results["reply"] == "mock_string").sum()
    refused, sent = counts["total_429s"], counts["total_requests"]
    print(f"  {name:26} {bound:6.1f} {ratio:6.3f} {lost:6,} {refused:6,} of {sent:,}", flush=True)


if __name__ == "__main__":
    print(f"  {'binding limit':26} {'bound':>6} {'times':>6} {'lost':>6} {'429s':>6}")
    for chosen in sys.argv[1:] or CASES:
        measure(chosen)
