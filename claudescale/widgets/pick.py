"""Pick: choose a plan with controls. Every change shows its card, its place among others and its code."""
# ruff: noqa: PLC0415  # ipywidgets is imported where widgets are made, not with the package

from __future__ import annotations

import html
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from claudescale.api import catalog
from claudescale.api.limits import Limits
from claudescale.errors import PlanError, printable
from claudescale.planning.plans import Plan
from claudescale.views.card import Card

QUIET_SECONDS = 0.15
"""Pause after the last of a burst of changes, as by a held arrow key, before the picture is drawn."""
MODES = {
    "live": "live \N{MIDDLE DOT} now, at the tier's pace",
    "batch": "batch \N{MIDDLE DOT} half the price, within 24 hours",
    "hybrid": "hybrid \N{MIDDLE DOT} a batch, the rest live in time for the deadline",
    "auto": "auto \N{MIDDLE DOT} the cheapest that keeps deadline and budget",
}
_WIDE = {"layout": {"width": "520px", "max_width": "100%"}}
_NARROW = {"layout": {"width": "220px", "max_width": "100%"}, "style": {"description_width": "106px"}}
# JupyterLab draws the arrow of a drop-down black, even on a black background.
_STYLE = """<style>.claudescale select { --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg xmlns='http://\
www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23888888' \
stroke-width='2'/%3E%3C/svg%3E"); }</style>"""
_GONE = "<div><small>The picker as it was last shown. Run the cell again for its controls.</small></div>"


