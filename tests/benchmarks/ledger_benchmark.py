"""The ledger's cost per row next to plain SQLite in the same run, and the time to read a million rows.

Run: ``python tests/benchmarks/ledger_benchmark.py [rows]`` with this package importable, or the commit tagged
`mended`. CPU seconds include all threads and kernel time; each reading has its own process.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import polars as pl
from measured import measured, used

try:
    from claudescale.ledger.records import ATTEMPTS, Attempt
    from claudescale.ledger.store import Store
except ImportError:  # the commit tagged `mended`
    from claudescale.ledger import ATTEMPTS, Attempt
    from claudescale.ledger import Ledger as Store

GROUP, CLAIM = 50, 2_000


def attempts(start, stop):
    for number in range(start, stop):
        yield Attempt(
            hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(), "run", "live", None,
            "claude-haiku-5-5", 1_764_000_000 + number / 1_000, 1.234567 + number * 1e-6, 200, None, None,
            f"req_{number:024d}", "end_turn",
            f'The complaint number {number} is about "shipping",\nand it is é ' + "x" * 100,
            812 + number % 100, 0, 0, 0, 90 + number % 7, 0, 0.00123 + number * 1e-9, simulated=False,
        )  # fmt: skip


def keys(rows):
    return pl.Series([each.key for each in attempts(0, rows)])


def plain(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"""PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE attempts (id INTEGER PRIMARY KEY, {", ".join(Attempt._fields)});
        CREATE INDEX answers ON attempts(key)""")
    return connection


def plain_groups(connection, groups):
    marks = ", ".join("?" * len(Attempt._fields))
    for group in groups:
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO attempts ({', '.join(Attempt._fields)}) VALUES ({marks})", group)
        connection.execute("COMMIT")


def store_groups(store, groups):
    for group in groups:
        for each in group:
            store.record(each, final=True)
        store.sync()


def claimed_groups(store, groups):
    claims = [each.key for group in groups for each in group]
    for start in range(0, len(claims), CLAIM):
        assert store.claim(claims[start : start + CLAIM])
    store_groups(store, groups)


def frames(store, groups):
    rows = list(itertools.chain.from_iterable(groups))
    frame = pl.DataFrame(rows, schema=dict(ATTEMPTS) | {"sent_at": pl.Float64}, orient="row")
    moments = (pl.col("sent_at") * 1e6).round().cast(pl.Int64).cast(ATTEMPTS["sent_at"])
    before = used()
    store.extend(frame.with_columns(moments, final=pl.lit(value=True)))
    return used() - before


def writing(folder, rows):
    """Alternate short stretches of every way of writing, so that noise affects all of them alike."""
    ways = {
        "record": (Store(folder / "a"), store_groups),
        "claim + record": (Store(folder / "b"), claimed_groups),
        "extend": (Store(folder / "c"), frames),
        "plain SQLite, key indexed": (plain(folder / "d"), plain_groups),
    }
    spent = dict.fromkeys(ways, 0.0)
    step = max(rows // 20 // GROUP, 1) * GROUP
    for start in range(0, rows, step):
        groups = [list(attempts(group, group + GROUP)) for group in range(start, start + step, GROUP)]
        for name, (target, write) in ways.items():
            before = used()
            spent[name] += write(target, groups) or used() - before
    for target, _ in ways.values():
        target.close()
    base = spent["plain SQLite, key indexed"]
    print(f"\nwriting {rows:,} rows, on the disk every {GROUP}: CPU us a row")
    for name, seconds in spent.items():
        print(f"  {name:32} {seconds / rows * 1e6:6.1f}   {seconds / base:5.2f} x plain SQLite, key indexed")


def fill(path, rows):
    with closing(Store(path)) as store:
        for start in range(0, rows, 10_000):
            frames(store, [attempts(start, start + 10_000)])


QUESTIONS = {
    "answered(all keys)": lambda store, wanted: store.answered(wanted).all(),
    "replies(all keys)": lambda store, wanted: store.replies(wanted).height == len(wanted),
    "replies(all, key reply error)": lambda store, wanted: store.replies(wanted, ["reply", "error"]).height,
    "attempts()": lambda store, wanted: store.attempts().height == len(wanted),
    "attempts(), 6 columns": lambda store, wanted: store.attempts(columns=list(ATTEMPTS)[5:11]).height,
}


def ask(pipe, name, path, rows):
    wanted = keys(rows)
    with closing(Store(path)) as store:
        try:
            _, *figures = measured(lambda: QUESTIONS[name](store, wanted))
        except TypeError:  # columns cannot be chosen there
            figures = [float("nan")] * 3
    pipe.send(figures)


def reading(path, rows):
    print(f"\nreading {rows:,} rows from {path.stat().st_size / 1e6:.0f} MB: CPU s, wall s, memory MB")
    context = multiprocessing.get_context("spawn")
    for name in QUESTIONS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=ask, args=(sender, name, path, rows))
        process.start()
        cpu, wall, memory = receiver.recv()
        process.join()
        print(f"  {name:32} {cpu:6.2f} {wall:6.2f} {memory:+7.0f}")


if __name__ == "__main__":
    size = int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as made:
        writing(Path(made), min(size, 100_000))
        fill(Path(made) / "full.ledger", size)
        reading(Path(made) / "full.ledger", size)
