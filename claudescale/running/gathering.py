"""The ledgers that workers of a cluster wrote, and how they come into the ledger of their run.

Beside ``reviews.ledger`` stands ``reviews.ledger.workers``, with a folder for each run on a cluster: a ledger
of every worker, and for each part of the rows a file that names the ledgers in which its answers may be.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.ledger import store
from claudescale.ledger.liveness import Presence
from claudescale.ledger.records import RECORDS, Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from claudescale.ledger.store import Store

_LONGEST_WAIT_SECONDS = 120.0
"""How long workers of a driver that is gone may take for what they have in flight: they send nothing more."""


def workers_of(path: Path) -> Path:
    """Return the folder of what workers wrote for the ledger at `path`."""
    return path.with_name(f"{path.name}.workers")


async def collect(ledger: Store, over: Callable[[], bool] = lambda: False) -> None:
    """Take over what workers of runs that are gone wrote and their driver never did.

    Waits while such a worker still has calls in flight: they are paid for.
    """
    if ledger.path is None or not workers_of(ledger.path).is_dir():
        return
    waited = 0.0
    for folder in sorted(workers_of(ledger.path).iterdir()):
        if folder.name != ledger.run and await loops.in_thread(_is_open, ledger.path, folder.name):
            continue  # its driver is at work
        while waited < _LONGEST_WAIT_SECONDS and not over() and await loops.in_thread(_at_work, folder):
            await asyncio.sleep(loops.SLICE_SECONDS)
            waited += loops.SLICE_SECONDS
        await loops.in_thread(gather, ledger, folder)
    await loops.in_thread(_remove_if_empty, workers_of(ledger.path))


def gather(ledger: Store, folder: Path) -> None:
    """Take over what the ledgers in a folder have and `ledger` has not, and remove those that are closed."""
    left = False
    for path in sorted(folder.glob("*.ledger")):
        living = _is_open(path)
        found = _finals(path)
        known = ledger.replies(found["key"], ["sent_at"])
        ledger.extend(found.join(known, on=["key", "sent_at"], how="anti", maintain_order="left"))
        left |= living
        if not living:
            for each in folder.glob(f"{path.name}*"):
                each.unlink(missing_ok=True)
    if not left:
        shutil.rmtree(folder)


def answers(folder: Path, names: Sequence[str], keys: Sequence[str]) -> list[tuple[Attempt, bool]]:
    """Return the final attempts that these ledgers of a folder have of these keys, one for each key."""
    frames = [_finals(folder / name, keys) for name in names if (folder / name).exists()]
    if not frames:
        return []
    found = pl.concat(frames).drop("final").unique("key", keep="first", maintain_order=True)
    return [(_attempt(row), True) for row in found.iter_rows(named=True)]


def _attempt(row: dict[str, Any]) -> Attempt:
    return Attempt(**{**row, "sent_at": row["sent_at"].timestamp()})


def _finals(path: Path, keys: Sequence[str] | None = None) -> pl.DataFrame:
    where = "final" if keys is None else "final AND key IN (SELECT value FROM json_each(:keys))"
    with store.explained(path), closing(store.connect(path)) as connection:
        return store.read(connection, RECORDS, where, {"keys": json.dumps(keys)})


def _is_open(path: Path, run: str | None = None) -> bool:
    """Whether a process that has this ledger open, for a certain run or any, may be alive."""
    select = f"SELECT {', '.join(Presence._fields)} FROM openings WHERE NOT closed AND run = coalesce(?, run)"  # noqa: S608
    with store.explained(path), closing(store.connect(path)) as connection:
        found = connection.execute(select, [run]).fetchall()
    return any(Presence(*row).may_live(Presence.here()) for row in found)


def _at_work(folder: Path) -> bool:
    return any(_is_open(path) for path in folder.glob("*.ledger"))


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
