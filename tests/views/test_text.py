"""How figures read: units, digits, one noun or several."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.text import coarse, dollars, duration, plural, significant, span, tokens


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "$0"), (0.0000123, "$0.000012"), (0.0071, "$0.0071"), (0.0999, "$0.100"), (0.1, "$0.10"),
        (1.239, "$1.24"), (999.99, "$999.99"), (1_234.5, "$1,234"), (12_345_678, "$12,345,678"),
        (float("nan"), "?"), (float("inf"), "?"), (-0.5, "-$0.50"), (-0.002, "-$0.0020"),
    ],
)  # fmt: skip
def test_dollars(value, shown):
    """Dollars have cents, or two significant digits below ten cents; above a thousand cents do not matter."""
    assert dollars(value) == shown


@pytest.mark.parametrize(
    ("minutes", "shown"),
    [
        (0, "0 s"), (0.005, "0.3 s"), (0.5, "30 s"), (0.9999, "1 m 00 s"), (2.24, "2 m 14 s"),
        (59.999, "1 h 00 m"), (61, "1 h 01 m"), (60_000, "1,000 h 00 m"), (float("inf"), "?"),
    ],
)  # fmt: skip
def test_duration(minutes, shown):
    """A time has its two largest units."""
    assert duration(minutes) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (999.7, "1 k"), (12_400, "12.4 k"), (999_999, "1 M"), (2_500_000_000, "2.5 G")],
)
def test_tokens(count, shown):
    """A count of tokens has three digits, and never an exponent."""
    assert tokens(count) == shown


@settings(max_examples=50)
@given(st.floats(0, 1e11))
def test_no_figure_has_an_exponent(value):
    """However large or small, people read digits."""
    for show in (dollars, duration, tokens, significant, coarse):
        assert "e" not in show(value)


def test_words():
    """One call, two batches, no replies; figures that read the same are said once."""
    assert [plural(1, "call"), plural(2, "batch"), plural(0, "reply")] == ["1 call", "2 batches", "0 replies"]
    assert (span("$1", "$2"), span("18 s", "18 s")) == ("$1 to $2", "18 s")
    assert (coarse(40.1), coarse(24 * 60)) == ("41 min", "24 h")
