"""The file: plain SQL reads it, defects are described in words, and a full disk loses nothing."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import stat
from contextlib import closing

import polars as pl
import pytest
from ledger_rows import attempt, batch, expected, key, keys, records, sent, some
from polars.testing import assert_frame_equal

import claudescale as cs
from claudescale.errors import DamagedLedger, ForeignLedger, LedgerError, LedgerFull
from claudescale.ledger import store as store_module
from claudescale.ledger.records import ATTEMPTS
from claudescale.ledger.store import Store

fcntl = pytest.importorskip("fcntl")


def test_the_public_ledger(path, tmp_path):
    """It reads and exports recorded runs like any SQLite program; only its owner can read the export."""
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
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert_frame_equal(pl.read_parquet(written), ledger.attempts())
    assert repr(ledger) == f"<Ledger {str(path)!r}, closed>"


def test_forget(path):
    """The rows of an open batch that cannot be collected become free; an unknown id lists open batches."""
    with closing(Store(path)) as store, cs.Ledger(path) as ledger:
        store.claim(some(0, 3))
        store.intend(batch(0), some(0, 3))
        store.note(sent(0))
        with pytest.raises(LedgerError, match=r"no open batch 'b'.*msgbatch_0"):
            ledger.forget("b")
        assert ledger.forget("msgbatch_0") == 3
        assert store.batches()[0].state == "gone"
        assert store.claim(some(0, 3)) == some(0, 3)


def test_what_is_no_path_is_told_what_to_type(tmp_path):
    """A number is not a path, a missing folder has to be created, and a deleted file is not recreated."""
    with pytest.raises(LedgerError, match=r"name a file, such as Ledger\('replies.ledger'\)"):
        cs.Ledger(5)
    with pytest.raises(LedgerError, match=r"no folder .*mkdir"):
        cs.Ledger(tmp_path / "no" / "a.ledger")
    ledger = cs.Ledger(tmp_path / "a.ledger")
    ledger.close()
    ledger.path.unlink()
    with pytest.raises(LedgerError, match=r"is gone.*Put it back"):
        ledger.attempts()
    assert not ledger.path.exists()


@pytest.fixture
def filled(path):
    """Make a ledger of 300 answers."""
    with closing(Store(path)) as store:
        store.extend(records([attempt(number) for number in range(300)]))
    return path


@pytest.mark.parametrize("part", ["head", "text", "end"])
def test_damage_is_named_and_says_what_to_type(filled, part, monkeypatch):
    """An overwritten or truncated ledger says so when opened or read, with the way to save the rest."""
    monkeypatch.setattr(store_module, "_opened", set())  # a damaged one cannot be closed
    content = bytearray(filled.read_bytes())
    text = content.index(b"req_70")
    begin, end, put = {
        "head": (0, 16, bytes(16)),
        "text": (text, text + 3, b"\xff\xfe\xfd"),
        "end": (len(content) // 2, len(content), b""),
    }[part]
    content[begin:end] = put
    filled.write_bytes(content)
    with pytest.raises(DamagedLedger, match=r"(?s)is damaged.*sqlite3 .* \.recover"):
        Store(filled).replies(keys(range(300)))


def a_database(path, format_=None):
    """Make another program's database, or a ledger of another format."""
    if format_ is not None:
        Store(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {format_ or 0}")
        connection.execute("CREATE TABLE IF NOT EXISTS theirs (x)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("key,reply\n" * 40), "is not a ledger"),
        (a_database, "is not a ledger"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: a_database(path, 3), "is a ledger of format 3, not 4, .*paid for, again"),
    ],
)
def test_foreign_files_stay_untouched(path, make, words):
    """Anything but a ledger of this format is refused by name; its bytes and its folder stay unchanged."""
    make(path)

    def seen():
        return {each.name: each.is_file() and each.read_bytes() for each in path.parent.iterdir()}

    before = seen()
    with pytest.raises(ForeignLedger, match=f"{path} {words}"):
        cs.Ledger(path)
    assert seen() == before


def limit(store, pages):
    """Limit the file to that many pages, like a full disk."""
    with store._lock:
        store._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_full_disk_loses_nothing(anywhere):
    """On a full disk every write says so, every query still sees all rows, and freed space repairs it."""
    anywhere.record(attempt(0), final=True)
    anywhere.claim([key(4_999)])
    limit(anywhere, 40)
    for number in itertools.count(1):
        try:
            anywhere.record(attempt(number, reply="x" * 4_000), final=True)
            anywhere.sync()
        except LedgerFull:
            break
    late = attempt(number + 1, batch_id="b")
    for refused in (
        lambda: anywhere.extend(records([late])),
        lambda: anywhere.claim([key(5_000)]),
        lambda: anywhere.intend(batch(), [key(4_999)]),
        anywhere.close,
    ):
        with pytest.raises(LedgerFull, match="free disk space"):
            refused()
    right = [attempt(0), *(attempt(each, reply="x" * 4_000) for each in range(1, number + 1)), late]
    for run in (None, anywhere.run):
        assert_frame_equal(anywhere.attempts(run=run), expected(right, anywhere.run))
    assert_frame_equal(anywhere.replies(keys(range(number + 2))), expected(right, anywhere.run))
    assert anywhere.answered(keys(range(number + 3))).sum() == number + 2
    assert anywhere.batches() == []
    limit(anywhere, 100_000)
    anywhere.intend(batch(), [key(4_999)])
    assert anywhere.claim([key(4_999), key(5_000)]) == [key(5_000)]
    anywhere.close()
    assert_frame_equal(anywhere.attempts(), expected(right, anywhere.run))


def test_no_right_to_write(filled):
    """A file or folder without write permission is refused with that reason."""
    root = os.geteuid() == 0  # for whom no file is read-only
    for folder in filled.parents[:3]:
        folder.chmod(0o755)
    filled.chmod(0o444)
    for mode, path in ((0o777, filled), (0o555, filled), (0o555, filled.with_name("new.ledger"))):
        filled.parent.chmod(mode)
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(LedgerFull, match="write permission"):
                cs.Ledger(path)
        finally:
            if root:
                os.seteuid(0)
            filled.parent.chmod(0o755)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_taken_away(path, replaced):
    """A run whose file is moved away says so, shows all its data, and resumes once the file is back."""
    with closing(Store(path)) as store:
        store.record(attempt(1), final=True)
        store.sync()
        path.rename(path.with_name("aside"))
        if replaced:
            path.write_text("another")
        with pytest.raises(LedgerError, match="moved or deleted"):
            store.claim([key(2)])
        with pytest.raises(LedgerError, match="moved or deleted"):
            store.record(attempt(3), final=True)
        assert_frame_equal(store.attempts(), expected([attempt(1), attempt(3)], store.run))
        path.with_name("aside").replace(path)
        store.sync()
    with closing(Store(path)) as store:
        assert store.answered(keys([1, 3])).all()


def test_a_lock_held_by_another_program(monkeypatch, path):
    """A lock that is never released is named, and pending writes follow once it is released."""
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with closing(Store(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.record(attempt(1), final=True)
        with pytest.raises(LedgerError, match="has it locked"):
            store.sync()
        assert store.attempts().height == 1
        other.execute("ROLLBACK")
    with closing(Store(path)) as store:
        assert store.attempts().height == 1


def test_a_file_system_without_locks(path, monkeypatch):
    """A drive without file locks is named along with a local alternative, and left clean."""

    def fail(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(LedgerError, match=f"{path}.*file system cannot hold a ledger.*local disk.*a.ledger'"):
        cs.Ledger(path)
    assert list(path.parent.iterdir()) == []
