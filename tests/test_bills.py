"""Bills: every row at genai-prices' price, every dollar in one part, savings that sum."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import genai_prices
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claudescale.api import catalog, prices
from claudescale.errors import PlanError, UnknownModel

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TWINS = {"claude-mythos-5-1", "claude-mythos-5"}  # genai-prices has their Fable twins alone
PRICED = [name for name in catalog.MODELS if name not in TWINS]
TOKENS = [
    "input_tokens",
    "cache_write_5m_input_tokens",
    "cache_write_1h_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
]
SCHEMA = {
    "key": pl.String,
    "model": pl.String,
    "mode": pl.String,
    "sent_at": pl.Datetime("us", "UTC"),
    "error": pl.String,
    **dict.fromkeys(TOKENS, pl.Int64),
    "thinking_tokens": pl.Int64,
    "dollars": pl.Float64,
}

# Prompts around the price steps, where a wrong comparison shows, and over the whole range.
counts = st.one_of(
    st.integers(0, 3_000),
    st.sampled_from([0, 1, 99_999, 100_000, 100_001, 199_999, 200_000, 200_001]),
    st.integers(0, 1_000_000),
)
usages = st.fixed_dictionaries(dict.fromkeys(TOKENS, counts))


def by_genai(model, mode, usage, at=NOW):
    """Give the dollars of one request as genai-prices counts them."""
    write = usage["cache_write_5m_input_tokens"] + usage["cache_write_1h_input_tokens"]
    total = usage["input_tokens"] + write + usage["cache_read_input_tokens"]
    found = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=total,
            cache_write_tokens=write,
            cache_write_1h_tokens=usage["cache_write_1h_input_tokens"],
            cache_read_tokens=usage["cache_read_input_tokens"],
            output_tokens=usage["output_tokens"],
        ),
        model,
        provider_id="anthropic",
        genai_request_timestamp=at,
        price_context={"processing": "batch"} if mode == "batch" else None,
    )
    return float(found.total_price)


def attempt(key="a", *, model="claude-haiku-5-5", mode="live", error=None, billed=True, at=NOW, **tokens):
    """Give one row of attempts, priced by genai-prices."""
    usage = dict.fromkeys(TOKENS, 0) | {name: count for name, count in tokens.items() if name in TOKENS}
    paid = by_genai(model, mode, usage, at) if billed else 0.0
    thinking = tokens.get("thinking_tokens", 0)
    row = {"key": key, "model": model, "mode": mode, "sent_at": at, "error": error, "dollars": paid}
    return row | usage | {"thinking_tokens": thinking}


def frame(*rows):
    """Give a frame of attempts."""
    return pl.DataFrame(list(rows), schema=SCHEMA)


MIXED = frame(
    attempt("a", input_tokens=1_000, output_tokens=300, thinking_tokens=100),
    attempt("b", mode="batch", input_tokens=150_000, output_tokens=40),
    attempt("c", model="claude-opus-5-5", input_tokens=7, cache_write_5m_input_tokens=2_000, output_tokens=9),
    attempt("d", model="claude-opus-5-5", input_tokens=7, cache_read_input_tokens=2_000, output_tokens=9),
    attempt("e", model="claude-sonnet-5-5", mode="batch", cache_write_1h_input_tokens=900, output_tokens=1),
    attempt("f", error="rate_limit_error", billed=False),
    attempt("f", error="rate_limit_error", billed=False),
    attempt("f", error="truncated", input_tokens=500, output_tokens=1_024, thinking_tokens=1_000),
    attempt("f", input_tokens=500, output_tokens=80, at=NOW + timedelta(days=1)),
    attempt("a", input_tokens=1_000, output_tokens=310),
)


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("model", PRICED)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(usages, min_size=1, max_size=8))
def test_dollars_are_those_of_genai_prices(model, mode, rows):
    """The vectorised dollars of any usage are genai-prices' own, for every model and mode."""
    price = prices.price(model, mode=mode, at=NOW)
    each = prices.dollars(price, **{name: pl.col(name) for name in TOKENS})
    found = pl.DataFrame(rows, schema=dict.fromkeys(TOKENS, pl.Int64)).select(each.alias("dollars"))
    assert found.schema == {"dollars": pl.Float64}
    for row, paid in zip(rows, found["dollars"], strict=True):
        assert paid == pytest.approx(by_genai(model, mode, row), rel=1e-12, abs=1e-12)
        assert price.dollars(**row) == paid


