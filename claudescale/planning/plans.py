"""Plan: what a run over a frame would cost and how long it would take, before anything is sent."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

import polars as pl

from claudescale import text
from claudescale.api import catalog, limits, prices
from claudescale.api.answers import read_object
from claudescale.api.client import Wire, account_limits, unasked
from claudescale.api.limits import Limits, limits_key
from claudescale.errors import ImpossibleBudget, PlanError, refuse
from claudescale.ledger.ledger import DEFAULT_LEDGER, ledger_typed
from claudescale.loops import awaited
from claudescale.planning import calibration, choices, estimates
from claudescale.planning.choices import PlanPlots
from claudescale.planning.estimates import AUTO, Compiled
from claudescale.prompts.requests import Asked, Examples, Frame, compile_prompt, read, schema_of
from claudescale.prompts.retry import Retry
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.limits import LimitsKey
    from claudescale.api.models import Model
    from claudescale.planning.calibration import Measured
    from claudescale.running.runs import Run

Mode: TypeAlias = Literal["live", "batch", "hybrid", "auto"]
Effort: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]
# Names that an editor completes; any other known name is also accepted.
ModelName: TypeAlias = Literal["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"] | str  # noqa: PYI051
TierName: TypeAlias = Literal["start", "build", "scale", "custom", 1, 2, 3, 4] | str | int  # noqa: PYI051

REQUESTS = pl.Schema({"custom_id": pl.String(), "params": pl.String()})
"""Columns of `Plan.requests`; ``params`` is the body of one request as JSON."""
MODES = ("live", "batch", "hybrid")
_ANOTHER_QUESTION = ("prompt", "system", "examples", "returns", "effort", "thinking", "params")
"""Parameters whose change makes a pilot's measurements of reply lengths void."""
_NUMBERS = {"max_tokens": True, "concurrency": True, "budget": False, "deadline": False, "share": False}
"""Numeric parameters, and whether they must be whole numbers."""
_IN_BODY = ("max_tokens", "system", "examples", "samples", "returns", "effort", "thinking", "params")
_COUNTED_AT_ONCE = 8
_MOST = 1e15  # larger numbers are refused
_SAVED = 5e-5  # share of the price; savings below it, or below a hundredth of it in dollars, are not shown


class Settings(TypedDict, total=False):
    """The parameters of `plan` except `frame`, `prompt`, `model`, `tier`, `mode` and `returns`."""

    system: str | None
    examples: Examples
    samples: int
    max_tokens: int
    effort: Effort | None
    thinking: Mapping[str, Any] | None
    cache: bool
    params: Mapping[str, Any] | None
    deadline: float | timedelta | None
    budget: float | None
    concurrency: int | None
    share: float


class Changes(Settings, total=False):
    """The parameters of `plan` that `Plan.replace` and `Plan.retry` can change."""

    frame: Frame
    prompt: Asked
    model: ModelName | Model
    tier: TierName | Limits
    mode: Mode
    returns: Any


