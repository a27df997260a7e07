"""A million rows in one process, stage by stage, and half as many: seconds, memory, cost of doubling.

Run: ``python tests/benchmarks/million_benchmark.py [rows] [--markdown]`` with the package importable. Nothing
is sent: calls are recorded as a run records them, a million answers and a refusal for every hundred.
Each stage has a baseline in the same process: the obvious code for it in plain Polars, hashlib or SQLite.
CPU includes kernel time and all threads; memory is the stage's highest addition to the memory before it.
A stage without a quadratic step takes about twice the CPU for twice the rows.

The last stages read a Parquet file in a separate process: a plan over `pl.scan_parquet`, and `run_parts`
over it with every answer in the ledger. Their memory must stay below twice the input.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from measured import measured, megabytes

import claudescale as cs
from claudescale.api import prices
from claudescale.api.limits import Limits
from claudescale.ledger.records import Attempt
from claudescale.ledger.store import Store
from claudescale.running.meter import Meter, Slice
from claudescale.running.runs import run_parts
from claudescale.views import run_charts

MODEL, PROMPT = "claude-haiku-5-5", "Name it: {text}"
API = "simulator seed=0"
STARTED_AT, REQUESTS_PER_MINUTE, GROUP, BLOCK = 1_795_000_000.0, 4_000, 50, 4_000
LIMITS = Limits(
    requests_per_minute=REQUESTS_PER_MINUTE, input_tokens_per_minute=4e6, output_tokens_per_minute=8e5
)


def frame_of(rows):
    """Return that many different texts of about 300 characters."""
    number = pl.int_range(rows, eager=True).cast(pl.String)
    words = " the parcel came late, the box was open, and nobody answers the phone. "
    return pl.DataFrame({"text": "Order " + number + words * 4})


def attempts_of(keys):
    """Yield the attempts of a run over `keys`, and whether each is final: one in a hundred refused first."""
    drawn = random.Random(1)
    for number, key in enumerate(keys):
        sent_at = STARTED_AT + number * 60 / REQUESTS_PER_MINUTE
        if number % 100 == 7:
            yield _attempt(key, sent_at, 0.05, 429, "rate_limit_error"), False
            sent_at += 2.0
        yield _attempt(key, sent_at, drawn.lognormvariate(0.3, 0.4)), True


def _attempt(key, sent_at, seconds, status=200, error=None):
    answered = error is None
    return Attempt(
        key, "run", "live", None, MODEL, sent_at, seconds, status, error, error and "This would exceed it.",
        f"req_{key}", "end_turn" if answered else None, f'It is "shipping", says {key}' if answered else None,
        92 * answered, 0, 0, 0, 40 * answered, 0, 0.0003 * answered, simulated=True,
    )  # fmt: skip


class Stages:
    """The stages in order; each leaves the input of the next one."""

    def __init__(self, rows, folder):
        self.frame = frame_of(rows)
        self.path = folder / "million.ledger"
        self.parquet = folder / "million.parquet"
        self.frame.write_parquet(self.parquet)
        self.folder = folder
        self.minutes = rows / REQUESTS_PER_MINUTE
        # One-time loading is excluded.
        _ = self.planned(frame_of(10)).options
        self.pictures(self.frame_of_attempts(["a", "b", "c"]))

    @staticmethod
    def frame_of_attempts(keys):
        with closing(Store(None)) as ledger:
            for attempt, final in attempts_of(keys):
                ledger.record(attempt, final=final)
            return ledger.attempts()

    @staticmethod
    def planned(frame):
        return cs.plan(frame, PROMPT, model=MODEL, tier=LIMITS)

    def plan(self):
        self.plan_made = self.planned(self.frame)
        return self.plan_made.options

    def distinct_lengths(self):
        text = pl.col("text")
        distinct = self.frame.lazy().select(text=text.hash(), characters=text.str.len_chars()).unique()
        return distinct.select(pl.col("characters").sum()).collect(engine="streaming")

    def prepare(self):
        self.work = self.plan_made.compiled.work(API)

    def digests(self):
        return [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in self.frame["text"]]

    def render(self):
        """Make every body, in blocks as a run does."""
        rows = self.work.requests["row"]
        starts = range(0, len(rows), BLOCK)
        return sum(len(body) for at in starts for body in self.work.bodies(rows.slice(at, BLOCK)))

    def dumps(self):
        same = {"model": MODEL, "max_tokens": 1024}
        messages = ({"role": "user", "content": "Name it: " + text} for text in self.frame["text"])
        return sum(len(json.dumps(same | {"messages": [each]}).encode()) for each in messages)

    def record(self):
        """Claim the rows and record every call, with the disk forced as in a run."""
        keys = self.work.requests["key"]
        with closing(Store(self.path)) as ledger:
            for start in range(0, len(keys), BLOCK):
                for attempt, final in attempts_of(ledger.claim(keys.slice(start, BLOCK).to_list())):
                    ledger.record(attempt, final=final)
                ledger.sync()

    def plain_record(self):
        """Do the same with plain SQLite: the same disk, groups of rows, and a key."""
        connection = sqlite3.connect(self.folder / "plain.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        columns = ", ".join(Attempt._fields[1:])
        connection.execute(f"CREATE TABLE attempts (key TEXT PRIMARY KEY, {columns})")
        statement = f"INSERT OR REPLACE INTO attempts VALUES ({', '.join('?' * len(Attempt._fields))})"
        attempts = (attempt for attempt, _ in attempts_of(self.work.requests["key"].to_list()))
        while group := list(itertools.islice(attempts, GROUP)):
            connection.execute("BEGIN")
            connection.executemany(statement, group)
            connection.execute("COMMIT")
        connection.close()

    def resume(self):
        """Run the plan again: every row is keyed, looked up and counted, and nothing is sent."""
        with cs.Simulator() as simulator:
            run = cs.wait(self.plan_made.run(simulator.client(), ledger=self.path, progress=False))
        assert run.summary["requests"].item() == 0
        assert run.summary["answered"].item() == self.frame.height

    def read(self):
        with closing(Store(self.path)) as ledger:
            self.replies = ledger.replies(self.work.requests["key"])

    def plain_read(self):
        connection = sqlite3.connect(self.folder / "plain.sqlite")
        found = pl.DataFrame(
            connection.execute("SELECT * FROM attempts").fetchall(),
            schema=list(Attempt._fields),
            orient="row",
        )
        connection.close()
        return found

    def results(self):
        assert self.work.results(self.replies, simulated=True)["reply"].null_count() == 0

    def joined(self):
        keyed = self.frame.with_columns(self.work.keys)
        return keyed.join(self.replies.select("key", "reply"), on="key", how="left", maintain_order="left")

    def read_attempts(self):
        with closing(Store(self.path)) as ledger:
            self.attempts = ledger.attempts()

    def bills(self):
        return prices.bill(self.attempts), prices.waste(self.attempts), prices.savings(self.attempts)

    def by_minute(self):
        minute = pl.col("sent_at").dt.truncate("1m")
        return self.attempts.group_by(minute).agg(
            pl.len(), pl.col("dollars").sum(), pl.col("seconds").median()
        )

    def pictures(self, attempts=None):
        """Draw the pictures of `run.plot`, including the PNG, and return the size of what is kept."""
        attempts = self.attempts if attempts is None else attempts
        second = (pl.col("sent_at").dt.epoch("us") / 1e6 - STARTED_AT).cast(pl.Int64)
        tokens = pl.col("input_tokens", "output_tokens").sum()
        counted = attempts.group_by(second=second).agg(pl.len(), tokens).rows()
        meter = Meter(model=MODEL)
        meter._live = {second: Slice(calls, 0, calls, *tokens) for second, calls, *tokens in counted}
        slices = meter.rates()
        ended = (pl.col("sent_at").dt.epoch("us") / 1e6 + pl.col("seconds") - STARTED_AT) / 60
        paid = attempts.filter(pl.col("dollars") > 0).select(ended.alias("minute"), "dollars").sort("minute")
        shown = (
            run_charts.throughput(slices, requests_per_minute=REQUESTS_PER_MINUTE),
            run_charts.tokens(slices, limits={"input_tokens": 4e6, "output_tokens": 8e5}),
            run_charts.latency(attempts),
            run_charts.spending(paid.with_columns(pl.col("dollars").cum_sum()), estimate_dollars=300.0),
            run_charts.buckets(run_charts.levels(attempts, LIMITS.per_minute, STARTED_AT)),
        )
        return [len(json.dumps(each._repr_mimebundle_(), default=len)) for each in shown]


def planned_from(folder):
    """Return a plan over the file of rows."""
    return Stages.planned(pl.scan_parquet(Path(folder) / "million.parquet"))


def plan_of_file(folder):
    """Plan the file, including price and time."""
    return planned_from(folder).options


def whole_of_file(folder):
    """Read all of the file at once, as the baseline."""
    return pl.read_parquet(Path(folder) / "million.parquet").select(pl.col("text").hash().n_unique())


def parts_of_file(folder):
    """Run the file slice by slice into files, with every answer in the ledger."""

    async def run(client):
        path = Path(folder)
        return await run_parts(
            planned_from(path), path / "parts", client, ledger=path / "million.ledger", progress=False
        )

    with cs.Simulator() as simulator:
        return asyncio.run(run(simulator.client())).select(pl.col("reply").count()).collect()


FROM_FILE = {  # by name: stages in a process of their own, which never sees more than the file
    "plan over `scan_parquet`": plan_of_file,
    "`run_parts` over `scan_parquet`, all answered": parts_of_file,
    "(the file read at once)": whole_of_file,
}


STAGES = {  # by name: the stage, and its baseline
    "plan: `plan.options`": ("plan", "distinct_lengths"),
    "keys of all rows": ("prepare", "digests"),
    "bodies of all rows": ("render", "dumps"),
    "claim and record every call": ("record", "plain_record"),
    "run again, nothing to send": ("resume", None),
    "replies from the ledger": ("read", "plain_read"),
    "`results`": ("results", "joined"),
    "attempts from the ledger": ("read_attempts", "plain_read"),
    "bill, waste, savings": ("bills", "by_minute"),
    "five pictures, PNG and all": ("pictures", "by_minute"),
}


def take(rows):
    """Print a line of JSON for each stage."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        stages = Stages(rows, Path(folder))
        for name, (stage, baseline) in STAGES.items():
            found = measured(getattr(stages, stage))[1:]
            beside = measured(getattr(stages, baseline))[1:] if baseline else None
            print(json.dumps({"stage": name, "ours": found, "baseline": beside}), flush=True)
        last = {"peak": megabytes("VmHWM"), "ledger": stages.path.stat().st_size / 1e6}
        del stages
        for name in FROM_FILE:
            command = [sys.executable, __file__, "--from-file", name, folder]
            found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            ours = json.loads(found.splitlines()[-1])
            print(json.dumps({"stage": name, "ours": ours, "baseline": None}), flush=True)
        print(json.dumps(last), flush=True)


