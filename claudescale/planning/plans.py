"""Plan: what a run over a frame would cost and how long it would take. Free to build, nothing is sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.client import account_limits
from claudescale.api.limits import Learned, Limits
from claudescale.errors import ImpossibleBudget
from claudescale.loops import awaited
from claudescale.planning import calibration, choices, estimates
from claudescale.planning.choices import AUTO, MODES, is_number, minutes_of
from claudescale.planning.plan_views import PlanPlots, plan_card
from claudescale.prompts.parameters import check_mode, plain, refuse
from claudescale.prompts.requests import (
    Asked,
    Examples,
    Frame,
    Prompt,
    compile_prompt,
    read,
    schema_of,
    unreadable,
)
from claudescale.prompts.retries import Kept
from claudescale.views import card

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import timedelta
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.models import Model
    from claudescale.planning.estimates import Measured, Totals
    from claudescale.running.runs import Run

Mode: TypeAlias = Literal["live", "batch", "hybrid", "auto"]
Effort: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]
# What an editor completes; any other name that is known will do.
ModelName: TypeAlias = Literal["claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"] | str  # noqa: PYI051
TierName: TypeAlias = Literal["start", "build", "scale", "custom", 1, 2, 3, 4] | str | int  # noqa: PYI051

DEFAULT_LEDGER = "claudescale.ledger"  # in the working folder
REQUESTS = pl.Schema({"custom_id": pl.String(), "params": pl.String()})
"""Columns of `Plan.requests`; ``params`` is the body of one request as JSON."""
_VOIDING = ("model", "prompt", "system", "examples", "returns", "effort", "thinking", "params", "cache")
"""Changes after which a pilot's measurements no longer hold."""
_SEEN_ROWS = 20  # of a frame in memory, looked at for what is worth a note
_FROM = {
    "pandas.DataFrame": "pl.from_pandas(frame)",
    "pyarrow.Table": "pl.from_arrow(frame)",
    "polars.Series": "frame.to_frame()",
    "builtins.list": "pl.DataFrame(frame), or pl.DataFrame({'text': frame}) where it is one of texts",
    "builtins.dict": "pl.DataFrame(frame)",
}


class Changes(TypedDict, total=False):
    """What `Plan.replace` and `Plan.retry` change: the parameters of `plan`, and what was measured."""

    frame: Frame
    prompt: Asked
    model: ModelName | Model
    tier: TierName | Limits
    mode: Mode
    system: str | None
    examples: Examples
    samples: int
    returns: Any
    max_tokens: int
    effort: Effort | None
    thinking: Mapping[str, Any] | None
    cache: bool
    params: Mapping[str, Any] | None
    deadline: float | timedelta | None
    budget: float | None
    concurrency: int | None
    share: float
    measured: Measured | None
    learned: Learned | None


class Lists(TypedDict, total=False):
    """What `Plan.compare` takes: parameters of `plan`, each with the values to try."""

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


