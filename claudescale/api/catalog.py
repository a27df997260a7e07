"""Dated facts about models, usage tiers and the API's limits, and where prices come from.

The facts stand in ``catalog.toml``, each with its source and the day it was checked. Prices stand
nowhere in this package: they are read out of genai-prices, at the moment they are needed.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale import clock
from claudescale.api.facts import (
    BatchFacts,
    Lifecycle,
    MessageFacts,
    Mode,
    Model,
    Rates,
    RetiredModel,
    Tier,
    read_facts,
)
from claudescale.errors import PlanError, UnknownModel, UnknownTier, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from genai_prices.types import ModelInfo, ModelPrice

__all__ = [
    "BATCH",
    "CHARGES",
    "MESSAGE",
    "MODELS",
    "MODELS_SCHEMA",
    "PARTS",
    "RETIRED",
    "TIERS",
    "TIERS_SCHEMA",
    "BatchFacts",
    "Lifecycle",
    "MessageFacts",
    "Mode",
    "Model",
    "Rates",
    "RetiredModel",
    "Tier",
    "callable_model",
    "lifecycle",
    "list_price",
    "model",
    "models",
    "models_row",
    "notices",
    "refusal",
    "same_model",
    "search_dollars",
    "tier",
    "tier_rates",
    "tiers",
]

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

_TEXT, _COUNT, _DOLLARS, _DAY = pl.String(), pl.Int64(), pl.Float64(), pl.Date()

MODELS_SCHEMA = pl.Schema(
    dict.fromkeys(("model", "line", "lifecycle"), _TEXT)
    | dict.fromkeys((f"dollars_per_million_{part}_tokens" for part in ("input", "output")), _DOLLARS)
    | dict.fromkeys((f"batch_dollars_per_million_{part}_tokens" for part in ("input", "output")), _DOLLARS)
    | dict.fromkeys(("price_step_tokens", "context_tokens", "max_output_tokens"), _COUNT)
    | dict.fromkeys((f"dollars_per_million_{part}_tokens" for part in PARTS if "cache" in part), _DOLLARS)
    | {"cache_minimum_tokens": _COUNT, "characters_per_token": pl.Float64(), "rate_group": _TEXT}
    | {"thinks_by_default": pl.Boolean(), "efforts": pl.List(pl.String())}
    | {"retires_on": _DAY, "retires_not_before": _DAY, "successor": _TEXT, "source": _TEXT, "checked": _DAY}
)
"""Columns of `models`."""

TIERS_SCHEMA = pl.Schema(
    {"tier": _TEXT, "rate_group": _TEXT}
    | dict.fromkeys(Rates._fields, _COUNT)
    | {"batch_queue_requests": _COUNT, "spend_dollars_per_month": _DOLLARS}
    | {"batch_requests_per_minute": _COUNT, "count_tokens_per_minute": _COUNT}
    | {"family": _TEXT, "qualify": _TEXT, "source": _TEXT, "checked": _DAY}
)
"""Columns of `tiers`."""

MODELS, RETIRED, TIERS, MESSAGE, BATCH, CHARGES = read_facts()
"""Every model that was not retired when last checked, the retired ones, the usage tiers (all by name,
see `model` and `tier`), what one request to the Messages API and one batch may be, and what costs
besides tokens."""

_BY_NAME = {name: found for found in MODELS.values() for name in (found.id, found.snapshot)}
_RETIRED_BY_NAME = {name: found for found in RETIRED.values() for name in (found.id, found.snapshot)}


_NOTICE_DAYS = 60
"""How long before a model retires a plan says so: Anthropic's own notice is no shorter."""
_HALF = 2  # batches are billed at half the price. Source: Anthropic, *Batch processing* (2026-08-14)


def lifecycle(model: Model | RetiredModel, at: datetime | None = None) -> Lifecycle:
    """Return where a model stands in its life at a moment.

    Spends: nothing.

    Parameters
    ----------
    model : Model or RetiredModel
        From `MODELS` or `RETIRED`. It counts as retired from the announced moment on.
    at : datetime, optional
        The moment asked about; the default is now.
    """
    retires_at = model.retires_at
    if isinstance(model, RetiredModel) or (retires_at and (at or clock.now()) >= retires_at):
        return "retired"
    return model.lifecycle


def refusal(model: Model, at: datetime | None = None) -> str | None:
    """Return why a model cannot be called at a moment, and what to use; None where it can be.

    Spends: nothing.
    """
    if lifecycle(model, at) != "retired":
        return None
    return f"{model.id!r} was retired on {model.retires_on}: requests to it fail. Use {model.successor!r}."


