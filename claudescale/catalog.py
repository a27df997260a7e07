"""Dated facts about models, usage tiers and the API's limits, and where prices come from.

The facts stand in ``catalog.toml``, each with its source and the day it was checked. Prices stand
nowhere in this package: they are read out of genai-prices, at the moment they are needed.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import polars as pl

from claudescale.errors import PlanError, UnknownModel, UnknownTier, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from genai_prices.types import ModelInfo, ModelPrice

Mode: TypeAlias = Literal["live", "batch"]
Lifecycle: TypeAlias = Literal["active", "legacy", "deprecated", "retired"]

PARTS = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
"""The kinds of tokens that have a price of their own, as in the ``usage`` of a reply."""

_PRICE_KEYS = MappingProxyType(
    {
        "input": ("input_mtok",),
        "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok"),
        "cache_write_1h": ("cache_write_1h_mtok",),
        "cache_read": ("cache_read_mtok",),
        "output": ("output_mtok",),
    }
)

MODELS_SCHEMA = pl.Schema(
    {
        "model": pl.String(),
        "line": pl.String(),
        "lifecycle": pl.String(),
        "dollars_per_million_input_tokens": pl.Float64(),
        "dollars_per_million_output_tokens": pl.Float64(),
        "batch_dollars_per_million_input_tokens": pl.Float64(),
        "batch_dollars_per_million_output_tokens": pl.Float64(),
        "price_step_tokens": pl.Int64(),
        "context_tokens": pl.Int64(),
        "max_output_tokens": pl.Int64(),
        "dollars_per_million_cache_write_5m_tokens": pl.Float64(),
        "dollars_per_million_cache_write_1h_tokens": pl.Float64(),
        "dollars_per_million_cache_read_tokens": pl.Float64(),
        "cache_minimum_tokens": pl.Int64(),
        "characters_per_token": pl.Float64(),
        "rate_group": pl.String(),
        "thinks_by_default": pl.Boolean(),
        "efforts": pl.List(pl.String()),
        "retires_on": pl.Date(),
        "retires_not_before": pl.Date(),
        "successor": pl.String(),
        "source": pl.String(),
        "checked": pl.Date(),
    }
)
"""Columns of `models`."""

TIERS_SCHEMA = pl.Schema(
    {
        "tier": pl.String(),
        "rate_group": pl.String(),
        "requests_per_minute": pl.Int64(),
        "input_tokens_per_minute": pl.Int64(),
        "output_tokens_per_minute": pl.Int64(),
        "batch_queue_requests": pl.Int64(),
        "spend_dollars_per_month": pl.Float64(),
        "batch_requests_per_minute": pl.Int64(),
        "count_tokens_per_minute": pl.Int64(),
        "family": pl.String(),
        "qualify": pl.String(),
        "source": pl.String(),
        "checked": pl.Date(),
    }
)
"""Columns of `tiers`."""


class Rates(NamedTuple):
    """What a tier allows one group of models in a minute."""

    requests_per_minute: int
    input_tokens_per_minute: int
    output_tokens_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known about one model that can be called.

    Attributes
    ----------
    id : str
        The name to send; aliases resolve to it.
    snapshot : str
        The dated id that `id` stands for; the same as `id` where there is none.
    lifecycle : str
        As of `checked`: "active", "legacy", "deprecated".
    retires_on : date or None
        The announced day from which requests fail; None if none is announced.
    retires_not_before : date or None
        The day up to which Anthropic promised to keep it, where no retirement is announced.
    successor : str or None
        What to use instead, where there is something newer.
    verified_only : bool
        Only organizations that Anthropic has verified may call it.
    cache_minimum_tokens : int or None
        The shortest prefix that is cached; None is unknown.
    characters_per_token : float
        For estimates, by generation of the tokenizer.
    tokenizer : str
        "2024", or "2026" (Opus 4.7 and later: about 30% more tokens for the same text).
    rate_group : str
        Models of one group share one set of rate limits.
    thinks_by_default : bool
        It thinks unless told not to; thinking is billed as output.
    thinking_types : tuple of str
        What ``thinking.type`` may be.
    thinking_off : dict or None
        The ``thinking`` parameter that keeps thinking off in bulk rows. None: off already, or cannot
        be turned off.
    thinking_off_up_to_effort : str or None
        Above this effort `thinking_off` is refused; None is no such bound.
    efforts : tuple of str
        What ``output_config.effort`` may be; empty where the parameter is refused.
    default_effort : str or None
        The effort without the parameter.
    effort_for_bulk : str or None
        The effort that keeps thinking small where it cannot be turned off.
    """

    id: str
    snapshot: str
    line: str
    lifecycle: Lifecycle
    deprecated_on: date | None = None
    retires_on: date | None = None
    retires_not_before: date | None = None
    successor: str | None = None
    verified_only: bool
    context_tokens: int
    max_output_tokens: int
    cache_minimum_tokens: int | None = None
    characters_per_token: float
    tokenizer: str
    rate_group: str
    thinks_by_default: bool
    thinking_types: tuple[str, ...]
    thinking_off: dict[str, str] | None = field(default=None, hash=False)
    thinking_off_up_to_effort: str | None = None
    efforts: tuple[str, ...]
    default_effort: str | None = None
    effort_for_bulk: str | None = None
    sampling_allowed: bool
    structured_outputs: bool
    batch: bool
    source: str
    checked: date

    @property
    def notice(self) -> str | None:
        """What to know before choosing it: that it goes away, or that few may call it."""
        if self.lifecycle == "deprecated":
            when = f" and retires on {self.retires_on}" if self.retires_on else ""
            return f"{self.id} is deprecated{when}. Use {self.successor!r}."
        if self.verified_only:
            return f"{self.id} is offered only to organizations that Anthropic has verified."
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredModel:
    """A model that could be called once.

    Attributes
    ----------
    id, snapshot : str
        The short and the dated name.
    retires_on : date
        The day from which requests fail.
    successor : str
        The replacement that Anthropic recommends.
    """

    id: str
    snapshot: str
    line: str | None = None
    retires_on: date
    successor: str
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """What an account of one usage tier may do. None is not published.

    Attributes
    ----------
    name : str
        As `tier` takes it.
    family : str
        "today", or "numbered" for the tiers that ended on the API on 2026-06-26.
    qualify : str
        How one gets there.
    limits : mapping of str to Rates
        By rate group (`Model.rate_group`). Empty where limits are not published.
    spend_dollars_per_month : float or None
        The most the account may spend in a calendar month.
    batch_queue_requests : int or None
        Requests of all batches together that may wait at one time.
    batch_requests_per_minute : int or None
        HTTP calls to all batch endpoints.
    count_tokens_per_minute : int or None
        HTTP calls to the token counter (calls, not tokens).
    """

    name: str
    family: Literal["today", "numbered"]
    qualify: str
    limits: Mapping[str, Rates] = field(hash=False)
    spend_dollars_per_month: float | None = None
    batch_queue_requests: int | None = None
    batch_requests_per_minute: int | None = None
    count_tokens_per_minute: int | None = None
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFacts:
    """What the Messages API takes in one request."""

    max_bytes: int
    max_messages: int
    nonstreaming_max_tokens: int
    schema_optional_parameters: int
    schema_union_parameters: int
    schema_strict_tools: int
    source: str
    checked: date


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """What the Message Batches API takes in one batch, and how long it keeps it."""

    max_requests: int
    max_bytes: int
    expires_hours: int
    results_days: int
    custom_id_pattern: str
    refused_parameters: tuple[str, ...]
    source: str
    checked: date


