"""How often the 90th percentiles hold that a plan tells after a pilot, and how far its figures are off.

Run: ``python tests/benchmarks/prediction_benchmark.py`` for the plan of each notebook and two with a long
tail of replies: 400 pilots of 20 and of 50 rows each, in ten worlds (four of a plan of 15,000 rows). A world
is a run of all rows by the real engine, with replies and latencies by a seed of its own; its pilots are drawn
from what it recorded, so nothing is sent for them, and are held against its own bill and its own minutes. 85%
to 95% ``covered`` keep the promise. A run that a limit paces takes the same minutes in each world: all are
below a 90th percentile that is ``wide`` of the estimate: there it must be narrow.

Or: ``python tests/benchmarks/prediction_benchmark.py [seeds] [pilots]``, for workloads of other kinds after
pilots of 50 rows that are really sent; 4 and 4 take some minutes. Virtual time: the figures are the same on
every machine. Dollars by batch are those of the same replies at batch prices; where a cache is asked for they
depend on hits that are best effort, and are left out. A batch has no minutes to be held against.

``covered`` is how often what was measured is not above the 90th percentile told; minutes within 5% and
dollars within 3% are the goals. ``floor`` is the median error that the sample alone explains: what 50 rows
leave open of the dollars, however they are reckoned.
"""

import multiprocessing
import os
import sys
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # before Polars is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import polars as pl
from predicted import KINDS, foretold, held, notebooks, ran, workload

ROWS = (400, 1_000, 2_500)
MEDIAN_OF_NORMAL = 0.6745
P90_OF_NORMAL = 1.2816


def case(given):
    """Return the predictions of one workload beside what it took."""
    kind, seed, pilots = given
    number = list(KINDS).index(kind)
    rows = ROWS[(seed + number) % len(ROWS)]
    return held(workload(kind, rows, seed * 101 + number), pilots, seed)


def table(found):
    """Return the errors of one group of predictions."""
    error = {name: (pl.col(name) - 1).abs() for name in ("minutes", "dollars", "batch")}
    floor = (pl.col("dollars_p90") / pl.col("dollars") - 1) / P90_OF_NORMAL * MEDIAN_OF_NORMAL
    return found.agg(
        predictions=pl.len(),
        binding=pl.col("binding").mode().sort().first(),
        minutes_median=error["minutes"].median(),
        minutes_p90=error["minutes"].quantile(0.9),
        minutes_worst=error["minutes"].max(),
        minutes_covered=(pl.col("minutes_p90") >= 1).mean(),
        dollars_median=error["dollars"].median(),
        dollars_p90=error["dollars"].quantile(0.9),
        dollars_worst=error["dollars"].max(),
        dollars_covered=(pl.col("dollars_p90") >= 1).mean(),
        floor=floor.median(),
        batch_median=error["batch"].median(),
        goal=pl.concat_str(
            pl.when(error["minutes"].median() <= 0.05).then(pl.lit("minutes ")).otherwise(pl.lit("")),
            pl.when(error["dollars"].median() <= 0.03).then(pl.lit("dollars")).otherwise(pl.lit("")),
        ),
    )


def shown(found):
    """Print errors in percent."""
    shares = [name for name, kind in found.schema.items() if kind == pl.Float64]
    texts = [
        pl.format("{}%", (pl.col(name) * 100).round(1)).alias(name.replace("_", "\n")) for name in shares
    ]
    options = {"tbl_rows": 60, "tbl_cols": 20, "tbl_width_chars": 190, "fmt_str_lengths": 40}
    with pl.Config(**options, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
        print(found.with_columns(texts).drop([name for name in shares if "_" in name]))


PILOTS, WORLDS, FEWER_WORLDS, LARGE = 400, 10, 4, 10_000


def promise(name):
    """Return how often the figures of one plan's pilots hold, by the rows of a pilot."""
    plan = notebooks()[name]
    worlds = FEWER_WORLDS if plan.plan.totals.rows > LARGE else WORLDS
    wholes = [ran(plan.plan, **({"seed": seed} | plan.api)) for seed in range(worlds)]
    found = []
    for rows in (20, 50):
        pilots = [
            foretold(whole, whole.pilot(rows, world * 1_000 + number))
            for world, whole in enumerate(wholes)
            for number in range(PILOTS // worlds)
        ]
        each = pl.DataFrame(pilots)
        figures = {
            f"{figure}_{what}": column
            for figure in ("dollars", "minutes")
            for what, column in {
                "covered": (pl.col(f"{figure}_p90") >= 1).mean(),
                "median": pl.col(figure).median() - 1,
                "deviation": pl.col(figure).std(),
                "wide": (pl.col(f"{figure}_p90") / pl.col(figure)).median() - 1,
            }.items()
        }
        found.append(each.select(kind=pl.lit(f"{name}, {rows} rows"), **figures))
    return pl.concat(found)


def main():
    if len(sys.argv) == 1:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            shown(pl.concat(pool.imap(promise, notebooks())))
        return
    seeds, pilots = (int(given) for given in (*sys.argv[1:], "4", "4")[:2])
    cases = [(kind, seed, pilots) for seed in range(1, seeds + 1) for kind in KINDS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # Polars does not survive a fork
        found = pl.concat(pool.imap(case, cases))
    shown(table(found.group_by("kind", maintain_order=True)))
    long = pl.when(pl.col("whole_minutes") > 0.5).then(pl.lit("over 30 s")).otherwise(pl.lit("under 30 s"))
    faulty = pl.col("kind").str.contains("overloaded|lost|ramp")
    group = pl.when(faulty).then(pl.lit("API failing")).otherwise(long).alias("kind")
    shown(table(found.group_by(group).agg(pl.all()).explode(pl.exclude("kind")).group_by("kind")))
    shown(table(found.group_by(pl.lit("all").alias("kind"))))


if __name__ == "__main__":
    main()
