"""The file: plain SQL reads it, defects are described in words, and `spend` sums what was paid."""

import datetime as dt
import errno
import math
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import polars as pl
import pytest
from ledger_rows import attempt, expected, keys, records
from polars.testing import assert_frame_equal

import claudescale as cs
from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger import store as store_module
from claudescale.ledger.ledger import SPEND
from claudescale.ledger.records import ATTEMPTS
from claudescale.ledger.store import Store

fcntl = pytest.importorskip("fcntl")


def test_the_public_ledger(tmp_path):
    """It reads and exports recorded runs like any SQLite program; only its owner can read the export."""
    path = tmp_path / "?a#b%20.ledger"
    rows = [attempt(1), attempt(2, error="overloaded_error")]
    with closing(Store(path, "one")) as store, cs.Ledger(str(path)) as ledger:
        store.extend(records(rows))
        assert_frame_equal(ledger.attempts(), expected(rows, "one"))
        assert ledger.attempts(run="two").schema == ATTEMPTS
        with closing(sqlite3.connect(path)) as connection:
            select = "SELECT error, count(*), datetime(min(sent_at), 'unixepoch') FROM attempts GROUP BY 1"
            errors = connection.execute(select).fetchall()
            columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(attempts)")]
        assert errors == [(None, 1, "2025-11-24 16:00:01"), ("overloaded_error", 1, "2025-11-24 16:00:02")]
        assert columns == ["id", *ATTEMPTS, "final"]
        (tmp_path / "all.parquet").touch(mode=0o644)
        written = ledger.export(str(tmp_path / "all.parquet"))
        assert repr(ledger) == f"<Ledger {str(path)!r}>"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o600
    assert_frame_equal(pl.read_parquet(written), ledger.attempts())
    assert repr(ledger) == f"<Ledger {str(path)!r}, closed>"
    path.unlink()
    with pytest.raises(LedgerError, match=r"is gone.*Put it back"):
        ledger.attempts()
    assert not path.exists()


@pytest.fixture
def filled(path):
    """Make a ledger of 300 answers."""
    with closing(Store(path)) as store:
        store.extend(records([attempt(number) for number in range(300)]))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: bytes(16) + content[16:],
        lambda content: content.replace(b"req_70", b"\xff\xfe\xfd_70"),
        lambda content: content[: len(content) // 2],
    ],
)
def test_damage_is_named_and_says_what_to_type(filled, damage, monkeypatch):
    """An overwritten or truncated ledger says so when opened or read, with the way to save the rest."""
    monkeypatch.setattr(store_module, "_opened", set())  # a damaged one cannot be closed
    filled.write_bytes(damage(filled.read_bytes()))
    with pytest.raises(DamagedLedger, match=r"(?s)is damaged.*sqlite3 .* \.recover"):
        Store(filled).replies(keys(range(300)))


def execute(path, statements):
    """Execute SQL in a database, which may be new."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


def older(path):
    """Make a ledger of another format."""
    Store(path).close()
    execute(path, "PRAGMA user_version = 3")


def seen(folder):
    """Return each file of a folder with its content."""
    return {each.name: each.is_file() and each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("key,reply\n" * 40), "is not a ledger"),
        (lambda path: execute(path, "PRAGMA journal_mode = WAL; CREATE TABLE theirs (x)"), "is not a ledger"),
        (lambda path: path.mkdir(), "is a folder"),
        (older, "is a ledger of format 3, not 4, .*paid for, again"),
    ],
)
def test_foreign_files_stay_untouched(path, make, words):
    """Anything but a ledger of this format is refused by name; its bytes and its folder stay unchanged."""
    make(path)
    before = seen(path.parent)
    with pytest.raises(ForeignLedger, match=f"{path} {words}"):
        cs.Ledger(path)
    assert seen(path.parent) == before


def test_no_right_to_write(filled):
    """A file or folder without write permission is refused with that reason."""
    for folder in filled.parents[:3]:
        folder.chmod(0o755)
    filled.parent.chmod(0o777)
    filled.chmod(0o444)
    closed = filled.with_name("closed")
    closed.mkdir(0o555)
    user = os.geteuid()
    os.seteuid(user or 65534)  # for root nothing is read-only
    try:
        for path in (filled, closed / "new.ledger"):
            with pytest.raises(LedgerFull, match="write permission"):
                cs.Ledger(path)
    finally:
        os.seteuid(user)


def test_a_place_that_cannot_hold_a_ledger(path, monkeypatch):
    """What is no path, a missing folder, and a drive without file locks are named, with what to type."""

    def fail(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", fail)
    for place, words in (
        (5, r"name a file, such as Ledger\('replies.ledger'\)"),
        (path.with_name("no") / "a.ledger", r"no folder .*mkdir"),
        (path, f"{path}.*file system cannot hold a ledger.*local disk.*a.ledger'"),
    ):
        with pytest.raises(LedgerError, match=words):
            cs.Ledger(place)
    assert list(path.parent.iterdir()) == []


def test_what_was_spent_by_day_ledger_model_and_mode(tmp_path):
    """Sums cover all runs of all ledgers, with the simulator's apart; an unknown price stays unknown."""
    night = {"sent_at": 1_764_028_799.0}  # a second before midnight, UTC
    with closing(Store(tmp_path / "a.ledger")) as one, closing(Store(tmp_path / "b.ledger")) as two:
        rows = [attempt(1, **night), attempt(2, **night, cache_read_input_tokens=100)]
        one.extend(records([*rows, attempt(3, **night, simulated=True), attempt(1, sent_at=1_764_028_800.0)]))
        two.extend(records([attempt(4, **night, mode="batch", dollars=math.nan), attempt(5, **night)]))
    spent = cs.spend(tmp_path)
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


def test_spending_that_cannot_be_read_is_named(filled):
    """Other files are passed over, and no file is touched; a folder that is missing is an error."""
    folder = filled.parent
    (folder / "notes.txt").write_text("no ledger")
    (folder / "empty").touch()
    (folder / "folder.ledger").mkdir()
    execute(folder / "theirs.db", "CREATE TABLE attempts (x)")
    (folder / "half").write_bytes(filled.read_bytes()[:8_192] + b"\xff" * 20_000)
    older(folder / "older")
    before = seen(folder)
    with pytest.warns(UserWarning, match="spending of") as warned:
        assert cs.spend(folder).select("ledger", "requests").rows() == [("a.ledger", 300)]
    half, old = sorted(str(each.message) for each in warned)
    assert "spending of half is missing" in half
    assert "is damaged" in half
    assert "spending of older is missing" in old
    assert "is a ledger of format 3" in old
    assert seen(folder) == before
    assert cs.spend(folder / "folder.ledger").equals(pl.DataFrame(schema=SPEND))
    with pytest.raises(LedgerError, match=r"no folder .*nowhere"):
        cs.spend(folder / "nowhere")


def test_a_run_that_writes_is_read_and_not_disturbed(path):
    """Rows on disk count while this process continues writing; without its locks rows would be lost."""
    alone = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('PRAGMA journal_mode = DELETE')"
    with closing(Store(path)) as store:
        for number in range(1, 4):
            store.record(attempt(number), final=True)
            store.sync()
            assert cs.spend(path.parent)["requests"].sum() == number
        other = subprocess.run([sys.executable, "-c", alone, path], capture_output=True, check=False)
        assert b"database is locked" in other.stderr