_Row = TypeVar("_Row")


def _row(kind: type[_Row], row: Mapping[str, Any]) -> _Row:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


def _models_of(data: Mapping[str, Any]) -> dict[str, Model]:
    models = {}
    for row in data["model"]:
        tokenizer = data["tokenizer"][row["tokenizer"]]
        known = {"snapshot": row["id"], "characters_per_token": tokenizer["characters_per_token"]}
        models[row["id"]] = _row(Model, data["model_defaults"] | known | row)
    return models


def _tiers_of(data: Mapping[str, Any]) -> dict[str, Tier]:
    tiers = {}
    for row in data["tier"]:
        limits = {
            group: Rates(limit["requests"], limit["input_tokens"], limit["output_tokens"])
            for limit in row["limits"]
            for group in data["limit_classes"][limit["class"]]
        }
        tiers[row["name"]] = _row(Tier, row | {"limits": MappingProxyType(limits)})
    return tiers


with Path(__file__).with_name("catalog.toml").open("rb") as _file:
    _data = tomllib.load(_file)

MODELS: Mapping[str, Model] = MappingProxyType(_models_of(_data))
"""Every model in the catalog that is not retired as of its `checked`, by id. See `model`."""

RETIRED: Mapping[str, RetiredModel] = MappingProxyType(
    {row["id"]: _row(RetiredModel, {"snapshot": row["id"]} | row) for row in _data["retired"]}
)
"""Models that were retired when the catalog was checked, by id."""