def test_every_model_of_the_catalog_is_priced():
    """Those that are not in the property above cost what their twins cost; what is no model raises."""
    for model in TWINS:
        twin = prices.price(model.replace("mythos", "fable"), at=NOW)
        assert prices.price(model, at=NOW).steps == twin.steps
    with pytest.raises(UnknownModel, match="no model 'claude-next'"):
        prices.price("claude-next", at=NOW)


def test_rows_are_priced_one_by_one():
    """1,000 short rows of Haiku 5.5 cost $0.10, not the $0.50 that their summed tokens would."""
    rows = pl.DataFrame({"tokens": [500] * 1_000})
    zero = pl.lit(0)
    each = prices.dollars(
        prices.price("claude-haiku-5-5", at=NOW),
        input_tokens=pl.col("tokens"),
        cache_write_5m_input_tokens=zero,
        cache_write_1h_input_tokens=zero,
        cache_read_input_tokens=zero,
        output_tokens=pl.lit(100),
    )
    assert rows.select(each.sum().alias("dollars")).item() == pytest.approx(0.10)


def test_a_row_with_unknown_tokens_has_unknown_dollars():
    """A null among the tokens gives a null, never a price that leaves it out."""
    each = prices.dollars(prices.price("claude-haiku-5-5", at=NOW), **{name: pl.col(name) for name in TOKENS})
    rows = pl.DataFrame({name: [1, None] for name in TOKENS}, schema=dict.fromkeys(TOKENS, pl.Int64))
    assert rows.select(each.alias("dollars"))["dollars"].is_null().to_list() == [False, True]


def test_prices_are_those_of_the_day():
    """The price is the one of the day asked for, and a time zone does not move it to another."""
    early = prices.price("claude-opus-4-6", at=datetime(2026, 3, 12, tzinfo=UTC))
    late = prices.price("claude-opus-4-6", at=datetime(2026, 3, 13, tzinfo=UTC))
    assert (len(early.steps), len(late.steps)) == (2, 1)
    eastern = datetime.fromisoformat("2026-03-12T23:00:00-05:00")
    assert prices.price("claude-opus-4-6", at=eastern) == late
    with pytest.raises(PlanError, match="no batch price"):
        prices.price("claude-opus-4-6", mode="batch", at=datetime(2026, 9, 1, tzinfo=UTC))


def test_the_parts_of_a_bill_sum_to_what_was_billed():
    """Every billed dollar is in exactly one part, over models, modes, days and price steps."""
    bill = prices.bill(MIXED)
    assert bill.schema == prices.BILL
    parts = ["input", "cache_write_5m", "cache_write_1h", "cache_read", "reply", "thinking"]
    assert bill["part"].to_list() == parts
    assert bill["dollars"].sum() == pytest.approx(MIXED["dollars"].sum(), abs=1e-12)
    assert bill["share"].sum() == pytest.approx(1)
    assert bill["tokens"].sum() == MIXED.select(pl.sum_horizontal(TOKENS).sum()).item()
    by = dict(zip(bill["part"], bill["tokens"], strict=True))
    assert by["thinking"] == 1_100
    assert by["cache_write_5m"] == 2_000


def test_waste_is_shown_by_kind():
    """Billed replies without a result and refused calls are told apart, and a repeated reply is waste."""
    waste = prices.waste(MIXED)
    assert waste.schema == prices.WASTE
    found = {row["kind"]: row for row in waste.iter_rows(named=True)}
    assert set(found) == {"truncated", "repeated", "rate_limit_error"}
    assert found["rate_limit_error"]["attempts"] == 2
    assert found["rate_limit_error"]["dollars"] == 0.0
    assert found["truncated"]["tokens"] == 1_524
    # The first paid reply to a row is the one that is kept.
    assert found["repeated"]["dollars"] == pytest.approx(MIXED["dollars"][-1])
    lost = found["truncated"]["dollars"] + found["repeated"]["dollars"]
    assert prices.bill(MIXED)["wasted_dollars"].sum() == pytest.approx(lost, abs=1e-12)


def test_a_recorded_price_that_differs_is_its_own_row():
    """Should the recorded dollars not be today's list price, the difference is on the bill as such."""
    older = MIXED.with_columns(pl.col("dollars") * 2)
    bill = prices.bill(older)
    assert bill["part"].to_list()[-1] == "price changed since"
    assert bill["dollars"].sum() == pytest.approx(older["dollars"].sum(), abs=1e-12)


