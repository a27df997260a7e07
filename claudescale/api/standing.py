"""Whose limits the limits in force are: those of the tier that was named, of another, or an account's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from claudescale import text
from claudescale.api import catalog
from claudescale.api.limits import BUCKETS, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.api.catalog import Model

_UNITS = dict(zip(BUCKETS, ("requests", "input tokens", "output tokens"), strict=True))


def tiers_with(limits: Limits, model: Model) -> list[str]:
    """Return the names of the tiers whose table has exactly these limits for a model."""
    return [name for name, distance in _distances(limits, model).items() if not distance]


def nearest_tier(limits: Limits, model: Model) -> str | None:
    """Return the tier whose limits for a model are least times away; None where none is published."""
    distances = _distances(limits, model)
    return min(distances, key=lambda name: distances[name]) if distances else None


def differs(limits: Limits, tier: str | int | Limits, model: Model) -> str | None:
    """Return in one line how the limits in force differ from those of the tier named; None where not at all.

    Parameters
    ----------
    limits : Limits
        As the API tells them.
    tier : str, int or Limits
        As the user named it.
    model : Model
        Whose limits they are.

    Examples
    --------
    >>> from dataclasses import replace
    >>> haiku = catalog.model("claude-haiku-5-5")
    >>> differs(Limits.of("build", "claude-haiku-5-5"), "build", haiku)
    >>> slow = replace(Limits.of("build", "claude-haiku-5-5"), requests_per_minute=2_000)
    >>> print(differs(slow, "build", haiku))  # doctest: +NORMALIZE_WHITESPACE
    The API allows 2,000 requests a minute, not 5,000 as tier 'build' has: a workspace or a contract
    may set less.
    """
    named = Limits.of(tier, model)
    pairs = [
        (unit, allowed, told)
        for unit, allowed, told in zip(_UNITS.values(), limits.per_minute, named.per_minute, strict=True)
        if allowed != told
    ]
    if not pairs:
        return None
    allows = _listed(f"{_figure(allowed)} {unit}" for unit, allowed, _ in pairs)
    nots = _listed(_figure(told) for _, _, told in pairs)
    own = "your Limits have" if isinstance(tier, Limits) else f"tier {catalog.tier(tier).name!r} has"
    less = all(allowed < told for _, allowed, told in pairs)
    return f"The API allows {allows} a minute, not {nots} as {own}: {_whose(limits, tier, model, less=less)}."


def _whose(limits: Limits, tier: str | int | Limits, model: Model, *, less: bool) -> str:
    exact, nearest = tiers_with(limits, model), nearest_tier(limits, model)
    if exact:
        return f"those are the limits of tier={exact[0]!r}"
    if not isinstance(tier, Limits) and nearest in {None, catalog.tier(tier).name}:
        return "a workspace or a contract may set less" if less else "limits of the account's own"
    return f"nearest is tier={nearest!r}" + (", or a workspace sets less" if less else "")


def _distances(limits: Limits, model: Model) -> dict[str, float]:
    """Return by tier how many times, as a logarithm, the limit furthest from its table is away."""
    found: dict[str, float] = {}
    for name, each in catalog.TIERS.items():
        rates = each.limits.get(model.rate_group)
        if rates is not None:
            pairs = zip(limits.per_minute, rates, strict=True)
            found[name] = max(abs(math.log(allowed / told)) for allowed, told in pairs)
    return found


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value < 100_000 else text.tokens(value)  # noqa: PLR2004 - read at a glance


def _listed(words: Iterable[str]) -> str:
    several = list(words)
    return " and ".join(several) if len(several) < 3 else f"{', '.join(several[:-1])} and {several[-1]}"  # noqa: PLR2004
