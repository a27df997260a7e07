"""Printed text is plain enough for a stream of any encoding."""

import io
import sys

import polars as pl
from running import finished, simulator

import claudescale as cs


def test_everything_can_be_printed_in_every_encoding(path, monkeypatch):
    """Plans, runs, cascades, ledgers and charts print in a pipe of any encoding, with plain arrows."""
    labels, model = pl.Enum(["good", "bad"]), "claude-haiku-5-5"
    frame = pl.DataFrame({"text": ["late", "works"] * 4, "wert\u5024": ["bad", "good"] * 4})
    plan = cs.plan(frame, "Say {text}", model=model, returns=labels)
    cascade = cs.cascade(plan, models=[model, "claude-sonnet-5-5"])
    trial = cs.trial(plan, models=[model, "claude-sonnet-5-5"], n=4)
    other = plan.replace(system="wert\u5024")
    with simulator() as api, cs.Ledger(path.with_name("b\u00fcro\u5024.ledger")) as ledger:
        run = finished(plan, api.client(), ledger=ledger.path)
        things = [plan, cascade, trial, run, ledger, plan.compiled.limits, api, run.plot.throughput(), other]
        for encoding in ("cp1252", "ascii", "utf-8"):
            written = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
            print(*things, sep="\n", flush=True)
            text = written.getvalue().decode(encoding)
            assert "live <-" in text
            assert "claude-haiku-5-5 -> claude-sonnet-5-5" in text
