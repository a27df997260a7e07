"""Dated facts about models, usage tiers and the API's limits, and where prices come from.

The facts are in ``catalog.toml``, each with its source and the day it was checked. This package contains
no prices: they are read from genai-prices when they are needed.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import polars as pl

from claudescale.errors import PlanError, UnknownModel, UnknownTier, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from genai_prices.types import ModelInfo, ModelPrice

Mode: TypeAlias = Literal["live", "batch"]
Lifecycle: TypeAlias = Literal["active", "legacy", "deprecated", "retired"]

PARTS = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
"""The kinds of tokens that have their own price, as in the ``usage`` of a reply."""
COLUMNS = {
    part: f"{part}_tokens" if part in {"input", "output"} else f"{part}_input_tokens" for part in PARTS
}
"""The column of an attempt that counts each of `PARTS`."""
USAGE = (*COLUMNS.values(), "thinking_tokens")
"""Columns that count an answer's usage. All but the last are priced: thinking is part of the output."""
TRAITS = ("answering_model", "inference_geo", "speed")
"""Fields of an answer that decide the price of its tokens."""
ANSWERED = (*TRAITS, "web_search_requests")
"""Fields of an answer that, with its tokens, decide its price."""


# ------------------------------------------------------------------------------------ the shape of a fact


