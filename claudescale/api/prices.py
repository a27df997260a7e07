"""Prices of tokens, the bill of a run, its waste, and the savings of its strategy.

Every row is priced separately and the dollars are summed. With some models the length of the prompt decides
the price of the whole request, so pricing summed tokens would be wrong.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from functools import lru_cache, reduce
from importlib.metadata import version
from operator import add
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog
from claudescale.api.catalog import COLUMNS, TRAITS, PriceStep
from claudescale.errors import PlanError, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from claudescale.prompts.requests import Charges

_TEXT, _COUNT, _DOLLARS = pl.String(), pl.Int64(), pl.Float64()

BILL = pl.Schema(
    {"part": _TEXT, "tokens": _COUNT, "dollars": _DOLLARS, "share": pl.Float64(), "wasted_dollars": _DOLLARS}
    | {"prices": _TEXT}
)
"""Columns of `bill`; `prices` names the source of the prices."""
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

UNCACHED_COLUMNS = [COLUMNS[part] for part in ("input", "cache_write_5m", "cache_write_1h")]
UNCACHED = reduce(add, map(pl.col, UNCACHED_COLUMNS))
"""Input tokens that count against the rate limits; cache reads do not."""
PROMPT = UNCACHED + pl.col("cache_read_input_tokens")

_ROUNDING_DOLLARS = 1e-9  # per row
_LISTED = f"genai-prices {version('genai-prices')}"
_USAGE = {column: pl.col(column) for column in COLUMNS.values()}
_BILLED = {part: pl.col(column) for part, column in COLUMNS.items() if part != "output"} | {
    "reply": pl.col("output_tokens") - pl.col("thinking_tokens"),
    "thinking": pl.col("thinking_tokens"),
}
"""The parts of a bill that are tokens, and the number of tokens in each."""
_TIMES = {"cache_write_5m": 1.25, "cache_write_1h": 2.0, "cache_read": 0.1}
"""Cache prices as multiples of the input price. Source: Anthropic, *Pricing* (checked 2026-10-10)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The list price of one model in one mode on one day."""

    model: str
    mode: catalog.Mode
    steps: tuple[PriceStep, ...]  # ascending; the last one that a prompt exceeds prices the whole request
    search: float | None  # the fee of one web search, if known
    day: date
    given: bool = False  # by the user

    @property
    def is_known(self) -> bool:
        """Whether the price is known; False for a model that the user described without prices."""
        return not math.isnan(self.steps[0].input)

    @property
    def source(self) -> str:
        """Where the price comes from, in a few words."""
        if not self.is_known:
            return "not known"
        return "given by you" if self.given else _LISTED

    def at(self, moment: datetime) -> Price:
        """Return the price on another day, or this one where that day's is unknown."""
        with suppress(PlanError):
            return self if self.given or not self.is_known else price(self.model, mode=self.mode, at=moment)
        return self

    def dollars(self, *, web_search_requests: float = 0, **tokens: float) -> float:
        """Return the dollars of one request, with tokens named as in `COLUMNS`; those left out are 0."""
        prompt = sum(tokens.values()) - tokens.get("output_tokens", 0)
        if not any(tokens.values()):
            return 0.0  # also where the price is unknown
        step = self.step(prompt)
        paid = sum(tokens.get(column, 0) * getattr(step, part) for part, column in COLUMNS.items())
        return float(paid + web_search_requests * (self.search or 0.0))

    def step(self, prompt_tokens: float) -> PriceStep:
        """Return the step that prices a request with a prompt of this length."""
        return [step for step in self.steps if prompt_tokens > step.above_tokens or not step.above_tokens][-1]


