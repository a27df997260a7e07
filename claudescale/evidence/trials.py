"""Trial: the same rows on several models, efforts or prompts, to pick the cheapest that is good enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from claudescale.errors import NotEnoughEvidence, refuse
from claudescale.evidence import judging
from claudescale.ledger.ledger import DEFAULT_LEDGER
from claudescale.loops import awaited
from claudescale.prompts.replies import INVALID_REPLY
from claudescale.prompts.requests import NOT_SENT, read
from claudescale.text import dollars, plural
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.models import Model
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Picture

TRIAL = pl.Schema(
    {"choice": pl.String(), "model": pl.String(), "rows": pl.Int64()}
    | dict.fromkeys(("score", "score_low", "score_high", "dollars_per_1000_rows"), pl.Float64())
    | {"seconds": pl.Float64(), "seconds_p90": pl.Float64(), "failed": pl.Int64(), "why": pl.String()}
    | {"dollars": pl.Float64(), "minutes": pl.Float64(), "simulated": pl.Boolean()}
)
"""Columns of `Trial.table`, one row per choice. Before a choice has run, `rows`, `dollars` and `minutes` are
estimates, and the figures that only a run can measure are null."""

_FEWEST = 2


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trial(Shown):
    """The same sampled rows on several choices. Make one with `trial`; nothing is sent before `run`.

    Only `run` spends tokens. Then `table` has the measurements, and `pick` returns the plan with the cheapest
    choice that is good enough.

    Attributes
    ----------
    plan : Plan
        The plan that needs a choice.
    plans : dict of Plan
        The sample with each choice. It is sent live, whatever the mode of `plan`.
    runs : dict of Run
        The run of each choice that has started.
    judge : Judge
        Scores the replies. `reference` is the choice with which the others have to agree, if any.
    confidence : float
        Confidence level of the intervals and of `pick`.
    budget : float or None
        Maximum dollars of all choices together.
    """

    plan: Plan
    plans: Mapping[str, Plan]
    judge: judging.Judge
    reference: str | None
    seed: int
    confidence: float
    budget: float | None
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def sample(self) -> pl.DataFrame:
        """The rows that every choice gets."""
        return read(next(iter(self.plans.values())).frame)

    @awaited("await trial.run(client)")
    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
    ) -> Trial:
        """Send the sampled rows to each choice, cheapest first, and return this trial.

        Running the same cell again resumes. With the same ledger nothing is paid for twice, even with a
        larger `n`, or when you run the plan that was picked. With a budget, each choice may spend its
        estimated share and what earlier choices left over.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`. The default is the client that it returned last, or a new one.
        ledger : str, Path or None
            One ledger for all choices, as for `Plan.run`.
        progress : bool
            Show a progress bar for each choice.

        Raises
        ------
        RunStopped
            A run cannot continue (key, spend limit, ledger); the replies paid for are in the ledger.
        """
        self.runs.clear()
        expected = {choice: plan.compiled.takes["dollars"] for choice, plan in self.plans.items()}
        for choice in sorted(expected, key=expected.__getitem__):
            plan = self.plans[choice]
            still_expected = sum(expected[other] for other in expected.keys() - self.runs)
            if self.budget is not None and still_expected:
                left = self.budget - sum(run.counts.dollars for run in self.runs.values())
                share = left * min(expected[choice] / still_expected, 1.0)
                plan = plan.replace(budget=max(share, judging.TOO_LITTLE))
            self.runs[choice] = plan.start(client, ledger=ledger, progress=progress)
            await self.runs[choice]
        return self

    @property
    def table(self) -> pl.DataFrame:
        """One row per choice as `TRIAL`: measured if it has run, otherwise estimated.

        The interval is that of each choice alone. If each row is right or wrong, it is Clopper and Pearson's,
        which is exact. Otherwise it is a percentile bootstrap, which is approximate, and null if there are
        fewer than 30 scores or all are the same. `pick` corrects for the number of choices.

        Spends: nothing.
        """
        scores = self.scores
        return pl.DataFrame([self._row(choice, scores.get(choice)) for choice in self.plans], schema=TRIAL)

    def _row(self, choice: str, scores: pl.Series | None) -> dict[str, Any]:
        plan = self.plans[choice]
        row: dict[str, Any] = {"choice": choice, "model": plan.compiled.model.id}
        if scores is None:
            takes, rows = plan.compiled.takes, plan.compiled.totals.sent_rows
            row |= {"rows": rows, "dollars": takes["dollars"], "minutes": takes["minutes"]}
            return row | {"dollars_per_1000_rows": takes["dollars"] / rows * 1_000}
        run, judged = self.runs[choice], scores.drop_nulls()
        low, high = judging.interval(judged, self.confidence, seed=self.seed)
        seconds = run.job.replies().filter(mode="live", status=200)["seconds"]
        results = answered(run)
        errors = results.filter(pl.col("error") != NOT_SENT)["error"]
        paid, rows = judging.paid(run), int(results["judged"].sum())
        return row | {
            "rows": judged.len(),
            "score": judged.mean(),
            "score_low": 1.0 if choice == self.reference else low,  # it agrees with itself
            "score_high": high,
            "dollars_per_1000_rows": paid / rows * 1_000 if rows else None,
            "seconds": seconds.median(),
            "seconds_p90": seconds.quantile(0.9, "linear"),
            "failed": errors.len(),
            "why": judging.why(errors),
            "dollars": paid,
            "minutes": run.minutes,
            "simulated": run.job.simulated,
        }

    @property
    def scores(self) -> dict[str, pl.Series]:
        """The score of each row of `sample`, for each choice that has run; null where it could not be judged.

        The scores of two choices are paired: ``trial.scores[one] - trial.scores[other]`` is each row's gain.

        Spends: nothing.
        """
        results = {choice: answered(run) for choice, run in self.runs.items()}
        if self.reference not in {None, *results}:
            nothing = pl.repeat(None, self.sample.height, dtype=pl.Float64, eager=True)
            return dict.fromkeys(results, nothing)
        judged = {choice: frame["judged"] for choice, frame in results.items()}
        if self.reference is not None:
            against = results[self.reference]
            columns = against.select(pl.col(self.judge.agrees_on).name.suffix(judging.REFERENCE))
            results = {choice: frame.hstack(columns) for choice, frame in results.items()}
            judged = {choice: rows & against["error"].is_null() for choice, rows in judged.items()}
        return {choice: self.judge.scores(frame, judged[choice]) for choice, frame in results.items()}

    def evidence(self, *, min_score: float) -> pl.DataFrame:
        """Return how likely luck gives each choice's score, and whether it clears, as `judging.EVIDENCE`.

        Spends: nothing.
        """
        if not (isinstance(min_score, int | float) and math.isfinite(min_score)):
            refuse(f"min_score={min_score!r}: it is the score to reach, a number such as min_score=0.9.")
        if not self.runs:
            refuse("The trial has not been run. Use await trial.run(client) first.")
        return judging.evidence(
            self._judged, min_score, self.confidence, certain=self.reference, seed=self.seed
        )

    @property
    def _judged(self) -> dict[str, pl.Series]:
        return {choice: values.drop_nulls() for choice, values in self.scores.items()}

    def pick(self, *, min_score: float, by: Literal["dollars", "minutes"] = "dollars") -> Plan:
        """Return the plan with the cheapest or fastest choice that is good enough, calibrated on its run.

        If each row is right or wrong, the probability of returning a choice whose true score is below
        `min_score` is at most ``1 - confidence``, however many choices there are. For other scores this is
        approximate. It holds for one look: adding rows until a choice passes makes an error more likely.

        Spends: nothing.

        Parameters
        ----------
        min_score : float
            The score to reach: a share where a row is right or wrong.
        by : {"dollars", "minutes"}
            What to minimize over the whole plan.

        Raises
        ------
        NotEnoughEvidence
            No choice has been shown to be good enough; the message says how many more rows would settle it.
        """
        if by not in {"dollars", "minutes"}:
            refuse(f"by={by!r} is not one of 'dollars' (the cheapest), 'minutes' (the fastest).")
        plans = []
        for choice in self.evidence(min_score=min_score).filter("clears")["choice"]:
            chosen = self.plans[choice]
            plan = self.plan.replace(model=chosen.model, effort=chosen.effort, prompt=chosen.prompt)
            plans.append(plan.calibrate(self.runs[choice]))
        if plans:
            return min(plans, key=lambda plan: plan.compiled.takes[by])
        reason, more = judging.shortfall(self._judged, min_score, self.confidence)
        if more:
            rows = f"n={self.sample.height + more} of the plan's {self.plan.compiled.totals.rows:,} rows"
            reason += f" Use cs.trial with {rows}: with the same ledger none is paid for twice."
        raise NotEnoughEvidence(reason, more)

    @property
    def plot(self) -> TrialPlots:
        """The trial's picture: ``quality``."""
        return TrialPlots(self)

    def _card(self) -> Card:
        table, runs = self.table, self.runs.items()
        scored = f"{self.judge.words} with {self.reference}" if self.reference else self.judge.words
        rows = plural(self.sample.height, "row")
        title = f"Trial of {plural(table.height, 'choice')} on {rows}, scored by {scored}"
        total = dollars(float(table["dollars"].sum()))
        if not runs:
            title = f"{title}: about {total} in all. Nothing is sent yet."
            notes = [] if self.budget is None else [f"Budget: {dollars(self.budget)}."]
            table = table.select("choice", "rows", "dollars", "minutes")
            return Card.of(table, title=title, notes=notes, next="await trial.run(client)")
        notes = []
        missing = [
            f"{plural(run.counts.missing, 'row')} of {choice}" for choice, run in runs if run.counts.missing
        ]
        missing += [choice for choice in self.plans if choice not in self.runs]
        if missing:
            notes.append(
                f"Not answered: {', '.join(missing)}. The same cell again sends only what is missing."
            )
        if any(run.job.simulated for run in self.runs.values()):
            title = f"SIMULATED {title}"
            notes.append(judging.INVENTED)
        table = table.rename({"score_low": "score_interval", "score_high": "score_interval_p90"})
        table, next_ = table.select("choice", *table.columns[3:10]), "plan = trial.pick(min_score=0.9)"
        return Card.of(table, title=f"{title}: {total} in all.", notes=notes, next=next_)


@dataclass(frozen=True)
class TrialPlots:
    """The picture of a trial."""

    trial: Trial

    def quality(self, min_score: float | None = None) -> Picture:
        """Return each choice's score and interval against its dollars. Spends: nothing."""
        from claudescale.views import plan_charts  # noqa: PLC0415  # altair is slow to import

        evidence = None if min_score is None else self.trial.evidence(min_score=min_score)
        return plan_charts.quality(self.trial.table, evidence, min_score)


def answered(run: Run) -> pl.DataFrame:
    """Return a run's results with a column `judged`: rows given up on say nothing about a model."""
    error = pl.col("error")
    final = error.is_null() | error.is_in([*run.job.replies()["error"].drop_nulls().unique(), INVALID_REPLY])
    return run.results.with_columns(judged=final & run.job.work.keys.is_not_null())


def trial(
    plan: Plan,
    models: Iterable[str | Model] | None = None,
    *,
    effort: Iterable[str] | None = None,
    prompt: Iterable[Any] | None = None,
    n: int = 50,
    score: pl.Expr | Callable[[pl.DataFrame], pl.Series] | str | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    budget: float | None = None,
) -> Trial:
    """Return a trial of several models, efforts or prompts on the same rows of a plan. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        The plan that needs a choice. Its own model, effort or prompt need not be among those compared.
    models, effort, prompt : list
        Two or more values of one of these, as for `plan`.
    n : int
        Rows to sample without replacement, or all if there are fewer. A larger trial with the same seed
        includes the rows of the smaller one.
    score : pl.Expr, callable, str or None
        How to score a reply: an expression over the results (Boolean or a number, preferably from 0 to 1); a
        function of the results frame; or the name of a column with the right answers, which is compared with
        the one typed column, ignoring case. Rows without a right answer are then not sampled. None counts how
        often a choice agrees with the most expensive one (the last one if several tie). A row that failed
        scores 0.
    seed : int
        Seeds the sample and the bootstrap.
    confidence : float
        Confidence level of the intervals and of `Trial.pick`.
    budget : float, optional
        Maximum dollars of the whole trial: a hard stop.

    Raises
    ------
    PlanError
        The trial cannot be made; the message says what to type instead.

    Examples
    --------
    >>> from claudescale import plan
    >>> frame = pl.DataFrame({"text": ["late again", "works"], "truth": ["bad", "good"]})
    >>> labels = pl.Enum(["good", "bad"])
    >>> one = plan(frame, "Good or bad? {text}", model="claude-haiku-5-5", returns=labels)
    >>> trial(one, ["claude-haiku-5-5", "claude-opus-5-5"], score="truth").table["rows"].to_list()
    [2, 2]
    """
    if not (isinstance(confidence, float) and 0.5 <= confidence < 1):  # noqa: PLR2004 - a coin toss
        refuse(f"confidence={confidence!r}: it is a share from 0.5 to below 1, such as confidence=0.95.")
    live = plan.replace(mode="live", deadline=None, budget=budget)
    plans, rows = judging.choices(live, effort=effort, prompt=prompt, models=models), read(plan.frame)
    judge = judging.scoring(score, next(iter(plans.values())))
    rows = rows if judge.truth is None else rows.filter(pl.col(judge.truth).is_not_null())
    shuffled = rows[pl.int_range(rows.height, eager=True).shuffle(seed)]
    plans = {choice: changed.replace(frame=shuffled).head(n) for choice, changed in plans.items()}
    if min(sampled.compiled.totals.sent_rows for sampled in plans.values()) < _FEWEST:
        refuse(f"There are fewer than {_FEWEST} rows to send: a trial of them shows nothing.")
    dearest = max(reversed(plans), key=lambda choice: float(plans[choice].compiled.takes["dollars"]))
    return Trial(
        plan=plan, plans=plans, judge=judge, reference=dearest if judge.agrees_on else None, seed=seed,
        confidence=confidence, budget=budget,
    )  # fmt: skip
