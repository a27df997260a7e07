"""Cascade: a cheap model answers every row, the next one only the rows that are not settled."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, NameTaken, RunStopped, refuse
from claudescale.evidence import judging
from claudescale.ledger.ledger import DEFAULT_LEDGER, ledger_typed
from claudescale.loops import awaited
from claudescale.prompts.requests import NOT_SENT, read, schema_of
from claudescale.text import dollars, duration, plural
from claudescale.views.card import Card, Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.api.models import Model
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.views.theme import Picture

CASCADE, NOT_ACCEPTED = "cascade", "not_accepted"

OPTIONS = pl.Schema(
    {"way": pl.String()}
    | dict.fromkeys(("dollars_low", "dollars", "dollars_high"), pl.Float64())
    | dict.fromkeys(("minutes_low", "minutes", "minutes_high"), pl.Float64())
)
"""Columns of `Cascade.options`, one row per way: the cascade, or every row on one of its models. Low assumes
the fewest rows passed on, high the most, at the 90th percentile of tokens and time. The figure between them
is null while the share that is passed on is unknown."""

TABLE = pl.Schema(
    {"model": pl.String()}
    | dict.fromkeys(("rows", "accepted", "passed_on", "missing"), pl.Int64())
    | {"passed_on_share": pl.Float64(), "why": pl.String(), "dollars": pl.Float64(), "minutes": pl.Float64()}
)
"""Columns of `CascadeRun.table`, one row per model: the rows it was asked about, those it settled, those it
did not and why, and those without an answer yet. `dollars` is what its replies cost, whichever run paid."""

BILL = pl.Schema(
    {"way": pl.String(), "dollars": pl.Float64(), "share": pl.Float64(), "estimated": pl.Boolean()}
)
"""Columns of `CascadeRun.bill`: the cascade, then every row on each of its models. `share` is relative to
every row on the last model."""

_CONFIDENCE = 0.95
_MODES = ("live", "batch")
_TEXT, _ROW = "claudescale_prompt", "claudescale row"  # names that no user's frame has


class Passed(NamedTuple):
    """Counts of a model's distinct requests in a pilot: those asked, and those passed on."""

    asked: int = 0
    on: int = 0

    @property
    def shares(self) -> tuple[float, float, float]:
        """The share passed on, between the ends of its exact interval; (0, 1, 1) if nothing was asked."""
        low, high = judging.clopper_pearson(self.on, self.asked, _CONFIDENCE)
        return low, self.on / self.asked if self.asked else 1.0, high


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Cascade(Shown):
    """A plan over several models, not sent yet. Make one with `cascade`.

    It shows its cost and that of every row on each of its models. Only `run` spends tokens.

    Attributes
    ----------
    plans : dict of Plan
        All rows on each model, in the order in which the models are asked.
    accept : Judge or None
        Decides which replies are good enough. None accepts every reply that did not fail.
    passed : tuple of Passed
        Counts of the requests that each model was asked and passed on in a pilot; 0 before `calibrate`.
    """

    plans: Mapping[str, Plan]
    accept: judging.Judge | None
    passed: tuple[Passed, ...]

    @property
    def plan(self) -> Plan:
        """All rows on the first model."""
        return next(iter(self.plans.values()))

    def accepted(self, replies: pl.DataFrame) -> pl.Series:
        """Return which of the replies that did not fail are good enough. Spends: nothing."""
        if self.accept is None:
            return pl.repeat(value=True, n=replies.height, eager=True)
        return self.accept.values(replies).cast(pl.Boolean).fill_null(value=False)

    @property
    def options(self) -> pl.DataFrame:
        """One row per way as `OPTIONS`, in the plan's mode: the cascade, and all rows on each model.

        Until a pilot has measured the share that is passed on, the cascade's dollars and minutes are a range
        from no row to every row passed on. A batch takes the same time at any size.

        Spends: nothing.
        """
        alone = [plan.compiled.takes for plan in self.plans.values()]
        ways: dict[str, list[Any]] = {"way": [CASCADE, *(f"all on {name}" for name in self.plans)]}
        for unit in ("dollars", "minutes"):
            for end, shares in zip(("_low", "", "_high"), self._reaching(), strict=True):
                figures = [takes[f"{unit}_p90" if end == "_high" else unit] for takes in alone]
                if unit == "minutes" and self.plan.mode == "batch":
                    shares = [math.ceil(share) for share in shares]  # noqa: PLW2901
                together = sum(map(mul, figures, shares)) if end or self.passed[0].asked else None
                ways[f"{unit}{end}"] = [together, *figures]
        return pl.DataFrame(ways, schema=OPTIONS)

    def _reaching(self) -> Iterable[list[float]]:
        """Return the shares of the rows that reach each model: the low, the measured and the high ones."""
        passed_on = zip(*(passed.shares for passed in self.passed[:-1]), strict=True)
        return (list(accumulate(shares, mul, initial=1.0)) for shares in passed_on)

    def sample(self, n: int = 50, seed: int = 0) -> Cascade:
        """Return the cascade over `n` rows drawn without replacement, or over all if there are fewer.

        Spends: nothing.
        """
        frame = self.plan.sample(n, seed).frame
        return replace(self, plans={model: plan.replace(frame=frame) for model, plan in self.plans.items()})

    def calibrate(self, pilot: CascadeRun) -> Cascade:
        """Return the same cascade with the share passed on and the tokens of each model as measured.

        Spends: nothing.

        Parameters
        ----------
        pilot : CascadeRun
            A run over some rows of the same cascade, such as ``await cascade.sample(50).run(client)``.

        Raises
        ------
        PlanError
            The pilot has other models, another `accept` or no replies.
        """
        mine = list(self.plans), self.accept
        is_ours = isinstance(pilot, CascadeRun) and (list(pilot.cascade.plans), pilot.cascade.accept) == mine
        if not (is_ours and any(passed.asked for passed in pilot.passed)):
            use = "Use pilot = await cascade.sample(50).run(client)."
            refuse(f"This is not a run of this cascade, or it has no replies to learn from. {use}")
        paid = [model for model, run in pilot.runs.items() if judging.paid(run)]
        measured = {model: self.plans[model].calibrate(pilot.runs[model]) for model in paid}
        unasked = [Passed()] * (len(self.plans) - len(pilot.passed))
        return replace(self, plans={**self.plans, **measured}, passed=(*pilot.passed, *unasked))

    @awaited("run = await cascade.run(client)")
    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
    ) -> CascadeRun:
        """Ask each model about the rows that earlier models did not settle, and return the finished run.

        Running the same cell again resumes: replies in the ledger, of any model, are not paid for again.
        `budget` and `deadline` apply to all models together: each model gets what the earlier ones left.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`. The default is the client that it returned last, or a new one.
        ledger : str, Path or None
            One ledger for all models, as for `Plan.run`.
        progress : bool
            Show a progress bar for each model.

        Raises
        ------
        RunStopped
            The run cannot continue (key, spend limit, ledger, an `accept` that fails); ``.run`` keeps the
            replies paid for.
        """
        run = CascadeRun(cascade=self, rows=read(self.plan.frame))
        await run.climb(client, ledger=ledger, progress=progress)
        return run

    def _card(self) -> Card:
        plan, ways = self.plan, self.options
        fails = "Passed on: rows that fail (form, refusal, cut off, empty, API error)"
        notes = [f"{fails}, and what {self.accept.words} does not accept." if self.accept else f"{fails}."]
        for model, passed in zip(self.plans, self.passed[:-1], strict=False):
            if passed.asked:
                low, _, high = passed.shares
                share = f"{passed.on:,} of {passed.asked:,}, so {low:.0%} to {high:.0%}"
                notes.append(f"{model} passed on {share} ({_CONFIDENCE:.0%} interval).")
        if plan.budget is not None:
            notes.append(f"Budget: {dollars(plan.budget)} for all models together.")
        usual, models = ways["dollars"][0], " \N{RIGHTWARDS ARROW} ".join(self.plans)
        about, following = f"about {dollars(usual or 0.0)}", "run = await cascade.run(client)"
        if usual is None:
            about = "a range before a pilot"
            following = "pilot = await cascade.sample(50).run(client); cascade = cascade.calibrate(pilot)"
        title = f"Cascade: {plural(plan.compiled.totals.rows, 'row')}, {plan.mode}, {models}: {about}."
        ends = {"dollars": "dollars_low", "dollars_p90": "dollars_high", "minutes": "minutes_low"}
        table = ways.select("way", **ends, minutes_p90="minutes_high")
        return Card.of(table, title=f"{title} Nothing is sent yet.", notes=notes, next=following)


