"""What the engine knows of a plan: its requests, what they take, and whether its wishes can be met."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import polars as pl

from claudescale.errors import ImpossibleBudget, ImpossibleDeadline
from claudescale.planning import estimates
from claudescale.prompts.requests import unreadable
from claudescale.text import dollars, duration

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.api.limits import Learned, Limits
    from claudescale.planning.estimates import Measured, Totals
    from claudescale.prompts.requests import Frame, Kept, Prompt, Work

AUTO = "auto"  # the cheapest mode that meets deadline and budget nine times in ten
_TRUSTED_DOUBT = 0.5
_SCALED = ("dollars", "dollars_p90", "input_tokens", "output_tokens")  # what is less when a part is left


class Evidence(NamedTuple):
    """What was found out about a plan besides its parameters."""

    measured: Measured | None = None  # by `Plan.calibrate` or `Plan.count_tokens`
    learned: Learned | None = None  # the limits, by `Plan.learn_limits` or a pilot's answers
    kept: Kept | None = None  # what `Plan.retry` takes over from a run


NO_EVIDENCE = Evidence()


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A plan as the engine reads it. `limits` are all of the account's, `deadline` is in minutes."""

    frame: Frame
    prompt: Prompt
    model: Model
    limits: Limits
    evidence: Evidence
    mode: str
    max_tokens: int
    cache: bool
    deadline: float | None
    budget: float | None
    concurrency: int | None
    share: float

    @property
    def kept(self) -> Kept | None:
        """What a retry takes over from its run."""
        return self.evidence.kept

    @property
    def expected(self) -> Measured:
        """What a call takes: measured by a pilot, or guessed."""
        return self.evidence.measured or estimates.guess(self.prompt, self.max_tokens, cache=self.cache)

    @cached_property
    def sizes(self) -> pl.DataFrame:
        """`prompts.requests.SIZES`; the frame is read once, as a stream."""
        try:
            return self.prompt.sizes(self.frame, None if self.kept is None else self.kept.open)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(error) from error

    @cached_property
    def totals(self) -> Totals:
        """What all requests take together."""
        tokens = self.prompt.estimated_tokens(pl.col("characters")).alias("estimated_tokens")
        sizes = self.sizes.select(tokens, "requests", "rows")
        return estimates.total(sizes, self.prompt, self.expected, self.max_tokens)

    @cached_property
    def options(self) -> pl.DataFrame:
        """`Plan.options`."""
        limits = self.limits.shared(self.share)
        return estimates.options(self.totals, limits, self.expected, self.concurrency, self.deadline)

    def work(self, api: str) -> Work:
        """Return the rows with the keys they have at one API; what their lengths say is kept."""
        work = self.prompt.work(self.frame, api, self.kept)
        vars(self)["sizes"] = work.sizes
        return work

    def resolved(self) -> str:
        """Return the mode: of ``"auto"`` the cheapest that meets all wishes; raise where none does."""
        if self.mode != AUTO:
            return self.mode
        options, deadline, budget = self.options, self.deadline, self.budget
        if deadline is not None:
            live = estimates.option(options, "live")["minutes_p90"]
            rescued = pl.col("mode").ne("hybrid") | (live + estimates.CANCEL_MINUTES <= deadline)
            options = options.filter(rescued, pl.col("minutes_p90") <= deadline)
            if options.is_empty():
                self._refuse_deadline(f"up to {duration(live)} in mode='live', the quickest", live)
        if budget is not None:
            cheapest = options.sort("dollars_p90").row(0, named=True)
            options = options.filter(pl.col("dollars_p90") <= budget)
            if options.is_empty():
                cost = f"up to {dollars(cheapest['dollars_p90'])} in mode={cheapest['mode']!r}"
                self._refuse_budget(cost, ". Calibrate with a pilot, which narrows the span, or use a")
        return str(options.sort("dollars", "minutes_p90")["mode"][0])

    @property
    def likely_mode(self) -> str:
        """The mode; of ``"auto"`` the cheapest where none meets all wishes."""
        with suppress(ImpossibleDeadline, ImpossibleBudget):
            return self.resolved()
        return str(self.options.sort("dollars", "minutes")["mode"][0])

    def check(self, *, part: float = 1.0) -> dict[str, Any]:
        """Return what the plan takes in its mode, as a row of `OPTIONS`; raise where that is not allowed.

        `part` is what is still to be sent: what the ledger has is paid for.
        """
        mode, deadline = self.mode, self.deadline
        option = estimates.option(self.options, mode)
        # A batch takes its time whatever its size.
        scaled = _SCALED if mode != "live" else (*_SCALED, "minutes", "minutes_p90")
        option |= {name: option[name] * part for name in scaled}
        needed, instead = option["minutes"], ""
        takes = f"about {duration(needed)} in mode={mode!r}, bound by {option['binding']}"
        if mode == "hybrid" and deadline is not None:
            # Everything may have to go live, if the batch comes to nothing.
            live = estimates.option(self.options, "live")["minutes_p90"] * part
            needed = live + estimates.CANCEL_MINUTES
            cancel = f"{duration(estimates.CANCEL_MINUTES)} for canceling the batch"
            takes = f"up to {duration(live)} live, and mode='hybrid' keeps {cancel}"
            instead = "mode='live', which is in time, or " if live <= deadline else ""
        if deadline is not None and needed > deadline:
            self._refuse_deadline(takes, needed, instead)
        spent, budget, known = option["dollars"], self.budget, self.expected
        if budget is not None and spent * (1 - min(known.doubt, _TRUSTED_DOUBT)) > budget:
            rows = int(self.totals.rows * part * budget / spent)
            basis = "" if known.calls else " (their length is guessed: calibrate with a pilot)"
            fewer = f": enough for about {rows:,} rows. Use plan.head({rows}), or a" if rows else ". Use a"
            self._refuse_budget(f"about {dollars(spent)}{basis}", fewer)
        return option

    def _refuse_deadline(self, takes: str, minutes: float, instead: str = "") -> NoReturn:
        msg = (
            f"These rows take {takes} ({self.limits.source}), and the deadline is "
            f"{duration(self.deadline or 0.0)}. Allow {instead}"
            f"deadline={math.ceil(minutes)} (minutes), a higher tier, or fewer rows: plan.head(n)."
        )
        raise ImpossibleDeadline(msg)

    def _refuse_budget(self, cost: str, instead: str) -> NoReturn:
        spends = f"the budget is {dollars(self.budget or 0.0)}{instead} larger budget."
        msg = f"These rows cost {cost}, and {spends}"
        raise ImpossibleBudget(msg)
