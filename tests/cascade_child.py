"""A process that runs a cascade over Polars' docstrings until it is killed; see `test_cascades`.

``python cascade_child.py <url> <ledger> <mode>``
"""

import inspect
import sys

import anthropic
import polars as pl
from running import WIDE_LIMITS

import claudescale as cs

MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"]
KINDS = [pl.DataFrame, pl.LazyFrame, pl.Series, pl.Expr]
ANSWER = {"guess": pl.Enum([kind.__name__ for kind in KINDS]), "summary": pl.String}


def docstrings(rows=None):
    """Return Polars' own docstrings: real texts, some of them more than once."""
    found = [
        (kind.__name__, name, inspect.getdoc(getattr(kind, name)))
        for kind in KINDS
        for name in dir(kind)
        if name[0] != "_"
    ]
    frame = pl.DataFrame(found, schema=["owner", "name", "doc"], orient="row").filter(pl.col("doc") != "")
    return frame if rows is None else frame.head(rows)


def the_cascade(rows=None, **options):
    """Return the cascade that child and parent run: a guess of the owner goes on until it is right."""
    options = {"tier": WIDE_LIMITS, "returns": ANSWER, "max_tokens": 2000, **options}
    prompt = "Which part of Polars is this from? Say in one sentence what it does.\n\n{doc}"
    plan = cs.plan(docstrings(rows), prompt, model=MODELS[0], **options)
    return cs.cascade(plan, MODELS, accept=pl.col("guess").cast(pl.String) == pl.col("owner"))


if __name__ == "__main__":
    url, ledger, mode = sys.argv[1:]
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    cs.wait(the_cascade(mode=mode).run(client, ledger=ledger, progress=False))
