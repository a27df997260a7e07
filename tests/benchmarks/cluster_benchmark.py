"""What a run on a cluster reaches and costs: the shared limit, processor time, kills, start-up, size on disk.

Run: ``python tests/benchmarks/cluster_benchmark.py [share] [overhead] [kills] [size]``, the package and its
extra ``dask`` being importable; all of them by default. The simulator lives in a process of its own, enforces
limits by the second and counts what it billed.
"""

import importlib.metadata
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import polars as pl

import claudescale as cs
from claudescale import cluster

MODEL = "claude-haiku-5-5"
WIDE = 100_000_000


@contextmanager
def served(per_minute):
    """Serve a simulator; lend its address."""
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


def plan(rows, per_minute):
    texts = [f"Order {number}: late again, and the box was open." for number in range(rows)]
    limits = cs.Limits(
        requests_per_minute=per_minute, input_tokens_per_minute=WIDE, output_tokens_per_minute=WIDE
    )
    return cs.plan(pl.DataFrame({"text": texts}), "Name it: {text}", model=MODEL, max_tokens=32, tier=limits)


def finished(url, rows, per_minute, ledger, on):
    client = cs.connect(base_url=url, api_key="simulated")
    return cs.wait(plan(rows, per_minute).run(client, ledger=ledger, progress=False, on=on))


def warm(url, on):
    """Send some rows, so that every process has imported what it needs."""
    finished(url, 200, 60_000, None, on)


def share():
    """Print how many calls go in the middle of a run, over what the limit allows in that time."""
    for workers in (0, 1, 2, 4):
        start = time.perf_counter()
        on = cluster.local(workers) if workers else None
        started = time.perf_counter() - start
        with served(60_000) as url:
            warm(url, on)
        per_minute = 4_800
        with served(per_minute) as url, tempfile.TemporaryDirectory() as folder:
            run = finished(url, 4_000, per_minute, Path(folder) / "l", on)
            sent = run.attempts["sent_at"].sort().dt.epoch("us") / 1e6
            middle = sent[400], sent[3_600]
            reached = 3_200 / (middle[1] - middle[0]) * 60 / per_minute
            refused = sum(stats(url)["refused"].values())
        name = f"{workers} workers" if workers else "one process, no cluster"
        print(f"{name}: {reached:.1%} of the limit, {refused} refusals of 4,000; started in {started:.1f} s")
        if on:
            on.close()


def seconds_of(on):
    """Processor seconds so far of this process and all workers."""
    mine = time.process_time()
    return mine + (sum(on.run(time.process_time).values()) if on else 0.0)


def overhead():
    """Print the processor time of a row, the simulator's not counted, against one process."""
    found = {}
    for workers in (0, 2):
        on = cluster.local(workers) if workers else None
        with served(6_000_000) as url:
            warm(url, on)
            before, start = seconds_of(on), time.perf_counter()
            finished(url, 6_000, 6_000_000, None, on)
            found[workers] = (seconds_of(on) - before) / 6_000 * 1e3
            wall = 6_000 / (time.perf_counter() - start)
        print(f"{workers or 'no'} workers: {found[workers]:.2f} ms a row, {wall:,.0f} rows a second")
        if on:
            on.close()
    print(f"ratio: {found[2] / found[0]:.2f}")


def kills(rows=5_000, times=10, per_minute=6_000):
    """Kill -9 a worker ten times in one run, each time when both are at work."""
    on = cluster.local(2)
    chance, under_way = random.Random(1), []

    def murder(run):
        while len(under_way) < times:
            calls = run.counts.requests
            while run.counts.requests < calls + 250 or len(on.nthreads()) < 2:
                if run.state != "running":
                    return
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 1.0))
            victim = chance.choice(list(on.run(os.getpid).values()))
            under_way.append(run.pulse.in_flight)
            os.kill(victim, signal.SIGKILL)

    with served(per_minute) as url, tempfile.TemporaryDirectory() as folder:
        warm(url, on)
        before = stats(url)
        client = cs.connect(base_url=url, api_key="simulated")
        run = plan(rows, per_minute).start(client, ledger=Path(folder) / "l", progress=False, on=on)
        while run.state == "starting":
            time.sleep(0.02)
        murder(run)
        lost = run.result().results["reply"].null_count()
        counted = stats(url)
    distinct = counted["distinct_rows_billed"] - before["distinct_rows_billed"]
    again = counted["billed_rows"] - before["billed_rows"] - distinct
    print(f"{rows:,} rows, {len(under_way)} kills: lost {lost}, paid again {again}")
    print(f"in flight at the kills, both workers together: {sum(under_way)}")
    print(f"seconds: {run.minutes * 60:.0f}, at the limit it would be {rows / per_minute * 60:.0f}")
    on.close()


def size():
    """Print what an extra adds to what the package needs anyway, in MB of files."""

    def names(wanted):
        found, queue = {wanted}, [wanted]
        while queue:
            for line in importlib.metadata.requires(queue.pop()) or []:
                name = re.match(r"[\w.-]+", line)[0].lower()
                if "extra ==" in line or "win32" in line or name in found:
                    continue
                try:
                    importlib.metadata.distribution(name)
                except importlib.metadata.PackageNotFoundError:
                    continue
                found.add(name)
                queue.append(name)
        return found

    def megabytes(name):
        files = importlib.metadata.distribution(name).files or []
        return sum(path.stat().st_size for file in files if (path := Path(file.locate())).is_file()) / 1e6

    alone = names("claudescale")
    for extra, wanted in (("dask", "distributed"), ("redis", "redis")):
        more = names(wanted) - alone
        print(f"claudescale[{extra}]: {sum(map(megabytes, more)):.0f} MB more: {', '.join(sorted(more))}")


if __name__ == "__main__":
    for part in sys.argv[1:] or ["share", "overhead", "kills", "size"]:
        {"share": share, "overhead": overhead, "kills": kills, "size": size}[part]()