TIERS: Mapping[str, Tier] = MappingProxyType(_tiers_of(_data))
"""Every usage tier, by name. See `tier`."""

MESSAGE = _row(MessageFacts, _data["message"])
"""What one request to the Messages API may be."""

BATCH = _row(BatchFacts, _data["batch"])
"""What one message batch may be."""

_BY_NAME = {name: found for found in MODELS.values() for name in (found.id, found.snapshot)}
_RETIRED_BY_NAME = {name: found for found in RETIRED.values() for name in (found.id, found.snapshot)}


def lifecycle(model: Model, on: date | None = None) -> Lifecycle:
    """Return where a model stands in its life on a day.

    Spends: nothing.

    Parameters
    ----------
    model : Model
        From `model` or `MODELS`.
    on : date, optional
        The day asked about; the default is today (UTC).

    Returns
    -------
    str
        "retired" from the announced day on, whatever the catalog said when it was checked.
    """
    day = on or datetime.now(UTC).date()
    return "retired" if model.retires_on and day >= model.retires_on else model.lifecycle


def model(name: str, *, on: date | None = None) -> Model:
    """Return the facts about a model that can be called.

    A dated id and its short alias give the same `Model`, so that both are one model everywhere.

    Spends: nothing.

    Parameters
    ----------
    name : str
        The model's id, as the API takes it.
    on : date, optional
        The day it is to be called; the default is today (UTC).

    Returns
    -------
    Model
        What is known, with a `Model.notice` if it is about to go.

    Raises
    ------
    UnknownModel
        There is no such model in the catalog, or it is retired on that day.

    Examples
    --------
    >>> model("claude-haiku-4-5-20251001").id
    'claude-haiku-4-5'
    """
    found = _BY_NAME.get(name)
    if found is not None and lifecycle(found, on) != "retired":
        return found
    gone = found or _RETIRED_BY_NAME.get(name)
    if gone is not None:
        msg = f"{name!r} was retired on {gone.retires_on}: requests to it fail. Use {gone.successor!r}."
        raise UnknownModel(msg)
    newest = ", ".join(each.id for each in MODELS.values() if each.lifecycle == "active")
    msg = f"There is no model {name!r} in the catalog.{nearest(name, _BY_NAME)} Current models: {newest}."
    raise UnknownModel(msg)