@dataclass(kw_only=True, eq=False, repr=False)
class CascadeRun(Shown):
    """The run of a cascade. `Cascade.run` makes one.

    Attributes
    ----------
    cascade : Cascade
        The cascade that was run.
    rows : pl.DataFrame
        The frame of the cascade.
    runs : dict of Run
        The run of each model that was asked, over the rows that reached it, in their order. If the prompt is
        an expression, the frames of these runs have its text as an additional column.
    passed : list of Passed
        Counts of the requests that each of these models was asked and passed on.
    state : str
        ``"finished"``; ``"stopped"`` before every row was settled or had its last model; ``"left"`` while
        batches continue at the API; ``"failed"``.
    stopped_by, message : str or None
        What ended it early (``"budget"``, ``"deadline"``, ``"accept"`` or the API's error type), and the text
        of that error.
    """

    cascade: Cascade
    rows: pl.DataFrame
    runs: dict[str, Run] = field(default_factory=dict)
    passed: list[Passed] = field(default_factory=list)
    state: str = "running"
    stopped_by: str | None = None
    message: str | None = None
    _answers: list[pl.DataFrame] = field(default_factory=list)  # results of each run, plus `model` and `_ROW`

    async def climb(self, client: AsyncAnthropic | None, *, ledger: Any, progress: bool) -> None:
        """Ask one model after the other until no row is passed on or the run ends early."""
        frame, whole = self.rows, self.cascade.plan
        changes: dict[str, Any] = {}
        text = whole.compiled.prompt.text
        if text.columns is None:  # an expression may depend on all rows, so it is computed once
            frame = frame.with_columns(text.content.alias(_TEXT))
            changes["prompt"] = pl.col(_TEXT)
        rows = pl.int_range(frame.height, dtype=pl.UInt32, eager=True)
        for number, (model, plan) in enumerate(self.cascade.plans.items(), 1):
            # What is left for this model; its run refuses too little.
            changes["budget"] = whole.budget and max(whole.budget - self.dollars, judging.TOO_LITTLE)
            changes["deadline"] = whole.deadline and max(whole.deadline - self.minutes, judging.TOO_LITTLE)
            try:
                asked = replace(plan, frame=frame[rows], **changes)
                self.runs[model] = asked.start(client, ledger=ledger, progress=progress)
                await self.runs[model]
            except (ImpossibleBudget, ImpossibleDeadline) as error:
                if number == 1:
                    raise
                self.runs.pop(model, None)  # nothing was sent to it
                self.state = "stopped"
                self.stopped_by = "budget" if isinstance(error, ImpossibleBudget) else "deadline"
                self.message = f"{rows.len():,} rows are passed on to {model}. {error}"
                return
            except RunStopped as error:
                self._judge(model, rows)
                msg = f"Model {number} of {len(self.cascade.plans)}, {model}: {error}"
                raise RunStopped(msg, self) from error
            rows = self._judge(model, rows)
            if rows.is_empty() or self.state != "finished":
                return

    def _judge(self, model: str, rows: pl.Series) -> pl.Series:
        """Keep the answers of a model to some rows, and return the rows that it did not settle."""
        run = self.runs[model]
        self.state, self.stopped_by, self.message = run.state, run.stopped_by, run.message
        results, keys = run.results.drop(_TEXT, "simulated", strict=False), run.job.work.keys
        error = results["error"]
        was_asked = keys.is_not_null() & error.ne_missing(NOT_SENT)  # a row without a key has no request
        answers = results.with_columns(rows.alias(_ROW), model=pl.when(was_asked).then(pl.lit(model)))
        self._answers.append(answers)
        came_through = was_asked & error.is_null()
        try:
            accepted = self.cascade.accepted(answers.drop(_ROW).filter(came_through))
        except Exception as failure:  # the user's function may raise anything
            self.state, self.stopped_by = "failed", "accept"
            self.message = f"{model}: accept= cannot tell which replies are good enough: {failure!r}."
            kept = "The replies are in run.runs; with the same ledger another accept= pays for none of them."
            msg = f"{self.message} {kept}"
            raise RunStopped(msg, self) from failure
        error = error.scatter(came_through.arg_true().filter(~accepted), NOT_ACCEPTED)
        self._answers[-1] = answers.with_columns(error)
        is_passed_on = was_asked & error.is_not_null()
        asked, on = (keys.filter(some).n_unique() for some in (was_asked, is_passed_on))
        self.passed.append(Passed(asked, on))
        return rows.filter(is_passed_on)

    @property
    def dollars(self) -> float:
        """Dollars paid by this run, without the replies that the ledger already had."""
        return sum(run.counts.dollars for run in self.runs.values())

    @property
    def minutes(self) -> float:
        """API minutes of the runs of all models."""
        return sum(run.minutes for run in self.runs.values())

    @property
    def simulated(self) -> bool:
        """Whether the replies come from a simulator."""
        return any(run.job.simulated for run in self.runs.values())

    @property
    def results(self) -> pl.DataFrame:
        """The rows of the frame in the same order, with the typed columns, `reply`, `error` and `model`.

        A settled row has the accepted reply and no error. A row that no model settled keeps the last reply
        that a model gave, and `error` says what is wrong with it: ``"not_accepted"``, ``"invalid_reply"``,
        ``"max_tokens"``, ...; if no model gave a reply, it is the error of the last one asked. `model` is the
        source of the reply or the error, and null where no model was asked. With a simulator's replies there
        is a last column, `simulated`.

        Spends: nothing.
        """
        error = pl.col("error")
        is_open, replied = error == NOT_SENT, error.is_null() | pl.col("reply").is_not_null()
        # The last answer of the highest worth is kept.
        worth = pl.when(is_open).then(0).when(replied).then(2).otherwise(1)
        answers = pl.concat(self._answers).sort(_ROW, worth, maintain_order=True)
        results = answers.unique(_ROW, keep="last", maintain_order=True).drop(_ROW)
        return results.with_columns(simulated=True) if self.simulated else results

    @property
    def table(self) -> pl.DataFrame:
        """One row per model that was asked, as `TABLE`: the rows that it settled and did not settle.

        Spends: nothing.
        """
        rows = []
        for (model, run), answers in zip(self.runs.items(), self._answers, strict=True):
            asked = answers.filter(pl.col("model").is_not_null())
            passed_on, missing = asked["error"].drop_nulls(), (answers["error"] == NOT_SENT).sum()
            rows.append(
                {
                    "model": model,
                    "rows": asked.height + missing,
                    "accepted": asked.height - passed_on.len(),
                    "passed_on": passed_on.len(),
                    "missing": missing,
                    "passed_on_share": passed_on.len() / asked.height if asked.height else None,
                    "why": judging.why(passed_on),
                    "dollars": judging.paid(run),
                    "minutes": run.minutes,
                }
            )
        return pl.DataFrame(rows, schema=TABLE)

    @property
    def bill(self) -> pl.DataFrame:
        """What the cascade cost, compared with every row on each of its models, as `BILL`.

        For the first model this is the cost of its replies. For a later model it is an estimate from its
        replies to the rows that reached it.

        Spends: nothing.
        """
        paid = [judging.paid(run) for run in self.runs.values()]
        known = self.cascade.calibrate(self) if any(passed.asked for passed in self.passed) else self.cascade
        every_row = [plan.compiled.takes["dollars"] for plan in known.plans.values()]
        estimated = [True] * len(every_row)
        if next(iter(self.runs.values())).state == "finished":
            every_row[0], estimated[0] = paid[0], False
        ways = {"way": known.options["way"], "dollars": [sum(paid), *every_row]}
        last = pl.col("dollars").last()
        share = pl.when(last > 0).then(pl.col("dollars") / last)
        return pl.DataFrame(ways | {"estimated": [False, *estimated]}).with_columns(share=share).select(*BILL)

    @property
    def plot(self) -> CascadePlots:
        """The run's picture: ``bill``."""
        return CascadePlots(self)

    def _card(self) -> Card:
        table, mark = self.table, "SIMULATED " if self.simulated else ""
        by = f" ({self.stopped_by})" if self.stopped_by else ""
        settled = f"{table['accepted'].sum():,} of {plural(self.rows.height, 'row')} accepted"
        spent = f"{dollars(self.dollars)} paid by this run in {duration(self.minutes)}"
        ways = [
            f"{way} {'about ' if is_estimate else ''}{dollars(cost)}"
            for way, cost, _, is_estimate in self.bill.iter_rows()
        ]
        notes = [f"{', '.join(ways)}."]
        if self.simulated:
            notes.append(judging.INVENTED)
        if self.message:
            notes.append(f"{self.message} The same cell again sends only what is missing.")
        ledger = ledger_typed(next(iter(self.runs.values())).path)
        return Card.of(
            table.select("model", "rows", "accepted", "passed_on_share", "why", "dollars"),
            title=f"{mark}Cascade {self.state}{by}: {settled}; {spent}.",
            notes=notes,
            next="run.results" if self.state == "finished" else f"run = await cascade.run(client{ledger})",
        )


