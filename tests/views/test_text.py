"""Formats of figures: units and digits."""

import math

import pytest

from claudescale.text import coarse, dollars, duration, significant, tokens


@pytest.mark.parametrize(("show", "value", "shown"), [
    (dollars, 0, "$0"), (dollars, 0.0000123, "$0.000012"), (dollars, 0.0999, "$0.100"),
    (dollars, 1.239, "$1.24"), (dollars, 1_234.5, "$1,234"), (dollars, math.nan, "?"),
    (dollars, -0.002, "-$0.0020"), (duration, 0.005, "0.3 s"), (duration, 0.9999, "1 m 00 s"),
    (duration, 2.24, "2 m 14 s"), (duration, 60_000, "1,000 h 00 m"), (duration, math.inf, "?"),
    (tokens, 999, "999"), (tokens, 12_400, "12.4 k"), (tokens, 999_999, "1 M"), (coarse, 40.1, "41 min"),
    (coarse, 24 * 60, "24 h"), (dollars, 1e-9, "$0.0000000010"), (significant, 1e11, "100,000,000,000"),
])  # fmt: skip
def test_figures(show, value, shown):
    """Dollars have cents, times their two largest units, counts three digits, and nothing an exponent."""
    assert show(value) == shown
