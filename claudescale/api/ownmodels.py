"""A model that is not in the catalog: what the user knows of it, and for the rest what it is like."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field, replace
from decimal import Decimal
from numbers import Real

from claudescale import clock
from claudescale.api import catalog
from claudescale.errors import PlanError


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the catalog does not have: released yesterday, or a gateway's name for one.

    Pass one as ``model=``. Its id is sent as it is, and is part of every row's key. Without prices its
    dollars are unknown, so a `budget` needs both.

    Spends: nothing.

    Parameters
    ----------
    id : str
        As the API, or the gateway, takes it.
    like : str
        The model of the catalog that stands for all else: tokenizer, thinking, efforts, cache, and which of a
        tier's limits count.
    input_dollars, output_dollars : float, optional
        Dollars per million tokens. The cache and batches have the API's usual multiples of them: 1.25 and 2
        times for cache writes, a tenth for reads, half in batches.
    context_tokens, max_tokens : int, optional
        The longest request, and the longest reply.

    Raises
    ------
    PlanError
        Something of it cannot be, and what to type instead.

    Notes
    -----
    Source of the multiples: Anthropic, *Pricing* (checked 2026-10-10).

    Examples
    --------
    >>> Model("claude-haiku-6", input_dollars=0.2, output_dollars=1.0).like
    'claude-haiku-5-5'
    """

    id: str
    _: KW_ONLY
    like: str = "claude-haiku-5-5"
    input_dollars: float | None = None
    output_dollars: float | None = None
    context_tokens: int | None = None
    max_tokens: int | None = None
    facts: catalog.Model = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or self.id != self.id.strip():
            msg = f"cs.Model({self.id!r:.60}): the first argument is the name to send, such as 'my-haiku'."
            raise PlanError(msg)
        similar = catalog.model(self.like)
        prices = self.input_dollars, self.output_dollars
        tokens, output = _dollars(self, "input_dollars"), _dollars(self, "output_dollars")
        if None in prices and prices != (None, None):
            missing = "input_dollars" if self.input_dollars is None else "output_dollars"
            msg = f"cs.Model({self.id!r}) has one price: it needs {missing}= too, dollars per million tokens."
            raise PlanError(msg)
        context, most = (_tokens(self, name) for name in ("context_tokens", "max_tokens"))
        facts = replace(
            similar,
            id=self.id,
            snapshot=self.id,
            lifecycle="active",
            deprecated_on=None,
            retires_on=None,
            retires_not_before=None,
            successor=None,
            verified_only=False,
            context_tokens=context or similar.context_tokens,
            max_output_tokens=most or similar.max_output_tokens,
            prices_of=None,
            given=True,
            given_dollars=None if tokens is None or output is None else (tokens, output),
            source=f"given by you, like {similar.id}",
            checked=clock.now().date(),
        )
        object.__setattr__(self, "facts", facts)


def _dollars(given: Model, name: str) -> float | None:
    value = getattr(given, name)
    if value is None:
        return None
    real = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not value > 0:
        msg = (
            f"cs.Model({given.id!r}, {name}={value!r:.40}): it is dollars per million tokens and above 0, "
            f"such as {name}=0.5. Leave both prices out where they are not known."
        )
        raise PlanError(msg)
    return float(value)


def _tokens(given: Model, name: str) -> int | None:
    value = getattr(given, name)
    if value is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or value < 1:
        msg = f"cs.Model({given.id!r}, {name}={value!r:.40}): it is a whole number of tokens, such as 64_000."
        raise PlanError(msg)
    return int(value)
