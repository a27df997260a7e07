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
    from claudescale.api.catalog import Model
    from claudescale.api.limits import Learned, Limits
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
    sent, times = sizes.drop_nulls(), pl.col("requests")
    tokens = expected.input.at(pl.col("estimated_tokens")).clip(0.0)
    read = pl.min_horizontal(tokens, pl.lit(expected.cached_tokens))
    output = expected.output.at(pl.col("estimated_tokens")).clip(0.0, float(max_tokens))
    live, batch = (
        prices.price(prompt.model, mode=mode, inference_geo=prompt.charges.inference_geo)
        for mode in ("live", "batch")
    )
    # One web search a row is assumed where there is such a tool; after a pilot the bill sets it right.
    fee = (live.search or 0.0) if prompt.charges.searches != 0 else 0.0

    def paid(price: prices.Price, input_: pl.Expr, read: Any, output: Any) -> pl.Expr:
        usage = {"input_tokens": input_, "cache_read_input_tokens": read, "output_tokens": output}
        return prices.dollars(price, **usage) + fee

    of_all = {
        "estimated": pl.col("estimated_tokens"),
        "input": tokens,
        "uncached": tokens - read,
        "squares": (tokens - read) ** 2,
        "output": output,
        "silent": paid(live, tokens - read, read, pl.lit(0.0)),
        "live": paid(live, tokens - read, read, output),
        "batch": paid(batch, tokens - read, read, output),
    }
    sums = sent.select(
        **{name: (each * times).sum() for name, each in of_all.items()},
        plain=(paid(live, tokens, pl.lit(0.0), output) * pl.col("rows")).sum(),
        requests=times.sum(),
    ).row(0, named=True)
    requests, count = int(sums["requests"]), int(sums["requests"]) or 1
    mean = sums["estimated"] / count
    input_more, output_more = (figure.more(count, mean) for figure in (expected.input, expected.output))
    of_input, of_output = input_more * sums["silent"], output_more * (sums["live"] - sums["silent"])
    # Both depend on how long the texts are: where one is more than was measured, so is the other, at times.
    more = math.sqrt(of_input**2 + of_output**2 + of_input * of_output)
    # Who finds no cache writes it: the first call, and some of the others.
    prefix, writes = expected.cached_tokens, {}
    for name, price, hits in (
        ("5m", live, expected.cache_hit_share),
        ("1h", batch, expected.batch_hit_share),
    ):
        write = price.dollars(**{f"cache_write_{name}_input_tokens": prefix})
        writes[name] = write - price.dollars(cache_read_input_tokens=prefix), 1 + (requests - 1) * (1 - hits)
    (write, written), (batch_write, missed) = writes.values()
    live_dollars, batch_dollars = sums["live"] + written * write, sums["batch"] + missed * batch_write
    # What one batch found the next may not find.
    seldom = max(requests * (1 - catalog.BATCH.cache_hit_shares[0]) - missed, 0.0) * batch_write
    batch_more = math.hypot(more * sums["batch"] / (sums["live"] or 1.0), seldom)
    ratio, uncached = expected.billed_ratio, sums["uncached"] / count
    return Totals(
        rows=int(sizes["rows"].sum()),
        sent_rows=int(sent["rows"].sum()),
        requests=requests,
        input_tokens=sums["input"],
        uncached_tokens=min(sums["uncached"] + prefix * written, sums["input"]),
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


# ------------------------------------------------------------------------------------ dollars and minutes


def option(options: pl.DataFrame, mode: str) -> dict[str, Any]:
    """Return the row of one mode of `OPTIONS`."""
    return options.row(by_predicate=pl.col("mode") == mode, named=True)


def options(
    totals: Totals, limits: Limits, expected: Measured, concurrency: int | None, deadline: float | None
) -> pl.DataFrame:
    """Return one row per mode as `OPTIONS`; with a deadline, in minutes, a ``"hybrid"`` is among them.

    `limits` are those that the run may use, `concurrency` the most calls in flight.
    """
    waves = math.ceil(totals.requests / (limits.batch_queue_requests or catalog.BATCH.max_requests))
    # Most batches end within an hour, and one that has not ended after a day expires.
    # Source: Anthropic, *Batch processing* (checked 2026-08-14).
    hour, day = 60.0 * waves, catalog.BATCH.expires_hours * 60.0 * waves
    usual, slow = (
        live_finish(
            limits,
            known,
            requests=totals.requests,
            input_tokens=totals.uncached_tokens * (1 + input_more),
            output_tokens=totals.output_tokens * (1 + output_more),
            input_deviation=totals.input_deviation,
            concurrency=concurrency,
            from_start=True,
        )
        for known, input_more, output_more in (
            (expected, 0.0, 0.0),
            (expected.slow(max(totals.requests, 1)), totals.input_more, totals.output_more),
        )
    )
    minutes, most = usual.seconds / 60, slow.seconds / 60 * _CLOSED_FORM
    live, live_p90, batch = totals.live_dollars, totals.live_dollars_p90, totals.batch_dollars
    rows = [("live", live, live_p90, minutes, most, usual.binding)]
    rows += [
        ("batch", batch, totals.batch_dollars_p90, hour, day, "queue" if waves > 1 else "batch processing")
    ]
    if deadline is not None:
        # As a batch if that usually ends before the rest must go live, else at the price of live calls.
        ends = hour <= deadline - most - CANCEL_MINUTES
        likely = (batch, live_p90, hour) if ends else (live, live_p90, deadline)
        rows += [("hybrid", *likely, deadline, "deadline")]
    if not totals.requests:
        rows = [(*row[:3], 0.0, 0.0, NOTHING) for row in rows]
    spends = math.inf if limits.spend_dollars_per_month is None else limits.spend_dollars_per_month
    binding = pl.when(pl.col("dollars") > spends).then(pl.lit(SPEND_LIMIT)).otherwise("binding")
    return (
        pl.DataFrame(rows, schema=OPTIONS.names()[:6], orient="row")
        .with_columns(
            binding.alias("binding"),
            dollars_saved=totals.plain_dollars - pl.col("dollars"),
            requests=totals.requests,
            input_tokens=round(totals.input_tokens),
            output_tokens=round(totals.output_tokens),
        )
        .cast(OPTIONS)
    )


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
    burst = (limits.burst_seconds or 1.0) / RATE_MARGIN if from_start else 1.0
    allowed = limits.shared(RATE_MARGIN).per_minute
    output_tokens *= 1 + expected.lost_rate
    used = (requests, input_tokens, output_tokens)
    alone = [total / limit * 60 for total, limit in zip(used, allowed, strict=True)]
    together = _together(requests, alone, input_deviation / allowed[1] * 60, burst)
    mean, capacity = output_tokens / requests, (limits.burst_seconds or 1.0) * allowed[2] / 60
    varies = math.hypot(reply.deviation, reply.slope * reply.spread) / (reply.mean or 1.0)
    held = _above(_LONG * max(mean, capacity), mean, mean * varies) * requests / allowed[2] * 60
    most = concurrency or MOST_CONCURRENCY
    sending = {
        "requests" if alone[0] >= alone[1] else "input_tokens": together - burst,
        "output_tokens": alone[2] + held - burst * (1 - _OUTPUT_LEFT),
        "concurrency" if concurrency else "latency": (requests / most - 1) * round_trip,
    }
    binding = max(sending, key=lambda name: sending[name])
    seconds = max(sending[binding], 0.0)
    if seconds < round_trip:
        binding = "latency"
    if not from_start:
        return Finish(seconds + round_trip, binding)
    under_way = min(requests * round_trip / (seconds + round_trip), requests, most)
    if binding != "output_tokens":  # calls in flight double with each latency
        times = under_way / min(FIRST_CONCURRENCY, most)
        is_paced = binding in {"requests", "input_tokens"}
        doublings = math.log2(times) if is_paced else math.ceil(math.log2(times + 1))
        seconds += max(doublings - 1, 0.0) * round_trip
    warming = expected.latency.mean if expected.cached_tokens and requests > 1 else 0.0
    # Of the last calls the slowest is waited for. Its start and its end take a part of a round more.
    seconds += round_trip * 1.25 + 2 * expected.latency.deviation + warming
    if expected.error_rate:  # or one of them fails and goes again
        fails = 1 - (1 - expected.error_rate) ** under_way
        seconds += fails * expected.lost_seconds / expected.error_rate
    return Finish(seconds, binding)


def _together(requests: float, alone: list[float], deviation_seconds: float, burst_seconds: float) -> float:
    """Return the seconds in which requests and their input pass both limits.

    Of calls that fit a full bucket at once, the slower limit holds them up; where they are few, long requests
    wait for tokens and short ones for requests. The mean of the larger of the two is Clark's, of a normal
    distribution. Source: C. E. Clark, *The Greatest of a Finite Set of Random Variables*, OR 9 (1961).
    """
    count = max(burst_seconds * requests / max(alone), 1.0)
    each, tokens = (seconds * count / requests for seconds in alone[:2])
    deviation = math.sqrt(count) * deviation_seconds
    if not deviation or count >= requests:
        return max(alone[:2])
    away = (tokens - each) / deviation
    both = each + deviation * (_NORMAL.pdf(away) + away * _NORMAL.cdf(away))
    return both * requests / count


def _above(level: float, mean: float, deviation: float) -> float:
    """Return the mean of what lognormal values are above a level."""
    if not mean or not deviation:
        return max(mean - level, 0.0)
    wide = math.sqrt(math.log1p((deviation / mean) ** 2))
    away = math.log(mean / level) / wide + wide / 2
    return mean * _NORMAL.cdf(away) - level * _NORMAL.cdf(away - wide)


# --------------------------------------------------------------------------------------- what meets wishes


class Evidence(NamedTuple):
    """What was found out about a plan besides its parameters."""

    measured: Measured | None = None  # by `Plan.calibrate` or `Plan.count_tokens`
    learned: Learned | None = None  # the limits, by `Plan.learn_limits` or a pilot's answers
    retry: Retry | None = None  # what `Plan.retry` takes over from a run


NO_EVIDENCE = Evidence()


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A plan as the engine reads it: its prompt, model and limits, which are all of the account's."""

    plan: Plan
    prompt: Prompt
    model: Model
    limits: Limits
    evidence: Evidence

    @property
    def retry(self) -> Retry | None:
        """What a retry takes over from its run."""
        return self.evidence.retry

    @cached_property
    def guess(self) -> Measured:
        """What a call takes as long as nothing is known."""
        return guess(self.prompt, self.plan.max_tokens, cache=self.plan.cache)

    @property
    def expected(self) -> Measured:
        """What a call takes: measured by a pilot, or guessed."""
        return self.evidence.measured or self.guess

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
        """`Plan.options`."""
        limits = self.limits.shared(self.plan.share)
        return options(self.totals, limits, self.expected, self.plan.concurrency, self.plan.deadline)

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
        taken, known = option(self.options, mode), self.expected
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
        if budget is not None and spent * (1 - min(known.doubt, _TRUSTED_DOUBT)) > budget:
            rows = int(self.totals.rows * part * budget / spent)
            basis = "" if known.calls else " (their length is guessed: calibrate with a pilot)"
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
