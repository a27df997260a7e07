"""What the simulated account may do: the limits of a tier, or limits of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.errors import UnknownTier, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

FURTHER = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
PROMISED_GROUP = "fable-5"  # limits for a line whose own row is not published


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Limits of one simulated account.

    Attributes
    ----------
    name : str
        The tier's name, or "custom".
    limits : mapping of str to Rates
        By rate group; `every`, where set, holds for each group instead.
    """

    name: str
    limits: Mapping[str, catalog.Rates]
    every: catalog.Rates | None
    batch_queue_requests: int
    batch_requests_per_minute: int
    count_tokens_per_minute: int

    def rates(self, rate_group: str) -> catalog.Rates:
        """Return the requests, input tokens and output tokens a minute of one group of models."""
        if self.every is not None:
            return self.every
        return self.limits.get(rate_group) or self.limits[PROMISED_GROUP]


def terms(tier: Any, **limits: float) -> Terms:
    """Return the limits of a tier, with any of them replaced.

    Parameters
    ----------
    tier : str, int, tuple or object
        A tier's name or number; or (requests, input tokens, output tokens) per minute; or an object
        with `requests_per_minute`, `input_tokens_per_minute` and `output_tokens_per_minute`.
    **limits : float
        `requests_per_minute`, `input_tokens_per_minute`, `output_tokens_per_minute`,
        `batch_queue_requests`, `batch_requests_per_minute`, `count_tokens_per_minute`.

    Raises
    ------
    UnknownTier
        There is no such tier, or its limits are not published and none are given.
    TypeError
        A limit has a name that is none of the above.
    """
    names = (*catalog.Rates._fields, *FURTHER)
    for name, value in limits.items():
        if name not in names:
            msg = f"there is no limit {name!r}.{nearest(name, names)} Limits: {', '.join(names)}"
            raise TypeError(msg)
        if not value > 0:
            msg = f"{name} must be above 0, not {value!r}"
            raise ValueError(msg)
    known: catalog.Tier | None = None
    every: Mapping[str, float] = {}
    if isinstance(tier, (str, int)):
        known = catalog.tier(tier)
    elif isinstance(tier, (tuple, list)):
        every = dict(zip(catalog.Rates._fields, tier, strict=True))
    else:
        every = {name: getattr(tier, name) for name in catalog.Rates._fields}
        limits = {**_further(tier, FURTHER), **limits}
    custom = {**every, **{name: limits[name] for name in catalog.Rates._fields if name in limits}}
    table = known.limits if known else {}
    if known and not table and len(custom) < len(catalog.Rates._fields):
        msg = (
            f"the limits of the tier {known.name!r} are not published. Give your own, "
            "such as Simulator((50, 30_000, 8_000)): requests, input tokens, output tokens per minute"
        )
        raise UnknownTier(msg)
    if known and table and custom:
        table = {group: rates._replace(**custom) for group, rates in table.items()}  # type: ignore[arg-type]
    whole = catalog.Rates(**custom) if not table else None  # type: ignore[arg-type]
    other = known if known and known.batch_queue_requests else catalog.tier("start")
    further = {name: int(limits.get(name) or getattr(other, name) or 0) for name in FURTHER}
    return Terms(name=known.name if known else "custom", limits=table, every=whole, **further)


def _further(tier: Any, names: tuple[str, ...]) -> dict[str, float]:
    found = {name: getattr(tier, name, None) for name in names}
    return {name: value for name, value in found.items() if value}
