"""Meter: counting on the way gives what counting at the end gives."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from claudescale.ledger.records import Attempt
from claudescale.running.meter import Meter


def attempt(key, error=None, *, tokens=1):
    """Return one call of a row."""
    return Attempt(
        key=key, run="r", mode="live", batch_id=None, model="m", sent_at=0.0, seconds=1.0,
        status=429 if error == "rate_limit_error" else 200, error=error, message=None, request_id=None,
        stop_reason=None, reply=None, input_tokens=tokens, cache_write_5m_input_tokens=tokens,
        cache_write_1h_input_tokens=tokens, cache_read_input_tokens=tokens, output_tokens=tokens,
        thinking_tokens=0, dollars=0.5, simulated=True,
    )  # fmt: skip


_KEYS = st.lists(st.sampled_from("abcdef") | st.none(), max_size=30)
_ENDS = st.sampled_from(
    [("reply", 0), ("reply", 2), ("refusal", 1), ("gone", 3), ("other", 0), ("other", 1), ("", 0)]
)


@given(_KEYS, st.lists(_ENDS, min_size=6, max_size=6))
def test_rows_end_as_their_key_does(keys, ends):
    """Each row is answered, failed or missing as its request is, repeated rows and retries included."""
    tally, fate = Meter(model="claude-haiku-5-5"), dict(zip("abcdef", ends, strict=True))
    tally.begin(pl.Series("key", keys, dtype=pl.String))
    calls = 0
    for key in {key for key in keys if key is not None}:
        end, retries = fate[key]
        for _ in range(retries):
            tally.add(attempt(key, "rate_limit_error"), final=False)
        if end == "other":
            tally.found(pl.DataFrame({"key": [key], "error": [None]}, schema_overrides={"error": pl.String}))
        if end in {"reply", "refusal"}:
            tally.add(attempt(key, None if end == "reply" else end), final=True)
        calls += retries + (end in {"reply", "refusal"})
        assert tally.answered + tally.failed + tally.missing == tally.sent
    before = tally.failed
    assert before == sum(key is not None and fate[key][0] == "refusal" for key in keys)
    tally.end()
    tally.end()
    of = [fate[key][0] for key in keys if key is not None]
    assert tally.rows == len(keys)
    assert tally.sent == len(of)
    assert tally.answered == of.count("reply") + of.count("other")
    assert tally.failed == of.count("refusal") + of.count("gone")
    assert tally.missing == of.count("")
    assert (tally.requests, tally.input_tokens, tally.output_tokens) == (calls, 4 * calls, calls)
    assert tally.dollars == 0.5 * calls


def test_refusals_are_counted_apart():
    """A 429 is a call and a refusal; a row that waits for its turn is missing, not failed."""
    tally = Meter(model="claude-haiku-5-5")
    tally.begin(pl.Series("key", ["a"]))
    tally.add(attempt("a", "rate_limit_error"), final=False)
    assert (tally.refused, tally.failed, tally.missing) == (1, 0, 1)