def tier(name: str | int) -> Tier:
    """Return what an account of a usage tier may do.

    Spends: nothing.

    Parameters
    ----------
    name : str or int
        Today's "evaluation", "start", "build", "scale", "custom"; or the older 1 to 4, as a number or
        as in "tier 1". Capitals do not matter.

    Returns
    -------
    Tier
        Limits by rate group; empty for a tier whose limits are not published.

    Raises
    ------
    UnknownTier
        There is no such tier.

    Examples
    --------
    >>> tier(1).limits["haiku-5-5"].requests_per_minute
    50
    """
    text = " ".join(str(name).lower().replace("-", " ").split())
    bare = text.removeprefix("tier").strip()
    for key in (text, bare, f"tier {bare}"):
        if key in TIERS:
            return TIERS[key]
    msg = (
        f"There is no usage tier {name!r}.{nearest(text, TIERS)} Tiers: {', '.join(TIERS)} (1 to 4 will do). "
        "With limits of your own: tier=cs.Limits(...)."
    )
    raise UnknownTier(msg)


def tier_rates(tier: Tier | str | int, model: Model | str) -> Rates:
    """Return the requests, input tokens and output tokens a minute that a tier allows a model.

    Spends: nothing.

    Parameters
    ----------
    tier : Tier, str or int
        A tier, or its name as `tier` takes it.
    model : Model or str
        A model, or its id.

    Returns
    -------
    Rates
        A tuple of three whole numbers.

    Raises
    ------
    UnknownTier
        There is no such tier, or its limits for this model are not published.
    UnknownModel
        There is no such model, or it is retired.

    Examples
    --------
    >>> tier_rates("start", "claude-haiku-5-5").input_tokens_per_minute
    2000000
    """
    # The parameters hide the functions of the same name; the public names are worth it.
    of = tier if isinstance(tier, Tier) else _tier(tier)
    called = model if isinstance(model, Model) else _model(model)
    rates = of.limits.get(called.rate_group)
    if rates is None:
        msg = (
            f"The limits of {called.id} on the tier {of.name!r} are not published (checked {of.checked}). "
            "Give your own, as the console's limits page shows them: tier=cs.Limits(requests_per_minute=..., "
            "input_tokens_per_minute=..., output_tokens_per_minute=...)."
        )
        raise UnknownTier(msg)
    return rates


_tier, _model = tier, model


def list_price(
    model_id: str, *, mode: Mode = "live", at: datetime | None = None
) -> Mapping[str, tuple[tuple[int, Decimal], ...]]:
    """Return the list price by part, in dollars per million tokens, as genai-prices has it.

    A part's price is one or more steps ``(above_tokens, dollars)``: the last step whose `above_tokens`
    the whole prompt (input, cache writes and cache reads together) exceeds holds for every token of the
    request.

    Spends: nothing.

    Parameters
    ----------
    model_id : str
        A model of the catalog; a retired one has a live price too.
    mode : {"live", "batch"}
        How the request is sent.
    at : datetime, optional
        When it is sent; the default is now. Prices change by UTC day.

    Returns
    -------
    mapping of str to tuple
        Keys are `PARTS`.

    Raises
    ------
    UnknownModel
        The model, or its price, is unknown.
    PlanError
        The price for that mode at that time is unknown.
    """
    if mode not in ("live", "batch"):
        msg = f"mode must be 'live' or 'batch', not {mode!r}"
        raise PlanError(msg)
    moment = datetime.now(UTC) if at is None else at
    day = moment.astimezone(UTC).date() if moment.tzinfo else moment.date()
    found = _BY_NAME.get(model_id) or _RETIRED_BY_NAME.get(model_id)
    return _list_price(found.id if found else model(model_id).id, mode, day)


@lru_cache(maxsize=1024)
def _list_price(model_id: str, mode: Mode, day: date) -> Mapping[str, tuple[tuple[int, Decimal], ...]]:
    moment = datetime.combine(day, time(12), UTC)
    info = _priced(model_id)
    prices = info.get_prices(moment, {"processing": "batch"} if mode == "batch" else None)
    if mode == "batch" and not any(
        variant.when == {"processing": "batch"}
        and (variant.constraint is None or variant.constraint.active(moment))
        for variant in info.price_variants or ()
    ):
        # genai-prices then answers with the full price, silently.
        msg = f"genai-prices has no batch price of {model_id} on {day}; its batch prices begin on 2026-10-14."
        raise PlanError(msg)
    return MappingProxyType({part: _steps(prices, model_id, part) for part in PARTS})