def taken(rows):
    """Return the stages of a separate process, and its peak."""
    command = [sys.executable, __file__, "--take", str(rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            if line.startswith("{"):
                lines.append(json.loads(line))
                print(rows, line.strip(), file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    *stages, last = lines
    return {each["stage"]: each for each in stages}, last


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--take", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--from-file", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.from_file:
        name, folder = given.from_file
        _ = Stages.planned(frame_of(10)).options  # one-time loading
        print(json.dumps(measured(lambda: FROM_FILE[name](folder))[1:]))
        return
    if given.take:
        take(given.take)
        return
    (half, _), (whole, last) = taken(given.rows // 2), taken(given.rows)
    size = frame_of(given.rows).estimated_size("mb")
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: {given.rows:,} rows, {size:.0f} MB, "
        f"a ledger of {last['ledger']:.0f} MB; "
        f"at most {last['peak']:.0f} MB in the process of the stages before the file's"
    )
    head = ("stage", "CPU s", "wall s", "memory MB", "CPU over the baseline's", "CPU over half the rows'")
    table = [head]
    for name, each in whole.items():
        (cpu, wall, memory), beside = each["ours"], each["baseline"]
        ratio = f"{cpu / beside[0]:.2f}" if beside else ""
        doubled = f"{cpu / half[name]['ours'][0]:.2f}"
        table.append((name, f"{cpu:.1f}", f"{wall:.1f}", f"{memory:+.0f}", ratio, doubled))
    if given.markdown:
        for row in (table[0], ["---"] * len(head), *table[1:]):
            print(f"| {' | '.join(row)} |")
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
