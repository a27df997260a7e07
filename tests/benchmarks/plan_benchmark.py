"""A million rows planned: seconds and peak memory; and what importing the package takes.

Run: ``python tests/benchmarks/plan_benchmark.py [rows]`` with the package importable. The baseline in the
same run is one pass of Polars over the same text: its length in characters, summed.
"""

import resource
import subprocess
import sys
import time

import polars as pl

import claudescale as cs


def seconds_of(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    number = pl.int_range(rows, eager=True).cast(pl.String)
    words = " the parcel came late, the box was open, and nobody answers the phone. "
    frame = pl.DataFrame({"text": "Order " + number + words * 4})
    cs.plan(frame.head(10), "Name it: {text}", model="claude-haiku-5-5").options  # noqa: B018  # loads the prices
    before = megabytes()
    baseline = min(seconds_of(lambda: frame["text"].str.len_chars().sum()) for _ in range(3))
    plan = min(
        seconds_of(lambda: cs.plan(frame, "Name it: {text}", model="claude-haiku-5-5", tier="start").options)
        for _ in range(3)
    )
    length = frame["text"].str.len_chars().mean()
    print(f"{rows:,} rows of {length:.0f} characters, {frame.estimated_size('mb'):.0f} MB")
    more = megabytes() - before
    print(f"plan.options {plan:.2f} s ({plan / baseline:.1f} x summing the lengths), +{more:.0f} MB at most")
    for module in ("polars", "claudescale"):
        timed = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        command = [sys.executable, "-c", timed]
        took = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
        print(f"import {module} {min(float(each.stdout) for each in took):.2f} s")


if __name__ == "__main__":
    main()
