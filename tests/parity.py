"""Even or odd: rows with known answers, and simulated models that err on every n-th number."""

import polars as pl
from running import WIDE_LIMITS

import claudescale as cs

CHEAP, MIDDLE, DEAR = MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"]
WRONG_EVERY = {CHEAP: 5, MIDDLE: 50, DEAR: 10_000}
LABELS = pl.Enum(["even", "odd"])
RIGHT = pl.col("reply").cast(pl.String) == pl.col("truth").str.strip_chars().str.to_lowercase()


def number_of(body):
    """Return the number that a request asks about."""
    return int(body["messages"][0]["content"].split()[-1])


def numbers(rows):
    """Return numbers with their parity, in people's spellings."""
    truth = ["EVEN " if number % 2 == 0 else " Odd" for number in range(rows)]
    return pl.DataFrame({"number": range(rows), "truth": truth})


def answer(body):
    """Classify a number; a model errs on every n-th one, and where odd is asked first."""
    number, asks = number_of(body), body["messages"][0]["content"]
    wrong = number % WRONG_EVERY[body["model"]] == 0 or asks.startswith("Odd")
    return {"reply": ["even", "odd"][(number + wrong) % 2]}


def a_plan(rows=200, **options):
    """Return a plan that asks for the parity, with room for everything."""
    options = {"model": CHEAP, "tier": WIDE_LIMITS, "returns": LABELS, "max_tokens": 2000, **options}
    frame, prompt = options.pop("frame", numbers(rows)), options.pop("prompt", "Even or odd? {number}")
    return cs.plan(frame, prompt, **options)
