"""Pick: a plan chosen with controls, seen at once in dollars, minutes and a picture, and run from there."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from claudescale.api.connecting import check_client
from claudescale.errors import PlanError, printable
from claudescale.planning.plans import DEFAULT_LEDGER, Plan
from claudescale.prompts.requests import plain
from claudescale.views import card as display
from claudescale.views import cards
from claudescale.views.theme import specification
from claudescale.widgets import picks
from claudescale.widgets.asking import Asking, pilot_spending, run_spending
from claudescale.widgets.redrawing import Redrawing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anthropic import AsyncAnthropic

    from claudescale.running.runs import Run
    from claudescale.widgets.asking import Spending
    from claudescale.widgets.picks import Pick

PILOT_ROWS = 50
"""How many rows a pilot takes, unless something else is typed."""


class Picker:
    """A plan's controls in a notebook. `pick` makes one; it shows itself, as often as one likes.

    It lives as long as its kernel; what lasts is the line of code it shows.

    Attributes
    ----------
    plan : Plan
        What is picked, frozen; while the controls ask for what cannot be, what was picked before.
    code : str
        The line that makes `plan` from the plan that was given, if they are called ``plan`` and ``picker``.
    run : Run or None
        What the Run button started last.
    pilot : Run or None
        What `plan` was measured by here.
    controls : dict
        The widgets, by the name of the parameter: ``picker.controls["tier"].value = "build"``.
    buttons : dict
        ``"pilot"``, ``"run"``, ``"stop"``, ``"yes"``, ``"no"``.
    """

    def __init__(
        self,
        plan: Plan,
        client: AsyncAnthropic | None,
        *,
        ledger: str | Path | None,
        confirm_dollars: float,
    ) -> None:
        from claudescale.widgets.pickpanel import Panel  # noqa: PLC0415 - it imports ipywidgets

        self._given = self.plan = plan
        self._possible = True
        self._pilots: dict[tuple[str, bool], Run] = {}
        self._calibrated: dict[tuple[Run, Pick], dict[str, Any]] = {}
        # Changes come from the kernel's thread, and after a pilot from the background's.
        self._lock = threading.RLock()
        with suppress(PlanError):  # what is wrong is shown in place of the figures
            _ = plan.totals  # the rows are read once, for all that is picked
        pick = picks.of(plan)
        models, tiers = picks.models(plan, pick), picks.tiers(plan, pick.model)
        self._models = _models_depend_on(pick), models
        self._panel = Panel(pick, models=models, tiers=tiers, rows=PILOT_ROWS)
        self.controls, self.buttons = self._panel.controls, self._panel.buttons
        self._asking = Asking(
            self._panel,
            client,
            ledger=ledger,
            confirm_dollars=confirm_dollars,
            changed=self._label,
            measured=self._measured,
        )
        self._drawing = Redrawing(_drawn, self._panel.draw, self._asking.failed)
        acts = {
            "pilot": lambda: self._spend(lambda: pilot_spending(self.plan, self.controls["rows"].value)),
            "run": lambda: self._spend(lambda: run_spending(self.plan)),
            "stop": self._asking.stop,
            "yes": self._asking.yes,
            "no": self._asking.no,
        }
        for name, act in acts.items():
            self.buttons[name].on_click(self._guarded(act))
        self._panel.heard = self._guarded(self._refresh)
        self._panel.heard()
        self._asking.introduce()

    @property
    def code(self) -> str:
        """The line of code that makes `plan`."""
        return picks.code(self._given, picks.of(self.plan), piloted=self.pilot is not None)

    @property
    def pilot(self) -> Run | None:
        """What `plan` was measured by here."""
        return self._pilots.get(_measured_as(self.plan))

    @property
    def run(self) -> Run | None:
        """What the Run button started last."""
        return self._asking.run

    def stop(self) -> None:
        """Stop the run or the pilot under way, as `Run.stop` does.

        Spends: what is in flight.
        """
        self._asking.stop()

    # a change

    def _refresh(self) -> None:
        """Show what the controls ask for: figures at once, the picture soon after."""
        with self._lock:
            self._asking.withdraw()
            try:
                pick = self._panel.pick()
                self._offer(pick)
                plan = self._made(pick)
                card = picks.card(plan)
            except PlanError as error:
                self._possible, card = False, _impossible(error)
            else:
                self._possible, self.plan = True, plan
                self._panel.code(self.code)
                self._panel.hint(picks.cache_hint(plan))
                self._drawing.ask(plan)
            self._label()  # before the figures: whoever has read them finds the buttons as they should be
            self._panel.figures(card)

    def _spend(self, spending: Callable[[], Spending]) -> None:
        with self._lock:
            if self._possible:  # a click may come before the page has heard that the button is disabled
                self._asking.ask(spending())

    def _made(self, pick: Pick) -> Plan:
        """Return the plan of a pick, measured where there is a pilot; the rows are not read again."""
        plan = picks.made(self._given, pick)
        pilot = self._pilots.get(_measured_as(plan))
        if pilot is None:
            return plan
        if (pilot, pick) not in self._calibrated:
            self._calibrated[pilot, pick] = picks.found_out(plan.calibrate(pilot))
        return plan.replace(**self._calibrated[pilot, pick])

    def _offer(self, pick: Pick) -> None:
        """Show the labels as they are for what is picked."""
        known, models = self._models
        if known != _models_depend_on(pick):
            models = picks.models(self._given, pick)
            self._models = _models_depend_on(pick), models
        self._panel.offer("model", models)
        self._panel.offer("tier", picks.tiers(self._given, pick.model))

    def _label(self) -> None:
        """Write on the buttons what they would spend."""
        with self._lock:
            free = self._possible and not self._asking.busy
            simulated = " (SIMULATED)" * self._asking.simulated
            pilot, some, run = "Pilot", False, "Run"
            with suppress(PlanError):  # no rows, or a plan that cannot be: then there is nothing to tell
                pilot, some = picks.pilot_label(self.plan, self.controls["rows"].value), True
            if self._possible:
                run = picks.run_label(self.plan)
            self._panel.label("pilot", pilot + simulated, enabled=free and some)
            self._panel.label("run", run + simulated, enabled=free)
            self._panel.label("stop", "Stop", enabled=self._asking.active is not None)

    def _measured(self, run: Run) -> None:
        """Take what a pilot has measured, for all plans of its model."""
        told = cards.line(run)
        run.plan.calibrate(run)  # PlanError where there is nothing to learn from
        with self._lock:
            self._pilots[_measured_as(run.plan)] = run
            self._refresh()
        self._panel.say(f"Pilot. {told} The figures of {run.plan.facts.id} are measured now.")

    def _guarded(self, act: Callable[[], None]) -> Callable[..., None]:
        def guarded(*_: Any) -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - a callback's error would be lost, so it is shown
                self._asking.failed(error)

        return guarded

    # how it looks

    def __repr__(self) -> str:
        return printable(f"Picker: {cards.plan_card(self.plan).title} The same in code: {self.code}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself leaves out what was not asked for
        return self._panel.bundle(repr(self), cards.plan_card(self.plan), self.code)


def pick(
    plan: Plan,
    client: AsyncAnthropic | None = None,
    *,
    ledger: str | Path | None = DEFAULT_LEDGER,
    confirm_dollars: float = 1.0,
) -> Picker:
    """Return controls for a plan: every change shows its price, its time and its place among the others.

    ``picker.plan`` is then what was picked, and ``picker.code`` the line that makes the same plan.

    Spends: nothing; its buttons do, the pilot's after asking.

    Parameters
    ----------
    plan : Plan
        To begin with; it stays as it is.
    client : AsyncAnthropic, optional
        From `connect`, which is also the default, called when a button needs it.
    ledger : str, Path or None
        As for `Plan.start`, for pilot and run alike: what the pilot paid for, the run does not pay again.
    confirm_dollars : float
        Above so many dollars, at the 90th percentile, the Run button asks too.

    Raises
    ------
    PlanError
        There is no plan, or the client cannot be used.

    Notes
    -----
    A notebook saves no widgets. Opened without its kernel it shows the plan and the line of code as they
    were when the picker was shown, or, to its author, that the widget is gone: run the cell again. Copy the
    line into a cell to keep what was picked.

    Examples
    --------
    >>> import claudescale as cs
    >>> import polars as pl
    >>> frame = pl.DataFrame({"text": ["late again", "works"]})
    >>> picker = pick(cs.plan(frame, "Is this a complaint? {text}", model="claude-haiku-5-5"))
    >>> picker.controls["tier"].value = "build"
    >>> picker.code
    'plan = plan.replace(tier="build")'
    """
    if not isinstance(plan, Plan):
        msg = f"cs.pick shows a plan, and this is a {type(plan).__name__}. Make one with cs.plan(frame, ...)."
        raise PlanError(msg)
    if client is not None:
        check_client(client)
    confirm_dollars = plain(confirm_dollars)
    if not isinstance(confirm_dollars, int | float) or not confirm_dollars >= 0:
        msg = f"confirm_dollars={confirm_dollars!r}: above so many dollars Run asks first, such as 1.0."
        raise PlanError(msg)
    return Picker(plan, client, ledger=ledger, confirm_dollars=confirm_dollars)


def _models_depend_on(pick: Pick) -> tuple[object, ...]:
    return pick.tier, pick.max_tokens, pick.cache


def _measured_as(plan: Plan) -> tuple[str, bool]:
    """Return what a pilot's measurements depend on, of all that can be picked."""
    return plan.facts.id, bool(plan.cache)


def _impossible(error: PlanError) -> display.Card:
    still = "picker.plan is still what it was before, as the code and the picture show it."
    return display.Card(title=f"Not possible. {error}", header=(), rows=(), notes=(still,))


def _drawn(plan: Plan) -> dict[str, Any]:
    """Return the picture of a plan among its choices; a live widget needs no PNG beside it."""
    shown = plan.plot.frontier()
    drawing = specification(shown.chart, shown.text)
    return {"application/vnd.vegalite.v5+json": drawing, "text/plain": shown.text}
