"""What a plan takes: all its calls, the dollars and minutes of each mode, and what meets its wishes."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import polars as pl

from claudescale.api import catalog, prices
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, refuse
from claudescale.pacing.pacer import FIRST_CONCURRENCY, MOST_CONCURRENCY, RATE_MARGIN
from claudescale.planning.calibration import Measured, guess
from claudescale.text import dollars, duration

if TYPE_CHECKING:
    from claudescale.api.catalog import ModelFacts
    from claudescale.api.limits import Limits
    from claudescale.api.prices import Price
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Prompt, Work
    from claudescale.prompts.retry import Retry

OPTIONS = pl.Schema(
    {"mode": pl.String()}
    | dict.fromkeys(("dollars", "dollars_p90", "minutes", "minutes_p90"), pl.Float64())
    | {"binding": pl.String(), "dollars_saved": pl.Float64()}
    | dict.fromkeys(("requests", "input_tokens", "output_tokens"), pl.Int64())
)
"""Columns of `Plan.options`: dollars and minutes as median and 90th percentile.

`binding` is what keeps a run from being quicker; ``"spend limit"`` where its dollars are more than the
account may spend in a month, so that the API would end it: the minutes are then those without that limit.
"""

SPEND_LIMIT, NOTHING = "spend limit", "nothing to send"
CANCEL_MINUTES = 5.0
"""What a hybrid run allows for a batch to be canceled: requests under way in it are still answered."""
AUTO = "auto"  # the cheapest mode that meets deadline and budget nine times in ten
_TRUSTED_DOUBT = 0.5
_SCALED = ("dollars", "dollars_p90", "input_tokens", "output_tokens")  # what is less when a part is left
_NORMAL = NormalDist()
# The part of a full bucket of output tokens that a run leaves in the mean: what is under way draws on it
# unseen, so the pacer keeps up to twice as much.
_OUTPUT_LEFT = 0.2
# A reply so many times longer than the mean one, and than a full bucket, holds up a run twice: the API lets
# nobody in while it is written, and then the pacer waits until it is paid for.
_LONG = 1.3
_CLOSED_FORM = 1.03  # by so much the minutes of a run may be off with every figure known


# --------------------------------------------------------------------------------- what all calls take


class Totals(NamedTuple):
    """What all the requests of a plan take together; what ends in `p90` is a 90th percentile."""

    rows: int
    sent_rows: int
    requests: int
    input_tokens: float
    uncached_tokens: float  # the input that the limits count
    output_tokens: float
    input_more: float  # by which part the 90th percentile of the tokens is above
    output_more: float
    input_deviation: float  # of a request's input tokens that are not read from the cache
    live_dollars: float
    live_dollars_p90: float
    batch_dollars: float
    batch_dollars_p90: float
    plain_dollars: float  # of every row sent by itself, live, nothing cached

    @property
    def unsent(self) -> int:
        """The rows that are not sent."""
        return self.rows - self.sent_rows


def total(sizes: pl.DataFrame, prompt: Prompt, expected: Measured, max_tokens: int) -> Totals:
    """Return what all requests take together: each priced by itself, then summed.

    Parameters
    ----------
    sizes : pl.DataFrame
        `estimated_tokens`, and how many `requests` of so many there are, for how many `rows`; null tokens are
        rows that are not sent.
    """
    sent = sizes.drop_nulls()
    live, batch = (
        prices.price(prompt.model, mode=mode, inference_geo=prompt.charges.inference_geo)
        for mode in ("live", "batch")
    )
    # One web search a row is assumed where there is such a tool; after a pilot the bill sets it right.
    fee = (live.search or 0.0) if prompt.charges.searches != 0 else 0.0
    sums = _sums(sent, expected, max_tokens, live, batch, fee=fee)
    requests, count = int(sums["requests"]), int(sums["requests"]) or 1
    uncached, prefix = sums["uncached"] / count, expected.cached_tokens
    mean = sums["estimated"] / count
    input_more, output_more = (figure.more(count, mean) for figure in (expected.input, expected.output))
    of_input, of_output = input_more * sums["silent"], output_more * (sums["live"] - sums["silent"])
    # Both depend on how long the texts are: where one is more than was measured, so is the other, at times.
    more = math.sqrt(of_input**2 + of_output**2 + of_input * of_output)
    live_writes, live_write = _cache_writes(live, "5m", prefix, requests, expected.cache_hit_share)
    batch_writes, batch_write = _cache_writes(batch, "1h", prefix, requests, expected.batch_hit_share)
    live_dollars = sums["live"] + live_writes * live_write
    batch_dollars = sums["batch"] + batch_writes * batch_write
    # What one batch found the next may not find.
    seldom = max(requests * (1 - catalog.BATCH.cache_hit_shares[0]) - batch_writes, 0.0) * batch_write
    batch_more = math.hypot(more * sums["batch"] / (sums["live"] or 1.0), seldom)
    ratio = expected.billed_ratio
    return Totals(
        rows=int(sizes["rows"].sum()),
        sent_rows=int(sent["rows"].sum()),
        requests=requests,
        input_tokens=sums["input"],
        uncached_tokens=min(sums["uncached"] + prefix * live_writes, sums["input"]),
        output_tokens=sums["output"],
        input_more=input_more,
        output_more=output_more,
        input_deviation=math.sqrt(max(sums["squares"] / count - uncached**2, 0.0)),
        live_dollars=live_dollars * ratio,
        live_dollars_p90=(live_dollars + more) * ratio,
        batch_dollars=batch_dollars * ratio,
        batch_dollars_p90=(batch_dollars + batch_more) * ratio,
        plain_dollars=sums["plain"] * ratio,
    )


def _sums(
    sent: pl.DataFrame, expected: Measured, max_tokens: int, live: Price, batch: Price, *, fee: float
) -> dict[str, float]:
    """Return tokens and dollars of all requests, as if each found the cache: `silent` is without a reply."""
    times = pl.col("requests")
    tokens = expected.input.at(pl.col("estimated_tokens")).clip(0.0)
    read = pl.min_horizontal(tokens, pl.lit(expected.cached_tokens))
    output = expected.output.at(pl.col("estimated_tokens")).clip(0.0, float(max_tokens))
    nothing = pl.lit(0.0)

    def paid(price: Price, read: pl.Expr, output: pl.Expr) -> pl.Expr:
        usage = {"input_tokens": tokens - read, "cache_read_input_tokens": read, "output_tokens": output}
        return prices.dollars(price, **usage) + fee

    of_a_request = {
        "requests": 1,
        "estimated": pl.col("estimated_tokens"),
        "input": tokens,
        "uncached": tokens - read,
        "squares": (tokens - read) ** 2,
        "output": output,
        "silent": paid(live, read, nothing),
        "live": paid(live, read, output),
        "batch": paid(batch, read, output),
    }
    return sent.select(
        **{name: (figure * times).sum() for name, figure in of_a_request.items()},
        plain=(paid(live, nothing, output) * pl.col("rows")).sum(),
    ).row(0, named=True)


def _cache_writes(
    price: Price, hold: str, prefix: float, requests: int, hit_share: float
) -> tuple[float, float]:
    """Return how many calls find no cache and write it, and what that costs each more than reading it."""
    write = price.dollars(**{f"cache_write_{hold}_input_tokens": prefix})
    return 1 + (requests - 1) * (1 - hit_share), write - price.dollars(cache_read_input_tokens=prefix)


# ------------------------------------------------------------------------------------ dollars and minutes


def option(options: pl.DataFrame, mode: str) -> dict[str, Any]:
    """Return the row of one mode of `OPTIONS`."""
    return options.row(by_predicate=pl.col("mode") == mode, named=True)


class Finish(NamedTuple):
    """When the last of a run's rows is answered, and what keeps it from being sooner."""

    seconds: float
    binding: str


