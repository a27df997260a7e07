"""Numbers as words: how dollars, times, tokens and counts are written, and numbers as a user gives them."""

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
    """Return two figures as a span, or as one where they read the same."""
    return low if low == high else f"{low} to {high}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent."""
    if not math.isfinite(value):
        return "?"
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def dollars(value: float) -> str:
    """Return dollars with cents, or with two significant digits where they are less than ten cents."""
    sign, size = "-" * (value < 0), abs(value)
    if not math.isfinite(value):
        return "?"
    if size >= 1_000:  # noqa: PLR2004 - where cents no longer matter
        return f"{sign}${size:,.0f}"
    if size >= 0.1:  # noqa: PLR2004
        return f"{sign}${size:,.2f}"
    return f"{sign}${significant(size, 2)}"


def duration(minutes: float) -> str:
    """Return a time as ``2 m 14 s``, in the two largest units that matter."""
    if not math.isfinite(minutes):
        return "?"
    seconds = round(minutes * 60)
    if seconds < 60:  # noqa: PLR2004
        return f"{minutes * 60:.1f} s".replace(".0", "") if minutes < 2 / 60 else f"{seconds} s"
    if seconds < 3600:  # noqa: PLR2004
        return f"{seconds // 60} m {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} m"


def coarse(minutes: float) -> str:
    """Return a time that is not known well as ``40 min`` or ``24 h``."""
    if minutes < 90:  # noqa: PLR2004 - where hours say enough
        return f"{math.ceil(minutes)} min"
    return f"{math.ceil(minutes / 60):,} h"


def tokens(count: float) -> str:
    """Return a count of tokens in three significant digits: ``12.4 k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:  # what would be shown as 1,000 of the smaller unit
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def plain(value: Any, *, whole: bool = False) -> Any:
    """Return a number of NumPy's, a Decimal or a Fraction as Python's own; anything else as it is.

    `whole` takes 5.0 as 5.
    """
    if type(value).__module__ == "numpy" and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        return value
    try:
        number = float(value)
        if isinstance(value, numbers.Integral) or (whole and number == int(number)):
            return int(cast("int", value))
    except (ValueError, OverflowError):  # no number, or none that can be held
        return value
    return number
