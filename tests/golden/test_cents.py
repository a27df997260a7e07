"""Dollars of forty usages, live and in a batch: a usage costs what the price list says."""

import anthropic
import polars as pl
import pytest
from canned import KEY, BatchApi, Canned, message
from plans import WIDE

import claudescale as cs

PRICES = {  # dollars per million tokens: input, write 5m, write 1h, read, output
    "claude-haiku-5-5": (0.10, 0.125, 0.20, 0.01, 0.50),
    "claude-sonnet-5-5": (2.0, 2.5, 4.0, 0.10, 10.0),
    "claude-opus-5-5": (4.0, 5.0, 8.0, 0.20, 20.0),
    "claude-fable-5-1": (10.0, 12.5, 20.0, 0.25, 50.0),
}
LONG = (0.50, 0.625, 1.0, 0.05, 2.50)  # Haiku 5.5 when the whole prompt is above 100,000 tokens
SHAPES = [  # input, written for 5 minutes, for an hour, read, output
    (0, 0, 0, 0, 0),
    (10, 0, 0, 0, 5),
    (1_000, 0, 0, 0, 100),
    (1, 2_000, 0, 0, 1),
    (1, 0, 2_000, 0, 1),
    (7, 300, 500, 11_000, 64),
    (100_000, 0, 0, 0, 10),
    (100_001, 0, 0, 0, 10),
    (50_000, 25_000, 0, 25_001, 10),
    (999_999, 0, 0, 0, 30_000),
]


def answer(params):
    """Answer in the form of its row."""
    fresh, five, hour, read, output = SHAPES[int(params["messages"][0]["content"].split()[-1])]
    usage = {
        "input_tokens": fresh,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
        "cache_read_input_tokens": read,
        "output_tokens": output,
    }
    return {"type": "succeeded", "message": message(model=params["model"], usage=usage)}


def cost(model, shape):
    """Return the dollars according to the price list."""
    prices = LONG if model == "claude-haiku-5-5" and sum(shape[:4]) > 100_000 else PRICES[model]
    return sum(price * tokens for price, tokens in zip(prices, shape, strict=True)) / 1e6


@pytest.mark.parametrize("mode", ["live", pytest.param("batch", marks=pytest.mark.slow)])
def test_every_usage_is_priced_to_the_cent(mode):
    """Attempts, counts and bill give the price list's dollars for forty usages of four models."""
    frame, factor = pl.DataFrame({"n": range(len(SHAPES))}), {"live": 1.0, "batch": 0.5}[mode]
    for model in PRICES:
        plan = cs.plan(frame, "Row {n}", model=model, tier=WIDE, mode=mode, max_tokens=32_000)
        with Canned(BatchApi(answer)) as server:
            client = anthropic.AsyncAnthropic(api_key=KEY, base_url=server.url)
            run = cs.wait(plan.run(client, ledger=None, progress=False))
        rows = sorted(factor * cost(model, shape) for shape in SHAPES)
        paid = run.attempts.filter(mode=mode)["dollars"].sort()
        assert paid.to_list() == pytest.approx(rows, abs=1e-9)
        assert run.counts.dollars == pytest.approx(sum(rows), abs=1e-6)
        assert run.bill["dollars"].sum() == pytest.approx(sum(rows), abs=1e-6)