@dataclass(frozen=True)
class CascadePlots:
    """The picture of a cascade's run."""

    run: CascadeRun

    def bill(self) -> Picture:
        """Return what the cascade saved, compared with every row on its last model. Spends: nothing."""
        from claudescale.views import run_charts  # noqa: PLC0415  # altair is slow to import

        ways, costs = self.run.bill["way"], self.run.bill["dollars"]
        steps = {ways[-1]: costs[-1], "cheaper models first": costs[-1] - costs[0], "this cascade": costs[0]}
        return run_charts.savings(
            pl.DataFrame(list(steps.items()), {"part": pl.String, "dollars": pl.Float64}, orient="row"),
            simulated=self.run.simulated,
        )


def cascade(
    plan: Plan,
    models: Iterable[str | Model],
    accept: pl.Expr | Callable[[pl.DataFrame], pl.Series] | None = None,
) -> Cascade:
    """Return a plan over several models: the first gets every row, each next one the rows that are left.

    A row is passed on to the next model if its reply breaks the form of `returns` or is refused, cut off or
    empty, if the API gave no answer after all retries, or if `accept` rejects the reply. Nothing is sent.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        The question and its settings, in mode ``"live"`` or ``"batch"``. Its own model need not be among
        `models`.
    models : list of str
        Two or more, in the order in which they are asked, cheapest first.
    accept : pl.Expr, callable or None
        An expression over the results (the frame's columns, the typed ones, `reply`, `model`) that is true
        where a reply is good enough; null counts as false. Or a function of the results frame that returns a
        Boolean Series. It judges only replies that did not fail; rows that failed are always passed on.

    Raises
    ------
    PlanError
        The cascade cannot be made; the message says what to type instead.

    Examples
    --------
    >>> import polars as pl
    >>> from claudescale import plan
    >>> frame = pl.DataFrame({"text": ["late again", "works"]})
    >>> sure = {"label": pl.Enum(["good", "bad"]), "sure": pl.Float64}
    >>> one = plan(frame, "Good or bad, and how sure? {text}", model="claude-haiku-5-5", returns=sure)
    >>> two = cascade(one, ["claude-haiku-5-5", "claude-opus-5-5"], accept=pl.col("sure") > 0.8)
    >>> two.options["way"].to_list()
    ['cascade', 'all on claude-haiku-5-5', 'all on claude-opus-5-5']
    """
    if plan.mode not in _MODES:
        refuse(
            f"A cascade runs live or as batches, not in mode={plan.mode!r}. Use plan.replace(mode='batch')."
        )
    if plan.compiled.retry is not None:
        refuse("A cascade asks every row, a retry only those that failed. Give it the plan itself.")
    if "model" in {*schema_of(plan.frame), *judging.typed(plan.compiled.prompt)}:
        msg = "A cascade's results get a column 'model'. Rename the one of the frame or of returns=."
        raise NameTaken(msg)
    schema = plan.compiled.prompt.results_schema(plan.frame) | {"model": pl.String()}
    judge = None if accept is None else judging.judge("accept", accept, schema)
    _ = plan.compiled.totals  # the frame is read once for the prices of all models
    plans = judging.choices(plan, models=models)
    return Cascade(plans=plans, accept=judge, passed=(Passed(),) * len(plans))