def price(
    model: str | catalog.ModelFacts,
    *,
    mode: catalog.Mode = "live",
    at: datetime | None = None,
    inference_geo: str | None = None,
) -> Price:
    """Return the list price of a model from genai-prices, or the price that the user gave.

    Parameters
    ----------
    model : str or Model
        A model in the catalog, including retired ones; or the facts about any model.
    mode : {"live", "batch"}
        How the requests are sent.
    at : datetime, optional
        When they are sent; the default is now. Prices change by UTC day.
    inference_geo : str, optional
        Where they are processed; ``"us"`` costs more on the models that support it.

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
    moment = at or catalog.now()
    day = (moment.astimezone(UTC) if moment.tzinfo else moment).date()
    if isinstance(model, catalog.ModelFacts) and model.given:
        listed = _given(model.id, mode, model.given_dollars, day)
    else:
        listed = _listed(model if isinstance(model, str) else model.id, mode, day)
    return answered(listed, inference_geo=inference_geo)


@lru_cache(maxsize=1024)
def _listed(model_id: str, mode: catalog.Mode, day: date, speed: str | None = None) -> Price:
    steps, search = catalog.list_price(model_id, mode, day, speed), catalog.search_dollars(model_id, day)
    return Price(model=model_id, mode=mode, steps=steps, search=search, day=day)


@lru_cache(maxsize=1024)
def _given(model_id: str, mode: catalog.Mode, dollars: tuple[float, float] | None, day: date) -> Price:
    """Return the price that the user gave; its rates are NaN where the user gave none."""
    times = (0.5 if mode == "batch" else 1.0) / 1_000_000
    tokens, output = (million * times for million in dollars or (math.nan, math.nan))
    cached = {part: tokens * more for part, more in _TIMES.items()}
    step = PriceStep(above_tokens=0, input=tokens, output=output, **cached)
    return Price(model=model_id, mode=mode, steps=(step,), search=None, day=day, given=dollars is not None)


@lru_cache(maxsize=1024)
def answered(
    asked: Price,
    *,
    answering_model: str | None = None,
    inference_geo: str | None = None,
    speed: str | None = None,
) -> Price:
    """Return the price of an answer by the model, geography and speed it names; `asked` prices the request.

    An answering model without a known price is priced as the requested one (`unpriced` reports it).
    """
    if asked.given or not asked.is_known:
        return asked
    real = asked
    with suppress(PlanError):  # the answer is billed anyway, so this must not end a run
        if answering_model and catalog.id_of(answering_model) != catalog.id_of(asked.model):
            real = _listed(answering_model, asked.mode, asked.day)
    with suppress(PlanError):
        if speed == "fast":
            real = _listed(real.model, asked.mode, asked.day, speed)
    if inference_geo != "us" or catalog.id_of(real.model) in catalog.CHARGES.no_inference_geo:
        return real
    return replace(real, steps=tuple(step.times(catalog.CHARGES.us_factor) for step in real.steps))


def worst_geography(asked: str | None) -> str:
    """Return the most expensive geography that a request may get: a workspace can default to US."""
    return "global" if asked == "global" else "us"


def most_with_tools(
    price: Price, facts: catalog.ModelFacts, max_tokens: int, charges: Charges
) -> float | None:
    """Return the most that a row with server tools can cost, whatever its text; None without such tools.

    Each turn of the model may read a full context window and write `max_tokens`.
    """
    if charges.turns <= 1:
        return None
    written = COLUMNS["cache_write_1h" if charges.caches else "cache_write_5m"]
    return price.dollars(
        web_search_requests=charges.searches or 0,
        output_tokens=charges.turns * max_tokens,
        **{written: charges.turns * facts.context_tokens},
    )


def unpriced(asked: Price, answering_model: str | None) -> str | None:
    """Return the note on an answer from a model without a known price; None where the price is known."""
    if answering_model is None or asked.given or not asked.is_known:
        return None
    real = answered(asked, answering_model=answering_model)
    if catalog.id_of(answering_model) == catalog.id_of(real.model):
        return None
    words = "whose price is not known. Its cost is estimated at the price of"
    return f"Answered by {answering_model}, {words} {asked.model}."


def dollars(price: Price, **tokens: pl.Expr) -> pl.Expr:
    """Return an expression for the dollars of each row, Float64; null where any token count is null.

    Parameters
    ----------
    price : Price
        From `price`.
    **tokens : pl.Expr
        Tokens per request, named as in `COLUMNS` and not overlapping, as in a reply's ``usage``. Those left
        out are 0, and estimates may be fractions. Thinking is part of `output_tokens`.

    Examples
    --------
    >>> paid = dollars(price("claude-haiku-5-5"), input_tokens=pl.col("tokens"))
    >>> pl.DataFrame({"tokens": [1_000, 200_000]}).select(paid.round(6).alias("dollars"))["dollars"].to_list()
    [0.0001, 0.1]
    """
    given = {part: tokens[column] for part, column in COLUMNS.items() if column in tokens}
    prompt = reduce(add, (count for part, count in given.items() if part != "output"), pl.lit(0))
    if not price.is_known:
        return pl.when(prompt + given.get("output", 0) > 0).then(math.nan).otherwise(0.0)
    return reduce(add, (count * _rate(price, part, prompt) for part, count in given.items())).cast(pl.Float64)


def _rate(price: Price, part: str, prompt: pl.Expr) -> pl.Expr:
    base, *steps = price.steps
    rate = pl.lit(getattr(base, part))
    for step in steps:
        rate = pl.when(prompt > step.above_tokens).then(getattr(step, part)).otherwise(rate)
    return rate


def answer_dollars(asked: Price, usage: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """Return the dollars of one answer (`usage_of`, `answer_of`), priced by its own `TRAITS`."""
    real = answered(asked, **{name: facts[name] for name in TRAITS})
    tokens = {column: usage[column] for column in COLUMNS.values()}
    return real.dollars(**tokens, web_search_requests=facts["web_search_requests"])


def answers_dollars(asked: Price, answers: pl.DataFrame) -> pl.Series:
    """Return the dollars of answers (`COLUMNS`, `ANSWERED`), each priced by its own `TRAITS`."""
    cost = pl.lit(None, pl.Float64)
    for traits in answers.select(TRAITS).unique(maintain_order=True).iter_rows(named=True):
        real = answered(asked, **traits)
        alike = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(value)) for name, value in traits.items())
        fees = pl.col("web_search_requests") * (real.search or 0.0)
        cost = pl.when(alike).then(dollars(real, **_USAGE) + fees).otherwise(cost)
    return answers.select(dollars=cost).to_series()


# --------------------------------------------------------------------------------- bill, waste and savings


def bill(attempts: pl.DataFrame, models: Iterable[catalog.ModelFacts] = ()) -> pl.DataFrame:
    """Return the bill: one row per part, whose dollars sum to the amount billed.

    Only attempts with `dollars` above zero are on the bill. Each is priced at the list price of the day it
    was sent. If that does not add up to the recorded dollars, because a price list has changed since, the
    row "price changed since" holds the difference. The row "price not known" holds the recorded dollars of
    models whose price is not known here.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them.
    models : iterable of Model
        Facts about models that are not in the catalog.

    Returns
    -------
    pl.DataFrame
        `BILL`: the parts input, cache_write_5m, cache_write_1h, cache_read, reply and thinking. Each has its
        tokens, its dollars, their share of the whole, and the dollars wasted on useless replies (see
        `waste`). If the web was searched, the part web_search holds the fees, without tokens: search results
        are input.
    """
    priced = _priced(attempts.with_columns(wasted=_waste_kind().is_not_null()), models)
    known, unknown = priced.filter("is_known"), priced.filter(~pl.col("is_known"))
    recorded, no_tokens = pl.col("dollars"), pl.lit(0, pl.Int64)
    lines = [_line(known, part, tokens, pl.col(f"{part}_dollars")) for part, tokens in _BILLED.items()]
    others = [
        _line(known, "web_search", no_tokens, pl.col("web_search_dollars")),
        _line(known, "price changed since", no_tokens, recorded - pl.col("own_dollars")),
        _line(unknown, "price not known", pl.sum_horizontal(COLUMNS.values()), recorded),
    ]
    rounding = _ROUNDING_DOLLARS * attempts.height
    lines += [line for line in others if not abs(line["dollars"].item()) <= rounding]  # NaN is unknown
    bill = pl.concat(lines)
    whole = bill["dollars"].sum()
    bill = bill.with_columns(share=pl.col("dollars") / whole if whole else 0.0)
    return bill.with_columns(pl.col(pl.Float64).fill_nan(None)).select(*BILL).cast(BILL)  # null is unknown


def _line(priced: pl.DataFrame, part: str, tokens: pl.Expr, cost: pl.Expr) -> pl.DataFrame:
    """Return one row of a bill: a part's tokens, dollars, wasted dollars, and the source of its prices."""
    return priced.select(
        part=pl.lit(part),
        tokens=tokens.sum(),
        dollars=cost.sum(),
        wasted_dollars=cost.filter("wasted").sum(),
        prices=pl.lit(", ".join(priced["source"].unique(maintain_order=True)) or _LISTED),
    )


