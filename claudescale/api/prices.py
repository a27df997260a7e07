"""What tokens cost, what a run was billed for, and what its strategy saved.

Every row is priced by itself and the dollars are summed: with some models the price of the whole
request depends on the length of its prompt, so summed tokens would be priced wrongly.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import polars as pl

from claudescale import clock
from claudescale.api import catalog
from claudescale.api.facts import ANSWERED
from claudescale.errors import PlanError, UnknownModel
from claudescale.ledger.records import ATTEMPTS, Attempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from claudescale.prompts.requests import Charges

_TEXT, _COUNT, _DOLLARS = pl.String(), pl.Int64(), pl.Float64()

BILL = pl.Schema(
    {"part": _TEXT, "tokens": _COUNT, "dollars": _DOLLARS, "share": pl.Float64(), "wasted_dollars": _DOLLARS}
    | {"prices": _TEXT}
)
"""Columns of `bill`; `prices` says where those come from that the dollars are made of."""

WASTE = pl.Schema(
    {"kind": _TEXT} | dict.fromkeys(("attempts", "billed_attempts", "tokens"), _COUNT) | {"dollars": _DOLLARS}
)
"""Columns of `waste`."""

SAVINGS = pl.Schema(
    {"strategy": _TEXT, "counterfactual": _TEXT}
    | dict.fromkeys(("dollars_without", "dollars_with", "dollars_saved"), _DOLLARS)
    | {"share": pl.Float64()}
)
"""Columns of `savings`."""

COLUMNS = {
    "input": "input_tokens",
    "cache_write_5m": "cache_write_5m_input_tokens",
    "cache_write_1h": "cache_write_1h_input_tokens",
    "cache_read": "cache_read_input_tokens",
    "output": "output_tokens",
}
"""What is priced, and the column of an attempt that counts it."""
_ROUNDING_DOLLARS = 1e-9  # for each row
UNCACHED = (
    pl.col("input_tokens") + pl.col("cache_write_5m_input_tokens") + pl.col("cache_write_1h_input_tokens")
)
"""Input that counts against the limits: what is read from the cache does not."""
PROMPT = UNCACHED + pl.col("cache_read_input_tokens")
_SEARCH = "web_search"
_UNSAID = {name: pl.lit(Attempt._field_defaults[name], ATTEMPTS[name]) for name in ANSWERED}


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceStep:
    """Dollars per token for requests whose prompt is longer than `above_tokens`.

    The prompt is counted whole: input, cache writes and cache reads together.
    """

    above_tokens: int
    input: float
    cache_write_5m: float
    cache_write_1h: float
    cache_read: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The list price of one model in one mode.

    `steps` rise by `PriceStep.above_tokens`; the last one that a prompt exceeds prices its whole request.
    `search` is the fee of one web search, where it is known.
    """

    model: str
    mode: catalog.Mode
    steps: tuple[PriceStep, ...]
    search: float | None
    day: date = field(compare=False)
    given: bool = False

    @property
    def is_known(self) -> bool:
        """Whether it is known at all: of a model that the user named without its prices it is not."""
        return not math.isnan(self.steps[0].input)

    @property
    def source(self) -> str:
        """Where it comes from, in a few words."""
        if not self.is_known:
            return "not known"
        return "given by you" if self.given else f"genai-prices {version('genai-prices')}"

    def at(self, moment: datetime) -> Price:
        """Return the price of another day, or this one where that day's is not known."""
        with suppress(PlanError):
            return self if self.given or not self.is_known else price(self.model, mode=self.mode, at=moment)
        return self

    def dollars(
        self,
        *,
        input_tokens: float = 0,
        cache_write_5m_input_tokens: float = 0,
        cache_write_1h_input_tokens: float = 0,
        cache_read_input_tokens: float = 0,
        output_tokens: float = 0,
        web_search_requests: float = 0,
    ) -> float:
        """Return the dollars of one request, the same as the function `dollars` gives for a row.

        Spends: nothing.
        """
        prompt = (
            input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens + cache_read_input_tokens
        )
        if not prompt and not output_tokens:
            return 0.0  # of an unknown price, too
        step = [step for step in self.steps if prompt > step.above_tokens or not step.above_tokens][-1]
        return (
            input_tokens * step.input
            + cache_write_5m_input_tokens * step.cache_write_5m
            + cache_write_1h_input_tokens * step.cache_write_1h
            + cache_read_input_tokens * step.cache_read
            + output_tokens * step.output
            + web_search_requests * (self.search or 0.0)
        )


