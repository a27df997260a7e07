"""What is printed: plain enough for a stream of any encoding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import polars as pl, claudescale as cs
labels = pl.Enum(["good", "bad"])
frame = pl.DataFrame({"text": ["late", "works"] * 40, "wert\u5024": ["bad", "good"] * 40})
with cs.Simulator(speed=600, latency=0.2) as api:
    plan = cs.plan(frame, "Say {text}", model="claude-haiku-5-5", returns=labels)
    cascade = cs.cascade(plan, models=["claude-haiku-5-5", "claude-sonnet-5-5"])
    ledger = cs.Ledger("b\u00fcro\u5024.ledger")
    run = cs.wait(plan.run(api.client(), ledger=ledger.path))
    bad = cs.plan(frame, "Say {text}", model="claude-haiku-5-5", system="wert\u5024")
    for each in (plan, cascade, run, ledger, plan.compiled.limits, api, run.plot.throughput(), bad):
        print(each)
    ledger.close()
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_everything_can_be_printed_in_every_encoding(encoding, tmp_path):
    """Plans, runs, cascades, ledgers and charts print in a pipe of any encoding, with plain arrows."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    text = done.stdout.decode(encoding)
    assert "live <-" in text
    assert "claude-haiku-5-5 -> claude-sonnet-5-5" in text
