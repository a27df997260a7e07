"""A run over an input larger than memory: slices of a LazyFrame in, Parquet files out, one ledger for all."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import loops
from claudescale.errors import PlanError, RunStopped

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.planning.plans import Plan

ROWS = 100_000
ROW = "row"
"""The column of the parts that says which row of the input it is, from 0."""
_NAMES = "part-*.parquet"


async def run_parts(
    plan: Plan, folder: str | Path, client: AsyncAnthropic | None = None, *, rows: int = ROWS, **given: Any
) -> pl.LazyFrame:
    """Return the results as a scan of Parquet files, a file for every so many rows, in the input's order.

    The same call again sends only what the ledger does not have, and writes the files anew. Memory holds one
    slice and its replies, never the whole input; identical rows are sent once, whatever slice they are in.

    Spends: tokens.

    Parameters
    ----------
    plan : Plan
        Over ``pl.scan_parquet(...)``, say: reading a slice of it twice must give the same rows. Its
        `deadline` holds for each slice, its `budget` for all.
    folder : str or Path
        Where the files go, ``part-000000.parquet`` first; others of such names there are removed at the end.
    rows : int
        Of a slice.
    client, **given
        As for `Plan.run`: ``ledger``, ``progress``, ``on``.

    Returns
    -------
    pl.LazyFrame
        What `Run.results` has, and first the column `row`, by which ``.sort("row")`` restores the input's
        order after a join or a shuffle.

    Raises
    ------
    PlanError
        The prompt is an expression, which might look at other rows than its own; there is a column `row`;
        or the plan has `samples`, with which a row of the input is several.
    RunStopped
        A slice was not finished; the files of those before it stand.
    """
    frame = plan.frame.lazy()
    if plan.compiled.prompt.columns is None:
        msg = "run_parts needs a prompt with {column} in it: an expression may look at rows of other slices"
        raise PlanError(msg)
    if plan.samples > 1:
        msg = f"run_parts keeps one result for each row, and the plan has samples={plan.samples}: "
        raise PlanError(msg + "use plan.replace(samples=1), or a plan over a smaller frame with plan.run")
    if ROW in frame.collect_schema():
        msg = f"the frame has a column {ROW!r}, which is where run_parts keeps the rows' order: rename yours"
        raise PlanError(msg)
    target = _made(folder)
    left, written = plan.budget, []
    for start in range(0, max(frame.select(pl.len()).collect().item(), 1), rows):
        run = await plan.replace(frame=frame.slice(start, rows), budget=left).run(client, **given)
        if run.state != "finished":
            msg = f"rows from {start:,} on are not finished ({run.stopped_by or run.state}): run it again"
            raise RunStopped(msg, run)
        if left is not None:
            left = max(left - run.counts.dollars, 0.0)
        written.append(target / f"part-{start // rows:06}.parquet")
        await loops.in_thread(_write, run.results.with_row_index(ROW, start), written[-1])
        del run
        gc.collect()  # a run and what follows it hold each other; what Polars keeps there makes none due
    for path in set(target.glob(_NAMES)) - set(written):
        path.unlink()
    return pl.scan_parquet(target / _NAMES)


def _made(folder: str | Path) -> Path:
    path = Path(folder).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(results: pl.DataFrame, path: Path) -> None:
    """Write a file that is whole or not there."""
    unfinished = path.with_suffix(".writing")
    results.write_parquet(unfinished)
    unfinished.replace(path)
