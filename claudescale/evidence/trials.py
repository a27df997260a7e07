"""Trial: the same sampled rows through several models, and the cheapest one that is good enough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from claudescale.api import prices
from claudescale.api.connecting import connect
from claudescale.api.ownmodels import Model
from claudescale.awaiting import awaited
from claudescale.errors import ImpossibleBudget, NotEnoughEvidence, PlanError
from claudescale.evidence import evidence, trialframe
from claudescale.evidence.scoring import scoring
from claudescale.evidence.trialframe import TRIAL
from claudescale.planning.plans import DEFAULT_LEDGER
from claudescale.prompts.requests import plain, read
from claudescale.views import card, trialcards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.evidence.evidence import By, Choice
    from claudescale.evidence.scoring import Scoring
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Shown

_FEWEST = 2


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trial:
    """The same sampled rows through several models. Make one with `trial`; nothing is sent before `run`.

    `run` is the one verb that spends; `table` then has what was measured, `pick` the plan with the cheapest
    model that is good enough.

    Attributes
    ----------
    plan : Plan
        What the model is looked for.
    plans : dict of Plan
        The sample with each model, as it is sent: live, whatever the mode of `plan`.
    runs : dict of Run
        The run of each model that has been started.
    confidence : float
        Of the intervals and of `pick`.
    budget : float or None
        Dollars all models may cost together.
    """

    plan: Plan
    plans: Mapping[str, Plan]
    confidence: float
    seed: int
    budget: float | None
    scoring: Scoring
    runs: dict[str, Run] = field(default_factory=dict)

    # the one verb that spends

    @awaited("await trial.run(client)")
    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
    ) -> Trial:
        """Send the sampled rows to each model, the cheapest first, and return this trial.

        The same cell again is a resume: with the same ledger nothing is paid for twice, also if `n` has
        grown, nor when the plan that was picked is run. With a budget each model may spend its share of it,
        by estimate, and what others left over.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`, which is also the default.
        ledger : str, Path or None
            One for all models, as for `Plan.run`.
        progress : bool
            Show a progress bar for each model.

        Raises
        ------
        RunStopped
            A run cannot go on (key, spend limit, ledger); what was paid for is in the ledger.
        """
        api = client if client is not None else connect()
        self.runs.clear()
        expected = {model: trialframe.option(plan)["dollars"] for model, plan in self.plans.items()}
        left, open_dollars = self.budget, sum(expected.values())
        for model in sorted(expected, key=expected.__getitem__):
            plan = self.plans[model]
            if left is not None and open_dollars:
                share = min(1.0, expected[model] / open_dollars)
                plan = plan.replace(budget=max(left * share, math.ulp(0.0)), measured=plan.measured)
            run = self.runs[model] = plan.start(api, ledger=ledger, progress=progress)
            await run
            left = None if left is None else left - run.counts.dollars
            open_dollars -= expected[model]
        return self

    # what came of it

    @property
    def table(self) -> pl.DataFrame:
        """One row per model as `TRIAL`: measured where it has run, else estimated.

        The interval is Wilson's where each row is right or wrong, else the BCa bootstrap's, two-sided, for
        each model by itself. `pick` corrects for looking at several.

        Spends: nothing.
        """
        scores = self.scores
        rows = [
            trialframe.measured(model, self.runs[model], scores[model], self._unsent)
            | self._interval(model, scores[model].drop_nulls())
            if model in self.runs
            else trialframe.estimated(model, plan)
            for model, plan in self.plans.items()
        ]
        return pl.DataFrame(rows, schema=TRIAL)

    def _interval(self, model: str, scores: pl.Series) -> dict[str, float]:
        if scores.is_empty():
            return {}
        if model == self.scoring.reference:  # it agrees with itself
            return {"score_low": 1.0, "score_high": 1.0}
        low, high = evidence.interval(scores, self.confidence, seed=self.seed)
        return {"score_low": low, "score_high": high}

    @property
    def scores(self) -> dict[str, pl.Series]:
        """The score of each row by model that has run, null where it could not be judged.

        Rows are those of `sample`, so scores of two models are pairs.

        Spends: nothing.
        """
        results = {model: trialframe.answered(run) for model, run in self.runs.items()}
        return self.scoring.scores(results, self._unsent)

    @property
    def sample(self) -> pl.DataFrame:
        """The rows that every model is given.

        Spends: nothing.
        """
        return read(self._any.frame)

    def evidence(self, *, min_score: float, by: By = "dollars") -> pl.DataFrame:
        """Return for each model how likely its scores are by luck, as `evidence.VERDICTS`.

        Spends: nothing.
        """
        return self._choice(min_score, by).verdicts

    def pick(self, *, min_score: float, by: By = "dollars") -> Plan:
        """Return the plan with the cheapest, or fastest, model that is good enough, calibrated on its run.

        The chance that a model is chosen whose true score is below `min_score` is at most
        ``1 - confidence``, however many models there are. That holds for one look: who asks for more rows
        again and again until one passes has more chances to be wrong.

        Spends: nothing.

        Parameters
        ----------
        min_score : float
            The score to reach: a share where a row is right or wrong.
        by : {"dollars", "minutes"}
            The cheapest, or the one with which the whole plan takes least time within its limits.

        Raises
        ------
        NotEnoughEvidence
            No model is good enough for certain; how many rows more would settle it.
        """
        choice = self._choice(min_score, by)
        if choice.model is None:
            raise NotEnoughEvidence(choice.reason + self._advice(choice.rows_more), choice.rows_more)
        return self._calibrated(choice.model)

    @property
    def plot(self) -> TrialPlots:
        """The picture: ``quality``."""
        return TrialPlots(self)

    # how

    @property
    def _any(self) -> Plan:
        return next(iter(self.plans.values()))

    @cached_property
    def _unsent(self) -> pl.Series:
        return self._any.compiled.contents(self.sample)["content"].is_null()

    def _calibrated(self, model: str) -> Plan:
        return self.plan.replace(model=self.plans[model].model).calibrate(self.runs[model])

    def _choice(self, min_score: float, by: By) -> Choice:
        evidence.check_gate(min_score, self.confidence, by)
        if not self.runs:
            msg = "The trial has not been run. Use await trial.run(client) first."
            raise PlanError(msg)
        dollars = dict(self.table.select("model", "dollars_per_1000_rows").iter_rows())
        scores = self.scores
        rows = []
        for model, run in self.runs.items():
            minutes = None
            if by == "minutes" and not run.replies.filter(pl.col("dollars") > 0).is_empty():
                minutes = trialframe.option(self._calibrated(model), self.plan.mode)["minutes"]
            rows.append((model, scores[model].drop_nulls().to_list(), dollars[model], minutes))
        table = pl.DataFrame(rows, schema=evidence.CANDIDATES, orient="row")
        certain = self.scoring.reference
        return evidence.pick(
            table, min_score, by, confidence=self.confidence, certain=certain, seed=self.seed
        )

    def _advice(self, rows_more: int | None) -> str:
        if rows_more is None:
            return ""
        n, there = self.sample.height + rows_more, self._rows_there
        if n > there:
            return f" There are only {there:,} rows: ask for a lower min_score, or for less confidence."
        return f" Use cs.trial(..., n={n}): with the same ledger the rows of this one are not paid for again."

    @cached_property
    def _rows_there(self) -> int:
        return _judged(self.plan, self.scoring.truth).height

    # how it looks

    def __repr__(self) -> str:
        return trialcards.trial_card(self).text()

    def _repr_html_(self) -> str:
        return trialcards.trial_card(self).html()


class TrialPlots:
    """The pictures of a trial; each is a `claudescale.views.run_charts.Shown`."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def quality(self, min_score: float | None = None) -> Shown:
        """Return each model's score against its dollars, with the score to reach. Spends: nothing."""
        from claudescale.views import trialcharts  # noqa: PLC0415  # altair is slow to import

        trial, clears = self._trial, pl.Series(dtype=pl.String)
        if min_score is not None:
            clears = trial.evidence(min_score=min_score).filter("clears")["model"]
        return trialcharts.quality(
            trial.table, min_score=min_score, clears=clears.to_list(), confidence=trial.confidence
        )


def trial(
    plan: Plan,
    models: Iterable[str | Model],
    *,
    n: int = 50,
    score: pl.Expr | Callable[[pl.DataFrame], pl.Series] | str | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    budget: float | None = None,
) -> Trial:
    """Return a trial of several models on the same rows of a plan. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        What a model is looked for. Its own model need not be among `models`.
    models : list of str
        Two or more.
    n : int
        Rows to sample without replacement, or all if there are fewer. A larger trial with the same seed
        has the rows of the smaller one among its own.
    score : pl.Expr, callable, str or None
        What tells a good reply: an expression over the results (Boolean or a number, best from 0 to 1); a
        function of the results frame; the name of a column with the right answers, which is compared with
        the one typed column without regard to capitals, and rows without an answer in it are not sampled;
        None counts how often a model replies what the dearest of them does. A row that failed scores 0.
    seed : int
        Of the sample and of the bootstrap.
    confidence : float
        Of the intervals and of `Trial.pick`.
    budget : float, optional
        Dollars the trial may spend in all: a hard stop.

    Raises
    ------
    PlanError
        Something of it cannot be, and what to type instead.
    ImpossibleBudget
        The budget does not buy the trial.

    Examples
    --------
    >>> from claudescale import plan
    >>> frame = pl.DataFrame({"text": ["late again", "works"], "truth": ["bad", "good"]})
    >>> labels = pl.Enum(["good", "bad"])
    >>> one = plan(frame, "Good or bad? {text}", model="claude-haiku-5-5", returns=labels)
    >>> trial(one, ["claude-haiku-5-5", "claude-opus-5-5"], score="truth").table["rows"].to_list()
    [2, 2]
    """
    evidence.check_confidence(confidence)
    n, budget = plain(n, whole=True), plain(budget)
    if not isinstance(n, int) or isinstance(n, bool) or n < _FEWEST:
        msg = f"n={n!r}: it is how many rows every model is given, a whole number from {_FEWEST} on."
        raise PlanError(msg)
    dollars_given = isinstance(budget, int | float) and not isinstance(budget, bool)
    if budget is not None and not (dollars_given and 0 < budget < math.inf):
        msg = f"budget={budget!r}: it is in dollars and above 0, such as budget=5.0."
        raise PlanError(msg)
    named = _several(models)
    whole = plan.replace(mode="live", deadline=None, budget=None, measured=plan.measured)
    of_each = {found.facts.id: found for found in (_with(whole, model) for model in named)}
    if len(of_each) < len(named):
        msg = f"models={named!r} names a model twice. A trial is of different ones."
        raise PlanError(msg)
    unknown = next((each for each in of_each.values() if not prices.price(each.facts).is_known), None)
    if unknown is not None and budget is not None:
        msg = (
            f"budget={budget!r} needs the prices of {unknown.facts.id!r}, dollars per million tokens: "
            f"cs.Model({unknown.facts.id!r}, input_dollars=..., output_dollars=...)."
        )
        raise PlanError(msg)
    scored = scoring(score, plan, max(of_each, key=lambda name: _price(of_each[name])))
    rows = _judged(plan, scored.truth)
    sampled = rows[pl.int_range(rows.height, eager=True).shuffle(seed).head(n)]
    sample = whole.replace(frame=sampled, measured=whole.measured)
    if sample.totals.rows - sample.totals.unsent < _FEWEST:
        msg = f"There are fewer than {_FEWEST} rows to send: a trial of them shows nothing."
        raise PlanError(msg)
    plans = {name: _with(sample, each.model) for name, each in of_each.items()}
    dollars = sum(trialframe.option(each)["dollars"] for each in plans.values())
    if budget is not None and dollars > budget:
        fewer = int(sample.totals.rows * budget / dollars)
        use = f"Use n={fewer}, or a" if fewer >= _FEWEST else "Use a"
        msg = (
            f"This trial costs about {card.dollars(dollars)}, and its budget is {card.dollars(budget)}"
            f". {use} larger budget."
        )
        raise ImpossibleBudget(msg)
    return Trial(plan=plan, plans=plans, confidence=confidence, seed=seed, budget=budget, scoring=scored)


def _several(models: object) -> list[str | Model]:
    named = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else []
    if len(named) < _FEWEST or not all(isinstance(each, str | Model) for each in named):
        msg = (
            f"models={models!r:.60}: give two or more to compare, such as "
            "models=['claude-haiku-5-5', 'claude-sonnet-5-5']."
        )
        raise PlanError(msg)
    return named


def _with(plan: Plan, model: str | Model) -> Plan:
    """Return the plan with another model; its own keeps what a pilot has measured."""
    return plan if model in {plan.model, plan.facts.id} else plan.replace(model=model)


def _price(plan: Plan) -> tuple[float, float]:
    """Return what a model costs; nothing is known to cost least."""
    price = prices.price(plan.facts)
    step = price.steps[0]
    return (step.output, step.input) if price.is_known else (0.0, 0.0)


def _judged(plan: Plan, truth: str | None) -> pl.DataFrame:
    """Return the rows of a plan that can be judged: those with an answer in the column of truth."""
    rows = read(plan.frame)
    return rows if truth is None else rows.filter(pl.col(truth).is_not_null())
