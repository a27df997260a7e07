"""A plan's estimates: tokens, each mode's dollars and minutes, and what meets deadline and budget."""

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

`binding` is what limits a run's speed. It is ``"spend limit"`` if the dollars exceed what the account may
spend in a month, so that the API would stop the run; the minutes then ignore that limit.
"""

SPEND_LIMIT, NOTHING = "spend limit", "nothing to send"
CANCEL_MINUTES = 5.0
"""Reserved by a hybrid run for canceling its batch, whose requests in progress are still answered. Assumed:
how long that takes is not documented."""
AUTO = "auto"  # the cheapest mode that meets deadline and budget nine times in ten
_TRUSTED_DOUBT = 0.5  # a budget is refused if even half of an estimate exceeds it: a guess may be off by half
_SCALED = ("dollars", "dollars_p90", "input_tokens", "output_tokens")  # proportional to the part left to send
_NORMAL = NormalDist()
# Mean share of a full output-token bucket that a run leaves unused. Calls in flight draw on it unseen, so the
# pacer keeps up to twice as much. Fitted, like the next two, to the runs of `prediction_benchmark.py`.
_OUTPUT_LEFT = 0.2
# A reply this many times longer than the mean reply, and than a full bucket, delays a run twice: the API
# admits no call while it is written, and then the pacer waits until the bucket has refilled.
_LONG = 1.3
_CLOSED_FORM = 1.03  # error of the minutes of a run even if every figure is known


# ---------------------------------------------------------------------------------- totals of all calls


class Totals(NamedTuple):
    """Totals of all requests of a plan; names that end in `p90` are 90th percentiles."""

    rows: int
    sent_rows: int
    requests: int
    input_tokens: float
    uncached_tokens: float  # input that counts toward the limits
    output_tokens: float
    input_more: float  # share by which the 90th percentile of the tokens is higher
    output_more: float
    input_deviation: float  # of a request's uncached input tokens
    live_dollars: float
    live_dollars_p90: float
    batch_dollars: float
    batch_dollars_p90: float
    plain_dollars: float  # for every row as its own live request, without a cache

    @property
    def unsent(self) -> int:
        """Number of rows that are not sent."""
        return self.rows - self.sent_rows


def total(sizes: pl.DataFrame, prompt: Prompt, expected: Measured, max_tokens: int) -> Totals:
    """Return the totals of all requests, each of which is priced on its own.

    Parameters
    ----------
    sizes : pl.DataFrame
        Columns `estimated_tokens`, `requests` (their number at that length) and `rows` (which they answer).
        Null tokens mark rows that are not sent.
    """
    sent = sizes.drop_nulls()
    live, batch = (
        prices.price(prompt.model, mode=mode, inference_geo=prompt.charges.inference_geo)
        for mode in ("live", "batch")
    )
    # Assumes one web search per row if that tool is there; after a pilot its bill corrects this.
    fee = (live.search or 0.0) if prompt.charges.searches != 0 else 0.0
    sums = _sums(sent, expected, max_tokens, live, batch, fee=fee)
    requests, count = int(sums["requests"]), int(sums["requests"]) or 1
    uncached, prefix = sums["uncached"] / count, expected.cached_tokens
    mean = sums["estimated"] / count
    input_more, output_more = (figure.more(count, mean) for figure in (expected.input, expected.output))
    of_input, of_output = input_more * sums["silent"], output_more * (sums["live"] - sums["silent"])
    # Both depend on the length of the texts, so their errors are taken to have a correlation of one half.
    more = math.sqrt(of_input**2 + of_output**2 + of_input * of_output)
    live_writes, live_write = _cache_writes(live, "5m", prefix, requests, expected.cache_hit_share)
    batch_writes, batch_write = _cache_writes(batch, "1h", prefix, requests, expected.batch_hit_share)
    live_dollars = sums["live"] + live_writes * live_write
    batch_dollars = sums["batch"] + batch_writes * batch_write
    # Another batch may hit the cache less often than the one measured.
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
    """Return tokens and dollars of all requests if each hits the cache; `silent` is without the reply."""
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
    """Return how many calls write the cache, and by how many dollars a write exceeds a read."""
    write = price.dollars(**{f"cache_write_{hold}_input_tokens": prefix})
    return 1 + (requests - 1) * (1 - hit_share), write - price.dollars(cache_read_input_tokens=prefix)


# ------------------------------------------------------------------------------------ dollars and minutes


def option(options: pl.DataFrame, mode: str) -> dict[str, Any]:
    """Return the row of one mode from a frame of `OPTIONS`."""
    return options.row(by_predicate=pl.col("mode") == mode, named=True)


class Finish(NamedTuple):
    """When the last row of a run is answered, and what limits its speed."""

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
    """Return the time that requests take live, in closed form: the slowest bucket, or the latency.

    A token bucket that starts with `burst` seconds of refill and refills at a constant rate passes a total
    in ``total / rate - burst``. The limit on calls in flight follows Little's law. Each is a lower bound,
    and a first-come pacer reaches the largest of them. The last calls are then still in flight, and the run
    waits for the slowest of them.

    Parameters
    ----------
    input_tokens, output_tokens : float
        Totals; the input excludes reads from the prompt cache.
    input_deviation : float
        Standard deviation of a request's input tokens.
    concurrency : int, optional
        Maximum number of calls in flight.
    from_start : bool
        Whether the run starts with full buckets and few calls in flight, and waits for its slowest call.
    """
    if not requests:
        return Finish(0.0, NOTHING)
    reply, round_trip = expected.output, expected.latency.mean + expected.lost_seconds * from_start
    full, most = limits.burst_seconds or 1.0, concurrency or MOST_CONCURRENCY
    # Seconds of refill in each bucket: it is filled by the whole limit, of which a run uses RATE_MARGIN.
    at_start = full / RATE_MARGIN if from_start else 1.0
    allowed = limits.shared(RATE_MARGIN).per_minute
    output_tokens *= 1 + expected.lost_rate
    used = (requests, input_tokens, output_tokens)
    alone = [total / limit * 60 for total, limit in zip(used, allowed, strict=True)]
    together = _together(requests, alone[0], alone[1], input_deviation / allowed[1] * 60, at_start)
    mean, capacity = output_tokens / requests, full * allowed[2] / 60
    # Replies vary around the line and, as prompts differ in length, along it.
    varies = math.hypot(reply.deviation, reply.slope * reply.spread) / (reply.mean or 1.0)
    waited_twice = _above(_LONG * max(mean, capacity), mean, mean * varies) * requests / allowed[2] * 60
    sending = {  # seconds until the last call is sent, by what limits the speed
        "requests" if alone[0] >= alone[1] else "input_tokens": together - at_start,
        "output_tokens": alone[2] + waited_twice - at_start * (1 - _OUTPUT_LEFT),
        # Rounds of `most` calls (Little's law); the last one is added below.
        "concurrency" if concurrency else "latency": (requests / most - 1) * round_trip,
    }
    binding = max(sending, key=lambda name: sending[name])
    seconds = max(sending[binding], 0.0)
    if seconds < round_trip:
        binding = "latency"
    if not from_start:
        return Finish(seconds + round_trip, binding)
    # A run starts with few calls in flight, whose number doubles with each round trip until it is `under_way`
    # (Little's law). The rounds before use 1/2, 1/4, ... of a limit: D doublings lose D - 1 round trips.
    # Without a limit, all requests take D rounds, of which the last is added below.
    under_way = min(requests * round_trip / (seconds + round_trip), requests, most)
    if binding != "output_tokens":
        times = under_way / min(FIRST_CONCURRENCY, most)
        is_paced = binding in {"requests", "input_tokens"}
        doublings = math.log2(times) if is_paced else math.ceil(math.log2(times + 1))
        seconds += max(doublings - 1, 0.0) * round_trip
    if expected.cached_tokens and requests > 1:  # one call writes the cache before the others
        seconds += expected.latency.mean
    # The run waits for the slowest of the last calls: of some 30 it is two deviations above the mean. Their
    # start and end add a part of a round trip, a quarter by the benchmark's runs.
    seconds += round_trip * 1.25 + 2 * expected.latency.deviation
    if expected.error_rate:  # or one of them fails and is retried: `lost_seconds` is a mean over all rows
        fails = 1 - (1 - expected.error_rate) ** under_way
        seconds += fails * expected.lost_seconds / expected.error_rate
    return Finish(seconds, binding)


def _together(
    requests: float, of_requests: float, of_input: float, deviation: float, at_start: float
) -> float:
    """Return the seconds in which requests and input pass both limits, given those of each limit alone."""
    # `deviation` is that of one request's input in seconds, `at_start` the seconds in a full bucket.
    # The slower limit delays the calls that fit a full bucket. If these are few, long requests wait for
    # tokens and short ones for requests. The mean of the larger of two normal variables is Clark's.
    # Source: C. E. Clark, *The Greatest of a Finite Set of Random Variables*, OR 9 (1961).
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
    """Return the mean excess of lognormal values over a level."""
    if not mean or not deviation:
        return max(mean - level, 0.0)
    wide = math.sqrt(math.log1p((deviation / mean) ** 2))
    away = math.log(mean / level) / wide + wide / 2
    return mean * _NORMAL.cdf(away) - level * _NORMAL.cdf(away - wide)


# ------------------------------------------------------------------------- what meets deadline and budget


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A plan as the engine reads it: its prompt, its model, and the full limits of the account."""

    plan: Plan
    prompt: Prompt
    model: ModelFacts
    limits: Limits
    measured: Measured | None  # by a pilot, or by the API's count of input tokens
    retry: Retry | None  # what a retry takes over from its run

    @cached_property
    def guess(self) -> Measured:
        """The assumed tokens and seconds of a call."""
        return guess(self.prompt, self.plan.max_tokens, cache=self.plan.cache)

    @property
    def expected(self) -> Measured:
        """The measured tokens and seconds of a call, or else the assumed ones."""
        return self.measured or self.guess

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """The sizes of the requests as `prompts.requests.SIZES`; the frame is streamed once."""
        if self.retry is None:
            return self.prompt.sizes(self.plan.frame)
        return self.prompt.work(self.plan.frame, "any API", self.retry).sizes

    @cached_property
    def totals(self) -> Totals:
        """The totals of all requests."""
        tokens = self.prompt.estimated_tokens(pl.col("characters")).alias("estimated_tokens")
        sizes = self.sizes.select(tokens, "requests", "rows")
        return total(sizes, self.prompt, self.expected, self.plan.max_tokens)

    @cached_property
    def options(self) -> pl.DataFrame:
        """`Plan.options`: one row per mode as `OPTIONS`, including ``"hybrid"`` if there is a deadline."""
        totals, deadline = self.totals, self.plan.deadline
        usual, slow = self._live_finish(), self._live_finish(slow=True)
        minutes, minutes_p90 = usual.seconds / 60, slow.seconds / 60 * _CLOSED_FORM
        waves = math.ceil(totals.requests / (self.limits.batch_queue_requests or catalog.BATCH.max_requests))
        # Most batches end within an hour; those that have not ended after a day expire.
        # Source: Anthropic, *Batch processing* (checked 2026-08-14).
        hour, day = 60.0 * waves, catalog.BATCH.expires_hours * 60.0 * waves
        live, live_p90 = totals.live_dollars, totals.live_dollars_p90
        batch, batch_p90 = totals.batch_dollars, totals.batch_dollars_p90
        rows = [
            ("live", live, live_p90, minutes, minutes_p90, usual.binding),
            ("batch", batch, batch_p90, hour, day, "queue" if waves > 1 else "batch processing"),
        ]
        if deadline is not None:
            # Priced as a batch if that usually ends before the rest must go live, otherwise as live calls.
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
        """Return when all requests are answered live: usually or, if `slow`, at the 90th percentile."""
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
        """The assumed share of requests that hit the cache, by mode; None where it is unknown."""
        expected, requests = self.expected, max(self.totals.requests, 1)
        if not expected.cached_tokens:
            return {"live": 0.0, "batch": 0.0, "hybrid": 0.0}
        live = 1 - 1 / requests  # the first writes it
        return {"live": live, "batch": min(live, expected.batch_hit_share), "hybrid": None if live else 0.0}

    @property
    def takes(self) -> dict[str, Any]:
        """The plan's row of `OPTIONS` in its mode; in live mode for ``"auto"``."""
        return option(self.options, "live" if self.plan.mode == AUTO else self.plan.mode)

    def work(self, api: str) -> Work:
        """Return the rows with their keys at one API, and keep their sizes."""
        work = self.prompt.work(self.plan.frame, api, self.retry)
        vars(self)["sizes"] = work.sizes
        return work

    def resolved(self) -> str:
        """Return the mode; for ``"auto"`` the cheapest that meets deadline and budget; raise if none does."""
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
        """The mode as `resolved`, or the cheapest if none meets deadline and budget."""
        with suppress(ImpossibleDeadline, ImpossibleBudget):
            return self.resolved()
        return str(self.options.sort("dollars", "minutes")["mode"][0])

    def check(self, *, part: float = 1.0, requests_part: float = 1.0) -> dict[str, Any]:
        """Return the row of `OPTIONS` for what is still to be sent; raise if it breaks deadline or budget."""
        # The parts are those of the input tokens and of the requests; the ledger has the rest.
        mode, deadline, budget = self.plan.mode, self.plan.deadline, self.plan.budget
        taken, expected = option(self.options, mode), self.expected
        taken |= {name: taken[name] * part for name in _SCALED}
        in_time = part if "tokens" in taken["binding"] else requests_part
        if mode == "live":  # a batch takes the same time at any size
            taken |= {name: taken[name] * in_time for name in ("minutes", "minutes_p90")}
        needed, spent = taken["minutes"], taken["dollars"]
        takes = f"about {duration(needed)} in mode={mode!r}, bound by {taken['binding']}"
        if mode == "hybrid":  # everything may have to go live if the batch completes nothing
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
