"""Even or odd: rows with known answers, and simulated models that err on every n-th number."""

import polars as pl
import pytest
from running import WIDE_LIMITS, simulator

import claudescale as cs

CHEAP, MIDDLE, DEAR = MODELS = ["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"]
LABELS = pl.Enum(["even", "odd"])
RIGHT = pl.col("reply").cast(pl.String) == pl.col("truth").str.strip_chars().str.to_lowercase()


def number_of(body):
    """Return the number that a request asks about."""
    return int(body["messages"][0]["content"].split()[-1])


def numbers(rows):
    """Return numbers with their parity, in people's spellings."""
    truth = ["EVEN " if number % 2 == 0 else " Odd" for number in range(rows)]
    return pl.DataFrame({"number": range(rows), "truth": truth})


def answering(**wrong_every):
    """Return a function that answers; a model errs on every n-th number, and where odd is asked first."""
    every = dict(zip(MODELS, wrong_every.values(), strict=True))

    def answer(body):
        number, asks = number_of(body), body["messages"][0]["content"]
        wrong = number % every[body["model"]] == 0 or asks.startswith("Odd")
        return {"reply": ["even", "odd"][(number + wrong) % 2]}

    return answer


def a_plan(rows=200, **options):
    """Return a plan that asks for the parity, with room for everything."""
    options = {"model": CHEAP, "tier": WIDE_LIMITS, "returns": LABELS, "max_tokens": 2000, **options}
    frame, prompt = options.pop("frame", numbers(rows)), options.pop("prompt", "Even or odd? {number}")
    return cs.plan(frame, prompt, **options)


def run(thing, client, ledger=None):
    """Return a finished trial, or the finished run of a cascade."""
    return cs.wait(thing.run(client, ledger=ledger, progress=False))


def api_of(answer):
    """Return a fixture: a fresh simulator with these replies."""

    @pytest.fixture
    def api():
        with simulator(replies=answer, speed=200) as one:
            yield one

    return api