def price(
    model: str | catalog.Model,
    *,
    mode: catalog.Mode = "live",
    at: datetime | None = None,
    inference_geo: str | None = None,
) -> Price:
    """Return the list price of a model, as genai-prices has it, or the price that the user gave.

    Spends: nothing.

    Parameters
    ----------
    model : str or Model
        A model of the catalog, retired ones included; or the facts of any.
    mode : {"live", "batch"}
        How the requests are sent.
    at : datetime, optional
        When they are sent; the default is now. Prices change by UTC day.
    inference_geo : str, optional
        Where they are answered; ``"us"`` costs more on the models that have it.

    Raises
    ------
    UnknownModel
        The model or its price is unknown.
    PlanError
        The price for that mode at that time is unknown.

    Examples
    --------
    >>> cheap = price("claude-haiku-5-5", mode="batch")
    >>> [step.above_tokens for step in cheap.steps]
    [0, 100000]
    """
    moment = clock.now() if at is None else at
    day = (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    if isinstance(model, catalog.Model) and model.given:
        found = _given(model.id, mode, model.given_dollars, day)
    else:
        found = _price(model if isinstance(model, str) else model.id, mode, day)
    return answered(found, inference_geo=inference_geo)


def answered(
    asked: Price,
    *,
    answering_model: str | None = None,
    inference_geo: str | None = None,
    speed: str | None = None,
) -> Price:
    """Return the price of what an answer says it is, where a model was asked at a price.

    An answering model whose price is unknown is taken to cost what the asked one does (`is_priced` tells).

    Spends: nothing.
    """
    if asked.given or not asked.is_known:
        return asked
    if answering_model in (None, asked.model) and inference_geo != "us" and speed != "fast":
        return asked
    return _answered(asked, asked.day, answering_model or asked.model, inference_geo, speed)


_TIMES = {"cache_write_5m": 1.25, "cache_write_1h": 2.0, "cache_read": 0.1}
"""What the cache costs, times the price of input. Source: Anthropic, *Pricing* (checked 2026-10-10)."""


@lru_cache(maxsize=1024)
def _given(model_id: str, mode: catalog.Mode, dollars: tuple[float, float] | None, day: date) -> Price:
    """Return a price made of what the user said; of nothing that is a number where nothing was said."""
    times = (0.5 if mode == "batch" else 1.0) / 1_000_000
    tokens, output = ((each * times) for each in dollars or (math.nan, math.nan))
    cached = {part: tokens * more for part, more in _TIMES.items()}
    step = PriceStep(above_tokens=0, input=tokens, output=output, **cached)
    return Price(model=model_id, mode=mode, steps=(step,), search=None, day=day, given=dollars is not None)


@lru_cache(maxsize=1024)
def _answered(asked: Price, day: date, model: str, inference_geo: str | None, speed: str | None) -> Price:
    found = asked
    with suppress(PlanError):  # it is paid for all the same: never the end of a run
        found = asked if catalog.same_model(model, [asked.model]) else _price(model, asked.mode, day)
    if speed == "fast":
        with suppress(PlanError):
            found = _price(found.model, asked.mode, day, speed)
    if inference_geo != "us" or catalog.same_model(found.model, catalog.CHARGES.no_inference_geo):
        return found
    factor = catalog.CHARGES.us_factor
    parts = [{part: getattr(step, part) * factor for part in COLUMNS} for step in found.steps]
    steps = [replace(step, **part) for step, part in zip(found.steps, parts, strict=True)]
    return replace(found, steps=tuple(steps))


def worst_geography(asked: str | None) -> str:
    """Return where a request may be answered at worst: a workspace can set US geography by itself.

    Spends: nothing.
    """
    return "global" if asked == "global" else "us"


def most_with_tools(price: Price, facts: catalog.Model, max_tokens: int, charges: Charges) -> float | None:
    """Return the most a row can cost whose tools the API runs, whatever its text; None without such tools.

    Each turn of the model reads all that came before it, as far as it can hold, and may write `max_tokens`.

    Spends: nothing.
    """
    if charges.turns <= 1:
        return None
    written = "cache_write_1h_input_tokens" if charges.caches else "cache_write_5m_input_tokens"
    return price.dollars(
        output_tokens=charges.turns * max_tokens,
        web_search_requests=charges.searches or 0,
        **{written: charges.turns * facts.context_tokens},
    )


def is_priced(asked: Price, answering_model: str | None) -> bool:
    """Whether the price of the model that answered is known.

    Spends: nothing.
    """
    if answering_model is None or catalog.same_model(answering_model, [asked.model]):
        return True
    try:
        _price(answering_model, asked.mode, asked.day)
    except PlanError:
        return False
    return True


def unpriced_words(asked: str, answering_model: str) -> str:
    """Return what is said of a row whose answering model has no known price.

    Spends: nothing.
    """
    return f"Answered by {answering_model}, whose price is not known: reckoned at the price of {asked}."


@lru_cache(maxsize=1024)
def _price(model_id: str, mode: catalog.Mode, day: date, speed: str | None = None) -> Price:
    parts = catalog.list_price(model_id, mode=mode, at=datetime.combine(day, time(12), UTC), speed=speed)
    thresholds = sorted({above for steps in parts.values() for above, _ in steps})
    steps = [
        PriceStep(
            above_tokens=threshold,
            **{
                part: float([dollars for above, dollars in steps if above <= threshold][-1] / 1_000_000)
                for part, steps in parts.items()
            },
        )
        for threshold in thresholds
    ]
    search = catalog.search_dollars(model_id, day)
    return Price(model=model_id, mode=mode, steps=tuple(steps), search=search, day=day)


def dollars(
    price: Price,
    *,
    input_tokens: pl.Expr,
    cache_write_5m_input_tokens: pl.Expr,
    cache_write_1h_input_tokens: pl.Expr,
    cache_read_input_tokens: pl.Expr,
    output_tokens: pl.Expr,
) -> pl.Expr:
    """Return an expression of the dollars of each row, Float64.

    Spends: nothing.

    Parameters
    ----------
    price : Price
        From `price`.
    input_tokens, cache_write_5m_input_tokens, cache_write_1h_input_tokens : pl.Expr
        Tokens per request, not overlapping, as in a reply's ``usage``; estimates may be fractions.
    cache_read_input_tokens, output_tokens : pl.Expr
        The same; `output_tokens` has the thinking in it.

    Returns
    -------
    pl.Expr
        Null where any of the tokens is null.

    Examples
    --------
    >>> zero = pl.lit(0)
    >>> each = dollars(
    ...     price("claude-haiku-5-5"),
    ...     input_tokens=pl.col("tokens"),
    ...     cache_write_5m_input_tokens=zero,
    ...     cache_write_1h_input_tokens=zero,
    ...     cache_read_input_tokens=zero,
    ...     output_tokens=zero,
    ... )
    >>> pl.DataFrame({"tokens": [1_000, 200_000]}).select(each.round(6).alias("dollars"))["dollars"].to_list()
    [0.0001, 0.1]
    """
    prompt = (
        input_tokens + cache_write_5m_input_tokens + cache_write_1h_input_tokens + cache_read_input_tokens
    )
    if not price.is_known:
        return pl.when(prompt + output_tokens > 0).then(math.nan).otherwise(0.0)
    return (
        input_tokens * _rate(price, "input", prompt)
        + cache_write_5m_input_tokens * _rate(price, "cache_write_5m", prompt)
        + cache_write_1h_input_tokens * _rate(price, "cache_write_1h", prompt)
        + cache_read_input_tokens * _rate(price, "cache_read", prompt)
        + output_tokens * _rate(price, "output", prompt)
    ).cast(pl.Float64)


def _rate(price: Price, part: str, prompt: pl.Expr) -> pl.Expr:
    base, *steps = price.steps
    rate = pl.lit(getattr(base, part))
    for step in steps:
        rate = pl.when(prompt > step.above_tokens).then(getattr(step, part)).otherwise(rate)
    return rate


def bill(attempts: pl.DataFrame, models: Iterable[catalog.Model] = ()) -> pl.DataFrame:
    """Return what was paid for: one row per part, whose dollars sum to what was billed.

    Only attempts with `dollars` above zero are on the bill. The parts are priced at the list price of
    the day each was sent. Should that not add up to the recorded dollars, because a price list has
    changed since, one more row "price changed since" holds the difference. What models took whose price is
    not known here, whole as it was recorded, is in a row "price not known".

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them.
    models : iterable of Model
        Facts of models that the catalog does not have.

    Returns
    -------
    pl.DataFrame
        `BILL`: the parts input, cache_write_5m, cache_write_1h, cache_read, reply, thinking; of each the
        tokens, the dollars, their share of the whole, and how many of them went to replies that are of
        no use (see `waste`). Where the web was searched there is a part web_search for the fees, without
        tokens: what was found is input.
    """
    columns = {part: (part, column) for part, column in COLUMNS.items() if part != "output"}
    columns |= {"reply": ("output", "reply_tokens"), "thinking": ("output", "thinking_tokens")}
    billed = _billed(
        attempts,
        "thinking_tokens",
        reply_tokens=pl.col("output_tokens") - pl.col("thinking_tokens"),
        wasted=_waste_kind(attempts).is_not_null(),
    )
    tokens = dict.fromkeys(columns, 0)
    paid, lost = (dict.fromkeys((*columns, _SEARCH), 0.0) for _ in range(2))
    sources: dict[str, None] = {}
    unknown: list[pl.DataFrame] = []
    recorded = 0.0
    for frame, own, _ in _by_price(billed, models):
        if not own.is_known:
            unknown.append(frame)
            continue
        sources[own.source] = None
        recorded += float(frame["dollars"].sum())
        priced = frame.lazy().select(
            "wasted",
            *(pl.col(column) for _, column in columns.values()),
            **{part: pl.col(column) * _rate(own, of, PROMPT) for part, (of, column) in columns.items()},
            **{_SEARCH: _fees(own)},
        )
        for sums in priced.group_by("wasted").sum().collect().iter_rows(named=True):
            for part, (_, column) in columns.items():
                tokens[part] += sums[column]
            for part in paid:
                paid[part] += sums[part]
                lost[part] += sums[part] if sums["wasted"] else 0.0
    whole = float(billed["dollars"].sum())
    rest = recorded - sum(paid.values())
    of = ", ".join(sources) or f"genai-prices {version('genai-prices')}"
    rows = [(part, tokens[part], paid[part], lost[part], of) for part in columns]
    if paid[_SEARCH]:
        rows.append((_SEARCH, 0, paid[_SEARCH], lost[_SEARCH], of))
    if abs(rest) > _ROUNDING_DOLLARS * billed.height:
        rows.append(("price changed since", 0, rest, 0.0, of))
    if unknown:
        count = sum(int(frame.select(pl.sum_horizontal(COLUMNS.values()).sum()).item()) for frame in unknown)
        dollars = sum(float(frame["dollars"].sum()) for frame in unknown)
        wasted = sum(float(frame.filter("wasted")["dollars"].sum()) for frame in unknown)
        rows.append(("price not known", count, dollars, wasted, "not known"))
    per_dollar = 1 / whole if whole else 0.0
    shared = [(part, count, paid, paid * per_dollar, wasted, of) for part, count, paid, wasted, of in rows]
    # Nothing is no guess: what is not known is null.
    return pl.DataFrame(shared, schema=BILL, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def waste(attempts: pl.DataFrame) -> pl.DataFrame:
    """Return the attempts that gave no result, by kind, the dearest first.

    A kind is the `error` of the attempt (cut-off and unreadable replies are billed, refused calls are
    not), or "repeated" for a further paid reply to a row that had one.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them, in order of time.

    Returns
    -------
    pl.DataFrame
        `WASTE`: attempts, how many of them were billed, their tokens and their dollars.
    """
    every = pl.sum_horizontal(COLUMNS.values())
    return (
        attempts.lazy()
        .with_columns(kind=_waste_kind(attempts))
        .filter(pl.col("kind").is_not_null())
        .group_by("kind")
        .agg(
            attempts=pl.len(),
            billed_attempts=(pl.col("dollars") > 0).sum(),
            tokens=every.filter(pl.col("dollars") > 0).sum(),
            dollars=pl.col("dollars").sum(),
        )
        .sort(["dollars", "attempts", "kind"], descending=[True, True, False])
        .select(pl.col(name).cast(of) for name, of in WASTE.items())
        .collect()
    )


def savings(
    attempts: pl.DataFrame,
    *,
    duplicates: int | pl.DataFrame = 0,
    models: Iterable[catalog.Model] = (),
) -> pl.DataFrame:
    """Return what each strategy saved, against the same rows at the same model without it.

    Read it downward: `dollars_without` of the first row is the whole plan done plainly (every row sent by
    itself, live, nothing cached); each row takes one strategy away from that; `dollars_with` of the
    last row is what was billed. The savings sum to the difference. A cache that was written and hardly
    read saves less than nothing, and says so. Waste (see `waste`) is in all of the figures alike.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them, in order of time.
    duplicates : int or pl.DataFrame
        Rows that were answered with the reply to an identical row. As a frame with the columns `key` and
        `duplicates` each is priced as the row it repeats; as a number, at the mean of the paid replies.
    models : iterable of Model
        Facts of models that the catalog does not have.

    Returns
    -------
    pl.DataFrame
        `SAVINGS`: one row each for deduplication, cache and batch; `share` is of the plain price.
    """
    kept = _waste_kind(attempts).is_null()
    if isinstance(duplicates, int):
        billed = _billed(attempts, kept=kept)
        each = duplicates / max(int(billed["kept"].sum()), 1)
        billed = billed.with_columns(repeats=pl.col("kept") * each)
    else:
        counted = duplicates.select("key", repeats="duplicates")
        billed = _billed(attempts, "key", kept=kept).join(
            counted, on="key", how="left", maintain_order="left"
        )
        billed = billed.with_columns(pl.col("repeats").fill_null(0) * pl.col("kept"))
    sums = dict.fromkeys(("own", "live", "plain", "repeated"), 0.0)
    for frame, own, live in _by_price(billed, models):
        plain = PROMPT * _rate(live, "input", PROMPT)
        plain += pl.col("output_tokens") * _rate(live, "output", PROMPT) + _fees(live)
        priced = frame.lazy().select(
            own=_row_dollars(own),
            live=_row_dollars(live),
            plain=plain,
            repeated=plain * pl.col("repeats"),
        )
        for name, value in priced.sum().collect().row(0, named=True).items():
            sums[name] += value
    chain = {
        ("deduplication", "every row sent by itself"): sums["repeated"],
        ("cache", "nothing cached"): sums["plain"] - sums["live"],
        ("batch", "everything sent live"): sums["live"] - sums["own"],
    }
    whole = without = float(billed["dollars"].sum()) + sum(chain.values())
    rows = []
    for (strategy, counterfactual), saved in chain.items():
        share = saved / whole if whole else 0.0
        rows.append((strategy, counterfactual, without, without - saved, saved, share))
        without -= saved
    return pl.DataFrame(rows, schema=SAVINGS, orient="row")


def _billed(attempts: pl.DataFrame, *columns: str, **derived: pl.Expr) -> pl.DataFrame:
    needed = ("model", "mode", "sent_at", "dollars", *COLUMNS.values(), *columns, *ANSWERED)
    # Frames of attempts may be older than what answers say of themselves.
    absent = {name: _UNSAID[name] for name in ANSWERED if name not in attempts.columns}
    lazy = attempts.lazy().with_columns(**absent).select(*needed, **derived)
    return lazy.filter(pl.col("dollars") > 0).collect()


def _row_dollars(price: Price) -> pl.Expr:
    return dollars(price, **{column: pl.col(column) for column in COLUMNS.values()}) + _fees(price)


def _fees(price: Price) -> pl.Expr:
    return pl.col("web_search_requests") * (price.search or 0.0)


def answers_dollars(asked: Price, answers: pl.DataFrame) -> pl.Series:
    """Return the dollars of answers, each priced by what it says of itself: `COLUMNS` and `ANSWERED` of each.

    Spends: nothing.
    """
    said = ANSWERED[:-1]
    found: pl.Expr | None = None
    for each in answers.select(said).unique(maintain_order=True).iter_rows(named=True):
        these = _row_dollars(answered(asked, **each))
        those = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in each.items())
        found = these if found is None else pl.when(those).then(these).otherwise(found)
    return answers.select((_row_dollars(asked) if found is None else found).alias("dollars")).to_series()


def _waste_kind(attempts: pl.DataFrame) -> pl.Expr:
    good = (pl.col("dollars") > 0) & pl.col("error").is_null()
    different = pl.col("key").hash().filter(good).n_unique()
    if attempts.select(different == good.sum()).item():  # the usual case, four times as fast to see
        return pl.col("error")
    first = pl.when(good).then("key").is_first_distinct()
    return pl.when(good & ~first).then(pl.lit("repeated")).otherwise("error")


def _by_price(
    attempts: pl.DataFrame, models: Iterable[catalog.Model]
) -> Iterator[tuple[pl.DataFrame, Price, Price]]:
    """Split the attempts by price; with each, that price and the live one of the same days."""
    day = pl.col("sent_at").dt.date()
    given = {each.id: each for each in models if each.given}
    groups: dict[tuple[Price, Price], list[pl.Expr]] = {}
    kinds = ("model", "mode", *ANSWERED[:-1])
    for kind in attempts.select(kinds).unique().sort(pl.all()).iter_rows(named=True):
        of = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in kind.items())
        days: dict[tuple[Price, Price], list[date]] = {}
        model, mode = kind.pop("model"), kind.pop("mode")
        for sent in attempts.filter(of).select(day).to_series().unique().sort():
            at = datetime.combine(sent, time(12), UTC)
            asked = (_known(given.get(model, model), each, at) for each in (mode, "live"))
            own, live = (answered(each, **kind) for each in asked)
            days.setdefault((own, live), []).append(sent)
        for prices, those in days.items():
            only = of if len(days) == 1 else of & day.is_in(those)
            groups.setdefault(prices, []).append(only)
    for (own, live), masks in groups.items():
        yield (attempts if len(groups) == 1 else attempts.filter(pl.any_horizontal(masks))), own, live


def _known(model: str | catalog.Model, mode: catalog.Mode, at: datetime) -> Price:
    """Return a price; one that is not known where the model is not: a ledger is readable for ever."""
    try:
        return price(model, mode=mode, at=at)
    except UnknownModel:
        return _given(model if isinstance(model, str) else model.id, mode, None, at.date())
