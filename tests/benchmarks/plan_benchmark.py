"""A million rows planned, once and for 12 choices: seconds and peak memory, and the time of imports.

Run: ``python tests/benchmarks/plan_benchmark.py [rows]`` with the package importable. All texts differ, so
identical rows save nothing. The baseline in the same run is the minimum work of any plan: Polars finds the
distinct texts and sums their lengths. The choices are 3 models on 2 tiers, live and by batch.
"""

import resource
import subprocess
import sys

import polars as pl
from measured import measured

import claudescale as cs

MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"]
TIERS = ["start", "build"]
ROUNDS = 3


def best(work):
    """Return the least wall seconds of some rounds, that round's CPU seconds, and the most memory in MB."""
    rounds = [measured(work)[1:] for _ in range(ROUNDS)]
    cpu, wall, _ = min(rounds, key=lambda each: each[1])
    return wall, cpu, max(memory for *_, memory in rounds)


def texts(rows):
    """Return that many different texts."""
    number = pl.int_range(rows, eager=True).cast(pl.String)
    words = " the parcel came late, the box was open, and nobody answers the phone. "
    return pl.DataFrame({"text": "Order " + number + words * 4})


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    frame = texts(rows)

    def plan():
        return cs.plan(frame, "Name it: {text}", model=MODELS[0], tier=TIERS[0])

    def lengths():
        text = pl.col("text")
        distinct = frame.lazy().select(text=text.hash(), characters=text.str.len_chars()).unique()
        return distinct.select(pl.col("characters").sum()).collect(engine="streaming")

    cs.plan(frame.head(10), "Name it: {text}", model=MODELS[0]).compare(model=MODELS)  # loads the prices
    length = frame["text"].str.len_chars().mean()
    print(f"{rows:,} rows of {length:.0f} characters, {frame.estimated_size('mb'):.0f} MB")
    base = best(lengths)
    known = plan()
    _ = known.options
    for name, work in (
        ("distinct lengths (baseline)", lengths),
        ("plan.options", lambda: plan().options),
        ("12 choices, rows unread", lambda: plan().compare(model=MODELS, tier=TIERS, mode=["live", "batch"])),
        ("12 choices, rows read", lambda: known.compare(model=MODELS, tier=TIERS, mode=["live", "batch"])),
    ):
        wall, cpu, memory = base if work is lengths else best(work)
        figures = f"{wall:6.3f} s  {cpu:6.3f} s CPU  {wall / base[0]:5.2f} x baseline  +{memory:4.0f} MB"
        print(f"{name:28} {figures}")
    for module in ("polars", "claudescale"):
        timed = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        command = [sys.executable, "-c", timed]
        took = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
        print(f"import {module} {min(float(each.stdout) for each in took):.2f} s")
    print(f"peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
