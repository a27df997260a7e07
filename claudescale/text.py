"""Numbers as text: the format of dollars, times, tokens and counts. Also numbers as a user gives them."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any, cast


def plural(count: int, noun: str) -> str:
    """Return ``1 call``, ``2 calls``, ``2 batches`` or ``2 replies``."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{count:,} {noun}"


def span(low: str, high: str) -> str:
    """Return two figures as a range, or as one if they read the same."""
    return low if low == high else f"{low} to {high}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, without an exponent."""
    if not math.isfinite(value):
        return "?"
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def dollars(value: float) -> str:
    """Return dollars with cents: none from $1,000, and two significant digits below ten cents."""
    sign, size = "-" * (value < 0), abs(value)
    if not math.isfinite(value):
        return "?"
    if size >= 1_000:  # noqa: PLR2004 - cents no longer matter
        return f"{sign}${size:,.0f}"
    if size >= 0.1:  # noqa: PLR2004
        return f"{sign}${size:,.2f}"
    return f"{sign}${significant(size, 2)}"


def duration(minutes: float) -> str:
    """Return a time as ``2 m 14 s``, in its two largest units."""
    if not math.isfinite(minutes):
        return "?"
    seconds = round(minutes * 60)
    if seconds < 60:  # noqa: PLR2004
        return f"{minutes * 60:.1f} s".replace(".0", "") if minutes < 2 / 60 else f"{seconds} s"
    if seconds < 3600:  # noqa: PLR2004
        return f"{seconds // 60} m {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} m"


def coarse(minutes: float) -> str:
    """Return an uncertain time as ``40 min`` or ``24 h``."""
    if minutes < 90:  # noqa: PLR2004 - hours are precise enough
        return f"{math.ceil(minutes)} min"
    return f"{math.ceil(minutes / 60):,} h"


def tokens(count: float) -> str:
    """Return a count of tokens with three significant digits: ``12.4 k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:  # would read as 1,000 of the smaller unit
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def plain(value: Any, *, whole: bool = False) -> Any:
    """Return a NumPy number, a Decimal or a Fraction as an int or a float; anything else unchanged.

    `whole` turns 5.0 into 5.
    """
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return value
    try:
        number = float(value)
        if isinstance(value, numbers.Integral) or (whole and number == int(number)):
            return int(cast("int", value))
    except (ValueError, OverflowError):  # not a number, or too large for a float
        return value
    return number