def plainly(row, *, mode, cached):
    """Price one row in another way."""
    usage = {name: row[name] for name in TOKENS}
    if not cached:
        total = sum(usage[name] for name in TOKENS if name != "output_tokens")
        usage = dict.fromkeys(TOKENS, 0) | {"input_tokens": total, "output_tokens": row["output_tokens"]}
    return by_genai(row["model"], mode, usage, row["sent_at"])


def test_savings_sum_to_the_difference():
    """The savings sum to the plain price less the billed one, each against its own counterfactual."""
    duplicates = pl.DataFrame({"key": ["a", "b", "nobody"], "duplicates": [3, 10, 99]})
    table = prices.savings(MIXED, duplicates=duplicates)
    assert table.schema == prices.SAVINGS
    assert table["strategy"].to_list() == ["deduplication", "cache", "batch"]

    billed = [row for row in MIXED.iter_rows(named=True) if row["dollars"]]
    paid = sum(row["dollars"] for row in billed)
    live = sum(plainly(row, mode="live", cached=True) for row in billed)
    uncached = sum(plainly(row, mode="live", cached=False) for row in billed)
    repeated = 3 * plainly(billed[0], mode="live", cached=False) + 10 * plainly(
        billed[1], mode="live", cached=False
    )
    expected = [repeated, uncached - live, live - paid]
    assert table["dollars_saved"].to_list() == pytest.approx(expected, abs=1e-12)
    assert table["dollars_without"][0] == pytest.approx(uncached + repeated, abs=1e-12)
    assert table["dollars_with"][2] == pytest.approx(paid, abs=1e-12)
    assert table["dollars_with"].to_list()[:2] == table["dollars_without"].to_list()[1:]
    assert table["dollars_saved"].sum() == pytest.approx(uncached + repeated - paid, abs=1e-12)


def test_a_number_of_duplicates_is_priced_at_the_mean():
    """With only their number known, duplicates cost the mean plain price of the replies that were kept."""
    rows = frame(
        attempt("a", input_tokens=1_000), attempt("b", input_tokens=3_000), attempt("b", input_tokens=9)
    )
    saved = prices.savings(rows, duplicates=4).row(0, named=True)["dollars_saved"]
    assert saved == pytest.approx(
        4 * by_genai("claude-haiku-5-5", "live", rows.row(0, named=True) | {"input_tokens": 2_000})
    )


def test_a_cache_that_is_never_read_loses_money():
    """A cache write that nothing reads back is a negative saving, not hidden."""
    rows = frame(attempt("a", model="claude-opus-5-5", cache_write_5m_input_tokens=5_000, output_tokens=5))
    cache = prices.savings(rows).row(1, named=True)
    assert cache["dollars_saved"] < 0


def test_nothing_sent_is_a_bill_of_nothing():
    """An empty frame, and one of failures only, give whole tables of zero."""
    for rows in (frame(), frame(attempt(error="overloaded_error", billed=False))):
        assert prices.bill(rows)["dollars"].to_list() == [0.0] * 6
        assert prices.savings(rows, duplicates=5)["dollars_saved"].to_list() == [0.0] * 3
    assert prices.waste(frame()).schema == prices.WASTE


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "d"]),
            st.sampled_from(["claude-haiku-5-5", "claude-sonnet-4-5", "claude-opus-5-5"]),
            st.sampled_from(["live", "batch"]),
            st.sampled_from([None, "truncated", "invalid_reply"]),
            st.integers(0, 3),
            usages,
        ),
        max_size=12,
    ),
    duplicates=st.integers(0, 50),
)
def test_bills_balance_for_any_attempts(rows, duplicates):
    """For any attempts the bill sums to the recorded dollars and the savings to the difference."""
    table = frame(
        *(
            attempt(key, model=model, mode=mode, error=error, at=NOW - timedelta(days=days), **usage)
            for key, model, mode, error, days, usage in rows
        )
    )
    paid = table["dollars"].sum()
    bill = prices.bill(table)
    assert bill["dollars"].sum() == pytest.approx(paid, abs=1e-9)
    assert "price changed since" not in bill["part"].to_list()
    waste = prices.waste(table)
    assert bill["wasted_dollars"].sum() == pytest.approx(waste["dollars"].sum(), abs=1e-9)
    saved = prices.savings(table, duplicates=duplicates)
    assert saved["dollars_with"][-1] == pytest.approx(paid, abs=1e-9)
    assert saved["dollars_without"][0] - saved["dollars_saved"].sum() == pytest.approx(paid, abs=1e-9)
