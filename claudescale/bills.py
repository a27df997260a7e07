"""What tokens cost, what a run was billed for, and what its strategy saved.

Every row is priced by itself and the dollars are summed: with some models the price of the whole
request depends on the length of its prompt, so summed tokens would be priced wrongly.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import polars as pl

from claudescale import catalog, clock
from claudescale.errors import PlanError, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    """

    model: str
    mode: catalog.Mode
    steps: tuple[PriceStep, ...]
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
        )


def price(model: str | catalog.Model, *, mode: catalog.Mode = "live", at: datetime | None = None) -> Price:
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
    if isinstance(model, catalog.Model) and model.given:
        return _given(model.id, mode, model.given_dollars)
    moment = clock.now() if at is None else at
    model_id = model if isinstance(model, str) else model.id
    return _price(model_id, mode, (moment.astimezone(UTC) if moment.tzinfo else moment).date())


_TIMES = {"cache_write_5m": 1.25, "cache_write_1h": 2.0, "cache_read": 0.1}
"""What the cache costs, times the price of input. Source: Anthropic, *Pricing* (checked 2026-10-10)."""


@lru_cache(maxsize=1024)
def _given(model_id: str, mode: catalog.Mode, dollars: tuple[float, float] | None) -> Price:
    """Return a price made of what the user said; of nothing that is a number where nothing was said."""
    times = (0.5 if mode == "batch" else 1.0) / 1_000_000
    tokens, output = ((each * times) for each in dollars or (math.nan, math.nan))
    cached = {part: tokens * more for part, more in _TIMES.items()}
    step = PriceStep(above_tokens=0, input=tokens, output=output, **cached)
    return Price(model=model_id, mode=mode, steps=(step,), given=dollars is not None)


@lru_cache(maxsize=1024)
def _price(model_id: str, mode: catalog.Mode, day: date) -> Price:
    parts = catalog.list_price(model_id, mode=mode, at=datetime.combine(day, time(12), UTC))
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
    return Price(model=model_id, mode=mode, steps=tuple(steps))


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
        no use (see `waste`).
    """
    columns = {part: (part, column) for part, column in COLUMNS.items() if part != "output"}
    columns |= {"reply": ("output", "reply_tokens"), "thinking": ("output", "thinking_tokens")}
    billed = _billed(
        attempts,
        "thinking_tokens",
        reply_tokens=pl.col("output_tokens") - pl.col("thinking_tokens"),
        wasted=_waste_kind(attempts).is_not_null(),
    )
    tokens, paid, lost = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0.0), dict.fromkeys(columns, 0.0)
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
        )
        for sums in priced.group_by("wasted").sum().collect().iter_rows(named=True):
            for part, (_, column) in columns.items():
                tokens[part] += sums[column]
                paid[part] += sums[part]
                lost[part] += sums[part] if sums["wasted"] else 0.0
    whole = float(billed["dollars"].sum())
    rest = recorded - sum(paid.values())
    of = ", ".join(sources) or f"genai-prices {version('genai-prices')}"
    rows = [(part, tokens[part], paid[part], lost[part], of) for part in columns]
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
        plain += pl.col("output_tokens") * _rate(live, "output", PROMPT)
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
    needed = ("model", "mode", "sent_at", "dollars", *COLUMNS.values(), *columns)
    return attempts.lazy().select(*needed, **derived).filter(pl.col("dollars") > 0).collect()


def _row_dollars(price: Price) -> pl.Expr:
    return dollars(price, **{column: pl.col(column) for column in COLUMNS.values()})


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
    for model, mode in attempts.select("model", "mode").unique().sort(pl.all()).iter_rows():
        of = (pl.col("model") == model) & (pl.col("mode") == mode)
        days: dict[tuple[Price, Price], list[date]] = {}
        for sent in attempts.filter(of).select(day).to_series().unique().sort():
            at = datetime.combine(sent, time(12), UTC)
            prices = tuple(_known(given.get(model, model), each, at) for each in (mode, "live"))
            days.setdefault((prices[0], prices[1]), []).append(sent)
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
        return _given(model if isinstance(model, str) else model.id, mode, None)