@dataclass(eq=False, repr=False)
class Picker:
    """A plan's controls in a notebook. `pick` makes one; it can be displayed any number of times.

    Attributes
    ----------
    plan : Plan
        The chosen plan. If the controls ask for something impossible, it stays the last valid plan.
    controls : dict
        The widgets by parameter name: ``picker.controls["tier"].value = "build"``.
    """

    plan: Plan
    controls: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        import ipywidgets as widgets

        self._given, self._picked = self.plan, dict[str, Any]()
        self._timer = threading.Timer(QUIET_SECONDS, self._draw)
        self.controls = self._controls()
        self._first = {name: control.value for name, control in self.controls.items()}
        for control in self.controls.values():
            control.observe(self._refresh, "value")
        self._figures, self._code = (widgets.HTML(layout={"max_width": "100%"}) for _ in range(2))
        self._chart = widgets.Output()
        self._show({"text/plain": "Drawing the choices ..."})
        *long, tokens, deadline, budget, cache = self.controls.values()
        wrapped = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 14px"}
        short = widgets.HBox([tokens, deadline, budget], layout=wrapped)
        look = widgets.HTML(_STYLE, layout={"display": "none"})
        self._box = widgets.VBox([*long, short, cache, self._figures, self._code, self._chart, look])
        self._box.add_class("claudescale")
        self._refresh()

    def _controls(self) -> dict[str, Any]:
        """Return the widgets, set to the plan; their choices include its own model and limits."""
        from ipywidgets import Checkbox, Dropdown, IntText, Text

        plan, model, tier = self.plan, self.plan.compiled.model.id, self.plan.tier
        models = [each.id for each in catalog.MODELS.values() if catalog.lifecycle(each) != "retired"]
        tiers: dict[str, Any] = {name: name for name, facts in catalog.TIERS.items() if facts.limits}
        if isinstance(tier, Limits):
            tiers = {"your limits": tier, **tiers}
        deadline, budget = ("" if amount is None else repr(amount) for amount in (plan.deadline, plan.budget))
        none = "Leave it empty for none."
        return {
            "model": Dropdown(
                description="Model", tooltip="Which model answers.",
                options=list(dict.fromkeys([*models, model])), value=model, **_WIDE,
            ),
            "tier": Dropdown(
                description="Tier",
                tooltip="The account's usage tier: what it allows this model in a minute.",
                options=list(tiers.items()),
                value=tier if isinstance(tier, Limits) else catalog.tier(tier).name, **_WIDE,
            ),
            "mode": Dropdown(
                description="Mode", tooltip="How the rows are sent.",
                options=[(label, mode) for mode, label in MODES.items()], value=plan.mode, **_WIDE,
            ),
            "max_tokens": IntText(
                description="Max tokens", tooltip="The longest reply in tokens, thinking included.",
                value=plan.max_tokens, **_NARROW,
            ),
            "deadline": Text(
                description="Deadline (min)", tooltip=f"Minutes the run may take. {none}",
                value=deadline, placeholder="none", **_NARROW,
            ),
            "budget": Text(
                description="Budget ($)", tooltip=f"US dollars the run may spend, a hard stop. {none}",
                value=budget, placeholder="none", **_NARROW,
            ),
            "cache": Checkbox(
                description="Cache the system prompt", indent=False, value=plan.cache,
                tooltip="It is paid in full once, then read at a lower price.",
            ),
        }  # fmt: skip

    @property
    def code(self) -> str:
        """The line of code that makes `plan` from the original plan, assuming that one is named ``plan``."""
        chosen = ", ".join(
            f"{name}={json.dumps(value) if isinstance(value, str) else repr(value)}"
            for name, value in self._picked.items()
        )
        return f"plan = plan.replace({chosen})" if chosen else "plan"

    def _chosen(self) -> dict[str, Any]:
        """Return the changes by the controls as arguments of `Plan.replace`."""
        values = {name: control.value for name, control in self.controls.items()}
        chosen = {name: value for name, value in values.items() if value != self._first[name]}
        for name in {"deadline", "budget"} & set(chosen):
            typed = chosen[name].strip(" $").replace(",", "")
            with suppress(ValueError):  # the plan itself rejects a non-number
                number = float(typed) if typed else None
                chosen[name] = int(number) if number and number.is_integer() else number
        return chosen

    def _refresh(self, _: object = None) -> None:
        """Show the chosen plan: figures at once, the picture soon after."""
        chosen = self._chosen()
        try:
            plan = self._given.replace(**chosen) if chosen else self._given
            card = plan._repr_html_()
        except PlanError as error:
            still = "picker.plan has not changed, nor have the code and the picture below."
            card = Card(title=f"Not possible. {error}", header=(), rows=(), notes=(still,)).html()
        else:
            self.plan, self._picked = plan, chosen
            self._code.value = _close(_code(self.code))
            self._timer.cancel()  # of a burst of changes only the last is drawn
            self._timer = threading.Timer(QUIET_SECONDS, self._draw)
            self._timer.daemon = True
            self._timer.start()
        self._figures.value = _close(card)

    def _draw(self) -> None:
        """Draw the choices in a separate thread, and discard the picture if the choice has changed."""
        plan = self.plan
        try:
            chart = plan.plot.frontier()
            # No PNG: vl-convert holds the GIL while it draws, and notebooks do not save widgets.
            bundle = {"application/vnd.vegalite.v5+json": chart.to_dict(), "text/plain": repr(chart)}
        except Exception as error:  # noqa: BLE001 - a thread has no caller, so it is shown
            bundle = {"text/plain": f"The choices cannot be drawn: {type(error).__name__}: {error}"}
        if plan is self.plan:
            self._show(bundle)

    def _show(self, bundle: dict[str, Any]) -> None:
        self._chart.outputs = ({"output_type": "display_data", "data": bundle, "metadata": {}},)

    def __repr__(self) -> str:
        return printable(f"Picker of the plan: {self.code}")

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        views: dict[str, Any] = self._box._repr_mimebundle_()
        page = f"{_GONE}{self.plan._repr_html_()}{_code(self.code)}"
        return {**views, "text/plain": repr(self), "text/html": page}


def pick(plan: Plan) -> Picker:
    """Return controls for a plan: every change shows its price, its time and its place among other plans.

    ``picker.plan`` is then the chosen plan, and ``picker.code`` the line of code that makes it.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        The plan to start from; it is not changed.

    Raises
    ------
    PlanError
        If the argument is not a plan.

    Notes
    -----
    A notebook does not save widgets. Opened without its kernel, it shows the plan and the line of code as
    they were when the picker was displayed. Copy the line into a cell to keep the chosen plan.

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
    return Picker(plan)


def _close(page: str) -> str:
    """Return HTML with the line spacing of text instead of that of controls."""
    return f'<div style="line-height:1.45">{page}</div>'


def _code(line: str) -> str:
    style = "user-select:all;white-space:pre-wrap"
    return f'<div><small>The same in code: </small><code style="{style}">{html.escape(line)}</code></div>'
