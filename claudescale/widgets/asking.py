"""Asking before a plan spends, starting it, and showing how far it is: what a picker's buttons do."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale import loops
from claudescale.api.client import Wire
from claudescale.api.connecting import connect
from claudescale.errors import ClaudescaleError
from claudescale.views import card, cards
from claudescale.widgets import picks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run
    from claudescale.widgets.pickpanel import Panel

REFRESH_SECONDS = 0.5


class Spending(NamedTuple):
    """What a button is about to spend: on which plan, and on how many of its rows if it is a pilot."""

    plan: Plan
    question: str
    most_dollars: float
    pilot_rows: int | None


def pilot_spending(plan: Plan, rows: int) -> Spending:
    """Return what a pilot of so many rows would spend; PlanError where it would have none."""
    count, about = picks.pilot_rows(plan, rows), picks.pilot_dollars(plan, rows)
    question = f"Spend about {card.dollars(about)} on a pilot of {count:,} rows of {plan.facts.id}?"
    return Spending(plan, question, about, count)


def run_spending(plan: Plan) -> Spending:
    """Return what a run would spend."""
    usual, most = picks.dollars(plan)
    about = f"{card.dollars(usual)}, up to {card.dollars(most)},"
    question = f"Spend about {about} on {plan.totals.rows:,} rows on {plan.facts.id}?"
    return Spending(plan, question, most, None)


class Asking:
    """Spends for a picker: one thing at a time, after a question where one is due. Owns the client.

    Parameters
    ----------
    panel : Panel
        Where it asks and tells.
    client : AsyncAnthropic or None
        None connects when the first button is clicked.
    ledger : str, Path or None
        As for `Plan.start`.
    confirm_dollars : float
        A run that may cost more is asked for.
    changed : callable
        Called after each change of `busy`, `simulated` and `active`.
    measured : callable
        Called with a pilot that has ended.

    Attributes
    ----------
    busy : bool
        Something is being prepared or runs.
    simulated : bool
        The client is known to be a simulator's.
    active : Run or None
        What runs.
    run : Run or None
        The last run that was no pilot.
    """

    def __init__(
        self,
        panel: Panel,
        client: AsyncAnthropic | None,
        *,
        ledger: str | Path | None,
        confirm_dollars: float,
        changed: Callable[[], None],
        measured: Callable[[Run], None],
    ) -> None:
        self._panel, self._client, self._ledger = panel, client, ledger
        self._confirm_dollars = confirm_dollars
        self._changed, self._measured = changed, measured
        self._known = False
        self._asked: Spending | None = None
        self.busy = self.simulated = False
        self.active: Run | None = None
        self.run: Run | None = None
        most = card.dollars(confirm_dollars)
        asks = f"Pilot asks before it spends, Run where it may cost more than {most}."
        connects = " Both connect when clicked, and say whether calls are paid for." if client is None else ""
        panel.terms(asks + connects)

    # one thing at a time

    def introduce(self) -> None:
        """Find out whether the client's calls are paid for, where there is a client yet."""
        if self._client is not None:
            self._begin(self._introduce)

    def ask(self, spending: Spending) -> None:
        """Begin what a button says: with a question where one is due, else at once."""
        if self.busy:
            self._panel.say("One thing at a time: wait for its end, or stop it.")
            return
        self.withdraw()
        self._asked = spending
        if not self._known:
            self._panel.say("Connecting ...")
        self._begin(lambda: self._prepare(spending))

    def yes(self) -> None:
        """Spend what was asked for."""
        spending = self._asked
        if spending is None or self.busy:
            return
        self.withdraw()
        self._begin(lambda: self._spend(spending))

    def no(self) -> None:
        """Spend nothing."""
        self.withdraw()
        self._panel.say("Nothing was sent.")

    def withdraw(self) -> None:
        """Take a question back."""
        self._asked = None
        self._panel.ask(None)

    def stop(self) -> None:
        """Stop what runs, as `Run.stop` does."""
        if self.active is not None:
            self._panel.say("Stopping: what is in flight is paid for, waited for and kept.")
            self.active.stop()

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def told() -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - nobody awaits it, so it is shown
                self.failed(error)
            finally:
                self._become(busy=False, active=None)

        self._become(busy=True, active=None)
        loops.start(told, stop=self.stop)

    def _become(self, *, busy: bool, active: Run | None) -> None:
        self.busy, self.active = busy, active
        self._changed()

    # what it does

    async def _introduce(self) -> None:
        """Find out, and say, whether calls are paid for."""
        if self._known:
            return
        if self._client is None:
            self._client = await loops.in_thread(connect)
        wire = Wire(self._client)
        try:
            api = await wire.api()
        finally:
            await wire.close()
        self._known, self.simulated = True, api.simulated
        paid = f"Calls go to {self._client.base_url.host} and are paid for."
        self._panel.say("SIMULATED: replies are synthetic and cost nothing." if api.simulated else paid)

    async def _prepare(self, spending: Spending) -> None:
        await self._introduce()
        if self._asked is not spending:
            self._panel.say("Another plan was picked meanwhile, and nothing was sent. Click again.")
            return
        if spending.pilot_rows is None and spending.most_dollars <= self._confirm_dollars:
            self._asked = None
            await self._spend(spending)
            return
        as_if = "SIMULATED, nothing is paid, but as if it were: " if self.simulated else ""
        self._panel.ask(as_if + spending.question)

    async def _spend(self, spending: Spending) -> None:
        """Run a plan, or a pilot of it, and show how far it is; the kernel stays free."""
        run = await loops.in_thread(self._started, spending)
        self._become(busy=True, active=run)
        if spending.pilot_rows is None:
            self.run = run
            await self._followed(run)
            self._panel.say("The run is picker.run, its answers are picker.run.results.")
            return
        ended = asyncio.ensure_future(_end_of(run))
        while not ended.done():
            self._panel.say(f"Pilot. {cards.line(run)}")
            await asyncio.wait([ended], timeout=REFRESH_SECONDS)
        ended.result()
        self._measured(run)

    async def _followed(self, run: Run) -> None:
        """Show a run below while it goes on, and what it came to; raise what ended it."""
        from claudescale.widgets.following import Following  # noqa: PLC0415 - it imports widgets and charts

        ended = asyncio.ensure_future(_end_of(run))
        self._panel.say("The run is followed below.")
        following = await loops.in_thread(Following, run, self._panel)
        while not ended.done():
            await loops.in_thread(following.show)
            await asyncio.wait([ended], timeout=REFRESH_SECONDS)
        await loops.in_thread(following.end)
        ended.result()

    def _started(self, spending: Spending) -> Run:
        rows = spending.pilot_rows
        plan = spending.plan if rows is None else picks.pilot(spending.plan, rows)
        return plan.start(self._client, ledger=self._ledger, progress=False)

    def failed(self, error: Exception) -> None:
        """Show an error; one that is not ours with what led to it."""
        if isinstance(error, ClaudescaleError):
            self._panel.say(str(error))
            return
        detail = "".join(traceback.format_exception(error))
        self._panel.say(f"Something else went wrong. {type(error).__name__}: {error}", detail)


async def _end_of(run: Run) -> None:
    await run
