"""`spend`: what the ledgers of a folder say was paid, without modifying any of them."""

import datetime as dt
import math
import sqlite3
import subprocess
import sys
from contextlib import closing

import polars as pl
import pytest
from ledger_rows import attempt, records

from claudescale.errors import LedgerError
from claudescale.ledger.ledger import SPEND, spend
from claudescale.ledger.store import Store

LOCKED = """import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
    except OSError:
        print("locked")
"""
"""Says if SQLite's shared lock on a file is held: 510 bytes from 1,073,741,826 on (sqlite's os.h)."""


def seen(folder):
    """Return each file of a folder with its content."""
    return {each.name: each.is_file() and each.read_bytes() for each in folder.iterdir()}


def test_what_was_spent_by_day_ledger_model_and_mode(tmp_path):
    """Sums cover all runs of all ledgers, with the simulator's apart; an unknown price stays unknown."""
    night = {"sent_at": 1_764_028_799.0}  # a second before midnight, UTC
    with closing(Store(tmp_path / "a.ledger")) as one, closing(Store(tmp_path / "b.ledger")) as two:
        rows = [attempt(1, **night), attempt(2, **night, cache_read_input_tokens=100)]
        one.extend(records([*rows, attempt(3, **night, simulated=True), attempt(1, sent_at=1_764_028_800.0)]))
        two.extend(records([attempt(4, **night, mode="batch", dollars=math.nan), attempt(5, **night)]))
    (tmp_path / "notes.txt").write_text("no ledger")
    (tmp_path / "empty").touch()
    (tmp_path / "folder.ledger").mkdir()
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE attempts (x)")
    before = seen(tmp_path)
    spent = spend(tmp_path)
    assert seen(tmp_path) == before
    assert spent.schema == SPEND
    first, second = dt.date(2025, 11, 24), dt.date(2025, 11, 25)
    counts = spent.select("date", "ledger", "mode", "requests", "input_tokens", "output_tokens", "simulated")
    assert sorted(counts.rows()) == [
        (first, "a.ledger", "live", 1, 3, 7, True), (first, "a.ledger", "live", 2, 103, 14, False),
        (first, "b.ledger", "batch", 1, 4, 7, False), (first, "b.ledger", "live", 1, 5, 7, False),
        (second, "a.ledger", "live", 1, 1, 7, False),
    ]  # fmt: skip
    assert spent["date"].is_sorted()
    assert spent.filter(ledger="a.ledger", simulated=False)["dollars"].to_list() == pytest.approx([0.3, 0.1])
    assert spent.filter(mode="batch")["dollars"].is_nan().all()


def test_a_run_that_writes_is_read_and_not_disturbed(path):
    """Rows on disk count while this process continues writing; without its locks rows would be lost."""
    with closing(Store(path)) as store:
        for number in range(1, 4):
            store.record(attempt(number), final=True)
            store.sync()
            assert spend(path.parent)["requests"].sum() == number
        other = subprocess.run(
            [sys.executable, "-c", LOCKED, path], capture_output=True, text=True, check=True
        )
        assert other.stdout == "locked\n"
    with closing(Store(path)) as store:
        assert store.attempts().height == 3


@pytest.mark.parametrize("wrong", ["is damaged", "is a ledger of format 3"])
def test_a_ledger_that_cannot_be_read_is_named(path, wrong):
    """A damaged ledger, or one of another format, is named in a warning, and the others are read."""
    for name in ("a.ledger", "b.ledger"):
        with closing(Store(path.with_name(name))) as store:
            store.extend(records([attempt(number) for number in range(300)]))
    if wrong == "is damaged":
        path.write_bytes(path.read_bytes()[:8_192] + b"\xff" * 20_000)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 3")
    with pytest.warns(UserWarning, match=rf"spending of a\.ledger is missing: .*{wrong}"):
        spent = spend(path.parent)
    assert spent.select("ledger", "requests").rows() == [("b.ledger", 300)]


def test_a_folder_without_ledgers_and_one_that_is_not_there(tmp_path):
    """Without ledgers the frame has no rows; a missing folder is an error that names it."""
    assert spend(tmp_path).equals(pl.DataFrame(schema=SPEND))
    with pytest.raises(LedgerError, match=r"no folder .*nowhere"):
        spend(tmp_path / "nowhere")
