"""What the ledger's file knows of batches: which were meant to be sent, who follows them, what they hold.

A batch is written down before it is sent, so that no end of the process, however sudden, loses it. It holds
its rows by claims of its own, at minus its `id`, which outlive the run that made them: nobody sends a row
that an open batch may still answer. The run that follows a batch collects it; when that run is over, another
run that wants one of its rows takes the batch over, and does not pay again.
"""
# ruff: noqa: S608  (every statement is put together from this module's own constants)

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.errors import LedgerError
from claudescale.ledger.liveness import Presence, may_live
from claudescale.ledger.store import transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

OPEN = frozenset({"intended", "in_progress", "canceling", "ended"})
CLOSED = frozenset({"collected", "absent", "gone"})


class Batch(NamedTuple):
    """One Message Batch, from the intent to send it to its end; times are API unix seconds."""

    nonce: str
    api: str
    model: str
    requests: int
    intended_at: float
    state: str = "intended"
    batch_id: str | None = None
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


_FIELDS = ", ".join(Batch._fields)
_FOLLOWED = "SELECT id FROM batches WHERE nonce = ? AND opening = ?"


def intend(connection: sqlite3.Connection, opening: int, batch: Batch, keys: Sequence[str]) -> None:
    """Write down a batch that this opening follows, and pass the claims on `keys` to it."""
    _check(batch, OPEN, "end_batch")
    marks = ", ".join("?" * len(batch))
    values = f"VALUES (?, (SELECT coalesce(max(id), 0) FROM records), {marks})"
    insert = f"INSERT INTO batches (opening, after, {_FIELDS}) {values}"
    given_keys = "key IN (SELECT value FROM json_each(:keys))"
    passed = f"UPDATE claims SET opening = :batch WHERE opening = :me AND {given_keys}"
    with transaction(connection):
        if connection.execute("SELECT 1 FROM batches WHERE nonce = ?", [batch.nonce]).fetchone():
            msg = f"there is a batch with the nonce {batch.nonce} already: each intent takes a fresh one"
            raise LedgerError(msg)
        number = connection.execute(insert, [opening, *batch]).lastrowid
        assert number is not None
        given = {"batch": -number, "me": opening, "keys": json.dumps(sorted(keys))}
        count = connection.execute(passed, given).rowcount
        if count != len(keys):
            msg = (
                f"{len(keys) - count:,} of {len(keys):,} keys are not claimed by this run, or given twice:"
                " a batch takes what `claim` returned, each once"
            )
            raise LedgerError(msg)


def note(connection: sqlite3.Connection, opening: int, batch: Batch) -> None:
    """Replace what is recorded of a batch that stays open."""
    _check(batch, OPEN, "end_batch")
    with transaction(connection):
        _note(connection, opening, batch)


def close(connection: sqlite3.Connection, opening: int, batch: Batch) -> None:
    """Replace what is recorded of a batch that is over, and give up the claims it still holds."""
    _check(batch, CLOSED, "note")
    with transaction(connection):
        number = _note(connection, opening, batch)
        connection.execute("DELETE FROM claims WHERE opening = ?", [-number])


def _check(batch: Batch, states: frozenset[str], other: str) -> None:
    if batch.state not in states:
        msg = f"a batch with the state {batch.state!r} is none of {', '.join(sorted(states))}: see `{other}`"
        raise LedgerError(msg)


def _note(connection: sqlite3.Connection, opening: int, batch: Batch) -> int:
    """Return the `id` of the batch."""
    found = connection.execute(_FOLLOWED, [batch.nonce, opening]).fetchone()
    if found is None:
        msg = f"this run does not follow the batch {batch.batch_id or batch.nonce}: another took it over"
        raise LedgerError(msg)
    marks = ", ".join("?" * len(batch))
    connection.execute(f"UPDATE batches SET ({_FIELDS}) = ({marks}) WHERE id = ?", [*batch, *found])
    number: int = found[0]
    return number


def adopt(connection: sqlite3.Connection, opening: int, keys: pl.Series) -> list[Batch]:
    """Return the open batches that hold one of `keys` and that nobody followed; this opening does now."""
    states = ", ".join(f"'{state}'" for state in sorted(OPEN))
    others = f"""SELECT batches.id, closed, {", ".join(Presence._fields)}
        FROM batches JOIN runs ON runs.id = opening WHERE opening != ? AND state IN ({states})"""
    with transaction(connection):
        here = Presence.here()
        rows = connection.execute(others, [opening]).fetchall()
        left = [number for number, closed, *them in rows if closed or not may_live(Presence(*them), here)]
        if not left:
            return []
        given = {"batches": json.dumps([-number for number in left])}
        claims = "SELECT opening, key FROM claims WHERE opening IN (SELECT value FROM json_each(:batches))"
        frame = pl.DataFrame(
            connection.execute(claims, given).fetchall(),
            schema={"opening": pl.Int64, "key": pl.String},
            orient="row",
        )
        wanted = frame.filter(pl.col("key").is_in(keys.implode())).get_column("opening").unique()
        given = {"me": str(opening), "batches": json.dumps((-wanted).to_list())}
        chosen = "id IN (SELECT value FROM json_each(:batches))"
        connection.execute(f"UPDATE batches SET opening = :me WHERE {chosen}", given)
        return _batches(connection, chosen, given)


def forget(connection: sqlite3.Connection, opening: int, batch_id: str) -> int:
    """Close an open batch that can never be collected; return how many rows it held."""
    states = ", ".join(f"'{state}'" for state in sorted(OPEN))
    with transaction(connection):
        found = connection.execute(
            f"SELECT id FROM batches WHERE batch_id = ? AND state IN ({states})", [batch_id]
        ).fetchone()
        if found is None:
            msg = f"the ledger has no open batch {batch_id}: see `batches(mine=False)`"
            raise LedgerError(msg)
        connection.execute("UPDATE batches SET state = 'gone', opening = ? WHERE id = ?", [opening, *found])
        return connection.execute("DELETE FROM claims WHERE opening = ?", [-found[0]]).rowcount


def held(connection: sqlite3.Connection, nonce: str) -> pl.Series:
    """Return the keys that a batch holds, answered or not."""
    claims = "SELECT key FROM claims WHERE opening = (SELECT -id FROM batches WHERE nonce = ?)"
    return pl.Series("key", [key for (key,) in connection.execute(claims, [nonce])], pl.String)


def batches(connection: sqlite3.Connection) -> list[Batch]:
    """Return all batches in the order of their intents."""
    return _batches(connection, "true", {})


def _batches(connection: sqlite3.Connection, where: str, given: dict[str, str]) -> list[Batch]:
    found = connection.execute(f"SELECT {_FIELDS} FROM batches WHERE {where} ORDER BY id", given)
    return [Batch(*row) for row in found]
