"""The durable record of every attempt: what was paid for once is never paid for again.

A `Ledger` keeps what this opening recorded as frames in memory, and one thread of its own (`recorder`) writes
it to the file it shares with other runs and processes (`ledgerfile`): every 50 ms or 50 rows, forced to the
disk. Batches, which outlive the run that sent them, stand in the same file (`batchfile`).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from claudescale.errors import printable
from claudescale.ledger import batchfile, lines, store
from claudescale.ledger.batchfile import Batch
from claudescale.ledger.recorder import Recorder
from claudescale.ledger.records import ATTEMPTS, Attempt
from claudescale.ledger.store import GROUP_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ATTEMPTS", "Attempt", "Batch", "Ledger"]


FOLD_ROWS = 5_000  # lines kept before they become a compact frame


class Ledger(Recorder):
    """The record of what was sent and answered, shared by every run that names the same file.

    Parameters
    ----------
    path : str or Path, optional
        The file, made with owner-only permissions where there is none (its folder must exist). None
        keeps the record in memory: it ends with the process.
    run : str, optional
        What this opening writes in the `run` column. The default is a fresh name, sortable by time.

    Raises
    ------
    ForeignLedger
        `path` is a folder or some other file; it is not touched.
    DamagedLedger
        The file was a ledger and cannot be read any more.
    LedgerFull
        There is no room on the disk, or no right to write.

    Notes
    -----
    Safe for threads, and for several processes at once. After a fork the child opens its own.
    """

    def __init__(self, path: str | Path | None, *, run: str | None = None) -> None:
        name = run or f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"
        super().__init__(None if path is None else Path(path).expanduser().absolute(), name)
        self._fresh = run is None
        self._followed: set[str] = set()  # the nonces of batches

    def __repr__(self) -> str:
        where = "in memory, gone with this process" if self.path is None else repr(str(self.path))
        return printable(f"<Ledger {where}, run {self.run}{', closed' if self._closed else ''}>")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, attempt: Attempt, *, final: bool) -> None:
        """Return at once; the attempt is on the disk a moment later, or after `sync`.

        Spends: nothing.

        Parameters
        ----------
        attempt : Attempt
            What came back. Its `run` is taken as this ledger's; half a surrogate pair in a text becomes
            U+FFFD, as neither a file nor a frame can hold it.
        final : bool
            Whether this ends the row: a paid reply, or an error that no retry can mend.

        Raises
        ------
        LedgerFull
            Something could not be written. This attempt too is kept in memory; `sync` tries again.
        """
        self._stay()
        line = store.line(attempt, self.run, final=final)
        with self._lock:
            self._lines.append(line)
            if len(self._lines) >= FOLD_ROWS:
                self._fold()
            if self.path is not None:
                self._queue.append((int(final), attempt.key, line))
                if len(self._queue) in {1, GROUP_ROWS}:
                    self._changed.notify_all()
        failure = self._failure or (self._was_closed() if self._closed else None)
        if failure is not None:
            raise type(failure)(str(failure)) from failure

    def extend(self, attempts: pl.DataFrame) -> None:
        """Return when many attempts are on the disk, at a fraction of what `record` costs for each.

        Spends: nothing.

        Parameters
        ----------
        attempts : polars.DataFrame
            `ATTEMPTS` and a Boolean `final`. What is in `run` is taken as this ledger's.

        Raises
        ------
        TypeError
            These are no attempts. None of them is kept.
        LedgerFull
            Something could not be written. All are kept in memory; `sync` tries again.
        """
        self._stay()
        kept = lines.checked(attempts, self.run)
        made = zip(
            kept["final"].cast(pl.Int8).to_list(), kept["key"].to_list(), lines.lines(kept), strict=True
        )
        with self._lock:
            self._fold(kept)
            if self.path is not None:
                self._queue += made
        self._ask(lambda: None)

    def sync(self) -> None:
        """Return when everything recorded so far is on the disk.

        Spends: nothing.

        Raises
        ------
        LedgerFull
            It cannot be written. Nothing is lost from memory: make room and call again, or `export`.
        """
        self._ask(lambda: None)

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Return the keys this run may send now, in the order given; the claim is on the disk.

        Left out are keys with a final answer and keys that another living run has claimed. A claim
        ends with its answer, with `release`, with `close` or with its process: at once for a process of
        this computer, after 30 s without a sign of life for one that cannot be seen from here.

        Spends: nothing.

        Parameters
        ----------
        keys : sequence of str
            A few thousand at a time, so that two runs share the work instead of one waiting for the other.

        Raises
        ------
        LedgerFull
            The claim cannot be written, so nothing may be sent.
        """
        if self.path is None:
            asked = pl.Series(keys, dtype=pl.String)
            keys = asked.filter(~self.answered(asked)).to_list()
        won = self._ask(lambda: store.claim(self._connection, self._opening, keys))
        self._begin_beats()
        return [key for key in keys if key in won]

    def release(self, keys: Sequence[str]) -> None:
        """Return when other runs may claim `keys`, which this one claimed and will not send.

        Spends: nothing.
        """
        self._ask(lambda: store.release(self._connection, self._opening, keys))

    def intend(self, batch: Batch, keys: Sequence[str]) -> None:
        """Return when a batch that is about to be sent is on the disk; it holds `keys` from now on.

        This run follows it. No run may claim what it holds, whoever ends, until `end_batch`.

        Spends: nothing.

        Parameters
        ----------
        batch : Batch
            With a fresh `nonce`.
        keys : sequence of str
            Its rows, which this run has claimed.

        Raises
        ------
        LedgerError
            A key is not claimed by this run, or it cannot be written: then nothing may be sent.
        """
        self._ask(lambda: batchfile.intend(self._connection, self._opening, batch, keys))
        self._followed.add(batch.nonce)

    def note(self, batch: Batch) -> None:
        """Return when what is known of an open batch now is on the disk, in place of what was.

        Spends: nothing.

        Raises
        ------
        LedgerError
            The batch is over (`end_batch` says that), or this run does not follow it.
        """
        self._ask(lambda: batchfile.note(self._connection, self._opening, batch))

    def end_batch(self, batch: Batch) -> None:
        """Return when a batch that is over holds nothing any more; what it left open can be claimed again.

        Spends: nothing.

        Raises
        ------
        LedgerError
            The batch is not over, or this run does not follow it.
        """
        self._ask(lambda: batchfile.close(self._connection, self._opening, batch))

    def adopt(self, keys: pl.Series) -> list[Batch]:
        """Return the open batches that hold one of `keys` and that no living run follows: this one does now.

        Without those that this run follows already. When a run counts as living is said at `claim`.

        Spends: nothing.
        """
        found: list[Batch] = self._ask(lambda: batchfile.adopt(self._connection, self._opening, keys))
        self._followed.update(batch.nonce for batch in found)
        self._begin_beats()
        return found

    def forget(self, batch_id: str) -> int:
        """Return how many rows are free again that an open batch held, which is at the API no more.

        For a batch that was deleted there, or whose key is lost: its rows are sent, and paid for, anew.

        Spends: nothing.

        Raises
        ------
        LedgerError
            There is no open batch with this id.
        """
        count: int = self._ask(lambda: batchfile.forget(self._connection, self._opening, batch_id))
        return count

    def held(self, nonce: str) -> list[str]:
        """Return the keys that the batch with this nonce holds and that have no final answer.

        Spends: nothing.
        """
        with self._reading() as connection:
            keys = batchfile.held(connection, nonce)
        return keys.filter(~self.answered(keys)).to_list()

    def recorded(self, batch: Batch) -> pl.Series:
        """Return the keys of which this batch's result is on record, of this run or any other.

        Spends: nothing.
        """
        after = "id > (SELECT after FROM batches WHERE nonce = :nonce)"
        own = "opening != :me AND instr(line, :batch_id)"  # few are parsed that are another batch's
        frames = [
            self._stored(f"{after} AND {own}", nonce=batch.nonce, batch_id=f'"{batch.batch_id}"'),
            self._memory(),
        ]
        its = pl.col("batch_id") == pl.lit(batch.batch_id, pl.String)
        found = [frame.filter(its).get_column("key") for frame in frames]
        return pl.concat(found).unique(maintain_order=True)

    def batches(self, *, mine: bool = True) -> list[Batch]:
        """Return the batches that this run follows or followed, or all of the file, in order of intent.

        Spends: nothing.
        """
        with self._reading() as connection:
            found = batchfile.batches(connection)
        return [batch for batch in found if not mine or batch.nonce in self._followed]

    def answered(self, keys: pl.Series) -> pl.Series:
        """Return a Boolean mask of `keys`: which have a final answer, of this run or any other.

        Spends: nothing.
        """
        mine = self._memory()
        known = [mine.get_column("key").filter(mine.get_column("final"))]
        if self.path is not None:
            with store.reading(self.path) as connection:
                found = store.found(connection, keys.drop_nulls().to_list())
                several = store.answered(connection) if found is None else ["\n".join(found).encode()]
                known += [pl.Series("key", lines.decode().split("\n")) for lines in several]
        return keys.is_in(pl.concat(known).implode()).fill_null(value=False).alias("answered")

    def attempts(self, *, run: str | None = None) -> pl.DataFrame:
        """Return every attempt of one run, or of all runs in the file, as `ATTEMPTS`.

        Those of this opening come from memory, on the disk or not: asking for them four times a second
        is cheap.

        Spends: nothing.
        """
        frames = [self._memory()] if run in {None, self.run} else []
        if not (self._fresh and run == self.run):
            others = "opening != :me AND opening IN (SELECT id FROM runs WHERE run = coalesce(:run, run))"
            frames.insert(0, self._stored(others, run=run))
        return pl.concat(frames).drop("final")

    def replies(self, keys: pl.Series) -> pl.DataFrame:
        """Return the final attempt of each of `keys` that has one, as `ATTEMPTS`: one row per key found.

        Where there are several, it is this opening's newest, else the newest in the file.

        Spends: nothing.
        """
        mine = self._memory().filter("final")
        rest = keys.filter(~keys.is_in(mine.get_column("key").implode()))
        others = self._stored("final AND opening != :me", keys=rest) if rest.len() else mine.clear()
        frame = pl.concat([others, mine]).drop("final")
        key = frame.get_column("key")
        wanted = key.is_in(keys.implode()) & key.is_last_distinct()
        return frame if wanted.all() else frame.filter(wanted)

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

    def _stored(self, where: str, *, keys: pl.Series | None = None, **given: Any) -> pl.DataFrame:
        """Return attempts of the file, with `final`; given `keys`, at least the final ones of those."""
        frames = [store.EMPTY]
        if self.path is None:
            return frames[0]
        given["me"] = self._opening
        with store.reading(self.path) as connection:
            found = None if keys is None else store.found(connection, keys.drop_nulls().to_list())
            if found is None:
                frames += store.records(connection, where, **given)
            else:
                frames += store.picked(connection, where, found.values(), **given)
        return pl.concat(frames, rechunk=True)
