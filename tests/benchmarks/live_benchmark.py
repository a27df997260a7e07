"""Client processor time of a row, everything included, next to a bare loop over the SDK in the same run.

Run: ``python tests/benchmarks/live_benchmark.py [rows]`` with the package importable. The simulator runs in
its own process with limits that never bind, so only the client counts. A run renders, paces, sends, settles
and records to a ledger on disk; the loop is a semaphore of 50 around ``messages.create`` and records nothing.
Each contender runs in its own process, twice, in turns; the smaller figure counts.
"""

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENCY_SECONDS = 0.1
MODEL = "claude-haiku-5-5"
PROMPT = "Name the complaint in one word: {text}"


def texts(rows):
    return [f"Order {number}: the parcel came late and the box was open. " * 4 for number in range(rows)]


async def bare(url, rows):
    """Send every row through a semaphore of 50 around the SDK, with its default transport."""
    from anthropic import AsyncAnthropic  # noqa: PLC0415  # only this contender

    async with AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0) as client:
        gate = asyncio.Semaphore(50)

        async def ask(text):
            async with gate:
                message = await client.messages.create(
                    model=MODEL,
                    max_tokens=64,
                    thinking={"type": "disabled"},
                    messages=[{"role": "user", "content": PROMPT.replace("{text}", text)}],
                )
                return message.content[0].text

        return await asyncio.gather(*map(ask, texts(rows)))


async def ours(url, rows):
    """Send every row in a run with a ledger on disk and 50 in flight."""
    import polars as pl  # noqa: PLC0415  # only this contender

    import claudescale as cs  # noqa: PLC0415

    plan = cs.plan(
        pl.DataFrame({"text": texts(rows)}), PROMPT, model=MODEL, max_tokens=64, concurrency=50,
        tier=cs.Limits(requests_per_minute=1e7, input_tokens_per_minute=1e10, output_tokens_per_minute=1e10),
    )  # fmt: skip
    client = cs.connect(base_url=url, api_key="simulated")
    with tempfile.TemporaryDirectory() as folder:
        run = await plan.run(client, ledger=Path(folder) / "benchmark.ledger", progress=False)
        return run.results["reply"].drop_nulls().to_list()


def measure(name, url, rows):
    """Return this process's CPU seconds for `rows` rows, without imports and one warm-up row."""
    contender = {"bare": bare, "ours": ours}[name]
    asyncio.run(contender(url, 1))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    replies = asyncio.run(contender(url, rows))
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(replies) == rows
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "milliseconds": used / rows * 1_000,
        "rows_per_second": rows / seconds,
        "megabytes": after.ru_maxrss / 1024,
    }


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 4_000
    command = [
        sys.executable,
        "-m",
        "claudescale.simulator",
        "--port",
        "0",
        "--latency",
        str(LATENCY_SECONDS),
    ]
    unlimited = ["--requests-per-minute", "10000000", "--input-tokens-per-minute", "10000000000",
                 "--output-tokens-per-minute", "10000000000"]  # fmt: skip
    with subprocess.Popen([*command, *unlimited], stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            url = "http" + line.split("http", 1)[1].split()[0].rstrip(".,;")
            found = {}
            for name in ("bare", "ours") * 2:
                made = subprocess.run(
                    [sys.executable, __file__, name, url, str(rows)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                one = json.loads(made.stdout.splitlines()[-1])
                if name not in found or one["milliseconds"] < found[name]["milliseconds"]:
                    found[name] = one
        finally:
            server.terminate()
    print(f"{rows:,} rows, 50 in flight, {LATENCY_SECONDS} s a reply")
    for name, one in found.items():
        share = one["milliseconds"] / found["bare"]["milliseconds"]
        print(
            f"{name:5} {one['milliseconds']:6.2f} ms CPU a row ({share:4.2f} x bare)  "
            f"{one['rows_per_second']:6.0f} rows/s  {one['megabytes']:5.0f} MB at most"
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
    else:
        main()
