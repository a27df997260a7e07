"""Rows for tests of the ledger, and Python processes that write them."""

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl

from claudescale.ledger.records import ATTEMPTS, Attempt, Batch


def key(number):
    """Return a row's key."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def keys(numbers):
    """Return the keys of rows."""
    return pl.Series("key", [key(number) for number in numbers], pl.String)


def some(start, stop):
    """Return the keys of rows as a list."""
    return keys(range(start, stop)).to_list()


def attempt(number, **changes):
    """Return an answer to a row."""
    plain = Attempt(
        key(number), "", "live", None, "claude-haiku-5-5", 1_764_000_000.25 + number, 0.1 + number, 200, None,
        None, f"req_{number}", "end_turn", f'{number}: "quoted",\nand é 😀', number, 0, 0, 0, 7, 0,
        0.1 * number, simulated=False,
    )  # fmt: skip
    return plain._replace(**changes)


def expected(attempts, run):
    """Return the frame that a ledger gives for the attempts of a run."""
    rows = [each._replace(run=run, sent_at=datetime.fromtimestamp(each.sent_at, UTC)) for each in attempts]
    return pl.DataFrame(rows, schema=ATTEMPTS, orient="row")


def records(attempts):
    """Return final attempts as `Store.extend` takes them."""
    return expected(attempts, "whoever").with_columns(final=True)


def batch(number=0):
    """Return a batch that is about to be sent."""
    at = 1_764_000_000.25 + number
    return Batch(f"{number:012x}", "https://api.anthropic.com", "claude-haiku-5-5", 3, at)


def sent(number=0, **changes):
    """Return a batch that the API has accepted."""
    accepted = {"state": "in_progress", "batch_id": f"msgbatch_{number}", "created_at": 1.5}
    return batch(number)._replace(**accepted | changes)


def start(code, *arguments):
    """Start Python on `code`, which has this module as `t` and a `store` at `sys.argv[1]`."""
    begin = (
        "import os, random, sys, time\nfrom pathlib import Path\nimport ledger_rows as t\n"
        "from claudescale.errors import LedgerError\n"
        "from claudescale.ledger.store import Store\nstore = Store(Path(sys.argv[1]))\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", begin + code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **pipes)
