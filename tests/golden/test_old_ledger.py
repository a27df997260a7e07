"""A ledger written by an earlier version: its format is read and its rows are never paid again."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import anthropic
from canned import KEY
from ledger_rows import attempt, records
from plans import OPTIONS, a_plan

import claudescale as cs
from claudescale.ledger.store import Store

SQL = Path(__file__).with_name("ledger.sql")


def record(path):
    """Record a ledger with an answer to each recorded request, as SQL."""
    requests = json.loads(SQL.with_name("requests.json").read_text(encoding="utf-8"))
    rows = [
        attempt(0, key=key, reply="late")
        for key in dict.fromkeys(key for each in requests.values() for key in each)
    ]
    with closing(Store(path, "old")) as store:
        store.extend(records(rows))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "UPDATE openings SET boot = '', space = '', pid = 1, born = NULL, beat_at = 0, beat_uptime = 0"
        )
        marks = [
            f"PRAGMA {mark} = {connection.execute(f'PRAGMA {mark}').fetchone()[0]};"
            for mark in ("application_id", "user_version")
        ]
        SQL.write_text("\n".join([*connection.iterdump(), *marks, ""]), encoding="utf-8")
    path.unlink()


def test_a_ledger_written_before_is_not_paid_again(tmp_path):
    """Each of the thirty plans finds all its rows in it; a run, live or by batch, sends nothing."""
    path = tmp_path / "old.ledger"
    if os.environ.get("CLAUDESCALE_RECORD"):
        record(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SQL.read_text(encoding="utf-8"))
    with closing(Store(path)) as store:
        for options in OPTIONS.values():
            assert store.answered(a_plan(**options).requests["custom_id"]).all()
    client = anthropic.AsyncAnthropic(api_key=KEY, max_retries=0)
    for name in ("plain", "batch"):
        run = cs.wait(a_plan(**OPTIONS[name]).run(client, ledger=path, progress=False))
        assert (run.state, run.attempts.height) == ("finished", 0)
        assert run.job.replies()["reply"].unique().to_list() == ["late"]