def waste(attempts: pl.DataFrame) -> pl.DataFrame:
    """Return the attempts that produced no result, by kind, the most expensive first.

    The kind is the `error` of the attempt (cut-off and unreadable replies are billed, refused calls are
    not), or "repeated" for another paid reply to a row that already had one.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them, in chronological order.

    Returns
    -------
    pl.DataFrame
        `WASTE`: attempts, how many of them were billed, their tokens and their dollars.
    """
    billed = pl.col("dollars") > 0
    useless = attempts.lazy().with_columns(kind=_waste_kind()).filter(pl.col("kind").is_not_null())
    sums = useless.group_by("kind").agg(
        attempts=pl.len(),
        billed_attempts=billed.sum(),
        tokens=pl.sum_horizontal(COLUMNS.values()).filter(billed).sum(),
        dollars=pl.col("dollars").sum(),
    )
    return sums.sort(["dollars", "attempts", "kind"], descending=[True, True, False]).collect().cast(WASTE)


def savings(
    attempts: pl.DataFrame,
    *,
    duplicates: pl.DataFrame | None = None,
    models: Iterable[catalog.ModelFacts] = (),
) -> pl.DataFrame:
    """Return what each strategy saved, compared with the same rows and model without it.

    Read it from the top: `dollars_without` in the first row is the plain price of the plan (every row sent
    separately, live, nothing cached). Each row subtracts the savings of one strategy, so `dollars_with` in
    the last row is the amount billed. A cache that was written but hardly read has negative savings. Waste
    (see `waste`) is included in all figures alike.

    Parameters
    ----------
    attempts : pl.DataFrame
        One row per answer or failure of the API, as a run and its ledger have them, in chronological order.
    duplicates : pl.DataFrame, optional
        `key` and `duplicates`: the number of further rows answered by each request, each priced as the row
        it repeats.
    models : iterable of Model
        Facts about models that are not in the catalog.

    Returns
    -------
    pl.DataFrame
        `SAVINGS`: one row each for deduplication, cache and batch; `share` is a fraction of the plain price.
    """
    priced = _priced(attempts.with_columns(kept=_waste_kind().is_null()), models)
    repeats = pl.lit(0)
    if duplicates is not None:
        priced = priced.join(duplicates.select("key", "duplicates"), on="key", how="left")
        repeats = pl.col("duplicates").fill_null(0) * pl.col("kept")
    saved = {
        ("deduplication", "every row sent by itself"): pl.col("plain_dollars") * repeats,
        ("cache", "nothing cached"): pl.col("plain_dollars") - pl.col("live_dollars"),
        ("batch", "everything sent live"): pl.col("live_dollars") - pl.col("own_dollars"),
    }
    sums = priced.select(cost.sum().alias(strategy) for (strategy, _), cost in saved.items()).row(0)
    whole = without = priced["dollars"].sum() + sum(sums)
    rows = []
    for names, less in zip(saved, sums, strict=True):
        rows.append((*names, without, without - less, less, less / whole if whole else 0.0))
        without -= less
    return pl.DataFrame(rows, schema=SAVINGS, orient="row")