class Lists(TypedDict, total=False):
    """The parameters of `plan` that `Plan.compare` takes, each with the values to try."""

    model: Iterable[ModelName | Model]
    tier: Iterable[TierName | Limits]
    mode: Iterable[Mode]
    prompt: Iterable[Asked]
    system: Iterable[str | None]
    examples: Iterable[Examples]
    samples: Iterable[int]
    returns: Iterable[Any]
    max_tokens: Iterable[int]
    effort: Iterable[Effort | None]
    thinking: Iterable[Mapping[str, Any] | None]
    cache: Iterable[bool]
    params: Iterable[Mapping[str, Any] | None]
    deadline: Iterable[float | timedelta | None]
    budget: Iterable[float | None]
    concurrency: Iterable[int | None]
    share: Iterable[float]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan(Shown):
    """Claude calls over a frame, not sent yet. Make one with `plan`; change it with `replace`.

    A plan shows its price and its time. Only `run` and `start` spend tokens.

    Attributes
    ----------
    deadline : float or None
        In minutes, even if given as a timedelta.
    compiled : Compiled
        The plan as the engine reads it: its prompt, model, limits and measurements.
    """

    frame: Frame
    prompt: Asked
    model: ModelName | Model
    tier: TierName | Limits = "start"
    mode: Mode = "live"
    system: str | None = None
    examples: Examples = ()
    samples: int = 1
    returns: Any = None
    max_tokens: int = 1024
    effort: Effort | None = None
    thinking: Mapping[str, Any] | None = None
    cache: bool = False
    params: Mapping[str, Any] | None = None
    deadline: float | None = None
    budget: float | None = None
    concurrency: int | None = None
    share: float = 1.0
    _measured: Measured | None = None  # by `calibrate` or `count_tokens`
    _learned: Mapping[LimitsKey, Limits] | None = None  # by `learn_limits` or a pilot's answers
    _retry: Retry | None = None  # what `retry` takes over from a run
    compiled: Compiled = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", as_frame(self.frame))
        for name, whole in _NUMBERS.items():
            object.__setattr__(self, name, text.plain(getattr(self, name), whole=whole))
        self._check_numbers()
        object.__setattr__(self, "deadline", _minutes(self.deadline))
        self._check_mode()
        model = catalog.model(self.model)
        given: dict[str, Any] = {name: getattr(self, name) for name in _IN_BODY}
        given["cache"] = "1h" if self.cache and self.mode != "live" else self.cache
        given["sent"] = self.model if isinstance(self.model, str) else model.id
        compiled = Compiled(
            plan=self,
            model=model,
            limits=Limits.of(self.tier, model, self._learned),
            prompt=compile_prompt(self.prompt, schema_of(self.frame), model=model, **given),
            measured=self._measured,
            retry=self._retry,
        )
        object.__setattr__(self, "compiled", compiled)
        compiled.limits.shared(self.share)
        self._check_prices()

    def _check_numbers(self) -> None:
        most = self.concurrency
        is_count = most is None or (type(most) is int and most >= 1)
        deadline = "the minutes the run may take, above 0, or a timedelta"
        numbers = {
            "share": (_is_number(self.share), "part of the limits this run may use, such as share=0.5"),
            "budget": (_is_positive(self.budget), "in dollars and above 0, such as budget=5.0"),
            "concurrency": (is_count, "the most calls in flight, a whole number from 1 on"),
            "deadline": (_is_positive(_minutes(self.deadline)), deadline),
        }
        for name, (is_right, what) in numbers.items():
            if not is_right:
                refuse(f"{name}={getattr(self, name)!r:.60}: it is {what}.")

    def _check_mode(self) -> None:
        if self.mode not in (*MODES, AUTO):
            refuse(f"mode={self.mode!r} is not one of {', '.join(map(repr, (*MODES, AUTO)))}.")
        if self.mode == "hybrid" and self.deadline is None:
            refuse(
                "mode='hybrid' is a batch until the deadline would be missed, so it needs one: deadline=90 "
                "(minutes). Without a deadline use mode='batch'."
            )

    def _check_prices(self) -> None:
        """Raise if a required price is unknown, or if one row could cost more than the budget."""
        model, charges = self.compiled.model, self.compiled.prompt.charges
        if model.given and model.given_dollars is None and (self.budget is not None or self.mode == AUTO):
            asked = f"budget={self.budget!r}" if self.budget is not None else f"mode={self.mode!r}"
            refuse(
                f"{asked} needs the prices of {model.id!r}, dollars per million tokens: "
                f"model=cs.Model({model.id!r}, input_dollars=..., output_dollars=...)."
            )
        price = prices.price(
            model,
            mode="live" if self.mode == "live" else "batch",
            inference_geo=prices.worst_geography(charges.inference_geo),
        )
        if charges.searches != 0 and price.search is None:
            refuse(f"What a web search costs with {model.id} is not known. Leave the web_search tool out.")
        if self.budget is None:
            return
        if charges.searches is None:
            refuse(
                "a budget needs to know the most searches of a row: give the web_search tool a 'max_uses', "
                "such as 'max_uses': 3."
            )
        most = prices.most_with_tools(price, model, self.max_tokens, charges)
        if most is not None and most > self.budget:
            refuse(
                f"With these tools one row can cost up to {text.dollars(most)}, so no row could be sent: "
                "use a larger budget, a smaller 'max_uses' with 'allowed_callers': ['direct'], or no budget.",
                ImpossibleBudget,
            )

    @property
    def options(self) -> pl.DataFrame:
        """One row per mode: dollars, minutes and what limits its speed. Schema `OPTIONS`.

        Spends: nothing.

        Notes
        -----
        The time of a batch is a range: most batches end within an hour, and those that have not ended
        after 24 hours expire. Source: Anthropic, *Batch processing* (checked 2026-08-14).
        """
        return self.compiled.options

    def compare(self, **lists: Unpack[Lists]) -> pl.DataFrame:
        """Return `options` for every combination, with a column for each parameter given.

        Spends: nothing.

        Parameters
        ----------
        **lists
            Parameters of `plan`, each with the values to try, such as
            ``model=["claude-haiku-5-5", "claude-sonnet-5-5"], tier=["start", "build"]``.
            ``mode=["live"]`` keeps only that mode.

        Notes
        -----
        If ``tier`` varies, `gain` is the speedup over the plan's own tier with all else equal, and `binding`
        is what limits the speed. The plan's own tier uses the limits that were learned. After a pilot, the
        replies of other models are assumed to be as long as those measured. If ``cache`` varies,
        `cache_hit_share` is the assumed share of requests that hit the cache: in batches the measured share,
        or the midpoint of 30% and 98%. Source: *Batch processing* (checked 2026-08-14).
        """
        _check_names("compare", lists, tuple(Lists.__annotations__))
        tried = {name: _several(name, values) for name, values in lists.items()}
        modes = tried.pop("mode", [*MODES])
        if wrong := [mode for mode in modes if mode not in MODES]:
            refuse(f"plan.compare(mode={wrong!r}): there is {', '.join(map(repr, MODES))}.")
        _ = self.compiled.sizes  # read once, for all combinations
        frames = []
        for values in itertools.product(*tried.values()):
            changes: Any = dict(zip(tried, values, strict=True))
            other = self.replace(**changes)
            options = other.options
            if "tier" in tried:
                own = other.replace(tier=self.tier).options["minutes"]
                options = options.with_columns((own / options["minutes"]).fill_nan(1.0).alias("gain"))
            if "cache" in tried:
                shares = other.compiled.cache_hit_shares
                share = pl.col("mode").replace_strict(shares, return_dtype=pl.Float64)
                options = options.with_columns(share.alias("cache_hit_share"))
            options = options.filter(pl.col("mode").is_in(modes))
            columns = [pl.lit(choices.shown(name, getattr(other, name))).alias(name) for name in tried]
            frames.append(options.select(*columns, pl.all()))
        table = pl.concat(frames, how="vertical_relaxed")
        if table.is_empty():
            refuse("plan.compare(mode=['hybrid']): it needs a deadline, such as deadline=[60, 90] (minutes).")
        return table

    @property
    def requests(self) -> pl.DataFrame:
        """The distinct requests that this plan would send, as `REQUESTS`.

        Spends: nothing.
        """
        work = self.compiled.work("api.anthropic.com")
        bodies = [body.decode() for body in work.bodies(work.requests["row"])]
        return pl.DataFrame({"custom_id": work.requests["key"], "params": bodies}, schema=REQUESTS)

    # derived plans

    def replace(self, **changes: Unpack[Changes]) -> Plan:
        """Return the same plan with some parameters changed.

        A pilot's measurements are kept while they hold: another prompt or form of replies makes them void.
        The replies of another model are assumed to be as long as those measured, with more uncertainty.

        Spends: nothing.
        """
        _check_names("replace", changes, PARAMETERS)
        fixed = sorted({"frame", "prompt", "returns"} & set(changes)) if self._retry else []
        if fixed:
            what = f"A retry keeps the {fixed[0]} of its run."
            refuse(f"{what} Use replace({fixed[0]}=...) on the plan itself.")
        return self._with(**changes)

    def _with(self, **changes: Any) -> Plan:
        """Return the plan with changes, keeping the measurements and sizes that still hold."""
        other = replace(self, **changes)
        if "_measured" not in changes and self._measured is not None:
            other = replace(other, _measured=self._measured_of(other))
        mine, theirs = self.compiled, other.compiled
        same_rows = theirs.retry is mine.retry and not {"frame", "prompt", "system", "samples"} & set(changes)
        if same_rows and "sizes" in vars(mine):
            vars(theirs)["sizes"] = mine.sizes  # the frame is not read again
        return other

    def _measured_of(self, other: Plan) -> Measured | None:
        """Return the measurements that still hold for another plan, or None."""
        mine, theirs, measured = self.compiled, other.compiled, self._measured
        if measured is None or any(
            getattr(self, name) is not getattr(other, name) for name in _ANOTHER_QUESTION
        ):
            return None
        same_model = mine.model.id == theirs.model.id
        if same_model and self.cache == other.cache:
            return measured
        return measured.elsewhere(mine.guess, theirs.guess, same_model=same_model)

    def retry(self, run: Run, **changes: Unpack[Changes]) -> Plan:
        """Return a plan that sends only the rows that failed in a run, with your changes.

        The new run has *every* row in its `results`: answered rows are reused at no cost, wherever the
        ledgers are. The plan sends rows without an answer and rows that ended in an error, including replies
        that break `returns`. It leaves out rows that would fail again in the same way: refusals if nothing
        but `max_tokens` changes in the request, and bad input if nothing changes. `options` and `requests`
        count only the rows that are sent. The `budget` is that of the new run.

        Running the same cells again resumes, as always: nothing is paid for twice.

        Spends: nothing.

        Parameters
        ----------
        run : Run
            A run of this plan, or of another retry of it, that has ended.
        **changes
            As for `replace`, except ``frame`` and ``prompt``, such as ``max_tokens=4000``, ``model=...``,
            ``mode="batch"`` or ``budget=1.0``.

        Raises
        ------
        PlanError
            The run has other rows or another form of replies, or it is still in progress.

        Examples
        --------
        ``run = await plan.retry(run, max_tokens=4000).run(client)``
        """
        other = self._with(_retry=None).replace(**changes)
        frame = read(other.frame)
        other = other.replace(frame=frame)
        typed = ", ".join(["run", *(f"{name}={value!r}" for name, value in changes.items())])
        typed = f"plan.retry({typed}).run(client{ledger_typed(getattr(run, 'path', None))})"
        return replace(other, _retry=Retry.of(run, other.compiled.prompt, frame, typed))

    def head(self, n: int = 20) -> Plan:
        """Return the plan for the first `n` rows.

        Spends: nothing.
        """
        return self.replace(frame=self.frame.head(_rows(n)))

    def sample(self, n: int, seed: int = 0) -> Plan:
        """Return the plan for `n` rows drawn without replacement, or for all if there are fewer.

        Spends: nothing.
        """
        frame = read(self.frame)
        return self.replace(frame=frame.sample(min(_rows(n), frame.height), seed=seed))

    def calibrate(self, run: Run) -> Plan:
        """Return the same plan with the estimates and the rate limits that a pilot measured.

        Spends: nothing.

        Parameters
        ----------
        run : Run
            A run over a few rows of the same plan, such as ``await plan.sample(50).run(client)``.

        Raises
        ------
        PlanError
            The run has no paid replies of this model to learn from.
        """
        if not hasattr(run, "job"):
            kind = type(run).__name__
            refuse(f"plan.calibrate() takes a run, not a {kind}: pilot = await plan.sample(50).run(client).")
        mine, sent = self.compiled, run.job.work.requests.select("key", "estimated_tokens")
        replies = sent.join(run.job.replies().filter(model=mine.model.id), on="key", how="inner")
        measured = calibration.measured(replies, run.attempts, mine.totals.requests)
        if measured is None:
            use = "Use pilot = await plan.sample(50).run(client) first."
            refuse(f"The run has no paid replies of {mine.model.id} to learn from. {use}")
        sizes, estimate = replies.select("mode", "estimated_tokens", requests=1, rows=1), 0.0
        for (mode,), sizes_of_mode in sizes.group_by("mode"):
            totals = estimates.total(sizes_of_mode, mine.prompt, measured, self.max_tokens)
            estimate += totals.live_dollars if mode == "live" else totals.batch_dollars
        ratio = float(replies["dollars"].sum()) / estimate
        # All calls of a pilot may hit a cache that another run wrote, which gives a share above 1.
        measured = replace(
            measured,
            billed_ratio=ratio if math.isfinite(ratio) else 1.0,
            cache_hit_share=min(measured.cache_hit_share, 1.0),
            batch_hit_share=min(measured.batch_hit_share, 1.0),
        )
        key = limits_key(self.tier, mine.model)
        is_ours = limits_key(run.plan.tier, run.plan.compiled.model) == key
        if is_ours and run.limits is not run.plan.compiled.limits:
            return self._with(_measured=measured, _learned={key: run.limits})
        return self._with(_measured=measured)

    @awaited("plan = await plan.count_tokens(client)")
    async def count_tokens(self, client: AsyncAnthropic, n: int = 100, seed: int = 0) -> Plan:
        """Return the same plan with its input tokens counted by the API on `n` sampled requests.

        The length of replies remains a guess; a pilot measures both.

        Spends: nothing.

        Raises
        ------
        PlanError
            The API did not count the tokens; the message gives its reason.
        """
        mine, work = self.compiled, self.sample(n, seed).compiled.work("count")
        estimated, slots = work.requests["estimated_tokens"], asyncio.Semaphore(_COUNTED_AT_ONCE)
        if estimated.is_empty():
            refuse("The plan has no row to count: every row has a null in the prompt's columns.")

        async def count(body: bytes) -> int:
            async with slots:
                answer = await wire.count_tokens(body)
            tokens = read_object(answer.content).get("input_tokens")
            if answer.status != HTTPStatus.OK or not isinstance(tokens, int):
                raise unasked(answer, "count of tokens")
            return tokens

        async with Wire(client) as wire:
            tokens = await asyncio.gather(*map(count, work.bodies(work.requests["row"])))
        calls = pl.DataFrame({"estimated_tokens": estimated, "tokens": tokens})
        counted = calibration.line(calls, "tokens", mine.totals.requests, rises=True)
        return self._with(_measured=replace(mine.expected, input=counted))

    @awaited("plan = await plan.learn_limits(client)")
    async def learn_limits(self, client: AsyncAnthropic) -> Plan:
        """Return the same plan with the organization's limits as the rate-limit API reports them.

        This needs an Admin API key; without one the limits do not change. A pilot's response headers also
        show them.

        Spends: nothing.

        Raises
        ------
        PlanError
            The API cannot be reached or fails.
        """
        model = self.compiled.model
        allowed = await account_limits(client, self.compiled.limits, model.id)
        return self._with(_learned={limits_key(self.tier, model): allowed})

    # sending

    def start(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
        on: Any = None,
    ) -> Run:
        """Return a started run without waiting for it.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`. The default is the client that it returned last, or a new one.
            The run uses its own copy.
        ledger : str, Path or None
            Where every reply is stored as it arrives. The default is ``claudescale.ledger`` in the working
            directory; None keeps replies in memory only.
        progress : bool
            Show a progress bar.
        on : optional
            A Dask client: its workers make the calls, each with a fixed share of the limits.
        """
        from claudescale.running.runs import Run  # noqa: PLC0415 - runs import plans

        if on is not None and self.samples > 1:
            refuse("on= sends each row once, and the plan has samples=. Leave one of them out.")
        given: dict[str, Any] = {"ledger": ledger, "progress": progress, "on": on}
        mode: Any = self.compiled.resolved()
        return Run(self if mode == self.mode else self._with(mode=mode), client, **given)

    @awaited("run = await plan.run(client)")
    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
        wait: bool = True,
        on: Any = None,
    ) -> Run:
        """Send the requests that the ledger does not have yet, and return the finished run.

        Running the same cell again resumes: it waits for pending batches, and nothing is paid for twice.

        Spends: tokens.

        Parameters
        ----------
        client, ledger, progress, on
            As for `start`.
        wait : bool
            False returns as soon as the batches that fit the queue are submitted. You may then close the
            kernel, and collect them with the same cell tomorrow.

        Raises
        ------
        RunStopped
            The run cannot continue (key, spend limit, ledger); ``.run`` keeps the replies paid for.
        """
        run = self.start(client, ledger=ledger, progress=progress, on=on)
        return await run if wait else await run.submitted()

    # display

    @property
    def plot(self) -> PlanPlots:
        """The plan's pictures: ``plan.plot.frontier()``, ``minutes()``, ``savings()``, ``concurrency()``."""
        return PlanPlots(self)

    def _card(self) -> Card:
        compiled = self.compiled
        try:
            totals, options, chosen = compiled.totals, compiled.options, compiled.resolved()
        except PlanError as error:
            return Card(title=f"This plan cannot run: {error}")
        repeated = totals.rows - totals.unsent - totals.requests
        same = f", {text.plural(repeated, 'identical row')} sent once" if repeated else ""
        file = " or a file that cannot be read" if compiled.prompt.has_files else ""
        null = f", {totals.unsent:,} with a null{file} not sent" if totals.unsent else ""
        mark = pl.col("mode") + pl.when(pl.col("mode") == chosen).then(pl.lit(" ←")).otherwise(pl.lit(""))
        worth = pl.col("dollars_saved").abs() > pl.max_horizontal(pl.col("dollars") * _SAVED, _SAVED / 100)
        saved = pl.when(worth).then("dollars_saved")
        table = options.select(mark, *choices.FIGURES, saved, "binding")
        if not table["dollars_saved"].count():
            table = table.drop("dollars_saved")
        expected = compiled.expected
        basis = expected.basis if expected.calls else f"{expected.basis}: calibrate with a pilot"
        tokens = f"{text.tokens(totals.input_tokens)} input + {text.tokens(totals.output_tokens)} output"
        sources = f"Prices: {prices.price(compiled.model).source}. Limits: {compiled.limits.provenance}."
        following = "run = await plan.run(client)"
        if compiled.retry is not None:
            following = f"run = await {compiled.retry.code}"
        elif not expected.calls:
            live = "" if chosen == "live" else ".replace(mode='live')"
            following = f"pilot = await plan.sample(50){live}.run(client)"
        notices = [*self._notices()] or [self.plot._gain()]  # noqa: SLF001 - not a picture, so not public
        return Card.of(
            table,
            title=f"Plan: {text.plural(totals.rows, 'row')} on {compiled.model.id}, "
            f"{text.plural(totals.requests, 'request')}{same}{null}. Nothing is sent yet.",
            notes=[f"{tokens} tokens, {basis}. {sources}", *notices],
            next=following,
        )

    def _notices(self) -> Iterable[str]:
        """Yield notices about this plan: what is reused, what is assumed, and what would be better."""
        compiled, retry = self.compiled, self.compiled.retry
        if retry is not None:
            failed = retry.errors
            yield f"{retry.taken_over.sum() - sum(failed.values()):,} answered rows are reused at no cost."
            if failed:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
                yield f"Left out, as the same request would fail again: {kinds}."
        if differs := limits.differs(compiled.limits, self.tier, compiled.model):
            yield differs
        if compiled.expected.cached_tokens:
            low, high = (f"{share:.0%}" for share in catalog.BATCH.cache_hit_shares)
            share = (
                f"In a batch {calibration.BATCH_HIT_SHARE:.0%} of the requests are assumed to hit the cache"
            )
            yield f"{share}: {low} to {high} is usual."
        elif self.cache:
            shared, least = compiled.prompt.shared_tokens, compiled.model.cache_minimum_tokens or math.inf
            yield f"Nothing is cached: all rows share about {shared:,.0f} tokens, and it takes {least:,}."
        yield from compiled.prompt.notes(self.frame)
        batch = estimates.option(compiled.options, "batch")["minutes_p90"]
        yield from catalog.notices(compiled.model, batch_minutes=batch)