def live_finish(
    limits: Limits,
    expected: Measured,
    *,
    requests: float,
    input_tokens: float,
    output_tokens: float,
    input_deviation: float = 0.0,
    concurrency: int | None = None,
    from_start: bool = False,
) -> Finish:
    """Return the closed form of how long requests take live: the slowest bucket, or the latency.

    A token bucket that holds `burst` seconds' worth at the start and refills at a constant rate lets
    a total pass in ``total / rate - burst``; with the limit on calls in flight it is Little's
    law. Each is a lower bound, and a first-come pacer reaches the largest of them. Then the last calls
    are still under way: the slowest of them is waited for.

    Parameters
    ----------
    input_tokens, output_tokens : float
        In all, input without reads from the prompt cache.
    input_deviation : float
        Standard deviation of a request's input tokens.
    concurrency : int, optional
        Most calls in flight.
    from_start : bool
        A run that starts has full buckets and few calls in flight, and waits for its slowest call.
    """
    if not requests:
        return Finish(0.0, NOTHING)
    reply, round_trip = expected.output, expected.latency.mean + expected.lost_seconds * from_start
    full, most = limits.burst_seconds or 1.0, concurrency or MOST_CONCURRENCY
    at_start = full / RATE_MARGIN if from_start else 1.0  # so many seconds' worth are in each bucket
    allowed = limits.shared(RATE_MARGIN).per_minute
    output_tokens *= 1 + expected.lost_rate
    used = (requests, input_tokens, output_tokens)
    alone = [total / limit * 60 for total, limit in zip(used, allowed, strict=True)]
    together = _together(requests, alone[0], alone[1], input_deviation / allowed[1] * 60, at_start)
    mean, capacity = output_tokens / requests, full * allowed[2] / 60
    varies = math.hypot(reply.deviation, reply.slope * reply.spread) / (reply.mean or 1.0)
    waited_twice = _above(_LONG * max(mean, capacity), mean, mean * varies) * requests / allowed[2] * 60
    sending = {  # seconds after which the last call goes, by what holds it up
        "requests" if alone[0] >= alone[1] else "input_tokens": together - at_start,
        "output_tokens": alone[2] + waited_twice - at_start * (1 - _OUTPUT_LEFT),
        "concurrency" if concurrency else "latency": (requests / most - 1) * round_trip,
    }
    binding = max(sending, key=lambda name: sending[name])
    seconds = max(sending[binding], 0.0)
    if seconds < round_trip:
        binding = "latency"
    if not from_start:
        return Finish(seconds + round_trip, binding)
    # A run begins with few calls in flight, which double with each latency.
    under_way = min(requests * round_trip / (seconds + round_trip), requests, most)
    if binding != "output_tokens":
        times = under_way / min(FIRST_CONCURRENCY, most)
        is_paced = binding in {"requests", "input_tokens"}
        doublings = math.log2(times) if is_paced else math.ceil(math.log2(times + 1))
        seconds += max(doublings - 1, 0.0) * round_trip
    if expected.cached_tokens and requests > 1:  # one call writes the cache before the others
        seconds += expected.latency.mean
    # Of the last calls the slowest is waited for. Its start and its end take a part of a round more.
    seconds += round_trip * 1.25 + 2 * expected.latency.deviation
    if expected.error_rate:  # or one of them fails and goes again
        fails = 1 - (1 - expected.error_rate) ** under_way
        seconds += fails * expected.lost_seconds / expected.error_rate
    return Finish(seconds, binding)