PARAMETERS = tuple(Changes.__annotations__)
"""What `Plan.replace` changes."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan(card.Shown):
    """Claude's calls over a frame, not sent yet. Make one with `plan`; change it with `replace`.

    It shows its price and its time; `run` is the one verb that spends.

    Attributes
    ----------
    deadline : float or None
        Minutes, however it was given.
    limits : Limits
        What the account may do in a minute, by the table of its `tier` until the API says better.
    measured, learned
        What `calibrate`, `count_tokens` and `learn_limits` found out.
    kept
        What `retry` takes over from a run.
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
    measured: Measured | None = None
    learned: Learned | None = None
    kept: Kept | None = None
    compiled: Prompt = field(init=False)
    limits: Limits = field(init=False)
    facts: catalog.Model = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pl.DataFrame | pl.LazyFrame):
            kind = f"{type(self.frame).__module__.split('.')[0]}.{type(self.frame).__name__}"
            hint = _FROM.get(kind, "pl.DataFrame({'text': [...]})")
            refuse(f"The frame is a {kind}; claudescale works on Polars frames. Use {hint}.")
        for name in ("max_tokens", "concurrency", "budget", "deadline", "share"):
            whole = name in {"max_tokens", "concurrency"}
            object.__setattr__(self, name, plain(getattr(self, name), whole=whole))
        self._check_numbers()
        object.__setattr__(self, "deadline", minutes_of(self.deadline))
        facts = catalog.model(self.model)
        object.__setattr__(self, "facts", facts)
        if facts.given and facts.given_dollars is None and (self.budget is not None or self.mode == AUTO):
            asked = f"budget={self.budget!r}" if self.budget is not None else f"mode={self.mode!r}"
            refuse(
                f"{asked} needs the prices of {facts.id!r}, dollars per million tokens: "
                f"model=cs.Model({facts.id!r}, input_dollars=..., output_dollars=...)."
            )
        object.__setattr__(self, "limits", Limits.of(self.tier, facts, self.learned))
        names = ("max_tokens", "system", "examples", "samples", "returns", "effort", "thinking", "params")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given["cache"] = "1h" if self.cache and self.mode != "live" else self.cache
        given["sent"] = self.model if isinstance(self.model, str) else facts.id
        given["head"] = self.frame.head(_SEEN_ROWS) if isinstance(self.frame, pl.DataFrame) else None
        compiled = compile_prompt(self.prompt, schema_of(self.frame), model=facts, **given)
        object.__setattr__(self, "compiled", compiled)
        check_mode(self.params, self.mode)
        self._check_charges()
        self.limits.shared(self.share)

    def _check_numbers(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in {*MODES, AUTO}:
            refuse(f"mode={self.mode!r} is not one of {', '.join(map(repr, (*MODES, AUTO)))}.")
        if not is_number(self.share):
            refuse(f"share={self.share!r}: it is the part of the limits this run may use, such as share=0.5.")
        if self.budget is not None and not (is_number(self.budget) and self.budget > 0):
            refuse(f"budget={self.budget!r}: it is in dollars and above 0, such as budget=5.0.")
        if self.concurrency is not None and (type(self.concurrency) is not int or self.concurrency < 1):
            most = "it is the most calls in flight, a whole number from 1 on."
            refuse(f"concurrency={self.concurrency!r}: {most}")
        minutes = minutes_of(self.deadline)
        if minutes is not None and not minutes > 0:
            what = "it is the minutes the run may take, above 0, or a timedelta."
            refuse(f"deadline={self.deadline!r}: {what}")
        if self.mode == "hybrid" and minutes is None:
            refuse(
                "mode='hybrid' is a batch until the deadline would be missed, so it needs one: deadline=90 "
                "(minutes). Without a deadline use mode='batch'."
            )

    def _check_charges(self) -> None:
        """Raise where the API runs tools and a budget would not know, or bear, their worst case."""
        charges, facts = self.compiled.charges, self.facts
        if charges.searches != 0 and prices.price(facts).search is None:
            refuse(f"What a web search costs with {facts.id} is not known. Leave the web_search tool out.")
        if self.budget is None:
            return
        if charges.searches is None:
            refuse(
                "a budget needs to know the most searches of a row: give the web_search tool a 'max_uses', "
                "such as 'max_uses': 3."
            )
        geography = prices.worst_geography(charges.inference_geo)
        price = prices.price(facts, mode="live" if self.mode == "live" else "batch", inference_geo=geography)
        most = prices.most_with_tools(price, facts, self.max_tokens, charges)
        if most is not None and most > self.budget:
            msg = (
                f"With these tools one row can cost up to {card.dollars(most)} ({charges.turns} turns of the "
                f"model, each with up to {facts.context_tokens:,} input tokens), and the budget is "
                f"{card.dollars(self.budget)}. No row could be sent. Use a larger budget, a smaller "
                "'max_uses' with 'allowed_callers': ['direct'], or no budget."
            )
            raise ImpossibleBudget(msg)

    @cached_property
    def options(self) -> pl.DataFrame:
        """One row per mode: dollars, minutes, what limits it. Schema `OPTIONS`.

        Spends: nothing.

        Notes
        -----
        A batch's time is a range: most end within an hour, and one that has not ended after
        24 hours expires. Source: Anthropic, *Batch processing* (checked 2026-08-14).
        """
        limits = self.limits.shared(self.share)
        return estimates.options(self.totals, limits, self.expected, self.concurrency, self.deadline)

    @cached_property
    def totals(self) -> Totals:
        """What all requests take together; the frame is read once, as a stream.

        Spends: nothing.
        """
        return estimates.total(self._sizes, self.compiled, self.expected, self.max_tokens)

    @cached_property
    def _sizes(self) -> pl.DataFrame:
        try:
            return self.compiled.sizes(self.frame, None if self.kept is None else self.kept.open)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(error) from error

    @property
    def expected(self) -> Measured:
        """What a call takes: measured by a pilot, or guessed."""
        return self.measured or estimates.guess(self.compiled, self.max_tokens, cache=self.cache)

    def compare(self, **lists: Unpack[Lists]) -> pl.DataFrame:
        """Return `options` for every combination, with a column for each name given.

        Spends: nothing.

        Parameters
        ----------
        **lists
            Names of `plan`'s parameters, each with the values to try, such as
            ``model=["claude-haiku-5-5", "claude-sonnet-5-5"], tier=["start", "build"]``.
            ``mode=["live"]`` keeps only those modes.

        Notes
        -----
        Where ``tier`` varies, `gain` is how many times faster than on the plan's own tier, with all else the
        same; `binding` is what limits it there. The plan's own tier has the limits that were learned. After a
        pilot other models' replies count as long as those measured. Where ``cache`` varies, `cache_hit_share`
        is the part of the requests taken to find it: in batches the middle of 30% to 98%.
        Source: *Batch processing* (checked 2026-08-14).
        """
        unknown = sorted(set(lists) - set(PARAMETERS))
        if unknown:
            there = ", ".join(Lists.__annotations__)
            refuse(f"plan.compare() knows no {unknown[0]!r}. There is: {there}.")
        given: Any = lists
        return choices.compare(self, dict(given))

    @property
    def requests(self) -> pl.DataFrame:
        """The distinct requests this plan would send, as `REQUESTS`.

        Spends: nothing.
        """
        work = choices.prepare(self, "api.anthropic.com")
        bodies = [body.decode() for body in work.texts.bodies(work.requests["row"])]
        return pl.DataFrame({"custom_id": work.requests["key"], "params": bodies}, schema=REQUESTS)

    # another plan

    def replace(self, **changes: Unpack[Changes]) -> Plan:
        """Return the same plan with some parameters changed.

        A pilot's measurements are kept where they still hold: another model, prompt or reply form
        makes them void.

        Spends: nothing.
        """
        unknown = sorted(set(changes) - set(PARAMETERS))
        if unknown:
            refuse(f"plan.replace() knows no {unknown[0]!r}. There is: {', '.join(PARAMETERS)}.")
        fixed = sorted({"frame", "prompt", "returns"} & set(changes)) if self.kept else []
        if fixed:
            what = f"A retry keeps the {fixed[0]} of its run."
            refuse(f"{what} Use replace({fixed[0]}=...) on the plan itself.")
        if set(_VOIDING) & set(changes):
            changes.setdefault("measured", None)
        return self._with(**changes)

    def _with(self, **changes: Any) -> Plan:
        """Return the plan with changes, and with what is known of its rows as far as that still holds."""
        other = replace(self, **changes)
        if "_sizes" in vars(self) and not {"frame", "prompt", "system", "samples", "kept"} & set(changes):
            vars(other)["_sizes"] = self._sizes  # the same rows are not read again
        if "totals" in vars(self) and set(changes) <= choices.SAME_TOTALS:
            vars(other)["totals"] = self.totals
        return other

    def retry(self, run: Run, **changes: Unpack[Changes]) -> Plan:
        """Return the plan that sends only the rows which failed in a run, with what you change.

        Its run has *every* row in its `results`: what was answered is taken over at no cost, wherever the
        ledgers are. Rows without an answer are sent, and rows whose last word is an error, replies that
        break `returns` among them. Left out is what the same request would meet again: a refusal while the
        request is the same but for `max_tokens`, bad input while it is the same. Only what is sent counts in
        `options`, `requests`, `head` and `sample`; the `budget` is that of the new run.

        The same cells again are a resume, as ever: nothing is paid for twice.

        Spends: nothing.

        Parameters
        ----------
        run : Run
            Of this plan or of another retry of it, and ended.
        **changes
            As for `replace`, but for ``frame`` and ``prompt``, such as ``max_tokens=4000``, ``model=...``,
            ``mode="batch"`` or ``budget=1.0``.

        Raises
        ------
        PlanError
            The run is of other rows, is still going, or its replies have another form.

        Examples
        --------
        ``run = await plan.retry(run, max_tokens=4000).run(client)``
        """
        names = [name for name in PARAMETERS if name not in {"frame", "prompt"}]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            refuse(f"plan.retry() changes no {unknown[0]!r}. There is: {', '.join(names)}.")
        frame = read(self.frame)
        other = self._with(frame=frame, kept=None).replace(**changes)
        typed = ", ".join(["run", *(f"{name}={value!r}" for name, value in changes.items())])
        kept = Kept.of(run, other.compiled, frame, other.mode, f"plan.retry({typed})")
        return other._with(kept=kept)  # noqa: SLF001 - another plan

    def head(self, n: int = 20) -> Plan:
        """Return the plan for the first `n` rows; of a retry, of those that it sends.

        Spends: nothing.
        """
        rows = choices.rows_of(n)
        if self.kept is not None:
            return self._of(self.kept, self.kept.open.head(rows))
        return self._with(frame=self.frame.head(rows))

    def sample(self, n: int, seed: int = 0) -> Plan:
        """Return the plan for `n` rows drawn without replacement, or for all if there are fewer.

        Spends: nothing.
        """
        rows, seed = choices.rows_of(n), choices.rows_of(seed, "seed")
        if self.kept is not None:
            return self._of(self.kept, self.kept.open.sample(min(rows, self.kept.open.len()), seed=seed))
        frame = read(self.frame)
        return self._with(frame=frame.sample(min(rows, frame.height), seed=seed))

    def _of(self, kept: Kept, rows: pl.Series) -> Plan:
        """Return a retry of some of the rows that it sends."""
        if self.samples > 1:
            refuse("A retry with samples= is of all its rows: head() and sample() are for the plan itself.")
        return self._with(frame=read(self.frame)[rows], kept=kept.at(rows))

    def calibrate(self, run: Run) -> Plan:
        """Return the same plan with estimates measured on a pilot, and the limits that it met.

        Spends: nothing.

        Parameters
        ----------
        run : Run
            Of a few rows of the same plan, such as ``await plan.sample(50).run(client)``.

        Raises
        ------
        PlanError
            The run has no paid replies of this model to learn from.
        """
        return self.replace(measured=calibration.learned(run, self), learned=Learned.after(self, run))

    @awaited("plan = await plan.count_tokens(client)")
    async def count_tokens(self, client: AsyncAnthropic, n: int = 100, seed: int = 0) -> Plan:
        """Return the same plan with its input tokens counted by the API on `n` sampled requests.

        What a reply takes stays a guess: a pilot tells both.

        Spends: nothing.

        Raises
        ------
        PlanError
            The API would not count: what it says.
        """
        sample = self.sample(n, seed)
        work = sample.compiled.work(sample.frame, "count", sample.kept)
        return self.replace(measured=await calibration.counted(client, self, work))

    @awaited("plan = await plan.learn_limits(client)")
    async def learn_limits(self, client: AsyncAnthropic) -> Plan:
        """Return the same plan with the organization's limits as the rate-limit API tells them.

        It takes an Admin API key; without one they stay, and say so. A pilot's headers tell them, too.

        Spends: nothing.

        Raises
        ------
        PlanError
            The API cannot be reached, or fails.
        """
        told = await account_limits(client, self.limits, self.facts.id)
        return self._with(learned=Learned(told, self.tier, self.facts.rate_group))

    # the one verb that spends

    def start(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
        on: Any = None,
        _watchable: bool = True,
    ) -> Run:
        """Return a run that has been started and is not waited for.

        In a notebook the first one imports what `watch` needs, which takes seconds and would stop its calls.

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
        on : optional
            A Dask client: its workers make the calls, each with a fixed share of the limits.
        """
        from claudescale.running.runs import Run  # noqa: PLC0415 - a run knows plans

        if on is not None and self.samples > 1:
            refuse("on= sends each row once, and the plan has samples=. Leave one of them out.")
        given: dict[str, Any] = {"ledger": ledger, "progress": progress, "on": on, "watchable": _watchable}
        return Run(choices.resolved(self), client, **given)

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
        """Send what the ledger does not have yet, and return the finished run.

        The same cell again is a resume: what was paid for is not paid for again, batches are waited for.

        Spends: tokens.

        Parameters
        ----------
        client, ledger, progress, on
            As for `start`.
        wait : bool
            False returns as soon as the batches are submitted that the queue has room for: the kernel may
            be closed then, and the same cell collects them tomorrow.

        Raises
        ------
        RunStopped
            The run cannot go on (key, spend limit, ledger); ``.run`` keeps what was paid for.
        """
        run = self.start(client, ledger=ledger, progress=progress, on=on, _watchable=not wait)
        return await run if wait else await run.submitted()

    @property
    def plot(self) -> PlanPlots:
        """Its pictures: ``plan.plot.frontier()``, ``minutes()``, ``savings()``."""
        return PlanPlots(self)

    def _card(self) -> card.Card:
        return plan_card(self)


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
    """Return what running Claude over a frame would cost and take. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    frame : pl.DataFrame or pl.LazyFrame
        One request per row; identical ones are sent once.
    prompt : str, pl.Expr or list
        A template with ``{column}``, or an expression that gives one String per row. Or a list of parts:
        files as `image` and `pdf`, and templates. A null makes that row null and unsent; a file that cannot
        be read does too, and `error` and `message` in the results say why.
    model : str or Model
        Such as ``"claude-haiku-5-5"``; `models` lists them. There is no default: it decides the price. One
        that is not listed is a `claudescale.Model`.
    tier : str, int or Limits
        The account's usage tier: ``"start"``, ``"build"``, ``"scale"``, a number 1-4, or `Limits`.
    mode : str
        ``"live"``; ``"batch"``, half the price within 24 hours; ``"hybrid"``, a batch whose rest is sent
        live in time for the `deadline`; or ``"auto"``, the cheapest of these that meets deadline and budget
        nine times in ten.
    system : str, optional
        Instructions. An ``{identifier}`` that names a column is filled for each row; other braces stay as
        they are, and ``{{identifier}}`` stands for that word in braces.
    examples : list of tuple
        Pairs of a text and the reply to it, which every request has before its row. With ``returns=`` a reply
        may be the object, or a dict of its fields.
    samples : int
        How often each row is sent, on purpose: as many result rows, with a column `sample` from 1 on. The
        first is the request of a plan without samples.
    returns : optional
        A pydantic model or a list of one (``list[Model]``), a dict or `pl.Schema` of Polars types, one type
        such as a `pl.Enum`, ``bool``, ``int``, ``float``, ``str``, or labels (``Literal["good", "bad"]``, or
        a list of them): replies become typed columns.
    max_tokens : int
        Longest reply in tokens, thinking included.
    effort, thinking : optional
        As the API takes them. The default keeps thinking off, or small where it cannot be off.
    cache : bool
        Cache the system prompt and the examples, warmed by one call.
    params : dict, optional
        Further fields of the API. Where ``tool_choice`` makes the model call a tool of yours, its input is
        the reply, as JSON.
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
