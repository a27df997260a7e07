"""How often a plan's 90th percentiles after a pilot hold, and the error of its figures.

Run: ``python tests/benchmarks/prediction_benchmark.py [worlds] [pilots]``; 10 and 40 take a quarter of an
hour. A world is a run of all rows by the real engine, with replies and latencies from its own seed. Its
pilots of 20 and of 50 rows are drawn from its records, so nothing is sent for them, and are compared with
its bill and its minutes. In virtual time the figures are the same on every machine.

``covered`` is how often the measured figure does not exceed the predicted 90th percentile; 85% to 95% keep
the promise. ``wide`` is the distance from the estimate to the 90th percentile. A run paced by a limit takes
the same minutes in each world, so all are below the 90th percentile, which must be narrow there. The same
holds for the dollars of a cached prompt.
"""

import multiprocessing
import os
import sys
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # before Polars is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import polars as pl
from predicted import CASES, INPUT, OPUS, OUTPUT, SECONDS, kept, limits, long_tailed, resampled

LEVELS = {"level": pl.Enum(["first day", "every day", "expert"])}
LEVEL = {"prompt": "For whom is this?\n{doc}", "returns": LEVELS}


def echo(body, _seed):
    """Answer with the whole prompt: replies as long as the texts, as in a translation."""
    return body["messages"][-1]["content"]


CASES.update(
    {
        # Plans of the notebooks, on limits that are enforced by the second.
        "summary": ({"prompt": "What is it?\n{doc}", "returns": LEVELS | {"summary": pl.String}}, SECONDS),
        "level": (LEVEL, SECONDS),
        "level, tier 1": (LEVEL | {"tier": 1}, SECONDS),
        "level, build": (LEVEL | {"tier": "build"}, SECONDS),
        "level, Opus": (LEVEL | {"model": OPUS}, SECONDS),
        "explained": (
            {"prompt": "Explain this in one sentence.\n{doc}", "max_tokens": 120},
            SECONDS | {"faults": {500: 0.01, "drop_after": 0.01}},
        ),
        "long tail": (
            {"prompt": "Write about: {doc}", "max_tokens": 8_000},
            SECONDS | {"replies": long_tailed},
        ),
        # Each limit in turn, enforced by the minute, and an API that fails.
        "requests bind": ({"tier": limits(300)}, {}),
        "input binds, by the second": ({"tier": INPUT}, SECONDS),
        "output binds, translated": (
            {"tier": OUTPUT, "prompt": "Say {text}", "max_tokens": 2_000},
            {"replies": echo},
        ),
        "8 at once": ({"tier": limits(), "concurrency": 8}, {}),
        "8 at once, overloaded": ({"tier": limits(), "concurrency": 8}, {"faults": {529: 0.05}}),
        "answers lost": ({"tier": OUTPUT}, {"faults": {"drop_after": 0.03, 500: 0.02}}),
    }
)


def promise(given):
    """Return how often the figures of one plan's pilots hold, by the rows of a pilot."""
    name, worlds, pilots = given
    found = kept(resampled(name, worlds=worlds, pilots=pilots))
    return found.select(pl.format("{}, {} rows", pl.lit(name), "pilot_rows").alias("kind"), pl.all())


def main():
    worlds, pilots = (int(given) for given in (*sys.argv[1:], "10", "40")[:2])
    options = {"tbl_rows": 60, "tbl_cols": 20, "tbl_width_chars": 190, "fmt_str_lengths": 40}
    found = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # Polars does not survive a fork
        for case in pool.imap(promise, [(name, worlds, pilots) for name in CASES]):
            print(case["kind"][0], flush=True)
            found.append(case.drop("pilot_rows"))
    percent = [
        pl.format("{}%", (pl.col(name) * 100).round(1)).alias(name.replace("_", "\n"))
        for name in found[0].columns[1:]
    ]
    with pl.Config(**options, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
        print(pl.concat(found).select("kind", *percent))


if __name__ == "__main__":
    main()
