"""What the ledger costs a row, and how fast a million rows come back, beside plain SQLite in the same run.

Run: ``python tests/benchmarks/ledger_benchmark.py [rows]`` with the package importable. CPU seconds of all
threads and kernel time included; each reading in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import polars as pl
from measured import measured, used

from claudescale.ledger import store
from claudescale.ledger.ledger import ATTEMPTS, Attempt, Batch, Ledger

GROUP = 50


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
    return pl.Series("key", [each.key for each in attempts(0, rows)])


def plain(path, name="FULL", key="key"):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {name}")
    columns = ", ".join(Attempt._fields[1:])
    connection.execute(f"CREATE TABLE IF NOT EXISTS attempts ({key}, {columns})")
    return connection


def plain_groups(connection, groups):
    statement = f"INSERT OR REPLACE INTO attempts VALUES ({', '.join('?' * len(Attempt._fields))})"
    for group in groups:
        connection.execute("BEGIN")
        connection.executemany(statement, group)
        connection.execute("COMMIT")


def ndjson_groups(file, groups):
    import json  # noqa: PLC0415

    for group in groups:
        file.write(b"".join(json.dumps(each).encode() + b"\n" for each in group))
        file.flush()
        os.fdatasync(file.fileno())


def file_groups(opened, groups):
    """Write the same lines as the ledger does, without its thread, its memory and the making of lines."""
    connection, opening = opened
    for group in groups:
        with store.transaction(connection):
            store.append(connection, opening, group)


def frame_of(rows):
    """Return attempts as `Ledger.extend` takes them."""
    columns = [
        pl.Series(name, values) for name, values in zip(Attempt._fields, zip(*rows, strict=True), strict=True)
    ]
    frame = pl.DataFrame(columns).with_columns(sent_at=(pl.col("sent_at") * 1e6).round().cast(pl.Int64))
    return frame.cast(dict(ATTEMPTS)).with_columns(final=True)


def ledger_frame(ledger, frame):
    ledger.extend(frame)


def ledger_groups(ledger, groups):
    for group in groups:
        for each in group:
            ledger.record(each, final=True)
        ledger.sync()


def writing(folder, rows):
    """Alternate short stretches of every way of writing, so that a noisy machine is noisy for all."""
    ways = {
        "ledger": (Ledger(folder / "a.ledger"), ledger_groups),
        "  of which the file": (store.opened(folder / "b.ledger", "run"), file_groups),
        "ledger.extend": (Ledger(folder / "c.ledger"), ledger_frame),
        "plain SQLite, no key": (plain(folder / "plain"), plain_groups),
        "plain SQLite, key indexed": (plain(folder / "keyed", key="key PRIMARY KEY"), plain_groups),
        "ndjson + fdatasync": ((folder / "ndjson").open("wb"), ndjson_groups),
    }
    spent = dict.fromkeys(ways, 0.0)
    step = max(rows // 20 // GROUP, 1) * GROUP
    for start in range(0, rows, step):
        groups = list(itertools.batched(attempts(start, min(start + step, rows)), GROUP))
        frame = frame_of(itertools.chain.from_iterable(groups))
        lines = [
            [(True, each.key, store.line(each, "run", final=True)) for each in group] for group in groups
        ]
        for name, (target, write) in ways.items():
            before = used()
            write(target, {file_groups: lines, ledger_frame: frame}.get(write, groups))
            spent[name] += used() - before
    for target, write in ways.values():
        (target[0] if write is file_groups else target).close()
    base = spent["plain SQLite, no key"]
    print(f"\nwriting {rows:,} rows, on the disk every {GROUP}: CPU us a row")
    for name, seconds in spent.items():
        print(f"  {name:32} {seconds / rows * 1e6:6.1f}   {seconds / base:5.2f} x plain SQLite")


def batches(folder, rows):
    """Time what a batch asks of the ledger, from the intent to the end."""
    wanted, path, spent = keys(rows), folder / "batch.ledger", {}
    batch = Batch("0" * 12, "api", "claude-haiku-5-5", rows, 0.0, batch_id="msgbatch_1")

    def timed(name, work):
        before = used()
        answer = work()
        spent[name] = used() - before
        return answer

    with Ledger(path) as ledger:
        for start in range(0, rows, 2_000):
            assert len(ledger.claim(wanted[start : start + 2_000].to_list())) == 2_000
        timed("intend", lambda: ledger.intend(batch, wanted.to_list()))
        timed("note", lambda: ledger.note(batch))
    with Ledger(path) as ledger:
        assert timed("adopt", lambda: ledger.adopt(wanted)) == [batch]
        for start in range(0, rows // 2, 5_000):
            made = (each._replace(batch_id=batch.batch_id) for each in attempts(start, start + 5_000))
            ledger.extend(frame_of(made))
        assert len(timed("held, half answered", lambda: ledger.held(batch.nonce))) == rows // 2
    with Ledger(path) as ledger:
        ledger.adopt(wanted)
        assert len(timed("recorded, half there", lambda: ledger.recorded(batch))) == rows // 2
        timed("end_batch", lambda: ledger.end_batch(batch._replace(state="collected")))
    print(f"\na batch of {rows:,} rows: CPU ms")
    for name, seconds in spent.items():
        print(f"  {name:32} {seconds * 1e3:6.0f}")


def busy_writing(folder):
    """How long until a group is on the disk while another thread never rests."""
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    with Ledger(folder / "busy.ledger") as ledger, closing(plain(folder / "busy")) as other:
        groups = list(itertools.batched(attempts(0, 20 * GROUP), GROUP))
        thread.start()
        times = {}
        for name, target, write in (("ledger", ledger, ledger_groups), ("plain SQLite", other, plain_groups)):
            start = time.perf_counter()
            write(target, groups)
            times[name] = (time.perf_counter() - start) / len(groups)
        stop.set()
        thread.join()
    print(f"\na group of {GROUP} on the disk beside a thread that never rests: ms")
    for name, seconds in times.items():
        print(f"  {name:32} {seconds * 1e3:6.0f}   {seconds / times['plain SQLite']:5.2f} x plain SQLite")


def fill(path, rows):
    with Ledger(path) as ledger:
        for each in attempts(0, rows):
            ledger.record(each, final=True)
            if len(ledger._queue) > 50_000:
                ledger.sync()


def resume(path, wanted):
    with Ledger(path) as ledger:
        assert ledger.answered(wanted).all()


def plain_resume(path, wanted):
    with closing(plain(path)) as connection:
        known = {key for (key,) in connection.execute("SELECT key FROM attempts")}
    assert all(key in known for key in wanted)


def replies(path, wanted):
    with Ledger(path) as ledger:
        assert ledger.replies(wanted).height == len(wanted)


def plain_replies(path, wanted):
    with closing(plain(path)) as connection:
        rows = connection.execute("SELECT * FROM attempts").fetchall()
    frame = pl.DataFrame(rows, schema=list(Attempt._fields), orient="row", infer_schema_length=None)
    assert frame.filter(pl.col("key").is_in(wanted.implode())).height == len(wanted)


def few(path, wanted):
    with Ledger(path) as ledger:
        assert ledger.replies(wanted.head(1_000)).height == 1_000


def claim(path, wanted):
    with Ledger(path) as ledger:
        for start in range(0, 100_000, 2_000):
            assert ledger.claim([f"{number:032x}" for number in range(start, start + 2_000)])


def measure(pipe, work, path, rows):
    wanted = keys(rows)
    _, cpu, wall, memory = measured(lambda: work(path, wanted))
    pipe.send((wall, cpu, memory))


def alone(work, path, rows):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, work, path, rows))
    process.start()
    found = receiver.recv()
    process.join()
    return found


def live_view(rows):
    """Ask for all attempts of a run after every 250 more, as a chart does four times a second."""
    with Ledger(None) as ledger:
        spent = 0.0
        for start in range(0, rows, 250):
            for each in attempts(start, start + 250):
                ledger.record(each, final=True)
            before = used()
            ledger.attempts(run=ledger.run)
            spent += used() - before
    print(f"\nattempts() after every 250 of {rows:,} rows: {spent / (rows / 250) * 1e3:.2f} ms CPU a call")


def main(rows):
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as made:
        folder = Path(made)
        print(f"SQLite {sqlite3.sqlite_version}, Polars {pl.__version__}")
        writing(folder, min(rows, 200_000))
        batches(folder, 100_000)
        busy_writing(folder)
        live_view(min(rows, 100_000))
        fill(folder / "full.ledger", rows)
        with closing(plain(folder / "full", "OFF", "key PRIMARY KEY")) as connection:
            plain_groups(connection, [attempts(0, rows)])
        sizes = [(folder / each).stat().st_size / 1e6 for each in ("full.ledger", "full")]
        print(f"\nfiles of {rows:,} rows: ledger {sizes[0]:.0f} MB, plain SQLite {sizes[1]:.0f} MB")
        print(f"\nreading {rows:,} rows: wall s, CPU s, memory MB")
        for name, work, file, base in (
            ("resume: answered(all keys)", resume, "full.ledger", (plain_resume, "full")),
            ("replies(all keys)", replies, "full.ledger", (plain_replies, "full")),
            ("replies(1,000 keys)", few, "full.ledger", None),
            ("claim(100,000 keys, 2,000 each)", claim, "full.ledger", None),
        ):
            wall, cpu, memory = alone(work, folder / file, rows)
            print(f"  {name:32} {wall:6.2f} {cpu:6.2f} {memory:+7.0f}")
            if base:
                other = alone(base[0], folder / base[1], rows)
                print(f"    {'plain SQLite':30} {other[0]:6.2f} {other[1]:6.2f} {other[2]:+7.0f}", end="")
                print(f"   ledger {cpu / other[1]:.2f} x its CPU")


if __name__ == "__main__":
    main(int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 1_000_000)