PARAMETERS = tuple(kind.name for kind in fields(Plan) if kind.init and not kind.name.startswith("_"))
"""The parameters of `plan`, which `Plan.replace` can change."""


def _check_names(method: str, given: Iterable[str], there: tuple[str, ...]) -> None:
    if unknown := sorted(set(given) - set(there)):
        refuse(f"plan.{method}() does not take {unknown[0]!r}. There is: {', '.join(there)}.")


def _several(name: str, values: object) -> list[Any]:
    """Return the values to compare as a list."""
    if isinstance(values, str) or not isinstance(values, Iterable) or not (several := list(values)):
        refuse(f"plan.compare({name}={values!r}): give a list of values to try, such as {name}=[...].")
    return several


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and -_MOST < value < _MOST  # type: ignore[operator]  # it is a number


def _is_positive(value: Any) -> bool:
    return value is None or (_is_number(value) and value > 0)


def _minutes(deadline: Any) -> Any:
    return deadline / timedelta(minutes=1) if isinstance(deadline, timedelta) else deadline


def _rows(n: object) -> int:
    """Return a number of rows; raise PlanError if it is not one."""
    rows = text.plain(n, whole=True)
    if type(rows) is not int or rows < 0:
        refuse(f"n={n!r}: it is how many rows, a whole number from 0 on, such as int(...).")
    return rows