def notices(model: Model, at: datetime | None = None, *, batch_minutes: float = 0.0) -> list[str]:
    """Return what to know before choosing a model: that it goes away, or that few may call it.

    Spends: nothing.

    Parameters
    ----------
    model : Model
        From `model`.
    at : datetime, optional
        When its calls would begin; the default is now.
    batch_minutes : float
        What its batches may take at most.
    """
    moment, retires_at = at or clock.now(), model.retires_at
    use = f"Use {model.successor!r}." if model.successor else "Choose another model: cs.models()."
    if retires_at is not None and moment >= retires_at:
        return [f"{model.id} was retired on {model.retires_on}: what is answered stays readable. {use}"]
    found = []
    if retires_at is not None and retires_at - moment <= timedelta(days=_NOTICE_DAYS):
        left = (retires_at.date() - moment.date()).days
        days = f"in {left} days" if left > 1 else "tomorrow" if left == 1 else "today"
        found.append(f"{model.id} retires {days}, on {retires_at:%Y-%m-%d at %H:%M} UTC. {use}")
    elif model.lifecycle == "deprecated":
        when = f" and retires on {model.retires_on}" if retires_at else ""
        found.append(f"{model.id} is deprecated{when}. {use}")
    if retires_at is not None and moment + timedelta(minutes=batch_minutes) > retires_at:
        hours = batch_minutes / 60
        found.append(f"A batch may take {hours:,.0f} hours, which is past that: its open rows would fail.")
    if model.verified_only:
        found.append(f"{model.id} is offered only to organizations that Anthropic has verified.")
    return found


def model(name: object) -> Model:
    """Return the facts about a model, also of one that has been retired since it was last checked.

    A dated id and its short alias give the same `Model`, so that both are one model everywhere. Whether
    it can be called is `refusal`'s to say: who only reads need not know.

    Spends: nothing.

    Parameters
    ----------
    name : str, claudescale.Model or Model
        The model's id, as the API takes it; or the facts themselves, which come back.

    Raises
    ------
    UnknownModel
        There is no such model in the catalog, or it was retired before the catalog knew it.
    PlanError
        It is no name at all.

    Examples
    --------
    >>> model("claude-haiku-4-5-20251001").id
    'claude-haiku-4-5'
    """
    facts = name if isinstance(name, Model) else getattr(name, "facts", None)
    if isinstance(facts, Model):
        return facts
    if not isinstance(name, str):
        raise PlanError(_no_name(name))
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    gone = _RETIRED_BY_NAME.get(name)
    if gone is not None:
        msg = f"{name!r} was retired on {gone.retires_on}: requests to it fail. Use {gone.successor!r}."
        raise UnknownModel(msg)
    newest = ", ".join(each.id for each in MODELS.values() if each.lifecycle == "active")
    ours = [each.id for each in MODELS.values() if each.lifecycle == "active" and each.line == name]
    hint = f" Did you mean {ours[0]!r}?" if ours else nearest(name, _BY_NAME)
    msg = (
        f"There is no model {name!r} in the catalog.{hint} Current models: {newest}. "
        f"A newer one, or a gateway's: model=cs.Model({name!r}, like=...)."
    )
    raise UnknownModel(msg)


def _no_name(name: object) -> str:
    """Return what to type instead of something that is no model's name."""
    if name is None:
        return "model=None: there is no default, as it decides the price. Such as model='claude-haiku-5-5'."
    if isinstance(name, pl.Expr | pl.Series):
        return (
            "model= is one name for all rows, not a column. Use one plan for each model: "
            "cs.plan(frame.filter(pl.col('model') == 'claude-haiku-5-5'), ..., model='claude-haiku-5-5')."
        )
    if isinstance(name, list | tuple | set | dict):
        return (
            f"model={name!r:.60}: a plan has one model. To compare the price of several use "
            "plan.compare(model=[...]), to try them cs.trial(plan, models=[...])."
        )
    return f"model={name!r:.60}: it is a name, such as model='claude-haiku-5-5'; cs.models() lists them."


def callable_model(name: object, at: datetime | None = None) -> Model:
    """Return the facts about a model that can be called at a moment.

    Spends: nothing.

    Raises
    ------
    UnknownModel
        There is no such model, or it is retired by then.
    """
    found = model(name)
    if (words := refusal(found, at)) is not None:
        raise UnknownModel(words)
    return found


