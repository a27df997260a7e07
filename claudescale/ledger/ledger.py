"""The durable record of every attempt, as a user reads it: what was paid for is never paid for again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from claudescale.errors import LedgerError, printable
from claudescale.ledger.store import Store

if TYPE_CHECKING:
    import polars as pl


class Ledger:
    """The record of what was sent and answered, shared by every run that names the same file.

    A run keeps its own; open one to see what was paid for, while runs write to it or later.

    Spends: nothing.

    Parameters
    ----------
    path : str or Path
        The file, made with owner-only permissions where there is none (its folder must exist).

    Raises
    ------
    ForeignLedger
        `path` is a folder, some other file, or a ledger of another format; it is not touched.
    DamagedLedger
        The file was a ledger and cannot be read any more.
    LedgerFull
        There is no room on the disk, or no right to write.
    LedgerError
        `path` is no path, its folder is missing, or its file system does not lock files.

    Notes
    -----
    It is an SQLite file of plain columns:
    ``sqlite3 x.ledger "select error, count(*) from attempts group by 1"``.
    While a process has it open, no other SQLite library (DuckDB, ADBC) may open it in that process.
    Safe for threads, and for several processes at once. After a fork the child opens its own.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            msg = f"Ledger({path!r}): name a file, such as Ledger('replies.ledger')"
            raise LedgerError(msg)
        self.path = Path(path).expanduser().absolute()
        self._store = Store(self.path)

    def __repr__(self) -> str:
        return printable(f"<Ledger {str(self.path)!r}{', closed' if self._store.closed else ''}>")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attempts(self, *, run: str | None = None) -> pl.DataFrame:
        """Return every attempt of all runs in the file, or of one, in the order they were written.

        Spends: nothing.

        Parameters
        ----------
        run : str, optional
            A name in the `run` column.

        Returns
        -------
        polars.DataFrame
            Of `claudescale.ledger.records.ATTEMPTS`, one row per answer or failure of the API.
        """
        return self._store.attempts(run=run)

    def export(self, path: str | Path) -> Path:
        """Return the Parquet file, for its owner only, to which all attempts were written.

        Before a spreadsheet opens a CSV file of it, see the note at `Run.results`.

        Spends: nothing.
        """
        target = Path(path).expanduser().absolute()
        frame = self.attempts()
        target.touch(mode=0o600)
        target.chmod(0o600)
        frame.write_parquet(target)
        return target

    def forget(self, batch_id: str) -> int:
        """Return how many rows are free again that an open batch held, which is at the API no more.

        For a batch that was deleted there, or whose key is lost: its rows are sent, and paid for, anew.

        Spends: nothing.

        Raises
        ------
        LedgerError
            There is no open batch with this id.
        """
        return self._store.forget(batch_id)

    def close(self) -> None:
        """Let go of the file; reading still works.

        Spends: nothing.
        """
        self._store.close()