def as_frame(frame: object) -> Frame:
    """Return rows as a Polars frame: a list of texts as the column ``text``, other tables through Arrow."""
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        return frame
    if isinstance(frame, list) and all(isinstance(text, str | None) for text in frame):
        return pl.DataFrame({"text": frame}, schema={"text": pl.String})
    if hasattr(frame, "__arrow_c_stream__") and not isinstance(frame, pl.Series):
        return pl.DataFrame(frame)
    kind = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
    use = "frame.to_frame()" if isinstance(frame, pl.Series) else "pl.DataFrame({'text': [...]})"
    there = "It can be a Polars frame, a list of texts, or a table of pandas, pyarrow or DuckDB."
    return refuse(f"The frame is a {kind}. {there} Use {use}.")


def plan(
    frame: Frame,
    prompt: Asked,
    *,
    model: ModelName | Model,
    tier: TierName | Limits = "start",
    mode: Mode = "live",
    system: str | None = None,
    examples: Examples = (),
    samples: int = 1,
    returns: Any = None,
    max_tokens: int = 1024,
    effort: Effort | None = None,
    thinking: Mapping[str, Any] | None = None,
    cache: bool = False,
    params: Mapping[str, Any] | None = None,
    deadline: float | timedelta | None = None,
    budget: float | None = None,
    concurrency: int | None = None,
    share: float = 1.0,
) -> Plan:
    """Return a plan of Claude calls over a frame, with its price and its time. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    frame : pl.DataFrame, pl.LazyFrame, list of str, or a table of pandas, pyarrow or DuckDB
        One request per row; identical ones are sent once. A list becomes the column ``text``. Results can
        be the next input: their `reply` is then ``{reply}`` in the prompt, and `reply_1` in the new results.
    prompt : str, pl.Expr or list
        A template with ``{column}``, or an expression that gives one String per row. Or a list of parts:
        files as `image` and `pdf`, and templates. A row with a null, or with a file that cannot be read, is
        not sent and its result is null; for a file, `error` and `message` in the results say why.
    model : str or Model
        Such as ``"claude-haiku-5-5"``; `models` lists them. There is no default, because the model decides
        the price. For a model that is not listed, pass a `claudescale.Model`.
    tier : str, int or Limits
        The account's usage tier: ``"start"``, ``"build"``, ``"scale"``, a number 1-4, or `Limits`.
    mode : str
        ``"live"``; ``"batch"``, half the price within 24 hours; ``"hybrid"``, a batch whose unanswered rows
        are sent live in time for the `deadline`; or ``"auto"``, the cheapest of these that meets deadline
        and budget nine times out of ten.
    system : str, optional
        Instructions. An ``{identifier}`` that names a column is filled for each row. Other braces are kept,
        and ``{{identifier}}`` gives the literal ``{identifier}``.
    examples : list of tuple
        Pairs of a text and its reply, which precede the row in every request. With ``returns=`` a reply may
        be the object, or a dict of its fields.
    samples : int
        How many times each row is sent on purpose. Each sample is a result row, numbered from 1 in the
        column `sample`. The first is the same request as in a plan without samples.
    returns : optional
        The form of replies, which become typed columns: a pydantic model or a list of one (``list[Model]``),
        a dict or `pl.Schema` of Polars types, one type such as a `pl.Enum`, ``bool``, ``int``, ``float``,
        ``str``, or labels (``Literal["good", "bad"]``, or a list of them).
    max_tokens : int
        Maximum length of a reply in tokens, including thinking.
    effort, thinking : optional
        As in the API. By default thinking is off, or low for a model that cannot turn it off.
    cache : bool
        Cache the system prompt and the examples; one call warms the cache.
    params : dict, optional
        Further request fields of the API, including web tools.
    deadline : float or timedelta, optional
        Maximum duration of the run, in minutes.
    budget : float, optional
        Maximum dollars of the run: a hard stop.
    concurrency : int, optional
        Maximum number of calls in flight; by default the run adapts it.
    share : float
        The part of the account's limits to use.

    Raises
    ------
    PlanError
        Something cannot be sent; the message says what to type instead.

    Examples
    --------
    >>> import polars as pl
    >>> frame = pl.DataFrame({"text": ["late again", "works", "works"]})
    >>> plan(frame, "Is this a complaint? {text}", model="claude-haiku-5-5").requests.height
    2
    """
    return Plan(**locals())