def _together(
    requests: float, of_requests: float, of_input: float, deviation: float, at_start: float
) -> float:
    """Return the seconds in which requests and their input pass both limits, of those each takes alone.

    Of calls that fit a full bucket at once, the slower limit holds them up; where they are few, long requests
    wait for tokens and short ones for requests. The mean of the larger of the two is Clark's, of a normal
    distribution. Source: C. E. Clark, *The Greatest of a Finite Set of Random Variables*, OR 9 (1961).

    `deviation` is that of the seconds of one request's input, `at_start` how many a full bucket has.
    """
    alone = max(of_requests, of_input)
    count = max(at_start * requests / alone, 1.0)  # calls that fit a full bucket
    if not deviation or count >= requests:
        return alone
    calls, tokens = of_requests * count / requests, of_input * count / requests
    deviation *= math.sqrt(count)
    away = (tokens - calls) / deviation
    both = calls + deviation * (_NORMAL.pdf(away) + away * _NORMAL.cdf(away))
    return both * requests / count


def _above(level: float, mean: float, deviation: float) -> float:
    """Return the mean of what lognormal values are above a level."""
    if not mean or not deviation:
        return max(mean - level, 0.0)
    wide = math.sqrt(math.log1p((deviation / mean) ** 2))
    away = math.log(mean / level) / wide + wide / 2
    return mean * _NORMAL.cdf(away) - level * _NORMAL.cdf(away - wide)