def _priced(attempts: pl.DataFrame, models: Iterable[catalog.ModelFacts]) -> pl.DataFrame:
    """Return the billed attempts with their dollars at the list price of their day; see `_at_prices`."""
    billed = attempts.filter(pl.col("dollars") > 0).with_columns(day=pl.col("sent_at").dt.date())
    given = {facts.id: facts for facts in models if facts.given}
    nothing = _given("", "live", None, datetime.now(UTC).date())
    priced = [_at_prices(billed.clear(), nothing, nothing)]
    for (name, mode, day, *traits), rows in billed.partition_by(
        "model", "mode", "day", *TRAITS, as_dict=True
    ).items():
        model, noon = given.get(name, name), datetime.combine(day, time(12), UTC)
        named = dict(zip(TRAITS, traits, strict=True))
        own, live = (answered(_known(model, how, noon), **named) for how in (mode, "live"))
        priced.append(_at_prices(rows, own, live))
    return pl.concat(priced)


def _at_prices(rows: pl.DataFrame, own: Price, live: Price) -> pl.DataFrame:
    """Return rows with the dollars of each part, and of the whole as sent, live, and live without cache."""
    fees = pl.col("web_search_requests") * (own.search or 0.0)
    rate_of = {part: part if part in COLUMNS else "output" for part in _BILLED}
    parts = {part: tokens * _rate(own, rate_of[part], PROMPT) for part, tokens in _BILLED.items()}
    return rows.with_columns(
        **{f"{part}_dollars": cost for part, cost in parts.items()},
        web_search_dollars=fees,
        own_dollars=dollars(own, **_USAGE) + fees,
        live_dollars=dollars(live, **_USAGE) + fees,
        plain_dollars=dollars(live, input_tokens=PROMPT, output_tokens=pl.col("output_tokens")) + fees,
        source=pl.lit(own.source),
        is_known=pl.lit(own.is_known),
    )


def _known(model: str | catalog.ModelFacts, mode: catalog.Mode, at: datetime) -> Price:
    """Return a price, or an unknown one for an unknown model: old ledgers must stay readable."""
    try:
        return price(model, mode=mode, at=at)
    except UnknownModel:
        return _given(model if isinstance(model, str) else model.id, mode, None, at.date())


def _waste_kind() -> pl.Expr:
    good = (pl.col("dollars") > 0) & pl.col("error").is_null()
    first = pl.when(good).then("key").is_first_distinct()
    return pl.when(good & ~first).then(pl.lit("repeated")).otherwise("error")
