"""The durable record of every attempt, as a user reads it. It is why nothing is paid for twice."""

from __future__ import annotations

import os
import warnings
from contextlib import closing
from pathlib import Path
from typing import Self

import polars as pl

from claudescale.errors import LedgerError, printable
from claudescale.ledger.store import Store, explained, opened_to_read

DEFAULT_LEDGER = "claudescale.ledger"  # in the working folder
SPEND = pl.Schema(
    {"date": pl.Date(), "ledger": pl.String(), "model": pl.String(), "mode": pl.String()}
    | {"requests": pl.Int64(), "input_tokens": pl.Int64(), "output_tokens": pl.Int64()}
    | {"dollars": pl.Float64(), "simulated": pl.Boolean()}
)
"""Columns of `spend`. `requests` includes failed calls, and `input_tokens` includes cached tokens. `dollars`
is NaN if a price is not known."""

_SPENT = """SELECT date(sent_at, 'unixepoch'), model, mode, count(*), sum(input_tokens
    + cache_write_5m_input_tokens + cache_write_1h_input_tokens + cache_read_input_tokens),
    sum(output_tokens), iif(count(dollars) = count(*), total(dollars), NULL), simulated
    FROM attempts GROUP BY 1, 2, 3, simulated"""


class Ledger:
    """The record of all requests and answers, shared by every run that names the same file.

    Runs open it themselves. Open it to see what was paid for, even while runs write to it.

    Spends: nothing.

    Parameters
    ----------
    path : str or Path
        The file, created with owner-only permissions if there is none (its folder must exist).

    Raises
    ------
    ForeignLedger
        `path` is a folder, another kind of file, or a ledger of another format. It is not touched.
    DamagedLedger
        The file was a ledger and can no longer be read.
    LedgerFull
        There is no space on the disk, or no permission to write.
    LedgerError
        `path` is not a path, its folder is missing, or its file system does not lock files.

    Notes
    -----
    The file is an SQLite database of plain columns:
    ``sqlite3 x.ledger "select error, count(*) from attempts group by 1"``.
    While a process has it open, no other SQLite library (DuckDB, ADBC) may open it in that process.
    It is safe for threads, and for several processes at once. After a fork, the child must open its own.
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
        """Return every attempt of all runs in the file, or of one run, in the order of writing.

        Spends: nothing.

        Parameters
        ----------
        run : str, optional
            A value of the `run` column.

        Returns
        -------
        polars.DataFrame
            `claudescale.ledger.records.ATTEMPTS`, one row per answer or failure of the API.
        """
        return self._store.attempts(run=run)

    def export(self, path: str | Path) -> Path:
        """Return the path of a Parquet file, written now, with all attempts, which only its owner can read.

        See the note at `Run.results` before you open a CSV file of it in a spreadsheet.

        Spends: nothing.
        """
        target = Path(path).expanduser().absolute()
        frame = self.attempts()
        target.touch(mode=0o600)
        target.chmod(0o600)
        frame.write_parquet(target)
        return target

    def forget(self, batch_id: str) -> int:
        """Return how many rows were released from an open batch that no longer exists at the API.

        Use it for a batch that was deleted there, or whose API key is lost. The next run sends, and pays for,
        its rows again.

        Spends: nothing.

        Raises
        ------
        LedgerError
            There is no open batch with this id.
        """
        return self._store.forget(batch_id)

    def close(self) -> None:
        """Release the file; reading still works.

        Spends: nothing.
        """
        self._store.close()


def spend(folder: str | Path = ".") -> pl.DataFrame:
    """Return the spending recorded in the ledgers of a folder, by day, ledger, model and mode.

    Replies of a simulator cost nothing; they are in separate rows, marked `simulated`. Files that are not
    ledgers are skipped. A ledger that is damaged, or of another format, is named in a warning. Reading does
    not block runs that write.

    Spends: nothing.

    Parameters
    ----------
    folder : str or Path
        The folder with the ledgers; its subfolders are not searched.

    Returns
    -------
    polars.DataFrame
        `SPEND`, the oldest day first. Days are in UTC.

    Raises
    ------
    LedgerError
        There is no such folder.
    """
    place = Path(folder).expanduser().absolute()
    if not place.is_dir():
        msg = f"there is no folder {place}: name the one where your ledgers are, such as cs.spend('.')"
        raise LedgerError(msg)
    rows: list[tuple[object, ...]] = []
    for path in filter(Path.is_file, place.iterdir()):
        try:
            with explained(path):
                connection = opened_to_read(path)
                if connection is not None:
                    with closing(connection):
                        sums = connection.execute(_SPENT).fetchall()
                    rows += [(day, path.name, *others) for day, *others in sums]
        except LedgerError as error:
            warnings.warn(f"The spending of {path.name} is missing: {error}", stacklevel=2)
    written = SPEND | {"date": pl.String(), "simulated": pl.Int64()}
    known = pl.col("date").str.to_date("%Y-%m-%d"), pl.col("dollars").fill_null(float("nan"))
    table = pl.DataFrame(rows, schema=written, orient="row").with_columns(*known)
    return table.cast(SPEND).sort(*SPEND.names()[:4])


def ledger_typed(path: Path | None) -> str:
    """Return the argument that names a run's ledger, after a comma; empty if it is the default."""
    folder, name = Path.cwd(), None if path is None else str(path)
    if path is not None and path.is_relative_to(folder):
        name = str(path.relative_to(folder))
    return "" if name == DEFAULT_LEDGER else f", ledger={name!r}"
