"""Where a ledger cannot be kept: said at once, with the path and another one to name."""

from __future__ import annotations

import errno
import mmap
import os
import sqlite3

import pytest
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.errors import LedgerError
from claudescale.ledger import store

fcntl = pytest.importorskip("fcntl")


def failing(number):
    """Return what fails with an error of the system."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (fcntl, "lockf", errno.ENOLCK),
        (fcntl, "lockf", errno.EOPNOTSUPP),
        (fcntl, "lockf", errno.EIO),
        (mmap, "mmap", errno.ENODEV),
    ],
)
def test_a_file_system_without_locks(module, name, number, path, monkeypatch):
    """A drive that cannot lock files, or share memory, is named before anything is sent, and left clean."""
    monkeypatch.setattr(module, name, failing(number))
    with simulator() as api:
        with pytest.raises(cs.RunStopped, match="file system cannot hold a ledger") as caught:
            finished(a_plan(reviews(2)), api.client(), ledger=path)
        assert api.stats["calls"] == 0
    told = str(caught.value)
    assert all(
        word in told for word in (str(path), os.strerror(number), "local disk", "a.ledger'", "Nothing")
    )
    assert list(path.parent.iterdir()) == []


def test_what_another_program_locks_is_no_fault_of_the_drive(path, monkeypatch):
    """A lock that is only held is waited for by SQLite, which says so."""
    monkeypatch.setattr(fcntl, "lockf", failing(errno.EAGAIN))
    with cs.Ledger(path) as ledger:
        assert ledger.attempts().is_empty()


@pytest.mark.parametrize("name", ["SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHMMAP", "SQLITE_PROTOCOL"])
def test_locks_that_fail_later(name, path):
    """What SQLite itself says of locks has the same words."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = name
    with pytest.raises(LedgerError, match="local disk"), store.explained(path):
        raise error
