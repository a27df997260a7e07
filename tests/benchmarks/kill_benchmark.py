"""Kill -9 at ten random moments of a run: rows lost, and rows paid again by the server's own count.

Run: ``python tests/benchmarks/kill_benchmark.py [rows] [kills] [speed]`` with the package importable. The
simulator runs in its own process, enforces the limits by the second and counts what it billed. The run is
a process that is killed and started again on the same ledger until it finishes.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import polars as pl

import claudescale as cs

MODEL = "claude-haiku-5-5"


def run(url, ledger, rows):
    """Send the missing rows; print how many are answered and the most calls in flight."""
    texts = [f"Order {number}: late again, and the box was open." for number in range(rows)]
    frame = pl.DataFrame({"text": texts})
    plan = cs.plan(frame, "Name the complaint: {text}", model=MODEL, max_tokens=100)
    client = cs.connect(base_url=url, api_key="simulated")
    ended = cs.wait(plan.run(client, ledger=ledger, progress=False))
    print(ended.results["reply"].count())


def stats(url):
    with urllib.request.urlopen(f"{url}/simulator/stats") as answer:
        return json.load(answer)


def main(rows, kills, speed):
    rng = random.Random(1)
    command = [sys.executable, "-m", "claudescale.simulator", "--port", "0", "--tier", "start"]
    command += ["--bucket-seconds", "1", "--speed", speed]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            url = "http" + server.stdout.readline().split("http", 1)[1].split()[0]
            child = [sys.executable, __file__, "run", url, str(Path(folder) / "killed.ledger"), str(rows)]
            killed = under_way = 0
            while killed < kills:
                calls = stats(url)["calls"]
                with subprocess.Popen(child, stdout=subprocess.DEVNULL) as process:
                    while stats(url)["calls"] < calls + 50 and process.poll() is None:
                        time.sleep(0.02)
                    time.sleep(rng.uniform(0.0, 1.0))
                    if process.poll() is not None:
                        break
                    process.kill()
                    killed += 1
                    under_way += stats(url)["in_flight"]
            last = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
            answered = int(last.stdout)
            counted = stats(url)
            again = counted["billed_rows"] - counted["distinct_rows_billed"]
            print(f"{rows:,} rows, killed {killed} times at random moments")
            print(f"rows answered at the end: {answered:,}; lost: {rows - answered}")
            print(f"replies paid for again, by the server's count: {again}")
            print(f"in flight at the moments of the kills, by the server's count: {under_way}")
        finally:
            server.terminate()


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        given = dict(enumerate(sys.argv))
        main(int(given.get(1, 2_000)), int(given.get(2, 10)), given.get(3, "4"))