def _priced(model_id: str) -> ModelInfo:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415  # slow, and often not needed

    try:
        _, info = get_snapshot().find_provider_model(model_id, None, "anthropic", None)
    except LookupError as error:
        msg = (
            f"genai-prices does not know the price of {model_id}, so a run of it cannot be priced. "
            "A newer genai-prices may: pip install --upgrade genai-prices."
        )
        raise UnknownModel(msg) from error
    return info


def _steps(prices: ModelPrice, model_id: str, part: str) -> tuple[tuple[int, Decimal], ...]:
    from genai_prices.types import TieredPrices  # noqa: PLC0415

    value = next((found for key in _PRICE_KEYS[part] if (found := getattr(prices, key)) is not None), None)
    if value is None:
        msg = f"genai-prices has no {part} price of {model_id}."
        raise UnknownModel(msg)
    if isinstance(value, TieredPrices):
        return ((0, value.base), *((step.start, step.price) for step in value.tiers))
    return ((0, value),)


def _prices_row(model_id: str, moment: datetime) -> dict[str, Any]:
    try:
        live = list_price(model_id, at=moment)
    except UnknownModel:
        return {}
    row: dict[str, Any] = {f"dollars_per_million_{part}_tokens": float(live[part][0][1]) for part in PARTS}
    row["price_step_tokens"] = live["input"][1][0] if len(live["input"]) > 1 else None
    batch = list_price(model_id, mode="batch", at=moment)
    for part in ("input", "output"):
        row[f"batch_dollars_per_million_{part}_tokens"] = float(batch[part][0][1])
    return row


def models(*, at: datetime | None = None) -> pl.DataFrame:
    """Return one row per model that can be called, newest of each line first.

    Where `price_step_tokens` is set, a prompt longer than that costs more for the whole request; the
    prices shown are those up to it. A price that genai-prices does not know is null.

    Spends: nothing.

    Parameters
    ----------
    at : datetime, optional
        The moment the models are to be called; the default is now.

    Returns
    -------
    pl.DataFrame
        `MODELS_SCHEMA`; every row has its `source` and the day it was `checked`.

    Examples
    --------
    >>> models().select("model", "line").head(1).row(0)
    ('claude-haiku-5-5', 'haiku')
    """
    moment = at or datetime.now(UTC)
    rows = []
    for each in MODELS.values():
        stands = lifecycle(each, moment.date())
        if stands == "retired":
            continue
        row = {name.name: getattr(each, name.name) for name in fields(each)}
        rows.append(row | _prices_row(each.id, moment) | {"model": each.id, "lifecycle": stands})
    return pl.DataFrame(
        [{column: row.get(column) for column in MODELS_SCHEMA} for row in rows], schema=MODELS_SCHEMA
    )


def tiers(model: Model | str | None = None) -> pl.DataFrame:
    """Return one row per usage tier and rate group, today's tiers first.

    Spends: nothing.

    Parameters
    ----------
    model : Model or str, optional
        Only this model's group: then one row per tier. Unpublished limits are null.

    Returns
    -------
    pl.DataFrame
        `TIERS_SCHEMA`; every row has its `source` and the day it was `checked`.

    Examples
    --------
    >>> tiers("claude-haiku-5-5").filter(tier="start")["requests_per_minute"].item()
    1000
    """
    called = _model(model) if isinstance(model, str) else model
    every = tuple(dict.fromkeys(each.rate_group for each in MODELS.values()))
    groups = every if called is None else (called.rate_group,)
    rows = []
    for each, group in itertools.product(TIERS.values(), groups):
        row = {name.name: getattr(each, name.name) for name in fields(each)}
        rates = each.limits.get(group)
        row |= {"tier": each.name, "rate_group": group} | (rates._asdict() if rates else {})
        rows.append({column: row.get(column) for column in TIERS_SCHEMA})
    return pl.DataFrame(rows, schema=TIERS_SCHEMA)