def same_model(name: str, names: Iterable[str]) -> bool:
    """Return whether `names` has the model called `name`, be it by its dated id or its alias.

    Spends: nothing.
    """
    known = _BY_NAME.get(name)
    return bool({name, known.id, known.snapshot} & set(names)) if known else name in names


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

    Raises
    ------
    UnknownTier
        There is no such tier, or its limits for this model are not published.
    UnknownModel
        There is no such model.

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
    model_id: str, *, mode: Mode = "live", at: datetime | None = None, speed: str | None = None
) -> Mapping[str, tuple[tuple[int, Decimal], ...]]:
    """Return the list price by part (`PARTS`), in dollars per million tokens, as genai-prices has it.

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
    speed : str, optional
        ``"fast"`` for fast mode, which only live requests have.

    Raises
    ------
    UnknownModel
        The model, or its price, is unknown.
    PlanError
        The price for that mode or speed at that time is unknown.
    """
    if mode not in ("live", "batch"):
        msg = f"mode must be 'live' or 'batch', not {mode!r}"
        raise PlanError(msg)
    moment = clock.now() if at is None else at
    day = moment.astimezone(UTC).date() if moment.tzinfo else moment.date()
    found = _BY_NAME.get(model_id) or _RETIRED_BY_NAME.get(model_id) or model(model_id)
    return _list_price(found, mode, day, speed)


@lru_cache(maxsize=1024)
def _list_price(
    model: Model | RetiredModel, mode: Mode, day: date, speed: str | None
) -> Mapping[str, tuple[tuple[int, Decimal], ...]]:
    moment = datetime.combine(day, time(12), UTC)
    model_id = (isinstance(model, Model) and model.prices_of) or model.id
    info = _priced(model_id)
    when = {"processing": "batch"} if mode == "batch" else {"speed": "fast"} if speed == "fast" else None
    prices = info.get_prices(moment, when)
    if when and not any(
        variant.when == when and (variant.constraint is None or variant.constraint.active(moment))
        for variant in info.price_variants or ()
    ):
        # genai-prices then answers with the full price, silently. Of a model that retires it drops the batch
        # price, which what was sent before still has.
        if mode == "batch" and model.retires_on is not None:
            live = _list_price(model, "live", day, None)
            return MappingProxyType(
                {part: tuple((above, each / _HALF) for above, each in steps) for part, steps in live.items()}
            )
        begin = "; its batch prices begin on 2026-10-14" if mode == "batch" else ""
        msg = f"genai-prices has no {'batch' if begin else 'fast'} price of {model_id} on {day}{begin}."
        raise PlanError(msg)
    return MappingProxyType({part: _steps(prices, model_id, part) for part in PARTS})


@lru_cache(maxsize=1024)
def search_dollars(model_id: str, day: date) -> float | None:
    """Return what a web search costs with a model, live or in a batch, as genai-prices has it.

    Spends: nothing.
    """
    found = _BY_NAME.get(model_id) or _RETIRED_BY_NAME.get(model_id)
    priced_as = (isinstance(found, Model) and found.prices_of) or (found.id if found else model_id)
    prices = _priced(priced_as).get_prices(datetime.combine(day, time(12), UTC), None)
    thousand = prices.web_searches_kcount
    return float(thousand) / 1_000 if isinstance(thousand, Decimal) else None


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
    row: dict[str, Any] = {}
    with suppress(PlanError):  # an unknown price is null in the table
        live = list_price(model_id, at=moment)
        row = {f"dollars_per_million_{part}_tokens": float(live[part][0][1]) for part in PARTS}
        row["price_step_tokens"] = live["input"][1][0] if len(live["input"]) > 1 else None
        batch = list_price(model_id, mode="batch", at=moment)
        for part in ("input", "output"):
            row[f"batch_dollars_per_million_{part}_tokens"] = float(batch[part][0][1])
    return row


def models(*, at: datetime | None = None) -> pl.DataFrame:
    """Return one row per model that can be called (`MODELS_SCHEMA`), newest of each line first.

    Where `price_step_tokens` is set, a prompt longer than that costs more for the whole request; the
    prices shown are those up to it. A price that genai-prices does not know is null.

    Spends: nothing.

    Parameters
    ----------
    at : datetime, optional
        The moment the models are to be called; the default is now.

    Examples
    --------
    >>> models().select("model", "line").head(1).row(0)
    ('claude-haiku-5-5', 'haiku')
    """
    moment = at or clock.now()
    known = [each for each in MODELS.values() if lifecycle(each, moment) != "retired"]
    return pl.DataFrame([models_row(each, moment) for each in known], schema=MODELS_SCHEMA)


def models_row(model: Model | RetiredModel, at: datetime) -> dict[str, Any]:
    """Return what the catalog has of a model at a moment, as a row of `MODELS_SCHEMA`."""
    row = {name.name: getattr(model, name.name) for name in fields(model)}
    row |= _prices_row(model.id, at) | {"model": model.id, "lifecycle": lifecycle(model, at)}
    return {column: row.get(column) for column in MODELS_SCHEMA}


def tiers(model: Model | str | None = None) -> pl.DataFrame:
    """Return one row per usage tier and rate group (`TIERS_SCHEMA`), today's tiers first.

    Spends: nothing.

    Parameters
    ----------
    model : Model or str, optional
        Only this model's group: then one row per tier. Unpublished limits are null.

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
