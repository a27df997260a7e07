"""Plan: what a run over a frame would cost and how long it would take. Free to build, nothing is sent."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from claudescale import catalog, display, estimates
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, PlanError
from claudescale.estimates import Measured, Totals
from claudescale.limits import Limits, finish
from claudescale.prompts import Prompt, compile_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import EllipsisType

    from anthropic import AsyncAnthropic

    from claudescale.runs import Run

Frame = pl.DataFrame | pl.LazyFrame
Mode = Literal["live", "batch"]

MODES: tuple[Mode, ...] = ("live", "batch")

OPTIONS = pl.Schema(
    {
        "mode": pl.String(),
        "dollars": pl.Float64(),
        "dollars_p90": pl.Float64(),
        "minutes": pl.Float64(),
        "minutes_p90": pl.Float64(),
        "binding": pl.String(),
        "dollars_saved": pl.Float64(),
        "requests": pl.Int64(),
        "input_tokens": pl.Int64(),
        "output_tokens": pl.Int64(),
    }
)
"""Columns of `Plan.options`: dollars and minutes as median and 90th percentile."""

REQUESTS = pl.Schema({"custom_id": pl.String(), "params": pl.String()})
"""Columns of `Plan.requests`; ``params`` is the body of one request as JSON."""

_Z90 = 1.2816
_GUESS = "estimated from characters, output guessed: calibrate with a pilot"
_BATCH_MINUTES = 60.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """Claude's calls over a frame, not sent yet. Make one with `plan`; change it with `replace`.

    It shows its price and its time; `run` is the one verb that spends.

    Attributes
    ----------
    frame : pl.DataFrame or pl.LazyFrame
        The rows.
    model : str
        The model's id.
    mode : str
        How `run` sends: ``"live"`` or ``"batch"``.
    limits : Limits
        What the account may do in a minute, by table until an answer's headers say better.
    measured : Measured
        What the estimates rest on.
    """

    frame: Frame
    prompt: str | pl.Expr
    model: str
    tier: str | int | Limits = "start"
    mode: str = "live"
    system: str | None = None
    returns: Any = None
    max_tokens: int = 1024
    effort: str | None = None
    thinking: Mapping[str, Any] | None = None
    cache: bool = False
    params: Mapping[str, Any] | None = None
    deadline: float | timedelta | None = None
    budget: float | None = None
    concurrency: int | None = None
    share: float = 1.0
    measured: Measured | None = None
    compiled: Prompt = field(init=False)
    limits: Limits = field(init=False)
    facts: catalog.Model = field(init=False)

    def __post_init__(self) -> None:
        _check_frame(self.frame)
        _check_numbers(self)
        facts = catalog.model(self.model)
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "limits", Limits.of(self.tier, facts.id))
        object.__setattr__(self, "compiled", self._compile(facts))
        self.limits.shared(self.share)

    def _compile(self, facts: catalog.Model) -> Prompt:
        return compile_prompt(
            self.prompt,
            _schema(self.frame),
            model=facts,
            max_tokens=self.max_tokens,
            system=self.system,
            returns=self.returns,
            effort=self.effort,
            thinking=self.thinking,
            cache="1h" if self.cache and self.mode == "batch" else self.cache,
            params=self.params,
        )

    # what it would take

    @cached_property
    def options(self) -> pl.DataFrame:
        """One row per mode: dollars, minutes, what limits it. Schema `OPTIONS`.

        Spends: nothing.

        Notes
        -----
        A batch's time is an honest range: most end within an hour, and one that has not ended after
        24 hours expires. Source: Anthropic, *Batch processing* (checked 2026-08-14).
        """
        totals = self.totals
        rows = [self._live_option(totals), self._batch_option(totals)]
        return pl.DataFrame(rows, schema=OPTIONS, orient="row")

    @cached_property
    def totals(self) -> Totals:
        """What all requests take together; the frame is read once, as a stream.

        Spends: nothing.
        """
        try:
            measures = self.compiled.measure(self.frame)
        except pl.exceptions.PolarsError as error:
            msg = f"The frame cannot be read: {type(error).__name__}. Try frame.collect() to see where."
            raise PlanError(msg) from error
        return estimates.total(measures, self.compiled, self.facts, self.expected, self.max_tokens)

    def _live_option(self, totals: Totals) -> tuple[Any, ...]:
        measured, limits = self.expected, self.limits.shared(self.share)
        uncached = totals.input_tokens - totals.cache_read_tokens
        times = [
            finish(
                limits,
                requests=totals.requests,
                input_tokens=uncached * more,
                output_tokens=totals.output_tokens * more,
                latency_seconds=measured.seconds,
                concurrency=self.concurrency,
            )
            for more in (1.0, self._more)
        ]
        return self._option(
            "live", totals, totals.live_dollars, [time.seconds / 60 for time in times], times[0].binding
        )

    def _batch_option(self, totals: Totals) -> tuple[Any, ...]:
        queue = self.limits.batch_queue_requests or catalog.BATCH.max_requests
        waves = math.ceil(totals.requests / queue)
        minutes = [_BATCH_MINUTES * waves, catalog.BATCH.expires_hours * 60.0 * waves]
        return self._option(
            "batch", totals, totals.batch_dollars, minutes, "queue" if waves > 1 else "batch processing"
        )

    def _option(
        self, mode: Mode, totals: Totals, dollars: float, minutes: list[float], binding: str
    ) -> tuple[Any, ...]:
        return (
            mode,
            dollars,
            dollars * self._more,
            minutes[0] if totals.requests else 0.0,
            minutes[1] if totals.requests else 0.0,
            binding if totals.requests else "nothing to send",
            totals.plain_dollars - dollars,
            totals.requests,
            round(totals.input_tokens),
            round(totals.output_tokens),
        )

    @property
    def _more(self) -> float:
        """By how much the 90th percentile is above the median."""
        return 1 + _Z90 * self.expected.doubt

    @property
    def expected(self) -> Measured:
        """What a call takes: measured by a pilot, or guessed."""
        return self.measured or estimates.guess(self.compiled, self.facts, self.max_tokens)

    def compare(self, **lists: Iterable[Any]) -> pl.DataFrame:
        """Return `options` for every combination, with a column for each name given.

        Spends: nothing.

        Parameters
        ----------
        **lists
            Names of `plan`'s parameters, each with the values to try, such as
            ``model=["claude-haiku-5-5", "claude-sonnet-5-5"], tier=["start", "build"]``.
            ``mode=["live"]`` keeps only those modes.
        """
        modes = list(lists.pop("mode", MODES))
        frames = []
        for values in itertools.product(*lists.values()):
            choice = dict(zip(lists, values, strict=True))
            named = [pl.lit(_told(value)).alias(name) for name, value in choice.items()]
            frames.append(self.replace(**choice).options.select(*named, pl.all()))
        return pl.concat(frames).filter(pl.col("mode").is_in(modes))

    # what it would send

    @property
    def requests(self) -> pl.DataFrame:
        """The distinct requests this plan would send, as `REQUESTS`.

        Spends: nothing.
        """
        bodies = self.compiled.bodies(self.frame.lazy().collect())["body"]
        keys = Prompt.keys(bodies, "api.anthropic.com")
        frame = pl.DataFrame([keys.alias("custom_id"), bodies.alias("params")])
        return frame.drop_nulls().unique("custom_id", keep="first", maintain_order=True)

    # another plan

    def replace(self, **changes: Any) -> Plan:
        """Return the same plan with some parameters changed.

        A pilot's measurements are kept where they still hold: another model, prompt or reply form
        makes them void.

        Spends: nothing.
        """
        unknown = sorted(set(changes) - set(PARAMETERS))
        if unknown:
            msg = f"plan.replace() knows no {unknown[0]!r}. There is: {', '.join(PARAMETERS)}."
            raise PlanError(msg)
        voiding = {"model", "prompt", "system", "returns", "effort", "thinking", "params", "cache"}
        if voiding & set(changes):
            changes.setdefault("measured", None)
        return replace(self, **changes)

    def head(self, n: int = 20) -> Plan:
        """Return the plan for the first `n` rows.

        Spends: nothing.
        """
        return replace(self, frame=self.frame.head(n))

    def sample(self, n: int, seed: int = 0) -> Plan:
        """Return the plan for `n` rows drawn without replacement, or for all if there are fewer.

        Spends: nothing.
        """
        frame = self.frame.lazy().collect()
        return replace(self, frame=frame.sample(min(n, frame.height), seed=seed))

    def calibrate(self, run: Run) -> Plan:
        """Return the same plan with estimates measured on a pilot.

        Spends: nothing.

        Parameters
        ----------
        run : Run
            Of a few rows of the same plan, such as ``await plan.head(20).run(client)``.

        Raises
        ------
        PlanError
            The run has no paid replies of this model to learn from.
        """
        mine = (pl.col("dollars") > 0) & (pl.col("model") == self.facts.id)
        paid = run.sizes.join(run.replies.filter(mine), on="key", how="inner")
        if paid.is_empty():
            msg = f"The run has no paid replies of {self.facts.id} to learn from. Run plan.head(20) of this plan first."
            raise PlanError(msg)
        return replace(self, measured=estimates.measured(paid))

    # the one verb that spends

    def start(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | EllipsisType | None = ...,
        progress: bool = True,
    ) -> Run:
        """Return a run that has been started and is not waited for.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`, which is also the default. The run works on its own copy.
        ledger : str, Path or None
            Where every reply is kept as it comes. The default is ``claudescale.ledger`` in the working
            directory; None keeps them in memory alone.
        progress : bool
            Show a progress bar.
        """
        from claudescale.runs import Run  # noqa: PLC0415 - a run knows plans

        self.check()
        return Run(self, client, ledger=ledger, progress=progress)

    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | EllipsisType | None = ...,
        progress: bool = True,
    ) -> Run:
        """Send what the ledger does not have yet, and return the finished run.

        The same cell again is a resume: what was paid for is not paid for again.

        Spends: tokens.

        Parameters
        ----------
        client, ledger, progress
            As for `start`.

        Raises
        ------
        RunStopped
            The run cannot go on (key, spend limit, ledger); ``.run`` keeps what was paid for.
        """
        return await self.start(client, ledger=ledger, progress=progress)

    def check(self) -> None:
        """Raise what would make the run fail, before anything is spent.

        Spends: nothing.

        Raises
        ------
        PlanError
            The mode cannot be run; the deadline or the budget cannot be met.
        """
        if self.mode != "live":
            msg = f"mode={self.mode!r} can be planned and compared; this version runs mode='live': plan.replace(mode='live')"
            raise PlanError(msg)
        self.compiled.characters(self.frame)
        option = self.options.row(0, named=True)
        minutes = _minutes(self.deadline)
        if minutes is not None and option["minutes"] > minutes:
            msg = (
                f"These rows take about {display.duration(option['minutes'])} live on {self.limits.source} "
                f"({option['binding']} bind), and the deadline is {display.duration(minutes)}. "
                f"Allow deadline={math.ceil(option['minutes'])} (minutes), a higher tier, or fewer rows."
            )
            raise ImpossibleDeadline(msg)
        if self.budget is not None and option["dollars"] * (1 - min(self.expected.doubt, 0.5)) > self.budget:
            rows = int(self.totals.rows * self.budget / option["dollars"])
            msg = (
                f"These rows cost about {display.dollars(option['dollars'])}, and the budget is "
                f"{display.dollars(self.budget)}: enough for about {rows:,} rows. Use plan.head({rows}) or a larger budget."
            )
            raise ImpossibleBudget(msg)

    # how it looks

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> display.Card:
        totals, limits = self.totals, self.limits
        saved = totals.rows - totals.unsent - totals.requests
        same = f", {saved:,} identical rows sent once" if saved else ""
        null = f", {totals.unsent:,} with a null not sent" if totals.unsent else ""
        basis = f"measured on {self.expected.calls} calls" if self.expected.calls else _GUESS
        return display.Card(
            title=f"Plan: {totals.rows:,} rows on {self.facts.id}, {totals.requests:,} requests{same}{null}. Nothing is sent yet.",
            header=("mode", "dollars", "time", "saved", "limited by"),
            rows=[_shown(option, self.mode) for option in self.options.iter_rows(named=True)],
            notes=(
                f"{display.tokens(totals.input_tokens)} input + {display.tokens(totals.output_tokens)} output tokens, {basis}. "
                f"Prices: genai-prices {_price_version()}. Limits: {limits.source}"
                + (f", checked {limits.checked:%Y-%m-%d}." if limits.checked else "."),
                *self.compiled.notes,
                *([self.facts.notice] if self.facts.notice else []),
            ),
            next="pilot = await plan.head(20).run(client)"
            if not self.measured
            else "run = await plan.run(client)",
        )


PARAMETERS = tuple(name for name in Plan.__dataclass_fields__ if name not in {"compiled", "limits", "facts"})
"""What `plan` takes and `Plan.replace` changes."""


def plan(
    frame: Frame,
    prompt: str | pl.Expr,
    *,
    model: str,
    tier: str | int | Limits = "start",
    mode: str = "live",
    system: str | None = None,
    returns: Any = None,
    max_tokens: int = 1024,
    effort: str | None = None,
    thinking: Mapping[str, Any] | None = None,
    cache: bool = False,
    params: Mapping[str, Any] | None = None,
    deadline: float | timedelta | None = None,
    budget: float | None = None,
    concurrency: int | None = None,
    share: float = 1.0,
) -> Plan:
    """Return what running Claude over a frame would cost and take. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    frame : pl.DataFrame or pl.LazyFrame
        One request per row; identical ones are sent once.
    prompt : str or pl.Expr
        A template with ``{column}``, or an expression that gives one String per row. A null makes
        that row null and unsent.
    model : str
        Such as ``"claude-haiku-5-5"``; `models` lists them. There is no default: it decides the price.
    tier : str, int or Limits
        The account's usage tier: ``"start"``, ``"build"``, ``"scale"``, a number 1-4, or `Limits`.
    mode : str
        ``"live"`` or ``"batch"``.
    system : str, optional
        Instructions that are the same for every row.
    returns : optional
        A pydantic model, a dict or `pl.Schema` of Polars types, or one type such as a `pl.Enum`:
        replies become typed columns.
    max_tokens : int
        Longest reply in tokens, thinking included.
    effort, thinking : optional
        As the API takes them. The default keeps thinking off, or small where it cannot be off.
    cache : bool
        Cache the system prompt, warmed by one call.
    params : dict, optional
        Further fields of the API.
    deadline : float or timedelta, optional
        Minutes the run may take.
    budget : float, optional
        Dollars the run may spend: a hard stop.
    concurrency : int, optional
        Most calls in flight; by default found while running.
    share : float
        The part of the account's limits to use.

    Raises
    ------
    PlanError
        Something cannot be sent, and what to type instead.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"text": ["late again", "works", "works"]})
    >>> plan(frame, "Is this a complaint? {text}", model="claude-haiku-5-5").totals.requests
    2
    """
    given = {name: value for name, value in locals().items() if name in PARAMETERS}
    return Plan(**given)


def _check_frame(frame: object) -> None:
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        return
    kind = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
    fix = {"pandas.DataFrame": "pl.from_pandas(frame)", "pyarrow.Table": "pl.from_arrow(frame)"}
    hint = fix.get(kind, "pl.DataFrame({'text': [...]})")
    msg = f"The frame is a {kind}; claudescale works on Polars frames. Use {hint}."
    raise PlanError(msg)


def _check_numbers(given: Plan) -> None:
    if given.mode not in MODES:
        msg = f"mode={given.mode!r} is not one of {', '.join(map(repr, MODES))}."
        raise PlanError(msg)
    if given.budget is not None and not given.budget > 0:
        msg = f"budget={given.budget!r}: it is in dollars and above 0."
        raise PlanError(msg)
    if given.concurrency is not None and (not isinstance(given.concurrency, int) or given.concurrency < 1):
        msg = f"concurrency={given.concurrency!r}: it is the most calls in flight, a whole number from 1 on."
        raise PlanError(msg)
    minutes = _minutes(given.deadline)
    if minutes is not None and not minutes > 0:
        msg = f"deadline={given.deadline!r}: it is the minutes the run may take, above 0, or a timedelta."
        raise PlanError(msg)


def _schema(frame: Frame) -> pl.Schema:
    try:
        return frame.lazy().collect_schema()
    except pl.exceptions.PolarsError as error:
        msg = f"The LazyFrame cannot be read: {type(error).__name__}. Try frame.collect() to see where."
        raise PlanError(msg) from error


def _minutes(deadline: float | timedelta | datetime | None) -> float | None:
    if isinstance(deadline, timedelta):
        return deadline.total_seconds() / 60
    if deadline is not None and not isinstance(deadline, int | float):
        msg = f"deadline={deadline!r}: give the minutes the run may take, or a timedelta."
        raise PlanError(msg)
    return deadline


def _shown(option: Mapping[str, Any], chosen: str) -> tuple[str, ...]:
    mark = " ←" if option["mode"] == chosen else ""
    low, high = display.dollars(option["dollars"]), display.dollars(option["dollars_p90"])
    times = f"{display.duration(option['minutes'])} to {display.duration(option['minutes_p90'])}"
    return (
        option["mode"] + mark,
        f"{low} to {high}",
        times,
        display.dollars(option["dollars_saved"]),
        option["binding"],
    )


def _told(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else repr(value)


def _price_version() -> str:
    """Return the version of genai-prices, which dates every price."""
    from importlib.metadata import version  # noqa: PLC0415 - only to be shown

    return version("genai-prices")
