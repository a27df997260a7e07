"""A ledger written by an earlier version: its format is read and its rows are never paid again."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anthropic
import polars as pl
from canned import KEY
from plans import OPTIONS, a_plan

import claudescale as cs
from claudescale.ledger.store import Store


def test_a_ledger_written_before_is_not_paid_again(path):
    """The thirty plans find all its answers; a run, live or by batch, sends nothing."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(Path(__file__).with_name("ledger.sql").read_text(encoding="utf-8"))
    with closing(Store(path)) as store:
        asked = pl.concat([a_plan(**options).requests["custom_id"] for options in OPTIONS.values()]).unique()
        assert store.answered(asked).sum() == store.attempts().height == 73
    client = anthropic.AsyncAnthropic(api_key=KEY, max_retries=0)
    for name in ("plain", "batch"):
        run = cs.wait(a_plan(**OPTIONS[name]).run(client, ledger=path, progress=False))
        assert (run.state, run.attempts.height) == ("finished", 0)
        assert run.job.replies()["reply"].unique().to_list() == ["late"]
