"""The share of a limit that a run on a cluster reaches, and the cost of kills.

Run: ``python tests/benchmarks/cluster_benchmark.py [share] [kills]`` with the package and its extra ``dask``
importable. The simulator runs in its own process and enforces limits by the second.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from distributed import Client

import claudescale as cs

WIDE = 100_000_000


@contextmanager
def served(per_minute):
    """Serve a simulator and yield its address."""
    limits = {"requests": per_minute, "input-tokens": WIDE, "output-tokens": WIDE}
    command = [sys.executable, "-m", "claudescale.simulator", "--port", "0", "--bucket-seconds", "1"]
    command += [part for name, limit in limits.items() for part in (f"--{name}-per-minute", str(limit))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield "http" + server.stdout.readline().split("http", 1)[1].split()[0]
        finally:
            server.terminate()


def stats(url):
    with urllib.request.urlopen(f"{url}/simulator/stats") as answer:
        return json.load(answer)


def started(url, rows, per_minute, ledger, on):
    """Start a run."""
    texts = [f"Order {number}: late again, and the box was open." for number in range(rows)]
    limits = cs.Limits(
        requests_per_minute=per_minute, input_tokens_per_minute=WIDE, output_tokens_per_minute=WIDE
    )
    frame = pl.DataFrame({"text": texts})
    plan = cs.plan(frame, "Name it: {text}", model="claude-haiku-5-5", max_tokens=32, tier=limits)
    client = cs.connect(base_url=url, api_key="simulated")
    return plan.start(client, ledger=ledger, progress=False, on=on)


def share(rows=4_000, per_minute=4_800):
    """Print the pace of a whole run over the limit, including its tails."""
    for workers in (0, 1, 2, 4):
        on = Client(n_workers=workers, set_as_default=False) if workers else None
        with served(per_minute) as url, tempfile.TemporaryDirectory() as folder:
            cs.wait(started(url, 200, 60_000, None, on))  # so that every process has done its imports
            run = cs.wait(started(url, rows, per_minute, Path(folder) / "l", on))
            reached, refused = rows / run.minutes / per_minute, run.counts.refused
        print(f"{workers or 'no'} workers: {reached:.1%} of the limit, {refused} refusals of {rows:,}")
        if on:
            on.close()


def kills(rows=5_000, times=5, per_minute=6_000):
    """Kill -9 a worker five times in one run."""
    chance = random.Random(1)
    with (
        Client(n_workers=2, set_as_default=False) as on,
        served(per_minute) as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        run = started(url, rows, per_minute, Path(folder) / "l", on)
        for _ in range(times):
            time.sleep(chance.uniform(5.0, 12.0))
            if run.state == "running":
                os.kill(chance.choice(list(on.run(os.getpid).values())), signal.SIGKILL)
        lost = cs.wait(run).results["reply"].null_count()
        counted = stats(url)
    again = counted["billed_rows"] - counted["distinct_rows_billed"]
    print(f"{rows:,} rows, {times} kills: lost {lost}, paid again {again}")
    print(f"seconds: {run.minutes * 60:.0f}, at the limit it would be {rows / per_minute * 60:.0f}")


if __name__ == "__main__":
    for part in sys.argv[1:] or ["share", "kills"]:
        {"share": share, "kills": kills}[part]()