# --------------------------------------------------------------------------------------- what meets wishes


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A plan as the engine reads it: its prompt, model and limits, which are all of the account's."""

    plan: Plan
    prompt: Prompt
    model: ModelFacts
    limits: Limits
    measured: Measured | None  # by a pilot, or by the API's count of input tokens
    retry: Retry | None  # what a retry takes over from its run

    @cached_property
    def guess(self) -> Measured:
        """What a call takes as long as nothing is known."""
        return guess(self.prompt, self.plan.max_tokens, cache=self.plan.cache)

    @property
    def expected(self) -> Measured:
        """What a call takes: measured by a pilot, or guessed."""
        return self.measured or self.guess

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """`prompts.requests.SIZES`; the frame is read once, as a stream."""
        if self.retry is None:
            return self.prompt.sizes(self.plan.frame)
        return self.prompt.work(self.plan.frame, "any API", self.retry).sizes

    @cached_property
    def totals(self) -> Totals:
        """What all requests take together."""
        tokens = self.prompt.estimated_tokens(pl.col("characters")).alias("estimated_tokens")
        sizes = self.sizes.select(tokens, "requests", "rows")
        return total(sizes, self.prompt, self.expected, self.plan.max_tokens)

    @cached_property
    def options(self) -> pl.DataFrame:
        """`Plan.options`: a row per mode as `OPTIONS`; with a deadline a ``"hybrid"`` is among them."""
        totals, deadline = self.totals, self.plan.deadline
        usual, slow = self._live_finish(), self._live_finish(slow=True)
        minutes, minutes_p90 = usual.seconds / 60, slow.seconds / 60 * _CLOSED_FORM
        waves = math.ceil(totals.requests / (self.limits.batch_queue_requests or catalog.BATCH.max_requests))
        # Most batches end within an hour, and one that has not ended after a day expires.
        # Source: Anthropic, *Batch processing* (checked 2026-08-14).
        hour, day = 60.0 * waves, catalog.BATCH.expires_hours * 60.0 * waves
        live, live_p90 = totals.live_dollars, totals.live_dollars_p90
        batch, batch_p90 = totals.batch_dollars, totals.batch_dollars_p90
        rows = [
            ("live", live, live_p90, minutes, minutes_p90, usual.binding),
            ("batch", batch, batch_p90, hour, day, "queue" if waves > 1 else "batch processing"),
        ]
        if deadline is not None:
            # As a batch if that usually ends before the rest must go live, else at the price of live calls.
            ends = hour <= deadline - minutes_p90 - CANCEL_MINUTES
            likely = (batch, live_p90, hour) if ends else (live, live_p90, deadline)
            rows.append(("hybrid", *likely, deadline, "deadline"))
        if not totals.requests:
            rows = [(*row[:3], 0.0, 0.0, NOTHING) for row in rows]
        is_over = pl.col("dollars") > (self.limits.spend_dollars_per_month or math.inf)
        table = pl.DataFrame(rows, schema=OPTIONS.names()[:6], orient="row").with_columns(
            binding=pl.when(is_over).then(pl.lit(SPEND_LIMIT)).otherwise("binding"),
            dollars_saved=totals.plain_dollars - pl.col("dollars"),
            requests=totals.requests,
            input_tokens=round(totals.input_tokens),
            output_tokens=round(totals.output_tokens),
        )
        return table.cast(OPTIONS)

    def _live_finish(self, *, slow: bool = False) -> Finish:
        """Return when all requests are answered live, as is usual or at the 90th percentile."""
        totals, expected, input_more, output_more = self.totals, self.expected, 0.0, 0.0
        if slow:
            input_more, output_more = totals.input_more, totals.output_more
            expected = expected.slow(max(totals.requests, 1))
        return live_finish(
            self.limits.shared(self.plan.share),
            expected,
            requests=totals.requests,
            input_tokens=totals.uncached_tokens * (1 + input_more),
            output_tokens=totals.output_tokens * (1 + output_more),
            input_deviation=totals.input_deviation,
            concurrency=self.plan.concurrency,
            from_start=True,
        )

    @property
    def cache_hit_shares(self) -> dict[str, float | None]:
        """The share of the requests that are taken to hit the cache, by mode; of a hybrid it is not known."""
        expected, requests = self.expected, max(self.totals.requests, 1)
        if not expected.cached_tokens:
            return {"live": 0.0, "batch": 0.0, "hybrid": 0.0}
        live = 1 - 1 / requests  # the first writes it
        return {"live": live, "batch": min(live, expected.batch_hit_share), "hybrid": None if live else 0.0}

    @property
    def takes(self) -> dict[str, Any]:
        """What the plan takes in its mode, as a row of `OPTIONS`; live where that is still to be chosen."""
        return option(self.options, "live" if self.plan.mode == AUTO else self.plan.mode)

    def work(self, api: str) -> Work:
        """Return the rows with the keys they have at one API; what their lengths say is kept."""
        work = self.prompt.work(self.plan.frame, api, self.retry)
        vars(self)["sizes"] = work.sizes
        return work

    def resolved(self) -> str:
        """Return the mode: of ``"auto"`` the cheapest that meets all wishes; raise where none does."""
        if self.plan.mode != AUTO:
            return self.plan.mode
        deadline, budget = self.plan.deadline or math.inf, self.plan.budget or math.inf
        live = option(self.options, "live")["minutes_p90"]
        rescued = pl.col("mode").ne("hybrid") | (live + CANCEL_MINUTES <= deadline)
        in_time = self.options.filter(rescued, pl.col("minutes_p90") <= deadline)
        if in_time.is_empty():
            self._refuse_deadline(f"up to {duration(live)} in mode='live', the quickest", live)
        fits = in_time.filter(pl.col("dollars_p90") <= budget)
        if fits.is_empty():
            cheapest = in_time.sort("dollars_p90").row(0, named=True)
            cost = f"up to {dollars(cheapest['dollars_p90'])} in mode={cheapest['mode']!r}"
            self._refuse_budget(cost, ". Calibrate with a pilot, which narrows the span, or use a")
        return str(fits.sort("dollars", "minutes_p90")["mode"][0])

    @property
    def likely_mode(self) -> str:
        """The mode; of ``"auto"`` the cheapest where none meets all wishes."""
        with suppress(ImpossibleDeadline, ImpossibleBudget):
            return self.resolved()
        return str(self.options.sort("dollars", "minutes")["mode"][0])

    def check(self, *, part: float = 1.0, requests_part: float = 1.0) -> dict[str, Any]:
        """Return what the plan takes in its mode, as a row of `OPTIONS`; raise where that is not allowed.

        The parts of its input tokens and of its requests are still to be sent: the ledger has the others.
        """
        mode, deadline, budget = self.plan.mode, self.plan.deadline, self.plan.budget
        taken, expected = option(self.options, mode), self.expected
        taken |= {name: taken[name] * part for name in _SCALED}
        in_time = part if "tokens" in taken["binding"] else requests_part
        if mode == "live":  # a batch takes its time whatever its size
            taken |= {name: taken[name] * in_time for name in ("minutes", "minutes_p90")}
        needed, spent = taken["minutes"], taken["dollars"]
        takes = f"about {duration(needed)} in mode={mode!r}, bound by {taken['binding']}"
        if mode == "hybrid":  # everything may have to go live, if the batch comes to nothing
            live = option(self.options, "live")["minutes_p90"] * max(part, requests_part)
            needed, keeps = live + CANCEL_MINUTES, f"{duration(CANCEL_MINUTES)} for canceling the batch"
            takes = f"up to {duration(live)} live, and mode='hybrid' keeps {keeps}"
        if deadline is not None and needed > deadline:
            self._refuse_deadline(takes, needed)
        if budget is not None and spent * (1 - min(expected.doubt, _TRUSTED_DOUBT)) > budget:
            rows = int(self.totals.rows * part * budget / spent)
            basis = "" if expected.calls else " (their length is guessed: calibrate with a pilot)"
            fewer = f": enough for about {rows:,} rows. Use plan.head({rows}), or a" if rows else ". Use a"
            self._refuse_budget(f"about {dollars(spent)}{basis}", fewer)
        return taken

    def _refuse_deadline(self, takes: str, minutes: float) -> NoReturn:
        refuse(
            f"These rows take {takes} ({self.limits.source}), and the deadline is "
            f"{duration(self.plan.deadline or 0.0)}. Allow deadline={math.ceil(minutes)} (minutes), "
            "a higher tier, or fewer rows: plan.head(n).",
            ImpossibleDeadline,
        )

    def _refuse_budget(self, cost: str, instead: str) -> NoReturn:
        spends = f"the budget is {dollars(self.plan.budget or 0.0)}{instead} larger budget."
        refuse(f"These rows cost {cost}, and {spends}", ImpossibleBudget)