@lru_cache
def retirement(day: date | None) -> datetime | None:
    """Return the moment of a retirement on `day`: 9 AM Pacific. Source: *Model deprecations* (2026-11-29)."""
    if day is None:
        return None
    # Polars brings its own time zones; a machine may have none.
    nine = pl.datetime(day.year, day.month, day.day, 9, time_zone="America/Los_Angeles")
    return datetime.fromtimestamp(pl.select(nine.dt.epoch("s")).item(), UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """The source of a fact, and the day it was checked."""

    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel(Fact):
    """The facts known about every model, including retired ones."""

    id: str  # the id to send; aliases resolve to it
    snapshot: str  # the dated id that `id` stands for
    line: str | None = None
    lifecycle: Lifecycle = "retired"  # as of `checked`
    retires_on: date | None = None  # announced; requests fail from `retires_at` on
    successor: str | None = None  # the replacement that Anthropic recommends

    @property
    def retires_at(self) -> datetime | None:
        """The moment from which requests fail, in UTC; None if none is announced."""
        return retirement(self.retires_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts(KnownModel):
    """The facts about a model that can be called."""

    line: str
    deprecated_on: date | None = None
    retires_not_before: date | None = None  # promised, where no retirement is announced
    verified_only: bool  # only organizations that Anthropic has verified may call it
    context_tokens: int
    max_output_tokens: int
    cache_minimum_tokens: int | None = None  # the shortest prefix that is cached; None if unknown
    characters_per_token: float  # for estimates; depends on the tokenizer
    tokenizer: str  # "2024", or "2026" (Opus 4.7 and later: about 30% more tokens for the same text)
    rate_group: str  # models of one group share one set of rate limits
    thinks_by_default: bool
    thinking_types: tuple[str, ...]
    # The ``thinking`` that turns thinking off for bulk rows. None: off by default, or always on.
    thinking_off: dict[str, str] | None = field(default=None, hash=False)
    thinking_off_up_to_effort: str | None = None  # above this effort `thinking_off` is refused
    efforts: tuple[str, ...]  # empty where the parameter is refused
    default_effort: str | None = None
    effort_for_bulk: str | None = None  # keeps thinking small where it cannot be turned off
    structured_outputs: bool
    batch: bool
    prices_of: str | None = None  # a twin at the same price, where genai-prices has only the twin
    given: bool = False  # described by the user, see `claudescale.Model`
    given_dollars: tuple[float, float] | None = None  # per million input and output tokens, if given


class PriceStep(NamedTuple):
    """Dollars per token for requests whose whole prompt is longer than `above_tokens`."""

    above_tokens: int
    input: float
    cache_write_5m: float
    cache_write_1h: float
    cache_read: float
    output: float

    def times(self, factor: float) -> PriceStep:
        """Return the step with every rate multiplied by a factor."""
        return self._replace(**{part: getattr(self, part) * factor for part in PARTS})


class Rates(NamedTuple):
    """A tier's limits per minute for one group of models."""

    requests_per_minute: int
    input_tokens_per_minute: int
    output_tokens_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier(Fact):
    """The limits of one usage tier. None means not published."""

    name: str
    family: Literal["today", "numbered"]  # the numbered tiers ended on the API on 2026-06-26
    qualify: str  # how an account gets there
    limits: Mapping[str, Rates] = field(hash=False)  # by rate group; empty if not published
    spend_dollars_per_month: float | None = None
    batch_queue_requests: int | None = None  # waiting in all batches together
    batch_requests_per_minute: int | None = None  # calls to all batch endpoints together
    count_tokens_per_minute: int | None = None  # calls, not tokens


def _model_facts(row: Mapping[str, Any]) -> ModelFacts:
    characters = _DATA["tokenizer"][row["tokenizer"]]["characters_per_token"]
    defaults = _DATA["model_defaults"] | {"snapshot": row["id"], "characters_per_token": characters}
    hashable = {name: tuple(row[name]) for name in ("thinking_types", "efforts")}
    return ModelFacts(**defaults | row | hashable)


def _tier_facts(row: Mapping[str, Any]) -> Tier:
    limits = {
        group: Rates(limit["requests"], limit["input_tokens"], limit["output_tokens"])
        for limit in row["limits"]
        for group in _DATA["limit_classes"][limit["class"]]
    }
    return Tier(**{**row, "limits": limits})


_HERE = Path(__file__).parent
_DATA = tomllib.loads((_HERE / "catalog.toml").read_text("utf-8"))
WORDS: dict[str, dict[str, str]] = tomllib.loads((_HERE / "words.toml").read_text("utf-8"))
"""Error texts for answers that bring none, and for models, limits and clients that cannot be used."""

MODELS: Mapping[str, ModelFacts] = {row["id"]: _model_facts(row) for row in _DATA["model"]}
"""Every model that was not retired when last checked."""
RETIRED = {row["id"]: KnownModel(**{"snapshot": row["id"]} | row) for row in _DATA["retired"]}
TIERS: Mapping[str, Tier] = {row["name"]: _tier_facts(row) for row in _DATA["tier"]}
MESSAGE, BATCH, CHARGES, ERRORS = (
    SimpleNamespace(**_DATA[name]) for name in ("message", "batch", "charges", "errors")
)
"""Limits on a request and a batch, charges besides tokens, and the meaning of error codes."""
MEDIA: Mapping[str, Any] = _DATA["media"]
"""Limits and token counts of images and PDFs; `claudescale.api.media` applies them."""

_BY_NAME = {name: facts for facts in MODELS.values() for name in (facts.id, facts.snapshot)}
_RETIRED_BY_NAME = {name: gone for gone in RETIRED.values() for name in (gone.id, gone.snapshot)}
_NOTICE = timedelta(days=60)  # how long before a retirement plans warn; Anthropic's notice is no shorter


# ----------------------------------------------------------------------------------------------- models


def now() -> datetime:
    """Return the current time in UTC, for facts and prices where no API gives the time."""
    return datetime.now(UTC)


def lifecycle(model: KnownModel, at: datetime | None = None) -> Lifecycle:
    """Return the lifecycle of a model at a moment (default now): retired from `retires_at` on."""
    retires_at = model.retires_at
    return "retired" if retires_at and (at or now()) >= retires_at else model.lifecycle


def refusal(model: KnownModel, at: datetime | None = None) -> str | None:
    """Return why a model cannot be called at a moment, and what to use instead; None if it can."""
    if lifecycle(model, at) != "retired":
        return None
    return WORDS["model"]["refused"].format(id=model.id, day=model.retires_on, successor=model.successor)


def notices(model: ModelFacts, at: datetime | None = None, *, batch_minutes: float = 0.0) -> list[str]:
    """Return warnings about a model: that it retires soon, or that only verified organizations may call it.

    Parameters
    ----------
    model : ModelFacts
        From `model`.
    at : datetime, optional
        When its calls would begin; the default is now.
    batch_minutes : float
        The longest time that its batches may take.
    """
    words, notes = WORDS["model"], []
    if model.retires_at is not None:
        facts = {"id": model.id, "successor": model.successor, "moment": model.retires_at}
        left = model.retires_at - (at or now())
        if left <= timedelta():
            return [words["retired"].format(**facts)]
        if left <= _NOTICE:
            notes.append(words["retires"].format(**facts))
        if left < timedelta(minutes=batch_minutes):
            notes.append(words["batch"].format(hours=batch_minutes / 60))
    if model.verified_only:
        notes.append(words["verified"].format(id=model.id))
    return notes


def model(name: object) -> ModelFacts:
    """Return the facts about a model, including one that has retired since it was last checked.

    A dated id and its short alias give the same facts, so both are one model everywhere. Facts about
    a retired model stay available; `refusal` says whether it can be called.

    Parameters
    ----------
    name : str, claudescale.Model or ModelFacts
        The model's id, as the API takes it; or its facts, which are returned unchanged.

    Raises
    ------
    UnknownModel
        The model is not in the catalog, or had already retired when the catalog was checked.
    PlanError
        `name` is of another type.

    Examples
    --------
    >>> model("claude-haiku-4-5-20251001").id
    'claude-haiku-4-5'
    """
    facts = name if isinstance(name, ModelFacts) else getattr(name, "facts", None)
    if isinstance(facts, ModelFacts):
        return facts
    if not isinstance(name, str):
        words = WORDS["no_model"]
        raise PlanError(words.get(type(name).__name__, words["other"]).format(name=name))
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _RETIRED_BY_NAME:
        raise UnknownModel(refusal(replace(_RETIRED_BY_NAME[name], id=name)))
    active = {facts.id: facts.line for facts in MODELS.values() if facts.lifecycle == "active"}
    newest = [model_id for model_id, line in active.items() if line == name]
    hint = f" Did you mean {newest[0]!r}?" if newest else nearest(name, _BY_NAME)
    raise UnknownModel(WORDS["model"]["unknown"].format(name=name, hint=hint, current=", ".join(active)))


def id_of(name: str) -> str:
    """Return the catalog's id for a dated id or an alias; any other name is returned unchanged."""
    return next((facts[name].id for facts in (_BY_NAME, _RETIRED_BY_NAME) if name in facts), name)


# ------------------------------------------------------------------------------------------------ tiers


def tier(name: str | int) -> Tier:
    """Return the limits of a usage tier.

    Parameters
    ----------
    name : str or int
        Today's "evaluation", "start", "build", "scale" and "custom", or the older 1 to 4, as a number or
        as in "tier 1". Case does not matter.

    Raises
    ------
    UnknownTier
        There is no such tier.

    Examples
    --------
    >>> tier(1).limits["haiku-5-5"].requests_per_minute
    50
    """
    bare = str(name).lower().replace("-", " ").removeprefix("tier").strip()
    for key in (bare, f"tier {bare}"):
        if key in TIERS:
            return TIERS[key]
    hint = nearest(bare, TIERS)
    raise UnknownTier(WORDS["limits"]["no_tier"].format(name=name, hint=hint, tiers=", ".join(TIERS)))


# ----------------------------------------------------------------------------------------------- prices


@lru_cache(maxsize=1024)
def list_price(model_id: str, mode: Mode, day: date, speed: str | None = None) -> tuple[PriceStep, ...]:
    """Return genai-prices' list price on a UTC day, in steps: the last one that a prompt exceeds applies.

    Parameters
    ----------
    model_id : str
        A model in the catalog. Retired models also have a live price.
    mode : {"live", "batch"}
        How the request is sent.
    day : date
        When it is sent, in UTC.
    speed : str, optional
        ``"fast"`` for fast mode, which only live requests have.

    Raises
    ------
    UnknownModel
        The model, or its price, is unknown.
    PlanError
        The price for that mode or speed at that time is unknown.
    """
    facts, info, noon = *_priced(model_id), datetime.combine(day, time(12), UTC)
    when = {"processing": "batch"} if mode == "batch" else {"speed": speed} if speed else None
    constraints = [variant.constraint for variant in info.price_variants or () if variant.when == when]
    if when and not any(constraint is None or constraint.active(noon) for constraint in constraints):
        # genai-prices would silently return the full price. It drops the batch price of a model that retires,
        # but earlier requests still cost half. Source: *Batch processing* (2026-08-14).
        if mode == "batch" and facts.retires_on is not None:
            return tuple(step.times(0.5) for step in list_price(model_id, "live", day))
        words = WORDS["model"]["batch_unpriced" if mode == "batch" else "fast_unpriced"]
        raise PlanError(words.format(id=info.id, day=day))
    prices, steps = info.get_prices(noon, when), []
    dollars = {part: _million_dollars(prices, part, info.id) for part in PARTS}
    for threshold in sorted({start for starts in dollars.values() for start in starts}):
        begun = {part: max(start for start in dollars[part] if start <= threshold) for part in PARTS}
        rates = {part: float(dollars[part][start] / 1_000_000) for part, start in begun.items()}
        steps.append(PriceStep(threshold, **rates))
    return tuple(steps)


def _million_dollars(prices: ModelPrice, part: str, model_id: str) -> dict[int, Decimal]:
    """Return the dollars per million tokens of a part, by the prompt length above which they apply."""
    price = getattr(prices, f"{part}_mtok")
    if price is None and part == "cache_write_5m":
        price = prices.cache_write_mtok
    if price is None:
        raise UnknownModel(WORDS["model"]["part_unpriced"].format(part=part, id=model_id))
    above = {step.start: step.price for step in getattr(price, "tiers", ())}
    return {0: getattr(price, "base", price)} | above


def search_dollars(model_id: str, day: date) -> float | None:
    """Return the dollars of one web search with a model, live or in a batch, from genai-prices."""
    _, info = _priced(model_id)
    thousand = info.get_prices(datetime.combine(day, time(12), UTC), None).web_searches_kcount
    return float(thousand) / 1_000 if isinstance(thousand, Decimal) else None


def _priced(model_id: str) -> tuple[KnownModel, ModelInfo]:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - slow, and often not needed

    facts = _RETIRED_BY_NAME.get(model_id) or model(model_id)
    name = getattr(facts, "prices_of", None) or facts.id
    try:
        return facts, get_snapshot().find_provider_model(name, None, "anthropic", None)[1]
    except LookupError as error:
        raise UnknownModel(WORDS["model"]["unpriced"].format(id=name)) from error


# ----------------------------------------------------------------------------------------------- frames

_TEXT, _COUNT, _DOLLARS, _DAY = pl.String(), pl.Int64(), pl.Float64(), pl.Date()

TIERS_SCHEMA = pl.Schema(
    {"tier": _TEXT, "rate_group": _TEXT}
    | dict.fromkeys(Rates._fields, _COUNT)
    | {"batch_queue_requests": _COUNT, "spend_dollars_per_month": _DOLLARS}
    | {"batch_requests_per_minute": _COUNT, "count_tokens_per_minute": _COUNT}
    | {"family": _TEXT, "qualify": _TEXT, "source": _TEXT, "checked": _DAY}
)
"""Columns of `tiers`."""


def tiers(model: ModelFacts | str | None = None) -> pl.DataFrame:
    """Return one row per usage tier and rate group (`TIERS_SCHEMA`), today's tiers first.

    Spends: nothing.

    Parameters
    ----------
    model : str, optional
        Restricts the rows to this model's group: one row per tier. Unpublished limits are null.

    Examples
    --------
    >>> tiers("claude-haiku-5-5").filter(tier="start")["requests_per_minute"].item()
    1000
    """
    called = MODELS.values() if model is None else [_model(model)]
    groups = dict.fromkeys(facts.rate_group for facts in called)
    rows = []
    for facts, group in itertools.product(TIERS.values(), groups):
        row = {fact.name: getattr(facts, fact.name) for fact in fields(facts)}
        rates = facts.limits.get(group)
        rows.append(row | {"tier": facts.name, "rate_group": group} | (rates._asdict() if rates else {}))
    return pl.DataFrame(rows, TIERS_SCHEMA)


_model = model  # `tiers` has a parameter of that name
