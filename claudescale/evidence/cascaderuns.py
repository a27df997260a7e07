"""CascadeRun: the handle of a cascade under way or ended; each model has a `Run` over what reached it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from claudescale import loops
from claudescale.api.connecting import check_client, connect
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline, PlanError, RunStopped
from claudescale.evidence import cascadeframe, passing
from claudescale.evidence.cascadeframe import TABLE, Step
from claudescale.handles import Handle
from claudescale.planning import choices
from claudescale.views import card, cascadecards
from claudescale.views.cascadeplots import CascadeRunPlots

if TYPE_CHECKING:
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.evidence.cascades import Cascade
    from claudescale.evidence.passing import Passing
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run

_TEXT = "claudescale_prompt"
"""The column of a later model's frame with the text of an expression, which may have looked at all rows."""
_KEEPS_TIME = ("hybrid", "auto")
"""Modes that would take all the time there is."""


class CascadeRun(Handle):
    """A cascade under way or ended. ``await`` it for its end; every frame can be read before that.

    `Cascade.run` and `Cascade.start` make one.

    Attributes
    ----------
    cascade : Cascade
        What is run.
    state : str
        ``"starting"``, ``"running"``, ``"finished"``; ``"stopped"`` before every row had its last model;
        ``"left"`` while batches go on at the API; ``"failed"``.
    stopped_by, message : str or None
        What ended it early: ``"budget"``, ``"deadline"``, the API's error type; and its words.
    """

    def __init__(
        self,
        cascade: Cascade,
        client: AsyncAnthropic | None,
        *,
        ledger: str | Path | None,
        progress: bool,
    ) -> None:
        if client is not None:
            check_client(client)
        self.cascade = cascade
        self.state = "starting"
        self.stopped_by: str | None = None
        self.message: str | None = None
        self._progress = progress
        self._asked: Literal["stop", "leave"] | None = None
        self._frame: pl.DataFrame | None = None
        self._texts: pl.Series | None = None
        plan = self._handed(0, 1.0)
        self._client = client if client is not None else connect()
        self._steps: list[Step] = []
        if progress:
            self._say(0)
        self._begin(plan, None, ledger)
        self._ledger = self.runs[cascade.models[0]].path
        self._start(self._go)

    # the work

    async def _go(self) -> None:
        state = "failed"
        self.state = "running"
        try:
            await self._climb()
            state = self._end_state()
        except asyncio.CancelledError:
            state = "stopped"
            raise
        finally:
            self.state = state

    async def _climb(self) -> None:
        """Ask one model after the other, while rows go on and nothing has ended it."""
        await self._answered()
        for number in range(1, len(self.cascade.models)):
            rows = self._steps[-1].going_on
            if rows.is_empty() or self._asked or self._steps[-1].run.state != "finished":
                return
            try:
                plan = await loops.in_thread(self._plan, number, rows)
                self._begin(plan, rows, self._ledger)
                await self._answered()
            except (ImpossibleBudget, ImpossibleDeadline) as error:  # this model was asked nothing
                if self._steps[-1].reasons is None:
                    self._steps.pop()
                self.stopped_by = "budget" if isinstance(error, ImpossibleBudget) else "deadline"
                self.message = self._left_over(number, rows.len(), error)
                return
            except PlanError as error:
                raise RunStopped(self._at(number, error), self) from error

    def _begin(self, plan: Plan, rows: pl.Series | None, ledger: str | Path | None) -> None:
        """Start the run of the next model."""
        run = plan.start(self._client, ledger=ledger, progress=self._progress)
        self._steps.append(Step(plan.facts.id, run, rows))
        self._pass_on()  # what was asked for meanwhile

    async def _answered(self) -> None:
        """Wait for the model's run, however it ends, and judge what came of it."""
        number = len(self._steps) - 1
        run = self._steps[-1].run
        stopped = None
        try:
            await run
        except RunStopped as error:
            stopped = error
        try:
            self._steps[-1] = await loops.in_thread(self._judged, self._steps[-1])
        except Exception as error:  # the user's function may raise anything
            self.stopped_by, self.message = "accept", f"{type(error).__name__}: {error}"
            if stopped is None:
                msg = (
                    f"{self._at(number, error)} accept= cannot tell which replies are good enough. They are "
                    "kept in run.runs; with a ledger the cascade with another accept= pays for none of them."
                )
                raise RunStopped(msg, self) from error
        self.stopped_by, self.message = run.stopped_by or self.stopped_by, run.message or self.message
        if stopped is not None:
            raise RunStopped(self._at(number, stopped), self) from stopped

    def _judged(self, step: Step) -> Step:
        if self._frame is None:
            self._frame = self._given(step.run)
            self._texts = self._frame.select(step.run.plan.compiled.text.content.alias(_TEXT))[_TEXT]
        assert self._texts is not None
        frame, texts = self._frame, self._texts
        if step.rows is not None:
            frame, texts = frame[step.rows], texts.gather(step.rows)
        reasons = cascadeframe.reasons(frame, step, texts.is_null(), self.cascade.acceptance)
        return step._replace(reasons=reasons)

    def _given(self, first: Run) -> pl.DataFrame:
        """Return the user's rows, as the first run has read them."""
        return first.results.select(first.plan.frame.lazy().collect_schema().names())

    def _plan(self, number: int, rows: pl.Series) -> Plan:
        """Return what is asked of a later model: the rows that go on, with what is left of money and time."""
        assert self._frame is not None
        assert self._texts is not None
        if self._progress:
            self._say(number)
        plan = self._handed(number, rows.len() / self._frame.height)
        frame = self._frame[rows]
        if plan.compiled.columns is not None:
            return choices.resolved(plan.replace(frame=frame))
        frame = frame.with_columns(self._texts.gather(rows))
        return choices.resolved(plan.replace(frame=frame, prompt=pl.col(_TEXT), measured=plan.measured))

    def _handed(self, number: int, part: float) -> Plan:
        """Return the plan of a model over all rows, with what is left of money and time."""
        plan = list(self.cascade.plans.values())[number]
        deadline = plan.deadline
        left: dict[str, Any] = {}
        if plan.budget is not None and number:
            left["budget"] = plan.budget - self.dollars
            if left["budget"] <= 0:
                msg = "Nothing is left of the budget."
                raise ImpossibleBudget(msg)
        if deadline is not None:
            kept = 0.0
            if plan.mode in _KEEPS_TIME:
                kept = passing.reserve_minutes(self.cascade.priced, self.cascade.passings, number, part)
            left["deadline"] = deadline - kept - (self.minutes if number else 0.0)
            if left["deadline"] <= 0:
                raise ImpossibleDeadline(cascadecards.no_time(deadline, kept, self.cascade))
        return plan.replace(**left) if left else plan

    def _end_state(self) -> str:
        step = self._steps[-1]
        waiting = step.model != self.cascade.models[-1] and step.reasons is not None and step.going_on.len()
        if step.run.state == "left":
            return "left"
        return "stopped" if self.stopped_by or waiting or step.run.state == "stopped" else "finished"

    def _left_over(self, number: int, rows: int, error: PlanError) -> str:
        """Return why a model is not asked: what is left does not buy its rows."""
        if isinstance(error, ImpossibleBudget):
            budget = self.cascade.plans[self.cascade.models[number]].budget
            left = f"of the budget of {card.dollars(budget or 0.0)}, {card.dollars(self.dollars)} is spent"
        else:
            left = f"{card.duration(self.minutes)} have passed"
        return f"{rows:,} rows go on to {self.cascade.models[number]}, and {left}. {error}"

    def _at(self, number: int, error: Exception) -> str:
        models = self.cascade.models
        return f"Model {number + 1} of {len(models)}, {models[number]}: {error}"

    def _say(self, number: int) -> None:
        stream = sys.stdout if loops.in_notebook() else sys.stderr
        stream.write(cascadecards.step_line(number, self) + "\n")

    # the handle

    def stop(self) -> None:
        """Send nothing more, cancel batches, and let no row go on. What is answered by then is kept.

        Returns at once; ``await run`` for the end. The same cell again sends what is missing.

        Spends: what is in flight.
        """
        self._asked = "stop"
        self._pass_on()

    def leave(self) -> None:
        """Send nothing more, let no row go on, and let batches go on at the API: the same cell collects them.

        An interrupt and the end of the process do this too.

        Spends: what is in flight; the batches, as they are answered.
        """
        self._asked = self._asked or "leave"
        self._pass_on()

    def _pass_on(self) -> None:
        if self._asked and self._steps:
            run = self._steps[-1].run
            (run.stop if self._asked == "stop" else run.leave)()

    def _line(self) -> str:
        return cascadecards.line(self)

    # what happened

    @property
    def runs(self) -> dict[str, Run]:
        """The run of each model that was asked, in their order; each over the rows that reached it.

        Where the prompt is an expression, the frames of later ones have its text as one more column.
        """
        return {step.model: step.run for step in list(self._steps)}

    @property
    def steps(self) -> list[Step]:
        """Each model's run, the rows that reached it, and why they are not settled."""
        return list(self._steps)

    @property
    def dollars(self) -> float:
        """Paid by this run; what the ledger had is not in it."""
        return sum(run.counts.dollars for run in self.runs.values())

    @property
    def minutes(self) -> float:
        """API minutes from the first call to the end, or to now."""
        runs = list(self.runs.values())
        return (runs[-1].started_at - runs[0].started_at) / 60 + runs[-1].minutes

    @property
    def simulated(self) -> bool:
        """Whether the replies are a simulator's."""
        return any(run.simulated for run in self.runs.values())

    @property
    def results(self) -> pl.DataFrame:
        """The frame, same rows in the same order, with the typed columns, `reply`, `error` and `model`.

        A row has the reply that was accepted, and no error. One that no model settled keeps the reply of the
        last model that gave one, with what is wrong with it as `error`: ``"not_accepted"``,
        ``"invalid_reply"``, ``"max_tokens"``, ...; where none gave a reply, the error of the last one asked.
        `model` is the one whose reply or error it is, null where none was asked. While the cascade runs, a
        row shows what it has so far.
        A simulator's replies are marked by a last column, `simulated`.

        Spends: nothing.
        """
        steps = list(self._steps)
        frame = self._given(steps[0].run) if self._frame is None else self._frame
        return cascadeframe.merged(frame, steps, None if self._texts is None else self._texts.is_null())

    @property
    def table(self) -> pl.DataFrame:
        """One row per model that was asked, as `cascadeframe.TABLE`: what it settled, what not.

        Spends: nothing.
        """
        return pl.DataFrame([cascadeframe.measured(step) for step in list(self._steps)], schema=TABLE)

    @property
    def bill(self) -> pl.DataFrame:
        """What the cascade cost next to every row on each of its models, as `passing.BILL`.

        Every row on the first model is what that model was paid. Every row on a later one is an estimate:
        from its replies to the rows that reached it, corrected for how much longer these are than the others.

        Spends: nothing.
        """
        ended = self.state == "finished"
        return passing.bill(self._wholes(), list(self.runs.values()), so_far="" if ended else " so far")

    def learned(self) -> list[tuple[Plan, Passing]]:
        """Return for each model its plan as measured here, and how many requests went on: for `calibrate`.

        Spends: nothing.
        """
        steps = list(self._steps)
        found: list[tuple[Plan, Passing]] = []
        for number, whole in enumerate(self._wholes()):
            step = steps[number] if number < len(steps) else None
            if step is None or step.reasons is None or self._texts is None:
                found.append(passing.learned(whole, None, 0, 0))
                continue
            texts = self._texts if step.rows is None else self._texts.gather(step.rows)
            plan, passed = passing.learned(whole, step.run, *cascadeframe.requests(texts, step.reasons))
            found.append((plan, passed if number else passed._replace(weight=1.0)))
        return found

    def _wholes(self) -> list[Plan]:
        """Return the plan of each model over all rows, as they were read."""
        if self._frame is None:
            return self.cascade.priced
        return self.cascade.replace(frame=self._frame).priced

    @property
    def plot(self) -> CascadeRunPlots:
        """The picture: ``bill``."""
        return CascadeRunPlots(self)

    def __repr__(self) -> str:
        return cascadecards.run_card(self).text()

    def _repr_html_(self) -> str:
        return cascadecards.run_card(self).html()
